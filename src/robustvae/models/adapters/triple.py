"""Modules whose forward pass returns the reconstruction beside what the code was drawn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from torch import Tensor, nn

from robustvae.models.adapters.adapter import forward_output, matched, same
from robustvae.models.adapters.forward import as_forward
from robustvae.models.adapters.reading import picked
from robustvae.models.adapters.trial import DECODERS, Trial
from robustvae.models.adapters.wrapped import Match
from robustvae.registry import register


@register("adapter", "triple")
@final
@dataclass(frozen=True)
class Triple:
    """Models whose forward returns (reconstruction, mean, log_var) in any order and container."""

    priority: ClassVar[int] = 70

    def match(self, trial: Trial) -> Match | None:
        """Forward as the encoder, and the part that turns its mean into the reconstruction."""
        if not callable(trial.module) or forward_output(trial) is None:
            return None
        kind = type(trial.module).__name__
        for name, decode in decoders_of(trial):
            words = f"{kind}.forward and {kind}.{name}"
            match = matched(trial, trial.module, decode, words, needs_spread=True)
            if match is None or not _decodes(trial, match):
                continue
            whole = as_forward(trial, match)
            if whole is not None:
                return replace(whole, encode=trial.module)
        return None


def decoders_of(trial: Trial) -> Iterator[tuple[str, Callable[[Tensor], Any]]]:
    """Parts that may decode: by their name, then every part, the outer ones first."""
    yield from trial.parts(DECODERS)
    if isinstance(trial.module, nn.Module):
        # outer parts first: an inner one may fit by its shapes and leave the last layers out
        parts = [(name, part) for name, part in trial.module.named_modules() if name]
        yield from sorted(parts, key=lambda item: item[0].count("."))


def _decodes(trial: Trial, match: Match) -> bool:
    """Whether the part makes forward's own reconstruction, where forward draws nothing."""
    first, second = (trial.run(trial.module, trial.x, seed=seed) for seed in (0, 1))
    pick = trial.reconstruction(first)
    if pick is None:
        return False
    one, other = (picked(output, pick, "forward") for output in (first, second))
    if not bool((one == other).all()):
        return True
    code = trial.mean_of(match.code, first)
    decoding = None if code is None else trial.run(match.decode, code)
    place = trial.reconstruction(decoding)
    return place is not None and same(picked(decoding, place, "decode"), one)
