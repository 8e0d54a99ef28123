"""The penalty sweep: targeted attacks at every weight of the distortion, all in one batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.arguments import checked, checked_fields
from robustvae.attacks.attack import ready
from robustvae.attacks.goals import LatentTarget, OutputTarget
from robustvae.defenses import Victim
from robustvae.display import three_lines
from robustvae.errors import RangeError, ShapeError, check_count
from robustvae.perturb import Ball, Score, minimize
from robustvae.perturb.ascent import evaluate
from robustvae.perturb.lbfgs import Objective, Schedule, Stopping
from robustvae.seeding import split

GAIN = 1e-7  # of the objective: what three evaluations in a row must not fall short of
_NEGLIGIBLE = 1e-5  # of |score(x)|: what a penalty must be able to cost to be looked at
_NEAR = 1e-2  # of |score(x)|: where a penalty cannot cost more, the objective may end near 0
_FIRST = 0.6  # of the evaluations are for the first pass


@checked(formula=True)
def penalties(count: int = 50, least: float = -20.0, most: float = 20.0) -> tuple[float, ...]:
    """0, and 2^c for `count` values of c evenly spread over [least, most].

    References:
        Gondim-Ribeiro et al., 2018; [Willetts21] section 5.

    Examples:
        >>> from robustvae.attacks import penalties
        >>> len(penalties()), penalties(3, -1.0, 1.0)
        (51, (0.0, 0.5, 1.0, 2.0))
    """
    check_count(count, "count", least=2)
    exponents = torch.linspace(least, most, count, dtype=torch.float64)
    return (0.0, *(2.0**exponents).tolist())


@final
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
class SweepResult:
    """What a sweep found: B pairs of input and target by P penalties.

    Attributes:
        x_adv: Attacked images in [0, 1], (B, P, C, H, W).
        size: ||x_adv - x||_2 in pixel units, (B, P).
        score: The goal's score, (B, P).
        objective: What was minimized, penalty x size - score, (B, P).
        penalties: (P,).
        chosen: The penalty whose attack is shown, by `select_penalty`, (B,) int.
        auddc: Area under the distortion-distortion curve, (B,); see `auddc`.
        evaluations: Objective and gradient evaluations, (B, P) int; 0 for penalties so small that
            they share the least one's.
    """

    x_adv: Tensor
    size: Tensor
    score: Tensor
    objective: Tensor
    penalties: Tensor
    chosen: Tensor
    auddc: Tensor
    evaluations: Tensor


@checked_fields
@final
@dataclass(frozen=True)
class PenaltySweep:
    """Minimize penalty x ||d||_2 - score(x + d) by L-BFGS over the pixel range, for every penalty.

    All pairs and penalties run together. Every second penalty starts from x, the others from
    where the next smaller one ended; then each takes the best of all points found for its pair,
    and those that gained by it go on from there. A pair at one penalty is done when three
    evaluations in a row, the start counted as one, gained less than 1e-7 of its objective, at
    least 1e-9 |score(x)|, or 1e-6 |score(x)| for penalties that cost less than a hundredth of
    |score(x)| anywhere in the pixel range. Those that cost less than 1e-5 |score(x)| share the
    least one's search.

    Args:
        goal: `LatentTarget` or `OutputTarget`.
        weights: Penalties, at least two, none negative; by default the 51 of the papers.
        steps: Most evaluations of each pair at each penalty.
        chunk: Rows (pairs x penalties) in one evaluation.
        warm: Whether penalties use each other's points as starts; otherwise all start from x, and
            only the best of all points is taken in the end.

    Raises:
        RangeError: Fewer than two penalties, or a negative one.

    References:
        Gondim-Ribeiro et al., 2018; [Willetts21] Eq. 9-12 and section 5.

    Examples:
        >>> from robustvae.attacks import LatentTarget, PenaltySweep
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x = torch.rand(3, 1, 4, 4)
        >>> sweep = PenaltySweep(LatentTarget(x.flip(0)), weights=(0.0, 0.1, 1.0), steps=5)
        >>> sweep(rv.Victim(vae), x, generator=rv.generator(0)).size.shape
        torch.Size([3, 3])
    """

    goal: LatentTarget | OutputTarget
    weights: tuple[float, ...] = penalties()
    steps: int = 200
    chunk: int = 250
    warm: bool = True

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_count(self.steps, "steps")
        check_count(self.chunk, "chunk")
        if len(self.weights) < 2 or min(self.weights) < 0:
            raise RangeError("a sweep needs at least two penalties, none of them negative")

    def __call__(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> SweepResult:
        """Attack each of `x` towards its target at every penalty.

        Args:
            victim: What is attacked.
            x: Images in [0, 1], (B, C, H, W).
            generator: Spent by the goal's noises and the defense.
        """
        for_search, for_images = split(generator, 2)
        count = len(self.weights)
        with ready(victim, x, Ball("l2", 1.0)) as clean:
            score = self.goal.bind(victim, clean, generator=for_search)
            weights = torch.tensor(self.weights, dtype=clean.dtype, device=clean.device)
            start_value, _ = evaluate(score, clean, torch.arange(len(x)), gradient=False)
            cost = weights * _reach(clean).unsqueeze(1)
            is_costly = cost > _NEGLIGIBLE * start_value.abs().unsqueeze(1)
            is_costly[:, weights.argmin()] = True
            scale = gain_scale(cost, start_value.unsqueeze(1))
            box = torch.zeros_like(clean[:1].flatten(1)), torch.ones_like(clean[:1].flatten(1))
            y = clean.unsqueeze(1).repeat(1, count, 1, 1, 1)
            best_value = start_value.unsqueeze(1).repeat(1, count)
            evaluations = torch.zeros_like(is_costly, dtype=torch.long)
            rows = torch.arange(len(x), device=clean.device).unsqueeze(1)
            first = math.ceil(_FIRST * self.steps) if self.warm else self.steps
            after, todo = _after(is_costly, weights) if self.warm else None, is_costly
            for steps in (first, self.steps - first):
                if not steps or not bool(todo.any()):
                    break
                pairs, which = todo.nonzero(as_tuple=True)
                end = minimize(
                    _objective(score, clean, pairs, weights[which]),
                    y[todo].flatten(1),
                    *(bound.expand(len(pairs), -1) for bound in box),
                    stopping=Stopping(steps=steps, value_tolerance=GAIN, scale=scale[todo]),
                    schedule=Schedule(together=self.chunk, after=after),
                )
                y[todo] = end.y.view(-1, *x.shape[1:])
                evaluations[todo] += end.evaluations
                size = torch.linalg.vector_norm((y - clean.unsqueeze(1)).flatten(2), dim=2)
                best_value[todo] = weights[which] * size[todo] - end.value
                value = weights * size - best_value
                # every penalty may use what the search found for another one
                best = (
                    weights.view(1, -1, 1) * size.unsqueeze(1) - best_value.unsqueeze(1)
                ).argmin(2)
                y, size, best_value = y[rows, best], size[rows, best], best_value[rows, best]
                gain = value - (weights * size - best_value)
                value = value - gain
                after, todo = None, is_costly & (gain > GAIN * torch.maximum(value.abs(), scale))
            target = self.goal.target.to(clean).expand_as(clean)

            def read(image: Tensor) -> Tensor:
                with torch.no_grad():
                    return victim.reconstruct(image, generator=for_images)

            x_hat = torch.stack([read(y[:, k]) for k in range(count)], dim=1)
            area = auddc(clean, target, read(clean), read(target), y, x_hat)
        return SweepResult(
            y,
            size,
            best_value,
            value,
            weights,
            select_penalty(value, weights),
            area,
            evaluations,
        )


def gain_scale(cost: Tensor, rest: Tensor) -> Tensor:
    """The least that a gain is held against, of penalties by the most that they can cost.

    Args:
        cost: Penalty times the longest step within the pixel range.
        rest: score(x).

    Examples:
        >>> import torch
        >>> from robustvae.attacks.sweep import gain_scale
        >>> gain_scale(torch.tensor([1e-3, 1.0]), torch.tensor(2.0))
        tensor([2.0000e+01, 2.0000e-02])
    """
    return torch.where(cost < _NEAR * rest.abs(), 10.0, _NEAR) * rest.abs()


def _after(asked: Tensor, weights: Tensor) -> Tensor:
    """For every second penalty the place of the next smaller one among those asked; -1 for none."""
    place = torch.full_like(asked, -1, dtype=torch.long)
    place[asked] = torch.arange(int(asked.sum()), device=asked.device)
    smaller, larger = weights.argsort()[: len(weights) // 2 * 2].view(-1, 2).mT
    after = torch.full_like(place, -1)
    after[:, larger] = place[:, smaller]
    return after[asked]


def _objective(score: Score, x: Tensor, pairs: Tensor, weights: Tensor) -> Objective:
    images = x.flatten(1)

    def objective(flat: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        image, weight = pairs[k], weights[k]
        value, slope = evaluate(score, flat.view(-1, *x.shape[1:]), image)
        step = flat - images.index_select(0, image)
        size = torch.linalg.vector_norm(step, dim=1)
        pull = weight / size.where(size > 0, torch.inf)
        slope = torch.zeros_like(flat) if slope is None else slope.flatten(1).neg()
        slope.addcmul_(pull.unsqueeze(1), step)
        still = (size == 0).nonzero().squeeze(1)
        if len(still):
            slope[still] = _least(slope[still], flat[still], weight[still])
        return weight * size - value, slope

    return objective


def _reach(x: Tensor) -> Tensor:
    """2-norm of the longest step from each image within the pixel range, (B,)."""
    return torch.linalg.vector_norm(torch.maximum(x, 1 - x).flatten(1), dim=1)


def _least(slope: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """The least subgradient of weight x ||y - x|| - score at y = x, where the norm has its kink."""
    at_bound = ((y <= 0) & (slope > 0)) | ((y >= 1) & (slope < 0))
    length = torch.linalg.vector_norm(slope.masked_fill(at_bound, 0), dim=1)
    share = (1 - weight / length.clamp_min(torch.finfo(y.dtype).tiny)).clamp_min(0)
    return slope * share.unsqueeze(1)


@checked(formula=True)
def select_penalty(objective: Tensor, weights: Tensor) -> Tensor:
    """The penalty whose attack is shown: the largest one that attains the least objective above
    the mean over the positive penalties.

    Args:
        objective: What was minimized, (B, P).
        weights: Penalties, (P,), the first of them possibly 0.

    Returns:
        Index of the penalty, (B,); where none lies above the mean, that of the largest objective.

    References:
        Gondim-Ribeiro et al., 2018; [Willetts21] section 5.

    Examples:
        >>> import torch
        >>> from robustvae.attacks import select_penalty
        >>> objective = torch.tensor([[0.0, 1.0, 2.0, 6.0, 6.0, 9.0]])
        >>> select_penalty(objective, torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))
        tensor([4])
    """
    if objective.ndim != 2 or objective.shape[1] != len(weights):
        raise ShapeError(f"objective must be (B, {len(weights)}), got {tuple(objective.shape)}")
    positive = weights > 0
    mean = objective[:, positive].mean(1, keepdim=True)
    above = (objective > mean) & positive
    least = objective.where(above, torch.inf).amin(1, keepdim=True)
    hit = torch.where(above.any(1, keepdim=True), objective <= least, objective >= mean) & positive
    order = weights.expand_as(objective).where(hit, -1)
    return order.argmax(1)


@checked(formula=True)
def auddc(
    x: Tensor, target: Tensor, x_hat: Tensor, target_hat: Tensor, x_adv: Tensor, adv_hat: Tensor
) -> Tensor:
    """Area under the distortion-distortion curve of a penalty sweep: 1 is robust, 0 is lost.

    Each attack is a point: how far the input was moved, ||x_adv - x|| / ||target - x||, and how
    far the output still is from the target, (d - d_min) / (d_max - d_min), with
    d = ||adv_hat - target||, d_min = ||target_hat - target||, d_max = ||x_hat - target||. Sorted
    by the first, running minimum of the second, both clipped to [0, 1], from (0, 1) to x = 1,
    trapezoids.

    Args:
        x: Inputs, (B, C, H, W).
        target: Targets, (B, C, H, W).
        x_hat: Reconstructions of the inputs, (B, C, H, W).
        target_hat: Reconstructions of the targets, (B, C, H, W).
        x_adv: Attacked images, (B, P, C, H, W).
        adv_hat: Their reconstructions, (B, P, C, H, W).

    Returns:
        Areas in [0, 1], (B,).

    References:
        Gondim-Ribeiro et al., 2018, section 3; the normalization is ours.
    """

    def far(a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vector_norm((a - b).flatten(-3), dim=-1)

    tiny = torch.finfo(x.dtype).tiny
    share = far(x_adv, x.unsqueeze(1)) / far(target, x).clamp_min(tiny).unsqueeze(1)
    nearest = far(target_hat, target).unsqueeze(1)
    span = (far(x_hat, target).unsqueeze(1) - nearest).clamp_min(tiny)
    left = ((far(adv_hat, target.unsqueeze(1)) - nearest) / span).clamp(0, 1)
    share, order = share.clamp(0, 1).sort(1)
    lowest = left.gather(1, order).cummin(1).values
    ones = torch.ones_like(share[:, :1])
    grid = torch.cat([torch.zeros_like(ones), share, ones], 1)
    up = torch.cat([ones, lowest, lowest[:, -1:]], 1)
    return torch.trapezoid(up, grid, dim=1)
