"""What an attacker wants: each goal, bound to a victim and its inputs, is a score to raise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from robustvae import metrics
from robustvae.defenses import Victim, is_posterior_mean, reads_encoder_mean
from robustvae.errors import (
    ConfigError,
    DtypeError,
    RangeError,
    ShapeError,
    UnsupportedError,
    check_choice,
    check_count,
    check_images,
    check_number,
    check_type,
)
from robustvae.models import conditionals
from robustvae.models.base import VAE
from robustvae.models.hierarchy import check_gaussian
from robustvae.models.likelihoods import Distribution
from robustvae.perturb import Score
from robustvae.registry import family_base, register
from robustvae.seeding import randn, split

Divergence = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@family_base("goal")
@runtime_checkable
class Goal(Protocol):
    """What an attacker wants; `bind` looks at the clean inputs once and returns the score."""

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The score of candidates for the inputs `x`.

        Args:
            victim: What is attacked.
            x: Clean images, (B, C, H, W).
            generator: Spent on whatever the score draws; it draws once, so the score is a
                fixed function afterwards.

        Returns:
            `score(y, rows) -> (n,)`, higher is better for the attacker, differentiable in `y`;
            row i of `y` is a candidate for input `rows[i]`.
        """
        ...


def _means(mean: Tensor, stddev: Tensor, other_mean: Tensor, other_stddev: Tensor) -> Tensor:
    return (mean - other_mean).square().sum(1)


def _reverse_kl(mean: Tensor, stddev: Tensor, other_mean: Tensor, other_stddev: Tensor) -> Tensor:
    return metrics.kl(other_mean, other_stddev, mean, stddev)


_DIVERGENCES: dict[str, Divergence] = {
    "kl": metrics.kl,
    "means": _means,
    "reverse_kl": _reverse_kl,
    "symmetric_kl": metrics.symmetric_kl,
    "wasserstein2": metrics.wasserstein2,
}
DIVERGENCES = (*_DIVERGENCES, "latent", "samples")
"""How far two latent codes are apart; see `LatentShift`."""


@register("goal", "latent-shift")
@final
@dataclass(frozen=True)
class LatentShift:
    """Move the latent code away from where it was: maximize D(q(.|x+d), q(.|x)).

    Pointed at a victim that reads its latent off the encoder (`PosteriorMean`,
    `PosteriorSample`) the divergence is between the encoder's posteriors. Any other defense has
    no such density: the score is then "latent", with gradients through the defense.

    Warning:
        All of these have gradient 0 at d = 0; searches must start elsewhere, as ours do.

    Args:
        divergence: "kl" is KL(q(.|x+d) || q(.|x)), "reverse_kl" the other way round,
            "symmetric_kl" the mean of both, in nats; "wasserstein2" the squared 2-Wasserstein
            distance and "means" ||mu(x+d) - mu(x)||^2; "samples" the mean squared distance of
            draws from both posteriors, by `draws` fixed noises; "latent" ||T(x+d) - T(x)||^2 of
            the codes that the victim's own defense T reads.
        layers: Which layers of a hierarchy count, by their place in `vae.widths`: (0,) is the one
            next to the data; None for all.
        draws: Noises averaged by "samples", and by "latent" where the defense is random.

    Raises:
        UnknownNameError: Any other divergence.
        RangeError: `draws` below 1; layers that are none, named twice, or (when bound) not there.
        UnsupportedError: `layers` of a model that has none, or a divergence other than "means"
            and "latent" for posteriors that are not Gaussian (when bound).

    References:
        [Kuzina22] Eq. 3 and 63-66; [Willetts21] Eq. 10-12.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> score = rv.LatentShift().bind(rv.Victim(vae), x, generator=g)
        >>> score(x, torch.arange(3)).abs().max() < 1e-6
        tensor(True)
    """

    divergence: str = "symmetric_kl"
    layers: tuple[int, ...] | None = None
    draws: int = 8

    def __post_init__(self) -> None:
        """Refuse what is no divergence."""
        check_choice("divergence", self.divergence, DIVERGENCES)
        _check_layers(self.layers)
        check_count(self.draws, "draws")

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The divergence from the clean code; see `Goal.bind`."""
        return _apart(victim, x, x, self.divergence, self.layers, self.draws, generator)


@register("goal", "latent-target")
@final
@dataclass(frozen=True, eq=False)
class LatentTarget:
    """Move the latent code towards that of a target image: maximize -D(q(.|x+d), q(.|target)).

    Args:
        target: Target images, (B, C, H, W), one per input, or (1, C, H, W) for all.
        divergence: As in `LatentShift`; "kl" is the attack of the papers.
        layers: As in `LatentShift`: the bottom layer for a DLGM, all (None) for a Seatbelt-VAE.
        draws: As in `LatentShift`.

    Raises:
        UnknownNameError: Any other divergence.
        ShapeError: A target for another number of inputs (when bound).

    References:
        Tabacof et al., 2016; [Willetts21] Eq. 10-12, who print q(.|x) for the target's posterior.

    Examples:
        >>> from robustvae.attacks import LatentTarget
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> score = LatentTarget(x[:1]).bind(rv.Victim(vae), x, generator=g)
        >>> score(x, torch.arange(3)).argmax()
        tensor(0)
    """

    target: Tensor
    divergence: str = "kl"
    layers: tuple[int, ...] | None = None
    draws: int = 8

    def __post_init__(self) -> None:
        """Refuse what is no divergence."""
        check_choice("divergence", self.divergence, DIVERGENCES)
        _check_layers(self.layers)
        check_count(self.draws, "draws")

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """Minus the divergence from the target's code; see `Goal.bind`."""
        target = _targets(self.target, x)
        apart = _apart(victim, x, target, self.divergence, self.layers, self.draws, generator)
        return lambda y, rows: -apart(y, rows)


