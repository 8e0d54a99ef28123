"""Reach times tail: how far a latent may move, and how likely a draw moves less (ours).

radius = sup {rho : F(t, D(rho)) > m}

D bounds how far the posterior's mean moves, t is the latent distance that the decoder forgives (the
reach), F the probability of staying within it (the tail). All of it for models whose layers have
verified Lipschitz constants.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from robustvae import bounds, gate
from robustvae.certificates.constants import (
    OUTPUT_SLOPES,
    Constants,
    check_computation,
    constants_of,
)
from robustvae.certificates.methods.base import SILENT, Finding, Task, of_model, row_normals
from robustvae.certificates.movement import Encoder
from robustvae.certificates.networks import EXTRA_UNITS, composition_of, exact_copy, output_of
from robustvae.certificates.rounding import Arithmetic, forward_error, unit_of
from robustvae.certificates.tangent import tangent_reach
from robustvae.errors import UnsupportedError
from robustvae.models import VAE
from robustvae.models.composition import Composition
from robustvae.models.likelihoods import Distribution
from robustvae.registry import register

LANES = 1
"""In how many partial sums sums of products are assumed to be formed; 1 assumes nothing."""

MEAN_UNITS = {
    "bernoulli": 8,
    "continuous_bernoulli": 8,
    "continuous_bernoulli_exact": 64,
    "gaussian": 0,
}
"""Error of the likelihood's mean, in units of the last place of 1; the tests look for more."""

# A tangent reach beyond so many free ones is cut off: its rounding was not bounded further out.
_FARTHEST = 1.8
TAILS = ("noncentral", "trace_markov")
BY_TAILS = (*TAILS, "envelope", "tangent", "generalized", "barrett")
# 1e-9 of r and of the spread: more than float64 loses between an input and its latent
_SPARE = 1e-9


