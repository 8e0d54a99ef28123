"""Modules that hold the model in an attribute, as training frameworks have it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

from torch import nn

from robustvae.models.adapters.matching import first_match
from robustvae.models.adapters.trial import Trial, attribute
from robustvae.models.adapters.wrapped import Match
from robustvae.models.base import VAE
from robustvae.registry import register

HOLDERS = ("model", "vae", "autoencoder", "net", "network", "module", "ae", "_orig_mod")


@register("adapter", "lightning")
@final
@dataclass(frozen=True)
class Lightning:
    """Lightning modules and other holders: the model is in .model, .vae, .net or the like."""

    priority: ClassVar[int] = 65

    def match(self, trial: Trial) -> Match | VAE | None:
        """What the model inside is recognized as."""
        for name in HOLDERS:
            inner = attribute(trial.module, name)
            if not isinstance(inner, nn.Module):
                continue
            result = first_match([Trial(inner, trial.x, trial.space)])
            if isinstance(result, tuple):
                match, kind = result[0], type(trial.module).__name__
                return replace(match, recognized=f"{kind}.{name}: {match.recognized}")
            if isinstance(result, VAE) and not result.output_only:
                return result
        return None
