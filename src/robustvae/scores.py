"""What a deployed system computes for an input: anomaly scores, one number a row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.data.changes import blur as blurred
from robustvae.defenses import Victim
from robustvae.defenses.noise import apart, check_continuous
from robustvae.errors import (
    RangeError,
    ShapeError,
    UnsupportedError,
    check_count,
    check_number,
    check_type,
)
from robustvae.models import VAE
from robustvae.registry import family_base, register
from robustvae.seeding import draw

_FIT_DRAWS = 4  # noisy readings of each normal input: a deviation is then known to 2 % from 500


@family_base("score")
@runtime_checkable
class Score(Protocol):
    """A number for each input, higher for what is less normal: `(victim, x, *, generator) -> (B,)`.

    A score may say of itself `reads_input = False`: it then depends on the input through the
    victim's output and code alone, which smoothing certifies without further ado. The two errors
    of reconstructions are certified besides.
    """

    def __call__(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The score of each of `x`, (B, C, H, W); differentiable in `x` where the victim is."""
        ...


@register("score", "anomaly-score")
@final
@dataclass(frozen=True)
class ReconstructionError:
    """The distance between an input and its reconstruction, ||x - g(z(x))||_2.

    Args:
        squared: Its square, as most detectors compute it.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.scores import ReconstructionError
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x = torch.rand(3, 1, 4, 4)
        >>> ReconstructionError()(rv.Victim(vae), x, generator=rv.generator(0)).shape
        torch.Size([3])
    """

    squared: bool = False
    reads_input = True

    def __call__(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The error of each input, in pixel units or their square, (B,)."""
        error = _difference(x, victim.reconstruct(x, generator=generator))
        return error.square().sum(1) if self.squared else torch.linalg.vector_norm(error, dim=1)


@register("score", "contrast-error")
@final
@dataclass(frozen=True)
class ContrastError:
    """The distance between an input of raised contrast and its reconstruction.

    score(x) = ||c(x) - g(z(c(x)))||_2,  c(x) = clamp((x - low) / (high - low), 0, 1)

    Values up to `low` count as 0 and values from `high` on as 1, so no change of at most `low` per
    value reaches what was 0, and none of at most 1 - `high` what was 1: most of a digit's pixels.

    Warning:
        It says nothing of inputs whose values differ below `low` or above `high` alone.

    Attackers get the slope 1 / (high - low) everywhere, as if nothing were cut: where the cut is
    flat its own slope is 0, and a search by it would miss the changes that lead out of there.
    Smoothing certifies it as it does the error of c(x), which moves 1 / (high - low) times as far.

    Args:
        low: What counts as 0, in [0, 1].
        high: What counts as 1, in [0, 1], above `low`.

    Raises:
        RangeError: Values outside [0, 1], or `low` not below `high`.

    References:
        Xu et al., 2018 (feature squeezing); Athalye et al., 2018 (slopes for attackers).

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.scores import ContrastError
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, victim = torch.zeros(1, 1, 4, 4), rv.Victim(vae)
        >>> before, after = (
        ...     ContrastError()(victim, y, generator=rv.generator(0)) for y in (x, x + 0.1))
        >>> bool(before == after)
        True
    """

    low: float = 0.1
    high: float = 0.9
    reads_input = True

    def __post_init__(self) -> None:
        """Validate the two ends."""
        for name in ("low", "high"):
            check_number(getattr(self, name), name, least=0.0)
        if not self.low < self.high <= 1:
            raise RangeError(
                f"low must lie below high and both in [0, 1], got {self.low:g} and {self.high:g}"
            )

    def moved(self, size: float, x: Tensor) -> float:
        """How far a change of an l2 size moves c(x) in l2, rounding of the floating type included.

        Args:
            size: Of the change, at least 0.
            x: Inputs, of which the number of values and the floating type count.
        """
        # a value of c, within [0, 1], is off by three roundings on either side of the change
        rounding = 6 * torch.finfo(x.dtype).eps * x[0].numel() ** 0.5 / (self.high - self.low)
        return size / (self.high - self.low) * (1 + 1e-12) + (rounding if size else 0.0)

    def __call__(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The error of each input in units of the raised contrast, (B,)."""
        line = (x - self.low) / (self.high - self.low)
        # the number of the cut, the slope of the line
        raised = line.clamp(0, 1).detach() + (line - line.detach())
        error = _difference(raised, victim.reconstruct(raised, generator=generator))
        return torch.linalg.vector_norm(error, dim=1)


@register("score", "negative-elbo")
@final
@dataclass(frozen=True)
class NegativeELBO:
    """The negative ELBO in nats, -E[log p(x|z)] + KL, z from the victim's own code.

    With a defense that reads the encoder's mean the first term is taken at that mean, and so is
    the same at every call.

    References:
        Kingma & Welling, 2014, Eq. 10.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.scores import NegativeELBO
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x = torch.rand(3, 1, 4, 4)
        >>> NegativeELBO()(rv.Victim(vae), x, generator=rv.generator(0)).shape
        torch.Size([3])
    """

    reads_input = True

    def __call__(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Nats, (B,)."""
        vae = victim.vae
        z = victim.latent(x, generator=generator)
        posterior, prior = vae.encode(x), vae.prior()
        # at the code itself: exact for Gaussian posteriors in expectation, and right for any other
        ratio = posterior.log_prob(z).flatten(1).sum(1) - prior.log_prob(z).flatten(1).sum(1)
        return ratio - vae.decode(z).log_prob(x).flatten(1).sum(1)


@register("score", "importance-weighted")
@final
@dataclass(frozen=True)
class ImportanceWeighted:
    """The importance-weighted estimate of -log p(x) in nats, with the encoder as proposal.

    Args:
        draws: Latents for each input, at least 1.

    References:
        Burda et al., 2016, Eq. 8.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.scores import ImportanceWeighted
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x = torch.rand(3, 1, 4, 4)
        >>> ImportanceWeighted(draws=5)(rv.Victim(vae), x, generator=rv.generator(0)).shape
        torch.Size([3])
    """

    draws: int = 16
    reads_input = True

    def __post_init__(self) -> None:
        """Validate the number of draws."""
        check_count(self.draws, "draws")

    def __call__(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Nats, (B,)."""
        vae = victim.vae
        posterior, prior = vae.encode(x), vae.prior()
        z = draw(posterior, (self.draws,), generator=generator)
        ratio = prior.log_prob(z).flatten(2).sum(2) - posterior.log_prob(z).flatten(2).sum(2)
        likelihood = vae.decode(z.flatten(0, 1)).log_prob(
            x.repeat(self.draws, *(1,) * (x.ndim - 1))
        )
        joint = ratio + likelihood.flatten(1).sum(1).reshape(self.draws, len(x))
        return math.log(self.draws) - joint.logsumexp(0)


@register("score", "latent-distance")
@final
@dataclass(frozen=True, eq=False)
class LatentDistance:
    """The Mahalanobis distance of the code from the codes of normal inputs.

    Args:
        mean: Mean code of normal inputs, (d,).
        precision: Inverse covariance of their codes, (d, d).

    Raises:
        ShapeError: Shapes other than (d,) and (d, d).

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.scores import LatentDistance
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x = torch.rand(30, 1, 4, 4)
        >>> score = LatentDistance.fit(vae, x)
        >>> score(rv.Victim(vae), x[:3], generator=rv.generator(0)).shape
        torch.Size([3])
    """

    mean: Tensor
    precision: Tensor
    reads_input = False

    def __post_init__(self) -> None:
        """Validate the shapes."""
        for name in ("mean", "precision"):
            check_type(getattr(self, name), name, Tensor)
        if self.mean.ndim != 1 or self.precision.shape != (len(self.mean),) * 2:
            raise ShapeError(
                f"mean and precision must be (d,) and (d, d), got {tuple(self.mean.shape)} and "
                f"{tuple(self.precision.shape)}: use LatentDistance.fit"
            )

    @classmethod
    def fit(cls, vae: VAE, normals: Tensor, *, shrinkage: float = 1e-3) -> LatentDistance:
        """The score whose mean and covariance are those of the posterior means of `normals`.

        Args:
            vae: The model.
            normals: Normal inputs, (N, C, H, W), N at least 2.
            shrinkage: Share of the mean variance added to every variance, so that coordinates
                that normal inputs do not use have no infinite weight.

        Raises:
            RangeError: Fewer than two inputs.
        """
        if len(normals) < 2:
            raise RangeError(f"normals must hold at least 2 inputs, got {len(normals)}")
        with torch.no_grad():
            codes = torch.cat([vae.encode(part).mean for part in normals.split(250)])
        mean = codes.mean(0)
        covariance = torch.cov(codes.mT).reshape(len(mean), len(mean)).double()
        floor = shrinkage * covariance.diagonal().mean().clamp_min(1e-12)
        inverse = torch.linalg.inv(covariance + floor * torch.eye(len(mean), dtype=torch.float64))
        return cls(mean, inverse.to(mean.dtype))

    def __call__(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Distances in standard deviations, (B,)."""
        return self.of(victim.latent(x, generator=generator))

    def of(self, code: Tensor) -> Tensor:
        """Distances of codes (B, d), (B,)."""
        gap = code - self.mean
        return ((gap @ self.precision) * gap).sum(1).clamp_min(0).sqrt()


@register("score", "noisy-distance")
@final
@dataclass(frozen=True, eq=False)
class NoisyDistance:
    """How far a noisy reading of the input lies from readings of normal inputs.

    Two numbers are read of one noisy input u: ||B(u - g(z(u)))||, B a blur that the noise hardly
    passes, and the Mahalanobis distance of z(u) from the codes of normal inputs. Each is counted in
    standard deviations from its mean over noisy normal inputs; the score is the sum.

    It depends on the input through u alone, so smoothing certifies it without the triangle
    inequality that the reconstruction error pays for. Without noise on the input u is the input.

    Args:
        distance: Of the codes.
        center: Mean of the two numbers over normal inputs, (2,).
        spread: Their standard deviations, (2,), positive.
        blur: Standard deviation of the blur in pixels; 0 for none.

    Raises:
        ShapeError: Not two means and deviations.
        RangeError: A blur below 0.

    References:
        ours; the blurred residual of a noisy image as in denoised smoothing, Salman et al., 2020.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.scores import NoisyDistance
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, victim = torch.rand(30, 1, 4, 4), rv.Victim(vae, rv.InputNoise(stddev=0.25))
        >>> score = NoisyDistance.fit(victim, x, generator=rv.generator(0))
        >>> score(victim, x[:3], generator=rv.generator(1)).shape
        torch.Size([3])
    """

    distance: LatentDistance
    center: Tensor
    spread: Tensor
    blur: float = 1.0
    reads_input = False

    def __post_init__(self) -> None:
        """Validate the shapes and the blur."""
        check_type(self.distance, "distance", LatentDistance)
        for name in ("center", "spread"):
            check_type(getattr(self, name), name, Tensor)
        if self.center.shape != (2,) or self.spread.shape != (2,):
            raise ShapeError(
                f"center and spread must be (2,), got {tuple(self.center.shape)} and "
                f"{tuple(self.spread.shape)}: use NoisyDistance.fit"
            )
        check_number(self.blur, "blur", least=0.0)

    @classmethod
    def fit(
        cls, victim: Victim, normals: Tensor, *, generator: torch.Generator, blur: float = 1.0
    ) -> NoisyDistance:
        """The score that counts from the readings of `normals`.

        Args:
            victim: Whose readings they are.
            normals: Normal inputs, (N, C, H, W), N at least 2.
            generator: Spent by the victim.
            blur: Standard deviation of the blur in pixels.

        Raises:
            RangeError: Fewer than two inputs.
        """
        distance = LatentDistance.fit(victim.vae, normals)
        blank = normals.new_zeros(2)
        first = cls(distance, blank, blank + 1, blur)
        with torch.no_grad():
            readings = torch.cat(
                [
                    first.readings(victim, part, generator=generator)
                    for part in normals.split(250)
                    for _ in range(_FIT_DRAWS if victim.noise is not None else 1)
                ]
            )
        return cls(distance, readings.mean(0), readings.std(0).clamp_min(1e-12), blur)

    def readings(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The two numbers of one noisy reading of each input, (B, 2).

        Raises:
            UnsupportedError: A victim that averages several votes.
        """
        noise, vae = victim.noise, victim.vae
        if victim.votes > 1:
            raise UnsupportedError(
                "the score 'noisy-distance' reads one noisy input at a time, got "
                f"{victim.votes} votes: give InputNoise(votes=1), the profile takes medians itself"
            )
        if noise is None:
            u, code = x, victim.latent(x, generator=generator)
        else:
            # the victim's own reading, in two steps: both numbers are of the same noise
            check_continuous(vae)
            u = noise.noisy(x, generator=generator)
            code = Victim(vae, noise.defense).latent(u, generator=apart(generator))
        error = u - vae.decode(code).mean
        smooth = blurred(error, self.blur) if self.blur > 0 else error
        length = torch.linalg.vector_norm(smooth.flatten(1), dim=1)
        return torch.stack([length, self.distance.of(code)], 1)

    def __call__(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Standard deviations, the two added, (B,)."""
        return ((self.readings(victim, x, generator=generator) - self.center) / self.spread).sum(1)


@register("score", "detector")
@final
@dataclass(frozen=True)
class DetectorScore:
    """What a wrapped detector itself computes, such as the `decision_function` of pyod's classes.

    It has no gradient: searches without gradients apply.

    Examples:
        >>> import robustvae as rv, torch
        >>> class Far:
        ...     "The distance from the middle."
        ...     def decision_function(self, x):
        ...         return abs(x - 0.5).sum(1)
        >>> vae = rv.wrap(Far(), image_shape=(4,))
        >>> score = rv.scores.DetectorScore()
        >>> score(rv.Victim(vae), torch.ones(2, 1, 1, 4), generator=rv.generator(0))
        tensor([2., 2.])
    """

    reads_input = False

    def __call__(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The detector's numbers, higher for what is less normal, (B,).

        Raises:
            UnsupportedError: The victim's model is not a wrapped detector.
        """
        numbers = getattr(victim.vae, "anomaly_scores", None)
        if numbers is None:
            raise UnsupportedError(
                "the score 'detector' needs an object with decision_function, wrapped by rv.wrap; "
                "this model has none: use the score 'anomaly-score'"
            )
        # what the victim reads: its defense may add noise before
        z = victim.latent(x, generator=generator)
        values: Tensor = numbers(z.reshape(x.shape))
        return values


def _difference(x: Tensor, output: Tensor) -> Tensor:
    """What a victim gives back of an input, less the input, in one row each, (B, D)."""
    if output.shape != x.shape:
        raise ShapeError(
            f"a reconstruction error needs outputs of the input's shape {tuple(x.shape[1:])}, got "
            f"{tuple(output.shape[1:])}: this model is not an autoencoder, so name another score"
        )
    return (x - output).flatten(1)


@checked()
def default_score(victim: Victim) -> Score:
    """The score that a victim most likely deploys: a detector's own, else its l2 error.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.scores import default_score
        >>> default_score(rv.Victim(rv.load("digits-vae")))
        ReconstructionError(squared=False)
    """
    method = getattr(victim.vae, "anomaly_scores", None)
    return ReconstructionError() if method is None else DetectorScore()
