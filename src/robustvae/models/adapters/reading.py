"""How the outputs of a user's calls are read: which part is the mean, and what the other one is."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from robustvae.errors import DtypeError, RangeError, ShapeError, UnsupportedError
from robustvae.models.adapters.posteriors import known_form
from robustvae.models.likelihoods import Bernoulli, Distribution, Gaussian, PointMass
from robustvae.models.networks import log_var_to_stddev
from robustvae.seeding import draw

Step = int | str | Callable[[Any], Any]
Pick = tuple[Step, ...]
"""Steps from an output to a part of it: positions, keys or attributes, functions."""
DEPTH = 4  # of containers within an output

SpreadKind = Literal["log_var", "log_stddev", "stddev", "variance"]
NO_SPREAD = (
    "this model's codes have no spread, and none is made up: KL goals, HMC and draws of the "
    "posterior need one; use divergence='means', or wrap with mean=, log_var= if it has one"
)


@final
@dataclass(frozen=True)
class CodeReading:
    """How an encoder's output becomes a distribution over latents.

    Attributes:
        mean: Where the mean is; None where the output is a distribution.
        spread: Where the other part is; None for codes without a spread.
        kind: What the other part is.
    """

    mean: Pick | None = None
    spread: Pick | None = None
    kind: SpreadKind = "log_var"

    def read(self, output: Any, like: Tensor, latent: int) -> Distribution:
        """q(z | x), (B, d).

        Args:
            output: What the user's encoder returned.
            like: The images that it was given, (B, C, H, W).
            latent: d.

        Raises:
            DtypeError: Not what this reading expects.
            ShapeError: Another shape than (B, d), flattened or not.
        """
        shape = (len(like), latent)
        if self.mean is None and isinstance(output, Tensor):
            if output.numel() != math.prod(shape):
                raise DtypeError(
                    f"encode must return a distribution, (mean, log_var) or codes of {shape}, "
                    f"got Tensor of {tuple(output.shape)}: say returns= or mean="
                )
            return PointMass(flattened(output, shape, "encode", like), NO_SPREAD)
        if self.mean is None:
            return as_distribution(output, shape, "encode")
        if self.mean == (0,) and self.spread == (1,) and isinstance(output, tuple | list):
            pair_of(output[:2], "encode", self.kind)
        mean = flattened(picked(output, self.mean, "encode"), shape, "encode", like)
        if self.spread is None:
            return PointMass(mean, NO_SPREAD)
        part = picked(output, self.spread, "encode")
        part = as_wide(part, picked(output, self.mean, "encode"))
        spread = flattened(part, shape, "encode", like)
        return Gaussian(mean, stddev_of(spread, self.kind))


def as_wide(spread: Tensor, mean: Tensor) -> Tensor:
    """A spread, which may be one for all rows or for all numbers of a row, of its mean's shape."""
    if spread.numel() == 1:
        return spread.reshape(1).expand(mean.numel()).reshape(mean.shape)
    return spread.expand(mean.shape) if is_narrow(spread, mean) else spread


def is_narrow(spread: Tensor, mean: Tensor) -> bool:
    """Whether a tensor gives a spread to a mean of another shape, by torch's rules of it."""
    try:
        return torch.broadcast_shapes(spread.shape, mean.shape) == mean.shape
    except RuntimeError:
        return False


def stddev_of(part: Tensor, kind: SpreadKind) -> Tensor:
    """Standard deviations from what an encoder gives for them.

    Raises:
        RangeError: A negative standard deviation or variance.
    """
    if kind in ("log_var", "log_stddev"):
        return log_var_to_stddev(part if kind == "log_var" else 2 * part)
    if bool((part < 0).any()):
        raise RangeError(
            f"encode must return a {kind} of at least 0, got {float(part.min()):g}: "
            "if it is a log-variance, wrap with log_var=, or returns='mean_log_var'"
        )
    return part.sqrt() if kind == "variance" else part


def pair_of(output: Any, name: str, kind: str) -> tuple[Tensor, Tensor]:
    """The two tensors (mean, spread) that a call returned.

    Raises:
        DtypeError: Not two tensors.
    """
    if len(output) != 2 or not all(isinstance(part, Tensor) for part in output):
        raise DtypeError(
            f"{name} must return (mean, {kind}), two tensors, got {described(output)}: "
            "say where they are with mean=, log_var="
        )
    return output[0], output[1]


def first_half(output: Any) -> Tensor:
    """The first half of the channels of one tensor, (B, 2k, ...) to (B, k, ...)."""
    return checked_tensor(output).chunk(2, 1)[0]


def second_half(output: Any) -> Tensor:
    """The second half of the channels of one tensor, (B, 2k, ...) to (B, k, ...)."""
    return checked_tensor(output).chunk(2, 1)[1]


