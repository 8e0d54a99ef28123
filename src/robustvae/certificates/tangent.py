"""The envelope within what the decoder can do: logits that move together, not pixel by pixel.

`bounds.envelope_reach` lets an attacker move every logit freely. A decoder moves them together:
a dense layer is linear, and a sort of pairs keeps sums and reflects differences. By weak duality
any linear functional of the logits' movement may be followed back through the layers to the
latent, where it counts for little; what it gains at the logits is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustvae import bounds, gate
from robustvae.arguments import checked
from robustvae.certificates.constants import lipschitz_bound
from robustvae.certificates.propagation.operator import operator_of
from robustvae.errors import ShapeError, UnsupportedError, check_positive
from robustvae.models.lipschitz import Scale
from robustvae.models.sorts import GroupSort, MaxMin

STEPS = 100
"""Gradient steps by which the multipliers are chosen; any multipliers give a valid bound.

Half as many lose 3 % of the reach on mnist-lipschitz-10, half as many more gain 0.1 %.
"""

_NEAR, _TRIED, _FAR = 384, 18, 20.0  # pixels and moves that the search looks at, largest move
_CELL, _FINER = 0.05, 8  # largest cells of the last bound, in logits; cells to a coarse one
_AT_ONCE = 32  # rows searched together
_LOOK = 5  # steps between looks at all moves
_RATE = 0.02  # of the search, in the logarithm of the price
_FLAT = 12.0  # logits so far from 0 have f < exp(-2 * 12)
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
    order may add. The multipliers are found by gradient steps, the bound they give is rigorous.

    Args:
        decoder: Dense layers with sorts of pairs between, to the logits.
        z: Latents at the center, (B, d).
        r: l2 distance between outputs, positive; one, or one for each row, (B,).
        steps: Gradient steps on the multipliers.
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
    rows = (part.split(_AT_ONCE) for part in (z, tolerances, start.double().cpu()))
    parts = [
        _reach(stages, codes, tolerance, begin, steps)
        for codes, tolerance, begin in zip(*rows, strict=True)
    ]
    return torch.maximum(free, torch.cat(parts)) if parts else free


@dataclass(frozen=True)
class _Stage:
    """An affine map, a bound on its norm, and the sort after it: "pairs", "halves" or none."""

    weight: Tensor
    bias: Tensor
    norm: float
    sort: str

    def to(self, dtype: torch.dtype) -> _Stage:
        return _Stage(self.weight.to(dtype), self.bias.to(dtype), self.norm, self.sort)


@dataclass(frozen=True)
class _Pairs:
    """Where the pairs of one sort stand at the center.

    Attributes:
        apart: |u - v| / sqrt(2), rounded down, (B, k).
        sign: Of u - v, (B, k).
        steepness: How far (u - v) / sqrt(2) moves for a latent that moves by 1, at most, (k,).
    """

    apart: Tensor
    sign: Tensor
    steepness: Tensor

    def to(self, dtype: torch.dtype) -> _Pairs:
        return _Pairs(self.apart.to(dtype), self.sign.to(dtype), self.steepness.to(dtype))


def _layers(network: nn.Module) -> list[nn.Module]:
    """The layers in order, nested `nn.Sequential` taken apart; each admitted by the gate."""
    if type(network) is not nn.Sequential:
        operator_of(network)
        return [network]
    gate.admit(network)
    return [layer for part in network for layer in _layers(part)]


def _stages(decoder: nn.Module) -> list[_Stage]:
    stages: list[_Stage] = []
    for layer in _layers(decoder):
        if type(layer) is nn.Linear:
            if stages and not stages[-1].sort:
                raise UnsupportedError("two dense layers without a sort between")
            weight = layer.weight.detach().cpu().double()
            bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias
            norm = lipschitz_bound(layer) * (1 + _SPARE)
            stages.append(_Stage(weight, bias.detach().cpu().double(), norm, ""))
        elif type(layer) in (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout):
            continue
        elif not stages:
            raise UnsupportedError(f"a {type(layer).__name__} before the first dense layer")
        elif type(layer) is Scale and not stages[-1].sort:
            last, factor = stages[-1], layer.factor
            norm = last.norm * abs(factor) * (1 + _SPARE)
            stages[-1] = _Stage(last.weight * factor, last.bias * factor, norm, "")
        elif type(layer) is MaxMin or (type(layer) is GroupSort and layer.group == 2):
            last = stages[-1]
            kind = "halves" if type(layer) is MaxMin else "pairs"
            stages[-1] = _Stage(last.weight, last.bias, last.norm, kind)
        else:
            raise UnsupportedError(f"no tangent envelope through {type(layer).__name__}")
    if not stages or stages[-1].sort:
        raise UnsupportedError("a decoder that does not end in a dense layer")
    return stages


def _split(features: Tensor, sort: str) -> tuple[Tensor, Tensor]:
    """(u, v) of each pair, ordered so that a sort puts the larger into u's place."""
    if sort == "pairs":
        return features[..., 1::2], features[..., 0::2]
    one, two = features.chunk(2, -1)
    return one, two


