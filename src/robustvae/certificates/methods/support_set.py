"""Support sets: a box of latents that holds the mass m of every posterior nearby, bounded whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from robustvae import bounds
from robustvae.arguments import checked
from robustvae.certificates.constants import OUTPUT_SLOPES
from robustvae.certificates.methods.base import SILENT, Finding, Task
from robustvae.certificates.methods.lipschitz import Grounds, grounds
from robustvae.certificates.movement import Encoder, Movement, largest_radius
from robustvae.certificates.networks import composition_of, exact_copy
from robustvae.certificates.propagation import Relaxation
from robustvae.errors import (
    ShapeError,
    check_choice,
    check_images,
    check_number,
    check_probability,
)
from robustvae.models import VAE, ContinuousBernoulli
from robustvae.models.composition import Composition
from robustvae.registry import register

_UP = 1 + 1e-9
"""On quantiles and spreads: far above the error of the normal quantile, far below what matters."""


@register("certificate-method", "support_set")
@final
@dataclass(frozen=True)
class SupportSet:
    """The decoder over a box that holds the mass m of every posterior of the ball.

    Deterministic, any m and displacement, for any layers that linear bounds cover. The box's half
    widths are what the mean may move in each coordinate, and a quantile of the spread. Of two draws
    each box holds sqrt(m). It says little of models that are not trained for it: of what half of
    the mass does, it knows the worst only.

    References:
        docs/theory.md, "Support sets"; Xu et al., 2025 (CIVET), whose bounds weigh several sets
        by intervals: here is one, by linear bounds.
    """

    kind: ClassVar[str] = "deterministic"
    norms: ClassVar[tuple[str, ...]] = ("l2", "linf")

    def __call__(self, task: Task) -> Finding:
        """The largest radii at which the whole box stays within r."""
        common, ask = grounds(task), task.question
        is_learned = not common.constants.fixed_stddev
        encoder = Encoder(common.exact, spread=is_learned and ask.displacement != "centered")
        quantile = box_quantile(ask.m**0.5 if common.paired else ask.m, task.vae.latent)
        sides = task.x[0].numel() ** 0.5 if ask.norm == "linf" else 1.0

        def distance(radius: Tensor) -> Tensor:
            """Bounds on the distance of two outputs, with what rounding adds, (B,)."""
            movement = encoder.over(common.images, radius, norm=ask.norm)
            rounding = encoder.rounding(common.images, radius * sides, common.arithmetic)
            stddev = movement.most if encoder.spread else common.posterior.stddev
            widths = half_widths(movement, rounding.above(stddev), quantile)
            widths = widths + rounding.mean[:, None]
            bounded = widths.isfinite().all(1)  # a sum that may overflow moves a latent anywhere
            widths = torch.where(bounded[:, None], widths, 0.0)
            total = _distances(common, widths)
            mean, inside = common.posterior.mean, widths.norm(dim=1) * (1 + bounds.SLACK)
            errors = common.output_error(mean, inside)
            other = inside if common.paired else torch.zeros_like(inside)
            total = total + errors + common.output_error(mean, other)
            return torch.where(bounded, total, torch.inf)

        none = torch.zeros(len(task.x), dtype=torch.float64)
        least = distance(none)
        possible = least < common.r
        left = torch.where(possible, common.r - least, 1.0)

        def share_of_rest(radius: Tensor) -> Tensor:
            return (distance(radius) - least) / left

        radii = none
        if bool(possible.any()):
            # what the Lipschitz constants allow is found again, and mostly much more
            start = left / (common.constants.a * common.constants.b) / sides
            upper = torch.full_like(none, common.images[0].numel() ** 0.5 / sides)
            radii = largest_radius(share_of_rest, torch.minimum(start, upper), upper)
        assumptions = common.assumptions
        if ask.displacement == "centered" and is_learned:
            assumptions = (*assumptions, SILENT)
        return Finding({"support_set": radii * possible}, assumptions)


@checked()
def support_set_error(
    vae: VAE,
    x: Tensor,
    size: float,
    m: float = 0.5,
    *,
    norm: str = "linf",
    error: str = "linf",
) -> Tensor:
    """Bounds on the reconstruction error that hold with probability m under every change of a size.

    P(||g(z) - x|| <= bound) >= m for z ~ q(.|x') and every ||x' - x|| <= size: the certified error
    of CIVET, by linear bounds. It speaks of the model evaluated in float64.

    Args:
        vae: A model whose layers linear bounds cover.
        x: Images in [0, 1], (B, C, H, W).
        size: Of the change, at least 0.
        m: Mass of the support set, in (0, 1).
        norm: Of the change, "l2" or "linf".
        error: Norm of the error, "l2" or "linf".

    Returns:
        (B,), float64; at most the longest error that pixels in [0, 1] have, where the model's
        outputs lie there.

    Raises:
        UnsupportedError: A layer that is not covered, by name.
        RangeError: A size below 0, or m out of range.

    References:
        docs/theory.md, "Support sets"; Xu et al., 2025 (CIVET).

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.certificates import support_set_error
        >>> vae = rv.load("digits-lipschitz-vae")
        >>> x = rv.data.load("digits", split="test").x[:2]
        >>> still, moved = (support_set_error(vae, x, size) for size in (0.0, 0.05))
        >>> bool((still < moved).all())
        True
    """
    check_number(size, "size", least=0)
    check_probability(m, "m")
    check_choice("norm", norm, ("l2", "linf"))
    check_choice("error", error, ("l2", "linf"))
    check_images(x, vae.image_shape)
    exact = exact_copy(vae).requires_grad_(False).eval()
    images, parts, encoder = x.to("cpu", torch.float64), composition_of(exact), Encoder(exact)
    radius = torch.full((len(x),), float(size), dtype=torch.float64)
    movement = encoder.over(images, radius, norm=norm)
    widths = half_widths(movement, movement.most, box_quantile(m, vae.latent))
    mean = encoder.posterior(images).mean
    results = []
    for image, center, width in zip(images.flatten(1), mean, widths, strict=True):
        low, high = output_box(parts, center, width)
        if low.shape != image.shape:
            raise ShapeError(
                f"the decoder must give one value for each of {len(image)} pixels, got {len(low)}"
            )
        far = torch.maximum(high - image, image - low)
        results.append(far.norm() if error == "l2" else far.max())
    return torch.stack(results) * (1 + bounds.SLACK)


def box_quantile(m: float, latent: int) -> float:
    """Half the side of the box that holds the mass m of a standard normal in so many dimensions.

    Rounded up.

    Examples:
        >>> from robustvae.certificates.methods.support_set import box_quantile
        >>> round(box_quantile(0.5, 1), 4), round(box_quantile(0.5, 16), 4)
        (0.6745, 2.0296)
    """
    share = torch.tensor((1 + m ** (1 / latent)) / 2, dtype=torch.float64)
    return float(torch.special.ndtri(share)) * _UP


def half_widths(movement: Movement, spread: Tensor, quantile: float) -> Tensor:
    """How far each coordinate of most draws lies from the clean mean, at the most, (B, d).

    Args:
        movement: Of the mean over the ball.
        spread: Upper bounds on it, (B, d).
        quantile: As of `box_quantile`.
    """
    mean = torch.maximum(movement.mean.upper, -movement.mean.lower).clamp_min(0)
    return (mean + quantile * spread) * _UP


def output_box(parts: Composition, center: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds on each value of the reconstruction over a box of latents, (D,) each.

    Args:
        parts: The model's networks, in float64.
        center: Of the box, (d,).
        width: Half its sides, (d,).
    """
    low, high, _ = _over_box(parts, center, width)
    return low, high


def _over_box(parts: Composition, center: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds on each value, (D,) each, and on how far all of them move together, ()."""
    assert parts.decoder is not None
    # first weights would spend torch's own generator
    size = len(center)
    scaling = nn.utils.skip_init(nn.Linear, size, size, dtype=torch.float64).requires_grad_(False)
    scaling.weight.copy_(width.diag())
    scaling.bias.copy_(center)
    network = Relaxation(nn.Sequential(scaling, parts.decoder), shape=(len(center),))
    ball = torch.zeros(1, len(center), dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    (ends,) = network.over(*ball, norm="linf")
    logits = ends.value.flatten(1)
    lower, upper = ends.lower.flatten(1), ends.upper.flatten(1)
    slope = OUTPUT_SLOPES[parts.likelihood]
    together = slope * ends.length(torch.ones_like(logits)) * (1 + bounds.SLACK)
    if parts.likelihood == "gaussian":
        return (logits + lower)[0], (logits + upper)[0], together[0]
    if parts.likelihood == "continuous_bernoulli_exact":
        clean = ContinuousBernoulli(logits, rule="exact").mean[0]
        return (clean + slope * lower)[0], (clean + slope * upper)[0], together[0]
    # 1e-12: what float64 loses in the sigmoid
    low, high = torch.sigmoid(logits + lower) - 1e-12, torch.sigmoid(logits + upper) + 1e-12
    return low[0], high[0], together[0]


def _distances(shared: Grounds, widths: Tensor) -> Tensor:
    """Bounds on the distance of an output from the center, or of a pair from each other, (B,)."""
    results = []
    for center, width in zip(shared.posterior.mean, widths, strict=True):
        low, high, together = _over_box(shared.parts, center, width)
        if shared.paired:
            far, together = high - low, 2 * together
        else:
            mean = shared.exact.decode(center[None]).mean.flatten()
            far = torch.maximum(high - mean, mean - low) + 1e-12  # the center's own rounding
        results.append(torch.minimum(far.norm(), together) * (1 + bounds.slack(far.numel())))
    return torch.stack(results)
