"""How step sizes are steered during a run of HMC, as values.

An adaptation keeps nothing on itself: what it has learnt so far travels in a `Tuning`, so that
images of one batch, and one batch and the next, never tune each other's samplers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from robustvae.errors import RangeError, check_count, check_probability
from robustvae.registry import family_base, register


@final
@dataclass(frozen=True, eq=False)
class Tuning:
    """What an adaptation knows after some transitions.

    Attributes:
        size: The step size of the next transition, (B,).
        first: The step size at the start, (B,).
        mean_log: Weighted mean of the log step sizes so far, (B,); dual averaging's answer.
        mean_gap: Weighted mean of wanted minus seen acceptance so far, (B,).
    """

    size: Tensor
    first: Tensor
    mean_log: Tensor
    mean_gap: Tensor


@family_base("adaptation")
class Adaptation(ABC):
    """Steers step sizes towards an acceptance during a warm-up, which counts for nothing else."""

    warmup: int | None

    def warmup_steps(self, steps: int) -> int:
        """Transitions of a run of `steps` that are warm-up.

        Raises:
            RangeError: More of them were asked for than there are.
        """
        count = self._default_warmup(steps) if self.warmup is None else self.warmup
        if count > steps:
            raise RangeError(f"warmup must be at most {steps} steps, got {count}")
        return count

    def begin(self, size: Tensor) -> Tuning:
        """What is known before the first transition, from the first step sizes, (B,)."""
        return Tuning(size, size, size.log(), torch.zeros_like(size))

    @abstractmethod
    def update(self, tuning: Tuning, acceptance: Tensor, t: int, warmup: int) -> Tuning:
        """What is known after transition `t`, counted from 0.

        Args:
            tuning: What was known before it.
            acceptance: Its acceptance probabilities, (B,).
            t: Its number.
            warmup: Transitions of the warm-up.
        """

    @abstractmethod
    def part(self, start: int, count: int, steps: int) -> Adaptation:
        """The adaptation for `count` transitions from `start` on, of a run of `steps` in all."""

    @abstractmethod
    def _default_warmup(self, steps: int) -> int: ...


@dataclass(frozen=True)
class _Steered(Adaptation):
    """An adaptation that aims at an acceptance, over the first half of a run unless said."""

    acceptance: float = 0.9
    warmup: int | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        check_probability(self.acceptance, "acceptance")
        if self.warmup is not None:
            check_count(self.warmup, "warmup", least=0)

    def part(self, start: int, count: int, steps: int) -> Adaptation:
        """All of the part while the run's warm-up lasts, then a fixed step."""
        warm = start < self.warmup_steps(steps)
        return replace(self, warmup=count) if warm else FixedStep()

    def _default_warmup(self, steps: int) -> int:
        return steps // 2


@register("adaptation", "per-chain")
@final
@dataclass(frozen=True)
class PerChain(_Steered):
    """Each chain's own step size moves towards an acceptance, by steps that shrink; then it stays.

    log size += 2 / sqrt(t + 1) (acceptance seen - wanted), over the warm-up.

    Args:
        acceptance: Mean acceptance probability wanted, in (0, 1).
        warmup: Transitions that adapt; None is half of the run.

    Raises:
        RangeError: An acceptance or a count that is out of range.

    Examples:
        >>> from robustvae.mcmc import PerChain
        >>> PerChain().warmup_steps(100)
        50
    """

    def update(self, tuning: Tuning, acceptance: Tensor, t: int, warmup: int) -> Tuning:
        """What is known after transition `t`."""
        if t >= warmup:
            return tuning
        # The sum of the 1/sqrt(t) diverges, so any start is left behind; that of their squares
        # would have to converge for a limit, which a warm-up of a few dozen steps has no use for.
        # The 2 takes a start that is 100 times too long to its place in about ten transitions.
        gain = 2 * (t + 1) ** -0.5
        return replace(tuning, size=tuning.size * torch.exp(gain * (acceptance - self.acceptance)))


