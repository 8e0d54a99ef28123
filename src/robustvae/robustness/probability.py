"""How likely an output stays near its clean one: at a perturbation, along a ray, at rest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from robustvae.defenses import Victim
from robustvae.errors import (
    RangeError,
    ShapeError,
    check_images,
    check_number,
    check_positive,
    check_probability,
    check_type,
)
from robustvae.metrics import clopper_pearson, mean_stderr
from robustvae.records import Estimate
from robustvae.robustness.displacement import Displacement, displacements
from robustvae.seeding import by_row


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
        displacement: "centered", "paired" or "full"; see `robustvae.robustness.displacement`.
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
    check_positive(r, "r")
    distances = displacements(
        victim, x, x_adv, displacement, generator=generator, draws=draws, chunk=chunk
    )
    return _proportion((distances <= r).sum(0), draws, confidence, box=None)


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
        displacement: "centered", "paired" or "full"; see `robustvae.robustness.displacement`.
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
    common = by_row(generator, "curve", x)
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
        displacement: "centered", "paired" or "full"; see `robustvae.robustness.displacement`.
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
    ranking = distances.double().sort(0).values
    below = bdtr(np.arange(draws), draws, m)  # P(at most k of the draws lie below the quantile)
    tail = (1 - confidence) / 2
    least = int((below <= tail).sum())
    upper = int((below < 1 - tail).sum())
    infinite = torch.full_like(ranking[0], math.inf)
    return Estimate(
        value=ranking[math.ceil(m * draws) - 1],
        low=ranking[least - 1] if least else torch.zeros_like(infinite),
        high=ranking[upper] if upper < draws else infinite,
        confidence=confidence,
        box=None,
    )


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
