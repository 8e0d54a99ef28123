"""A first guess at the margin, without a guarantee."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from robustvae.audit.context import Context
from robustvae.certificates import certify
from robustvae.errors import UnsupportedError
from robustvae.records import Column
from robustvae.registry import register

_ENTRIES = 2**25  # of a Jacobian, beyond which neither time nor memory suffices


@register("measure", "first-order")
@final
@dataclass(frozen=True)
class FirstOrder:
    """The first-order estimate of the margin, from the networks' Jacobians at the input."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            id="first_order",
            label="first-order estimate of the margin",
            unit="pixel units",
            per="input",
        ),
    )

    def __call__(self, context: Context) -> Mapping[str, Any]:
        """Measure the inputs."""
        if context.defended:
            raise UnsupportedError("first-order: it speaks of the undefended model only")
        entries = context.victim.vae.latent * context.x[0].numel()
        if entries > _ENTRIES:
            raise UnsupportedError(
                "first-order: it needs the whole Jacobian of the encoder, "
                f"{4 * entries / 1e9:.1f} GB an input; the geometry's radius takes its place"
            )
        question = context.question
        certificate = certify(
            context.victim,
            context.x,
            r=question.r,
            m=question.m,
            displacement=question.displacement,
            center=question.center,
            norm=question.norm,
            methods=("first_order",),
            # a first guess needs no sharp probability, but a few draws more lengthen it
            draws=max(100, min(250, context.plan.draws), context.plan.draws // 4),
            generator=context.generator("first order"),
            rows=context.numbers,
        )
        certificate.check_complete()
        return {"first_order": certificate.radius}
