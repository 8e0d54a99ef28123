"""Ways to differentiate through a defense: each is a defense with the same latents.

Where HMC adapts its step size, `Truncated` and `Checkpointed` have other draws of the same law.

Unrolling needs none of these: `HMC`, `PosteriorMode` and `RobustPosterior` are differentiable as
they are. These are for where a graph through every step is too large, too noisy or not there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from robustvae.defenses import HMC, Defense, seeks_mode
from robustvae.defenses.defense import CHAINS, in_chunks, ready
from robustvae.errors import RangeError, UnsupportedError, check_count, check_positive, check_type
from robustvae.mcmc import Adaptation, FixedStep, hmc
from robustvae.models.base import VAE, frozen


@final
@dataclass(frozen=True)
class StraightThrough:
    """Any defense, with the encoder mean's gradient in place of its own.

    For defenses that cannot be differentiated at all. The gradient is only a guess: that the
    defended code moves as the encoder's does.

    Args:
        defense: Any defense.

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

    defense: Defense

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""
        check_type(vae, "vae", VAE)
        with frozen(vae):
            z = self.defense(vae, x.detach(), generator=generator).detach()
            return _carried(z, vae.encode(x).mean)


def target_gradient(target: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Gradient of a mode search's target at latents that require one, (B, d), with its graph."""
    if hasattr(target, "with_gradient"):  # a target whose own minimum must stay fixed once
        gradient: Tensor = target.with_gradient(z)[1]
    else:
        (gradient,) = torch.autograd.grad(target(z).sum(), z, create_graph=True)
    return gradient


@final
@dataclass(frozen=True)
class Implicit:
    r"""A mode search, with the gradient of the mode itself: no memory of the steps.

    At a mode z of log p(x, z) the gradient in z is 0, so dz/dx = -H^-1 d/dx grad_z, with H the
    Hessian in z. Exact once the search has converged, at one d x d system for each image.

    Args:
        defense: One that looks for a mode, as `PosteriorMode` and `RobustPosterior` do: its method
            `target(vae, x)` says of which density.
        damping: Added to -H, as a share of its mean diagonal, where H is nearly singular.

    Raises:
        RangeError: Damping that is not positive.
        UnsupportedError: A defense that names no target.

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

    defense: Any
    damping: float = 1e-6

    def __post_init__(self) -> None:
        """Validate the damping."""
        check_positive(self.damping, "damping")
        if not seeks_mode(self.defense):
            raise UnsupportedError(
                "the implicit gradient needs a defense with a method target(vae, x), got "
                f"{type(self.defense).__name__}: use StraightThrough"
            )

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""
        check_type(vae, "vae", VAE)
        with frozen(vae):
            return self._read(vae, x, generator)

    def _read(self, vae: VAE, x: Tensor, generator: torch.Generator) -> Tensor:
        z = self.defense(vae, x.detach(), generator=generator).detach()
        if not (torch.is_grad_enabled() and x.requires_grad):
            return z
        at = z.clone().requires_grad_()
        slope = target_gradient(self.defense.target(vae, x), at)
        rows = [
            torch.autograd.grad(slope[:, j].sum(), at, retain_graph=True)[0]
            for j in range(z.shape[1])
        ]
        curvature = -torch.stack(rows, dim=1)
        curvature = 0.5 * (curvature + curvature.mT)
        scale = curvature.diagonal(dim1=1, dim2=2).abs().mean(1).clamp_min(1e-12)
        eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        newton_step = torch.linalg.solve(
            curvature + self.damping * scale.view(-1, 1, 1) * eye,
            (slope - slope.detach()).unsqueeze(2),
        )
        return z + newton_step.squeeze(2)


@final
@dataclass(frozen=True)
class Truncated:
    """HMC whose last transitions alone are differentiated; the state before them is carried over
    from the encoder's mean straight through.

    Target, start and mass matrix are the sampler's own. With `adapt=None` the latents are those of
    `HMC` itself. Otherwise the chain is another draw from the same law, up to the adaptation,
    which ends with the undifferentiated part.

    Args:
        defense: The sampler.
        last: Transitions at the end that are differentiated.

    Raises:
        RangeError: `last` below 1 or above the sampler's steps.
        UnsupportedError: A sampler with `average`, `plateau` or a force in bfloat16.

    Examples:
        >>> from robustvae.attacks import Truncated
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x = torch.rand(1, 1, 4, 4, requires_grad=True)
        >>> Truncated(rv.HMC(steps=4), last=1)(vae, x, generator=rv.generator(0)).requires_grad
        True
    """

    defense: HMC
    last: int = 5

    def __post_init__(self) -> None:
        """Validate the fields."""
        _check_cut(self.defense)
        check_count(self.last, "last")
        if self.last > self.defense.steps:
            raise RangeError(f"last must be at most {self.defense.steps} steps, got {self.last}")

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""
        sampler, cut = self.defense, self.defense.steps - self.last

        def read(part: Tensor, graph: bool, generator: torch.Generator) -> Tensor:
            target = sampler.density(vae, part)
            z = sampler.begin(vae, part, generator=generator)
            kernel, adaptation = (
                sampler.kernel(sampler.scale(vae, part), graph=graph),
                sampler.adaptation,
            )
            if cut:
                with torch.no_grad():
                    first = hmc(
                        target,
                        z,
                        replace(kernel, graph=False),
                        steps=cut,
                        adaptation=adaptation,
                        generator=generator,
                    )
                z = _carried(first.z, vae.encode(part).mean) if graph else first.z
                kernel, adaptation = replace(kernel, step_size=first.step_size), FixedStep()
            return hmc(
                target, z, kernel, steps=self.last, adaptation=adaptation, generator=generator
            ).z

        return in_chunks(read, vae, x, sampler.chunk, generator, least=CHAINS)


@final
@dataclass(frozen=True)
class Checkpointed:
    """HMC unrolled whole, in the memory of one segment: the backward pass runs segments again.

    Target, start and mass matrix are the sampler's own. With `adapt=None` latents and gradients
    are those of `HMC` itself. An adapted step size is a constant here, and "chain" and "dual" begin
    anew in each segment of the first half, so that the chain is another draw.

    Args:
        defense: The sampler.
        segment: Transitions of a segment; the square root of the steps needs the least memory.

    Raises:
        RangeError: `segment` below 1.
        UnsupportedError: When a graph of its gradient is asked for.
        UnsupportedError: A sampler with `average`, `plateau` or a force in bfloat16.

    Examples:
        >>> from robustvae.attacks import Checkpointed
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x = torch.rand(1, 1, 4, 4, requires_grad=True)
        >>> Checkpointed(rv.HMC(steps=4), segment=2)(vae, x, generator=rv.generator(0)).shape
        torch.Size([1, 2])
    """

    defense: HMC
    segment: int = 10

    def __post_init__(self) -> None:
        """Validate the fields."""
        _check_cut(self.defense)
        check_count(self.segment, "segment")

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""

        def read(part: Tensor, graph: bool, generator: torch.Generator) -> Tensor:
            return self._read(vae, part, generator)

        return in_chunks(read, vae, x, self.defense.chunk, generator, least=CHAINS)

    def _read(self, vae: VAE, x: Tensor, generator: torch.Generator) -> Tensor:
        sampler = self.defense
        z = sampler.begin(vae, x, generator=generator)
        scale = sampler.scale(vae, x)
        size = torch.as_tensor(sampler.step_size, dtype=x.dtype, device=x.device)
        adapting = sampler.adaptation.warmup_steps(sampler.steps)
        start = 0
        while start < sampler.steps:
            # A segment ends where the warm-up does, so that each is all warm-up or none of it.
            steps = min(self.segment, (adapting if start < adapting else sampler.steps) - start)
            adaptation = sampler.adaptation.part(start, steps, sampler.steps)

            def run(
                x: Tensor,
                z: Tensor,
                scale: Tensor | None,
                graph: bool,
                steps: int = steps,
                size: Tensor = size,
                adaptation: Adaptation = adaptation,
            ) -> tuple[Tensor, Tensor]:
                with ready(vae, x):  # the backward pass comes when the model is its owner's again
                    chain = hmc(
                        sampler.density(vae, x),
                        z,
                        replace(sampler.kernel(scale, graph=graph), step_size=size),
                        steps=steps,
                        adaptation=adaptation,
                        generator=generator,
                    )
                return chain.z, chain.step_size

            z, size = _Segment.apply(run, generator, x, z, scale)
            start += steps
        return z


class _Segment(torch.autograd.Function):
    """Run without a graph; in the backward pass run again with one, from the same noise."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[[Tensor, Tensor, Tensor | None, bool], tuple[Tensor, Tensor]],
        generator: torch.Generator,
        x: Tensor,
        z: Tensor,
        scale: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.run, ctx.generator, ctx.state = run, generator, generator.get_state()
        ctx.save_for_backward(x, z, scale)
        end, size = run(x.detach(), z.detach(), None if scale is None else scale.detach(), False)
        ctx.mark_non_differentiable(size)
        return end, size

    @staticmethod
    def backward(ctx: Any, *pulled: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UnsupportedError("Checkpointed has first derivatives only: ask no graph of them")
        after = ctx.generator.get_state()
        ctx.generator.set_state(ctx.state)
        with torch.enable_grad():
            inputs = [v if v is None else v.detach().requires_grad_() for v in ctx.saved_tensors]
            end, _ = ctx.run(*inputs, True)
            leaves = [v for v in inputs if v is not None]
            slopes = torch.autograd.grad(end, leaves, pulled[0], materialize_grads=True)
        ctx.generator.set_state(after)
        return None, None, *slopes, *[None] * (3 - len(slopes))


def _check_cut(defense: HMC) -> None:
    """Raise unless this sampler's run can be cut into parts that are the same chain."""
    check_type(defense, "defense", HMC)
    if defense.average or defense.plateau is not None or defense.force != "exact":
        raise UnsupportedError(
            "a chain can be cut only where HMC has no average, no plateau and the exact force: set "
            "them so, or attack the whole chain"
        )


def _carried(z: Tensor, mean: Tensor) -> Tensor:
    """`z`, with the derivatives of `mean`."""
    return z + (mean - mean.detach())
