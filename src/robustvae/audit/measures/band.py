"""The band: certified and attacked tolerance along the size of the change, input by input.

The bracket at one r is a cut through it. Its certified side are radii at parts and multiples of r,
its attacked side is what the outputs at attacked inputs, and on the way to them, are known to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from robustvae.audit.context import Context
from robustvae.audit.measures.probability import Draws, attacked_draws, draws_at, rival_draws
from robustvae.certificates import Question, certified_radii
from robustvae.certificates.methods.base import unchanged_models
from robustvae.certificates.methods.sampling import lower_index
from robustvae.errors import UnsupportedError
from robustvae.records import Column
from robustvae.records.along import ATTACKED, CERTIFIED
from robustvae.registry import register

# Half to twice the tolerance that was asked for: an engineer who doubts r by a factor of two reads
# the answer off; at r itself stands the certificate.
TIMES = {column: times for column, times in CERTIFIED.items() if column != "certified"}

# Places on the straight way to an attacked input, as those of `damage-curve`, and the end.
SHARES = ATTACKED

# An order statistic of so many draws lies within a few percent of the quantile; the probability at
# r, which decides the bracket, has the plan's own number.
_MOST = 100


def along_draws(draws: int) -> int:
    """Draws at a place on the way to an attacked input, of a plan with so many."""
    return min(_MOST, rival_draws(draws))


_ENTRIES = 2**25  # of the encoder's Jacobian, beyond which only smoothing is asked


@register("measure", "band-certified")
@final
@dataclass(frozen=True)
class BandCertified:
    """Certified radii at half, three quarters, one and a half times and twice the tolerance r."""

    columns: ClassVar[tuple[Column, ...]] = (
        *(
            Column(
                id=key,
                label=f"certified radius at {times:g} times r",
                unit="pixel units",
                per="input",
                reduction="none",
                rounding="down",
                better="higher",
            )
            for key, times in TIMES.items()
        ),
        Column(
            id="certified_along_kind",
            label="kind of the certified radii along r",
            kind="text",
            per="input",
            reduction="none",
        ),
    )

    def __call__(self, context: Context) -> Mapping[str, Any]:
        """Measure the inputs."""
        asked, plan = context.question, context.plan
        if not plan.certificates:
            raise UnsupportedError("band-certified: the plan asks for no certificates")
        entries = context.victim.vae.latent * context.x[0].numel()
        if context.victim.noise is None and entries > _ENTRIES:
            raise UnsupportedError(
                "band-certified: bounds by the weights of so large a model take gigabytes and "
                "prove nothing; use a victim with input noise, which smoothing certifies"
            )
        question = Question(
            r=asked.r,
            m=asked.m,
            norm=asked.norm,
            displacement=asked.displacement,
            center=asked.center,
            box=False,  # a certificate of every change bounds those kept in range too
        )
        with unchanged_models(context.once("of models", dict)):
            band = certified_radii(
                context.victim,
                context.x,
                question,
                [asked.r * times for times in TIMES.values()],
                generator=context.generator("band"),
                rows=context.numbers,
            )
        columns = dict(zip(TIMES, band.radius.T, strict=True))
        return {**columns, "certified_along_kind": [band.kind] * len(context.x)}


@register("measure", "band-attacked")
@final
@dataclass(frozen=True)
class BandAttacked:
    """What tolerance each attack breaks, at its end and on the way there.

    The m-quantile of ||Delta||, from below at the plan's confidence: a tolerance up to it is broken
    by a change of that size. Only for attacks in the norm of the question.
    """

    columns: ClassVar[tuple[Column, ...]] = tuple(
        Column(
            id=key,
            label=f"tolerance that the attack breaks, at {share:.0%} of its change",
            unit="pixel units, l2",
            better="lower",
            reduction="none",
            rounding="down",
        )
        for key, share in SHARES.items()
    )

    def __call__(self, context: Context) -> Mapping[str, Any]:
        """Measure one attack."""
        attacked = context.attacked
        assert attacked is not None, "a measure of attacks"
        columns: dict[str, Any] = {key: [None] * len(context.x) for key in SHARES}
        if attacked.plan.norm != context.question.norm:
            return columns
        leader = next(one for one in context.plan.attacks if one.norm == context.question.norm)
        is_first = attacked.role == "plan" and attacked.id == leader.id
        columns["tolerance_attacked"] = _tolerances(context, attacked_draws(context))
        step = context.x_adv - context.x
        for key, share in SHARES.items():
            if share < 1.0 and is_first:
                y = context.x + share * step
                draws = draws_at(
                    context, y, "band/draws", [along_draws(context.plan.draws)] * len(y)
                )
                columns[key] = _tolerances(context, draws)
        return columns


def _tolerances(context: Context, draws: Draws) -> list[float]:
    """The m-quantile of each input's ||Delta||, from below."""
    result = []
    for column, risk in zip(draws.distances, draws.risks, strict=True):
        if len(column) == 1:  # nothing random: certain, not estimated
            result.append(float(column[0]))
            continue
        place = lower_index(len(column), context.question.m, risk)
        result.append(0.0 if place is None else float(column.sort().values[place - 1]))
    return result
