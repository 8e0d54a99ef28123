"""Latents from the posterior given one image: the encoder's, a sample of the true one, its mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.defences.targets import posterior
from robustvae.errors import check_choice, check_count, check_positive
from robustvae.mcmc import hmc, mode_search
from robustvae.mcmc.hmc import Adapt
from robustvae.models.base import VAE, channels_last, frozen
from robustvae.seeding import draw


@final
@dataclass(frozen=True)
class PosteriorMean:
    """The mean of the encoder's posterior: no defence, and the usual way to read a VAE.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> rv.PosteriorMean()(vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)).shape
        torch.Size([3, 2])
    """

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""
        return vae.encode(x).mean


@final
@dataclass(frozen=True)
class PosteriorSample:
    """One draw from the encoder's posterior, or the mean of several.

    Args:
        draws: How many draws are averaged.

    Raises:
        RangeError: `draws` is not positive.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> rv.PosteriorSample()(vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)).shape
        torch.Size([3, 2])
    """

    draws: int = 1

    def __post_init__(self) -> None:
        """Refuse counts that are not positive."""
        check_count(self.draws, "draws")

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""
        return draw(vae.encode(x), (self.draws,), generator=generator).mean(0)


@final
@dataclass(frozen=True)
class HMC:
    """The last state of Hamiltonian Monte Carlo on each image's posterior, from a posterior draw.

    Its cost is 1 + steps x n_leapfrog gradients an image. [Kuzina22] used (on MNIST) steps=500
    and as many as half of that again to burn in, n_leapfrog=20, adapt="paper".

    Args:
        steps: Transitions, those that adapt the step size included.
        step_size: First step size.
        n_leapfrog: Leapfrog steps of a transition.
        adapt: "chain", "dual", "paper" or None: see `robustvae.mcmc.hmc`.
        chunk: Images run at once.

    Raises:
        RangeError: A count or step size that is not positive.
        UnknownNameError: An unknown `adapt`.

    References:
        [Kuzina22] section 4 and Algorithm 1.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> rv.HMC(steps=3)(vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)).shape
        torch.Size([3, 2])
    """

    steps: int = 100
    step_size: float = 0.1
    n_leapfrog: int = 5
    adapt: Adapt | None = "chain"
    chunk: int = 100

    def __post_init__(self) -> None:
        """Refuse settings that make no chain."""
        check_count(self.steps, "steps")
        check_count(self.n_leapfrog, "n_leapfrog")
        check_count(self.chunk, "chunk")
        check_positive(self.step_size, "step_size")
        if self.adapt is not None:
            check_choice("adaptation", self.adapt, ("chain", "dual", "paper"))

    @property
    def gradients(self) -> int:
        """Gradient evaluations spent on each image."""
        return 1 + self.steps * self.n_leapfrog

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""

        def read(part: Tensor, graph: bool) -> Tensor:
            return hmc(
                posterior(vae, part),
                draw(vae.encode(part), generator=generator),
                steps=self.steps,
                step_size=self.step_size,
                n_leapfrog=self.n_leapfrog,
                adapt=self.adapt,
                graph=graph,
                generator=generator,
            ).z

        return in_chunks(read, vae, x, self.chunk)


@final
@dataclass(frozen=True)
class PosteriorMode:
    """The mode of each image's posterior, by Adam from the encoder's mean.

    Args:
        steps: Gradient evaluations an image.
        rate: First step length of Adam, in latent units.
        chunk: Images run at once.

    Raises:
        RangeError: A setting that is not positive.

    References:
        [Kuzina22] appendix B.3.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> rv.PosteriorMode(steps=3)(vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)).shape
        torch.Size([3, 2])
    """

    steps: int = 100
    rate: float = 0.1
    chunk: int = 100

    def __post_init__(self) -> None:
        """Refuse settings that are not positive."""
        check_count(self.steps, "steps")
        check_count(self.chunk, "chunk")
        check_positive(self.rate, "rate")

    @property
    def gradients(self) -> int:
        """Gradient evaluations spent on each image."""
        return self.steps

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""

        def read(part: Tensor, graph: bool) -> Tensor:
            start = vae.encode(part).mean
            target = posterior(vae, part)
            return mode_search(target, start, steps=self.steps, rate=self.rate, graph=graph).z

        return in_chunks(read, vae, x, self.chunk)


def in_chunks(read: Callable[[Tensor, bool], Tensor], vae: VAE, x: Tensor, chunk: int) -> Tensor:
    """Read latents off `x` by `read(images, graph)`, `chunk` rows at a time, weights frozen.

    A graph is kept only where `x` requires a gradient and gradients are on.

    Returns:
        Latents, (B, d).
    """
    graph = torch.is_grad_enabled() and x.requires_grad
    with frozen(vae), channels_last(vae), torch.set_grad_enabled(graph):
        return torch.cat([read(part, graph) for part in x.split(chunk)])
