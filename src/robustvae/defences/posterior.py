"""Latents from the posterior given one image: the encoder's, a sample of the true one, its mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from robustvae.defences.defence import Defence, in_chunks
from robustvae.defences.targets import check_ball, fisher_scale, posterior, target_of
from robustvae.errors import check_choice, check_count, check_positive, check_type
from robustvae.mcmc import Chain, hmc, implicit, langevin, mode_search
from robustvae.mcmc.hmc import Adapt
from robustvae.models.base import VAE
from robustvae.perturb import Ball
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
        check_type(vae, "vae", VAE)
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
        check_type(vae, "vae", VAE)
        return draw(vae.encode(x), (self.draws,), generator=generator).mean(0)


@final
@dataclass(frozen=True)
class HMC:
    """The end of a Hamiltonian Monte Carlo run on each image's posterior, from a posterior draw.

    Its cost is 1 + steps x n_leapfrog gradients an image. [Kuzina22] used (on MNIST) steps=500
    after 250 more to burn in, n_leapfrog=20, adapt="paper".

    Args:
        steps: Transitions, those that adapt the step size included.
        step_size: First step size.
        n_leapfrog: Leapfrog steps of a transition.
        adapt: "chain", "dual", "paper" or None: see `robustvae.mcmc.hmc`.
        ball: Sample the robust posterior of this ball, or the plain one where it is None.
        start: The defence whose latent the chains start from; a posterior draw where it is None.
        mass: Mass matrix: "identity", "encoder" (the posterior's spread at the image), or
            "fisher" (prior precision + the decoder's Fisher information at the posterior mean,
            for d more products; a constant in gradients by the image).
        average: Read the mean of the positions after the warm-up, not the last one.
        chunk: Images run at once.

    Raises:
        RangeError: A count or step size that is not positive.
        UnknownNameError: An unknown `adapt` or `mass`.

    References:
        [Kuzina22] section 4 and Algorithm 1; Girolami & Calderhead, 2011, section 5 (Fisher).

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
    ball: Ball | None = None
    start: Defence | None = None
    mass: Literal["identity", "encoder", "fisher"] = "identity"
    average: bool = False
    chunk: int = 100

    def __post_init__(self) -> None:
        """Refuse settings that make no chain."""
        check_count(self.steps, "steps")
        check_count(self.n_leapfrog, "n_leapfrog")
        check_count(self.chunk, "chunk")
        check_positive(self.step_size, "step_size")
        check_ball(self.ball)
        check_choice("mass matrix", self.mass, ("identity", "encoder", "fisher"))
        if self.adapt is not None:
            check_choice("adaptation", self.adapt, ("chain", "dual", "paper"))

    @property
    def gradients(self) -> int:
        """Gradient evaluations spent on each image, the start's included."""
        return 1 + self.steps * self.n_leapfrog + getattr(self.start, "gradients", 0)

    def run(self, vae: VAE, x: Tensor, *, graph: bool = False, generator: torch.Generator) -> Chain:
        """The whole run on one chunk of images, (B, C, H, W), with its diagnostics."""
        start = PosteriorSample() if self.start is None else self.start
        return hmc(
            target_of(vae, x, self.ball),
            start(vae, x, generator=generator),
            steps=self.steps,
            step_size=self.step_size,
            n_leapfrog=self.n_leapfrog,
            adapt=self.adapt,
            scale=_scale(vae, x, self.mass),
            keep=self.average,
            graph=graph,
            generator=generator,
        )

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""

        def read(part: Tensor, graph: bool) -> Tensor:
            chain = self.run(vae, part, graph=graph, generator=generator)
            return chain.z if chain.draws is None else chain.draws.mean(0)

        return in_chunks(read, vae, x, self.chunk)


@final
@dataclass(frozen=True)
class Langevin:
    """The end of a Langevin run on each image's posterior: one gradient a transition.

    Args:
        steps: Transitions.
        step_size: First step size.
        adjust: Metropolis-adjusted, the step size adapted per chain (MALA); otherwise neither.
        ball: Sample the robust posterior of this ball, or the plain one where it is None.
        chunk: Images run at once.

    Raises:
        RangeError: A count or step size that is not positive.

    References:
        Roberts & Rosenthal, 1998.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.defences import Langevin
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> Langevin(steps=3)(vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)).shape
        torch.Size([3, 2])
    """

    steps: int = 200
    step_size: float = 0.1
    adjust: bool = True
    ball: Ball | None = None
    chunk: int = 100

    def __post_init__(self) -> None:
        """Refuse settings that make no chain."""
        check_count(self.steps, "steps")
        check_count(self.chunk, "chunk")
        check_positive(self.step_size, "step_size")
        check_ball(self.ball)

    @property
    def gradients(self) -> int:
        """Gradient evaluations spent on each image."""
        return 1 + self.steps

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""

        def read(part: Tensor, graph: bool) -> Tensor:
            return langevin(
                target_of(vae, part, self.ball),
                draw(vae.encode(part), generator=generator),
                steps=self.steps,
                step_size=self.step_size,
                adjust=self.adjust,
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
        gradient: How an attack sees through it: "unrolled" differentiates the search itself,
            "implicit" the mode (see `robustvae.mcmc.implicit`).
        chunk: Images run at once.

    Raises:
        RangeError: A setting that is not positive.
        UnknownNameError: An unknown `gradient`.

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
    gradient: Literal["unrolled", "implicit"] = "unrolled"
    chunk: int = 100

    def __post_init__(self) -> None:
        """Refuse settings that are not positive."""
        check_count(self.steps, "steps")
        check_count(self.chunk, "chunk")
        check_positive(self.rate, "rate")
        check_choice("gradient", self.gradient, ("unrolled", "implicit"))

    @property
    def gradients(self) -> int:
        """Gradient evaluations spent on each image."""
        return self.steps

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""

        def read(part: Tensor, graph: bool) -> Tensor:
            start = vae.encode(part).mean
            target = posterior(vae, part)
            unrolled = graph and self.gradient == "unrolled"
            z = mode_search(target, start, steps=self.steps, rate=self.rate, graph=unrolled).z
            return implicit(target, z) if graph and not unrolled else z

        return in_chunks(read, vae, x, self.chunk)


def _scale(vae: VAE, x: Tensor, mass: str) -> Tensor | None:
    if mass == "identity":
        return None
    q = vae.encode(x)
    return q.stddev if mass == "encoder" else fisher_scale(vae, q.mean)
