"""The set that a perturbed input may lie in: a norm ball, cut by the pixel range or left free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.arguments import checked, checked_fields
from robustvae.errors import (
    DtypeError,
    RangeError,
    ShapeError,
    check_choice,
    check_number,
    check_positive,
)
from robustvae.seeding import rand, randn

NORMS = ("l0", "l2", "linf")
_NEWTON_STEPS = 14  # random images need 4; stopped early it stays inside
_MANY = 2**14  # values of an input from which float32 sums of squares are too coarse
_FAR = 1e18  # steps are cut here, so that products of two of them do not overflow


@checked_fields
@final
@dataclass(frozen=True, eq=False)
class Ball:
    """All y with ||y - x|| <= radius, and low <= y <= high where the ball has a box.

    The l0 "norm" counts the values that differ: a ball of radius 3 holds all inputs in which at
    most three values are others, each anywhere in the box. It is the ball of counts and tables.

    Args:
        norm: "l2", "linf" or "l0", over all values of one input.
        radius: Positive, in pixel units (inputs live in [0, 1]), for "l0" a number of values: one
            number, or one per input (B,).
        low: Least pixel value, None together with `high` for a free perturbation.
        high: Greatest pixel value.

    Raises:
        UnknownNameError: Any other norm.
        RangeError: A radius that is not positive, a box that is empty or has one side only; for
            "l0" a radius that is not whole, or no box, without which a value has no bound.
        NonFiniteError: A radius or a side that is not finite.
        ShapeError: A tensor of radii that is not (B,).

    Examples:
        >>> import torch
        >>> from robustvae.perturb import Ball
        >>> ball = Ball("l2", 0.5)
        >>> x = torch.zeros(1, 1, 1, 2)
        >>> ball.project(x, torch.tensor([[[[3.0, 4.0]]]]))
        tensor([[[[0.3000, 0.4000]]]])
    """

    norm: str
    radius: float | Tensor
    low: float | None = 0.0
    high: float | None = 1.0

    def __post_init__(self) -> None:
        """Validate norm, radius and box."""
        check_choice("norm", self.norm, NORMS)
        check_positive(self.radius, "radius", each=True)
        if isinstance(self.radius, Tensor) and self.radius.ndim != 1:
            raise ShapeError(f"radius must be one number or (B,), got {tuple(self.radius.shape)}")
        if (self.low is None) != (self.high is None):
            raise RangeError("low and high must both be numbers (box) or both be None (free)")
        if self.low is not None and self.high is not None:
            check_number(self.low, "low")
            check_number(self.high, "high")
            if not self.low < self.high:
                raise RangeError(f"low must lie below high, got {self.low:g} and {self.high:g}")
        if self.norm == "l0":
            self._check_count()

    def __eq__(self, other: object) -> bool:
        """Whether `other` is a ball of the same norm, radii and box."""
        return isinstance(other, Ball) and self._value == other._value

    def __hash__(self) -> int:
        """Equal balls have equal hashes."""
        return hash(self._value)

    @property
    def _value(self) -> tuple[object, ...]:
        radius = self.radius
        radii = tuple(radius.tolist()) if isinstance(radius, Tensor) else radius
        return self.norm, radii, self.low, self.high

    @property
    def box(self) -> bool:
        """Whether the pixels must stay within [low, high]."""
        return self.low is not None

    def _check_count(self) -> None:
        if self.low is None:
            raise RangeError(
                "an l0 ball needs a box, without which a changed value has no bound, got "
                "low=None: give low= and high="
            )
        if not isinstance(self.radius, Tensor) and self.radius != int(self.radius):
            raise RangeError(
                f"radius of an l0 ball must be a whole number of values, got {self.radius:g}"
            )

    @checked(formula=True)
    def reach(self, x: Tensor) -> Tensor:
        """The length by which searches measure their steps, in the 2-norm, (B,).

        The radius for l2, that of the corners for l-infinity, and for l0 the diagonal of the box,
        so that a step moves every value by about its whole range.
        """
        corner = x[0].numel() ** 0.5
        if self.norm == "l0":
            return torch.full_like(self.radii(x), self.span * corner)
        return self.radii(x) * (corner if self.norm == "linf" else 1.0)

    @property
    def span(self) -> float:
        """How far apart the ends of the box are; 1 without a box, as pixels are."""
        return 1.0 if self.low is None or self.high is None else self.high - self.low

    def free(self) -> Ball:
        """The same ball without its box.

        Raises:
            RangeError: An l0 ball, which has no meaning without a box.
        """
        return Ball(self.norm, self.radius, None, None)

    @checked(formula=True)
    def radii(self, x: Tensor) -> Tensor:
        """The radius of each image, (B,), with the dtype and device of `x`.

        Raises:
            DtypeError: `x` is of half precision, in which a ball's edge cannot be told.
            ShapeError: There are radii for another number of images.
        """
        if x.dtype in (torch.float16, torch.bfloat16):
            raise DtypeError(f"a ball needs images of float32 or float64, got {x.dtype}")
        if not isinstance(self.radius, Tensor):
            return torch.full((len(x),), self.radius, dtype=x.dtype, device=x.device)
        if len(self.radius) != len(x):
            raise ShapeError(
                f"radius must hold one number for each of {len(x)} images, got {len(self.radius)}"
            )
        return self.radius.to(x)

    @checked(formula=True)
    def rows(self, index: Tensor) -> Ball:
        """The ball for a batch whose row i is the image `index[i]` of this ball's batch."""
        if not isinstance(self.radius, Tensor):
            return self
        return Ball(self.norm, self.radius[index.to(self.radius.device)], self.low, self.high)

    @checked(formula=True)
    def clip(self, y: Tensor) -> Tensor:
        """`y` within the box, of the same shape; `y` itself for a free ball."""
        return y.clamp(self.low, self.high) if self.box else y

    @checked(formula=True)
    def size(self, x: Tensor, y: Tensor) -> Tensor:
        """||y - x|| of each input in the ball's norm, in pixel units or values, (B,)."""
        return _length(y - x, self.norm)

    @checked(formula=True)
    def contains(self, x: Tensor, y: Tensor, tol: float = 1e-6) -> Tensor:
        """Whether each `y` lies in the ball around its `x`, and in the box, to `tol`: (B,) bool."""
        x, y = x.double(), y.double()
        inside = self.size(x, y) <= self.radii(x) + tol
        if self.low is not None and self.high is not None:
            flat = y.flatten(1)
            inside &= ((flat >= self.low - tol) & (flat <= self.high + tol)).all(1)
        return inside

    @checked(formula=True)
    def project(self, x: Tensor, y: Tensor) -> Tensor:
        r"""The point of ball and box nearest to `y` in the 2-norm.

        l-infinity: two clamps. l0: the changes that matter most are kept. l2: clip(x + tau (y -
        x)) with the greatest tau <= 1 that keeps to the radius. The squared size is concave and
        piecewise linear in tau^2, so Newton's method rises to the root from below: what it returns
        is inside, also when it is stopped early.

        Args:
            x: Centers, in the box where there is one, (B, C, H, W).
            y: Points, any finite values, (B, C, H, W).

        Returns:
            The projections, (B, C, H, W).
        """
        shape = (-1,) + (1,) * (x.ndim - 1)
        radius = self.radii(x).view(shape)
        if self.norm == "linf":
            return self.clip(torch.minimum(torch.maximum(y, x - radius), x + radius))
        if self.norm == "l0":
            return self._sparse(x, y)
        # a few roundings of x + tau d may not carry the point outside
        radius = radius * (1 - 4 * torch.finfo(x.dtype).eps)
        step = y - x
        # only the ray through y matters: scaled, so that no square overflows
        factor = _length(step, "linf").view(shape).clamp_min(1)
        step = step / factor
        length = _length(step, "l2").view(shape).clamp_min(torch.finfo(x.dtype).tiny)
        if not self.box:
            return x + step * torch.minimum(radius / length, factor)
        room = self.clip(y) - x
        inside = _length(room, "l2").view(shape) <= radius
        # d -> the room left in the direction of d; only pixels that clip(y) moved can hit the box
        cap = torch.where(step > 0, (self.high or 0.0) - x, x - (self.low or 0.0)).clamp_min(0)
        square, cap_square = step.square(), cap.square()
        tau_square = torch.minimum(radius / length, factor).square()
        for _ in range(_NEWTON_STEPS):
            full = square * tau_square >= cap_square
            square_at_cap = cap_square.where(full, 0).flatten(1).sum(1).view(shape)
            moving = square.where(~full, 0).flatten(1).sum(1).view(shape)
            better = (radius.square() - square_at_cap).clamp_min(0) / moving.clamp_min(1e-30)
            onward = torch.where(moving > 0, torch.maximum(better, tau_square), tau_square)
            if torch.equal(onward, tau_square):  # then every further step is this one again
                break
            tau_square = onward
        tau = torch.where(inside, factor, tau_square.sqrt())
        return self.clip(x + tau * step)

    @checked(formula=True)
    def sample(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Points drawn uniformly from the free ball around each `x`, then projected.

        Of an l0 ball, which has no volume: as many values as it may change, chosen at random, each
        uniform in the box.

        Args:
            x: Centers, (B, C, H, W).
            generator: Spent by the draw.

        Returns:
            Points of ball and box, (B, C, H, W).
        """
        shape = (-1,) + (1,) * (x.ndim - 1)
        radius = self.radii(x).view(shape)
        if self.norm == "linf":
            return self.project(
                x, x + radius * (2 * rand(*x.shape, like=x, generator=generator) - 1)
            )
        if self.norm == "l0":
            values = rand(*x.shape, like=x, generator=generator) * self.span + (self.low or 0.0)
            order = rand(*x.shape, like=x, generator=generator)
            return torch.where(self.chosen(x, order), values, x)
        direction = randn(*x.shape, like=x, generator=generator)
        share = rand(len(x), like=x, generator=generator) ** (
            1 / x[0].numel()
        )  # the volume grows as radius^D
        direction = direction * (share / _length(direction, "l2").clamp_min(1e-12)).view(shape)
        return self.project(x, x + radius * direction)

    def _sparse(self, x: Tensor, y: Tensor) -> Tensor:
        """The nearest point that differs from x in few enough values."""
        inside = self.clip(y)
        room = inside - x
        step = (y - x).clamp(-_FAR, _FAR)
        # by how much (y - x)^2 exceeds (y - clip(y))^2: what a value saves by being changed
        saving = room * (2 * step - room)
        return torch.where(self.chosen(x, saving), inside, x)

    @checked(formula=True)
    def chosen(self, x: Tensor, worth: Tensor) -> Tensor:
        """Which values are worth most, as many of each row as its radius says.

        Args:
            x: Centers, (B, C, H, W).
            worth: What a change of each value is worth, (B, C, H, W) or (B, D).

        Returns:
            A mask, (B, C, H, W).
        """
        worth = worth.flatten(1)
        count = self.radii(x).floor().clamp(0, worth.shape[1])
        largest = int(count.max()) if len(count) else 0
        places = worth.topk(largest, dim=1).indices
        taken = torch.arange(largest, device=x.device) < count[:, None]
        mask = torch.zeros_like(worth, dtype=torch.bool).scatter_(1, places, taken)
        return mask.view(x.shape)


def _length(step: Tensor, norm: str) -> Tensor:
    if norm == "l0":
        return (step != 0).flatten(1).sum(1).to(step.dtype)
    flat, order = step.flatten(1), 2 if norm == "l2" else torch.inf
    # a float32 sum of very many squares is wrong in its sixth digit
    wide = torch.float64 if norm == "l2" and flat.shape[1] > _MANY else None
    return torch.linalg.vector_norm(flat, ord=order, dim=1, dtype=wide).to(step.dtype)