@final
@dataclass(frozen=True, eq=False)
class Grounds:
    """What the methods of this family share.

    Attributes:
        constants: Of the model.
        exact: The model in float64, on the CPU.
        parts: The networks that it is made of.
        images: The inputs in float64, on the CPU.
        posterior: Its posterior at them.
        r: The tolerance, spared a little.
        arithmetic: In which the model runs.
        assumptions: What all of it rests on, but for the error itself.
        paired: Whether both latents move.
        memo: What was computed of it before, by name.
    """

    constants: Constants
    exact: VAE
    parts: Composition
    images: Tensor
    posterior: Distribution
    r: float
    arithmetic: Arithmetic
    paired: bool
    assumptions: tuple[str, ...] = ()
    memo: dict[Any, Tensor] = field(default_factory=dict, repr=False)

    @property
    def plain_cap(self) -> Tensor:
        """r / a: no latent further off can be forgiven by the constant alone, (B,)."""
        rows = len(self.posterior.mean)
        return torch.full((rows,), self.r / self.constants.a, dtype=torch.float64)

    @property
    def logits(self) -> Tensor:
        """What the decoder computes at the means before the likelihood's mean, flat, (B, D)."""
        if "logits" not in self.memo:
            self.memo["logits"] = decoder_logits(self.parts, self.posterior.mean)
        return self.memo["logits"]

    @property
    def envelope_cap(self) -> Tensor:
        """The free envelope's reach if nothing were lost by rounding, (B,)."""
        if not self.constants.sigmoid or self.paired:
            return self.plain_cap
        if "envelope" not in self.memo:
            wide = bounds.envelope_reach(self.logits, self.r) / self.constants.a_logits
            self.memo["envelope"] = torch.maximum(self.plain_cap, wide)
        return self.memo["envelope"]

    @property
    def farthest(self) -> Tensor:
        """No reach is taken beyond this, (B,)."""
        return self.envelope_cap * _FARTHEST

    def error(self, cap: Tensor) -> Tensor:
        """Bound on what rounding adds to the distance of two outputs, (B,).

        One output is of a latent within `cap` of the mean, the other of the mean itself; of a pair
        the other is a draw too, within all but 1e-9 of its distribution.

        Args:
            cap: How far the latents may lie from the mean, in l2, (B,).
        """
        none = torch.zeros_like(cap)
        other = none
        if self.paired:
            quantile = bounds.chi_quantile(1 - _SPARE, self.posterior.mean.shape[1])
            other = self.posterior.stddev.amax(1) * quantile
        key = cap.numpy().tobytes()
        if key not in self.memo:
            # the layers are walked once, for all that is going to be asked
            caps = [none, self.plain_cap, self.envelope_cap, self.farthest, cap]
            rads = torch.stack([none, *(other + one for one in caps)])
            at_mean, *errors = self.output_error(self.posterior.mean, rads)
            for one, error in zip(caps, errors, strict=True):
                self.memo[one.numpy().tobytes()] = errors[0] + error
            self.memo["output at the mean"] = at_mean
        return self.memo[key]

    def output_error(self, mean: Tensor, rad: Tensor) -> Tensor:
        """How far the computed output of a latent within `rad` of the mean is off, (..., B)."""
        unit, likelihood = self.arithmetic.unit, self.parts.likelihood
        assert self.parts.decoder is not None
        # z = mu + sigma eta: a product and a sum, and the mean's own last digit
        start = 4 * unit * (mean.norm(dim=1) + 2 * rad)
        logits = forward_error(self.parts.decoder, mean, rad, start, self.arithmetic)
        if likelihood == "gaussian":
            return logits.error
        # values of at most 1, each with the likelihood's own error
        units = MEAN_UNITS[likelihood] + (EXTRA_UNITS if self.parts.precision else 0)
        final = units * unit * math.sqrt(logits.value[0].numel())
        return OUTPUT_SLOPES[likelihood] * logits.error + final

    def left(self, cap: Tensor) -> Tensor:
        """What is left of r, (B,); a number next to 0, of which nothing is proved, at the least."""
        return (self.r - self.error(cap)).clamp_min(1e-30)

    @property
    def shift(self) -> Tensor:
        """Bound on what rounding adds to the movement of the mean, (B,).

        At every input within the largest radius that any method can give.
        """
        if "shift" not in self.memo:
            far = self.farthest / self.constants.b
            errors = self.mean_error(torch.stack([torch.zeros_like(far), far]))
            self.memo["shift"] = errors[0] + errors[1]
            self.memo["mean at the input"] = errors[0]
        return self.memo["shift"]

    def mean_error(self, rad: Tensor) -> Tensor:
        """How far the computed mean of an input within `rad` is off, (..., B)."""
        none = torch.zeros_like(rad)
        return forward_error(self.parts.mean, self.images, rad, none, self.arithmetic).error

    @functools.cached_property
    def stddev(self) -> Tensor:
        """Upper bound on the spread at the inputs, with what rounding adds, (B, d); above 0."""
        stddev, unit = self.posterior.stddev, self.arithmetic.unit
        network, spread = self.parts.spread_network, self.parts.spread
        if network is not None:
            none = torch.zeros(len(stddev), dtype=torch.float64)
            far = self.farthest / self.constants.b
            error = forward_error(network, self.images, far, none, self.arithmetic).error
            if spread.is_exponential:
                stddev = stddev * (1 + spread.share(error)[:, None])
            else:
                stddev = stddev + error[:, None]
        # next to 0 a number keeps no share of itself
        return stddev * (1 + _SPARE + 16 * unit) + torch.finfo(self.arithmetic.dtype).tiny


@final
@dataclass(frozen=True, eq=False)
class _Model:
    """What does not depend on the question, shared by questions about the same inputs."""

    exact: VAE
    parts: Composition
    constants: Constants
    images: Tensor
    posterior: Distribution
    norms: dict[tuple[int, tuple[int, ...]], tuple[float, float]]
    is_checked: list[bool]


def _model_of(task: Task) -> _Model:
    if "lipschitz, model" not in task.memo:
        vae = task.vae
        unit_of(vae.dtype, vae.device)
        gate.is_known_model(vae)
        exact, parts, constants = of_model(vae, "lipschitz", lambda: _by_weights(vae))
        images = task.x.to("cpu", torch.float64)
        task.memo["lipschitz, model"] = _Model(
            exact, parts, constants, images, exact.encode(images), {}, []
        )
    model: _Model = task.memo["lipschitz, model"]
    return model


