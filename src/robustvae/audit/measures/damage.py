"""How far an attack moves the output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from robustvae.audit.context import Context, distance, error_of
from robustvae.records import Column
from robustvae.registry import register


@register("measure", "damage")
@final
@dataclass(frozen=True)
class Damage:
    """Distance of the attacked output from the victim's own clean one, and beside noise."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            id="damage",
            label="distance of the output from its own clean one",
            unit="pixel units, l2",
            better="lower",
            headline="Damage by the worst attack",
        ),
        Column(
            id="damage_rms",
            label="the same as root mean square a pixel",
            unit="pixel units",
            better="lower",
        ),
        Column(
            id="damage_relative",
            label="the same relative to the error on the clean input",
            unit="times the clean error",
            better="lower",
        ),
        Column(
            id="damage_noise",
            label="the same under random noise of equal size",
            unit="pixel units, l2",
            better="lower",
            headline="Damage by random noise of the same size",
        ),
        Column(
            id="error_attacked",
            label="distance of the attacked output from the clean input",
            unit="pixel units, l2",
            better="lower",
        ),
    )

    def __call__(self, context: Context) -> Mapping[str, Any]:
        """Measure one attack."""
        output = context.output
        damage = distance(context.attacked_output, output)
        error = error_of(output, context.x)
        return {
            "damage": damage,
            "damage_rms": damage / math.sqrt(output[0].numel()),
            # an error of 0 is a perfect reconstruction: no multiple of it says anything
            "damage_relative": torch.where(error > 0, damage / error, torch.nan),
            "damage_noise": distance(context.read(context.victim, context.noise, "output"), output),
            "error_attacked": error_of(context.attacked_output, context.x),
        }
