"""The margin from above: the least size at which a perturbation was seen to fail.

A walk (`robustvae.robustness.walk`) looks for the nearest perturbation that fails, common draws
place the boundary on the best direction, and a sequential test by fresh draws decides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack, final

import numpy as np
import torch
from torch import Tensor

from robustvae._options import with_defaults
from robustvae.arguments import checked
from robustvae.certificates.question import Question, one_question
from robustvae.data.verbs import reads_inputs
from robustvae.defenses import Victim
from robustvae.display import three_lines
from robustvae.errors import (
    RangeError,
    ShapeError,
    UnsupportedError,
    check_images,
    check_type,
)
from robustvae.models.base import frozen
from robustvae.models.layout import channels_last
from robustvae.records import Estimate
from robustvae.robustness.betting import capital, log_capitals, upper_bound
from robustvae.robustness.displacement import Ruler
from robustvae.robustness.rays import meets
from robustvae.robustness.walk import FAR, FIRST_RISK, Budget, Trail, Walk, size_of
from robustvae.seeding import RowGenerator, by_row, row_generators, row_numbers, split

OK = "ok"
NOT_ROBUST = "not robust without attack"
NONE_FOUND = "no failing perturbation found"
UNDECIDED = "found one, but the fresh draws did not confirm it"
INCONCLUSIVE = "inconclusive: the search met no gradient"

# Tests of an input and threat model: how much longer the point is than the one before, and which
# share of the risk. The last ones are for points that the choosing draws flattered.
_TESTS = ((1.0, FIRST_RISK), (1.0, 0.17), (1.03, 0.06), (1.1, 0.04), (1.3, 0.03))
_REST_RISK = 0.07  # share for the test of the input itself
_LAST_RISK = 0.03  # and of what fails most surely, where nothing nearer was confirmed
_FUTILE = 384  # draws after which a test may be given up
_HOPE = 0.01  # how far below m the share must lie by then
_STAGE = 64  # draws between two looks: pairs of them fill a batch, and many tests need few


@final
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
class Margin:
    """A margin bounded from above, with the perturbation that shows it.

    Attributes:
        value: The size in pixel units, (B,), float64; 0 with status "not robust without attack",
            infinite where no failing perturbation was confirmed.
        low: 0: nothing here shows that smaller perturbations are harmless.
        high: As `value`.
        confidence: With which each value is truly above its input's margin.
        box: Whether the perturbed image stays in the pixel range.
        status: One word or sentence for each input.
        x_adv: The failing images, (B, C, H, W); `x` itself where none was confirmed.
        probability_high: Upper bound on P(||Delta|| <= r) at `x_adv`, (B,), NaN where none was
            confirmed; it holds with the confidence of one test.
        largest: Largest size searched, in pixel units.
        unconstrained: The margin where the perturbed image may leave [0, 1], never the larger one,
            if both were asked for.
    """

    value: Tensor
    low: Tensor
    high: Tensor
    confidence: float
    box: bool
    status: tuple[str, ...]
    x_adv: Tensor
    probability_high: Tensor
    largest: float
    unconstrained: Margin | None = None

    @property
    def estimate(self) -> Estimate:
        """The numbers alone."""
        return Estimate(self.value, self.low, self.high, self.confidence, self.box, self.status)


@final
class MarginOptions(TypedDict, total=False):
    """Options of `estimate_margin`, which describes them."""

    question: Question | None
    norm: str
    box: bool | None
    center: str
    budget: Budget | None
    candidates: Tensor | None
    rows: Sequence[int] | None


_DEFAULTS: MarginOptions = {
    "question": None,
    "norm": "l2",
    "box": True,
    "center": "mean",
    "budget": None,
    "candidates": None,
    "rows": None,
}


@reads_inputs("x")
@checked()
def estimate_margin(
    victim: Victim,
    x: Tensor,
    r: float | None = None,
    m: float = 0.5,
    displacement: str = "full",
    *,
    generator: torch.Generator,
    **options: Unpack[MarginOptions],
) -> Margin:
    """The margin R(x) from above: the least size at which a perturbation was seen to fail.

    R(x) = sup{rho : P(||Delta|| <= r) > m for every perturbation smaller than rho}. A walk along
    the boundary looks for the nearest failing perturbation from several directions at once, all
    inputs, directions and threat models in one batch; common draws place the boundary on the best
    of them; fresh draws decide: a perturbation counts when the one-sided Clopper-Pearson upper
    bound on its probability is at most m, with the risk split over the tests made for its input.
    A victim that is not random is read once: then P is 0 or 1 and nothing is left to chance.

    Warning:
        An upper bound only. Nothing here shows that smaller perturbations are harmless, and a
        margin of an unconstrained perturbation does not bound those kept in the pixel range.

    Args:
        victim: What is judged, through its defense.
        x: Clean images in [0, 1], (B, C, H, W), or whatever `as_images` reads.
        r: Allowed displacement of the output, 2-norm over all pixels, in pixel units.
        m: Probability in (0, 1) with which the output must stay within r.
        displacement: "centered", "paired" or "full"; see `robustvae.robustness.displacement`.
        generator: Spent by search and draws, for each input by its own numbers.
        options: Any of

            - question: A whole `Question`, in place of r, m, displacement, norm, box and center;
            - norm: "l2" (the default) or "linf", of the perturbation;
            - box: Whether the perturbed image must stay in [0, 1], True by default; None asks both
              at once, where a failure in the box counts for the unconstrained margin too;
            - center: What "centered" and "full" measure from: "mean" (the default) or "own";
            - budget: What it may cost, a `Budget`;
            - candidates: Perturbed images (K, B, C, H, W) to consider as well, such as those that
              other attacks found; the walk starts from the best of them too. They must lie in the
              box unless `box` is False;
            - rows: The inputs' own numbers; see `robustvae.seeding.row_numbers`.

    Returns:
        A `Margin`; where `box` is None the one in the box, with the other as `unconstrained`.

    Raises:
        UnknownOptionError: An option of another name.
        ConfigError: Neither r nor a question, or both.
        RangeError: A setting out of range, or too few draws ever to confirm a failure.
        ShapeError: Images of another shape.
        DtypeError: `budget` or `candidates` of another type.
        NonFiniteError: A weight or a clean reconstruction that is not finite.
        UnsupportedError: "centered" of a posterior that is not Gaussian, or a discrete input space.

    References:
        [Barrett22] section 6 (the protocol that this replaces); [Camuto21] Eqs. 3 and 5; Rony et
        al., 2019 (DDN) and Pintor et al., 2021 (FMN), minimum-norm walks.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> rv.estimate_margin(rv.Victim(vae), x, 100.0, 0.5, "centered", generator=g).value
        tensor([inf, inf, inf], dtype=torch.float64)
    """
    settings = with_defaults(estimate_margin, options, _DEFAULTS)
    box, norm, center = settings["box"], settings["norm"], settings["center"]
    if box is not None:
        check_type(box, "box", bool)
    fields = {"m": m, "norm": norm, "displacement": displacement, "center": center}
    question = one_question(
        "estimate_margin", settings["question"], r, box=box is not False, **fields
    )
    boxes = (True, False) if box is None else (question.box,)
    budget = Budget() if settings["budget"] is None else settings["budget"]
    check_type(budget, "budget", Budget)
    check_type(victim, "victim", Victim)
    check_images(x, victim.vae.image_shape)
    space = getattr(victim.vae, "space", None)
    if space is not None and space.discrete:
        raise UnsupportedError(
            "estimate_margin moves values continuously, got a discrete InputSpace, whose counts "
            "lie apart; use rv.Attack with rv.Ball('l0', k) for several k"
        )
    largest = budget.largest or (math.sqrt(x[0].numel()) if question.norm == "l2" else 1.0)
    rows, candidates = settings["rows"], settings["candidates"]
    # in the order of their numbers, the same batch is computed alike whatever order it came in
    streams = by_row(generator, "margin", x, rows)
    order = torch.tensor(np.argsort(row_numbers(x, rows), kind="stable"), device=x.device)
    streams, x = streams.part(order.tolist()), x[order]
    if candidates is not None:
        _check_candidates(candidates, x, question.box)
        candidates = candidates[:, order]
    for_ruler, for_search, for_choice, for_tests = split(streams, 4)
    ruler = Ruler(
        victim,
        x,
        question.displacement,
        question.center,
        generator=for_ruler,
        chunk=budget.chunk,
    )
    if ruler.is_random:
        _check_draws(budget, question.m, len(boxes))
    with frozen(victim.vae), channels_last(victim.vae):
        walk = Walk(ruler, question, budget, boxes, largest, for_choice)
        trail = walk.search(candidates, for_search)
        margins = [
            _turn(output, order.argsort()) for output in _decide(walk, trail, candidates, for_tests)
        ]
    return (
        margins[0] if box is not None else dataclasses.replace(margins[0], unconstrained=margins[1])
    )


def _turn(margin: Margin, order: Tensor) -> Margin:
    """The margin with its inputs in another order."""
    value = margin.value[order]
    return dataclasses.replace(
        margin,
        value=value,
        low=margin.low[order],
        high=value,
        status=tuple(margin.status[place] for place in order.tolist()),
        x_adv=margin.x_adv[order],
        probability_high=margin.probability_high[order],
    )


def _decide(
    walk: Walk, trail: Trail, candidates: Tensor | None, generator: torch.Generator
) -> list[Margin]:
    """Fresh draws judge each problem's point; the margins of the threat models in their order."""
    ruler, question, budget = walk.ruler, walk.question, walk.budget
    x, problems = ruler.x, len(trail.inputs)
    batch = len(x)
    count = problems // batch
    value = torch.full((problems,), math.inf, dtype=torch.float64, device=x.device)
    y, high = trail.x.clone(), torch.full_like(value, math.nan)
    words = [
        UNDECIDED if failing else INCONCLUSIVE if blind else NONE_FOUND
        for failing, blind in zip(trail.failing.tolist(), trail.blind.tolist(), strict=True)
    ]
    tests = _Tests(walk, by_row(generator, "tests", x))

    def accept(which: Tensor, point: Tensor, bound: Tensor, word: str) -> None:
        y[which], high[which] = point, bound.to(high)
        value[which] = size_of(point.double() - trail.x[which].double(), question.norm)
        for place in which.tolist():
            words[place] = word

    risk, everyone = 1 - budget.confidence, torch.arange(problems, device=x.device)
    suspect = everyone[:batch][trail.suspect[:batch]]
    if len(suspect):
        bound, _ = tests.bounds(suspect, x[suspect], _REST_RISK * risk, "rest")
        failures = bound <= question.m
        for side in range(count):  # the input is one point of both threat models
            accept(
                suspect[failures] + side * batch, x[suspect[failures]], bound[failures], NOT_ROBUST
            )
    share = trail.share.clone()
    for number, (longer, part) in enumerate(_TESTS if ruler.is_random else _TESTS[:1]):
        waiting = everyone[trail.failing & value.isinf()]
        if not len(waiting):
            break
        share[waiting] = share[waiting] * longer
        point = trail.point(share[waiting], waiting)
        bound, tolerance = tests.bounds(waiting, point, part * risk / count, f"test {number}")
        successes = bound <= question.m
        accept(waiting[successes], point[successes], bound[successes], OK)
        # what a failed test drew tells where the next one should be, whose draws are new
        again = waiting[~successes]
        further = meets(walk.rest[trail.inputs[again]], tolerance[~successes], question.r)
        share[again] = share[again] * further.clamp(1.0, 1.3)
    # near the input's own failure draws flatter points that hold: then what an attack broke counts
    doubtful = everyone[value > (FAR * walk.largest if candidates is None else 0.0)]
    trail.share = share
    points, hope = walk.surest(candidates, trail, doubtful, value[doubtful])
    for number, point in enumerate(points):
        smaller = size_of(point.double() - trail.x[doubtful].double(), question.norm)
        open_ = hope & (smaller < value[doubtful])
        which, point = doubtful[open_], point[open_]
        if len(which):
            part = _LAST_RISK / len(points) * risk / count
            bound, _ = tests.bounds(which, point, part, f"last test {number}")
            successes = bound <= question.m
            accept(which[successes], point[successes], bound[successes], OK)

    margins = []
    for side in range(count):
        part_of = slice(side * batch, (side + 1) * batch)
        margins.append(
            Margin(
                value[part_of],
                torch.zeros_like(value[part_of]),
                value[part_of],
                budget.confidence,
                bool(trail.box[side * batch]),
                tuple(words[part_of]),
                y[part_of],
                high[part_of],
                walk.largest,
            )
        )
    if count == 2:
        margins[1] = _smaller(margins[1], margins[0])
    return margins


