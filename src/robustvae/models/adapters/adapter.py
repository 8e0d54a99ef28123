"""What an adapter is, and the help that most of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robustvae.models.adapters.reading import CodeReading, Pick, picked, places_of
from robustvae.models.adapters.trial import CLOSE, Trial, attribute
from robustvae.models.adapters.wrapped import Match, Output
from robustvae.models.base import VAE
from robustvae.registry import family_base

OWN_PRIOR = (
    "this model has a prior of its own ({name}) without a density here, and none is assumed: "
    "give wrap(..., prior=), a distribution of shape (d,)"
)

PRIOR_ASSUMED = "the prior is the standard normal, which nothing in the model says"


@family_base("adapter")
@runtime_checkable
class Adapter(Protocol):
    """A way to recognize and wrap a foreign model; the first one that matches is taken.

    Attributes:
        priority: Adapters are asked in ascending order; the library's own lie between 0 and 100.
    """

    priority: ClassVar[int]

    def match(self, trial: Trial) -> Match | VAE | None:
        """What is recognized in the module of a trial, or None."""
        ...


def matched(
    trial: Trial,
    encode: Callable[[Tensor], Any],
    decode: Callable[[Tensor], Any],
    words: str,
    *,
    needs_spread: bool = False,
    reading: CodeReading | None = None,
) -> Match | None:
    """The match of an encoder and a decoder, where a trial shows that they fit.

    Args:
        trial: The module and its inputs.
        encode: Inputs to codes.
        decode: Codes to inputs.
        words: What was recognized.
        needs_spread: Whether codes without a spread do not match.
        reading: How codes are read, where it is known.
    """
    code = trial.code(encode, decode, reading)
    if code is None:
        return None
    reading, shape, pick = code
    if needs_spread and reading.mean is not None and reading.spread is None:
        return None
    if _is_handed_state(trial, encode, decode, reading):
        return None
    prior, missing = prior_of(trial.module, shape)
    assumptions = _choice_of_image(trial, encode, decode, reading, pick)
    if prior is None and not missing and reading.spread is not None:
        assumptions += (PRIOR_ASSUMED,)
    return Match(
        recognized=f"{words}; {in_words(reading)}",
        encode=encode,
        decode=decode,
        code_shape=shape,
        code=reading,
        output=Output(pick),
        prior=prior,
        prior_missing=missing,
        draws_in_vain=_is_steady(trial, encode, reading),
        assumptions=assumptions,
    )


def _is_handed_state(
    trial: Trial,
    encode: Callable[[Tensor], Any],
    decode: Callable[[Tensor], Any],
    reading: CodeReading,
) -> bool:
    """Whether a decoder's output depends on what the encoder read last, beside the code."""
    code = trial.mean_of(reading, trial.run(encode, trial.x))
    if code is None:
        return False
    code, results = code.to(trial.x.dtype), []
    for x in (trial.x, trial.x.flip(0)):
        trial.run(encode, x)
        output = trial.run(decode, code)
        places = (output, *places_of(output).values())
        # an overflow is compared as a number: it comes again, and says nothing of a state
        results.append([part.nan_to_num() for part in places if trial.is_image(part)])
    return any(not same(one, other) for one, other in zip(*results, strict=False))


def _choice_of_image(
    trial: Trial,
    encode: Callable[[Tensor], Any],
    decode: Callable[[Tensor], Any],
    reading: CodeReading,
    pick: Pick | None,
) -> tuple[str, ...]:
    """What is said of a decoder's images: of the shape of one, and which of several is judged."""
    code = trial.mean_of(reading, trial.run(encode, trial.x))
    output = None if code is None else trial.run(decode, code.to(trial.x.dtype))
    if pick is not None and (words := other_layout(trial, picked(output, pick, "decode"))):
        return (words,)
    if not pick:
        return ()
    places = list(trial.images(output))
    if len(places) < 2:
        return ()
    others = ", ".join(".".join(map(str, place)) for place in places if place != pick)
    return (
        f"of the decoder's images that at {'.'.join(map(str, pick))} is the reconstruction "
        f"(others at {others}; say reconstruction= for one of them)",
    )


def other_layout(trial: Trial, image: Tensor) -> str:
    """What is said of an output of the inputs' size whose numbers may stand in another order."""

    def bare(shape: tuple[int, ...]) -> list[int]:
        return [n for n in shape if n != 1]

    shape, wanted = tuple(image.shape[1:]), trial.space.image_shape
    if len(shape) == 1 or bare(shape) in (bare(wanted), bare(trial.space.shape)):
        return ""
    return (
        f"an output of shape {shape} is read row by row as {tuple(wanted)}: if its numbers stand "
        "in another order (patches, channels last), give wrap(encode=..., decode=...) with one "
        "that puts them right"
    )


def _is_steady(trial: Trial, encode: Callable[[Tensor], Any], reading: CodeReading) -> bool:
    """Whether what is read of an encoder's output does not depend on the random state."""
    one, other = (trial.mean_of(reading, trial.run(encode, trial.x, seed=seed)) for seed in (0, 1))
    return one is not None and other is not None and torch.equal(one, other)


def in_words(reading: CodeReading) -> str:
    """How codes are read, for the user to check."""
    if reading.mean is None:
        return "codes are a distribution"

    def place(pick: Pick) -> str:
        return ".".join(str(getattr(step, "__name__", step)) for step in pick) or "the output"

    if reading.spread is None:
        return f"codes at {place(reading.mean)}, without a spread"
    return f"mean at {place(reading.mean)}, {reading.kind} at {place(reading.spread)}"


def prior_of(module: Any, shape: tuple[int, ...]) -> tuple[Any, str]:
    """The prior of a module, as a distribution of shape (d,), or why it has none here."""
    prior = attribute(module, "prior")
    if isinstance(prior, torch.distributions.Distribution):
        size = torch.Size(prior.batch_shape + prior.event_shape).numel()
        width = torch.Size(shape).numel()
        if size == width and not isinstance(prior, torch.distributions.MixtureSameFamily):
            return prior, ""
        if size == 1 and isinstance(prior, torch.distributions.Normal):
            return torch.distributions.Normal(
                prior.loc.reshape(1).expand(width), prior.scale.reshape(1).expand(width)
            ), ""
        return None, OWN_PRIOR.format(name="attribute prior")
    names = [
        name
        for name, _ in _named(module)
        if any(word in name.lower() for word in ("prior", "pseudo_input", "vamp", "idle_input"))
    ]
    if prior is not None and not names:
        names = ["attribute prior"]
    return None, OWN_PRIOR.format(name=names[0]) if names else ""


def _named(module: Any) -> list[tuple[str, Any]]:
    if not isinstance(module, nn.Module):
        return []
    return [
        *module.named_parameters(),
        *module.named_buffers(),
        *((name, part) for name, part in module.named_modules() if name),
    ]


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs agree to rounding."""
    if one.numel() != other.numel():
        return False
    size = float(other.abs().max()) + 1e-12
    return float((one.reshape(-1) - other.reshape(-1)).abs().max()) <= CLOSE * size


def forward_output(trial: Trial, seed: int = 0) -> Tensor | None:
    """The reconstruction of a module's forward pass, or None where it has none."""
    if not callable(trial.module):
        return None
    # pythae's forward passes read {"data": x}
    calls: tuple[Callable[[Tensor], Any], ...] = (trial.module, lambda x: trial.module({"data": x}))
    for call in calls:
        output = trial.run(call, trial.x, seed=seed)
        pick = trial.reconstruction(output)
        if pick is not None:
            return picked(output, pick, "forward")
    return None
