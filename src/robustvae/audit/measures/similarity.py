"""How alike outputs look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from robustvae.audit.context import Context
from robustvae.metrics import ms_ssim
from robustvae.records import Column
from robustvae.registry import register

VARIANT = "kuzina2022"


@register("measure", "similarity")
@final
@dataclass(frozen=True)
class Similarity:
    """MS-SSIM of outputs, clean and attacked, and of inputs before and after the attack."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            id="ms_ssim_attacked",
            label="MS-SSIM of the attacked output and the clean one",
            better="higher",
        ),
        Column(
            id="ms_ssim_noise",
            label="the same under random noise of equal size",
            better="higher",
        ),
        Column(id="ms_ssim_input", label="MS-SSIM of the attacked input and the clean one"),
        Column(
            id="ms_ssim_clean",
            label="MS-SSIM of the clean output and its input",
            better="higher",
        ),
    )

    def __call__(self, context: Context) -> Mapping[str, Any]:
        """Measure one attack."""
        output = context.output
        noise = context.read(context.victim, context.noise, "output")
        return {
            "ms_ssim_attacked": _alike(output, context.attacked_output),
            "ms_ssim_noise": _alike(output, noise),
            "ms_ssim_input": _alike(context.x, context.x_adv),
            "ms_ssim_clean": _alike(context.x, output),
        }


def _alike(a: Tensor, b: Tensor) -> Tensor:
    return ms_ssim(a.clamp(0, 1), b.clamp(0, 1), variant=VARIANT)
