"""Hamiltonian Monte Carlo on a batch of independent chains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.display import three_lines
from robustvae.errors import RangeError, check_count, check_number, check_positive, check_type
from robustvae.loops import loop
from robustvae.mcmc.adaptation import Adaptation, PerChain, Tuning
from robustvae.mcmc.leapfrog import UNIT_MASS, LogDensity, State, evaluate, leapfrog
from robustvae.mcmc.mass import MassMatrix
from robustvae.seeding import rand, randn

DIVERGED = 1000.0  # nats: exp(-1000) is 0 in every type, and Stan draws the line there too


def check_jitter(jitter: float) -> None:
    """Raise unless step sizes stay positive under this jitter: a number in [0, 1)."""
    check_number(jitter, "jitter", least=0)
    if jitter >= 1:
        raise RangeError(f"jitter must be less than 1, got {jitter:g}")


@final
@dataclass(frozen=True, eq=False)
class Kernel:
    """How one transition is made: a trajectory of leapfrog steps, then accept or stay.

    Args:
        step_size: First step size, one number or (B,), in latent units where the mass is one.
        n_leapfrog: Leapfrog steps L, and so the gradient evaluations spent on a transition.
        mass: Mass matrix of each chain.
        jitter: In [0, 1): each transition's step sizes are multiplied by a number drawn uniformly
            from [1 - jitter, 1 + jitter], against trajectories that close on themselves.
        adjust: Accept or stay by the energy error; otherwise move wherever it is finite, and the
            chain is biased by its step size.
        force: A cheaper stand-in for the log density, whose gradient drives the trajectory while
            the log density decides. Whatever it is, the target is left invariant: a leapfrog step
            with any force that depends on the position alone is reversible and keeps volume.
        graph: Keep the graph through the run, for attacks that differentiate it; for fixed noise
            the accept decisions are constants.

    Raises:
        RangeError: A count or step size that is not positive, or a `jitter` out of range.

    Examples:
        >>> from robustvae.mcmc import Kernel
        >>> Kernel(n_leapfrog=20).step_size
        0.1
    """

    step_size: float | Tensor = 0.1
    n_leapfrog: int = 5
    mass: MassMatrix = UNIT_MASS
    jitter: float = 0.0
    adjust: bool = True
    force: LogDensity | None = None
    graph: bool = False

    def __post_init__(self) -> None:
        """Validate the arguments."""
        check_positive(self.step_size, "step_size", each=True)
        check_count(self.n_leapfrog, "n_leapfrog")
        check_type(self.mass, "mass", MassMatrix)
        check_jitter(self.jitter)


DEFAULT_KERNEL, PER_CHAIN = Kernel(), PerChain()


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
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
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


@checked()
def hmc_step(
    log_density: LogDensity,
    state: State,
    kernel: Kernel = DEFAULT_KERNEL,
    *,
    step: Tensor | float | None = None,
    generator: torch.Generator,
) -> tuple[State, Step]:
    """One transition of every chain: new momenta, a trajectory, accept or stay, each by itself.

    Args:
        log_density: Positions (B, d) to log densities (B,).
        state: Where the chains stand, from `evaluate` or the last transition; where the kernel
            has a `force`, its gradient is that of the force.
        kernel: How the transition is made; its jitter is the caller's to draw.
        step: Step size of this transition, one number or (B,); the kernel's where it is None.
        generator: Spent on momenta and decisions.

    Returns:
        The new state, and how it went.

    References:
        Neal, 2011, section 3.2; [Kuzina22] Algorithm 1.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.mcmc import Kernel, evaluate, hmc_step
        >>> def log_p(z): return -0.5 * z.square().sum(1)
        >>> start = evaluate(log_p, torch.zeros(4, 2))
        >>> state, info = hmc_step(log_p, start, Kernel(0.1), generator=rv.generator(0))
        >>> bool(info.acceptance.min() > 0.99)
        True
    """
    momentum = randn(*state.z.shape, like=state.z, generator=generator)
    # The decision's noise is drawn before the trajectory, so that what a chain spends of the
    # generator does not depend on how its trajectory went.
    uniform = rand(state.z.shape[0], like=state.z, generator=generator)
    step = kernel.step_size if step is None else step
    column = step.unsqueeze(1) if isinstance(step, Tensor) and step.ndim == 1 else step
    proposal, momentum_after = leapfrog(
        log_density if kernel.force is None else kernel.force,
        state,
        momentum,
        step=column,
        n_steps=kernel.n_leapfrog,
        mass=kernel.mass,
        graph=kernel.graph,
    )
    if kernel.force is not None:
        proposal = _judged(log_density, proposal, kernel.graph)
    kinetic = 0.5 * (momentum_after.square().sum(1) - momentum.square().sum(1))
    error = state.log_density - proposal.log_density + kinetic
    # A NaN is a trajectory that left the numbers: it is refused like one of infinite energy.
    acceptance = torch.exp(-error.clamp_min(0)).nan_to_num(0.0)
    accepted = uniform < acceptance if kernel.adjust else error.isfinite()
    rows = accepted.unsqueeze(1)
    new = State(
        torch.where(rows, proposal.z, state.z),
        torch.where(accepted, proposal.log_density, state.log_density),
        torch.where(rows, proposal.gradient, state.gradient),
    )
    # `not at most` and not `above`, so that a NaN counts as diverged.
    return new, Step(acceptance, error, accepted, ~(error <= DIVERGED))


@checked()
def hmc(
    log_density: LogDensity,
    z: Tensor,
    kernel: Kernel = DEFAULT_KERNEL,
    *,
    steps: int,
    adaptation: Adaptation = PER_CHAIN,
    keep: bool = False,
    generator: torch.Generator,
) -> Chain:
    """Run `steps` transitions of every chain from `z`: 1 + steps x n_leapfrog gradients.

    No value is read back from the device on the way: with a generator that lives there too,
    nothing in the loop waits for it.

    Args:
        log_density: Positions (B, d) to log densities (B,).
        z: Starts, (B, d).
        kernel: How a transition is made, and the first step size.
        steps: Transitions, warm-up included.
        adaptation: How step sizes are steered: `PerChain`, `DualAveraging`, `BatchWide` (the rule
            of [Kuzina22]) or `FixedStep`; it also says how long the warm-up is.
        keep: Return all positions after the warm-up.
        generator: Spent on momenta and decisions.

    Raises:
        RangeError: A count that is not positive, or a warm-up longer than the run.
        DtypeError: `adaptation` is of another type.

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
    check_type(z, "z", Tensor)
    check_type(kernel, "kernel", Kernel)
    check_type(adaptation, "adaptation", Adaptation)
    check_count(steps, "steps")
    warmup, jitter, graph = adaptation.warmup_steps(steps), kernel.jitter, kernel.graph
    size = torch.as_tensor(kernel.step_size, dtype=z.dtype, device=z.device).expand(z.shape[0])
    tuning = adaptation.begin(size)
    accepted, errors, finite, divergences = (torch.zeros_like(size) for _ in range(4))
    draws: list[Tensor] = []
    trace: list[Tensor] = []
    # a graph cannot be kept for a run that goes on
    with loop(f"hmc of {steps}", z, kept=not graph) as place:
        if place.result is not None:
            noise, *values = place.result
            generator.set_state(noise.cpu())
            return Chain(*values)
        if place.content is None:
            state = evaluate(log_density if kernel.force is None else kernel.force, z, graph=graph)
            if kernel.force is not None:
                state = _judged(log_density, state, graph)
        else:  # of a run that was stopped
            stands, tunings, sums, draws, trace, noise = place.content
            state, tuning = State(*stands), Tuning(*tunings)
            accepted, errors, finite, divergences = sums
            generator.set_state(noise.cpu())
        for t in range(place.begin, steps):
            if place.is_kept:
                sums = [accepted, errors, finite, divergences]
                stands, tunings = [*vars(state).values()], [*vars(tuning).values()]
                place.at(t, stands, tunings, sums, [*draws], [*trace], generator.get_state())
            step = tuning.size
            if jitter:
                uniform = rand(len(size), like=size, generator=generator)
                step = tuning.size * (1 + jitter * (2 * uniform - 1))
            state, info = hmc_step(log_density, state, kernel, step=step, generator=generator)
            trace.append(state.log_density.detach())
            tuning = adaptation.update(tuning, info.acceptance, t, warmup)
            if t >= warmup:
                error = info.energy_error.detach()
                is_finite = error.isfinite()
                accepted = accepted + info.acceptance.detach()
                errors = errors + error.abs().where(is_finite, torch.zeros_like(errors))
                finite, divergences = finite + is_finite, divergences + info.diverged
                if keep:
                    draws.append(state.z)
        chain = Chain(
            state.z,
            state.log_density,
            accepted / max(1, steps - warmup),
            errors / finite.clamp_min(1),
            divergences.long(),
            tuning.size if graph else tuning.size.detach(),
            1 + steps * kernel.n_leapfrog,
            torch.stack(trace),
            torch.stack(draws) if draws else None,
        )
        if place.is_kept:
            place.finish(generator.get_state(), *vars(chain).values())
    return chain


def _judged(log_density: LogDensity, state: State, graph: bool) -> State:
    """The state with the value of `log_density` in place of its stand-in's."""
    with torch.set_grad_enabled(graph):
        return replace(state, log_density=log_density(state.z))
