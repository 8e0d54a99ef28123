"""Reach times tail: how far a latent may move, and how likely a draw moves less (ours).

radius = sup {rho : F(t, D(rho)) > m}

D bounds how far the posterior's mean moves, t is the latent distance that the decoder forgives (the
reach), F the probability of staying within it (the tail). All of it for models whose layers have
verified Lipschitz constants.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from robustvae import bounds
from robustvae.certificates.constants import (
    Constants,
    check_computation,
    fixed_stddev,
    lipschitz_constants,
)
from robustvae.certificates.methods.base import SILENT, Finding, Task, row_normals
from robustvae.certificates.movement import Encoder
from robustvae.certificates.tangent import tangent_reach
from robustvae.errors import UnsupportedError
from robustvae.models import VAE, GaussianVAE, LipschitzVAE
from robustvae.models.likelihoods import Distribution
from robustvae.registry import register

EVALUATION_FACTOR = 10.0
"""How many times the largest evaluation error seen is taken for the largest there is."""

TAILS = ("noncentral", "trace_markov")
# 1e-9 of r and of the spread: more than float64 loses between an input and its latent
_SPARE = 1e-9


@final
@dataclass(frozen=True, eq=False)
class Grounds:
    """What the methods of this family share.

    Attributes:
        constants: Of the model.
        exact: The model in float64, on the CPU.
        posterior: Its posterior at the inputs.
        r: What is left of r after the evaluation error, (B,); at most 0 where nothing is.
        assumptions: What all of it rests on.
    """

    constants: Constants
    exact: VAE
    posterior: Distribution
    r: Tensor
    assumptions: tuple[str, ...]

    @property
    def usable(self) -> Tensor:
        """`r` where it is positive, else a number next to 0, of which nothing is proved."""
        return self.r.clamp_min(1e-30)

    @property
    def stddev(self) -> Tensor:
        """Upper bound on the spread at the inputs, (B, d)."""
        stddev: Tensor = self.posterior.stddev * (1 + _SPARE)
        return stddev


def grounds(task: Task) -> Grounds:
    """What the methods of this family share, made once for a task.

    Raises:
        UnsupportedError: The victim does not draw from its own posterior, or a layer has no
            verified constant, by name; or the evaluation error leaves nothing of r.
    """
    if "lipschitz" not in task.memo:
        task.memo["lipschitz"] = _grounds(task)
    shared: Grounds = task.memo["lipschitz"]
    return shared


def _grounds(task: Task) -> Grounds:
    check_own_posterior(task)
    vae, ask = task.vae, task.question
    constants = lipschitz_constants(vae)
    exact = copy.deepcopy(vae).to("cpu", torch.float64)
    images = task.x.to("cpu", torch.float64)
    noise = row_normals(images, task.generators("computation"))[:, 0]
    check_computation(exact, images, noise)
    posterior = exact.encode(images)
    error = evaluation_error(task, exact, constants)
    r = ask.r * (1 - _SPARE) - 2 * error
    assumptions = [
        "the stored weights, in exact arithmetic",
        f"evaluation in {str(vae.dtype).removeprefix('torch.')} moves an output by at most "
        f"{float(error.max()):.1e} ({EVALUATION_FACTOR:g} times the largest seen); twice that is "
        "taken from r",
    ]
    if ask.displacement == "centered" and not constants.fixed_stddev:
        assumptions.append(SILENT)
    if not bool((r > 0).any()):
        raise UnsupportedError("the evaluation error is larger than r")
    return Grounds(constants, exact, posterior, r, tuple(assumptions))


def check_own_posterior(task: Task) -> None:
    """Raise unless the victim is its VAE alone, and the center is the reconstruction of the mean.

    Raises:
        UnsupportedError: A defense, or votes, or a center of its own.
    """
    victim, ask = task.victim, task.question
    if not victim.draws_own_posterior:
        raise UnsupportedError(
            "a bound by the weights speaks of a VAE that draws from its own posterior, not of "
            f"{type(victim.defense).__name__}: use methods=['smoothing'] with rv.InputNoise"
        )
    if ask.displacement != "paired" and ask.center != "mean":
        raise UnsupportedError(
            "a bound by the weights measures from g(mu(x)), got center='own': use center='mean'"
        )


@register("certificate-method", "noncentral")
@final
@dataclass(frozen=True)
class Noncentral:
    """The noncentral chi-square, t = r / a (ours); only where F >= 1/2."""

    kind: ClassVar[str] = "deterministic"
    norms: ClassVar[tuple[str, ...]] = ("l2",)

    def __call__(self, task: Task) -> Finding:
        """Radii by the tail alone."""
        return _by_tails(task, "", plain_reach(grounds(task)), ("noncentral",))


@register("certificate-method", "trace_markov")
@final
@dataclass(frozen=True)
class TraceMarkov:
    """Markov's bound with the exact trace, t = r / a (ours); for any m."""

    kind: ClassVar[str] = "deterministic"
    norms: ClassVar[tuple[str, ...]] = ("l2",)

    def __call__(self, task: Task) -> Finding:
        """Radii by the tail alone."""
        return _by_tails(task, "", plain_reach(grounds(task)), ("trace_markov",))


