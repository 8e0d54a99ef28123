"""Hamiltonian Monte Carlo whose chains leave the batch when they have reached their plateau."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.display import three_lines
from robustvae.errors import ShapeError, check_count, check_type
from robustvae.mcmc.adaptation import FixedStep, PerChain
from robustvae.mcmc.hmc import DEFAULT_KERNEL, Kernel, hmc
from robustvae.mcmc.leapfrog import Target
from robustvae.seeding import for_rows


@final
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
class Plateau:
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


@checked()
def hmc_to_plateau(
    target: Target,
    z: Tensor,
    kernel: Kernel = DEFAULT_KERNEL,
    *,
    steps: int,
    block: int = 5,
    generator: torch.Generator,
) -> Plateau:
    """Run blocks of transitions; a chain leaves once a block is no better than the one before.

    Better means a higher mean log density. The chain runs one block more after that, so that the
    positions returned are not the ones that were looked at. Its step size is adapted in its first
    block, by `PerChain`, and frozen then. A block costs 1 + block x n_leapfrog
    gradients, of the chains that are still there.

    Warning:
        A chain that is stuck looks like one that has arrived: see `divergences`. And a chain that
        is stopped by what it has seen is not a draw of a fixed length.

    Who stays is read back from the device after every block, which waits for it; within a block
    nothing is.

    Args:
        target: The log density of the batch, which can be cut down to some rows.
        z: Starts, (B, d).
        kernel: How a transition is made; in a graph, who leaves when is a constant.
        steps: Most transitions of a chain; whole blocks are run.
        block: Transitions of a block.
        generator: Spent on momenta and decisions.

    Raises:
        RangeError: A count or step size that is not positive.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.defenses import posterior
        >>> from robustvae.mcmc import hmc_to_plateau
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> target = posterior(vae, torch.rand(3, 1, 4, 4))
        >>> end = hmc_to_plateau(target, torch.zeros(3, 2), steps=50, generator=rv.generator(0))
        >>> end.z.shape, bool((end.gradients <= 260).all())
        (torch.Size([3, 2]), True)
    """
    check_type(z, "z", Tensor)
    if z.ndim != 2 or not z.is_floating_point():
        raise ShapeError(f"z must be real numbers, (B, d), got {tuple(z.shape)} of {z.dtype}")
    check_count(steps, "steps")
    check_count(block, "block")
    rows = torch.arange(len(z), device=z.device)  # who is still there, by number
    order = [torch.zeros(0, dtype=rows.dtype, device=rows.device)]
    size = torch.as_tensor(kernel.step_size, dtype=z.dtype, device=z.device).expand(len(z))
    settlement = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    gradients, divergences = (torch.zeros_like(rows) for _ in range(2))
    ends: list[tuple[Tensor, Tensor, Tensor]] = []
    height = torch.full_like(size, -torch.inf)
    blocks = max(1, steps // block)
    for number in range(blocks):
        chain = hmc(
            target if len(rows) == len(settlement) else target.rows(rows),
            z,
            replace(kernel, step_size=size, mass=kernel.mass.rows(rows)),
            steps=block,
            adaptation=FixedStep() if number else PerChain(warmup=block),
            generator=for_rows(generator, rows.tolist()),
        )
        gradients = gradients.index_add(0, rows, torch.full_like(rows, chain.gradients))
        divergences = divergences.index_add(0, rows, chain.divergences)
        # A chain leaves one block after it settled, so that the positions returned are not those
        # that were selected for being high.
        leaving = settlement[rows] if number + 1 < blocks else torch.ones_like(settlement[rows])
        mean = chain.trace.mean(0)
        settlement = settlement.index_put((rows,), settlement[rows] | (mean <= height))
        order.append(rows[leaving])
        ends.append((chain.z[leaving], chain.log_density[leaving], chain.step_size[leaving]))
        stays = ~leaving
        rows, z, size, height = (v[stays] for v in (rows, chain.z, chain.step_size, mean))
        if len(rows) == 0:
            break
    back = torch.cat(order).argsort()
    position, density, size = (torch.cat(part)[back] for part in zip(*ends, strict=True))
    return Plateau(position, density, settlement, divergences, size, gradients)