@dataclass(eq=False)
class _Tests:
    """Sequential tests by fresh draws, each input and purpose from its own stream."""

    walk: Walk
    streams: RowGenerator

    def bounds(
        self, which: Tensor, point: Tensor, risk: float, purpose: str
    ) -> tuple[Tensor, Tensor]:
        """Upper bounds on P(||Delta|| <= r) of problems `which`, (n,), at most m where proved.

        Beside them the tolerances at which the tests would have passed, (n,), of those that did
        not: by their own draws.
        """
        ruler, question = self.walk.ruler, self.walk.question
        batch, m, upper = len(ruler.x), question.m, self.walk.budget.draws
        inputs = which % batch
        bound = torch.ones(len(which), dtype=torch.float64, device=point.device)
        tolerance = torch.full((len(which),), question.r).to(point)
        if not ruler.is_random:
            noise = ruler.noise(1, self.streams)
            with torch.no_grad():
                failures = ruler.distances(point, inputs, noise)[0] > question.r
            return torch.where(failures, 0.0, bound), tolerance
        seeds = [stream.initial_seed() for stream in self.streams.streams]
        streams = RowGenerator(
            [
                row_generators(seeds[place % batch], f"{purpose}/{place // batch}", [0])[0]
                for place in which.tolist()
            ]
        )
        open_ = torch.arange(len(which), device=point.device)
        sample = torch.empty(0, len(which), dtype=point.dtype, device=point.device)
        pair = 2 if ruler.antithetic else 1
        while len(open_):
            draws = min(_STAGE, upper - len(sample))
            draws -= draws % pair
            fresh = ruler.fresh(
                point[open_], inputs[open_], draws, streams.part(open_.tolist()), antithetic=True
            )
            sample = torch.cat([sample, fresh])
            within = (sample <= question.r).to(point.dtype).unflatten(0, (-1, pair)).mean(1)
            successes = capital(log_capitals(within, m)).amax(0) >= -math.log(risk)
            bound[open_[successes]] = upper_bound(within[:, successes], risk).clamp_max(m)
            hopeless = within.mean(0) > m - _HOPE if len(sample) >= _FUTILE else ~successes & False
            if upper - len(sample) < pair:
                hopeless = torch.ones_like(successes)
            leaving = hopeless & ~successes
            if bool(leaving.any()):
                tolerance[open_[leaving]] = self.walk.passing(sample[:, leaving])
            stays = ~(successes | leaving)
            open_, sample = open_[stays], sample[:, stays]
        return bound, tolerance


