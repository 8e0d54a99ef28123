"""The upper end of the bracket: the smallest change that was seen to break an input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from robustvae.audit.context import Context
from robustvae.audit.plan import EXPLORED
from robustvae.defenses.defense import cost
from robustvae.errors import UnsupportedError
from robustvae.records import Column
from robustvae.registry import register
from robustvae.robustness import Budget, estimate_margin


@register("measure", "margin")
@final
@dataclass(frozen=True)
class Margin:
    """Attacked upper bounds on the margin, from all attacks and a search of its own."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            id="margin_upper_box",
            label="attacked upper bound on the margin, pixels kept in range",
            unit="pixel units",
            per="input",
            rounding="up",
            better="higher",
            headline="Attacked: a change that breaks it, pixels kept in range",
        ),
        Column(
            id="margin_upper_unconstrained",
            label="attacked upper bound on the margin, unconstrained",
            unit="pixel units",
            per="input",
            rounding="up",
            better="higher",
            headline="Attacked: a change that breaks it, unconstrained",
        ),
        Column(
            id="margin_upper_status",
            label="status of the attacked bound",
            kind="text",
            per="input",
            reduction="none",
        ),
    )

    def __call__(self, context: Context) -> Mapping[str, Any]:
        """Measure the inputs, with every attacked input as a candidate."""
        plan = context.plan.margins
        if plan is None:
            raise UnsupportedError("margin: the plan asks for no margins")
        # two halves of a walk from each start, in both boxes
        starts = plan.restarts + 1 + EXPLORED
        gradients = 2 * starts * plan.steps * _gradients_of(context)
        if gradients > plan.gradients:
            raise UnsupportedError(
                f"margin: about {gradients:.0f} gradients an input, the plan allows "
                f"{plan.gradients:g}; raise margins: gradients in the plan"
            )
        question = context.question
        candidates = torch.stack([attacked.x_adv for attacked in context.attacks])
        budget = Budget(
            starts=plan.restarts + 1,
            explored=EXPLORED,
            # a walk of two halves: half the steps of a search each
            steps=max(1, plan.steps // 2),
            draws=context.plan.draws,
            choosing=plan.choosing,
            confidence=context.plan.confidence,
        )
        margin = estimate_margin(
            context.victim,
            context.x,
            question.r,
            question.m,
            question.displacement,
            norm=question.norm,
            center=question.center,
            box=None,
            budget=budget,
            candidates=candidates,
            generator=context.generator("margins"),
            rows=context.numbers,
        )
        unconstrained = margin.unconstrained
        assert unconstrained is not None  # both were asked for
        return {
            "margin_upper_box": margin.value,
            "margin_upper_unconstrained": unconstrained.value,
            "margin_upper_status": unconstrained.status,
        }


def _gradients_of(context: Context) -> float:
    """Gradients of the decoder behind one of the victim; one where the defense does not say."""
    price = cost(context.victim.defense)
    return 1.0 if price is None else 1.0 + price.gradients
