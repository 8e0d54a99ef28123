"""What a goal is, and the readings of a victim that goals share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustvae.arguments import checked, checked_fields
from robustvae.defenses import Victim
from robustvae.errors import ShapeError, check_images
from robustvae.perturb import Score
from robustvae.perturb.ascent import VALUES_AT_ONCE
from robustvae.registry import family_base
from robustvae.seeding import RowGenerator, by_row, randn
from robustvae.seeding import generator as new_generator


@family_base("goal")
@runtime_checkable
class Goal(Protocol):
    """What an attacker wants; `bind` looks at the clean inputs once and returns the score.

    A goal whose deployed system computes something else than what can be differentiated (a
    rounded code, a decision, a similarity cut at 0) also has `report(victim, x, *, generator)`,
    which returns that score in the same form. Searches climb the first, keep the restart that is
    best by the second, and `AttackResult.score` is the second.
    """

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The score of candidates for the inputs `x`.

        Args:
            victim: What is attacked.
            x: Clean images, (B, C, H, W).
            generator: Spent on whatever the score draws; it draws once, so the score is a
                fixed function afterwards. Draws are by row, see `robustvae.seeding.by_row`.

        Returns:
            `score(y, rows) -> (n,)`, higher is better for the attacker, differentiable in `y`;
            row i of `y` is a candidate for input `rows[i]`.
        """
        ...


@final
@dataclass(frozen=True)
class BoundGoal:
    """A search score with the reported score beside it, by which searches keep restarts."""

    search: Score
    reported: Score

    def __call__(self, y: Tensor, rows: Tensor) -> Tensor:
        """The search score."""
        return self.search(y, rows)


