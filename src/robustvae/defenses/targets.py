"""What samplers and mode searches climb: the posterior of an image, and the robust posterior."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import final

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.errors import (
    RangeError,
    UnsupportedError,
    check_number,
    check_positive,
    check_type,
)
from robustvae.jacobians import jacobian
from robustvae.mcmc import LogDensity, Target
from robustvae.models.base import VAE, frozen
from robustvae.models.deviances import Deviance
from robustvae.models.hierarchy import conditionals
from robustvae.models.layout import channels_last
from robustvae.models.likelihoods import Bernoulli, Distribution, kind_of
from robustvae.perturb import Ball

_COLD_SWEEPS = 12  # Newton's steps on the logits from 0, which arrive for every multiplier
_WARM_SWEEPS = 2  # from where they were for a multiplier nearby
_WARM_STEPS = 2  # on a Gaussian's multiplier, from that of a step of the search before
_WARM_TRIES = 6  # rounds, before all begins anew: after a step of a search one or two are enough
_POLISH = 2  # more of these steps, of which each squares a remainder of a thousandth
_NEAR = 1e-3  # of the radius by which a warm point may miss the sphere, before it is put there
_LEAST_POWER = -14.0  # of the multiplier: below it no ball holds anything back


@checked()
def posterior(vae: VAE, x: Tensor, *, floor: float | None = None) -> Target:
    """log p(x | z) + log p(z): the posterior of each image, up to a constant, in nats.

    In a hierarchy z is all its layers at once, and log p(z) the sum of every layer's log density
    given those above it.

    Args:
        vae: The model.
        x: Images in [0, 1], (B, C, H, W).
        floor: Cut a Bernoulli likelihood's probabilities to [floor, 1 - floor], in (0, 0.5); None
            takes them as they are. A pixel beyond has no slope, so that gray where the decoder is
            sure of black pulls at no latent.

    Returns:
        Latents (B, d) to log densities (B,).

    Raises:
        RangeError: `floor` outside (0, 0.5).
        UnsupportedError: When called, `floor` with another likelihood than Bernoulli.

    References:
        [Kuzina22] section 3, Eq. 9; its published code has a floor of 1e-5.
    """
    check_floor(floor)
    return _Posterior(vae, x, floor)


@final
@dataclass(frozen=True, eq=False)
class _Posterior:
    vae: VAE
    x: Tensor
    floor: float | None

    def __call__(self, z: Tensor) -> Tensor:
        if self.floor is None:
            return self.vae.log_joint(self.x, z)
        self.vae.check(self.x)
        self.vae.check_latent(z, len(self.x))
        likelihood, prior = self.vae.given(z)
        fit = _cut(likelihood, self.floor).log_prob(self.x)
        return fit.flatten(1).sum(1) + prior.log_prob(z).sum(1)

    def rows(self, index: Tensor) -> _Posterior:
        return _Posterior(self.vae, self.x[index], self.floor)


def _cut(likelihood: Distribution, floor: float) -> Bernoulli:
    if not isinstance(likelihood, Bernoulli):
        raise UnsupportedError(
            f"a floor is for a Bernoulli likelihood, got {kind_of(likelihood)}: leave floor at None"
        )
    limit = math.log((1 - floor) / floor)
    return Bernoulli(likelihood.logits.clamp(-limit, limit))


def check_floor(floor: float | None) -> None:
    """Raise unless probabilities can be cut to [floor, 1 - floor], or `floor` is None."""
    if floor is not None:
        check_positive(floor, "floor")
        if not floor < 0.5:
            raise RangeError(f"floor must lie strictly between 0 and 0.5, got {floor:g}")


def target_of(vae: VAE, x: Tensor, ball: Ball | None, floor: float | None = None) -> Target:
    """The posterior of each image where `ball` is None, else its robust posterior."""
    if ball is None:
        return posterior(vae, x, floor=floor)
    return RobustTarget(vae, x, ball.norm, float(ball.radius))


@contextlib.contextmanager
def in_bfloat16(vae: VAE) -> Iterator[VAE]:
    """Within: a copy of the model in bfloat16, fit to drive trajectories and to judge none.

    Raises:
        UnsupportedError: The model has no weights, as where `wrap` was given plain functions.
    """
    if next(vae.parameters(), None) is None:
        raise UnsupportedError("a force in bfloat16 needs a model whose weights can be converted")
    low = copy.deepcopy(vae).bfloat16()
    with frozen(low), channels_last(low):
        yield low


def driven_by(low: VAE, x: Tensor, ball: Ball | None, floor: float | None) -> LogDensity:
    """`target_of` by a model in another floating type than `x`, for latents in that of `x`."""
    target = target_of(low, x.to(low.dtype), ball, floor)
    return lambda z: target(z.to(low.dtype)).to(z.dtype)


def check_ball(ball: Ball | None) -> None:
    """Raise unless a defense can know this ball: one radius, pixels kept in [0, 1]."""
    if ball is None:
        return
    check_type(ball, "ball", Ball)
    check_number(ball.radius, "the radius that a defense assumes")
    if (ball.low, ball.high) != (0.0, 1.0):
        raise RangeError("the robust posterior needs a ball that keeps pixels in [0, 1]")


def _with_frozen_model(read: Callable[[VAE, Tensor], Tensor]) -> Callable[[VAE, Tensor], Tensor]:
    """The function, within which its model is frozen."""

    @functools.wraps(read)
    def read_frozen(vae: VAE, z: Tensor) -> Tensor:
        with frozen(vae):
            return read(vae, z)

    return read_frozen


@checked(formula=True)
@_with_frozen_model
def fisher(vae: VAE, z: Tensor) -> Tensor:
    """The posterior's precision by the decoder's linearization: prior precision + J' W J.

    J is the Jacobian of the likelihood's parameters (logits; means and log spreads), and W the
    likelihood's Fisher information: the pixel variance; for a Gaussian the inverse variance, and
    2 for the log spread. The prior's precision is R' R, R the Jacobian of every layer's
    (z - mean) / stddev given the layers above, the spreads held fixed. It does not depend on the
    image.

    The cost is one forward product of the decoder a latent dimension.

    Args:
        vae: The model.
        z: Latents, (B, d).

    Returns:
        Positive definite matrices, (B, d, d), without a graph.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.defenses import fisher
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> torch.linalg.eigvalsh(fisher(vae, torch.zeros(1, 2))).min() >= 1
        tensor(True)
    """

    def parameters(z: Tensor) -> Tensor:
        p = vae.decode(z)
        return deviance_of(p).unit_parameters(p.stddev)

    def standardized(z: Tensor) -> Tensor:
        layers = conditionals(vae.prior(), z)
        return (z - layers.mean) / layers.stddev.detach()

    rows = jacobian(parameters, z, mode="forward")
    above = jacobian(standardized, z, mode="forward")
    return rows.mT @ rows + above.mT @ above


def fisher_scale(vae: VAE, z: Tensor) -> Tensor:
    """A with A A' = `fisher`^-1: it whitens the posterior where the decoder is linear.

    So must be the means of a hierarchy's layers.

    Args:
        vae: The model.
        z: Latents, (B, d).

    Returns:
        Upper triangular square roots, (B, d, d), without a graph.
    """
    precision = fisher(vae, z)
    inverse_root = torch.linalg.cholesky(precision)
    identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).expand_as(precision)
    return torch.linalg.solve_triangular(inverse_root.mT, identity, upper=True)


@final
@dataclass(frozen=True, eq=False)
class RobustTarget:
    r"""The robust posterior: every latent is judged against the image in the ball that suits it.

    -U_R(z; x) = -min over x' in the ball and in [0, 1] of {dev(x' | z)} - rest(z) + log p(z),
    where dev is the likelihood's deviance: for Bernoulli sum KL(Ber(x'_i) | Ber(g_i)), for a
    Gaussian sum (x'_i - g_i)^2 / 2 s_i^2, and rest is what remains of its log density. At
    radius 0 it is the posterior up to a constant. If x = clean + e with e in the ball, then
    U_R(z; x) <= U_0(z; clean) for every z.

    The gradient is the likelihood's at the fixed x' (the envelope theorem).

    Args:
        vae: The model.
        x: Images in [0, 1], (B, C, H, W).
        norm: "linf" or "l2".
        radius: Radius of the ball, in pixel units.

    Raises:
        UnsupportedError: When called, for a likelihood without `deviance()`; Bernoulli,
            continuous Bernoulli and Gaussian do.
    """

    vae: VAE
    x: Tensor
    norm: str
    radius: float
    _warm: _Warm = field(default_factory=lambda: _Warm(), repr=False, compare=False)
    _exact: _Warm = field(default_factory=lambda: _Warm(polish=True), repr=False, compare=False)

    def __call__(self, z: Tensor) -> Tensor:
        """-U_R, in nats, (B,), at latents (B, d)."""
        p = self.vae.decode(z)
        with torch.no_grad():
            deviance = deviance_of(p)
            best = _nearest(deviance, self.x, self.norm, self.radius, self._warm)
            offset = deviance.negative_entropy(best)
        return (p.log_prob(best) - offset).flatten(1).sum(1) + self._prior(z)

    def rows(self, index: Tensor) -> RobustTarget:
        """The robust posterior of the images `index`, (b,) whole numbers, alone."""
        return replace(self, x=self.x[index], _warm=_Warm(), _exact=_Warm(polish=True))

    def with_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """-U_R, (B,), and its gradient, (B, d), both differentiable in `x` and `z`."""
        p = self.vae.decode(z)
        best = _nearest(deviance_of(p), self.x, self.norm, self.radius, self._exact)
        # x' must stay fixed in the first derivative and move in the second: differentiate
        # by copies of the likelihood's parameters that x' does not depend on.
        parameters = {name: q for name, q in _parameters(p).items() if q.requires_grad}
        copies = {name: q.view_as(q) for name, q in parameters.items()}
        fit = replace(p, **copies).log_prob(best).flatten(1)  # type: ignore[type-var]
        pull = torch.autograd.grad(fit.sum(), list(copies.values()), create_graph=True)
        values = list(parameters.values())
        (gradient,) = torch.autograd.grad(values, z, pull, create_graph=True)
        prior = self._prior(z)
        (towards_prior,) = torch.autograd.grad(prior.sum(), z, create_graph=True)
        offset = deviance_of(p).negative_entropy(best).flatten(1)
        return (fit - offset).sum(1) + prior, gradient + towards_prior

    def _prior(self, z: Tensor) -> Tensor:
        return self.vae.prior().log_prob(z).sum(1)


def nearest(p: Distribution, x: Tensor, norm: str, radius: float) -> Tensor:
    """The image in the ball around `x`, and in [0, 1], that the likelihood `p` finds easiest.

    It minimizes the deviance, which is not the distance: for a Bernoulli likelihood and the
    2-norm it is not the projection of the mean.

    Args:
        p: Likelihood over images, (B, C, H, W).
        x: Center of the ball, in [0, 1], (B, C, H, W).
        norm: "linf" or "l2".
        radius: Radius of the ball, in pixel units.

    Returns:
        Images in [0, 1], (B, C, H, W), differentiable in `p` and `x`.

    Raises:
        UnsupportedError: A likelihood without `deviance()`, such as the Laplace.

    Examples:
        >>> import torch
        >>> from robustvae.defenses.targets import nearest
        >>> from robustvae.models import Bernoulli
        >>> x = torch.tensor([0.7, 0.0]).view(1, 1, 1, 2)
        >>> nearest(Bernoulli(torch.tensor([9.0, 0.0]).view(1, 1, 1, 2)), x, "linf", 0.25)
        tensor([[[[0.9500, 0.2500]]]])
    """
    return _nearest(deviance_of(p), x, norm, radius, None)


@dataclass(eq=False)
class _Warm:
    """Where the last solution of one target lay: the next one, a step of a search on, is near.

    With `polish` the next one is as exact as one from scratch, up to rounding: what is
    differentiated should not depend on the way it was reached.
    """

    power: Tensor | None = None  # log of the multiplier, (B, 1, 1, 1)
    logit: Tensor | None = None  # of the image, (B, C, H, W)
    polish: bool = False


def _nearest(p: Deviance, x: Tensor, norm: str, radius: float, warm: _Warm | None) -> Tensor:
    center = p.center
    if norm == "linf":
        low, high = (x - radius).clamp(0, 1), (x + radius).clamp(0, 1)
        return torch.minimum(torch.maximum(center, low), high)
    free = center.clamp(0, 1)
    inside = ((free - x).flatten(1).norm(dim=1) <= radius).view(-1, 1, 1, 1)
    with torch.no_grad():
        point, multiplier = _boundary(p, x, radius, inside, warm)
    return torch.where(inside, free, _differentiable(p, x, point, multiplier, radius))


def _boundary(
    p: Deviance, x: Tensor, radius: float, inside: Tensor, warm: _Warm | None
) -> tuple[Tensor, Tensor]:
    """Solve deviance'(x') + nu (x' - x) = 0 with ||x' - x|| = radius for x' and nu.

    From scratch: Newton's steps on 1/||x' - x|| = 1/radius, nearly linear in nu, within a bracket
    of log nu; a step that leaves the bracket halves it instead. Where the caller keeps the last
    solution, a few steps on all unknowns at once go on from there; what these do not bring to the
    sphere, to a thousandth, is solved from scratch.
    """
    solution = None
    if reads_back(x) and warm is not None and warm.power is not None and len(warm.power) == len(x):
        solution = _continued(p, x, radius, inside, warm)
    if solution is None:
        power, _, _ = _newton(p, x, radius, None, 8 if x.dtype == torch.float32 else 16)
        solution = power, *p.minimizer(x, power.exp(), None, _COLD_SWEEPS)
    power, point, logit = solution
    if warm is not None:
        warm.power, warm.logit = power, logit
    size = (point - x).flatten(1).norm(dim=1).clamp_min(radius).view(-1, 1, 1, 1)
    return x + (point - x) * (radius / size), power.exp()


def _continued(
    p: Deviance, x: Tensor, radius: float, inside: Tensor, warm: _Warm
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Log multiplier, x' and its logits from those of the last solution; None where it is far."""
    assert warm.power is not None
    power, logit = warm.power, warm.logit
    remaining_polish = _POLISH if warm.polish else 0
    for _ in range(_WARM_TRIES):
        if logit is None or p.logits is None:
            power, _, _ = _newton(p, x, radius, (power, None), _WARM_STEPS)
            point, _ = p.minimizer(x, power.exp(), None, 0)
        else:
            power, logit = _joint_step(p.logits, x, radius, power, logit)
            point = torch.sigmoid(logit)
        size = (point - x).flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        if not bool((((size / radius - 1).abs() > _NEAR) & ~inside).any()):
            if not remaining_polish:
                return power, point, logit
            remaining_polish -= 1
    return None


def _joint_step(
    logits: Tensor, x: Tensor, radius: float, power: Tensor, logit: Tensor
) -> tuple[Tensor, Tensor]:
    """A Newton step on the log multiplier and the logits of x' together.

    The equations are l + nu (s(l) - x) = logits at each pixel, s the sigmoid, and
    ||s(l) - x||^2 = radius^2. A step costs one pass over the pixels, where solving for the logits
    within each step on nu costs two or more.
    """
    nu, value = power.exp(), torch.sigmoid(logit)
    offset = value - x
    force = torch.addcmul(logit - logits, nu, offset)
    variance = torch.addcmul(value, value, value, value=-1)
    stiffness = 1 + nu * variance
    weight = offset * variance / stiffness
    along, strength, square = (
        torch.stack([weight * force, weight * offset, offset * offset])
        .sum((2, 3, 4))
        .unsqueeze(2)
        .unsqueeze(3)
        .unsqueeze(4)
    )
    tiny = torch.finfo(x.dtype).tiny
    change = (0.5 * (square - radius**2) - along) / strength.clamp_min(tiny)
    # the equations are nearly straight over a factor of four; the multiplier stays positive, and
    # that of a point which has just left the ball starts near 0 and must not be held there
    change = torch.minimum(torch.maximum(change, -0.75 * nu), 3 * nu + 1)
    logit = logit - torch.addcmul(force, change, offset) / stiffness
    nu = nu + change
    target = torch.addcmul(logits, nu, x)
    # the root lies between c - nu and c: a step from afar may not leave that
    return nu.log().clamp_min(_LEAST_POWER), torch.clamp(logit, target - nu, target)


def reads_back(x: Tensor) -> bool:
    """Whether looking at a value costs nothing: on an accelerator the search would wait for it."""
    return x.device.type == "cpu"


def _newton(
    p: Deviance,
    x: Tensor,
    radius: float,
    begin: tuple[Tensor, Tensor | None] | None,
    steps: int,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Log multiplier, logits of the image (None for a Gaussian), and ||x' - x|| before the last."""
    low = torch.full_like(x[:, :1, :1, :1], _LEAST_POWER)
    high = -low
    power, logit = (torch.zeros_like(low), None) if begin is None else begin
    size, tiny = low, torch.finfo(x.dtype).tiny
    for _ in range(steps):
        multiplier = power.exp()
        # from scratch the multiplier jumps, and the logits begin anew with each of its values
        selection, sweeps = (None, _COLD_SWEEPS) if begin is None else (logit, _WARM_SWEEPS)
        shift, logit = p.minimizer(x, multiplier, selection, sweeps)
        slack = (shift - x).square() * p.compliance(shift, multiplier)
        size = (shift - x).flatten(1).norm(dim=1).clamp_min(tiny).view(-1, 1, 1, 1)
        far = size > radius
        low, high = torch.where(far, power, low), torch.where(far, high, power)
        slack = slack.sum((1, 2, 3), keepdim=True).clamp_min(tiny)
        target = (multiplier + (size / radius - 1) * size.square() / slack).clamp_min(tiny).log()
        outside = (target < low) | (target > high)
        power = torch.where(outside, 0.5 * (low + high), target)
    return power, logit, size


def _differentiable(
    p: Deviance, x: Tensor, found: Tensor, multiplier: Tensor, radius: float
) -> Tensor:
    """`found`, with the derivatives that the implicit function theorem gives it."""
    if not (torch.is_grad_enabled() and (x.requires_grad or p.center.requires_grad)):
        return found
    compliance = p.compliance(found, multiplier)
    force = p.force(found) + multiplier * (found - x)
    offset = (found - x).detach()
    excess = 0.5 * ((found - x).flatten(1).square().sum(1) - radius**2).view(-1, 1, 1, 1)
    along = (offset * force * compliance).sum((1, 2, 3), keepdim=True)
    strength = (offset.square() * compliance).sum((1, 2, 3), keepdim=True)
    change = (excess - along) / strength.clamp_min(torch.finfo(x.dtype).tiny)
    step = -compliance * (force + change * offset)
    return found + (step - step.detach())


def deviance_of(p: Distribution) -> Deviance:
    """What a likelihood says of its deviance.

    Raises:
        UnsupportedError: A likelihood that says nothing of it, by its name.
    """
    says = getattr(p, "deviance", None)
    if says is None:
        raise UnsupportedError(
            "the robust posterior needs a likelihood with deviance(), such as Bernoulli, "
            f"continuous Bernoulli or Gaussian, got {kind_of(p)}"
        )
    deviance: Deviance = says()
    return deviance


def _parameters(p: Distribution) -> dict[str, Tensor]:
    """The tensors that a likelihood holds, by the names of their fields."""
    if not is_dataclass(p):
        raise UnsupportedError(
            "the derivative of the robust posterior needs a likelihood that is a dataclass of its "
            f"tensors, got {kind_of(p)}"
        )
    return {
        each.name: value for each in fields(p) if isinstance(value := getattr(p, each.name), Tensor)
    }
