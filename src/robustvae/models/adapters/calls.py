"""The calls of torch within a forward pass: which makes the code, and another code in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

STANDARD = frozenset(["randn", "randn_like"])
NORMAL = frozenset(["normal", "normal_"])


def tolerance_of(expected: Tensor) -> float:
    """What two passes through the same layers may differ by, in an output's own unit."""
    eps = torch.finfo(expected.dtype).eps
    # float32 sums in another order differ by tens of eps; half types are summed in float32
    relative = 100 * eps if eps < 1e-5 else eps
    return relative * float(expected.detach().double().abs().max())


@final
@dataclass(frozen=True)
class Place:
    """The call within a forward pass that makes the code.

    Attributes:
        names: Of the calls before it, and its own, whose results have a code's numbers.
        part: Its place in what the call returns; None for the whole.
        eps: Of the floating type in which the pass computes its code.
    """

    names: tuple[str, ...]
    part: int | None
    eps: float


class Calls(TorchFunctionMode):
    """The calls of torch within, of which those are counted that return numbers of a code's size.

    Args:
        rows: Inputs of a pass.
        width: Numbers of one code.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.rows, self.width = rows, width
        self.names: list[str] = []

    def within(self, function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        """The function, whose calls alone are looked at."""

        def call(x: Tensor) -> Any:
            with self:
                return function(x)

        return call

    def fitting(self, result: Any) -> list[tuple[int | None, Tensor]]:
        """The tensors in a call's result that may be codes, with their places."""
        parts = list(enumerate(result)) if isinstance(result, tuple | list) else [(None, result)]
        return [(part, value) for part, value in parts if self._fits(value)]

    def _fits(self, value: Any) -> bool:
        return (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and value.ndim > 1
            and len(value) == self.rows
            and value.numel() == self.rows * self.width
        )


@final
class Watch(Calls):
    """Notes within a forward pass which calls give a code's numbers, and what is drawn.

    Attributes:
        places: Calls that return the code.
        draws: Normal draws of the code's size, as draws of the standard normal.
    """

    def __init__(self, code: Tensor) -> None:
        super().__init__(len(code), code[0].numel())
        self.code = code
        self.places: list[Place] = []
        self.draws: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """The call itself, and a note of its result."""
        keywords = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        result = func(*args, **keywords)
        fitting = [] if name == "__get__" else self.fitting(result)
        if fitting:
            self.names.append(name)
        center = _center(name, args, keywords)
        if center is not None and isinstance(result, Tensor):
            mean, scale = center
            if result.numel() == self.code.numel():
                self.draws.append(((result.detach() - mean) / scale).clone())
            if fitting and isinstance(mean, Tensor) and self._is_code(mean.expand_as(result)):
                # its whole result, for a sampler may cut its mean off from gradients
                self.places.insert(0, self._place(None, result))
            return result
        for part, value in fitting:
            if self._is_code(value):
                self.places.append(self._place(part, value))
        return result

    def _place(self, part: int | None, value: Tensor) -> Place:
        return Place(tuple(self.names), part, torch.finfo(value.dtype).eps)

    def _is_code(self, value: Tensor) -> bool:
        # not to the last digit: layers may take a faster way where nobody looks on
        one, other = value.detach().reshape(self.code.shape).double(), self.code.double()
        return float((one - other).abs().max()) <= tolerance_of(self.code)


def _center(name: str, args: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """The mean and the standard deviation of a normal draw; None of any other call."""
    if name in STANDARD:
        return 0.0, 1.0
    if name not in NORMAL:
        return None
    values = args if name == "normal" else args[1:]
    mean = values[0] if values else keywords.get("mean", 0.0)
    scale = values[1] if len(values) > 1 else keywords.get("std", 1.0)
    is_known = all(isinstance(value, int | float | Tensor) for value in (mean, scale))
    return (mean, scale) if is_known else None


@final
class WithCode(Calls):
    """Within: a forward pass whose code is another one and whose normal draws are their means.

    Attributes:
        is_placed: Whether the code was put in place.
    """

    def __init__(self, z: Tensor, place: Place) -> None:
        super().__init__(len(z), z[0].numel())
        self.z, self.place = z, place
        self.is_placed = False

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """The call itself; the mean of a draw; or the code, in the place of the pass's own."""
        keywords = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        is_draw = name in STANDARD or name in NORMAL
        result = _mean_of_draw(name, args, keywords) if is_draw else func(*args, **keywords)
        if self.is_placed or name == "__get__" or not (fitting := self.fitting(result)):
            return result
        self.names.append(name)
        if len(self.names) < len(self.place.names):
            return result
        code = dict(fitting).get(self.place.part)
        if tuple(self.names) != self.place.names or code is None:
            return result
        self.is_placed = True
        with torch.enable_grad():  # a sampler's no_grad is not about the code
            z = self.z.reshape(code.shape)
        if self.place.part is None:
            return z
        parts = list(result)
        parts[self.place.part] = z
        return tuple(parts) if isinstance(result, tuple) else parts


def _mean_of_draw(name: str, args: Sequence[Any], keywords: dict[str, Any]) -> Any:
    """What a normal draw gives where its noise is 0; nothing random is called."""
    keywords = {key: value for key, value in keywords.items() if key != "generator"}
    if name == "randn":
        return torch.zeros(*args, **keywords)
    if name == "randn_like":
        return torch.zeros_like(*args, **keywords)
    if name == "normal_":
        return args[0].fill_(args[1] if len(args) > 1 else keywords.get("mean", 0.0))
    with torch.enable_grad():  # a draw that is cut off from gradients still depends on its mean
        mean = args[0] if args else keywords["mean"]
        scale = args[1] if len(args) > 1 else keywords.get("std", 1.0)
        if isinstance(mean, Tensor):
            like = scale if isinstance(scale, Tensor) else mean
            return mean + torch.zeros_like(like)
        if isinstance(scale, Tensor):
            return torch.full_like(scale, float(mean))
        size = args[2] if len(args) > 2 else keywords["size"]
        options = {key: keywords[key] for key in ("dtype", "device", "layout") if key in keywords}
        options.setdefault("dtype", torch.get_default_dtype())
        return torch.full(tuple(size), float(mean), **options)