@register("certificate-method", "envelope")
@final
@dataclass(frozen=True)
class Envelope:
    """Both tails, with t from the saturation of the decoder's last sigmoid at this input (ours)."""

    kind: ClassVar[str] = "deterministic"
    norms: ClassVar[tuple[str, ...]] = ("l2",)

    def __call__(self, task: Task) -> Finding:
        """Radii by both tails; none where the decoder ends in no sigmoid, or for paired."""
        return _by_tails(task, "envelope, ", envelope(task), TAILS)


@register("certificate-method", "tangent")
@final
@dataclass(frozen=True)
class Tangent:
    """Both tails, with t from how the logits of a decoder with sorts of pairs move together (ours).

    It takes the longest: tens of milliseconds an input.
    """

    kind: ClassVar[str] = "deterministic"
    norms: ClassVar[tuple[str, ...]] = ("l2",)

    def __call__(self, task: Task) -> Finding:
        """Radii by both tails; none for a decoder of other layers, or for paired."""
        return _by_tails(task, "tangent, ", tangent(task), TAILS)


@register("certificate-method", "generalized")
@final
@dataclass(frozen=True)
class Generalized:
    """The generalized chi-square, from bounds on the mean's movement in every coordinate (ours).

    Only for exact standard deviations: a fixed or a centered spread. With "envelope" or "tangent"
    asked beside it, with their t.
    """

    kind: ClassVar[str] = "deterministic"
    norms: ClassVar[tuple[str, ...]] = ("l2",)

    def __call__(self, task: Task) -> Finding:
        """Radii by the sum of noncentral chi-squares, one a coordinate."""
        shared = grounds(task)
        reaches: list[Tensor | None] = [plain_reach(shared)]
        reaches += [envelope(task)] if "envelope" in task.methods else []
        reaches += [tangent(task)] if "tangent" in task.methods else []
        widest = torch.stack([reach for reach in reaches if reach is not None]).amax(0)
        encoder = Encoder(shared.exact, spread=False)
        radii = _coordinatewise(encoder, task, widest, shared.posterior.stddev)
        return Finding({"generalized": radii * (shared.r > 0)}, shared.assumptions)


def plain_reach(shared: Grounds) -> Tensor:
    """t = r / a, (B,)."""
    return shared.usable / shared.constants.a


def envelope(task: Task) -> Tensor | None:
    """t by the free envelope, (B,); None where it says nothing."""
    shared = grounds(task)
    if not shared.constants.sigmoid or task.question.displacement == "paired":
        return None
    logits = _logits(shared.exact, shared.posterior.mean)
    wide = bounds.envelope_reach(logits, shared.usable) / shared.constants.a_logits
    return torch.maximum(plain_reach(shared), wide * (1 - bounds.SLACK))


def tangent(task: Task) -> Tensor | None:
    """t by the tangent envelope, (B,); None where it says nothing."""
    shared = grounds(task)
    if not shared.constants.sigmoid or task.question.displacement == "paired":
        return None
    assert isinstance(shared.exact, GaussianVAE | LipschitzVAE)
    try:
        wide = tangent_reach(shared.exact.decoder, shared.posterior.mean, shared.usable)
    except UnsupportedError:  # a decoder of other layers: the envelope speaks for it
        return None
    return torch.maximum(plain_reach(shared), wide * (1 - bounds.SLACK))


def _by_tails(task: Task, prefix: str, reach: Tensor | None, tails: tuple[str, ...]) -> Finding:
    shared = grounds(task)
    if reach is None:
        return Finding({}, shared.assumptions)
    latent, b, m = task.vae.latent, shared.constants.b, task.question.m
    moved = _moved_stddev(shared.stddev, shared.constants, task.question.displacement)
    left = shared.r > 0
    radii = {f"{prefix}{t}": _margin(t, reach, moved, b, m, latent) * left for t in tails}
    return Finding(radii, shared.assumptions)


def _logits(vae: VAE, z: Tensor) -> Tensor:
    assert isinstance(vae, GaussianVAE | LipschitzVAE)
    logits: Tensor = vae.decoder(z)
    return logits.flatten(1)