@register("goal", "maximum-damage")
@final
@dataclass(frozen=True)
class MaximumDamage:
    """Move the reconstruction as far as possible: maximize ||g(T(x+d)) - g(mu(x))||_2.

    Through the encoder's mean (`PosteriorMean`), with fixed standard normal noises e:
    "mean" ||g(mu(x+d)) - g(mu(x))||, "both" E||g(mu(x+d) + e sigma(x+d)) - g(mu(x))||,
    "std" E||g(mu(x) + e sigma(x+d)) - g(mu(x))||. Any other defense T is differentiated through:
    E||g(T(x+d)) - E g(T(x))||, averaged over `draws` of its randomness where it has any.

    Args:
        through: "mean", "std" or "both".
        draws: Noises averaged; they are drawn once, since fresh ones at each step would aim the
            search at the noise.

    Raises:
        UnknownNameError: Any other `through`.
        RangeError: `draws` below 1.
        ConfigError: "std" or "both" where the victim's defense is not `PosteriorMean` (when bound).

    References:
        [Camuto21] Eq. 5.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> rv.MaximumDamage().bind(rv.Victim(vae), x, generator=g)(x, torch.arange(3)).detach()
        tensor([0., 0., 0.])
    """

    through: str = "mean"
    draws: int = 8

    def __post_init__(self) -> None:
        """Refuse what is no path."""
        check_choice("through", self.through, ("mean", "std", "both"))
        check_count(self.draws, "draws")

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The distance from the clean reconstruction, in pixel units; see `Goal.bind`."""
        vae = victim.vae
        if not is_posterior_mean(victim.defense):
            if self.through != "mean":
                raise ConfigError(
                    f"through={self.through!r} speaks of the encoder's spread: "
                    f"{type(victim.defense).__name__} has none, use through='mean'"
                )
            read = _expected(victim.reconstruct, x, self.draws, generator)
            with torch.no_grad():
                clean = read(x).mean(0)
            return lambda y, rows: _distance(read(y), clean[rows]).mean(0)
        with torch.no_grad():
            mean = vae.encode(x).mean
            clean = vae.decode(mean).mean
        if self.through == "mean":
            return lambda y, rows: _distance(vae.decode(vae.encode(y).mean).mean, clean[rows])
        noise = randn(self.draws, 1, mean.shape[1], like=mean, generator=generator)

        def score(y: Tensor, rows: Tensor) -> Tensor:
            q = vae.encode(y)
            z = (q.mean if self.through == "both" else mean[rows]) + noise * q.stddev
            x_hat = vae.decode(z.flatten(0, 1)).mean.unflatten(0, z.shape[:2])
            return _distance(x_hat, clean[rows]).mean(0)

        return score


@register("goal", "output-target")
@final
@dataclass(frozen=True, eq=False)
class OutputTarget:
    """Make the victim reconstruct a target image.

    Args:
        target: Target images in [0, 1], (B, C, H, W), one per input, or (1, C, H, W) for all.
        form: "squared" maximizes -||g(T(x+d)) - target||^2 through the victim's defense T;
            "elbo" maximizes E log p(target | z) - KL(q(z|x+d) || p(z)) over `draws` fixed noises.
        draws: Noises averaged.

    Raises:
        UnknownNameError: Any other form.
        ShapeError: A target for another number of inputs (when bound).
        ConfigError: "elbo" where the victim does not read the encoder (when bound).
        UnsupportedError: "elbo" for posteriors that are not Gaussian (when bound).

    References:
        [Willetts21] Eq. 9.

    Examples:
        >>> from robustvae.attacks import OutputTarget
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> goal = OutputTarget(x[:1], form="elbo")
        >>> goal.bind(rv.Victim(vae), x, generator=g)(x, torch.arange(3)).shape
        torch.Size([3])
    """

    target: Tensor
    form: str = "squared"
    draws: int = 8

    def __post_init__(self) -> None:
        """Refuse what is no form."""
        check_choice("form", self.form, ("elbo", "squared"))
        check_count(self.draws, "draws")

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """Closeness of the output to the target; see `Goal.bind`."""
        vae, target = victim.vae, _targets(self.target, x)
        if self.form == "squared":
            read = _expected(victim.reconstruct, x, self.draws, generator)
            return lambda y, rows: -_distance(read(y), target[rows]).square().mean(0)
        if not _reads_encoder(victim):
            raise ConfigError("form='elbo' reads the encoder: use form='squared' with a defense")
        with torch.no_grad():
            check_gaussian(vae.encode(x), "form='elbo'")
        noise = randn(self.draws, 1, vae.latent, like=x, generator=generator)

        def score(y: Tensor, rows: Tensor) -> Tensor:
            q = vae.encode(y)
            prior = conditionals(vae.prior(), q.mean)
            z = q.mean + noise * q.stddev
            likelihood = vae.decode(z.flatten(0, 1)).log_prob(
                target[rows].expand(self.draws, *y.shape).flatten(0, 1)
            )
            fit = likelihood.flatten(1).sum(1).reshape(self.draws, -1).mean(0)
            return fit - metrics.kl(q.mean, q.stddev, prior.mean, prior.stddev)

        return score


@register("goal", "classifier-flip")
@final
@dataclass(frozen=True, eq=False)
class ClassifierFlip:
    """Change what the victim's classifier says: maximize its loss at the latent it is given.

    Args:
        label: Classes to move away from, (B,) int, or None for what is predicted at the clean
            input.
        loss: "cross_entropy" in nats, or "margin", the best other logit minus the label's, which
            keeps its gradient where the classifier is certain and is positive once it is wrong.
        draws: Draws of the defense's randomness that are averaged, where it has any.

    Raises:
        UnknownNameError: Any other loss.
        ConfigError: The victim has no classifier (when bound).
        ShapeError: Labels for another number of inputs (when bound).

    References:
        [Kuzina22] section 4.2.

    Examples:
        >>> from robustvae.attacks import ClassifierFlip
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> victim = rv.Victim(vae, classifier=torch.nn.Linear(2, 10))
        >>> score = ClassifierFlip(loss="margin").bind(victim, x, generator=g)
        >>> (score(x, torch.arange(3)) < 0).all()
        tensor(True)
    """

    label: Tensor | None = None
    loss: str = "cross_entropy"
    draws: int = 8

    def __post_init__(self) -> None:
        """Refuse what is no loss or no labels."""
        if self.label is not None:
            check_type(self.label, "label", Tensor)
            if self.label.dtype != torch.int64:
                raise DtypeError(f"label must be an int64 tensor, got {self.label.dtype}")
        check_choice("loss", self.loss, ("cross_entropy", "margin"))
        check_count(self.draws, "draws")

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The classifier's loss; see `Goal.bind`."""
        read = _expected(victim.classify, x, self.draws, generator)
        if self.label is None:
            with torch.no_grad():
                label = read(x).mean(0).argmax(1)
        else:
            if tuple(self.label.shape) != (len(x),):
                raise ShapeError(f"label must be ({len(x)},), got {tuple(self.label.shape)}")
            label = self.label.to(x.device)

        def score(y: Tensor, rows: Tensor) -> Tensor:
            logits = read(y)
            wanted = label[rows].expand(logits.shape[:2])
            if self.loss == "cross_entropy":
                loss = functional.cross_entropy(
                    logits.flatten(0, 1), wanted.flatten(), reduction="none"
                )
                return loss.reshape(logits.shape[:2]).mean(0)
            own = logits.gather(2, wanted.unsqueeze(2)).squeeze(2)
            others = logits.scatter(2, wanted.unsqueeze(2), -torch.inf)
            return (others.amax(2) - own).mean(0)

        return score


