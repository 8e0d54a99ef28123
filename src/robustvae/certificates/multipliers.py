"""A search for the multipliers of the tangent envelope: in float32, judged elsewhere.

Any multipliers give a valid bound, so what is found here needs no proof. Dense layers take most of
the time. A sort of pairs is diagonal in their sums and differences, into which the layers' weights
are turned beforehand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

_NEAR, _TRIED, _FAR = 256, 18, 20.0  # logits and moves that are looked at, largest move
_LOOK = 5  # steps between looks at all moves
_PRICE_RATE = 0.06  # of the search, in the logarithm of the price
_MOMENTUM, _MEMORY = 0.5, 0.9  # of Adam: the objective is convex and free of noise
_STEP = 0.7  # of a tilt, as a share of what pays for r if all logits have it
_LAST = 0.02  # of a step at the end, as a share of one at the start
_SHARE = 0.9  # of the tilt that takes every gain away: what the search begins with
_LOW = 0.35  # price at the start, as a share of r^2 / (norm reach)^2
_ALIGNED = 16  # rows and columns of a product, to a multiple

ROWS = 128
"""Rows that are searched together, at the most; fewer are padded to a multiple of 16.

So a row's numbers do not depend on how many others there are, to the bit.
"""


@final
@dataclass(frozen=True)
class Stage:
    """An affine map, a bound on its norm, and the sort after it: "pairs", "halves" or none."""

    weight: Tensor
    bias: Tensor
    norm: float
    sort: str


@final
@dataclass(frozen=True)
class Pairs:
    """Where the pairs of one sort stand at the center.

    Attributes:
        apart: |u - v| / sqrt(2), rounded down, (B, k).
        sign: Of u - v, (B, k).
        steepness: How far (u - v) / sqrt(2) moves for a latent that moves by 1, at most, (k,).
    """

    apart: Tensor
    sign: Tensor
    steepness: Tensor


def split(features: Tensor, sort: str) -> tuple[Tensor, Tensor]:
    """(u, v) of each pair, ordered so that a sort puts the larger into u's place."""
    if sort == "pairs":
        return features[..., 1::2], features[..., 0::2]
    one, two = features.chunk(2, -1)
    return one, two


