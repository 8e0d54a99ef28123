"""Loops that take long, and go on where a stopped run left them, to the last bit.

Within `saving` of `robustvae.records`, a loop says at the beginning of each round where it stands.
About once a minute that is written, with all loops around it; a run that is started again computes
as before, but each loop begins at the round that was saved, and one that was finished has its
result. Outside of it nothing is kept, and a loop costs nothing.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from robustvae.records.states import Scope, current_scope


def packed(x: Tensor) -> dict[str, Any]:
    """A tensor as JSON values, without loss.

    Examples:
        >>> import torch
        >>> from robustvae.loops import packed, unpacked
        >>> unpacked(packed(torch.tensor([0.5, torch.inf])))
        tensor([0.5000,    inf])
    """
    x = x.detach().cpu().contiguous()
    is_brain = x.dtype == torch.bfloat16  # which numpy does not know
    array = (x.view(torch.int16) if is_brain else x).numpy()
    return {
        "dtype": "bfloat16" if is_brain else str(array.dtype),
        "shape": list(array.shape),
        "bytes": base64.b64encode(array.tobytes()).decode("ascii"),
    }


def unpacked(content: Mapping[str, Any]) -> Tensor:
    """The tensor of `packed`."""
    is_brain = content["dtype"] == "bfloat16"
    kind = "int16" if is_brain else content["dtype"]
    array = np.frombuffer(base64.b64decode(content["bytes"]), dtype=kind)
    x = torch.from_numpy(array.reshape(content["shape"]).copy())
    return x.view(torch.bfloat16) if is_brain else x


def _to_json(value: Any) -> Any:
    if isinstance(value, Tensor):
        is_last = not value.is_contiguous() and value.ndim == 4
        # a convolution may round otherwise for images that lie otherwise in memory
        is_last = is_last and value.is_contiguous(memory_format=torch.channels_last)
        return {**packed(value), "channels_last": is_last}
    if isinstance(value, list | tuple):
        return [_to_json(one) for one in value]
    return value


def _from_json(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        order = torch.channels_last if value["channels_last"] else torch.contiguous_format
        return unpacked(value).to(device).contiguous(memory_format=order)
    if isinstance(value, list):
        return [_from_json(one, device) for one in value]
    return value


@final
class Loop:
    """One loop: where it stands, and what it gives in the end.

    Its content is tensors, numbers and texts, also in lists. No tensor of it may be changed in
    place before the next round.

    Attributes:
        begin: The round to begin with.
        content: What `at` was given at that round; None for a loop that begins at its beginning.
        result: What `finish` was given by a loop that a stopped run finished; else None.
    """

    def __init__(self, scope: Scope | None, key: str, device: torch.device) -> None:
        self.scope, self.key = scope, key
        self.begin, self.inner, self.is_solid = 0, 0, False
        self.content: Any = None
        self.result: Any = None
        entry = None if scope is None else scope.entries.get(key)
        if isinstance(entry, Mapping):
            self.begin = entry["round"]
            self.content = _from_json(entry["content"], device)
            if entry["finished"]:
                self.result, self.content = self.content, None

    @property
    def is_kept(self) -> bool:
        """Whether anybody keeps where it stands."""
        return self.scope is not None

    def at(self, number: int, *content: Any) -> None:
        """Say that a round begins, and from what."""
        if self.scope is None:
            return
        self.begin, self.inner, self.content = number, 0, list(content)
        # what loops within earlier rounds gave is in the content
        self.scope.forget(f"{self.key}/", but=f"{self.key}/{number}/")
        self.scope.save_if_due()

    def offer(self, number: int, content: Callable[[], Sequence[Any]]) -> None:
        """As `at`, of a loop that changes its tensors in place: asked for copies when they count.

        The loops within such a one keep nothing.
        """
        self.is_solid = True
        if self.scope is not None and self.scope.state.is_due:
            self.at(number, *content())

    def finish(self, *content: Any) -> None:
        """Say what the loop gives."""
        self.result = list(content)
        if self.scope is None:
            return
        self.scope.forget(f"{self.key}/")
        self.scope.entries[self.key] = self
        self.scope.active.pop(self.key, None)
        self.scope.save_if_due()

    def packed(self) -> Any:
        """Where it stands, or its result, in JSON's own types; None before the first round."""
        is_finished = self.result is not None
        content = self.result if is_finished else self.content
        if content is None:
            return None
        return {"round": self.begin, "finished": is_finished, "content": _to_json(content)}