@register("goal", "weighted-sum")
@final
@dataclass(frozen=True)
class WeightedSum:
    """Several goals at once: the weighted sum of their scores.

    Args:
        goals: At least one goal.
        weights: One finite number for each.

    Raises:
        RangeError: No goal, or another number of weights.

    Examples:
        >>> from robustvae.attacks import LatentShift, MaximumDamage, WeightedSum
        >>> goal = WeightedSum((LatentShift(), MaximumDamage()), (0.1, 1.0))
    """

    goals: tuple[Goal, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse sums without terms."""
        if not self.goals or len(self.goals) != len(self.weights):
            raise RangeError(
                f"a weighted sum needs one weight for each of its goals, at least one: "
                f"got {len(self.goals)} goals and {len(self.weights)} weights"
            )
        for weight in self.weights:
            check_number(weight, "each weight")

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The weighted sum; see `Goal.bind`."""
        scores = [goal.bind(victim, x, generator=generator) for goal in self.goals]

        def score(y: Tensor, rows: Tensor) -> Tensor:
            parts = [w * s(y, rows) for w, s in zip(self.weights, scores, strict=True)]
            return torch.stack(parts).sum(0)

        return score


def _reads_encoder(victim: Victim) -> bool:
    return reads_encoder_mean(victim.defense)


def _apart(
    victim: Victim,
    x: Tensor,
    other: Tensor,
    divergence: str,
    layers: tuple[int, ...] | None,
    draws: int,
    generator: torch.Generator,
) -> Score:
    """How far the code of a candidate is from that of its row in `other`."""
    vae, picked = victim.vae, _coordinates(victim.vae, layers)
    if divergence == "latent" or not _reads_encoder(victim):
        read = _expected(victim.latent, x, draws, generator)
        with torch.no_grad():
            code = read(other).mean(0)[:, picked]
        return lambda y, rows: (read(y)[..., picked] - code[rows]).square().sum(2).mean(0)
    with torch.no_grad():
        q = vae.encode(other)
        if divergence != "means":
            check_gaussian(q, f"divergence={divergence!r}")
        mean, stddev = q.mean[:, picked], q.stddev[:, picked]
    if divergence == "samples":
        one, two = randn(2, draws, 1, mean.shape[1], like=mean, generator=generator)

        def drawn(y: Tensor, rows: Tensor) -> Tensor:
            p = _part(vae.encode(y), picked)
            gap = p[0] + one * p[1] - mean[rows] - two * stddev[rows]
            return gap.square().sum(2).mean(0)

        return drawn
    measure = _DIVERGENCES[divergence]
    return lambda y, rows: measure(*_part(vae.encode(y), picked), mean[rows], stddev[rows])


def _part(q: Distribution, picked: slice | Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(picked, slice):
        return q.mean, q.stddev
    return q.mean[:, picked], q.stddev[:, picked]


def _check_layers(layers: tuple[int, ...] | None) -> None:
    if layers is None:
        return
    check_type(layers, "layers", tuple)
    for layer in layers:
        check_count(layer, "each of layers", least=0)
    if not layers or len(set(layers)) < len(layers):
        raise RangeError(f"layers must name at least one layer, each once, got {layers}")


def _coordinates(vae: VAE, layers: tuple[int, ...] | None) -> slice | Tensor:
    """The coordinates of the flat latent that belong to some layers of a hierarchy."""
    if layers is None:
        return slice(None)
    widths = getattr(vae, "widths", None)
    if widths is None:
        raise UnsupportedError(f"{type(vae).__name__} has one layer: leave layers=None")
    parts = torch.arange(vae.latent, device=vae.device).split(list(widths))
    if max(layers) >= len(parts):
        raise RangeError(f"layers must lie in 0..{len(parts) - 1}, got {layers}")
    return torch.cat([parts[layer] for layer in layers])


def _expected(
    read: Callable[..., Tensor], x: Tensor, draws: int, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """`read` under `draws` fixed noises, (draws, n, ...); one where it is not random at all."""
    noises = split(generator, max(2, draws))
    states = [noise.get_state() for noise in noises]
    with torch.no_grad():
        first, second = (read(x[:1], generator=noise) for noise in noises[:2])
    count = 1 if torch.equal(first, second) else draws

    def under(y: Tensor) -> Tensor:
        made = []
        for noise, state in zip(noises[:count], states, strict=False):
            noise.set_state(state)
            made.append(read(y, generator=noise))
        return torch.stack(made)

    return under


def _targets(target: Tensor, x: Tensor) -> Tensor:
    check_images(target, (x.shape[1], x.shape[2], x.shape[3]), name="target", low=None, high=None)
    if len(target) not in (1, len(x)):
        raise ShapeError(
            f"target must be one image or one for each of {len(x)} inputs, got {len(target)}"
        )
    return target.to(x).expand(len(x), *x.shape[1:])


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """2-norm over the pixels of each image, (..., n)."""
    return torch.linalg.vector_norm((a - b).flatten(-3), dim=-1)
