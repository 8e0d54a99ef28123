"""Whether an attack survives what happens to images on their way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from robustvae.audit.context import Context, distance
from robustvae.data.changes import jpeg
from robustvae.errors import UnsupportedError
from robustvae.records import Column
from robustvae.registry import register


@register("measure", "survival")
@final
@dataclass(frozen=True)
class Survival:
    """Damage that is left when the attacked image is rounded to 8 bits, or sent as JPEG."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            id="damage_8bit",
            label="damage after rounding to 8 bits",
            unit="pixel units, l2",
            better="lower",
        ),
        Column(
            id="damage_jpeg",
            label="damage after JPEG of quality 75",
            unit="pixel units, l2",
            better="lower",
        ),
    )

    def __call__(self, context: Context) -> Mapping[str, Any]:
        """Measure one attack."""
        if context.x.ndim != 4:
            raise UnsupportedError(
                "survival: picture files need images (C, H, W), got inputs of another shape"
            )
        rounding = (context.x_adv * 255).round() / 255
        jpeg_images = jpeg(context.x_adv.clamp(0, 1))
        return {
            name: distance(context.read(context.victim, images, "output"), context.output)
            for name, images in (("damage_8bit", rounding), ("damage_jpeg", jpeg_images))
        }