@checked()
def bound(goal: Goal, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
    """The goal's search score, with its reported score where that is another one.

    Args:
        goal: What the attacker wants.
        victim: What is attacked.
        x: Clean images, (B, C, H, W).
        generator: Spent by both scores.
    """
    report = getattr(goal, "report", None)
    if report is None:
        return goal.bind(victim, x, generator=generator)
    streams = by_row(generator, "goal", x)
    reported = report(victim, x, generator=streams.clone_state())
    return BoundGoal(goal.bind(victim, x, generator=streams), reported)


@checked()
def reported(goal: Goal, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
    """The score that the deployed system computes: `report` where the goal has it, else `bind`."""
    report: Callable[..., Score] = getattr(goal, "report", goal.bind)
    return report(victim, x, generator=generator)


@checked_fields
@final
class Readings:
    """What a victim reads off candidates under noises that are fixed once for each input.

    Args:
        read: A method of the victim: images and `generator=` to a tensor with a row for each.
        victim: The victim, whose defense says how many rows it takes at once.
        x: Clean images, (B, C, H, W).
        draws: Noises of each input; one is enough where the victim is not random.
        generator: Spent by the noises.
        probe: Find out by two readings whether they differ, whatever the defense says of itself.
    """

    def __init__(
        self,
        read: Callable[..., Tensor],
        victim: Victim,
        x: Tensor,
        draws: int,
        generator: torch.Generator,
        *,
        probe: bool = False,
    ) -> None:
        self._read, self._chunk = read, rows_at_once(victim)
        streams = by_row(generator, "readings", x).streams
        top = torch.iinfo(torch.int64).max
        # as many seeds as draws, and two at least: a random victim shows itself by two of them
        self._seeds = [
            torch.randint(top, (max(2, draws),), generator=stream, device=stream.device).tolist()
            for stream in streams
        ]
        self._device = streams[0].device
        self.random = None if probe else is_random(victim)
        if self.random is None:
            with torch.no_grad():
                one, other = (read(x[:1], generator=self._streams([0], draw)) for draw in range(2))
            self.random = not torch.equal(one, other)
        self.draws = draws if self.random else 1

    def __call__(self, y: Tensor, rows: Tensor) -> Tensor:
        """Readings of `y`, (draws, n, ...); row i under the noises of input `rows[i]`."""
        return torch.stack(list(self.each(y, rows)))

    def averaged(self, of: Callable[[Tensor, Tensor], Tensor], y: Tensor, rows: Tensor) -> Tensor:
        """The mean over the noises of a number for each row, (n,), in the memory of one noise.

        Large inputs' graphs do not fit side by side: there the slope of each noise is taken at
        once and its graph freed, which allows no second derivatives.

        Args:
            of: A noise's readings, (n, ...), and `rows` to numbers, (n,), of each row alone.
            y: Candidates, (n, C, H, W).
            rows: The input of each, (n,).
        """
        has_slope = torch.is_grad_enabled() and y.requires_grad
        if not has_slope or self.draws * y.numel() <= VALUES_AT_ONCE:
            return torch.stack([of(reading, rows) for reading in self.each(y, rows)]).mean(0)
        leaf = y.detach().requires_grad_()
        value, slope = y.new_zeros(len(y)), torch.zeros_like(leaf)
        for reading in self.each(leaf, rows):
            part = of(reading, rows)
            value += part.detach()
            (grad,) = torch.autograd.grad(part.sum(), leaf, materialize_grads=True)
            slope += grad
        return _Sloped.apply(y, value / self.draws, slope / self.draws)

    def each(self, y: Tensor, rows: Tensor) -> Iterator[Tensor]:
        """The readings of `y` under one noise after the other, (n, ...) each."""
        places = rows.tolist()
        for draw in range(self.draws):
            if not self.random:
                yield self._read(y, generator=self._streams(places, draw))
                continue
            parts = [
                self._read(part, generator=self._streams(places[begin : begin + len(part)], draw))
                for begin, part in zip(
                    range(0, len(y), self._chunk), y.split(self._chunk), strict=True
                )
            ]
            yield torch.cat(parts)

    def _streams(self, places: list[int], draw: int) -> RowGenerator:
        return RowGenerator(
            [new_generator(self._seeds[place][draw], self._device) for place in places]
        )


class _Sloped(torch.autograd.Function):
    """Numbers of rows, whose slopes are known already."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pulled: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return pulled.view(-1, *(1,) * (slope.ndim - 1)) * slope, None, None


def is_random(victim: Victim) -> bool | None:
    """Whether two readings of one image can differ, as the defense says; None where it does not."""
    statement = getattr(victim.defense, "is_random", None)
    return statement if isinstance(statement, bool) else None


def targets(target: Tensor, x: Tensor) -> Tensor:
    """A target image for each input, (B, C, H, W).

    Raises:
        ShapeError: A target for another number of inputs.
    """
    check_images(target, tuple(x.shape[1:]), name="target", low=None, high=None)  # type: ignore[arg-type]
    if len(target) not in (1, len(x)):
        raise ShapeError(
            f"target must be one image or one for each of {len(x)} inputs, got {len(target)}"
        )
    return target.to(x).expand(len(x), *x.shape[1:])


def distance(a: Tensor, b: Tensor) -> Tensor:
    """2-norm over the pixels of each image, (..., n), of (..., n, C, H, W).

    Where a = b its slope is a fixed unit vector, which is a subgradient as good as torch's 0: a
    climb that starts where rounding on the way keeps the output still leaves that point.

    Examples:
        >>> import torch
        >>> from robustvae.attacks.goals.base import distance
        >>> a = torch.zeros(1, 1, 2, 2, requires_grad=True)
        >>> slope, = torch.autograd.grad(distance(a, torch.zeros(1, 1, 2, 2)).sum(), a)
        >>> round(slope.norm().item(), 4)
        1.0
    """
    gap = (a - b).flatten(-3)
    length = torch.linalg.vector_norm(gap, dim=-1)
    if not length.requires_grad:
        return length
    return torch.where(
        length > 0, length, (gap * _direction(gap.shape[-1], gap.dtype, gap.device)).sum(-1)
    )


@functools.lru_cache(maxsize=8)
def _direction(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same unit vector for every row, with no pattern that a filter would remove."""
    like = torch.empty(0, dtype=dtype, device=device)
    noise = randn(count, like=like, generator=new_generator(0, device))
    return noise / torch.linalg.vector_norm(noise)


def rows_at_once(victim: Victim) -> int:
    """How many rows the victim's defense, or what it wraps, runs at once."""
    sizes: list[int] = [2**16]
    defense: Any = victim.defense
    while defense is not None and len(sizes) < 10:  # wrapped ten deep: a loop
        chunk = getattr(defense, "chunk", None)
        sizes.append(chunk if isinstance(chunk, int) and chunk > 0 else 2**16)
        defense = getattr(defense, "defense", None)
    return min(sizes)
