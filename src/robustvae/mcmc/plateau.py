"""Hamiltonian Monte Carlo whose chains leave the batch when they have reached their plateau."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.errors import check_count
from robustvae.mcmc.hmc import hmc
from robustvae.mcmc.leapfrog import Target


@final
@dataclass(frozen=True, eq=False)
class Settled:
    """Where each chain stood when it left, and what it had cost by then.

    Attributes:
        z: The last positions, (B, d).
        log_density: Log density there, in nats up to a constant, (B,).
        settled: Whether each chain left by itself; the others ran all steps, (B,).
        divergences: How many transitions of each chain diverged, those of its first block, in
            which the step size is looked for, left out, (B,).
        step_size: The step size at the end, (B,).
        gradients: Gradient evaluations spent on each chain, (B,).
    """

    z: Tensor
    log_density: Tensor
    settled: Tensor
    divergences: Tensor
    step_size: Tensor
    gradients: Tensor


def hmc_to_plateau(
    target: Target,
    z: Tensor,
    *,
    steps: int,
    block: int = 5,
    step_size: float | Tensor = 0.1,
    n_leapfrog: int = 5,
    scale: Tensor | None = None,
    graph: bool = False,
    generator: torch.Generator,
) -> Settled:
    """Run blocks of transitions; a chain leaves once a block is no better than the one before.

    Better means a higher mean log density. The chain runs one block more after that, so that the
    positions returned are not the ones that were looked at. Its step size is adapted in its first
    block, as "chain" does in `hmc`, and frozen then. A block costs 1 + block x n_leapfrog
    gradients, of the chains that are still there.

    Warning:
        A chain that is stuck looks like one that has arrived: see `divergences`. And a chain that
        is stopped by what it has seen is not a draw of a fixed length.

    Who stays is read back from the device after every block, which waits for it; within a block
    nothing is.

    Args:
        target: The log density of the batch, which can be cut down to some rows.
        z: Starts, (B, d).
        steps: Most transitions of a chain; whole blocks are run.
        block: Transitions of a block.
        step_size: First step size, one number or (B,).
        n_leapfrog: Leapfrog steps of a transition.
        scale: Square root of the inverse mass matrix, (B, d) or (B, d, d): see `leapfrog`.
        graph: Keep the graph; who leaves when is a constant then.
        generator: Spent on momenta and decisions.

    Raises:
        RangeError: A count or step size that is not positive.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.defenses import posterior
        >>> from robustvae.mcmc import hmc_to_plateau
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> target = posterior(vae, torch.rand(3, 1, 4, 4))
        >>> found = hmc_to_plateau(target, torch.zeros(3, 2), steps=50, generator=rv.generator(0))
        >>> found.z.shape, bool((found.gradients <= 260).all())
        (torch.Size([3, 2]), True)
    """
    check_count(steps, "steps")
    check_count(block, "block")
    here = torch.arange(len(z), device=z.device)
    ends = [torch.zeros(0, dtype=here.dtype, device=here.device)]
    size = torch.as_tensor(step_size, dtype=z.dtype, device=z.device).expand(len(z))
    settled = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    gradients, divergences = (torch.zeros_like(here) for _ in range(2))
    done: list[tuple[Tensor, Tensor, Tensor]] = []
    before = torch.full_like(size, -torch.inf)
    blocks = max(1, steps // block)
    for number in range(blocks):
        chain = hmc(
            target if len(here) == len(settled) else target.rows(here),
            z,
            steps=block,
            step_size=size,
            n_leapfrog=n_leapfrog,
            adapt=None if number else "chain",
            warmup=0 if number else block,
            scale=None if scale is None else scale[here],
            graph=graph,
            generator=generator,
        )
        gradients = gradients.index_add(0, here, torch.full_like(here, chain.gradients))
        divergences = divergences.index_add(0, here, chain.divergences)
        leaving = settled[here] if number + 1 < blocks else torch.ones_like(settled[here])
        mean = chain.trace.mean(0)
        settled = settled.index_put((here,), settled[here] | (mean <= before))
        ends.append(here[leaving])
        done.append((chain.z[leaving], chain.log_density[leaving], chain.step_size[leaving]))
        stays = ~leaving
        here, z, size, before = (v[stays] for v in (here, chain.z, chain.step_size, mean))
        if len(here) == 0:
            break
    back = torch.cat(ends).argsort()
    ended = (torch.cat(part)[back] for part in zip(*done, strict=True))
    position, height, size = ended
    return Settled(position, height, settled, divergences, size, gradients)