def _by_weights(vae: VAE) -> tuple[VAE, Composition, Constants]:
    """What follows from a model's weights alone."""
    exact = exact_copy(vae)
    parts = composition_of(exact)
    return exact, parts, constants_of(parts, vae.image_shape, vae.latent)


def grounds(task: Task, lanes: int = LANES) -> Grounds:
    """What the methods of this family share, made once for a task.

    Raises:
        UnsupportedError: The victim does not draw from its own posterior, or a layer has no
            verified constant, by name; or the evaluation error leaves nothing of r.
    """
    key = f"lipschitz, {lanes} lanes, r = {task.question.r!r}, {task.question.displacement}"
    if key not in task.memo:
        try:
            task.memo[key] = _grounds(task, lanes)
        except UnsupportedError as refusal:
            task.memo[key] = refusal
    common: Grounds | UnsupportedError = task.memo[key]
    if isinstance(common, UnsupportedError):
        raise common
    return common


def _grounds(task: Task, lanes: int) -> Grounds:
    check_own_posterior(task)
    vae, ask = task.vae, task.question
    model = _model_of(task)
    common = Grounds(
        constants=model.constants,
        exact=model.exact,
        parts=model.parts,
        images=model.images,
        posterior=model.posterior,
        r=ask.r * (1 - _SPARE),
        arithmetic=Arithmetic(vae.dtype, lanes, model.norms),
        paired=ask.displacement == "paired",
    )
    _check_hope(task, common)
    if not model.is_checked:
        noise = row_normals(model.images, task.generators("computation"))[:, 0]
        check_computation(model.exact, model.images, noise, model.parts)
        _check_rounding(vae, task.x, common)
        model.is_checked.append(True)
    losses = float(common.error(common.plain_cap).max())
    if not losses < common.r:
        raise UnsupportedError(
            f"rounding in {str(vae.dtype).removeprefix('torch.')} may move an output by "
            f"{losses:.1e}, which leaves nothing of r = {ask.r:g}; use vae.double()"
        )
    order = "in any order" if lanes == 1 else f"in at least {lanes} partial sums (assumed)"
    assumptions = [
        "the stored weights in evaluation mode, in exact arithmetic",
        f"sums of {str(vae.dtype).removeprefix('torch.')} products {order}, without TF32, bfloat16,"
        f" Winograd or Fourier transforms, move two outputs by at most {losses:.1e} where t = r / a"
        "; as much as is possible is taken from r",
    ]
    if ask.displacement == "centered" and not model.constants.fixed_stddev:
        assumptions.append(SILENT)
    return replace(common, assumptions=tuple(assumptions))


def _check_hope(task: Task, shared: Grounds) -> None:
    """Raise where no tail can prove anything even of unchanged inputs: the rest need not be known.

    Even if every coordinate had the least spread, and with the farthest reach that is taken.

    Raises:
        UnsupportedError: So for every input.
    """
    if not set(task.methods) <= {*BY_TAILS}:
        return
    stddev = shared.posterior.stddev.amin(1)
    none = torch.zeros_like(stddev)
    mass = bounds.isotropic_mass(shared.farthest, none, stddev, shared.posterior.mean.shape[1])
    if not bool((mass > task.question.m).any()):
        raise UnsupportedError(
            f"the Lipschitz constant of the decoder, {shared.constants.a:.3g}, leaves nothing of "
            f"r = {task.question.r:g} even without a change; use methods=['neyman_pearson'] or "
            "rv.InputNoise"
        )


