"""Ways to differentiate through a defence: each is a defence with the same latents.

Unrolling needs none of these: `HMC`, `PosteriorMode` and `RobustPosterior` are differentiable as
they are. These are for where a graph through every step is too large, too noisy or not there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from robustvae.defences import HMC, Defence, PosteriorMode, RobustPosterior, RobustTarget, posterior
from robustvae.errors import RangeError, check_count, check_positive
from robustvae.mcmc import hmc
from robustvae.models.base import VAE
from robustvae.seeding import draw


@final
@dataclass(frozen=True)
class StraightThrough:
    """Any defence, with the encoder mean's gradient in place of its own.

    For defences that cannot be differentiated at all. The gradient is only a guess: that the
    defended code moves as the encoder's does.

    Args:
        defence: Any defence.

    References:
        Athalye et al., 2018 (BPDA).

    Examples:
        >>> from robustvae.attacks import StraightThrough
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x = torch.rand(1, 1, 4, 4, requires_grad=True)
        >>> z = StraightThrough(rv.PosteriorMode(steps=3))(vae, x, generator=rv.generator(0))
        >>> z.requires_grad
        True
    """

    defence: Defence

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""
        z = self.defence(vae, x.detach(), generator=generator).detach()
        return _carried(z, vae.encode(x).mean)


@final
@dataclass(frozen=True)
class Implicit:
    r"""A mode search, with the gradient of the mode itself: no memory of the steps.

    At a mode z of log p(x, z) the gradient in z is 0, so dz/dx = -H^-1 d/dx grad_z, with H the
    Hessian in z. Exact once the search has converged, at one d x d system for each image.

    Args:
        defence: `PosteriorMode` or `RobustPosterior`.
        damping: Added to -H, as a share of its mean diagonal, where H is nearly singular.

    Raises:
        RangeError: Damping that is not positive.

    References:
        Implicit function theorem; Bai et al., 2019.

    Examples:
        >>> from robustvae.attacks import Implicit
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x = torch.rand(1, 1, 4, 4, requires_grad=True)
        >>> Implicit(rv.PosteriorMode(steps=50))(vae, x, generator=rv.generator(0)).requires_grad
        True
    """

    defence: PosteriorMode | RobustPosterior
    damping: float = 1e-6

    def __post_init__(self) -> None:
        """Refuse damping that is not positive."""
        check_positive(self.damping, "damping")

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""
        z = self.defence(vae, x.detach(), generator=generator).detach()
        if not (torch.is_grad_enabled() and x.requires_grad):
            return z
        at = z.clone().requires_grad_()
        if isinstance(self.defence, RobustPosterior):
            target = RobustTarget(vae, x, self.defence.norm, self.defence.radius)
            _, slope = target.with_gradient(at)
        else:
            value = posterior(vae, x)(at)
            (slope,) = torch.autograd.grad(value.sum(), at, create_graph=True)
        rows = [
            torch.autograd.grad(slope[:, j].sum(), at, retain_graph=True)[0]
            for j in range(z.shape[1])
        ]
        curvature = -torch.stack(rows, dim=1)
        curvature = 0.5 * (curvature + curvature.mT)
        scale = curvature.diagonal(dim1=1, dim2=2).abs().mean(1).clamp_min(1e-12)
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        solved = torch.linalg.solve(
            curvature + self.damping * scale.view(-1, 1, 1) * eye,
            (slope - slope.detach()).unsqueeze(2),
        )
        return z + solved.squeeze(2)


@final
@dataclass(frozen=True)
class Truncated:
    """HMC whose last transitions alone are differentiated; the state before them is carried over
    from the encoder's mean straight through.

    The chain is another draw than `HMC` gives with the same generator, from the same law up to
    the adaptation, which ends with the undifferentiated part.

    Args:
        defence: The sampler.
        last: Transitions at the end that are differentiated.

    Raises:
        RangeError: `last` below 1 or above the sampler's steps.

    Examples:
        >>> from robustvae.attacks import Truncated
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x = torch.rand(1, 1, 4, 4, requires_grad=True)
        >>> Truncated(rv.HMC(steps=4), last=1)(vae, x, generator=rv.generator(0)).requires_grad
        True
    """

    defence: HMC
    last: int = 5

    def __post_init__(self) -> None:
        """Refuse what cannot be cut."""
        check_count(self.last, "last")
        if self.last > self.defence.steps:
            raise RangeError(f"last must be at most {self.defence.steps} steps, got {self.last}")

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""
        graph = torch.is_grad_enabled() and x.requires_grad
        own = self.defence
        q = vae.encode(x)
        z = draw(q, generator=generator)
        size: float | Tensor = own.step_size
        if own.steps > self.last:
            with torch.no_grad():
                first = hmc(
                    posterior(vae, x.detach()),
                    z.detach(),
                    steps=own.steps - self.last,
                    step_size=own.step_size,
                    n_leapfrog=own.n_leapfrog,
                    adapt=own.adapt,
                    generator=generator,
                )
            z, size = _carried(first.z, q.mean) if graph else first.z, first.step_size
        return hmc(
            posterior(vae, x),
            z,
            steps=self.last,
            step_size=size,
            n_leapfrog=own.n_leapfrog,
            adapt=None,
            graph=graph,
            generator=generator,
        ).z


@final
@dataclass(frozen=True)
class Checkpointed:
    """HMC unrolled whole, in the memory of one segment: the backward pass runs segments again.

    With `adapt=None` the gradient is that of `HMC` itself. An adapted step size is a constant
    here, and each segment starts with the gradient that the one before it ended with.

    Args:
        defence: The sampler.
        segment: Transitions of a segment; the square root of the steps needs the least memory.

    Raises:
        RangeError: `segment` below 1.

    Examples:
        >>> from robustvae.attacks import Checkpointed
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x = torch.rand(1, 1, 4, 4, requires_grad=True)
        >>> Checkpointed(rv.HMC(steps=4), segment=2)(vae, x, generator=rv.generator(0)).shape
        torch.Size([1, 2])
    """

    defence: HMC
    segment: int = 10

    def __post_init__(self) -> None:
        """Refuse empty segments."""
        check_count(self.segment, "segment")

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""
        own = self.defence
        z = draw(vae.encode(x), generator=generator)
        size: float | Tensor = own.step_size
        adapting = own.steps // 2 if own.adapt in ("chain", "dual") else 0
        done = 0
        while done < own.steps:
            steps = min(self.segment, (adapting if done < adapting else own.steps) - done)
            warm = own.adapt if done < adapting or own.adapt == "paper" else None

            def run(
                x: Tensor,
                z: Tensor,
                graph: bool,
                steps: int = steps,
                size: float | Tensor = size,
                warm: Any = warm,
            ) -> tuple[Tensor, Tensor]:
                chain = hmc(
                    posterior(vae, x),
                    z,
                    steps=steps,
                    step_size=size,
                    n_leapfrog=own.n_leapfrog,
                    adapt=warm,
                    warmup=steps if warm else 0,
                    graph=graph,
                    generator=generator,
                )
                return chain.z, chain.step_size

            z, size = _Segment.apply(run, generator, x, z)
            done += steps
        return z


class _Segment(torch.autograd.Function):
    """Run without a graph; in the backward pass run again with one, from the same noise."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]],
        generator: torch.Generator,
        x: Tensor,
        z: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.run, ctx.generator, ctx.state = run, generator, generator.get_state()
        ctx.save_for_backward(x, z)
        end, size = run(x.detach(), z.detach(), False)
        ctx.mark_non_differentiable(size)
        return end, size

    @staticmethod
    def backward(ctx: Any, *pulled: Tensor) -> tuple[None, None, Tensor, Tensor]:
        after = ctx.generator.get_state()
        ctx.generator.set_state(ctx.state)
        with torch.enable_grad():
            x, z = (saved.detach().requires_grad_() for saved in ctx.saved_tensors)
            end, _ = ctx.run(x, z, True)
            by_x, by_z = torch.autograd.grad(end, (x, z), pulled[0], allow_unused=True)
        ctx.generator.set_state(after)
        zero_x = torch.zeros_like(x) if by_x is None else by_x
        return None, None, zero_x, torch.zeros_like(z) if by_z is None else by_z


def _carried(z: Tensor, mean: Tensor) -> Tensor:
    """`z`, with the derivatives of `mean`."""
    return z + (mean - mean.detach())
