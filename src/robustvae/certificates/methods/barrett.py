"""[Barrett22] Lemma 2: the baseline that the other methods must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from robustvae import bounds
from robustvae.certificates.methods.base import Finding, Task
from robustvae.certificates.methods.lipschitz import grounds
from robustvae.errors import UnsupportedError
from robustvae.registry import register


@register("certificate-method", "barrett")
@final
@dataclass(frozen=True)
class Barrett:
    """[Barrett22] Lemma 2, for the paired displacement."""

    kind: ClassVar[str] = "deterministic"
    norms: ClassVar[tuple[str, ...]] = ("l2",)

    def __call__(self, task: Task) -> Finding:
        """Radii by their two tail bounds."""
        if task.question.displacement != "paired":
            raise UnsupportedError(
                "[Barrett22] Lemma 2 needs the paired displacement: give displacement='paired'"
            )
        common = grounds(task)
        constants, lengths = common.constants, common.stddev.norm(dim=1)
        # their formulas know no rounding: what it adds to the mean is taken from r as well
        left = common.left(common.plain_cap) - constants.a * common.shift
        radii = [
            bounds.barrett_margin(
                length[None],
                r=r,
                m=task.question.m,
                a=constants.a,
                b=constants.b,
                c=constants.c,
                latent=task.vae.latent,
            )
            if r > 0
            else torch.zeros(1, dtype=torch.float64)
            for length, r in zip(lengths, left.tolist(), strict=True)
        ]
        return Finding({"barrett": torch.cat(radii)}, common.assumptions)