@register("adaptation", "dual-averaging")
@final
@dataclass(frozen=True)
class DualAveraging(_Steered):
    """Nesterov's dual averaging of the log step size, as in the No-U-Turn sampler.

    Args:
        acceptance: Mean acceptance probability wanted, in (0, 1).
        warmup: Transitions that adapt; None is half of the run.

    Raises:
        RangeError: An acceptance or a count that is out of range.

    References:
        Hoffman & Gelman, 2014, Eq. 6.

    Examples:
        >>> from robustvae.mcmc import DualAveraging
        >>> DualAveraging(warmup=20).warmup_steps(100)
        20
    """

    def update(self, tuning: Tuning, acceptance: Tensor, t: int, warmup: int) -> Tuning:
        """What is known after transition `t`."""
        if t >= warmup:
            return tuning
        # The paper's constants: t0 = 10 holds the first, wild transitions down; gamma = 0.05 and
        # kappa = 0.75 set how quickly what was seen is believed; 10 times the first step is where
        # the search is drawn to, since long steps are the cheap side to be wrong on.
        gap = tuning.mean_gap + (self.acceptance - acceptance - tuning.mean_gap) / (t + 11)
        log_size = (10 * tuning.first).log() - (t + 1) ** 0.5 / 0.05 * gap
        weight = (t + 1) ** -0.75
        mean_log = weight * log_size + (1 - weight) * tuning.mean_log
        # The last transition of the warm-up switches to the average, which is what is proved to
        # converge; the iterates themselves keep swinging.
        size = (mean_log if t == warmup - 1 else log_size).exp()
        return Tuning(size, tuning.first, mean_log, gap)


@register("adaptation", "batch-wide")
@final
@dataclass(frozen=True)
class BatchWide(_Steered):
    """[Kuzina22]'s rule: one step size for the whole batch, moved by up to 1 % a transition.

    Warning:
        It never stops, so the chain's law is slightly off the target, and chains of one batch
        depend on each other. It is here to repeat the paper.

    Args:
        acceptance: Mean acceptance probability wanted, in (0, 1).
        warmup: Transitions left out of statistics and positions; None is none.

    Raises:
        RangeError: An acceptance or a count that is out of range.

    References:
        [Kuzina22] Algorithm 1 and appendix.

    Examples:
        >>> from robustvae.mcmc import BatchWide
        >>> BatchWide().warmup_steps(100)
        0
    """

    def update(self, tuning: Tuning, acceptance: Tensor, t: int, warmup: int) -> Tuning:
        """What is known after transition `t`."""
        # 0.01 is the paper's rate, relative to the acceptance wanted.
        change = 0.01 * (acceptance.mean() - self.acceptance) / self.acceptance
        return replace(tuning, size=tuning.size * (1 + change))

    def part(self, start: int, count: int, steps: int) -> Adaptation:
        """Itself: it knows neither begin nor end."""
        return replace(self, warmup=0)

    def _default_warmup(self, steps: int) -> int:
        return 0


@register("adaptation", "fixed-step")
@final
@dataclass(frozen=True)
class FixedStep(Adaptation):
    """The step size stays as it is given.

    Args:
        warmup: Transitions left out of statistics and positions; None is none.

    Raises:
        RangeError: A negative count.

    Examples:
        >>> from robustvae.mcmc import FixedStep
        >>> FixedStep(warmup=5).warmup_steps(100)
        5
    """

    warmup: int | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        if self.warmup is not None:
            check_count(self.warmup, "warmup", least=0)

    def update(self, tuning: Tuning, acceptance: Tensor, t: int, warmup: int) -> Tuning:
        """What was known before."""
        return tuning

    def part(self, start: int, count: int, steps: int) -> Adaptation:
        """A fixed step."""
        return FixedStep()

    def _default_warmup(self, steps: int) -> int:
        return 0