def _smaller(free: Margin, box: Margin) -> Margin:
    """The unconstrained margin, or the one in the box where that is smaller."""
    worse = box.value < free.value
    value = torch.where(worse, box.value, free.value)
    words = zip(worse.tolist(), free.status, box.status, strict=True)
    return dataclasses.replace(
        free,
        value=value,
        high=value,
        status=tuple(theirs if other else ours for other, ours, theirs in words),
        x_adv=torch.where(worse.view(-1, *(1,) * (free.x_adv.ndim - 1)), box.x_adv, free.x_adv),
        probability_high=torch.where(worse, box.probability_high, free.probability_high),
    )


def _check_draws(budget: Budget, m: float, boxes: int) -> None:
    """Raise where every test of the budget must fail."""
    risk = FIRST_RISK * (1 - budget.confidence) / boxes
    logs = log_capitals(torch.zeros(4096, dtype=torch.float64), m)
    need = int((capital(logs) < -math.log(risk)).sum()) + 1
    if budget.draws < need:
        raise RangeError(
            f"draws must be at least {need} to decide at m = {m:g}, got {budget.draws}: "
            "give Budget(draws=...) more, or a lower confidence"
        )


def _check_candidates(candidates: Tensor, x: Tensor, box: bool) -> None:
    check_type(candidates, "candidates", Tensor)
    if candidates.ndim != x.ndim + 1 or not len(candidates) or candidates.shape[1:] != x.shape:
        target = ", ".join(map(str, x.shape))
        raise ShapeError(
            f"candidates must be (K, {target}) with K >= 1, got {tuple(candidates.shape)}"
        )
    low, high = (0.0, 1.0) if box else (None, None)
    check_images(candidates.flatten(0, 1), name="candidates", low=low, high=high)
