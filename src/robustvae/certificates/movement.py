"""How far an encoder's posterior moves over a ball around each input, by linear bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from robustvae.arguments import checked_fields
from robustvae.certificates.constants import encoder_networks, lipschitz_bound
from robustvae.certificates.networks import composition_of
from robustvae.certificates.propagation import Add, LinearBounds, Method, Relaxation
from robustvae.certificates.rounding import Arithmetic, forward_error
from robustvae.errors import UnsupportedError
from robustvae.models import VAE, Gaussian
from robustvae.models.composition import Composition

_UP = 1 + 1e-12
_OTHER = 1e-3


@final
@dataclass(frozen=True, eq=False)
class Movement:
    """What the posteriors of all points of a ball have in common.

    Attributes:
        mean: Bounds on the mean's movement.
        least: Lower bounds on the standard deviation, (B, d); 0 where it was not asked for.
        most: Upper bounds on the standard deviation, (B, d); infinite where it was not asked for.
        slope: The mean's Lipschitz constant, l2 to l2, over all images.
        reach: The l2 radius of the ball that the ball lies in, (B,).
    """

    mean: LinearBounds
    least: Tensor
    most: Tensor
    slope: float
    reach: Tensor

    def length(self, scale: Tensor) -> Tensor:
        """An upper bound on the l2 norm of scale * (mu(p) - mu(x)) over the ball, (B,).

        By the linear bounds, or by the Lipschitz constant where that says more.

        Args:
            scale: Positive weights of the coordinates, (B, d).
        """
        everywhere = self.slope * self.reach * scale.amax(1) * _UP
        return torch.minimum(self.mean.length(scale), everywhere)

    @property
    def method(self) -> Method:
        """The method that bounded the mean."""
        return self.mean.method


@final
@dataclass(frozen=True, eq=False)
class Rounding:
    """How far the computed posterior is off anywhere in a ball.

    Attributes:
        mean: Of the mean, in l2, (B,).
        share: Of any standard deviation, as a share of it, (B,).
        plus: And by how much besides, (B,).
    """

    mean: Tensor
    share: Tensor
    plus: Tensor

    def above(self, stddev: Tensor) -> Tensor:
        """What a standard deviation of at most so much, (B, d), is computed as, at the most."""
        return stddev * (1 + self.share[:, None]) + self.plus[:, None]

    def below(self, stddev: Tensor) -> Tensor:
        """What a standard deviation of at least so much, (B, d), is computed as, at the least."""
        share = self.share.clamp(max=1)[:, None]
        return (stddev * (1 - share) - self.plus[:, None]).clamp_min(0)


@checked_fields
@final
class Encoder:
    """An encoder made ready for bounds over balls: of everything by which an image moves a draw.

    - `vae` and `lipschitz-vae`, any architecture: the posterior.
    - Hierarchies that climb from the data (`dlgm`, `seatbelt`): with `spread` the lowest layer's
      posterior, the only one that sees the image; without it the mean path, of the layers that the
      likelihood reads.
    - A wrapped module, or anybody's own `VAE`, whose calls can be traced.

    Attributes:
        width: Of the flat latent, how many coordinates that is, from the first.
        parts: The networks that the model is made of.
        networks: From an image to the mean, and to what the spread is made of where it is learned.

    Args:
        vae: The model in float64, on the CPU.
        spread: Whether the standard deviation is to be bounded too.

    Raises:
        UnsupportedError: Another model, or a layer that is not covered, by name.

    References:
        docs/theory.md, "Neyman-Pearson", for the hierarchies.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.certificates.movement import Encoder
        >>> vae = rv.load("digits-vae").double()
        >>> x = rv.data.load("digits", split="test").x[:2].double()
        >>> found = Encoder(vae).over(x, torch.full((2,), 0.1), norm="linf")
        >>> found.method, found.least.shape
        ('crown', torch.Size([2, 16]))
    """

    def __init__(self, vae: VAE, *, spread: bool = True) -> None:
        """Take the encoder apart."""
        self.vae, self.spread = vae, spread
        self.parts = composition_of(vae, decoder=False)
        self.width, shape = self.parts.width, vae.image_shape
        trunk, head = self.parts.trunk, self.parts.mean_head
        if not spread and self.parts.links:
            self.width = sum(self.parts.widths)
            head = mean_path(self.parts, vae.dtype)
        self.slope = lipschitz_bound(nn.Sequential(trunk, head), shape)
        other = self.parts.spread_network
        self.networks = (nn.Sequential(trunk, head), *(() if other is None else (other,)))
        if not spread:
            self.relaxation = Relaxation(trunk, head, shape=shape)
        else:
            self.relaxation = Relaxation(*encoder_networks(self.parts), shape=shape)

    def rounding(self, x: Tensor, rad: Tensor, arithmetic: Arithmetic) -> Rounding:
        """How far the computed posterior is off at any image within `rad` in l2 of each.

        Args:
            x: Images, (B, C, H, W).
            rad: l2 radii, (B,).
            arithmetic: In which the model runs.
        """
        none = torch.zeros_like(rad)
        mean = forward_error(self.networks[0], x, rad, none, arithmetic).error
        if len(self.networks) == 1:
            return Rounding(mean, none + 16 * arithmetic.unit, none)
        error = forward_error(self.networks[1], x, rad, none, arithmetic).error
        if self.parts.spread.is_exponential:
            return Rounding(mean, self.parts.spread.share(error) + 32 * arithmetic.unit, none)
        factor = 1 if self.parts.spread.norm is None else 2
        return Rounding(mean, none + 32 * arithmetic.unit, factor * error)

    def posterior(self, x: Tensor) -> Gaussian:
        """The mean and spread of what is bounded, at the images, (B, `width`)."""
        return first(self.vae, x, self.width)

    def over(
        self,
        x: Tensor,
        radius: Tensor,
        *,
        norm: str = "l2",
        method: Method = "crown",
        box: bool = False,
    ) -> Movement:
        """Bounds over the ball of each radius around each image.

        Args:
            x: Images, (B, C, H, W).
            radius: Of each ball, in pixel units, (B,).
            norm: "l2" or "linf".
            method: As of `Relaxation.over`.
            box: Whether only images in [0, 1] count.
        """
        pixel_range = (0.0, 1.0) if box else None
        mean, *spread = self.relaxation.over(x, radius, norm=norm, method=method, box=pixel_range)
        reach = radius * (x[0].numel() ** 0.5 * _UP if norm == "linf" else 1.0)
        low = torch.zeros_like(mean.value)
        high = low + torch.inf
        if self.parts.spread.is_constant:
            low = high = self.parts.spread.stddev(low)
        elif spread:
            ends = spread[0].value + spread[0].lower, spread[0].value + spread[0].upper
            low, high = (end.expand_as(low) for end in self.parts.spread.interval(*ends))
        self._check(x, mean.value, low, high)
        return Movement(mean, low / _UP, high * _UP, self.slope, reach)

    @torch.no_grad()
    def _check(self, x: Tensor, mean: Tensor, low: Tensor, high: Tensor) -> None:
        """Raise where the bounds stand around something else than what the encoder computes."""
        posterior = self.posterior(x.to(self.vae.dtype))
        discrepancy = (posterior.mean.to(mean) - mean).abs() / (1 + mean.abs())
        spread = posterior.stddev.to(low)
        # float32 evaluation errs by some 1e-5 of the scale; what is meant here is another function
        close = (
            (discrepancy <= _OTHER)
            & (spread >= low * (1 - _OTHER))
            & (spread <= high * (1 + _OTHER))
        )
        if not bool(close.all()):
            raise UnsupportedError("the encoder does not compute what its layers, taken alone, do")


def first(vae: VAE, x: Tensor, width: int) -> Gaussian:
    """The first `width` coordinates of the posteriors' mean path and its spread, (B, `width`)."""
    q = vae.encode(x)
    return Gaussian(q.mean[:, :width], q.stddev[:, :width])


