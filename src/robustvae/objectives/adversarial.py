"""Adversarial training: explain the clean image from the worst one nearby."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from robustvae import metrics
from robustvae.errors import (
    RangeError,
    check_choice,
    check_count,
    check_number,
    check_positive,
    check_type,
)
from robustvae.models import VAE
from robustvae.models.base import frozen
from robustvae.objectives.base import (
    COST_OF_INPUT_GRADIENT,
    Objective,
    base_terms,
    check_reads,
    cost_of,
)
from robustvae.objectives.elbo import ELBO
from robustvae.perturb import Ball
from robustvae.registry import build_fields, register

Harm = Callable[[Tensor], Tensor]
"""What the adversary raises, of candidates for a fixed batch: (B, C, H, W) -> (B,)."""

# Passes through encoder and decoder that a gradient of each harm takes: the encoder alone is a half
# of them, and MS-SSIM of 28 x 28 pixels was measured to cost half as much as both.
PASSES = {"damage": 1.0, "latent": 0.5, "similarity": 1.5, "explanation": 1.0}


@register("objective", "adversarial")
@final
@dataclass(frozen=True)
class Adversarial:
    """Another objective whose encoder reads the worst image that an adversary finds nearby.

    loss(x) = base(x; encoder reads x'),  x' = argmax harm(x') over |x' - x| <= radius

    The clean image is what has to be explained, so encoder and decoder learn to undo the attack.
    The adversary takes a few steps from a random point of the ball, in evaluation mode:
    y <- project(y + step radius u), u the gradient's sign (l-infinity) or its direction (l2).
    Over `ELBO(input_noise=s)` the encoder reads x' + s n: noise and adversary together. `harm` is

    - "damage": ||g(mu(x')) - g(mu(x))||, what `MaximumDamage` raises;
    - "latent": W2(q(.|x), q(.|x')), squared: training of the encoder, at half the cost;
    - "similarity": 1 - MS-SSIM(g(mu(x')), g(mu(x))), variant "kuzina2022";
    - "explanation": -log p(x|mu(x')), the loss itself (Madry et al.).

    Args:
        radii: Radii in pixel units; the images of a batch take them in turn.
        norm: "linf" or "l2".
        harm: What the adversary raises; several are taken in turn by optimization steps.
        steps: Gradients of each search.
        step: Length of a step as a share of the radius.
        share: Share of the batch that is attacked; the others are read as they are. In (0, 1].
        base: The objective that reads the attacked images.

    Raises:
        UnknownNameError: Any other norm or harm.
        RangeError: No radius or harm, a radius, count or step that is not positive, or a share
            outside (0, 1].
        DtypeError: `base` is not an objective.
        ConfigError: `base` cannot read other images than it explains (no argument `reads`).

    References:
        Madry et al., 2018, Eq. 2.1; [Camuto21] Eq. 5 (damage); Wong et al., 2020 (random start).

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.models.create("vae", architecture="conv8", latent=2)
        >>> x = rv.data.load("digits", split="test").x[:4]
        >>> noisy = rv.objectives.ELBO(input_noise=0.25)
        >>> objective = rv.objectives.Adversarial(radii=(0.1, 0.2), base=noisy)
        >>> sorted(objective.terms(vae, x, generator=rv.generator(0)))
        ['distortion', 'harm', 'kl', 'loss']
        >>> objective.cost
        3.0
    """

    radii: tuple[float, ...] = (0.1, 0.2)
    norm: str = "linf"
    harm: tuple[str, ...] = ("damage",)
    steps: int = 3
    step: float = 0.5
    share: float = 1.0
    base: Objective = field(default_factory=ELBO)

    def __post_init__(self) -> None:
        """Validate the ball, the search and the base."""
        for name, value in (("radii", self.radii), ("harm", self.harm)):
            items = (value,) if isinstance(value, str | float | int) else value
            if not isinstance(items, Sequence) or not len(items):
                raise RangeError(f"{name} must hold at least one value, got {value!r}: add one")
            object.__setattr__(self, name, tuple(items))
        for radius in self.radii:
            check_positive(radius, "each of radii")
        for harm in self.harm:
            check_choice("harm", harm, PASSES)
        check_choice("norm", self.norm, ("l2", "linf"))
        check_count(self.steps, "steps")
        check_positive(self.step, "step")
        check_number(self.share, "share", least=0)
        if not 0 < self.share <= 1:
            raise RangeError(f"share must lie in (0, 1], got {self.share:g}")
        build_fields(self, base="objective")
        check_reads(self.base)

    @property
    def cost(self) -> float:
        """Work of a training step over that of a plain ELBO; see `cost_of`."""
        passes = sum(PASSES[harm] for harm in self.harm) / len(self.harm)
        search = self.share * self.steps * passes * COST_OF_INPUT_GRADIENT
        return round(cost_of(self.base) + search, 3)

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The loss of each image, (B,).

        Args:
            vae: The model.
            x: Images in [0, 1], (B, C, H, W).
            generator: Spent by the search's starts and by the base's draws.
        """
        return self.terms(vae, x, generator=generator)["loss"]

    def terms(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms of `base`, and "harm", as found by the search; each (B,).

        "harm" is 0 for images that were not attacked.
        """
        check_type(vae, "vae", VAE)
        x_adv, harm = self.attack(vae, x, generator=generator)
        terms = base_terms(self.base, vae, x, generator=generator, reads=x_adv)
        return {**terms, "harm": harm}

    def at(self, step: int) -> Adversarial:
        """The objective at optimization step `step`: that step's harm, and the base's weights."""
        harm = (self.harm[step % len(self.harm)],)
        return replace(self, harm=harm, base=self.base.at(step))

    def attack(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What the adversary makes of a batch.

        Args:
            vae: The model; its weights receive no gradient.
            x: Images in [0, 1], (B, C, H, W).
            generator: Spent by the starts.

        Returns:
            The attacked images, (B, C, H, W), in ball and box, and their harm, (B,).
        """
        count = max(1, round(self.share * len(x)))
        clean, radii = x[:count], torch.as_tensor(self.radii, dtype=x.dtype, device=x.device)
        ball = Ball(self.norm, radii[torch.arange(count, device=x.device) % len(radii)])
        y = ball.sample(clean, generator=generator)
        with frozen(vae), torch.enable_grad():
            score = bind_harm(self.harm[0], vae, clean)
            for _ in range(self.steps):
                y = self._ascend(score, clean, y, ball)
            with torch.no_grad():
                harm = score(y)
        return torch.cat([y, x[count:]]), torch.cat([harm, harm.new_zeros(len(x) - count)])

    def _ascend(self, score: Harm, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        y = y.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(score(y).sum(), y)
        if self.norm == "linf":
            direction = gradient.sign()
        else:
            length = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True)
            # rows whose gradient is 0 stay where they are
            direction = gradient / length.clamp_min(torch.finfo(y.dtype).tiny)
        reach = self.step * ball.radii(x).view(-1, 1, 1, 1)
        return ball.project(x, y.detach() + reach * direction)


def bind_harm(harm: str, vae: VAE, x: Tensor) -> Harm:
    """The score that `Adversarial` raises, of candidates for the batch `x`; see there."""
    with torch.no_grad():
        q = vae.encode(x)
        mean, stddev = q.mean, q.stddev
        x_hat = vae.decode(mean).mean

    def latent(y: Tensor) -> Tensor:
        p = vae.encode(y)
        return metrics.wasserstein2(mean, stddev, p.mean, p.stddev)

    def explanation(y: Tensor) -> Tensor:
        return -vae.decode(vae.encode(y).mean).log_prob(x).flatten(1).sum(1)

    def damage(y: Tensor) -> Tensor:
        change = vae.decode(vae.encode(y).mean).mean - x_hat
        return torch.linalg.vector_norm(change.flatten(1), dim=1)

    def similarity(y: Tensor) -> Tensor:
        y_hat = vae.decode(vae.encode(y).mean).mean.to(x.dtype)
        # a decoder's mean may leave [0, 1] (Gaussian likelihoods), where MS-SSIM is not defined
        pair = (y_hat.clamp(0, 1), x_hat.to(x.dtype).clamp(0, 1))
        return 1 - metrics.ms_ssim(*pair, variant="kuzina2022")

    harms = {
        "damage": damage,
        "latent": latent,
        "similarity": similarity,
        "explanation": explanation,
    }
    return harms[harm]
