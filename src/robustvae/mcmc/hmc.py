"""Hamiltonian Monte Carlo on a batch of independent chains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor

from robustvae.errors import (
    RangeError,
    check_choice,
    check_count,
    check_number,
    check_positive,
    check_probability,
)
from robustvae.mcmc.leapfrog import LogDensity, State, evaluate, leapfrog
from robustvae.seeding import rand, randn

Adapt = Literal["chain", "dual", "paper"]

DIVERGED = 1000.0


@final
@dataclass(frozen=True, eq=False)
class Step:
    """How one transition went.

    Attributes:
        acceptance: min(1, exp(-energy error)), 0 where that is not a number, (B,).
        energy_error: H after - H before, in nats, (B,).
        accepted: Whether each chain moved, (B,).
        diverged: Energy error above 1000 nats or not finite, (B,).
    """

    acceptance: Tensor
    energy_error: Tensor
    accepted: Tensor
    diverged: Tensor


@final
@dataclass(frozen=True, eq=False)
class Chain:
    """What a run of HMC gives, chain by chain.

    Attributes:
        z: The last positions, (B, d).
        log_density: Log density there, in nats up to a constant, (B,).
        acceptance: Mean acceptance probability after the warm-up, (B,).
        energy_error: Mean absolute energy error of the finite trajectories after the warm-up,
            in nats, (B,).
        divergences: How many transitions after the warm-up diverged, (B,).
        step_size: The step size at the end, (B,).
        gradients: Gradient evaluations spent on each chain.
        trace: Log density after every transition, the warm-up's too, in nats, (steps, B).
        draws: Positions after the warm-up, (T, B, d), where they were asked for.
    """

    z: Tensor
    log_density: Tensor
    acceptance: Tensor
    energy_error: Tensor
    divergences: Tensor
    step_size: Tensor
    gradients: int
    trace: Tensor
    draws: Tensor | None = None


def hmc_step(
    log_density: LogDensity,
    state: State,
    *,
    step: Tensor | float,
    n_steps: int,
    scale: Tensor | None = None,
    adjust: bool = True,
    force: LogDensity | None = None,
    graph: bool = False,
    generator: torch.Generator,
) -> tuple[State, Step]:
    """One transition of every chain: new momenta, a trajectory, accept or stay, each by itself.

    Args:
        log_density: Positions (B, d) to log densities (B,).
        state: Where the chains stand, from `evaluate` or the last transition.
        step: Step size, one number or (B,).
        n_steps: Leapfrog steps L, and so the gradient evaluations spent.
        scale: Square root of the inverse mass matrix: see `leapfrog`.
        adjust: Accept or stay by the energy error; otherwise move wherever it is finite.
        force: A cheaper stand-in for the log density, whose gradient drives the trajectory while
            `log_density` decides. Whatever it is, the target is left invariant: a leapfrog step
            with any force that depends on the position alone is reversible and keeps volume.
            `state.gradient` is then that of `force`.
        graph: Keep the graph; for fixed noise the accept decisions are constants.
        generator: Spent on momenta and decisions.

    Returns:
        The new state, and how it went.

    References:
        Neal, 2011, section 3.2; [Kuzina22] Algorithm 1.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.mcmc import evaluate, hmc_step
        >>> def log_p(z): return -0.5 * z.square().sum(1)
        >>> start = evaluate(log_p, torch.zeros(4, 2))
        >>> state, info = hmc_step(log_p, start, step=0.1, n_steps=5, generator=rv.generator(0))
        >>> bool(info.acceptance.min() > 0.99)
        True
    """
    momentum = randn(*state.z.shape, like=state.z, generator=generator)
    uniform = rand(state.z.shape[0], like=state.z, generator=generator)
    column = step.unsqueeze(1) if isinstance(step, Tensor) and step.ndim == 1 else step
    driven = log_density if force is None else force
    proposed, thrown = leapfrog(
        driven, state, momentum, step=column, n_steps=n_steps, scale=scale, graph=graph
    )
    if force is not None:
        proposed = _judged(log_density, proposed, graph)
    kinetic = 0.5 * (thrown.square().sum(1) - momentum.square().sum(1))
    error = state.log_density - proposed.log_density + kinetic
    acceptance = torch.exp(-error.clamp_min(0)).nan_to_num(0.0)
    accepted = uniform < acceptance if adjust else error.isfinite()
    kept = accepted.unsqueeze(1)
    new = State(
        torch.where(kept, proposed.z, state.z),
        torch.where(accepted, proposed.log_density, state.log_density),
        torch.where(kept, proposed.gradient, state.gradient),
    )
    return new, Step(acceptance, error, accepted, ~(error <= DIVERGED))


def hmc(
    log_density: LogDensity,
    z: Tensor,
    *,
    steps: int,
    step_size: float | Tensor = 0.1,
    n_leapfrog: int = 5,
    adapt: Adapt | None = "chain",
    acceptance: float = 0.9,
    warmup: int | None = None,
    jitter: float = 0.0,
    scale: Tensor | None = None,
    adjust: bool = True,
    force: LogDensity | None = None,
    keep: bool = False,
    graph: bool = False,
    generator: torch.Generator,
) -> Chain:
    """Run `steps` transitions of every chain from `z`: 1 + steps x n_leapfrog gradients.

    No value is read back from the device on the way: with a generator that lives there too,
    nothing in the loop waits for it.

    Args:
        log_density: Positions (B, d) to log densities (B,).
        z: Starts, (B, d).
        steps: Transitions, warm-up included.
        step_size: First step size, one number or (B,).
        n_leapfrog: Leapfrog steps of a transition.
        adapt: "chain" steers each chain's step size towards `acceptance` by steps that shrink,
            over the warm-up, then freezes it; "dual" does it by dual averaging;
            "paper" is [Kuzina22]'s rule, one step size for the whole batch, which never
            stops and so leaves the target slightly off; None keeps the step size.
        acceptance: Mean acceptance probability wanted, in (0, 1).
        warmup: Transitions that "chain" and "dual" adapt in, at most `steps`; by default half of
            them.
        jitter: In [0, 1): each transition's step sizes are multiplied by a number drawn uniformly
            from [1 - jitter, 1 + jitter], against trajectories that close on themselves.
        scale: Square root of the inverse mass matrix: see `leapfrog`.
        adjust: Accept or stay; without it the chain is biased by its step size.
        force: A cheaper stand-in whose gradient drives the trajectories: see `hmc_step`.
        keep: Return all positions after the warm-up.
        graph: Keep the graph through the whole run, for attacks that differentiate it.
        generator: Spent on momenta and decisions.

    Raises:
        RangeError: A count or step size that is not positive; a `warmup` or `jitter` out of range.
        UnknownNameError: An unknown `adapt`.

    References:
        [Kuzina22] Algorithm 1 and appendix; Hoffman & Gelman, 2014, Eq. 6.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.mcmc import hmc
        >>> chain = hmc(lambda z: -0.5 * z.square().sum(1), torch.zeros(4, 2), steps=20,
        ...             generator=rv.generator(0))
        >>> chain.z.shape, chain.gradients
        (torch.Size([4, 2]), 101)
    """
    check_count(steps, "steps")
    check_count(n_leapfrog, "n_leapfrog")
    check_positive(step_size, "step_size", each=True)
    check_probability(acceptance, "acceptance")
    check_jitter(jitter)
    if adapt is not None:
        check_choice("adaptation", adapt, ("chain", "dual", "paper"))
    warmup = (steps // 2 if adapt in ("chain", "dual") else 0) if warmup is None else warmup
    check_count(warmup, "warmup", least=0)
    if warmup > steps:
        raise RangeError(f"warmup must be at most {steps} steps, got {warmup}")
    state = evaluate(log_density if force is None else force, z, graph=graph)
    if force is not None:
        state = _judged(log_density, state, graph)
    size = torch.as_tensor(step_size, dtype=z.dtype, device=z.device).expand(z.shape[0])
    first, mean_log, mean_gap = size, size.log(), torch.zeros_like(size)
    accepted, errors, finite, divergences = (torch.zeros_like(size) for _ in range(4))
    draws, trace = [], []
    for t in range(steps):
        used = size
        if jitter:
            used = size * (1 + jitter * (2 * rand(len(size), like=size, generator=generator) - 1))
        state, info = hmc_step(
            log_density,
            state,
            step=used,
            n_steps=n_leapfrog,
            scale=scale,
            adjust=adjust,
            force=force,
            graph=graph,
            generator=generator,
        )
        trace.append(state.log_density.detach())
        if adapt == "paper":
            size = size * (1 + 0.01 * (info.acceptance.mean() - acceptance) / acceptance)
        elif adapt == "chain" and t < warmup:
            size = size * torch.exp(2 * (t + 1) ** -0.5 * (info.acceptance - acceptance))
        elif adapt == "dual" and t < warmup:
            mean_gap = mean_gap + (acceptance - info.acceptance - mean_gap) / (t + 11)
            log_size = (10 * first).log() - (t + 1) ** 0.5 / 0.05 * mean_gap
            weight = (t + 1) ** -0.75
            mean_log = weight * log_size + (1 - weight) * mean_log
            size = (mean_log if t == warmup - 1 else log_size).exp()
        if t >= warmup:
            error = info.energy_error.detach()
            ended = error.isfinite()
            accepted = accepted + info.acceptance.detach()
            errors = errors + error.abs().where(ended, torch.zeros_like(errors))
            finite, divergences = finite + ended, divergences + info.diverged
            if keep:
                draws.append(state.z)
    return Chain(
        state.z,
        state.log_density,
        accepted / max(1, steps - warmup),
        errors / finite.clamp_min(1),
        divergences.long(),
        size if graph else size.detach(),
        1 + steps * n_leapfrog,
        torch.stack(trace),
        torch.stack(draws) if draws else None,
    )


def check_jitter(jitter: float) -> None:
    """Raise unless step sizes stay positive under this jitter: a number in [0, 1)."""
    check_number(jitter, "jitter", least=0)
    if jitter >= 1:
        raise RangeError(f"jitter must be less than 1, got {jitter:g}")


def _judged(log_density: LogDensity, state: State, graph: bool) -> State:
    """The state with the value of `log_density` in place of its stand-in's."""
    with torch.set_grad_enabled(graph):
        return replace(state, log_density=log_density(state.z))
