"""Autoencoders whose codes have no spread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from robustvae.models.adapters.adapter import forward_output, matched, same
from robustvae.models.adapters.forward import as_forward
from robustvae.models.adapters.reading import picked
from robustvae.models.adapters.trial import DECODERS, ENCODERS, Trial
from robustvae.models.adapters.vector_quantized import quantizers_of
from robustvae.models.adapters.wrapped import Match
from robustvae.registry import register


@register("adapter", "plain")
@final
@dataclass(frozen=True)
class Plain:
    """Deterministic autoencoders: an encoder and a decoder, or one sequence with a narrow place."""

    priority: ClassVar[int] = 80

    def match(self, trial: Trial) -> Match | None:
        """The first encoder and decoder that fit each other."""
        kind = type(trial.module).__name__
        for first, encode in trial.parts(ENCODERS):
            for second, decode in trial.parts(DECODERS):
                match = matched(trial, encode, decode, f"{kind}.{first} and {kind}.{second}")
                match = None if match is None else as_forward(trial, match)
                if match is not None and _repeats_forward(trial, match):
                    return match
        for words, encode, decode in _halves(trial):
            match = matched(trial, encode, decode, words)
            if match is not None:
                return match
        return None


def _repeats_forward(trial: Trial, match: Match) -> bool:
    """Whether nothing stands between encoder and decoder in the module's own forward pass."""
    expected, again = (forward_output(trial, seed) for seed in (0, 1))
    if expected is None or again is None:
        # without a forward pass to compare with, a codebook must not be left out silently
        is_module = isinstance(trial.module, nn.Module)
        return not is_module or next(quantizers_of(trial.module), None) is None
    if not same(expected, again):
        return True
    code = trial.mean_of(match.code, trial.run(match.encode, trial.x))
    output = None if code is None else trial.run(match.decode, code)
    pick = trial.reconstruction(output)
    if pick is None:
        return False
    image = picked(output, pick, "decode")
    return same(torch.sigmoid(image) if match.output.is_logits else image, expected)


Half = Callable[[Tensor], Any]


def _halves(trial: Trial) -> Iterator[tuple[str, Half, Half]]:
    """A sequence cut at its narrowest place."""
    module = trial.module
    if not isinstance(module, nn.Sequential) or len(module) < 2:
        return
    widths, value = [], trial.x
    for layer in module:
        value = trial.run(layer, value)
        if not isinstance(value, Tensor):
            return
        widths.append(value[0].numel())
    # the last of equally narrow places: an activation belongs to the code that it follows
    least = min(widths[:-1])
    cut = max(i for i, width in enumerate(widths[:-1]) if width == least) + 1
    if least < trial.x[0].numel():
        yield f"Sequential cut after layer {cut - 1}", module[:cut], module[cut:]
