"""The library's own models, and users' subclasses of `VAE`: there is nothing to wrap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.models.adapters.trial import Trial
from robustvae.models.base import VAE
from robustvae.registry import register


@register("adapter", "own")
@final
@dataclass(frozen=True)
class Own:
    """Models that are a `robustvae.VAE` already."""

    priority: ClassVar[int] = 0

    def match(self, trial: Trial) -> VAE | None:
        """The model itself."""
        return trial.module if isinstance(trial.module, VAE) else None
