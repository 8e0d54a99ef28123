"""Modules with a method or part that encodes and one that decodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.models.adapters.adapter import matched
from robustvae.models.adapters.forward import as_forward
from robustvae.models.adapters.trial import DECODERS, ENCODERS, Trial
from robustvae.models.adapters.wrapped import Match
from robustvae.registry import register


@register("adapter", "pair")
@final
@dataclass(frozen=True)
class Pair:
    """Models with encode() and decode(), or an encoder and a decoder; codes have a spread."""

    priority: ClassVar[int] = 60

    def match(self, trial: Trial) -> Match | None:
        """The first two that fit each other."""
        kind = type(trial.module).__name__
        for first, encode in trial.parts(ENCODERS):
            for second, decode in trial.parts(DECODERS):
                words = f"{kind}.{first} and {kind}.{second}"
                match = matched(trial, encode, decode, words, needs_spread=True)
                match = None if match is None else as_forward(trial, match)
                if match is not None:
                    return match
        return None
