"""How the encoder stretches the space around each input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from robustvae.audit.context import Context
from robustvae.errors import UnsupportedError
from robustvae.geometry import pullback
from robustvae.records import Column
from robustvae.registry import register


@register("measure", "geometry")
@final
@dataclass(frozen=True)
class Geometry:
    """Spectral radius and effective rank of the encoder's pullback metric."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            id="spectral_radius",
            label="spectral radius of the encoder's pullback metric",
            per="input",
        ),
        Column(
            id="effective_rank",
            label="effective rank of the encoder's pullback metric",
            per="input",
        ),
    )

    def __call__(self, context: Context) -> Mapping[str, Any]:
        """Measure the inputs."""
        if not context.plan.geometry:
            raise UnsupportedError("geometry: the plan asks for none")
        metric = pullback(context.plain.vae, context.x)
        return {
            "spectral_radius": metric.spectral_radius,
            "effective_rank": metric.effective_rank,
        }