@final
class Search:
    """Tilts and prices that promise the largest reach.

    Args:
        stages: Of the decoder.
    """

    def __init__(self, stages: list[Stage]) -> None:
        turned = [weight.float() for weight in _turned(stages)]
        self.weights = [_Product(weight) for weight in turned]
        self.transposes = [_Product(weight.mT) for weight in turned]
        self.norms = [stage.norm for stage in stages]
        self.norm = math.prod(self.norms)

    @torch.no_grad()
    def __call__(
        self, pairs: list[Pairs], logits: Tensor, reach: Tensor, r: Tensor, steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The multipliers, and the reach that they seem to give.

        Args:
            pairs: Of each sort, at the center.
            logits: At the center, (B, D), B at most `ROWS`.
            reach: Distances to begin with, (B,), positive.
            r: l2 distance between outputs, (B,).
            steps: Of the search.

        Returns:
            Tilts (B, D), prices (B,) and distances (B,), float64.
        """
        count = len(logits)
        rows = torch.arange(count + -count % _ALIGNED).clamp_max(count - 1)
        centers = [
            Pairs(pair.apart[rows].float(), pair.sign[rows].float(), pair.steepness.float())
            for pair in pairs
        ]
        state = _State(self, centers, logits[rows].float(), reach[rows].float(), r[rows].float())
        for step in range(steps):
            state.advance(step, steps)
        tilt, price, best = (value[:count].double() for value in state.best)
        return tilt, price, best

    def back(self, tilt: Tensor, pairs: list[Pairs]) -> Tensor:
        """J't, (B, d), of logits' tilts t, (B, D)."""
        for weight, pair in zip(self.weights[:0:-1], pairs[::-1], strict=True):
            tilt = weight(tilt)
            tilt[:, pair.sign.shape[1] :] *= pair.sign
        return self.weights[0](tilt)

    def forth(self, move: Tensor, pairs: list[Pairs]) -> Tensor:
        """J u, (B, D), of latents' moves u, (B, d)."""
        move = self.transposes[0](move)
        for weight, pair in zip(self.transposes[1:], pairs, strict=True):
            move[:, pair.sign.shape[1] :] *= pair.sign
            move = weight(move)
        return move


@final
class _Product:
    """Rows times a matrix, every row by the same order of sums.

    A narrow matrix is widened by columns of 0: for some widths the order depends on a row's place.
    """

    def __init__(self, weight: Tensor) -> None:
        self.width = weight.shape[1]
        self.weight = nn.functional.pad(weight, (0, -self.width % _ALIGNED)).contiguous()

    def __call__(self, rows: Tensor) -> Tensor:
        product = rows @ self.weight
        return product if self.width % _ALIGNED == 0 else product[:, : self.width]


class _State:
    """Where the search stands: Adam's averages, the tilts and prices, and the best of them."""

    def __init__(
        self, search: Search, pairs: list[Pairs], logits: Tensor, reach: Tensor, r: Tensor
    ) -> None:
        self.search, self.pairs, self.square = search, pairs, r.square()
        self.norm = search.norm
        self.near = logits.abs().topk(min(_NEAR, logits.shape[1]), largest=False).indices
        self.y = logits.gather(1, self.near)
        self.start = torch.sigmoid(self.y)
        toward = torch.where(self.y >= 0, -1.0, 1.0).to(logits)
        sizes = torch.logspace(-0.7, math.log10(_FAR), _TRIED, dtype=torch.float64).to(logits)
        self.moves = toward[:, :, None] * sizes
        self.gain = (
            torch.sigmoid(self.y[:, :, None] + self.moves) - self.start[:, :, None]
        ).square_()
        self.squares = sizes.square()
        self.reach, self.price = reach, _LOW * self.square / (self.norm * reach).square()
        # the least tilt that takes the gain of every move toward 0 away, and of it what the decoder
        # cannot turn into a move of its latent: its layers are next to isometries
        worth = self.gain - self.price[:, None, None] * self.squares
        least = toward * (worth / sizes).amax(2).clamp_min(0) * _SHARE
        tilt = torch.zeros_like(logits).scatter_(1, self.near, least)
        image = search.forth(search.back(tilt, pairs), pairs)
        self.tilt = tilt - image / self.norm**2
        self.unit = (_STEP * self.square / (4 * self.norm * reach * logits.shape[1] ** 0.5))[
            :, None
        ]
        self.best = (torch.zeros_like(tilt), self.square / (self.norm * reach).square(), reach)
        self.pick = self.moves[:, :, 0]
        self.slope, self.size = torch.zeros_like(tilt), torch.zeros_like(tilt)
        self.price_slope, self.price_size = torch.zeros_like(reach), torch.zeros_like(reach)

    def advance(self, step: int, steps: int) -> None:
        """One step of Adam on both, at the reach that the last one promised."""
        excess, tilt_slope, price_slope = self._excess(step)
        value, more_tilt, more_price = self._followed()
        total = excess + value
        tilt_slope += more_tilt
        price_slope = price_slope + more_price
        better = (total <= self.square) & (self.reach >= self.best[2])
        self.best = (
            torch.where(better[:, None], self.tilt, self.best[0]),
            torch.where(better, self.price, self.best[1]),
            torch.where(better, self.reach, self.best[2]),
        )
        steepness = 2 * self.price * self.norm**2 * self.reach
        rate = 1 - (1 - _LAST) * step / steps
        first, second = 1 - _MOMENTUM ** (step + 1), 1 - _MEMORY ** (step + 1)
        tilt_slope *= self.unit / steepness[:, None]
        self.slope.lerp_(tilt_slope, 1 - _MOMENTUM)
        self.size.mul_(_MEMORY).addcmul_(tilt_slope, tilt_slope, value=1 - _MEMORY)
        scale = (self.size / second).sqrt_().add_(1e-7)
        self.tilt = self.tilt - (self.slope * (self.unit * (rate / first))).div_(scale)
        price_slope = price_slope * self.price / steepness
        self.price_slope = torch.lerp(self.price_slope, price_slope, 1 - _MOMENTUM)
        self.price_size = torch.lerp(self.price_size, price_slope.square(), 1 - _MEMORY)
        change = self.price_slope / first / ((self.price_size / second).sqrt() + 1e-8)
        self.price = self.price * torch.exp(-_PRICE_RATE * rate * change)
        farther = self.reach + (self.square - total) / steepness
        self.reach = torch.minimum(torch.maximum(farther, 0.8 * self.reach), 1.2 * self.reach)

    def _excess(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """sum_i max_e [f_i(e) - l e^2 - n_i e], and its slopes in n and l.

        Logits far from 0 have their best move where f is 0, the others there or beyond 0.
        """
        price, y = self.price[:, None], self.y
        tilt = self.tilt.gather(1, self.near)
        if step % _LOOK == 0:
            # between looks at all moves the last one is followed: it wanders little in a few steps
            worth = torch.addcmul(self.gain, price[:, :, None], self.squares, value=-1)
            worth.addcmul_(tilt[:, :, None], self.moves, value=-1)
            self.pick = self.moves.gather(2, worth.argmax(2, keepdim=True))[:, :, 0]
        self.pick = _newton(self.pick, y, self.start, tilt, price)
        slide = tilt / (-2 * price)
        gains = []
        for move in (self.pick, slide):
            change = torch.sigmoid(y + move).sub_(self.start)
            gains.append(change.square_().sub_((price * move).add_(tilt).mul_(move)))
        flips = gains[0] > gains[1]
        move = torch.where(flips, self.pick, slide)
        # the others slide: n^2 / 4 l
        aside = (self.tilt.square().sum(1) - tilt.square().sum(1)) / (4 * self.price)
        slope = (self.tilt / (2 * price)).scatter_(1, self.near, -move)
        excess = torch.maximum(gains[0], gains[1]).sum(1) + aside
        return excess, slope, -move.square().sum(1) - aside / self.price

    def _followed(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `tangent` bounds the followed functional by, and its slopes in tilt and price."""
        search, reach, pairs = self.search, self.reach, self.pairs
        tilt, value, share_of_price = self.tilt, torch.zeros_like(reach), 1.0
        price_slope, steps = torch.zeros_like(reach), []
        stages = zip(search.weights[:0:-1], search.norms[:0:-1], pairs[::-1], strict=True)
        for weight, norm, pair in stages:
            tilt, share_of_price = weight(tilt), share_of_price * norm**2
            m = tilt[:, pair.apart.shape[1] :]
            move = reach[:, None] * pair.steepness
            beyond = (move - pair.apart).clamp_min_(0)
            excess = torch.addcmul(m, (-2 * share_of_price * self.price)[:, None], pair.apart)
            excess.clamp_min_(0)
            value += (beyond * excess).sum(1)
            share = beyond / move.clamp_min_(1e-30)
            steps.append(((excess > 0) & (beyond > 0), beyond, share, share_of_price))
            m.addcmul_(share, excess, value=-1).mul_(pair.sign)
        end = search.weights[0](tilt)
        length = end.norm(dim=1)
        share_of_price *= search.norms[0] ** 2
        value = value + share_of_price * self.price * reach.square() + length * reach
        price_slope = price_slope + share_of_price * reach.square()
        slope = search.transposes[0](end * (reach / length.clamp_min(1e-30))[:, None])
        backward = zip(search.transposes[1:], pairs, steps[::-1], strict=True)
        for weight, pair, (active, beyond, share, part) in backward:
            w = slope[:, pair.apart.shape[1] :].mul_(pair.sign)
            change = (w * share).sub_(beyond).mul_(active)
            price_slope = price_slope + 2 * part * (change * pair.apart).sum(1)
            w.sub_(change)
            slope = weight(slope)
        return value, slope, price_slope


def _turned(stages: list[Stage]) -> list[Tensor]:
    """The weights between sums and differences of pairs, over sqrt(2), in place of features."""
    weights, before = [], ""
    for stage in stages:
        weight = stage.weight
        if before:
            weight = _sums_and_differences(weight, before)
        if stage.sort:
            weight = _sums_and_differences(weight.mT, stage.sort).mT
        weights.append(weight)
        before = stage.sort
    return weights


def _sums_and_differences(features: Tensor, sort: str) -> Tensor:
    one, two = split(features, sort)
    return torch.cat([one + two, one - two], -1) / 2**0.5


def _newton(move: Tensor, y: Tensor, start: Tensor, tilt: Tensor, price: Tensor) -> Tensor:
    """One step towards the maximum of phi from points of a grid, at most to the next point."""
    end = torch.sigmoid(y + move)
    change, steep = end - start, end * (1 - end)
    slope = torch.addcmul(-tilt, change, steep, value=2).addcmul_(price, move, value=-2)
    bend = change.mul_(1 - 2 * end).add_(steep).mul_(steep)
    step = slope.div_((2 * (price - bend)).clamp_min_(1e-6))
    limit = 0.3 * move.abs()
    return move + torch.maximum(torch.minimum(step, limit), -limit)