_OUTSIDE = "first"


@contextlib.contextmanager
def loop(label: str, *identity: Tensor, kept: bool = True) -> Iterator[Loop]:
    """Within: one loop, known again by its place among the others, its label and its tensors.

    Args:
        label: What it does, with all settings that decide its numbers.
        identity: What it starts from; a loop with another start is another one.
        kept: Whether it says where it stands at all.

    Examples:
        >>> import tempfile, torch
        >>> from robustvae.loops import loop
        >>> from robustvae.records import SavedState, Store, saving
        >>> def total(x, stop=None):
        ...     with loop("total", x) as place:
        ...         (result,) = place.content or (torch.zeros(()),)
        ...         for i in range(place.begin, len(x)):
        ...             place.at(i, result)
        ...             if i == stop:
        ...                 raise KeyboardInterrupt
        ...             result = result + x[i]
        ...     return result, place.begin
        >>> x = torch.arange(4.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     state = SavedState(Store(folder, "key"), "part", every=0)
        ...     try:
        ...         with saving(state, "step"):
        ...             total(x, stop=2)
        ...     except KeyboardInterrupt:
        ...         state = SavedState(Store(folder, "key"), "part")
        ...     with saving(state, "step"), loop("total", x) as place:
        ...         print(place.begin)
        2
    """
    scope = current_scope() if kept else None
    if scope is None:
        yield Loop(None, "", torch.device("cpu"))
        return
    around = next(reversed(scope.active.values()), None)
    prefix, number = _OUTSIDE, scope.opened
    if isinstance(around, Loop) and around.is_solid:
        yield Loop(None, "", torch.device("cpu"))
        return
    if isinstance(around, Loop):
        prefix, number = f"{around.key}/{around.begin}", around.inner
        around.inner += 1
    else:
        scope.opened += 1
    digest = hashlib.sha256(label.encode())
    for x in identity:
        digest.update(repr((x.shape, x.dtype)).encode())
        digest.update(x.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    device = identity[0].device if identity else torch.device("cpu")
    place = Loop(scope, f"{prefix}/{number}-{digest.hexdigest()[:16]}", device)
    scope.active[place.key] = place
    try:
        yield place
    finally:
        scope.active.pop(place.key, None)


def in_turn(
    label: str,
    sizes: Sequence[int],
    compute: Callable[[int], Tensor],
    generator: torch.Generator,
    *identity: Tensor,
) -> list[Tensor]:
    """What `compute(size)` gives for one size after the other, each spending the generator.

    Args:
        label: As of `loop`.
        sizes: How many are computed at once.
        compute: A tensor for a size, or for a number.
        generator: Which stands afterwards where all of them leave it.
        identity: As of `loop`; the generator's state is part of it.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.loops import in_turn
        >>> g = rv.generator(0)
        >>> [len(part) for part in in_turn("draws", [2, 1], lambda n: torch.rand(n), g)]
        [2, 1]
    """
    if current_scope() is None:
        return [compute(size) for size in sizes]
    with loop(label, *identity, generator.get_state()) as place:
        content: list[Any] = place.result or place.content or [None]
        state, *parts = content
        if state is not None:
            generator.set_state(state.cpu())
        if place.result is None:
            for number in range(place.begin, len(sizes)):
                place.at(number, generator.get_state(), *parts)
                parts.append(compute(sizes[number]))
            place.finish(generator.get_state(), *parts)
        return parts
