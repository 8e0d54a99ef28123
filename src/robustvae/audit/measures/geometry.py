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

_STEPS = 24  # products of one Lanczos run, by which a leading eigenvalue is settled


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

        steps = min(_STEPS, context.plan.products)
        probes = context.plan.products // steps - 1  # one run of the steps is the radius's own

        # of the model alone: victims that share it share what was measured
        known = context.once("of models", dict)

        def measure(row: slice, generator: torch.Generator) -> torch.Tensor:
            key = "geometry", id(vae), context.numbers[row]
            if key not in known:
                known[key] = compute(row, generator)
            values: torch.Tensor = known[key]
            return values

        def compute(row: slice, generator: torch.Generator) -> torch.Tensor:
            metric = spectrum(vae, x[row], probes=probes, steps=steps, generator=generator)
            return torch.stack([metric.spectral_radius, metric.effective_rank], 1)

        if is_small(vae, x):  # nothing is drawn, and all inputs go at once
            both = measure(slice(None), context.generator("geometry"))
        else:
            both = torch.cat(context.each("geometry", measure))
        radii, ranks = both.unbind(1)
        # without probes only the radius is measured
        return {
            "spectral_radius": radii,
            "effective_rank": [None if rank.isnan() else float(rank) for rank in ranks],
        }