def _joined(one: Tensor, two: Tensor, sort: str) -> Tensor:
    if sort == "pairs":
        return torch.stack([two, one], -1).flatten(-2)
    return torch.cat([one, two], -1)


def _center(stages: list[_Stage], z: Tensor) -> tuple[list[_Pairs], Tensor]:
    """The pairs of every sort, and the logits, at the latents."""
    pairs, features, norm = [], z, 1.0
    for stage in stages:
        features = features @ stage.weight.mT + stage.bias
        if stage.sort:
            u, v = _split(features, stage.sort)
            rounding = _SPARE * (1 + u.abs() + v.abs())
            rows = torch.sub(*_split(stage.weight.mT, stage.sort)).norm(dim=0) / 2**0.5
            distance = ((u - v).abs() / 2**0.5 - rounding).clamp_min(0)
            sign = torch.where(u >= v, 1.0, -1.0).to(z)
            pairs.append(_Pairs(distance, sign, rows * norm * (1 + _SPARE)))
            features = _joined(torch.maximum(u, v), torch.minimum(u, v), stage.sort)
        norm *= stage.norm
    return pairs, features


def _followed(
    stages: list[_Stage], pairs: list[_Pairs], tilt: Tensor, price: Tensor, reach: Tensor
) -> Tensor:
    """Bound on max_{||dz|| <= reach} [price ||e||^2 + tilt . e] over the logits' movement e, (B,).

    A sort keeps the sums of its pairs. Of the differences, with D at the center >= 0 and q after
    the move, it gives |q|: price ((|q| - D)^2 - (q - D)^2) + m (|q| - D) - w (q - D) is at most 0
    for w = m as long as m <= 2 price D, else at most (move - D) (m - 2 price D) for the w below.
    """
    excess_sum = torch.zeros_like(reach)
    for stage, ordering, before in zip(stages[:0:-1], stages[-2::-1], pairs[::-1], strict=True):
        excess_sum = excess_sum + 1e-10 * tilt.norm(dim=1) * stage.norm * reach  # rounding
        tilt, price = tilt @ stage.weight, price * stage.norm**2
        one, two = _split(tilt, ordering.sort)
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


def _reach(stages: list[_Stage], z: Tensor, r: Tensor, start: Tensor, steps: int) -> Tensor:
    pairs, logits = _center(stages, z)
    tilt, price, guess = _multipliers(stages, pairs, logits, start, r, steps)
    cell = (r / (2 * logits.shape[1] ** 0.5)).clamp_max(_CELL)
    budget = r**2 * (1 - _SPARE) - _excess(logits, tilt, price, cell) * (1 + _SPARE)
    return bounds.largest(
        lambda reach: _followed(stages, pairs, tilt, price, reach) * (1 + _SPARE) <= budget,
        guess * 1.1,
        steps=20,
    )


