"""Smoothing (ours for r-robustness): certificates for anything that runs, without its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from robustvae import bounds
from robustvae.certificates.methods.base import Finding, Task
from robustvae.certificates.methods.sampling import Sampler
from robustvae.defenses.draws import check_batches
from robustvae.defenses.independence import noise_of
from robustvae.errors import RangeError, check_count
from robustvae.metrics import clopper_pearson
from robustvae.registry import register

_HOPELESS = 1e-6  # chance of giving up on an input that could still be certified
_GAIN = 1.03  # further draws must promise a radius longer by 3 %
_BATCHES = 2  # between looks for a reason to give up
_LEAST = 200  # draws before giving up: where an output is large a batch is one draw


@register("certificate-method", "smoothing")
@final
@dataclass(frozen=True)
class Smoothing:
    """Any victim with noise on its input: what happens at the input goes on nearby (ours).

    With p the probability of ||Delta|| <= r at the input, under noise of spread s, it is at least
    Phi(Phi^-1(p) - ||delta|| / s) at the input + delta: of everything that has this p, a half-space
    falls fastest. So the radius is s (Phi^-1(p) - Phi^-1(m)), with a Clopper-Pearson lower bound
    for p from fresh draws. No weight is read: quantizers, HMC, black boxes and foreign models are
    covered. Of k votes s / sqrt(k) takes the place of s, since one change moves k noises.

    Args:
        draws: Draws that decide about an input, unless the caller says how many.
        most: The most draws, where more are to be spent on inputs of which more can be proved;
            the confidence is then split over the looks, look k taking 1 / (k (k + 1)) of it.

    Raises:
        RangeError: Counts that are not positive, or `most` below `draws`.

    References:
        Cohen et al., 2019, Theorem 1; Chiang et al., 2020 (percentiles).
    """

    draws: int = 10_000
    most: int | None = None

    kind: ClassVar[str] = "probabilistic"
    norms: ClassVar[tuple[str, ...]] = ("l2",)

    def __post_init__(self) -> None:
        """Validate the counts."""
        check_count(self.draws, "draws")
        if self.most is not None:
            check_count(self.most, "most")
            if self.most < self.draws:
                raise RangeError(f"most must be at least draws = {self.draws}, got {self.most}")

    def __call__(self, task: Task) -> Finding:
        """Radii by the lemma, from draws of each input alone."""
        noise, ask = noise_of(task.victim), task.question
        looks = self.looks(task.draws)
        sampler = Sampler(task.victim, task.x, task.rows, task.seed, looks[0])
        is_paired = ask.displacement == "paired"
        centers = None if is_paired else sampler.centers(ask.center)
        failure = 1 - task.confidence
        radii, simultaneous = [], []
        draws = torch.zeros(len(task.x), dtype=torch.long)
        with sampler.running():
            for i, generator in enumerate(sampler.generators("smoothing/draws")):
                center = None if centers is None else centers[i : i + 1]
                inside, count, look = self._decide(
                    sampler, i, center, looks, (ask.r, ask.m, failure), generator
                )
                draws[i] = count
                share = failure * _look_share(look, len(looks))
                radii.append(sampler_radius(sampler, inside, count, share, ask.m))
                # a union bound over the inputs, for radii that hold together
                split = share / task.count
                simultaneous.append(sampler_radius(sampler, inside, count, split, ask.m))
        assumption = (
            "the second draw of each pair"
            if is_paired
            else (
                "its own mean output over draws used for nothing else"
                if ask.center == "own"
                else "g(mu(x))"
            )
        )
        assumptions = [
            f"the victim as it runs, with noise of standard deviation {noise.stddev:g} on its "
            "input, fresh for every use and unknown to the attacker",
            f"draws in batches of {sampler.at_once}, independent and of one law as far as "
            "checks before, during and after them show",
            f"displacement from {assumption}; confidence {task.confidence:g} for each input",
        ]
        if ask.displacement == "centered":
            assumptions.append("of a victim with a defense, centered means the same as full")
        return Finding(
            {"smoothing": torch.tensor(radii, dtype=torch.float64)},
            tuple(assumptions),
            simultaneous=torch.tensor(simultaneous, dtype=torch.float64),
            centers=None if ask.center == "mean" else centers,
            spent=draws,
        )

    def looks(self, asked: int | None) -> list[int]:
        """Counts of draws after which a decision may be taken, rising."""
        first = asked or self.draws
        sizes, greatest = [first], max(first, self.most or 0)
        # doubled, so that no look costs more than all before it
        while sizes[-1] < greatest:
            sizes.append(min(2 * sizes[-1], greatest))
        return sizes

    @staticmethod
    def _decide(
        sampler: Sampler,
        i: int,
        center: Tensor | None,
        looks: list[int],
        ask: tuple[float, float, float],
        generator: torch.Generator,
    ) -> tuple[int, int, int]:
        """How many draws were inside, of how many, and at which look (from 1) it was decided.

        Giving up early costs no confidence, as nothing is claimed then.
        """
        r, m, failure = ask
        inside = count = 0
        hits, sizes, distances = list[int](), list[int](), list[Tensor]()
        for look, end in enumerate(looks, start=1):
            while count < end:
                n = min(_BATCHES * sampler.at_once, end - count)
                distances.append(sampler.distances(i, center, n, generator))
                for batch in (distances[-1] <= r).split(sampler.at_once):
                    hits.append(int(batch.sum()))
                    sizes.append(len(batch))
                inside, count = sum(hits), sum(sizes)
                is_enough = count >= min(_LEAST, looks[0])
                if is_enough and clopper_pearson(inside, count, 1 - _HOPELESS, sides=1)[1] <= m:
                    return 0, count, look
            check_batches(hits, sizes)
            # what batches share may be rare beyond r, and plain at the middle of all distances
            sampler.check(torch.cat(distances))
            if look < len(looks):
                share = failure * _look_share(look, len(looks))
                radius = sampler_radius(sampler, inside, count, share, m)
                share = failure * _look_share(look + 1, len(looks))
                # what the next look would say if its draws fell like those so far
                likely = math.floor(inside / count * looks[look])
                prospect = sampler_radius(sampler, likely, looks[look], share, m)
                if prospect <= _GAIN * radius:
                    return inside, count, look
        return inside, count, len(looks)


def _look_share(look: int, looks: int) -> float:
    """Share of the failure probability that a look may spend; all of it where there is but one."""
    return 1.0 if looks == 1 else 1 / (look * (look + 1))


def sampler_radius(sampler: Sampler, inside: int, count: int, failure: float, m: float) -> float:
    """The radius by the lemma from so many draws inside, of so many; 0 where nothing is proved."""
    low = clopper_pearson(inside, count, 1 - failure, sides=1)[0]
    if low <= m:
        return 0.0
    gap = float(torch.special.ndtri(torch.tensor([low, m], dtype=torch.float64)).diff().neg())
    return max(0.0, sampler.stddev * gap * (1 - bounds.SLACK) - sampler.grid_slack)


def shifted_level(level: float, size: float, sampler: Sampler, *, up: bool) -> float:
    """Phi(Phi^-1(level) + size / s), or minus it: a quantile's level that bounds the shifted one.

    Rounded away from `level`, with the step between grid points added to the size.
    """
    step = (size + sampler.grid_slack) / sampler.stddev if size > 0 else 0.0
    normal = torch.special.ndtri(torch.tensor(level, dtype=torch.float64))
    result = float(torch.special.ndtr(normal + (step if up else -step)))
    spare = bounds.CDF_SLACK
    return float(np.clip(result + (spare if up else -spare), 0.0, 1.0))