def mean_path(parts: Composition, dtype: torch.dtype) -> nn.Module:
    """From the trunk's features to the means of its layers, each at those before, (B, sum w)."""
    widths, layers = parts.widths, len(parts.widths)

    def placed(layer: int) -> nn.Module:
        """Puts a layer's values where they lie in the flat latent."""
        # first weights would spend torch's own generator
        size = (widths[layer], sum(widths))
        place = nn.utils.skip_init(nn.Linear, *size, bias=False, dtype=dtype)
        with torch.no_grad():
            place.weight.zero_()
            place.weight[sum(widths[:layer]) : sum(widths[: layer + 1])].fill_diagonal_(1.0)
        return place

    path = placed(layers - 1)
    for layer in range(layers - 2, -1, -1):
        path = Add(placed(layer), nn.Sequential(parts.links[layer], path))
    return nn.Sequential(parts.mean_head, path)


DOWN = 0.3
"""By what a radius shrinks while nothing has held and the share says only that it failed."""

TRIES = 24
"""How often: 0.3^24 is 3e-13, below which no radius is of use."""


def largest_radius(
    holds: Callable[[Tensor], Tensor], start: Tensor, upper: Tensor, steps: int = 7
) -> Tensor:
    """The largest radius at which `holds` was seen to hold, where each question is dear.

    `holds` gives what is spent over what may be spent: it holds up to 1, and an infinite share says
    only that it does not. The next radius is where a power law between 1 and 2 would spend 98 %; in
    the middle of the bracket's logarithm where that leaves it or the share is infinite; and while
    nothing has held, a fixed part of the last one. The search does not end before something holds.

    Args:
        holds: Radii (B,) to shares (B,).
        start: First radii, (B,), positive.
        upper: Radii above which it is not asked, (B,).
        steps: Questions from the first on that held.

    Returns:
        Radii, (B,): one at which the share was at most 1, or 0 where not even `DOWN`^`TRIES` of
        the first held.

    Examples:
        >>> import torch
        >>> from robustvae.certificates.movement import largest_radius
        >>> radius = largest_radius(lambda rho: rho**1.5, torch.tensor([0.2]), torch.tensor([9.0]))
        >>> 0.97 < float(radius) <= 1.0
        True
    """
    low, high, radius = torch.zeros_like(upper), upper, torch.minimum(start, upper)
    left = torch.full_like(upper, steps)
    for _ in range(TRIES + steps):
        share = holds(radius).nan_to_num(nan=torch.inf, posinf=torch.inf)
        is_held = share <= 1
        asking = left > 0
        low = torch.where(is_held & asking, torch.maximum(low, radius), low)
        high = torch.where(is_held | ~asking, high, torch.minimum(high, radius))
        left = torch.where(asking & (low > 0), left - 1, left)
        if not bool((left > 0).any()):
            break
        # 0.6: between the exponents 1/2 and 1 of shares that grow with the square or linearly
        guess = radius * (0.98 / share.clamp_min(1e-12)) ** 0.6
        inside = share.isfinite() & (guess > low) & (guess < high)
        # a failed share that promises little is not believed while nothing has held
        inside &= is_held | (low > 0) | (guess < 0.8 * radius)
        between = torch.where(low > 0, (low * high).sqrt(), DOWN * high)
        radius = torch.where(left > 0, torch.where(inside, guess, between), low)
    return low
