"""`certify`: the best lower bound on the margin that can be proved, and what it rests on."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae import bounds
from robustvae.certificates.constants import (
    Constants,
    fixed_stddev,
    lipschitz_constants,
)
from robustvae.certificates.movement import Encoder, Movement, first, largest_radius
from robustvae.certificates.relaxations import METHODS, Method
from robustvae.certificates.tangent import tangent_reach
from robustvae.errors import (
    ConfigError,
    NonFiniteError,
    UnsupportedError,
    check_choice,
    check_count,
    check_images,
    check_positive,
    check_probability,
    check_type,
)
from robustvae.jacobians import jacobian
from robustvae.metrics import clopper_pearson
from robustvae.models import VAE, Gaussian, GaussianVAE, LipschitzVAE
from robustvae.models.base import check_weights, frozen
from robustvae.models.hierarchy import check_gaussian
from robustvae.models.layout import channels_last
from robustvae.seeding import draw, randn

DISPLACEMENTS = ("centered", "full", "paired")
KINDS = {
    "barrett": "deterministic",
    "envelope": "deterministic",
    "first_order": "first_order",
    "generalized": "deterministic",
    "neyman_pearson": "probabilistic",
    "noncentral": "deterministic",
    "tangent": "deterministic",
    "trace_markov": "deterministic",
}
"""Methods by name, and the kind of certificate each gives."""

GUARANTEED = ("noncentral", "trace_markov", "envelope", "tangent")
EVALUATION_FACTOR = 10.0
_SILENT = ("sigma(x) is kept under attack: silent about sigma(x + delta)",)


@final
@dataclass(frozen=True, eq=False)
class Certificate:
    """Lower bounds on robustness margins: each input is (r, m)-robust to every ||delta|| < radius.

    Attributes:
        radius: In the unit of the pixels, (B,), float64; 0 where nothing is proved.
        kind: "deterministic", "probabilistic" (each input's radius is false with probability at
            most 1 - `confidence`) or "first_order" (an extrapolation, no guarantee).
        confidence: 1 for a deterministic certificate.
        method: The bound that gave each radius, B names; "none" where nothing is proved.
        status: "ok" or "abstain", B of them.
        assumptions: What the statement rests on, or what is not covered.
        displacement: "centered", "paired" or "full".
        norm: "l2" or "linf".
        by_method: The radii of every method that was taken, each (B,); `radius` is their largest.
        box: Whether it holds only for perturbations that keep the pixels in [0, 1]; False: for
            all, hence for these too.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("lipschitz-vae", latent=2, image_shape=(1, 4, 4), hidden=[16])
        >>> x = torch.rand(2, 1, 4, 4)
        >>> lower = rv.certify(vae, x, r=1.0, m=0.5, displacement="centered",
        ...     generator=rv.generator(0))
        >>> lower.radius.shape, lower.kind, lower.box
        (torch.Size([2]), 'deterministic', False)
        >>> [name for name in lower.by_method if "envelope" not in name and "tangent" not in name]
        ['noncentral', 'trace_markov']
    """

    radius: Tensor
    kind: str
    confidence: float
    method: tuple[str, ...]
    status: tuple[str, ...]
    assumptions: tuple[str, ...]
    displacement: str
    norm: str
    by_method: dict[str, Tensor]
    box: bool = False

    def coverage(self, radii: Tensor) -> Tensor:
        """Share of the inputs certified beyond each radius, (K,) to (K,): a falling curve."""
        beyond = self.radius[None, :] > radii.to(self.radius)[:, None]
        return beyond.to(torch.float64).mean(1)


def certify(
    vae: VAE,
    x: Tensor,
    r: float,
    m: float,
    displacement: str,
    *,
    generator: torch.Generator,
    norm: str = "l2",
    methods: Sequence[str] | None = None,
    confidence: float = 0.999,
    draws: int = 1000,
    box: bool = False,
) -> Certificate:
    """Certify P(||Delta|| <= r) > m for every perturbation shorter than the radius returned.

    radius = sup {rho : F(t, D(rho)) > m}

    D bounds how far the posterior's mean moves, t the latent distance the decoder forgives, F the
    probability of staying within. By default the largest of the guaranteed methods, per input:

    - "noncentral": the noncentral chi-square, t = r / a (ours); only where F >= 1/2;
    - "trace_markov": Markov's bound with the exact trace, t = r / a (ours);
    - "envelope": the better of the two, with t from the saturation of the decoder's last sigmoid at
      this input (ours; centered and full);
    - "tangent": the same with a larger t, from how the logits of a decoder with sorts of pairs can
      move together (ours; centered and full). It takes the longest: tens of milliseconds an input.

    On request, one kind at a time: "barrett" ([Barrett22] Lemma 2; paired), "generalized" (the
    generalized chi-square, from bounds on the mean's movement in every coordinate, sigma fixed or
    centered; with "envelope" or "tangent" beside it their t), "neyman_pearson" (ours,
    probabilistic: any decoder and any architecture, by linear bounds on how the posterior moves;
    the method's name says which, "crown" or what it fell back to), and "first_order" (no guarantee,
    any Gaussian posterior; in units of sigma, and `by_method` the weaker forms beside it: spectral,
    and [Camuto21]'s with the Frobenius norm).

    Warning:
        Centered keeps sigma(x) of the clean input under attack. Where sigma is learned the deployed
        model draws with sigma(x + delta): that is `displacement="full"`.

    Args:
        vae: A `vae` or `lipschitz-vae`; hierarchies that climb from the data, and wrapped modules
            that can be traced, by "neyman_pearson"; any model by "first_order". What is not
            covered abstains, by name.
        x: Images in [0, 1], (B, C, H, W).
        r: l2 distance between outputs, in pixel units, positive.
        m: Probability wanted, in (0, 1).
        displacement: "centered": Delta = g(mu(x+d) + eta sigma(x)) - g(mu(x)); "paired": two
        independent
            draws; "full": Delta = g(mu(x+d) + eta sigma(x+d)) - g(mu(x)).
        generator: Spent by the evaluation error's probes and by the sampled methods.
        norm: "l2", or "linf": for Neyman-Pearson by bounds over that ball, else the l2 radius over
            sqrt(C H W).
        methods: Names of methods to take instead of the guaranteed ones; all of one kind.
        confidence: Of the probabilistic method, per input, in (0, 1).
        draws: Of the sampled methods, per input.
        box: Speak only of perturbations that keep the pixels in [0, 1], which "neyman_pearson"
            makes use of; the other methods' certificates are as without.

    Returns:
        A `Certificate`; radius 0 and status "abstain" where nothing can be proved.

    Raises:
        UnknownNameError: An unknown displacement, norm or method.
        ConfigError: Methods of several kinds at once, or none.
        RangeError: r, m, confidence or draws out of range, or a pixel outside [0, 1].
        NonFiniteError: A weight or a clean reconstruction that is not finite.

    References:
        docs/theory.md, "Certificates"; [Barrett22] Theorem 1 and Lemma 2; [Camuto21] Theorem 1.

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.load("digits-lipschitz-vae")
        >>> x = rv.data.load("digits", split="test").x[:4]
        >>> lower = rv.certify(vae, x, r=1.0, m=0.5, displacement="centered",
        ...     generator=rv.generator(0))
        >>> lower.kind, lower.status
        ('deterministic', ('ok', 'ok', 'ok', 'ok'))
    """
    check_type(vae, "vae", VAE)
    check_images(x, vae.image_shape)
    vae.check(x)
    check_weights(vae)
    check_positive(r, "r")
    check_probability(m, "m")
    check_choice("displacement", displacement, DISPLACEMENTS)
    check_choice("norm", norm, ("l2", "linf"))
    check_probability(confidence, "confidence")
    check_count(draws, "draws")
    wanted = tuple(GUARANTEED if methods is None else methods)
    if isinstance(methods, str) or not wanted:
        raise ConfigError(f"methods must be a list of names, got {methods!r}")
    for name in wanted:
        check_choice("method", name, KINDS)
    kinds = {KINDS[name] for name in wanted}
    if len(kinds) > 1:
        raise ConfigError(f"methods of several kinds at once: {', '.join(sorted(kinds))}")
    kind = kinds.pop()
    box = box and kind == "probabilistic"
    question = _Question(r, m, displacement, norm, confidence, draws, box)
    with frozen(vae), torch.no_grad():
        try:
            found, assumptions = _radii(vae, x, question, wanted, generator)
        except UnsupportedError as refusal:
            found, assumptions = {}, (f"not covered: {refusal}",)
    # not a number is not a proof
    by_method = {name: bound.nan_to_num(nan=0.0, posinf=torch.inf) for name, bound in found.items()}
    if norm == "linf" and kind != "probabilistic":
        per_pixel = x[0].numel() ** -0.5 * (1 - bounds.SLACK)
        by_method = {name: radii * per_pixel for name, radii in by_method.items()}
        assumptions = (*assumptions, "linf from l2: ||d||_2 <= sqrt(C H W) ||d||_inf")
    radius = torch.zeros(len(x), dtype=torch.float64)
    method = ["none"] * len(x)
    for name, radii in by_method.items():
        for i in (radii > radius).nonzero()[:, 0].tolist():
            method[i] = name
        radius = torch.maximum(radius, radii)
    return Certificate(
        radius=radius.to(x.device),
        kind=kind,
        confidence=confidence if kind == "probabilistic" else 1.0,
        method=tuple(method),
        status=tuple("ok" if value > 0 else "abstain" for value in radius.tolist()),
        assumptions=assumptions,
        displacement=displacement,
        norm=norm,
        by_method={name: radii.to(x.device) for name, radii in by_method.items()},
        box=box,
    )


@dataclass(frozen=True)
class _Question:
    r: float
    m: float
    displacement: str
    norm: str
    confidence: float
    draws: int
    box: bool


def _radii(
    vae: VAE, x: Tensor, ask: _Question, methods: tuple[str, ...], generator: torch.Generator
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The radius of each input by each method that applies, and the assumptions.

    In l2, but in the norm that was asked for by Neyman-Pearson.
    """
    if methods == ("first_order",):
        return _first_order(vae, x, ask, generator)
    if methods == ("neyman_pearson",):
        return _neyman_pearson(vae, x, ask, generator)
    constants = lipschitz_constants(vae)
    exact = copy.deepcopy(vae).to("cpu", torch.float64)
    posterior = exact.encode(x.to("cpu", torch.float64))
    error = evaluation_error(vae, exact, x, constants, generator)
    r = ask.r * (1 - 1e-9) - 2 * error
    assumptions = [
        "the stored weights, in exact arithmetic",
        f"evaluation in {str(vae.dtype).removeprefix('torch.')} moves an output by at most "
        f"{error:.1e} ({EVALUATION_FACTOR:g} times the largest seen); twice that is taken from r",
    ]
    if ask.displacement == "centered" and not constants.fixed_stddev:
        assumptions += _SILENT
    if r <= 0:
        return {}, (*assumptions, "not covered: the evaluation error is larger than r")
    found: dict[str, Tensor] = {}
    stddev = posterior.stddev * (1 + 1e-9)
    moved = _moved_stddev(stddev, constants, ask.displacement)
    reach = torch.full((len(x),), r / constants.a, dtype=torch.float64)
    reaches = {"": reach}
    if "envelope" in methods and constants.sigmoid and ask.displacement != "paired":
        logits = _logits(exact, posterior.mean)
        wide = bounds.envelope_reach(logits, r) / constants.a_logits * (1 - bounds.SLACK)
        reaches["envelope, "] = torch.maximum(reach, wide)
    if "tangent" in methods and constants.sigmoid and ask.displacement != "paired":
        assert isinstance(exact, GaussianVAE | LipschitzVAE)
        with contextlib.suppress(UnsupportedError):  # a decoder of other layers
            wide = tangent_reach(exact.decoder, posterior.mean, r) * (1 - bounds.SLACK)
            reaches["tangent, "] = torch.maximum(reach, wide)
    for name in ("noncentral", "trace_markov"):
        if name in methods:
            found[name] = _margin(name, reach, moved, constants.b, ask.m, vae.latent)
        for kind, wide in list(reaches.items())[1:]:
            found[f"{kind}{name}"] = _margin(name, wide, moved, constants.b, ask.m, vae.latent)
    if "generalized" in methods:
        widest = torch.stack(list(reaches.values())).amax(0)
        encoder, images = Encoder(exact, spread=False), x.to("cpu", torch.float64)
        found["generalized"] = _coordinatewise(encoder, images, widest, posterior.stddev, ask)
    if "barrett" in methods:
        if ask.displacement != "paired":
            raise UnsupportedError("[Barrett22] Lemma 2 speaks of the paired displacement only")
        found["barrett"] = bounds.barrett_margin(
            stddev.norm(dim=1),
            r=r,
            m=ask.m,
            a=constants.a,
            b=constants.b,
            c=constants.c,
            latent=vae.latent,
        )
    return found, tuple(assumptions)


def _neyman_pearson(
    vae: VAE, x: Tensor, ask: _Question, generator: torch.Generator
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Any decoder: what happens at the clean input goes on while the posterior moves little."""
    exact = copy.deepcopy(vae).to("cpu", torch.float64)
    still = ask.displacement == "centered" or fixed_stddev(vae)
    encoder = Encoder(exact, spread=not still)
    images = x.to("cpu", torch.float64)
    error = torch.zeros(2, len(x), dtype=torch.float64)
    if vae.dtype != torch.float64:
        for size in (0.0, 0.1, 1.0):
            probe = x + size * randn(*x.shape, like=x, generator=generator)
            q, own = first(vae, probe, encoder.width), encoder.posterior(probe.cpu().double())
            mean, spread = q.mean.cpu().double(), q.stddev.cpu().double()
            stddev = encoder.posterior(images).stddev
            of_mean = ((mean - own.mean) / stddev).norm(dim=1)
            of_stddev = (spread / own.stddev - 1).abs().amax(1)
            error = torch.maximum(error, torch.stack([of_mean, of_stddev]))
    error = 2 * EVALUATION_FACTOR * error
    failure = 1 - _rest_probability(vae, x, ask, generator)
    found = [
        _smoothing_radius(encoder, images[i], failure[i], error[0, i], float(error[1].max()), ask)
        for i in torch.arange(len(x)).split(16)
    ]
    radius = torch.cat([part for part, _ in found])
    method = min((used for _, used in found), key=METHODS.index)
    return {f"neyman_pearson, {method}": radius}, (
        "the stored weights, in exact arithmetic",
        f"{ask.draws} draws at the clean input; confidence {ask.confidence:g} for each input",
        f"evaluation in {str(vae.dtype).removeprefix('torch.')} moves a latent by at most "
        f"{float(error[0].max()) / 2:.1e} standard deviations ({EVALUATION_FACTOR:g} times the "
        "largest seen); twice that is taken off",
        *_SILENT[: ask.displacement == "centered" and not fixed_stddev(vae)],
    )


def _smoothing_radius(
    encoder: Encoder,
    x: Tensor,
    failure: Tensor,
    error: Tensor,
    spread_error: float,
    ask: _Question,
) -> tuple[Tensor, Method]:
    """The largest radius at which Neyman-Pearson keeps the event, and how the encoder was bounded.

    `failure` bounds how rarely the event fails at the clean input, `error` what evaluation does to
    the mean, in standard deviations, and `spread_error` to these, relatively.
    """
    stddev = encoder.posterior(x).stddev
    budget = bounds.neyman_pearson_shift(1 - failure, ask.m) - error
    possible = (failure < 1 - ask.m) & (budget > 0)
    budget = torch.where(possible, budget, 1.0)
    failure = torch.where(possible, failure, (1 - ask.m) / 2)
    allowed = (1 - ask.m) * (1 - bounds.CDF_SLACK)
    used: list[Method] = []

    def moved(radius: Tensor) -> tuple[Movement, Tensor]:
        found = encoder.over(x, radius, norm=ask.norm, box=ask.box)
        used.append(found.method)
        return found, found.length((1 + bounds.SLACK) / stddev)

    def share(radius: Tensor) -> Tensor:
        found, shift = moved(radius)
        if not encoder.spread:
            return shift / budget
        least, most = found.least * (1 - spread_error), found.most * (1 + spread_error)
        after = bounds.moved_failure(failure, shift + error, stddev, least, most)
        spent = ((after / failure).log() / (allowed / failure).log()).clamp_min(0).sqrt()
        return torch.where(after <= allowed, spent.clamp(max=1.0), spent.clamp_min(1.0 + 1e-9))

    small = torch.full_like(failure, 1e-6)
    linear = small * budget / moved(small)[1]
    radius = largest_radius(share, linear / 4, 1.5 * linear)
    return radius * possible, min(used, key=METHODS.index)


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


def _coordinatewise(
    encoder: Encoder, x: Tensor, reach: Tensor, stddev: Tensor, ask: _Question
) -> Tensor:
    """The generalized chi-square's radius: a bound on the mean's movement in every coordinate.

    Only for exact standard deviations; a bound on the movement's length would not do.
    """
    if ask.displacement != "centered" and not fixed_stddev(encoder.vae):
        raise UnsupportedError("the generalized chi-square with a spread that moves")
    if ask.displacement == "paired":
        stddev = stddev * 2**0.5

    def shifts(radius: Tensor) -> Tensor:
        mean = encoder.over(x, radius).mean
        return torch.maximum(mean.upper, -mean.lower).clamp_min(0)

    def holds(radius: Tensor) -> Tensor:
        return bounds.generalized_probability(reach, shifts(radius), stddev) > ask.m

    small = torch.full_like(reach, 1e-6)
    steepest = (shifts(small) / small[:, None]).amax(1)
    upper = (reach + 3 * stddev.amax(1)) / steepest
    return bounds.largest(holds, upper, steps=10)


def _first_order(
    vae: VAE, x: Tensor, ask: _Question, generator: torch.Generator
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    posterior = vae.encode(x)
    check_gaussian(posterior, "first_order")
    low = _rest_probability(vae, x, ask, generator)
    with torch.enable_grad():
        slopes = jacobian(lambda images: vae.encode(images).mean, x).cpu()
    stddev = posterior.stddev.cpu()
    usable = (stddev > 0).all(1) & slopes.isfinite().flatten(1).all(1)
    rows = usable.nonzero()[:, 0]
    formulas = {
        "first_order": bounds.first_order_margin,
        "first_order, spectral": bounds.spectral_margin,
        "first_order, Frobenius": bounds.camuto_margin,
    }
    found = {name: torch.zeros_like(low) for name in formulas}
    for name, formula in formulas.items() if len(rows) else ():
        found[name][rows] = formula(low[rows], ask.m, slopes[rows], stddev[rows])
    assumptions: tuple[str, ...] = ("a linear extrapolation of the encoder's mean, no guarantee",)
    if len(rows) < len(x):
        count = len(x) - len(rows)
        assumptions += (f"not covered: {count} inputs without a positive spread or finite slopes",)
    return found, assumptions


def _rest_probability(vae: VAE, x: Tensor, ask: _Question, generator: torch.Generator) -> Tensor:
    """Clopper-Pearson lower bound on P(||Delta|| <= r) at the clean input, (B,)."""
    posterior = vae.encode(x)
    mean = posterior.mean
    clean = vae.decode(mean).mean.flatten(1)
    if not bool(clean.isfinite().all()):
        raise NonFiniteError("the clean reconstructions hold a NaN or an infinity")
    if ask.displacement == "centered":
        check_gaussian(posterior, "displacement 'centered'")
        posterior = Gaussian(mean, posterior.stddev)
    inside = torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def decoded(draws: int) -> Tensor:
        z = draw(posterior, (draws,), generator=generator)
        return vae.decode(z.flatten(0, 1)).mean.flatten(1).unflatten(0, (draws, len(x)))

    together = max(1, 256 // len(x))
    with channels_last(vae):
        for start in range(0, ask.draws, together):
            draws = min(together, ask.draws - start)
            one = decoded(draws)
            other = decoded(draws) if ask.displacement == "paired" else clean
            inside += ((one - other).norm(dim=2) <= ask.r).sum(0)
    low, _ = clopper_pearson(inside.cpu(), ask.draws, ask.confidence, sides=1)
    return torch.as_tensor(low, dtype=torch.float64)


def evaluation_error(
    vae: VAE, exact: VAE, x: Tensor, constants: Constants, generator: torch.Generator
) -> float:
    """How far an output moves because the model runs in its own floating type, in l2.

    The largest difference seen between `vae` and its float64 copy `exact`, on the images, on the
    images under noise and on draws of their latents, times `EVALUATION_FACTOR`. 0 for float64.

    Args:
        vae: The model as stored.
        exact: The same in float64, on the CPU.
        x: Images in [0, 1], (B, C, H, W).
        constants: Of the model.
        generator: Spent by the noise.
    """
    if vae.dtype == torch.float64:
        return 0.0

    def gap(one: Tensor, other: Tensor) -> float:
        return float((one.double().cpu() - other).flatten(1).norm(dim=1).max())

    latent = output = 0.0
    for size in (0.0, 0.1, 1.0):
        images = x + size * randn(*x.shape, like=x, generator=generator)
        q, q_exact = vae.encode(images), exact.encode(images.double().cpu())
        noise = randn(*q.mean.shape, like=q.mean, generator=generator)
        z = q.mean + q.stddev * noise
        z_exact = q_exact.mean + q_exact.stddev * noise.double().cpu()
        latent = max(latent, gap(z, z_exact))
        output = max(output, gap(vae.decode(z).mean, exact.decode(z.double().cpu()).mean))
    return EVALUATION_FACTOR * (output + constants.a * latent)
