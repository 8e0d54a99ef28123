"""Hierarchical models whose code comes in several parts, one for each scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from robustvae.models.adapters.adapter import forward_output, prior_of, same
from robustvae.models.adapters.reading import (
    CodeReading,
    Pick,
    SpreadKind,
    is_distribution,
    picked,
    places_of,
)
from robustvae.models.adapters.trial import (
    BETTER,
    DECODERS,
    ENCODERS,
    KINDS,
    Trial,
    discrepancy,
    is_alike,
    spread_kind,
)
from robustvae.models.adapters.vector_quantized import quantizers_of
from robustvae.models.adapters.wrapped import Match, Output
from robustvae.registry import register

SCALES_PRIOR = (
    "the prior of a scale may depend on the codes of another one, and none is assumed: give "
    "wrap(..., prior=), a distribution of shape (d,)"
)
FORMS = ("list", "arguments", "mapping")


@final
@dataclass(frozen=True)
class Scale:
    """Where the code of one scale is in what an encoder returns.

    Attributes:
        mean: Place of the mean, or of the code.
        spread: Place of the spread; None for codes without one.
    """

    mean: Pick
    spread: Pick | None = None


@register("adapter", "scales")
@final
@dataclass(frozen=True)
class Scales:
    """Hierarchical models: encode returns a code for each scale, decode takes all of them."""

    priority: ClassVar[int] = 75

    def match(self, trial: Trial) -> Match | None:
        """The parts of the code that decode to the forward pass's own reconstruction."""
        kind = type(trial.module).__name__
        for first, encode in trial.parts(ENCODERS):
            output, again = (trial.run(encode, trial.x, seed=seed) for seed in (0, 1))
            for second, decode in trial.parts(DECODERS):
                candidates = [
                    candidate
                    for scales, kinds in _groups(trial, output, again)
                    for candidate in _decoded(trial, (encode, decode), output, scales, kinds)
                ]
                best = _best(trial, candidates)
                if best is not None:
                    return _finished(trial, best, f"{kind}.{first} and {kind}.{second}")
        return None


@final
@dataclass(frozen=True)
class Candidate:
    """A reading of several scales whose means decode to an image."""

    encode: JoinedEncoder
    decode: SplitDecoder
    kinds: tuple[SpreadKind, ...]
    image: Tensor
    pick: Pick


def _groups(
    trial: Trial, output: Any, again: Any
) -> Iterator[tuple[tuple[Scale, ...], tuple[SpreadKind, ...]]]:
    """The ways to read an output as codes of several scales, and what their spreads may be."""
    parts, repeats = places_of(output), places_of(again)
    objects = [place for place, part in parts.items() if is_distribution(part)]
    if len(objects) > 1:
        yield tuple(Scale((*at, "mean"), (*at, "stddev")) for at in objects), ("stddev",)
        return
    rows = [
        place
        for place, part in parts.items()
        if trial.is_rows(part)
        and isinstance(repeats.get(place), Tensor)
        and torch.equal(part, repeats[place])
    ]
    kinds = {place: spread_kind(_word(place)) for place in rows}
    spreads = [place for place in rows if kinds[place] is not None]
    means = [place for place in rows if kinds[place] is None]
    if len(spreads) > 1 and _fit(parts, means, spreads):
        # a layer called "var" or "sigma" mostly gives its logarithm, which may be negative
        negative = any(bool((parts[place] < 0).any()) for place in spreads)
        words = {kind for place in spreads if (kind := kinds[place]) is not None}
        usual = words.pop() if len(words) == 1 and not negative else "log_var"
        yield tuple(map(Scale, means, spreads)), (usual,)
    half = len(rows) // 2
    if len(rows) > 3 and len(rows) % 2 == 0:
        for one, other in ((rows[::2], rows[1::2]), (rows[:half], rows[half:])):
            if _fit(parts, one, other):
                yield tuple(map(Scale, one, other)), KINDS
                yield tuple(map(Scale, other, one)), KINDS
    if len(rows) > 1:
        yield tuple(map(Scale, rows)), ()


def _word(place: Pick) -> str:
    """The name nearest to a part, without a number at its end."""
    words = [step for step in place if isinstance(step, str)]
    return words[-1].rstrip("0123456789_") if words else ""