def _multipliers(
    stages: list[_Stage],
    pairs: list[_Pairs],
    logits: Tensor,
    reach: Tensor,
    r: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tilts (B, D) and prices (B,) that promise the largest reach, and that reach.

    In float64: in float32 the rounding of a batch grows along the search until an input's radius
    depends on its neighbors.

    Of the logits only those near 0 are looked at: the others' best move is where f is 0.
    """
    stages = [stage.to(torch.float64) for stage in stages]
    pairs = [pair.to(torch.float64) for pair in pairs]
    near = logits.abs().topk(min(_NEAR, logits.shape[1]), largest=False).indices
    y = logits.gather(1, near)
    start = torch.sigmoid(y)
    moves = torch.logspace(-0.7, math.log10(_FAR), _TRIED).to(y)
    moves = torch.where(y >= 0, -1.0, 1.0).to(y)[:, :, None] * moves
    gain = (torch.sigmoid(y[:, :, None] + moves) - start[:, :, None]).square()
    square = moves.square()

    picks: list[Tensor] = []

    def excess(tilt: Tensor, price: Tensor, step: int = 0) -> Tensor:
        local_tilt, cost = tilt.gather(1, near), price[:, None]
        with torch.no_grad():
            # between looks at all moves the last one is followed: it wanders little in a few steps
            if step % _LOOK == 0:
                worth = torch.addcmul(gain, cost[:, :, None], square, value=-1)
                worth = worth.addcmul_(local_tilt[:, :, None], moves, value=-1)
                picks[:] = [moves.gather(2, worth.argmax(2, keepdim=True))[:, :, 0]]
            flip = picks[0] = _newton(picks[0], y, start, local_tilt, cost)
            mirror_gain = (torch.sigmoid(y + flip) - start).square()
            small = -local_tilt / (2 * cost)
            slid = (torch.sigmoid(y + small) - start).square()
        flips = mirror_gain - cost * flip.square() - local_tilt * flip
        slides = slid - cost * small.square() - local_tilt * small
        aside = (tilt.square().sum(1) - local_tilt.square().sum(1)) / (4 * price)
        return torch.maximum(flips, slides).sum(1) + aside

    norm = math.prod(stage.norm for stage in stages)
    reach = reach.double()
    tilt = torch.zeros(logits.shape, dtype=torch.float64)
    flat_price = r**2 / (norm * reach).square()
    starts = torch.stack([share * flat_price for share in (0.4, 0.55, 0.7, 0.85, 1.0)])
    gains = torch.stack([(r**2 - excess(tilt, price)) / price for price in starts])
    log_price = starts.gather(0, gains.argmax(0, keepdim=True))[0].log()
    unit = (r**2 / (4 * norm * reach * logits.shape[1] ** 0.5))[:, None]
    best, best_tilt, best_price = reach.clone(), tilt.clone(), log_price.exp()
    tilt.requires_grad_(True)
    log_price.requires_grad_(True)
    with torch.enable_grad():
        optimizer = torch.optim.Adam([tilt, log_price], lr=_RATE)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = _RATE * (1 - 0.95 * step / steps)
            scaled, price = tilt * unit / _RATE, log_price.exp()
            total = excess(scaled, price, step) + _followed(stages, pairs, scaled, price, reach)
            slope = (2 * price * norm**2 * reach).detach()
            optimizer.zero_grad()
            (total / slope).sum().backward()
            with torch.no_grad():
                better = (total <= r**2) & (reach >= best)
                best = torch.where(better, reach, best)
                best_tilt = torch.where(better[:, None], scaled, best_tilt)
                best_price = torch.where(better, price, best_price)
                reach = (reach + (r**2 - total) / slope).clamp(0.8 * reach, 1.2 * reach).detach()
            optimizer.step()
    return best_tilt.detach().double(), best_price.detach().double(), best.double()


def _newton(move: Tensor, y: Tensor, start: Tensor, tilt: Tensor, price: Tensor) -> Tensor:
    """One step towards the maximum of phi from points of a grid, at most to the next point."""
    end = torch.sigmoid(y + move)
    change, steep = end - start, end * (1 - end)
    slope = 2 * change * steep - 2 * price * move - tilt
    curve = 2 * steep.square() + 2 * change * steep * (1 - 2 * end) - 2 * price
    step = slope / (-curve).clamp_min(1e-6)
    return move + torch.maximum(torch.minimum(step, 0.3 * move.abs()), -0.3 * move.abs())


def _excess(logits: Tensor, tilt: Tensor, price: Tensor, cell: float | Tensor = _CELL) -> Tensor:
    """Upper bound on sum_i max_e phi_i(e), phi_i(e) = f_i(e) - price e^2 - tilt_i e, (B,).

    Moves are cut into cells, and those cells that may hold the maximum into finer ones. Beyond
    them phi < 0 = phi(0), since f < 1. Where y is far from 0, f is next to nothing in all cells.
    """
    values = []
    cells = torch.as_tensor(cell).expand(len(logits)).tolist()
    for y, n, cost, size in zip(logits, tilt, price.tolist(), cells, strict=True):
        end = float((n.abs() + (n.square() + 4 * cost).sqrt()).amax()) / (2 * cost)
        flat = y.abs() > end + _FLAT
        total = float((n[flat].square() / (4 * cost) + math.exp(-2 * _FLAT)).sum())
        y, n = y[~flat], n[~flat]
        width = size * _FINER
        centers = torch.arange(math.ceil(2 * end / width) + 1, dtype=torch.float64) * width
        centers = (centers - centers[-1] / 2).expand(len(y), -1)
        value, upper = _cells(y[:, None], n[:, None], cost, centers, width / 2)
        row, column = (upper >= value.amax(1, keepdim=True).clamp_min(0)).nonzero(as_tuple=True)
        finer = (torch.arange(_FINER, dtype=torch.float64) + 0.5) * size - width / 2
        within = centers[row, column][:, None] + finer
        _, upper = _cells(y[row, None], n[row, None], cost, within, size / 2)
        greatest = torch.zeros_like(y).scatter_reduce(0, row, upper.amax(1), "amax")
        values.append(total + float(greatest.sum()))
    return torch.tensor(values, dtype=torch.float64)


def _cells(
    y: Tensor, n: Tensor, cost: float, centers: Tensor, half: float
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
