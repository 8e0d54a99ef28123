"""How the encoder stretches the space around each input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from robustvae.audit.context import Context
from robustvae.errors import UnsupportedError
from robustvae.geometry import is_small, spectrum
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
        vae, x = context.plain.vae, context.x

        def measure(row: slice, generator: torch.Generator) -> torch.Tensor:
            metric = spectrum(vae, x[row], generator=generator)
            return torch.stack([metric.spectral_radius, metric.effective_rank], 1)

        if is_small(vae, x):  # nothing is drawn, and all inputs go at once
            both = measure(slice(None), context.generator("geometry"))
        else:
            both = torch.cat(context.each("geometry", measure))
        return {"spectral_radius": both[:, 0], "effective_rank": both[:, 1]}
