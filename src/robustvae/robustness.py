"""r-robustness: how likely an output stays near its clean one, and the size at which it does not.

The displacement of the output, Delta, has three forms, never mixed up. For a victim with
the `PosteriorMean` defense, the undefended VAE that samples its own posterior N(mu, sigma^2):

- "centered" [Camuto21 Eqs. 1-3]: g(mu(x_adv) + eta sigma(x)) - g(mu(x)), eta standard normal. It
  keeps the spread of the clean input, and is defined for Gaussian posteriors only.
- "paired" [Barrett22]: g(z_adv) - g(z), independent draws z_adv ~ q(.|x_adv), z ~ q(.|x).
- "full": g(z_adv) - g(mu(x)), z_adv ~ q(.|x_adv): what the deployed model does.

With any other defense T, random or not: centered is g(T(x_adv)) - g(mu(x)), paired is
g(T(x_adv)) - g(T(x)), and "full" is not defined. g is the decoder's mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from robustvae.attacks import Goal, MaximumDamage, Search
from robustvae.defenses import Victim, is_posterior_mean
from robustvae.errors import (
    NonFiniteError,
    RangeError,
    ShapeError,
    UnsupportedError,
    check_choice,
    check_count,
    check_images,
    check_number,
    check_positive,
    check_probability,
    check_type,
)
from robustvae.metrics import clopper_pearson, mean_stderr
from robustvae.models import Gaussian, PointMass
from robustvae.models.base import check_weights, frozen
from robustvae.models.hierarchy import check_gaussian
from robustvae.models.layout import channels_last
from robustvae.perturb import Ball, ProjectedAscent, SearchResult
from robustvae.records import Estimate
from robustvae.seeding import draw, split

Displacement = Literal["centered", "paired", "full"]
DISPLACEMENTS = ("centered", "full", "paired")

OK = "ok"
AT_REST = "not robust at rest"
NONE_FOUND = "no failing perturbation found"
UNDECIDED = "found one, but the fresh draws did not confirm it"
INCONCLUSIVE = "inconclusive: the search met no gradient"

_HALVINGS = 8
_FLOOR = 1e-6
_CHOOSING = 200
_PIXELS_AT_ONCE = 2**18
_LADDER = ((1.0, 0.0), (1.04, 0.02), (1.12, 0.1), (1.3, 1.0))


def robustness_probability(
    victim: Victim,
    x: Tensor,
    x_adv: Tensor,
    r: float,
    displacement: Displacement,
    *,
    generator: torch.Generator,
    draws: int = 1000,
    confidence: float = 0.95,
    chunk: int | None = None,
) -> Estimate:
    """P(||Delta|| <= r) of each input, with a two-sided Clopper-Pearson interval.

    Warning:
        It speaks of this one perturbation. A harder one may not have been found.

    Args:
        victim: What is judged.
        x: Clean images in [0, 1], (B, C, H, W).
        x_adv: Perturbed images, (B, C, H, W); may leave [0, 1].
        r: Allowed displacement of the output, 2-norm over all pixels, in pixel units.
        displacement: "centered", "paired" or "full"; see this module's head.
        generator: Spent by the draws, which are fresh.
        draws: Number of draws of Delta for each input.
        confidence: Of each input's interval, in (0, 1).
        chunk: Rows (inputs x draws) decoded at once; None for 2^18 pixels' worth.

    Returns:
        `Estimate` with value, low and high in [0, 1], (B,), float64; `box` is None.

    Raises:
        ShapeError: `x_adv` has another shape than `x`.
        RangeError: `r`, `draws` or `confidence` out of range, or a pixel of `x` outside [0, 1].
        NonFiniteError: A weight or a clean reconstruction that is not finite.
        UnsupportedError: "full" with a defense, or "centered" of a posterior that is not Gaussian.

    References:
        [Camuto21] Eqs. 1-3; [Barrett22] section 3; Clopper & Pearson, 1934.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> p = rv.robustness_probability(rv.Victim(vae), x, x, 100.0, "paired", generator=g)
        >>> p.value
        tensor([1., 1., 1.], dtype=torch.float64)
    """
    _check(victim, x, displacement)
    check_positive(r, "r")
    distances = displacements(
        victim, x, x_adv, displacement, generator=generator, draws=draws, chunk=chunk
    )
    return _proportion((distances <= r).sum(0), draws, confidence, box=None)


def displacements(
    victim: Victim,
    x: Tensor,
    x_adv: Tensor,
    displacement: Displacement,
    *,
    generator: torch.Generator,
    draws: int = 1000,
    chunk: int | None = None,
) -> Tensor:
    """Draws of ||Delta||, the 2-norm by which the output moves.

    Args:
        victim: What is judged.
        x: Clean images in [0, 1], (B, C, H, W).
        x_adv: Perturbed images, (B, C, H, W); may leave [0, 1].
        displacement: "centered", "paired" or "full"; see this module's head.
        generator: Spent by the draws.
        draws: How many for each input.
        chunk: Rows (inputs x draws) decoded at once; None for 2^18 pixels' worth.

    Returns:
        Distances in pixel units, (draws, B), without a graph; infinite where an output is no
        number.

    Raises:
        ShapeError: `x_adv` has another shape than `x`.
        NonFiniteError: A weight or a clean reconstruction that is not finite.
        UnsupportedError: "full" with a defense, or "centered" of a posterior that is not Gaussian.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.robustness import displacements
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> displacements(rv.Victim(vae), x, x, "centered", generator=g, draws=7).shape
        torch.Size([7, 3])
    """
    _check(victim, x, displacement)
    check_images(x_adv, victim.vae.image_shape, name="x_adv", low=None, high=None)
    if x_adv.shape != x.shape:
        raise ShapeError(f"x_adv must be {tuple(x.shape)} like x, got {tuple(x_adv.shape)}")
    check_count(draws, "draws")
    rows = chunk or _PIXELS_AT_ONCE // x[0].numel()
    check_count(rows, "chunk", least=0)
    vae, at_once = victim.vae, max(1, rows // len(x))
    found = []
    with frozen(vae), torch.no_grad():
        center = vae.decode(vae.encode(x).mean).mean.flatten(1)
        if not bool(center.isfinite().all()):
            raise NonFiniteError("the clean reconstructions hold a NaN or an infinity")
        clean = _latents(victim, x, x, "full") if displacement == "paired" else None
        moved = _latents(victim, x, x_adv, displacement)

        def decode(latents: Callable[..., Tensor], n: int) -> Tensor:
            z = latents(n, generator)
            return vae.decode(z.flatten(0, 1)).mean.reshape(n, *center.shape)

        for begin in range(0, draws, at_once):
            n = min(at_once, draws - begin)
            end = decode(moved, n)
            found.append(
                torch.linalg.vector_norm(end - (decode(clean, n) if clean else center), dim=2)
            )
    return torch.cat(found).nan_to_num(nan=math.inf, posinf=math.inf)


def robustness_curve(
    victim: Victim,
    x: Tensor,
    direction: Tensor,
    sizes: Sequence[float],
    r: float,
    displacement: Displacement,
    *,
    generator: torch.Generator,
    draws: int = 1000,
    confidence: float = 0.95,
    box: bool = False,
    chunk: int | None = None,
) -> Estimate:
    """P(||Delta|| <= r) along one direction, as a curve over the size of the perturbation.

    All sizes share their random numbers, so the curve is smooth; each interval holds by itself.

    Args:
        victim: What is judged.
        x: Clean images in [0, 1], (B, C, H, W).
        direction: Directions, (B, C, H, W), of any length but 0.
        sizes: 2-norms of the perturbation in pixel units, K of them, at least 0.
        r: Allowed displacement of the output, 2-norm over all pixels, in pixel units.
        displacement: "centered", "paired" or "full"; see this module's head.
        generator: Spent by the draws.
        draws: Number of draws of Delta for each input and size.
        confidence: Of each interval, in (0, 1).
        box: Clip the perturbed images to [0, 1], which makes perturbations shorter than `sizes`.
        chunk: Rows (inputs x draws) decoded at once; None for 2^18 pixels' worth.

    Returns:
        `Estimate` with value, low and high in [0, 1], (B, K), float64.

    Raises:
        ShapeError: `direction` has another shape than `x`.
        RangeError: A direction of length 0, no size, a negative one, or a setting out of range.
        DtypeError: `sizes` is no sequence of numbers.

    References:
        [Camuto21] Fig. 5.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.robustness import robustness_curve
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> up = torch.ones_like(x)
        >>> curve = robustness_curve(rv.Victim(vae), x, up, [0, 1], 0.5, "centered", generator=g)
        >>> curve.value.shape
        torch.Size([3, 2])
    """
    _check(victim, x, displacement)
    check_positive(r, "r")
    check_images(direction, victim.vae.image_shape, name="direction", low=None, high=None)
    if direction.shape != x.shape:
        raise ShapeError(f"direction must be {tuple(x.shape)} like x, got {tuple(direction.shape)}")
    length = torch.linalg.vector_norm(direction, dim=(1, 2, 3), keepdim=True)
    if not bool((length > 0).all()):
        raise RangeError("every direction must have a length above 0")
    sizes = sizes.tolist() if isinstance(sizes, Tensor | np.ndarray) else sizes
    check_type(sizes, "sizes", Sequence)
    if not sizes:
        raise RangeError("sizes must hold at least one number")
    for size in sizes:
        check_number(size, "each of sizes", least=0)
    (common,) = split(generator, 1)
    within = []
    for size in sizes:
        y = x + size * direction / length
        distances = displacements(
            victim,
            x,
            y.clamp(0, 1) if box else y,
            displacement,
            generator=common.clone_state(),
            draws=draws,
            chunk=chunk,
        )
        within.append((distances <= r).sum(0))
    return _proportion(torch.stack(within, 1), draws, confidence, box=box)


def rest_quantile(
    victim: Victim,
    x: Tensor,
    m: float,
    displacement: Displacement,
    *,
    generator: torch.Generator,
    draws: int = 1000,
    confidence: float = 0.95,
    chunk: int | None = None,
) -> Estimate:
    """The least r for which each input is (r, m)-robust at rest: the m-quantile of ||Delta||.

    The interval is made of two order statistics and holds for any distribution. For a smaller r
    the margin is 0, so an r to audit with should lie above `high`.

    Args:
        victim: What is judged.
        x: Clean images in [0, 1], (B, C, H, W).
        m: Probability in (0, 1).
        displacement: "centered", "paired" or "full"; see this module's head.
        generator: Spent by the draws.
        draws: Number of draws of Delta for each input.
        confidence: Of each input's interval, in (0, 1).
        chunk: Rows (inputs x draws) decoded at once; None for 2^18 pixels' worth.

    Returns:
        `Estimate` of r in pixel units, (B,), float64; `high` is infinite with too few draws.

    References:
        [Camuto21] section 3; David & Nagaraja, Order Statistics, section 7.1.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.robustness import rest_quantile
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> r = rest_quantile(rv.Victim(vae), x, 0.5, "centered", generator=g)
        >>> bool(((r.low <= r.value) & (r.value <= r.high)).all())
        True
    """
    from scipy.special import bdtr

    check_probability(m, "m")
    check_probability(confidence, "confidence")
    distances = displacements(
        victim, x, x, displacement, generator=generator, draws=draws, chunk=chunk
    )
    ordered = distances.double().sort(0).values
    below = bdtr(np.arange(draws), draws, m)  # P(at most k of the draws lie below the quantile)
    tail = (1 - confidence) / 2
    least = int((below <= tail).sum())
    most = int((below < 1 - tail).sum())
    infinite = torch.full_like(ordered[0], math.inf)
    return Estimate(
        value=ordered[math.ceil(m * draws) - 1],
        low=ordered[least - 1] if least else torch.zeros_like(infinite),
        high=ordered[most] if most < draws else infinite,
        confidence=confidence,
        box=None,
    )


@final
@dataclass(frozen=True)
class Bisection:
    """How a margin is looked for.

    Args:
        search: How perturbations of each radius are looked for.
        goal: What the search raises; None for `MaximumDamage` through the mean, and for an
            undefended victim whose spread moves too ("paired", "full") through mean and spread.
        rounds: Bisections of the radius, after one search on each of a few radii.
        rungs: How many radii are searched before those, each half of the last.
        largest: Largest radius, in pixel units; None for the diameter of the pixel cube,
            sqrt(D) for l2 and 1 for linf.
        draws: Draws, common to all perturbations of an input, that choose; None for a fifth of
            the draws of a deciding test, at least 200, so that more of those are not wasted.
        chunk: Rows (inputs x draws) decoded at once; None for 2^18 pixels' worth.

    Raises:
        RangeError: A count or radius out of range.
        DtypeError: A search or goal that is none.

    Examples:
        >>> from robustvae.robustness import Bisection
        >>> Bisection(rounds=8).search.restarts
        5
    """

    search: Search = field(default_factory=lambda: ProjectedAscent(steps=30, restarts=5))
    goal: Goal | None = None
    rounds: int = 5
    rungs: int = 4
    largest: float | None = None
    draws: int | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        check_type(self.search, "search", Search)
        if self.goal is not None:
            check_type(self.goal, "goal", Goal)
        check_count(self.rounds, "rounds", least=0)
        check_count(self.rungs, "rungs")
        if self.draws is not None:
            check_count(self.draws, "draws")
        if self.chunk is not None:
            check_count(self.chunk, "chunk", least=0)
        if self.largest is not None:
            check_positive(self.largest, "largest")


@final
@dataclass(frozen=True, eq=False)
class Margin:
    """A margin bounded from above, with the perturbation that shows it.

    Attributes:
        estimate: As `estimate_margin` returns it.
        x_adv: The failing images, (B, C, H, W); `x` itself where none was confirmed.
        probability_high: Upper bound on P(||Delta|| <= r) at `x_adv`, (B,), NaN where none was
            confirmed; it holds with the confidence of one test.
        largest: Largest radius searched, in pixel units.
    """

    estimate: Estimate
    x_adv: Tensor
    probability_high: Tensor
    largest: float


def estimate_margin(
    victim: Victim,
    x: Tensor,
    r: float,
    m: float,
    displacement: Displacement,
    norm: str = "l2",
    box: bool = True,
    *,
    generator: torch.Generator,
    draws: int = 1000,
    confidence: float = 0.95,
    bisection: Bisection | None = None,
    candidates: Tensor | None = None,
) -> Estimate:
    """The margin R(x) from above: the least size at which a perturbation was seen to fail.

    R(x) = sup{rho : P(||Delta|| <= r) > m for every perturbation smaller than rho}. Radii are
    bisected, all inputs x restarts in one batch; a perturbation that fails is shrunk towards `x`
    as long as it does. Common random numbers choose it. Fresh draws decide: it counts when the
    one-sided Clopper-Pearson upper bound on its probability is at most m, with the confidence
    split over the tests made for its input (one at rest, four of growing size).

    Warning:
        An upper bound only. Nothing here shows that smaller perturbations are harmless, and a
        margin of a free perturbation is no bound for perturbations kept in the pixel range.

    Args:
        victim: What is judged, through its defense.
        x: Clean images in [0, 1], (B, C, H, W).
        r: Allowed displacement of the output, 2-norm over all pixels, in pixel units.
        m: Probability in (0, 1) with which the output must stay within r.
        displacement: "centered", "paired" or "full"; see this module's head.
        norm: "l2" or "linf", of the perturbation.
        box: Whether the perturbed image must stay in [0, 1].
        generator: Spent by search and draws.
        draws: Fresh draws in each deciding test.
        confidence: With which each input's value is truly above its margin, in (0, 1).
        bisection: How perturbations are looked for.
        candidates: Perturbed images (K, B, C, H, W) to consider as well, such as those that other
            attacks found. They must lie in the box where `box`.

    Returns:
        `Estimate` with value = high: the size in pixel units, (B,), float64; 0 with status
        "not robust at rest"; infinite where no failing perturbation was confirmed. low is 0.

    Raises:
        RangeError: A setting out of range, or too few draws ever to confirm a failure.
        ShapeError: Images of another shape.
        DtypeError: `bisection` or `candidates` of another type.
        NonFiniteError: A weight or a clean reconstruction that is not finite.
        UnsupportedError: "full" with a defense, or "centered" of a posterior that is not Gaussian.

    References:
        [Barrett22] section 6 (the protocol that this replaces); [Camuto21] Eqs. 3 and 5.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> rv.estimate_margin(rv.Victim(vae), x, 100.0, 0.5, "centered", generator=g).value
        tensor([inf, inf, inf], dtype=torch.float64)
    """
    return find_margin(
        victim,
        x,
        r,
        m,
        displacement,
        norm,
        box,
        generator=generator,
        draws=draws,
        confidence=confidence,
        bisection=bisection,
        candidates=candidates,
    ).estimate


def find_margin(
    victim: Victim,
    x: Tensor,
    r: float,
    m: float,
    displacement: Displacement,
    norm: str = "l2",
    box: bool = True,
    *,
    generator: torch.Generator,
    draws: int = 1000,
    confidence: float = 0.95,
    bisection: Bisection | None = None,
    candidates: Tensor | None = None,
) -> Margin:
    """As `estimate_margin`, with the perturbations that show the margins.

    The failing images of a margin in the box are good `candidates` for the free one; `find_margins`
    finds both together.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.robustness import find_margin
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> find_margin(rv.Victim(vae), x, 100.0, 0.5, "centered", generator=g).x_adv.shape
        torch.Size([3, 1, 4, 4])
    """
    _check(victim, x, displacement)
    check_positive(r, "r")
    check_probability(m, "m")
    check_probability(confidence, "confidence")
    check_count(draws, "draws")
    how = Bisection() if bisection is None else bisection
    check_type(how, "bisection", Bisection)
    check_type(box, "box", bool)
    largest = how.largest or (math.sqrt(x[0].numel()) if norm == "l2" else 1.0)
    ball = Ball(norm, largest) if box else Ball(norm, largest, None, None)
    one_test = 1 - (1 - confidence) / (1 + len(_LADDER))
    choosing = how.draws or max(_CHOOSING, draws // 5)
    enough = _failing_count(m, draws, choosing, one_test)
    if candidates is not None:
        _check_candidates(candidates, x, ball)
    for_search, for_choice, for_decision = split(generator, 3)

    def within(rows: Tensor, y: Tensor, n: int, source: torch.Generator) -> Tensor:
        distances = displacements(
            victim, x[rows], y, displacement, generator=source, draws=n, chunk=how.chunk
        )
        return (distances <= r).sum(0)

    def fails(y: Tensor) -> Tensor:
        return within(everyone, y, choosing, for_choice.clone_state()) <= enough

    everyone = torch.arange(len(x), device=x.device)
    trail = _Trail(x, ball, fails)
    for y in candidates if candidates is not None else ():
        trail.consider(y)
    with frozen(victim.vae), channels_last(victim.vae):
        _search(trail, victim, displacement, how, generator=for_search)

    value = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    x_adv, high, status = x.clone(), torch.full_like(value, math.nan), trail.status()

    def decide(rows: Tensor, y: Tensor, word: str) -> None:
        rows = rows[value[rows].isinf()]
        if not len(rows):
            return
        count = within(rows, y[rows], draws, for_decision)
        bound = torch.as_tensor(clopper_pearson(count, draws, one_test, sides=1)[1]).to(value)
        rows, bound = rows[bound <= m], bound[bound <= m]
        x_adv[rows], high[rows] = y[rows], bound
        value[rows] = ball.size(x[rows].double(), y[rows].double())
        for row in rows.tolist():
            status[row] = word

    decide(everyone, x, AT_REST)
    for factor, rest in _LADDER:
        decide(trail.failed.nonzero()[:, 0], trail.point(factor, rest), OK)
    estimate = Estimate(value, torch.zeros_like(value), value, confidence, box, tuple(status))
    return Margin(estimate, x_adv, high, largest)


@final
@dataclass(frozen=True, eq=False)
class Margins:
    """The margins of the two threat models; the free one is never the larger.

    Attributes:
        free: Where the perturbed image may leave [0, 1].
        box: Where it may not.
    """

    free: Margin
    box: Margin


def find_margins(
    victim: Victim,
    x: Tensor,
    r: float,
    m: float,
    displacement: Displacement,
    norm: str = "l2",
    *,
    generator: torch.Generator,
    draws: int = 1000,
    confidence: float = 0.95,
    bisection: Bisection | None = None,
    candidates: Tensor | None = None,
) -> Margins:
    """Both margins, free and box, as `find_margin` finds each.

    A failure in the box is an unconstrained one too: the unconstrained search starts from those
    failures, and takes
    one as it is where it found nothing smaller. The confidence is split over the two searches.

    Args:
        victim: As in `estimate_margin`, like all that follow.
        x: Clean images in [0, 1], (B, C, H, W).
        r: Allowed displacement of the output, in pixel units.
        m: Probability in (0, 1) with which the output must stay within r.
        displacement: "centered", "paired" or "full"; see this module's head.
        norm: "l2" or "linf", of the perturbation.
        generator: Spent by search and draws.
        draws: Fresh draws in each deciding test.
        confidence: With which each input's two values are both above their margins.
        bisection: How perturbations are looked for.
        candidates: Perturbed images in [0, 1], (K, B, C, H, W), to consider as well.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.robustness import find_margins
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> find_margins(rv.Victim(vae), x, 100.0, 0.5, "centered", generator=g).free.estimate.box
        False
    """
    check_probability(confidence, "confidence")
    half = (1 + confidence) / 2
    ask = partial(
        find_margin, victim, x, r, m, displacement, norm, generator=generator, draws=draws
    )
    box = ask(confidence=half, bisection=bisection, candidates=candidates)
    known = box.x_adv[None] if candidates is None else torch.cat([box.x_adv[None], candidates])
    free = ask(box=False, confidence=half, bisection=bisection, candidates=known)
    worse = box.estimate.value < free.estimate.value
    value = torch.where(worse, box.estimate.value, free.estimate.value)
    words = zip(worse.tolist(), free.estimate.status, box.estimate.status, strict=True)
    free = replace(
        free,
        estimate=replace(
            free.estimate,
            value=value,
            high=value,
            confidence=confidence,
            status=tuple(theirs if other else ours for other, ours, theirs in words),
        ),
        x_adv=torch.where(worse.view(-1, 1, 1, 1), box.x_adv, free.x_adv),
        probability_high=torch.where(worse, box.probability_high, free.probability_high),
    )
    return Margins(free, replace(box, estimate=replace(box.estimate, confidence=confidence)))


def overall_margin(estimate: Estimate, *, confidence: float = 0.95) -> Estimate:
    """The mean margin E_x[R(x)] over the data that the inputs stand for, with a t interval.

    The interval is about the sampling of inputs. Where margins are upper bounds, so is the mean.
    If a margin is infinite (nothing failed within the largest radius), so are the mean and `high`,
    the status says how many, and `low` counts each of them as the largest finite one.

    Args:
        estimate: Margins of inputs drawn independently, as from `estimate_margin`, (B,).
        confidence: Of the interval, in (0, 1).

    Returns:
        `Estimate` of floats, in pixel units; the interval of a single input is [0, inf].

    References:
        [Barrett22] Definition 2.2; [Camuto21] section 3.2.2 (the overall margin).

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.robustness import overall_margin
        >>> margins = torch.tensor([1.0, 2.0, 3.0])
        >>> each = rv.Estimate(margins, 0 * margins, margins, 0.95, box=True)
        >>> mean = overall_margin(each)
        >>> mean.value, round(mean.high, 2)
        (2.0, 4.48)
    """
    from scipy.special import stdtrit

    check_probability(confidence, "confidence")
    margins = torch.as_tensor(estimate.value, dtype=torch.float64).flatten().cpu()
    count, finite = len(margins), margins[margins.isfinite()]
    if not len(finite):
        low, mean, high = 0.0, math.inf, math.inf
    else:
        mean, stderr = mean_stderr(margins.clamp_max(float(finite.max())))
        reach = math.inf if count == 1 else float(stdtrit(count - 1, (1 + confidence) / 2)) * stderr
        low, high = max(0.0, mean - reach), mean + reach
    infinite = count - len(finite)
    if infinite:
        mean = high = math.inf
    status = (f"{infinite} of {count} margins are infinite",) if infinite else ()
    return Estimate(mean, low, high, confidence, estimate.box, status)


class _Trail:
    """The least failing perturbation seen so far of each input, and where to look next."""

    def __init__(self, x: Tensor, ball: Ball, fails: Callable[[Tensor], Tensor]) -> None:
        self.x, self.ball, self.fails = x, ball, fails
        self.y = x.clone()
        self.share = torch.ones_like(x[:, 0, 0, 0])
        self.size = torch.full_like(self.share, math.inf)
        self.held = torch.zeros_like(self.share)
        self.slope = torch.zeros_like(self.share)

    @property
    def failed(self) -> Tensor:
        """Whether any perturbation failed, (B,) bool."""
        return self.size.isfinite()

    def consider(self, y: Tensor, radius: float | Tensor | None = None) -> None:
        """Shrink towards x those of `y` that fail at a size below the least seen so far.

        The others show that `radius` held, where it is below that size.
        """
        high = (self.size / self.ball.size(self.x, y)).clamp_max(1)
        failed = self.fails(self._towards(y, high))
        if radius is not None:
            held = ~failed & (radius < self.size)
            self.held = torch.where(held, self.held.clamp_min(radius), self.held)
        if not bool(failed.any()):
            return
        low = torch.zeros_like(high)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            down = self.fails(self._towards(y, middle))
            low, high = torch.where(down, low, middle), torch.where(down, middle, high)
        size = self.ball.size(self.x, self._towards(y, high))
        better = failed & (size < self.size)
        self.y[better] = y[better]
        self.share = torch.where(better, high, self.share)
        least = _FLOOR * float(self.ball.radius)
        self.size = torch.where(better, size.clamp_min(least), self.size)

    def add(self, found: SearchResult, radius: Tensor) -> None:
        """What a search found within `radius`, (B,)."""
        self.slope = torch.maximum(self.slope, found.gradient_norm.nan_to_num(math.inf))
        self.consider(found.y, radius)

    def status(self) -> list[str]:
        """What is to be said of each input as long as no test has confirmed a failure."""
        unfound = [INCONCLUSIVE if slope == 0 else NONE_FOUND for slope in self.slope.tolist()]
        return [
            UNDECIDED if failed else word
            for failed, word in zip(self.failed.tolist(), unfound, strict=True)
        ]

    def next_radius(self) -> Tensor:
        """Half-way between what held and what failed; the largest radius where nothing failed."""
        size = self.size.clamp_max(float(self.ball.radius))
        held = torch.where(self.held < size, self.held, size / 2)
        return torch.where(self.failed, (held + size) / 2, size)

    def point(self, factor: float, rest: float) -> Tensor:
        """The least failing perturbation, enlarged by `factor` or by `rest` of its way to `y`."""
        share = torch.maximum(factor * self.share, self.share + rest * (1 - self.share))
        return self._towards(self.y, share)

    def _towards(self, y: Tensor, share: Tensor) -> Tensor:
        return self.ball.clip(self.x + share.view(-1, 1, 1, 1) * (y - self.x))


def _search(
    trail: _Trail,
    victim: Victim,
    displacement: Displacement,
    how: Bisection,
    *,
    generator: torch.Generator,
) -> None:
    """One search on all of a few radii at once, then bisection."""
    x, ball, batch = trail.x, trail.ball, len(trail.x)
    spread_moves = displacement != "centered" and is_posterior_mean(victim.defense)
    goal = how.goal or MaximumDamage(through="both" if spread_moves else "mean")
    score = goal.bind(victim, x, generator=generator)

    def look(start: Tensor, radii: Tensor) -> SearchResult:
        within = Ball(ball.norm, radii, ball.low, ball.high)
        return how.search(
            lambda y, rows: score(y, rows % batch), start, within, generator=generator
        )

    radii = torch.stack([trail.next_radius() / 2**rung for rung in range(how.rungs)])
    rungs = look(x.repeat(how.rungs, 1, 1, 1), radii.flatten())
    for rung in range(how.rungs):
        rows = slice(rung * batch, (rung + 1) * batch)
        part = SearchResult(**{f.name: getattr(rungs, f.name)[rows] for f in fields(rungs)})
        trail.add(part, radii[rung])
    for _ in range(how.rounds):
        radius = trail.next_radius()
        trail.add(look(x, radius), radius)


def _failing_count(m: float, draws: int, search_draws: int, confidence: float) -> int:
    """Successes among `search_draws` that promise a deciding test passed nine times in ten."""
    passing = clopper_pearson(np.arange(draws + 1), draws, confidence, sides=1)[1] <= m
    if not passing.any():
        need = math.ceil(math.log(1 - confidence) / math.log(1 - m))
        raise RangeError(f"draws must be at least {need} to decide at m = {m:g}, got {draws}")
    target = clopper_pearson(int(passing.sum()), draws, 0.9, sides=1)[0]
    high = clopper_pearson(np.arange(search_draws + 1), search_draws, 0.75, sides=1)[1]
    return max(0, int((high <= target).sum()) - 1)


def _latents(
    victim: Victim, x: Tensor, x_adv: Tensor, displacement: Displacement
) -> Callable[..., Tensor]:
    """A function (n, generator) -> latents (n, B, d) that the victim reads off `x_adv`."""
    if is_posterior_mean(victim.defense):
        posterior = victim.vae.encode(x_adv)
        # the codes of a deterministic encoder have the spread 0, whatever the input
        if displacement == "centered" and not isinstance(posterior, PointMass):
            check_gaussian(posterior, "displacement 'centered'")
            posterior = Gaussian(posterior.mean, victim.vae.encode(x).stddev)
        return lambda n, generator: draw(posterior, (n,), generator=generator)

    def defended(n: int, generator: torch.Generator) -> Tensor:
        z = victim.latent(x_adv.repeat(n, 1, 1, 1), generator=generator)
        return z.reshape(n, len(x_adv), -1)

    return defended


def _proportion(successes: Tensor, draws: int, confidence: float, box: bool | None) -> Estimate:
    low, high = clopper_pearson(successes, draws, confidence)
    value = successes.double() / draws
    return Estimate(
        value,
        torch.as_tensor(low).to(value),
        torch.as_tensor(high).to(value),
        confidence,
        box,
    )


def _check_candidates(candidates: Tensor, x: Tensor, ball: Ball) -> None:
    check_type(candidates, "candidates", Tensor)
    if candidates.ndim != 5 or not len(candidates) or candidates.shape[1:] != x.shape:
        wanted = ", ".join(map(str, x.shape))
        raise ShapeError(
            f"candidates must be (K, {wanted}) with K >= 1, got {tuple(candidates.shape)}"
        )
    check_images(candidates.flatten(0, 1), name="candidates", low=ball.low, high=ball.high)


def _check(victim: Victim, x: Tensor, displacement: str) -> None:
    check_type(victim, "victim", Victim)
    check_choice("displacement", displacement, DISPLACEMENTS)
    if displacement == "full" and not is_posterior_mean(victim.defense):
        raise UnsupportedError(
            "displacement 'full' is about the encoder's own posterior: with a defense, "
            "'centered' already samples what the victim does"
        )
    check_images(x, victim.vae.image_shape)
    check_weights(victim.vae)
