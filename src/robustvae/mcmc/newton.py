"""Mode searches that know about curvature, every row of the batch by itself: no row waits.

A row that refuses its trial point tries a shorter step at the next evaluation, while its neighbors
go on. No value is read back from the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.errors import check_count
from robustvae.mcmc.leapfrog import LogDensity, State, evaluate
from robustvae.mcmc.mode_search import Mode

_ARMIJO = 1e-4


@checked()
def lbfgs(log_density: LogDensity, z: Tensor, *, steps: int, memory: int = 10) -> Mode:
    """Climb by L-BFGS with backtracking (Armijo); it never goes down.

    It keeps no graph: near the mode the pairs are differences of rounding errors, and the
    derivative of such a search is noise that grows with every step. See `implicit`.

    Args:
        log_density: Positions (B, d) to log densities (B,).
        z: Starts, (B, d).
        steps: Gradient evaluations, the one at the start and refused ones included.
        memory: Pairs of steps and changes of the gradient that a row remembers.

    Raises:
        RangeError: `steps` or `memory` is not positive.

    References:
        Nocedal & Wright, 2006, Algorithms 3.1 and 7.4.

    Examples:
        >>> import torch
        >>> from robustvae.mcmc import lbfgs
        >>> mode = lbfgs(lambda z: -(z - 1).square().sum(1), torch.zeros(1, 2), steps=4)
        >>> mode.z
        tensor([[1., 1.]])
    """
    check_count(steps, "steps")
    check_count(memory, "memory")
    state = evaluate(log_density, z)
    moves = turns = torch.zeros_like(state.z).expand(memory, -1, -1)
    length = _careful(state.gradient)
    for _ in range(1, steps):
        way = length.unsqueeze(1) * _two_loop(state.gradient, moves, turns)
        prediction = (state.gradient * way).sum(1)
        trial = evaluate(log_density, state.z + way)
        gain = trial.log_density - state.log_density
        higher = gain >= _ARMIJO * prediction
        move, turn = trial.z - state.z, state.gradient - trial.gradient
        # A pair without curvature would make the quasi-Newton matrix indefinite; 1e-10 of the
        # turn's own square is where rounding in float32 begins to decide the sign.
        is_curved = higher & ((move * turn).sum(1) > 1e-10 * turn.square().sum(1))
        moves, turns = (
            torch.where(is_curved.unsqueeze(1), torch.cat([old[1:], new.unsqueeze(0)]), old)
            for old, new in ((moves, move), (turns, turn))
        )
        # The parabola through both heights and the slope has its top here. Where the trial left the
        # numbers the step is cut tenfold; never below 0.1, so that one bad trial does not stop it.
        shortfall = torch.where(gain.isfinite(), prediction - gain, 10 * prediction)
        share = (0.5 * prediction / shortfall.clamp_min(torch.finfo(gain.dtype).tiny)).clamp(
            0.1, 0.5
        )
        state = _moved(higher, trial, state)
        has_pair = (moves[-1] != 0).any(1)
        # With curvature known the natural length is 1; without, a step of careful size.
        fresh = torch.where(has_pair, torch.ones_like(length), _careful(state.gradient))
        length = torch.where(higher, fresh, share * length)
    return Mode(state.z, state.log_density, steps)


@checked()
def gauss_newton(log_density: LogDensity, precision: LogDensity, z: Tensor, *, steps: int) -> Mode:
    """Climb by damped steps precision^-1 gradient (Levenberg-Marquardt); it never goes down.

    The damping, in units of the precision's diagonal, is none at first: where the log density is
    quadratic and the precision its own, the first step ends at the mode. A refused step raises it
    fourfold, to 1 at least; an accepted one lowers it as much, below 0.1 to none.

    Args:
        log_density: Positions (B, d) to log densities (B,).
        precision: Positions (B, d) to positive definite matrices (B, d, d) that stand for minus
            the Hessian, such as `robustvae.defenses.fisher`. Asked for once before every trial.
        z: Starts, (B, d).
        steps: Gradient evaluations, the one at the start and refused ones included. There are
            `steps` - 1 precisions besides, which `Mode.gradients` leaves out.

    Raises:
        RangeError: `steps` is not positive.

    References:
        Nocedal & Wright, 2006, section 10.3; Marquardt, 1963.

    Examples:
        >>> import torch
        >>> from robustvae.mcmc import gauss_newton
        >>> matrix = torch.tensor([[[2.0, 0.0], [0.0, 8.0]]])
        >>> def log_p(z): return -(z - 1).square() @ torch.tensor([1.0, 4.0])
        >>> gauss_newton(log_p, lambda z: matrix, torch.zeros(1, 2), steps=2).z
        tensor([[1., 1.]])
    """
    check_count(steps, "steps")
    state = evaluate(log_density, z)
    damping = torch.zeros_like(state.log_density)
    for _ in range(1, steps):
        matrix = precision(state.z)
        more = damping.unsqueeze(1) * matrix.diagonal(dim1=1, dim2=2)
        # `_ex` raises for no row: a matrix that is not definite gives NaN, which is refused below.
        root, _ = torch.linalg.cholesky_ex(matrix + torch.diag_embed(more))
        way = torch.cholesky_solve(state.gradient.unsqueeze(2), root).squeeze(2)
        trial = evaluate(log_density, state.z + way)
        higher = trial.log_density > state.log_density
        state = _moved(higher, trial, state)
        # Below 0.1 damping slows the last steps and steadies nothing, so it is dropped to none.
        smaller_damping = torch.where(damping > 0.4, 0.25 * damping, torch.zeros_like(damping))
        damping = torch.where(higher, smaller_damping, (4 * damping).clamp_min(1))
    return Mode(state.z, state.log_density, steps)


def _moved(higher: Tensor, trial: State, state: State) -> State:
    mask = higher.unsqueeze(1)
    return State(
        torch.where(mask, trial.z, state.z),
        torch.where(higher, trial.log_density, state.log_density),
        torch.where(mask, trial.gradient, state.gradient),
    )


def _careful(gradient: Tensor) -> Tensor:
    """The length at which a step along the gradient is 1 long in the 1-norm, at most 1."""
    tiny = torch.finfo(gradient.dtype).tiny
    return (1 / gradient.abs().sum(1).clamp_min(tiny)).clamp_max(1)


def _two_loop(gradient: Tensor, moves: Tensor, turns: Tensor) -> Tensor:
    """The L-BFGS inverse Hessian of each row times `gradient`; pairs of zeros do not count."""
    bend = (moves * turns).sum(2)
    there = bend > 0
    inverse = torch.where(there, bend, torch.ones_like(bend)).reciprocal() * there
    way, shares = gradient, []
    for move, turn, each in reversed(list(zip(moves, turns, inverse, strict=True))):
        shares.append(each * (move * way).sum(1))
        way = way - shares[-1].unsqueeze(1) * turn
    curvature = inverse[-1] * turns[-1].square().sum(1)
    way = way / torch.where(there[-1], curvature, torch.ones_like(curvature)).unsqueeze(1)
    for move, turn, each, share in zip(moves, turns, inverse, reversed(shares), strict=True):
        way = way + (share - each * (turn * way).sum(1)).unsqueeze(1) * move
    return way
