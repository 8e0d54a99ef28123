"""The envelope within what the decoder can do: logits that move together, not pixel by pixel.

`bounds.envelope_reach` lets an attacker move every logit freely. A decoder moves them together:
a dense layer is linear, and a sort of pairs keeps sums and reflects differences. By weak duality
any linear functional of the logits' movement may be followed back through the layers to the
latent, where it counts for little; what it gains at the logits is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustvae import bounds, gate
from robustvae.arguments import checked
from robustvae.certificates.constants import lipschitz_bound
from robustvae.certificates.multipliers import ROWS, Pairs, Search, Stage, split
from robustvae.certificates.propagation.operator import operator_of
from robustvae.errors import ShapeError, UnsupportedError, check_positive
from robustvae.models.lipschitz import Scale
from robustvae.models.sorts import GroupSort, MaxMin

STEPS = 40
"""Steps by which the multipliers are chosen; any multipliers give a valid bound.

Half as many lose 2 % of the reach on mnist-lipschitz-10, half as many more gain 0.2 %.
"""

_CELL, _FINER = 0.05, 8  # largest cells of the last bound, in logits; cells to a coarse one
_SECANTS = 3  # towards the farthest reach: they close in on 1e-6 of it
_AT_ONCE = 2**17  # cells that fit a cache
_MOST = 4096  # coarse cells of a logit: wider ones make a looser bound
_FLAT = 8.0  # logits that stay so far from 0 have f < exp(-2 * 8)
_SPARE = 1e-9  # granted to the rounding of float64, relative


@checked(formula=True)
def tangent_reach(
    decoder: nn.Module,
    z: Tensor,
    r: float | Tensor,
    steps: int = STEPS,
    start: Tensor | None = None,
) -> Tensor:
    """How far a latent must move, in l2, before the sigmoids of the decoder's logits move by r.

    For multipliers l > 0 and n, with e the logits' movement and f_i(e) = (s(y_i + e) - s(y_i))^2,
    sum f_i(e_i) <= sum_i max_e [f_i(e) - l e^2 - n_i e] + max_{||dz|| <= t} [l ||e||^2 + n.e], and
    the last maximum is at most l a^2 t^2 + ||J'n|| t plus what sorted pairs that could change their
    order may add. The multipliers come from a search in float32, the bound they give is rigorous.

    Args:
        decoder: Dense layers with sorts of pairs between, to the logits.
        z: Latents at the center, (B, d).
        r: l2 distance between outputs, positive; one, or one for each row, (B,).
        steps: Of the search for the multipliers.
        start: Positive distances to begin the search with, (B,), nearly those of the free envelope;
            None to compute these.

    Returns:
        Distances in latent space, (B,), float64; without `start` never below those of the free
        envelope.

    Raises:
        UnsupportedError: Any other layer, by name.

    References:
        docs/theory.md, "Tangent envelope".

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.certificates.tangent import tangent_reach
        >>> vae = rv.models.create("lipschitz-vae", latent=3, image_shape=(1, 4, 4), hidden=[8])
        >>> reach = tangent_reach(vae.decoder, torch.zeros(2, 3), 0.5)
        >>> bool((reach >= 4 * 0.5 / 5.001).all())
        True
    """
    check_positive(r, "r", each=True)
    stages = _stages(decoder)
    if z.ndim != 2 or z.shape[1] != stages[0].weight.shape[1]:
        raise ShapeError(f"z must be (B, {stages[0].weight.shape[1]}), got {tuple(z.shape)}")
    tolerances = torch.as_tensor(r, dtype=torch.float64).cpu().expand(len(z))
    z, free = z.detach().double().cpu(), torch.zeros(len(z), dtype=torch.float64)
    if start is None:
        norm = math.prod(stage.norm for stage in stages)
        logits = _center(stages, z)[1]
        free = bounds.envelope_reach(logits, tolerances) / norm * (1 - bounds.SLACK)
        start = free
    rows = (part.split(ROWS) for part in (z, tolerances, start.double().cpu()))
    search = Search(stages)
    parts = [
        _reach(stages, search, codes, tolerance, begin, steps)
        for codes, tolerance, begin in zip(*rows, strict=True)
    ]
    return torch.maximum(free, torch.cat(parts)) if parts else free


def _layers(network: nn.Module) -> list[nn.Module]:
    """The layers in order, nested `nn.Sequential` taken apart; each admitted by the gate."""
    if type(network) is not nn.Sequential:
        operator_of(network)
        return [network]
    gate.admit(network)
    return [layer for part in network for layer in _layers(part)]


def _stages(decoder: nn.Module) -> list[Stage]:
    stages: list[Stage] = []
    for layer in _layers(decoder):
        if type(layer) is nn.Linear:
            if stages and not stages[-1].sort:
                raise UnsupportedError("two dense layers without a sort between")
            weight = layer.weight.detach().cpu().double()
            bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias
            norm = lipschitz_bound(layer) * (1 + _SPARE)
            stages.append(Stage(weight, bias.detach().cpu().double(), norm, ""))
        elif type(layer) in (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout):
            continue
        elif not stages:
            raise UnsupportedError(f"a {type(layer).__name__} before the first dense layer")
        elif type(layer) is Scale and not stages[-1].sort:
            last, factor = stages[-1], layer.factor
            norm = last.norm * abs(factor) * (1 + _SPARE)
            stages[-1] = Stage(last.weight * factor, last.bias * factor, norm, "")
        elif type(layer) is MaxMin or (type(layer) is GroupSort and layer.group == 2):
            last = stages[-1]
            kind = "halves" if type(layer) is MaxMin else "pairs"
            stages[-1] = Stage(last.weight, last.bias, last.norm, kind)
        else:
            raise UnsupportedError(f"no tangent envelope through {type(layer).__name__}")
    if not stages or stages[-1].sort:
        raise UnsupportedError("a decoder that does not end in a dense layer")
    return stages


def _joined(one: Tensor, two: Tensor, sort: str) -> Tensor:
    if sort == "pairs":
        return torch.stack([two, one], -1).flatten(-2)
    return torch.cat([one, two], -1)


def _center(stages: list[Stage], z: Tensor) -> tuple[list[Pairs], Tensor]:
    """The pairs of every sort, and the logits, at the latents."""
    pairs, features, norm = [], z, 1.0
    for stage in stages:
        features = features @ stage.weight.mT + stage.bias
        if stage.sort:
            u, v = split(features, stage.sort)
            rounding = _SPARE * (1 + u.abs() + v.abs())
            rows = torch.sub(*split(stage.weight.mT, stage.sort)).norm(dim=0) / 2**0.5
            distance = ((u - v).abs() / 2**0.5 - rounding).clamp_min(0)
            sign = torch.where(u >= v, 1.0, -1.0).to(z)
            pairs.append(Pairs(distance, sign, rows * norm * (1 + _SPARE)))
            features = _joined(torch.maximum(u, v), torch.minimum(u, v), stage.sort)
        norm *= stage.norm
    return pairs, features


def _followed(
    stages: list[Stage],
    pairs: list[Pairs],
    tilt: Tensor,
    price: Tensor,
    reach: Tensor,
    image: Tensor | None = None,
) -> Tensor:
    """Bound on max_{||dz|| <= reach} [price ||e||^2 + tilt . e] over the logits' movement e, (B,).

    A sort keeps the sums of its pairs. Of the differences, with D at the center >= 0 and q after
    the move, it gives |q|: price ((|q| - D)^2 - (q - D)^2) + m (|q| - D) - w (q - D) is at most 0
    for w = m as long as m <= 2 price D, else at most (move - D) (m - 2 price D) for the w below.
    `image` is the tilt times the last weight, where it is known.
    """
    excess_sum = torch.zeros_like(reach)
    for stage, ordering, before in zip(stages[:0:-1], stages[-2::-1], pairs[::-1], strict=True):
        excess_sum = excess_sum + 1e-10 * tilt.norm(dim=1) * stage.norm * reach  # rounding
        tilt = tilt @ stage.weight if image is None else image
        price, image = price * stage.norm**2, None
        one, two = split(tilt, ordering.sort)
        level, m = (one + two) / 2**0.5, (one - two) / 2**0.5
        free = 2 * price[:, None] * before.apart
        move = before.steepness * reach[:, None]
        beyond = (move - before.apart).clamp_min(0)
        excess = (m - free).clamp_min(0)
        excess_sum = excess_sum + (beyond * excess).sum(1)
        new_tilt = (m * before.apart + free * beyond) / move.clamp_min(1e-30)
        w = torch.where((excess > 0) & (beyond > 0), new_tilt, m) * before.sign
        tilt = _joined((level + w) / 2**0.5, (level - w) / 2**0.5, ordering.sort)
    first = stages[0]
    slope = (tilt @ first.weight).norm(dim=1) + 1e-10 * tilt.norm(dim=1) * first.norm
    return price * first.norm**2 * reach.square() + slope * reach + excess_sum


@torch.no_grad()
def _reach(
    stages: list[Stage], search: Search, z: Tensor, r: Tensor, start: Tensor, steps: int
) -> Tensor:
    pairs, logits = _center(stages, z)
    tilt, price, guess = search(pairs, logits, start, r, steps)
    # float32 overflows where float64 does not: the free envelope's multipliers there
    sound = tilt.isfinite().all(1) & (price > 1e-30) & price.isfinite() & guess.isfinite()
    tilt = torch.where(sound[:, None], tilt, 0.0)
    price = torch.where(sound, price, (r / (search.norm * start)).square())
    guess = torch.where(sound, guess, start)
    cell = (r / (2 * logits.shape[1] ** 0.5)).clamp_max(_CELL)
    budget = r**2 * (1 - _SPARE) - _excess(logits, tilt, price, cell) * (1 + _SPARE)
    image = tilt @ stages[-1].weight if len(stages) > 1 else None

    def value(reach: Tensor) -> Tensor:
        return _followed(stages, pairs, tilt, price, reach, image) * (1 + _SPARE)

    return _farthest(value, budget, guess, 2 * price * search.norm**2 * guess)


def _farthest(
    value: Callable[[Tensor], Tensor], budget: Tensor, guess: Tensor, slope: Tensor
) -> Tensor:
    """The largest of a few reaches that was seen to hold, value <= budget, (B,).

    Secants from the guess: the value is a smooth, rising function but for the pairs' corners.
    """
    best, at = torch.zeros_like(guess), guess
    gap = budget - value(at)
    for _ in range(_SECANTS):
        best = torch.where((gap >= 0) & (at > best), at, best)
        # a little short of the root, so that it holds
        step = (gap / slope).clamp(-0.5 * at, 0.5 * at) - 1e-7 * at
        after = budget - value(at + step)
        slope = torch.where(step * (gap - after) > 0, (gap - after) / step, slope)
        at, gap = at + step, after
    return torch.where((gap >= 0) & (at > best), at, best)


def _excess(logits: Tensor, tilt: Tensor, price: Tensor, cell: float | Tensor = _CELL) -> Tensor:
    """Upper bound on sum_i max_e phi_i(e), phi_i(e) = f_i(e) - price e^2 - tilt_i e, (B,).

    Beyond the moves that cost 1, phi < 0 = phi(0), since f < 1. The others are cut into cells, and
    those cells that may hold the maximum into finer ones. Where a logit stays far from 0 on all of
    them, f is next to nothing.
    """
    cost = price[:, None]
    root = (tilt.square() + 4 * cost).sqrt()
    ends = torch.stack([-tilt - root, root - tilt]) / (2 * cost)
    # one of them may have lost its digits
    spare = _SPARE * (ends[1] - ends[0])
    low, high = ends[0] - spare, ends[1] + spare
    toward = torch.where(logits >= 0, -low, high)
    flat = logits.abs() > toward + _FLAT
    greatest = torch.where(flat, tilt.square() / (4 * cost) + math.exp(-2 * _FLAT), 0.0)
    rows, columns = (~flat).nonzero(as_tuple=True)
    sizes = torch.as_tensor(cell, dtype=torch.float64).expand(len(logits))
    counts = ((high - low) / (sizes[:, None] * _FINER)).ceil().clamp_max(_MOST)
    at_once = max(1, int(_AT_ONCE // counts.amax().clamp_min(1)))
    parts = zip(rows.split(at_once), columns.split(at_once), strict=True)
    for row, column in parts if len(rows) else ():
        y, n, count = logits[row, column], tilt[row, column], counts[row, column]
        edges = (low[row, column], high[row, column])
        greatest[row, column] = _greatest(y, n, edges, price[row], count)
    return greatest.sum(1)


def _greatest(
    y: Tensor, n: Tensor, ends: tuple[Tensor, Tensor], cost: Tensor, count: Tensor
) -> Tensor:
    """Upper bounds on phi between two moves, by so many coarse cells, (N,) each."""
    low, high = ends
    width = ((high - low) / count)[:, None]
    index = torch.arange(int(count.amax()), dtype=torch.float64)
    centers = low[:, None] + (index + 0.5) * width
    value, upper = _cells(y[:, None], n[:, None], cost[:, None], centers, width / 2)
    least = torch.where(index < count[:, None], value, 0.0).amax(1, keepdim=True).clamp_min(0)
    row, column = ((upper >= least) & (index < count[:, None])).nonzero(as_tuple=True)
    finer = ((torch.arange(_FINER, dtype=torch.float64) + 0.5) / _FINER - 0.5) * width[row]
    within = centers[row, column][:, None] + finer
    half = width[row] / (2 * _FINER)
    _, upper = _cells(y[row, None], n[row, None], cost[row, None], within, half)
    return torch.zeros_like(y).scatter_reduce(0, row, upper.amax(1), "amax")


def _cells(
    y: Tensor, n: Tensor, cost: Tensor, centers: Tensor, half: Tensor
) -> tuple[Tensor, Tensor]:
    """phi at the centers of cells, and upper bounds on it in each: max_{|d| <= h} by Taylor.

    phi'' <= min(0.32, 2 s' (1 + s')) - 2 cost, with s' the sigmoid's largest slope in the cell.
    """
    at = y + centers
    end = torch.sigmoid(at)
    change = end - torch.sigmoid(y)
    value = change.square() - (cost * centers + n) * centers
    slope = (2 * change * end * (1 - end) - 2 * cost * centers - n).abs()
    nearest = torch.sigmoid((half - at.abs()).clamp_max(0))
    steep = nearest * (1 - nearest)
    curve = (2 * steep * (1 + steep)).clamp_max(0.32) - 2 * cost
    reach = torch.where(curve < 0, (slope / curve.abs().clamp_min(1e-30)).clamp_max(half), half)
    return value, value + slope * reach + curve * reach.square() / 2
