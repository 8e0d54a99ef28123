"""How far an output moves: draws of ||Delta|| of a victim, each input by its own random numbers.

Delta has three forms, never mixed up. For a VAE that samples its own posterior N(mu, sigma^2):

- "centered" [Camuto21 Eqs. 1-3]: g(mu(x_adv) + eta sigma(x)) - c, eta standard normal. It keeps
  the spread of the clean input, and is defined for Gaussian posteriors only.
- "paired" [Barrett22]: g(z_adv) - g(z), independent draws z_adv ~ q(.|x_adv), z ~ q(.|x).
- "full": g(z_adv) - c, z_adv ~ q(.|x_adv): what the deployed model does.

g is the decoder's mean. The center c is g(mu(x)) ("mean"), or the mean output of the victim itself
at x over draws that are used for nothing else ("own"). With a defense T, random or not, "centered"
and "full" are both the output of what is deployed, g(T(x_adv)) - c, and "paired" is
g(T(x_adv)) - g(T(x)).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.attacks.goals.base import rows_at_once
from robustvae.certificates.question import CENTERS, DISPLACEMENTS, Displacement
from robustvae.defenses import Victim, is_random
from robustvae.errors import (
    NonFiniteError,
    ShapeError,
    check_choice,
    check_count,
    check_images,
    check_type,
)
from robustvae.models import Gaussian, PointMass
from robustvae.models.base import check_weights, frozen
from robustvae.models.hierarchy import check_gaussian
from robustvae.seeding import RowGenerator, by_row, draw, randn, split
from robustvae.seeding import generator as new_generator

_PIXELS_AT_ONCE = 2**18  # decoded rows that still fit a processor's cache
_BLOCK = 250  # draws made at a time: the same for all batches, so that chunks change no number
_CENTER_DRAWS = 256  # an own center need not be exact, only the same for all: it is part of Delta


@checked()
def displacements(
    victim: Victim,
    x: Tensor,
    x_adv: Tensor,
    displacement: Displacement,
    *,
    generator: torch.Generator,
    draws: int = 1000,
    chunk: int | None = None,
) -> Tensor:
    """Draws of ||Delta||, the 2-norm by which the output moves.

    What is drawn for an input follows from the generator and the input alone, whatever its batch.

    Args:
        victim: What is judged.
        x: Clean images in [0, 1], (B, C, H, W).
        x_adv: Perturbed images, (B, C, H, W); may leave [0, 1].
        displacement: "centered", "paired" or "full"; see this module's head.
        generator: Spent by the draws; a `RowGenerator` serves as it is.
        draws: How many for each input; a victim that is not random is read once.
        chunk: Rows (inputs x draws) decoded at once; None for 2^18 pixels' worth.

    Returns:
        Distances in pixel units, (draws, B), without a graph; infinite where an output is no
        number.

    Raises:
        ShapeError: `x_adv` has another shape than `x`.
        NonFiniteError: A weight or a clean reconstruction that is not finite.
        UnsupportedError: "centered" of a posterior that is not Gaussian.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.robustness import displacements
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> displacements(rv.Victim(vae), x, x, "centered", generator=g, draws=7).shape
        torch.Size([7, 3])
    """
    check_count(draws, "draws")
    streams = by_row(generator, "displacements", x)
    ruler = Ruler(victim, x, displacement, "mean", generator=streams, chunk=chunk)
    check_moved(x_adv, x, victim)
    distances = ruler.fresh(x_adv, torch.arange(len(x), device=x.device), draws, streams)
    return distances.expand(draws, -1)


def check_moved(x_adv: Tensor, x: Tensor, victim: Victim, name: str = "x_adv") -> None:
    """Validate perturbed images: of the shape of the clean ones, whatever their range."""
    check_images(x_adv, victim.vae.image_shape, name=name, low=None, high=None)
    if x_adv.shape != x.shape:
        raise ShapeError(f"{name} must be {tuple(x.shape)} like x, got {tuple(x_adv.shape)}")


@final
@dataclass(frozen=True, eq=False)
class Noise:
    """Random numbers for some draws of every input, which many perturbations may share.

    Attributes:
        draws: How many draws, n.
        moved: What the perturbed end spends: standard normal numbers (n, B, d) for a Gaussian
            posterior of the victim's own, a seed for each input (1, B) for another posterior, and
            a seed for each draw and input (n, B) for a defense.
        clean: The same for the clean end of a paired displacement, else None.
    """

    draws: int
    moved: Tensor
    clean: Tensor | None

    def part(self, begin: int, count: int) -> Noise:
        """`count` draws from number `begin` on, round the end; all where there are no more."""
        if count >= self.draws or len(self.moved) != self.draws:
            return self
        places = [(begin + i) % self.draws for i in range(count)]
        clean = None if self.clean is None else self.clean[places]
        return Noise(count, self.moved[places], clean)


@final
class Ruler:
    """Measures ||Delta|| of perturbations of fixed inputs.

    Args:
        victim: What is judged.
        x: Clean images in [0, 1], (B, C, H, W).
        displacement: As in this module's head.
        center: "mean" or "own".
        generator: Spent by an own center; see `robustvae.seeding.by_row`.
        chunk: Rows decoded at once; None for 2^18 pixels' worth.

    Raises:
        NonFiniteError: A weight or a clean reconstruction that is not finite.
        UnsupportedError: "centered" of a posterior that is not Gaussian.
    """

    def __init__(
        self,
        victim: Victim,
        x: Tensor,
        displacement: str,
        center: str,
        *,
        generator: torch.Generator,
        chunk: int | None = None,
    ) -> None:
        check_type(victim, "victim", Victim)
        check_choice("displacement", displacement, DISPLACEMENTS)
        check_choice("center", center, CENTERS)
        check_images(x, victim.vae.image_shape)
        check_weights(victim.vae)
        rows = chunk or _PIXELS_AT_ONCE // x[0].numel()
        check_count(rows, "chunk", least=0)
        self.victim, self.x, self.displacement = victim, x, displacement
        self.samples_posterior = victim.draws_own_posterior
        self._is_gaussian = False
        self.is_random = self.samples_posterior or is_random(victim.defense)
        self.rows_at_once = max(1, rows)
        self._stddev: Tensor | None = None
        with frozen(victim.vae), torch.no_grad():
            posterior = victim.vae.encode(x)
            self._clean = posterior
            if isinstance(posterior, PointMass):
                # a deterministic encoder has no spread to sample: only a defense is random
                self.samples_posterior = False
                self.is_random = is_random(victim.defense)
            # "centered" has passed its check: there a hierarchy counts by its mean path
            self._is_gaussian = self.samples_posterior and (
                displacement == "centered"
                or isinstance(posterior, Gaussian | torch.distributions.Normal)
            )
            if self.samples_posterior and displacement == "centered":
                check_gaussian(posterior, "displacement 'centered'")
                self._stddev = posterior.stddev
            mean = victim.vae.decode(posterior.mean).mean
            self.center = mean.flatten(1) if center == "mean" else self._own_center(generator)
        if not bool(self.center.isfinite().all()):
            raise NonFiniteError("the clean reconstructions hold a NaN or an infinity")

    @property
    def antithetic(self) -> bool:
        """Whether draws come in pairs whose normal numbers are each other's opposite."""
        return self._is_gaussian

    def noise(self, draws: int, generator: torch.Generator, *, antithetic: bool = False) -> Noise:
        """Random numbers for `draws` draws of each input; one where the victim is not random.

        Args:
            draws: How many.
            generator: Spent, stream i on input i.
            antithetic: Every second normal draw is minus the one before, where the ruler is
                `antithetic`: a median of ||Delta|| is found from far fewer. Then the pairs are
                independent of each other, not the draws.
        """
        streams = by_row(generator, "noise", self.x)
        ends = 2 if self.displacement == "paired" else 1
        count = draws if self.is_random else 1
        if self._is_gaussian:
            like = self._clean.mean
            half = -(-count // 2) if antithetic else count
            parts = [
                randn(half, *like.shape, like=like, generator=streams, axis=1) for _ in range(ends)
            ]
            if antithetic:
                parts = [torch.stack([eta, -eta], 1).flatten(0, 1)[:count] for eta in parts]
        else:
            seeds = 1 if self.samples_posterior else count
            parts = [_seeds(streams, seeds) for _ in range(ends)]
        return Noise(count, parts[0], parts[1] if ends == 2 else None)

    def distances(self, y: Tensor, rows: Tensor, noise: Noise) -> Tensor:
        """||Delta|| of candidate i for input `rows[i]`, (draws, n), under shared noise.

        Differentiable in `y` where it requires a gradient and gradients are on.
        """
        with frozen(self.victim.vae), torch.set_grad_enabled(torch.is_grad_enabled()):
            end = self._outputs(y, rows, noise.draws, noise.moved, self._stddev)
            if noise.clean is None:
                return _norms(end - self.center[rows])
            with torch.no_grad():
                start = self._outputs(self.x[rows], rows, noise.draws, noise.clean, None)
            return _norms(end - start)

    def fresh(
        self,
        y: Tensor,
        rows: Tensor,
        draws: int,
        streams: RowGenerator,
        *,
        antithetic: bool = False,
    ) -> Tensor:
        """Fresh draws of ||Delta||, (draws, n), without a graph: independent, or in pairs.

        Stream i of `streams` belongs to candidate i.
        """
        part = copy.copy(self)
        part.x, part.center = self.x[rows], self.center[rows]
        part._stddev = None if self._stddev is None else self._stddev[rows]
        everyone = torch.arange(len(rows), device=rows.device)
        with torch.no_grad(), frozen(self.victim.vae):
            part._clean = self.victim.vae.encode(part.x)
            return torch.cat(
                [
                    part.distances(y, everyone, part.noise(count, streams, antithetic=antithetic))
                    for count in blocks(draws if self.is_random else 1)
                ]
            )

    def surrogate(self, y: Tensor, rows: Tensor, noise: Noise) -> Tensor:
        """A differentiable stand-in for the m-quantile of ||Delta||, (n,), to be calibrated.

        Where only the mean moves it is the displacement of the mean, at one decoding; else the
        mean of ||Delta|| under the shared noise.
        """
        if self.samples_posterior and self.displacement == "centered":
            vae = self.victim.vae
            output = vae.decode(vae.encode(y).mean).mean.flatten(1)
            return torch.linalg.vector_norm(output - self.center[rows], dim=1)
        return self.distances(y, rows, noise).mean(0)

    def _own_center(self, generator: torch.Generator) -> Tensor:
        (streams,) = split(by_row(generator, "center", self.x), 1)
        everyone = torch.arange(len(self.x), device=self.x.device)
        total, count = torch.zeros_like(self.x.flatten(1)), 0
        for size in blocks(_CENTER_DRAWS if self.is_random else 1):
            if self.samples_posterior:
                outputs = self._decode(draw(self._clean, (size,), generator=streams))
            else:
                outputs = self._read(self.x, everyone, self.noise(size, streams).moved)
            total = total + outputs.sum(0)
            count += size
        return total / count

    def _outputs(
        self, y: Tensor, rows: Tensor, draws: int, spent: Tensor, stddev: Tensor | None
    ) -> Tensor:
        """Outputs of the victim at `y`, (draws, len(y), D)."""
        if not self.samples_posterior:
            return self._read(y, rows, spent)
        posterior = self.victim.vae.encode(y)
        if self._is_gaussian:
            spread = posterior.stddev if stddev is None else stddev[rows]
            z = posterior.mean + spent[:, rows] * spread
        else:
            z = draw(posterior, (draws,), generator=_streams(spent[0], rows))
        return self._decode(z)

    def _decode(self, z: Tensor) -> Tensor:
        """Decoder means, (n, B, D), of latents (n, B, d)."""
        parts = [
            self.victim.vae.decode(part).mean.flatten(1)
            for part in z.flatten(0, 1).split(self.rows_at_once)
        ]
        return torch.cat(parts).unflatten(0, z.shape[:2])

    def _read(self, y: Tensor, rows: Tensor, seeds: Tensor) -> Tensor:
        """Outputs of a defended victim, (n, len(y), D), draw k of row i by its own seed."""
        n = len(seeds)
        repeats = y.repeat(n, *(1,) * (y.ndim - 1))
        numbers = seeds[:, rows.cpu()].flatten()
        places = torch.arange(len(repeats))
        size = min(rows_at_once(self.victim), self.rows_at_once)
        outputs = [
            self.victim.reconstruct(part, generator=_streams(numbers, place)).flatten(1)
            for part, place in zip(repeats.split(size), places.split(size), strict=True)
        ]
        return torch.cat(outputs).unflatten(0, (n, len(y)))


def _seeds(streams: RowGenerator, count: int) -> Tensor:
    """`count` seeds from each stream, (count, B)."""
    top = torch.iinfo(torch.int64).max
    parts = [
        torch.randint(top, (count,), generator=stream, device=stream.device)
        for stream in streams.streams
    ]
    return torch.stack(parts, 1).cpu()


def _streams(seeds: Tensor, rows: Tensor) -> RowGenerator:
    return RowGenerator([new_generator(seed) for seed in seeds[rows.cpu()].tolist()])


def _norms(gap: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(gap, dim=-1)
    return length.nan_to_num(nan=math.inf, posinf=math.inf)


def blocks(draws: int, size: int = _BLOCK) -> Iterator[int]:
    """Sizes of the blocks that make up `draws`."""
    for begin in range(0, draws, size):
        yield min(size, draws - begin)
