"""How large a change is, and whether it kept to its ball."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from robustvae.audit.context import Context
from robustvae.perturb import Ball
from robustvae.records import Column
from robustvae.registry import register


@register("measure", "perturbation")
@final
@dataclass(frozen=True)
class Perturbation:
    """Size of the change in its norm and per pixel, and whether it is inside its ball."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column(id="size", label="size of the change", unit="pixel units"),
        Column(id="size_rms", label="size of the change, RMS a pixel", unit="pixel units"),
        Column(id="inside", label="inside its ball", kind="flag", reduction="none"),
    )

    def __call__(self, context: Context) -> Mapping[str, Any]:
        """Measure one attack."""
        x, x_adv = context.x, context.x_adv
        return {
            "size": context.ball.size(x, x_adv),
            "size_rms": Ball("l2", 1.0).size(x, x_adv) / math.sqrt(x[0].numel()),
            "inside": context.ball.contains(x, x_adv),
        }