def checked_tensor(value: Any) -> Tensor:
    """The value, if it is a tensor."""
    if not isinstance(value, Tensor):
        raise DtypeError(f"wanted a tensor, got {type(value).__name__}")
    return value


def picked(output: Any, pick: Pick, name: str) -> Tensor:
    """The tensor at a place of an output.

    Raises:
        DtypeError: There is no such place, or something else than a tensor there.
    """
    value = output
    for step in pick:
        try:
            value = step_into(value, step)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise DtypeError(
                f"{name} must return something with {step!r}, got {described(output)}: "
                "say where the parts are with mean=, log_var=, reconstruction="
            ) from None
    if not isinstance(value, Tensor):
        raise DtypeError(
            f"{name} must return a tensor{f' at {pick}' if pick else ''}, "
            f"got {described(value)}: say where it is with mean=, log_var=, reconstruction="
        )
    return value


def step_into(value: Any, step: Step) -> Any:
    """One step from an output to a part of it."""
    if callable(step):
        return step(value)
    if isinstance(step, str) and not isinstance(value, Mapping):
        return getattr(value, step)
    return value[step]


def fields_of(output: Any) -> dict[Step, Any]:
    """The parts of an output by position, key or attribute; empty for a tensor.

    Examples:
        >>> from robustvae.models.adapters.reading import fields_of
        >>> fields_of((1, 2)), fields_of({"mu": 1})
        ({0: 1, 1: 2}, {'mu': 1})
    """
    if isinstance(output, Tensor):
        return {}
    if isinstance(output, Mapping):
        return dict(output)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if hasattr(output, "_asdict"):
        return dict(output._asdict())
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    return _attributes(output)


def _attributes(output: Any) -> dict[Step, Any]:
    """What an object holds: its own attributes, its slots, and what its properties give."""
    values = dict(vars(output)) if hasattr(output, "__dict__") else {}
    for kind in type(output).__mro__:
        slots = vars(kind).get("__slots__", ())
        names = [*((slots,) if isinstance(slots, str) else slots)]
        names += [name for name, entry in vars(kind).items() if isinstance(entry, property)]
        for name in names:
            if name not in values and not name.startswith("__"):
                # a property may raise anything
                with contextlib.suppress(Exception):
                    values[name] = getattr(output, name)
    return dict(values)


def places_of(output: Any) -> dict[Pick, Any]:
    """The parts of an output by the steps to them, those of containers inside it in their place.

    Examples:
        >>> from robustvae.models.adapters.reading import places_of
        >>> places_of((1, {"mu": 2}))
        {(0,): 1, (1, 'mu'): 2}
    """
    return _places(output, DEPTH)


def _places(output: Any, depth: int) -> dict[Pick, Any]:
    places: dict[Pick, Any] = {}
    for key, part in fields_of(output).items():
        is_container = isinstance(part, Mapping | tuple | list) and depth > 1
        inner = _places(part, depth - 1) if is_container else {}
        places.update({(key, *steps): value for steps, value in inner.items()})
        if not inner:
            places[(key,)] = part
    return places


def described(output: Any) -> str:
    """What an output is, in a few words.

    Examples:
        >>> import torch
        >>> from robustvae.models.adapters.reading import described
        >>> described((torch.zeros(2, 3), None))
        'tuple of ((2, 3), NoneType)'
    """
    if isinstance(output, Tensor):
        dtype = "" if output.is_floating_point() else f" of {output.dtype}"
        return f"a tensor {tuple(output.shape)}{dtype}"
    parts = fields_of(output)
    if not parts:
        return type(output).__name__
    words = []
    for key, part in list(parts.items())[:6]:
        shape = str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__
        words.append(shape if isinstance(key, int) else f"{key}: {shape}")
    return f"{type(output).__name__} of ({', '.join(words)})"


def flattened(value: Tensor, shape: tuple[int, ...], name: str, like: Tensor) -> Tensor:
    """A user's tensor in the library's shape and type.

    Raises:
        DtypeError: No floating type.
        ShapeError: Another number of rows or of numbers in a row.
    """
    if not value.is_floating_point():
        raise DtypeError(f"{name} must return a tensor of floating type, got {value.dtype}")
    rows = shape[0]
    if value.ndim == 0 or len(value) != rows or value.numel() != rows * math.prod(shape[1:]):
        raise ShapeError(
            f"{name} must return a tensor of shape {shape}, got {tuple(value.shape)}: "
            "give the right latent= or image_shape=, or say where the part is with mean= or "
            "reconstruction="
        )
    return value.reshape(shape).to(like.dtype).contiguous()


def is_distribution(value: Any) -> bool:
    """Whether a user's object has what a distribution has."""
    return not isinstance(value, Tensor) and all(
        _has(value, part) for part in ("mean", "stddev", "log_prob")
    )


def _has(value: Any, name: str) -> bool:
    try:
        return hasattr(value, name)
    except Exception:  # a property that is there and refuses
        return True


