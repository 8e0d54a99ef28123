"""First-order extrapolations: no guarantee, for any model with a Gaussian posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from robustvae import bounds
from robustvae.certificates.methods.base import Finding, Task, clean_probability
from robustvae.certificates.methods.lipschitz import check_own_posterior
from robustvae.jacobians import jacobian
from robustvae.models.hierarchy import check_gaussian
from robustvae.registry import register


@register("certificate-method", "first_order")
@final
@dataclass(frozen=True)
class FirstOrder:
    """A linear extrapolation of the encoder's mean, in units of sigma: no guarantee.

    `by_method` has the weaker forms beside it: spectral, and [Camuto21]'s with the Frobenius norm.
    """

    kind: ClassVar[str] = "first_order"
    norms: ClassVar[tuple[str, ...]] = ("l2",)

    def __call__(self, task: Task) -> Finding:
        """Radii by three norms of the encoder's Jacobian."""
        check_own_posterior(task)
        posterior = task.vae.encode(task.x)
        check_gaussian(posterior, "first_order")
        (low,) = clean_probability(task, 1 - task.confidence)
        with torch.enable_grad():
            slopes = jacobian(lambda images: task.vae.encode(images).mean, task.x).cpu()
        stddev = posterior.stddev.cpu()
        usable = (stddev > 0).all(1) & slopes.isfinite().flatten(1).all(1)
        rows = usable.nonzero()[:, 0]
        formulas = {
            "first_order": bounds.first_order_margin,
            "first_order, spectral": bounds.spectral_margin,
            "first_order, Frobenius": bounds.camuto_margin,
        }
        radii = {name: torch.zeros_like(low) for name in formulas}
        for name, formula in formulas.items() if len(rows) else ():
            radii[name][rows] = formula(low[rows], task.question.m, slopes[rows], stddev[rows])
        assumptions: tuple[str, ...] = (
            "a linear extrapolation of the encoder's mean, no guarantee",
        )
        if len(rows) < len(task.x):
            count = len(task.x) - len(rows)
            assumptions += (
                f"not covered: {count} inputs without a positive spread or finite slopes",
            )
        return Finding(radii, assumptions)
