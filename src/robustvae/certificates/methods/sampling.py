"""Draws of a smoothed victim, input by input, and which of them in order bound a quantile.

Each input's draws come from its own generator, in batches of that input alone, so that its
neighbors change nothing about them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from torch import Tensor

from robustvae.certificates.methods.base import chunks
from robustvae.defenses import Victim
from robustvae.defenses.draws import check_values
from robustvae.defenses.independence import Independence, noise_of, ready
from robustvae.defenses.noise import GRID
from robustvae.errors import NonFiniteError
from robustvae.loops import in_turn
from robustvae.seeding import row_generators

_VALUES_AT_ONCE = 2**18  # numbers of one batch of inputs: with its activations it fits a cache
# of each decision, so that a draw that all rows of a batch share is made often enough to be seen
_BATCHES = 32
_FEWEST = 16  # rows of a batch, unless an output of many numbers or few draws leave less
_CENTER_DRAWS = 128  # the center's own error lengthens the distance of a draw by 0.4 % then

Statistic = Callable[[Tensor], Tensor]
"""Outputs (n, ...) to numbers (n,)."""


@final
@dataclass(frozen=True, eq=False)
class Sampler:
    """Independent draws of a victim with noise on its input.

    Attributes:
        victim: The victim; its defense is `InputNoise`.
        x: Inputs, (B, C, H, W).
        rows: The inputs' own numbers.
        seed: All draws follow from it, a purpose and the input's number.
        draws: How many decide about an input, the first time that is asked.
        independence: What looks at the victim before, during and after its draws.
    """

    victim: Victim
    x: Tensor
    rows: tuple[int, ...]
    seed: int
    draws: int
    independence: Independence = field(init=False)

    def __post_init__(self) -> None:
        """Raise unless the victim has noise on its input and treats every row alone."""
        noise_of(self.victim)
        looks = Independence(self.victim, self.x, self.at_once)
        object.__setattr__(self, "independence", looks)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Within: draws are made; at its end the victim is looked at once more.

        Raises:
            UnsupportedError: The victim has changed meanwhile.
        """
        with ready(self.victim):
            yield
            self.independence.check_output()
        self.independence.check_state()

    @property
    def stddev(self) -> float:
        """The spread of the noise over the root of the votes, which one change moves together."""
        noise = noise_of(self.victim)
        return float(noise.stddev / noise.votes**0.5)

    @property
    def grid_slack(self) -> float:
        """How much longer than ||delta|| the step between grid points can be, in l2."""
        return float(self.x[0].numel() ** 0.5 * GRID)

    def generators(self, purpose: str) -> list[torch.Generator]:
        """A generator for each input."""
        return row_generators(self.seed, purpose, self.rows, self.x.device)

    def outputs(self, i: int, count: int, generator: torch.Generator) -> Tensor:
        """`count` outputs of the victim at input i, (count, ...)."""
        self.independence.check_generator(i, generator)
        rows = self.x[i : i + 1].expand(count, *self.x.shape[1:])
        return self.victim.reconstruct(rows, generator=generator)

    @property
    def at_once(self) -> int:
        """Draws of one batch: what fits, yet so few that a decision has many batches."""
        fits = max(1, _VALUES_AT_ONCE // (self.x[0].numel() * self.victim.votes))
        return min(fits, max(_FEWEST, self.draws // _BATCHES))

    def centers(self, kind: str) -> Tensor:
        """What displacements are measured from, (B, ...), float64.

        Args:
            kind: "own" for the victim's mean output, over draws used for nothing else; "mean" for
                the decoder's mean at the encoder's mean.

        Raises:
            NonFiniteError: A center with a NaN or an infinity.
        """
        with ready(self.victim):
            if kind == "mean":
                parts = [self._mean_output(x) for x in self.x.split(1)]
            else:
                parts = [
                    self._own_output(i, generator)
                    for i, generator in enumerate(self.generators("smoothing/center"))
                ]
        centers = torch.cat(parts)
        if not bool(centers.isfinite().all()):
            raise NonFiniteError("the clean reconstructions hold a NaN or an infinity")
        return centers

    def _mean_output(self, x: Tensor) -> Tensor:
        vae = self.victim.vae
        return vae.decode(vae.encode(x).mean).mean.double()

    def _own_output(self, i: int, generator: torch.Generator) -> Tensor:
        def some(count: int) -> Tensor:
            return self.outputs(i, count, generator).double().sum(0, keepdim=True)

        counts = [*chunks(_CENTER_DRAWS, self.at_once)]
        total: Tensor | float = 0.0
        for part in in_turn("center", counts, some, generator, self.x[i]):
            total = total + part
        return total / _CENTER_DRAWS  # type: ignore[return-value]

    def distances(self, i: int, center: Tensor | None, count: int, g: torch.Generator) -> Tensor:
        """`count` draws of ||Delta|| at input i, (count,), float64; infinite where no number.

        Args:
            i: Place of the input in the batch.
            center: What is subtracted, (1, ...); None for a second, independent output, of
                disjoint pairs.
            count: How many.
            g: Spent by the draws.
        """

        def some(n: int) -> Tensor:
            end = self.outputs(i, n, g).double()
            begin = self.outputs(i, n, g).double() if center is None else center
            return (end - begin).flatten(1).norm(dim=1)

        parts = in_turn("distances", [*chunks(count, self.at_once)], some, g, self.x[i])
        return torch.cat(parts).nan_to_num(nan=torch.inf, posinf=torch.inf)

    def check(self, values: Tensor) -> None:
        """Raise unless draws of numbers, (n,), in their order, vary as independent ones do."""
        check_values(values, self.at_once)

    def numbers(self, statistic: Statistic, i: int, count: int, g: torch.Generator) -> Tensor:
        """`count` draws of a statistic of the output at input i, (count,), float64.

        Raises:
            UnsupportedError: They do not vary as independent ones do.
        """

        def some(n: int) -> Tensor:
            return statistic(self.outputs(i, n, g)).detach().double().cpu()

        values = torch.cat(in_turn("numbers", [*chunks(count, self.at_once)], some, g, self.x[i]))
        self.check(values)
        return values


def upper_index(count: int, level: float, failure: float) -> int | None:
    """Which order statistic of `count` draws lies above the `level` quantile, or None if none does.

    The least k with P(Bin(count, level) >= k) <= failure.

    Examples:
        >>> from robustvae.certificates.methods.sampling import upper_index
        >>> upper_index(10, 0.5, 0.06), upper_index(3, 0.5, 0.06)
        (8, None)
    """
    from scipy.special import bdtrc

    if level >= 1:
        return None
    at_least = bdtrc(np.arange(count), count, level)  # P(Bin > j) = P(Bin >= j + 1), j + 1 = 1..n
    within = np.nonzero(at_least <= failure)[0]
    return int(within[0]) + 1 if len(within) else None


def lower_index(count: int, level: float, failure: float) -> int | None:
    """Which order statistic of `count` draws lies below the `level` quantile, or None if none does.

    The largest k with P(Bin(count, level) <= k - 1) <= failure.

    Examples:
        >>> from robustvae.certificates.methods.sampling import lower_index
        >>> lower_index(10, 0.5, 0.06), lower_index(3, 0.5, 0.06)
        (3, None)
    """
    from scipy.special import bdtr

    if level <= 0:
        return None
    at_most = bdtr(np.arange(count), count, level)  # P(Bin <= k - 1), k = 1..n
    within = np.nonzero(at_most <= failure)[0]
    return int(within[-1]) + 1 if len(within) else None