def _check_rounding(vae: VAE, x: Tensor, shared: Grounds) -> None:
    """Raise on a model whose own evaluation lies further off than rounding can bring it.

    Raises:
        UnsupportedError: It runs otherwise than IEEE arithmetic of its floating type does.
    """
    mean = shared.posterior.mean
    _ = shared.shift, shared.error(shared.plain_cap)
    # a float64 copy errs itself; 1e-9 is far above that and far below anything that matters
    limit = shared.memo["mean at the input"] + _SPARE * (1 + mean.norm(dim=1))
    gap = (vae.encode(x).mean.double().cpu() - mean).norm(dim=1)
    z = mean.to(vae.dtype)
    clean = shared.exact.decode(z.double()).mean.flatten(1)
    output = (vae.decode(z.to(x.device)).mean.double().cpu().flatten(1) - clean).norm(dim=1)
    enough = shared.memo["output at the mean"] + _SPARE * (1 + clean.norm(dim=1))
    if not bool(((gap <= limit) & (output <= enough)).all()):
        raise UnsupportedError(
            f"the model in {vae.dtype} lies further from float64 than rounding allows; look for "
            "TF32, bfloat16 or autocast, or use vae.double()"
        )


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

    It takes the longest: some milliseconds an input.
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
        common = grounds(task)
        reaches: list[Tensor | None] = [plain_reach(common)]
        reaches += [envelope(task)] if "envelope" in task.methods else []
        reaches += [tangent(task)] if "tangent" in task.methods else []
        widest = torch.stack([reach for reach in reaches if reach is not None]).amax(0)
        encoder = Encoder(common.exact, spread=False)
        radii = _coordinatewise(encoder, task, widest, common)
        return Finding({"generalized": radii}, common.assumptions)


def plain_reach(shared: Grounds) -> Tensor:
    """t = r / a, (B,)."""
    return shared.left(shared.plain_cap) / shared.constants.a


def envelope(task: Task) -> Tensor | None:
    """t by the free envelope, (B,); None where it says nothing."""
    common = grounds(task)
    if not common.constants.sigmoid or common.paired:
        return None
    left = common.left(common.envelope_cap)
    wide = bounds.envelope_reach(common.logits, left) / common.constants.a_logits
    return torch.maximum(plain_reach(common), wide * (1 - bounds.SLACK))


def tangent(task: Task) -> Tensor | None:
    """t by the tangent envelope, (B,); None where it says nothing."""
    common = grounds(task)
    if not common.constants.sigmoid or common.paired:
        return None
    assert common.parts.decoder is not None
    left = common.left(common.farthest)
    # nearly what the free envelope gives for the smaller tolerance
    start = common.envelope_cap * (left / common.r).clamp(max=1.0)
    try:
        wide = tangent_reach(common.parts.decoder, common.posterior.mean, left, start=start)
    except UnsupportedError:  # a decoder of other layers: the envelope speaks for it
        return None
    wide = torch.minimum(wide * (1 - bounds.SLACK), common.farthest)
    return torch.maximum(plain_reach(common), wide)


def _by_tails(task: Task, prefix: str, reach: Tensor | None, tails: tuple[str, ...]) -> Finding:
    common = grounds(task)
    if reach is None:
        return Finding({}, common.assumptions)
    latent, b, m = task.vae.latent, common.constants.b, task.question.m
    # of a pair, draws beyond the quantile that rounding was bounded for count as failures
    m = m + _SPARE if common.paired else m
    shift = _moved_stddev(common.stddev, common.constants, task.question.displacement)
    motion = _Motion(b, common.shift, shift)
    radii = {f"{prefix}{tail}": _margin(tail, reach, motion, m, latent) for tail in tails}
    return Finding(radii, common.assumptions)


def decoder_logits(parts: Composition, z: Tensor) -> Tensor:
    """What the decoder computes before the likelihood's mean, flat, (n, D)."""
    assert parts.decoder is not None
    return output_of(parts.decoder, z).flatten(1)


