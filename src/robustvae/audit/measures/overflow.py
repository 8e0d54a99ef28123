"""How near to each input a model in half precision stops giving numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from robustvae.attacks import Attack
from robustvae.attacks.goals import Overflow, nearest_overflow
from robustvae.audit.context import Context
from robustvae.models import VAE
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.records import Column
from robustvae.registry import register

STEPS = 20  # of the climb; the way back to the nearest overflow is a bisection


@register("measure", "overflow")
@final
@dataclass(frozen=True)
class NearestOverflow:
    """The nearest input found whose output is no number, of models in half precision.

    The search climbs the model's largest value in float32 within the pixels' range; the deployed
    type judges. Of models in other types, and where nothing overflowed, the columns are empty.
    """

    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            id="overflow_distance",
            label="distance of the nearest input found whose output overflows",
            unit="pixel units, l2",
            per="input",
            better="higher",
        ),
        Column(
            id="overflow_share",
            label="largest value of a layer against the type's range, as far as it was raised",
            kind="share",
            per="input",
            better="lower",
        ),
    )

    def __call__(self, context: Context) -> Mapping[str, Any]:
        """Measure the inputs."""
        vae, x = context.plain.vae, context.x
        dtype = half_type(vae)
        if dtype is None:
            return {column.id: [None] * len(x) for column in self.columns}
        # of the model alone: victims that share it share what was measured
        cache = context.once("of models", dict)

        def measure(row: slice, generator: torch.Generator) -> tuple[float, float]:
            key = "overflow", id(vae), context.numbers[row]
            if key not in cache:
                cache[key] = self._nearest(context, x[row], dtype, generator)
            numbers: tuple[float, float] = cache[key]
            return numbers

        pairs = context.each("overflow", measure)
        return {
            "overflow_distance": [size if math.isfinite(size) else None for size, _ in pairs],
            "overflow_share": [share for _, share in pairs],
        }

    @staticmethod
    def _nearest(
        context: Context, x: torch.Tensor, dtype: str, generator: torch.Generator
    ) -> tuple[float, float]:
        """Distance of an input's nearest overflow, infinite without one, and the share reached."""
        search = ProjectedAscent(steps=STEPS, restarts=1)
        ball = Ball("l2", math.sqrt(x[0].numel()))  # the whole range of the pixels
        result = Attack(Overflow(dtype), search, ball)(context.plain, x, generator=generator)
        _, size = nearest_overflow(context.plain.vae, x, result.x_adv, dtype)
        return float(size), min(1.0, math.exp(min(float(result.score), 0.0)))


def half_type(vae: VAE) -> str | None:
    """ "float16" or "bfloat16" where a model's weights are of that type; None otherwise."""
    kinds = {p.dtype for p in vae.parameters() if p.is_floating_point()}
    for dtype, name in ((torch.float16, "float16"), (torch.bfloat16, "bfloat16")):
        if kinds == {dtype}:
            return name
    return None
