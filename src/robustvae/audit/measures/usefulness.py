"""Whether the model does its work: what robustness is worth stands beside this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch

from robustvae.audit.context import Context, distance, error_of
from robustvae.defenses import PosteriorSample
from robustvae.records import Column
from robustvae.registry import register


@register("measure", "usefulness")
@final
@dataclass(frozen=True)
class Usefulness:
    """Errors of what is output and sampled, against the best constant and another input."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            id="error_clean",
            label="distance of the clean output from its input",
            unit="pixel units, l2",
            per="input",
            better="lower",
            headline="Error on clean inputs",
        ),
        Column(
            id="error_sampled",
            label="distance of what is sampled from the input",
            unit="pixel units, l2",
            per="input",
            better="lower",
        ),
        Column(
            id="error_constant",
            label="distance of the best constant from the input",
            unit="pixel units, l2",
            per="input",
        ),
        Column(
            id="error_other",
            label="distance of what is sampled from another input",
            unit="pixel units, l2",
            per="input",
        ),
        Column(
            id="exchange",
            label="distance by which exchanging the input moves the output",
            unit="pixel units, l2",
            per="input",
        ),
        Column(
            id="own_spread",
            label="distance between two outputs of the victim for one input",
            unit="pixel units, l2",
            per="input",
            better="lower",
        ),
        Column(
            id="price",
            label="distance of the clean output from the undefended one",
            unit="pixel units, l2",
            per="input",
            better="lower",
        ),
    )

    def __call__(self, context: Context) -> Mapping[str, Any]:
        """Measure the inputs."""
        x, output = context.x, context.output
        sampler = context.victim
        if not context.defended:  # the audit draws from the posterior, so its samples are judged
            sampler = replace(context.victim, defense=PosteriorSample())
        samples = torch.cat(
            context.each("sampled", lambda row, g: sampler.reconstruct(x[row], generator=g))
        )
        other, other_output = others(context)
        second = context.read(context.victim, x, "second") if context.random else output
        to_other, exchange = error_of(samples, other), distance(output, other_output)
        # the only input of an audit has no other to be told from, and a copy of it is none
        same = (other == x).flatten(1).all(1)
        to_other, exchange = (one.masked_fill(same, torch.nan) for one in (to_other, exchange))
        return {
            "error_clean": error_of(output, x),
            "error_sampled": error_of(samples, x),
            "error_constant": distance(context.constant.expand_as(x), x),
            "error_other": to_other,
            "exchange": exchange,
            "own_spread": distance(second, output),
            "price": distance(output, context.plain_output),
        }


def others(context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    """For each input another one of the audit and the victim's output for it.

    Which one is the same in every batch: the context keeps all inputs of the audit.
    """
    x, output = context.cache["partners"](context)
    return x, output