def _fit(parts: Mapping[Pick, Any], one: Sequence[Pick], other: Sequence[Pick]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(parts[a].shape == parts[b].shape for a, b in pairs)


def _decoded(
    trial: Trial,
    calls: tuple[Callable[..., Any], Callable[..., Any]],
    output: Any,
    scales: tuple[Scale, ...],
    kinds: tuple[SpreadKind, ...],
) -> Iterator[Candidate]:
    """The ways to call the decoder by which the means become an image."""
    encode, decode = calls
    encoder = JoinedEncoder(encode, trial.owners, scales)
    try:
        shapes = [tuple(picked(output, scale.mean, "encode").shape[1:]) for scale in scales]
        code = encoder.join(output)[0]
    except Exception:  # a user's object may raise anything from a property
        return
    for form in FORMS:
        for is_reversed in (False, True):
            keys = _keys(scales)
            if form == "mapping" and (keys is None or is_reversed):
                continue
            path = SplitDecoder(decode, trial.owners, shapes, form, is_reversed, keys)
            decoding = trial.run(path, code)
            pick = trial.reconstruction(decoding)
            if pick is not None:
                image = picked(decoding, pick, "decode")
                yield Candidate(encoder, path, kinds, image, pick)


def _keys(scales: Sequence[Scale]) -> tuple[str, ...] | None:
    """Names that tell the scales apart, as a decoder that takes a mapping asks for them."""
    for step in (0, -1):
        keys = [scale.mean[step] for scale in scales]
        if all(isinstance(key, str) for key in keys) and len(set(keys)) == len(keys):
            return tuple(str(key) for key in keys)
    return None


def _best(
    trial: Trial, candidates: Sequence[Candidate]
) -> tuple[Candidate, SpreadKind | None] | None:
    """The candidate that does what the module's forward pass does, and the kind of its spread."""
    if not candidates:
        return None
    expected, again = (forward_output(trial, seed) for seed in (0, 1))
    if expected is None or again is None:
        return None
    if same(expected, again):
        one = next((one for one in candidates if same(one.image, expected)), None)
        return None if one is None else (one, one.kinds[0] if one.kinds else None)
    draws = trial.forward_draws()
    if draws is None:
        return None
    losses: dict[tuple[int, SpreadKind], float] = {}
    for i, one in enumerate(candidates):
        output = trial.run(one.encode, trial.x)
        for kind in one.kinds:
            samples = trial.samples(CodeReading((0,), (1,), kind), output, one.decode)
            if samples is not None and is_alike(samples, draws):
                losses[i, kind] = discrepancy(samples, draws)
    if not losses:
        return None
    usual, best = next(iter(losses)), min(losses, key=lambda key: losses[key])
    i, kind = best if losses[best] < BETTER * losses[usual] else usual
    return candidates[i], kind


def _finished(trial: Trial, best: tuple[Candidate, SpreadKind | None], words: str) -> Match:
    one, kind = best
    sizes = [math.prod(shape) for shape in one.decode.shapes]
    spread = "without a spread" if kind is None else f"mean and {kind}"
    prior, missing = prior_of(trial.module, (sum(sizes),))
    if prior is None and kind is not None:
        missing = missing or SCALES_PRIOR
    return Match(
        recognized=f"{words}; codes of {len(sizes)} scales, {spread}",
        encode=one.encode,
        decode=one.decode,
        code_shape=(sum(sizes),),
        code=CodeReading((0,)) if kind is None else CodeReading((0,), (1,), kind),
        output=Output(one.pick),
        prior=prior,
        prior_missing=missing,
        is_straight_through=next(quantizers_of(trial.module), None) is not None
        if isinstance(trial.module, nn.Module)
        else False,
        assumptions=(f"the codes of all scales, {sizes} numbers, stand in one row",),
    )


@final
class JoinedEncoder(nn.Module):
    """Inputs to (mean, spread) of all scales, each (B, d), or to (codes,)."""

    def __init__(
        self, encode: Callable[..., Any], owners: Sequence[nn.Module], scales: tuple[Scale, ...]
    ) -> None:
        super().__init__()
        self.encode, self.scales = encode, scales
        self.owners = nn.ModuleList(owners)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """What `CodeReading` reads."""
        return self.join(self.encode(x))

    def join(self, output: Any) -> tuple[Tensor, ...]:
        """The parts of an encoder's output side by side."""
        means = [picked(output, scale.mean, "encode").flatten(1) for scale in self.scales]
        spreads = [
            picked(output, scale.spread, "encode").flatten(1)
            for scale in self.scales
            if scale.spread is not None
        ]
        return tuple(torch.cat(parts, 1) for parts in (means, spreads) if parts)


@final
class SplitDecoder(nn.Module):
    """Codes of all scales, (B, d), to what the decoder makes of them one by one."""

    def __init__(
        self,
        decode: Callable[..., Any],
        owners: Sequence[nn.Module],
        shapes: list[tuple[int, ...]],
        form: str,
        is_reversed: bool,
        keys: tuple[str, ...] | None,
    ) -> None:
        super().__init__()
        self.decode, self.shapes, self.form = decode, shapes, form
        self.is_reversed, self.keys = is_reversed, keys
        self.owners = nn.ModuleList(owners)

    def forward(self, z: Tensor) -> Any:
        """What the decoder returns."""
        widths = [math.prod(shape) for shape in self.shapes]
        parts = [
            part.reshape(len(z), *shape).contiguous()
            for part, shape in zip(z.split(widths, 1), self.shapes, strict=True)
        ]
        if self.is_reversed:
            parts.reverse()
        if self.form == "arguments":
            return self.decode(*parts)
        if self.form == "mapping" and self.keys is not None:
            return self.decode(dict(zip(self.keys, parts, strict=True)))
        return self.decode(parts)