def as_distribution(output: Any, shape: tuple[int, ...], name: str) -> Distribution:
    """The library's form of a user's distribution, after a look at its shape.

    Normal and Bernoulli of torch become the library's (which take gray pixels and a constant
    spread), wrapped or not in `Independent`; anything else with `.mean`, `.stddev` and an
    elementwise `.log_prob` stays as it is, or is seen through a change of its shape.

    Raises:
        DtypeError: Not a distribution.
        RangeError: A Gaussian with a negative standard deviation.
        ShapeError: Another shape than `shape`, flattened or not.
        UnsupportedError: A choice between categories.
    """
    output = known_form(output)
    if isinstance(output, torch.distributions.Normal):
        output = Gaussian(output.loc, output.scale)
    elif isinstance(output, torch.distributions.Bernoulli):
        probs = vars(output).get("probs")
        if probs is not None and not bool(((probs >= 0) & (probs <= 1)).all()):
            raise RangeError(
                f"{name} must return probabilities in [0, 1], got values from "
                f"{float(probs.min()):g} to {float(probs.max()):g}: if they are logits, give "
                "Bernoulli(logits=...)"
            )
        output = Bernoulli(output.logits)
    if is_choice(output):
        raise UnsupportedError(
            f"{name} must return a distribution over numbers, got {type(output).__name__}, "
            "whose mean is never chosen: give output_only=True, or the logits with mean="
        )
    if isinstance(output, tuple | list):
        raise DtypeError(
            f"{name} must return a distribution, got {type(output).__name__}: "
            "if it is (mean, log_var), say returns='mean_log_var'"
        )
    if not is_distribution(output):
        raise DtypeError(
            f"{name} must return a distribution with mean, stddev and log_prob, "
            f"got {type(output).__name__}"
        )
    shape_got = tuple((output.logits if isinstance(output, Bernoulli) else output.mean).shape)
    if shape_got != shape and (
        shape_got[:1] != shape[:1] or math.prod(shape_got[1:]) != math.prod(shape[1:])
    ):
        raise ShapeError(f"{name} must return a distribution of shape {shape}, got {shape_got}")
    if isinstance(output, Gaussian):
        if bool((output.stddev < 0).any()):
            raise RangeError(f"{name} must return standard deviations of at least 0")
        stddev = output.stddev.expand_as(output.mean)
        return Gaussian(output.mean.reshape(shape), stddev.reshape(shape))
    if isinstance(output, Bernoulli):
        return Bernoulli(output.logits.reshape(shape))
    if shape_got == shape and not _events(output):
        distribution: Distribution = output
        return distribution
    return Reshaped(output, shape)


def is_choice(output: Any) -> bool:
    """Whether a distribution chooses between categories, whose mean is none of them."""
    return bool(_events(output)) and bool(getattr(output.support, "is_discrete", False))


def _events(output: Any) -> int:
    """How many numbers each density of a distribution is of; 0 where it is of each by itself."""
    if not isinstance(output, torch.distributions.Distribution) or not output.event_shape:
        return 0
    return output.event_shape.numel()


@final
@dataclass(frozen=True, eq=False)
class Reshaped:
    """A distribution seen in another shape, and on another scale: y = (u - low) / span.

    A joint density, as of a multivariate normal, is divided evenly among its elements: their sum
    is what everything else asks for.

    Args:
        base: Of the user's shape and unit.
        shape: Of the library's.
        low: What becomes 0.
        span: The size of a step of 1.
    """

    base: Any
    shape: tuple[int, ...]
    low: Tensor | float = 0.0
    span: Tensor | float = 1.0

    @property
    def mean(self) -> Tensor:
        """The mean."""
        mean: Tensor = (self.base.mean.reshape(self.shape) - self.low) / self.span
        return mean

    @property
    def stddev(self) -> Tensor:
        """The standard deviation of each element."""
        stddev: Tensor = self.base.stddev.reshape(self.shape) / self.span
        return stddev

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each element, in nats."""
        base = tuple(self.base.mean.shape)
        u = (self.low + self.span * value).reshape(
            *value.shape[: value.ndim - len(self.shape)], *base
        )
        log_p: Tensor = self.base.log_prob(u)
        if events := _events(self.base):
            ones = (1,) * len(self.base.event_shape)
            log_p = log_p.reshape(*log_p.shape, *ones).expand(u.shape) / events
        log_p = log_p.reshape(value.shape)
        return log_p + torch.as_tensor(self.span, dtype=value.dtype).log()

    def draw(self, shape: tuple[int, ...] = (), *, generator: torch.Generator) -> Tensor:
        """Draws, `shape` + the distribution's shape."""
        u = draw(self.base, shape, generator=generator).reshape(*shape, *self.shape)
        return (u - self.low) / self.span