def _moved_stddev(
    stddev: Tensor, constants: Constants, displacement: str
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """For radii of some rows: the largest standard deviation s and trace T of the difference."""
    norm = stddev.norm(dim=1)
    upper, total = stddev.square().amax(1).sqrt(), stddev.square().sum(1)

    def bound(rho: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        if displacement == "centered":
            return upper[rows], total[rows]
        before = stddev[rows].square()
        after = (stddev[rows] + constants.c * rho[:, None]).square()
        if constants.log_c < float("inf"):
            # `Grounds.stddev` is above 0, so that what has no logarithm grows too
            growth = stddev[rows] * (constants.log_c * rho[:, None]).exp()
            after = torch.minimum(after, growth.square())
        trace = torch.minimum(after.sum(1), (norm[rows] + constants.c * rho).square())
        if displacement == "paired":
            after, trace = before + after, total[rows] + trace
        return after.amax(1).sqrt(), trace

    def with_slack(rho: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        spread, trace = bound(rho, rows)
        return spread * (1 + bounds.SLACK), trace * (1 + bounds.SLACK)

    return with_slack


@dataclass(frozen=True)
class _Motion:
    """How far mean and spread may move: the constant, what rounding adds, and the spread."""

    b: float
    rounding: Tensor
    moved: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def shift_of(self, rho: Tensor, rows: Tensor) -> Tensor:
        """Bounds on the movement of the means of some rows."""
        return (self.b * rho + self.rounding[rows]) * (1 + bounds.SLACK)


def _margin(
    name: str,
    reach: Tensor,
    motion: _Motion,
    m: float,
    latent: int,
) -> Tensor:
    """The largest rho at which the method's probability is above m, (B,)."""
    b, shifts, shift_of = motion.b, motion.moved, motion.shift_of

    def ends(rho: Tensor) -> tuple[Tensor, Tensor]:
        return shift_of(rho, everyone), shifts(rho, everyone)[0]

    def holds(rho: Tensor) -> Tensor:
        spread, trace = shifts(rho, everyone)
        shift = shift_of(rho, everyone)
        if name == "trace_markov":
            return bounds.trace_markov_probability(reach, shift, trace) > m
        return bounds.noncentral_probability(reach, shift, spread, latent) > m

    def spare(rho: Tensor, rows: Tensor) -> Tensor:
        shift = shift_of(rho, rows)
        return bounds.isotropic_mass(reach[rows], shift, shifts(rho, rows)[0], latent) - m

    everyone = torch.arange(len(reach))
    if name == "noncentral" and m >= 0.5:
        # then no weaker bound takes the place of the isotropic mass
        return bounds.crossing(spare, reach / b, bounds.isotropic_guess(reach, ends, m, latent))
    return bounds.largest(holds, reach / b)


def _coordinatewise(encoder: Encoder, task: Task, reach: Tensor, shared: Grounds) -> Tensor:
    """The generalized chi-square's radius: a bound on the mean's movement in every coordinate.

    Only for exact standard deviations; a bound on the movement's length would not do.
    """
    ask, x, stddev = task.question, shared.images, shared.posterior.stddev
    if ask.displacement != "centered" and not encoder.parts.spread.is_constant:
        raise UnsupportedError(
            "the generalized chi-square wants a spread that does not move, got displacement "
            f"{ask.displacement!r} of a learned one; use displacement='centered'"
        )
    # a computed spread is off, which moves a draw by as much of a normal one's length; draws beyond
    # the quantile count as failures
    off = (shared.stddev - stddev).amax(1) * (1 + bounds.SLACK)
    length = bounds.chi_quantile(1 - _SPARE, stddev.shape[1]) * 2**0.5
    inner = (reach - off * length).clamp_min(1e-30)
    if ask.displacement == "paired":
        stddev = stddev * 2**0.5

    def shifts(radius: Tensor) -> Tensor:
        mean = encoder.over(x, radius).mean
        return torch.maximum(mean.upper, -mean.lower).clamp_min(0) + shared.shift[:, None]

    def holds(radius: Tensor) -> Tensor:
        return bounds.generalized_probability(inner, shifts(radius), stddev) > ask.m + _SPARE

    # so small a ball has nearly the slope at the input
    small = torch.full_like(reach, 1e-6)
    steepest = (shifts(small) / small[:, None]).amax(1)
    upper = (reach + 3 * stddev.amax(1)) / steepest
    return bounds.largest(holds, upper, steps=10)