def _moved_stddev(
    stddev: Tensor, constants: Constants, displacement: str
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """For radii of some rows: the largest standard deviation s and trace T of the difference."""
    norm = stddev.norm(dim=1)
    most, total = stddev.square().amax(1).sqrt(), stddev.square().sum(1)

    def bound(rho: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        if displacement == "centered":
            return most[rows], total[rows]
        own = stddev[rows].square()
        after = (stddev[rows] + constants.c * rho[:, None]).square()
        if constants.log_c < float("inf"):
            grown = stddev[rows] * (constants.log_c * rho[:, None]).clamp(max=300).exp()
            after = torch.minimum(after, grown.square())
        trace = torch.minimum(after.sum(1), (norm[rows] + constants.c * rho).square())
        if displacement == "paired":
            after, trace = own + after, total[rows] + trace
        return after.amax(1).sqrt(), trace

    def with_slack(rho: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        spread, trace = bound(rho, rows)
        return spread * (1 + bounds.SLACK), trace * (1 + bounds.SLACK)

    return with_slack


def _margin(
    name: str,
    reach: Tensor,
    moved: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    b: float,
    m: float,
    latent: int,
) -> Tensor:
    """The largest rho at which the method's probability is above m, (B,)."""

    def ends(rho: Tensor) -> tuple[Tensor, Tensor]:
        return b * rho * (1 + bounds.SLACK), moved(rho, everyone)[0]

    def holds(rho: Tensor) -> Tensor:
        spread, trace = moved(rho, everyone)
        shift = b * rho * (1 + bounds.SLACK)
        if name == "trace_markov":
            return bounds.trace_markov_probability(reach, shift, trace) > m
        return bounds.noncentral_probability(reach, shift, spread, latent) > m

    def spare(rho: Tensor, rows: Tensor) -> Tensor:
        shift = b * rho * (1 + bounds.SLACK)
        return bounds.isotropic_mass(reach[rows], shift, moved(rho, rows)[0], latent) - m

    everyone = torch.arange(len(reach))
    if name == "noncentral" and m >= 0.5:
        # then no weaker bound takes the place of the isotropic mass
        return bounds.crossing(spare, reach / b, bounds.isotropic_guess(reach, ends, m, latent))
    return bounds.largest(holds, reach / b)


def _coordinatewise(encoder: Encoder, task: Task, reach: Tensor, stddev: Tensor) -> Tensor:
    """The generalized chi-square's radius: a bound on the mean's movement in every coordinate.

    Only for exact standard deviations; a bound on the movement's length would not do.
    """
    ask, x = task.question, task.x.to("cpu", torch.float64)
    if ask.displacement != "centered" and not fixed_stddev(encoder.vae):
        raise UnsupportedError("the generalized chi-square with a spread that moves")
    if ask.displacement == "paired":
        stddev = stddev * 2**0.5

    def shifts(radius: Tensor) -> Tensor:
        mean = encoder.over(x, radius).mean
        return torch.maximum(mean.upper, -mean.lower).clamp_min(0)

    def holds(radius: Tensor) -> Tensor:
        return bounds.generalized_probability(reach, shifts(radius), stddev) > ask.m

    # so small a ball has nearly the slope at the input
    small = torch.full_like(reach, 1e-6)
    steepest = (shifts(small) / small[:, None]).amax(1)
    upper = (reach + 3 * stddev.amax(1)) / steepest
    return bounds.largest(holds, upper, steps=10)


def evaluation_error(task: Task, exact: VAE, constants: Constants) -> Tensor:
    """How far each input's output moves because the model runs in its own floating type, in l2.

    The largest difference seen between the model and its float64 copy, on the input, on it under
    noise and on draws of their latents, times `EVALUATION_FACTOR`. 0 for float64. Each input is
    evaluated by itself, since float sums depend on the size of the batch.

    Args:
        task: What is certified.
        exact: The model in float64, on the CPU.
        constants: Of the model.

    Returns:
        Distances in pixel units, (B,), float64.
    """
    vae, x = task.vae, task.x
    found = torch.zeros(len(x), dtype=torch.float64)
    if vae.dtype == torch.float64:
        return found
    sizes = x.new_tensor([0.0, 0.1, 1.0]).view(-1, *[1] * (x.ndim - 1))

    def gap(one: Tensor, other: Tensor) -> float:
        return float((one.double().cpu() - other).flatten(1).norm(dim=1).max())

    noises = row_normals(x, task.generators("evaluation/input"), len(sizes))
    latents = x.new_zeros(len(x), vae.latent)
    draws = row_normals(latents, task.generators("evaluation/latent"), len(sizes))
    for i in range(len(x)):
        images = x[i] + sizes * noises[i]
        q, q_exact = vae.encode(images), exact.encode(images.double().cpu())
        z = q.mean + q.stddev * draws[i]
        z_exact = q_exact.mean + q_exact.stddev * draws[i].double().cpu()
        output = gap(vae.decode(z).mean, exact.decode(z.double().cpu()).mean)
        found[i] = output + constants.a * gap(z, z_exact)
    return EVALUATION_FACTOR * found
