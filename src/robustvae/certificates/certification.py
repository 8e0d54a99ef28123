"""`certify`: the best lower bound on the margin that can be proved, and what it rests on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from robustvae import bounds
from robustvae.arguments import checked
from robustvae.certificates.certificate import Certificate, joined
from robustvae.certificates.methods import Finding, Method, NeymanPearson, Task
from robustvae.certificates.question import Question, one_question
from robustvae.data.verbs import reads_inputs
from robustvae.defenses import Victim, is_random
from robustvae.errors import (
    ConfigError,
    DtypeError,
    UnsupportedError,
    check_count,
    check_images,
    check_probability,
    check_type,
)
from robustvae.models import VAE
from robustvae.models.base import check_weights, frozen
from robustvae.records import Failure, failure, pieces, plain
from robustvae.registry import build, name_of
from robustvae.rounding import floor
from robustvae.seeding import row_numbers

GUARANTEED = ("noncentral", "trace_markov", "envelope", "tangent")
"""The deterministic methods that are asked by default."""


@reads_inputs("x")
@checked()
def certify(
    vae: VAE | Victim,
    x: Tensor,
    r: float | None = None,
    m: float = 0.5,
    displacement: str = "full",
    *,
    generator: torch.Generator,
    question: Question | None = None,
    center: str | None = None,
    norm: str = "l2",
    methods: Sequence[Any] | None = None,
    confidence: float = 0.999,
    draws: int | None = None,
    box: bool = False,
    rows: Sequence[int] | None = None,
) -> Certificate:
    """Certify P(||Delta|| <= r) > m for every perturbation shorter than the radius returned.

    By default the largest of the guaranteed methods, per input:

    - "noncentral": the noncentral chi-square, t = r / a (ours); only where F >= 1/2;
    - "trace_markov": Markov's bound with the exact trace, t = r / a (ours);
    - "envelope": the better of the two, with t from the saturation of the decoder's last sigmoid at
      this input (ours; centered and full);
    - "tangent": the same with a larger t, from how the logits of a decoder with sorts of pairs can
      move together (ours; centered and full). It takes the longest: some milliseconds an input.

    Of a `Victim` with noise on its input (`InputNoise`), whatever its model: "smoothing" (ours,
    probabilistic; no weights are read), about the victim's own mean output.

    Where the guaranteed ones prove nothing about an input of a model without convolutions,
    Neyman-Pearson is asked too; its answer stands beside, in `beside`, and `suggestions` names what
    certifies or may certify. On request, one kind at a time: "barrett" ([Barrett22] Lemma 2;
    paired), "generalized" (the generalized chi-square, from bounds on the mean's movement in every
    coordinate, sigma fixed or centered; with "envelope" or "tangent" beside it their t),
    "neyman_pearson" (ours, probabilistic: any decoder and any architecture, by linear bounds on how
    the posterior moves; the method's name says which, "crown" or what it fell back to), and
    "first_order" (no guarantee, any Gaussian posterior; in units of sigma, and `by_method` the
    weaker forms beside it: spectral, and [Camuto21]'s with the Frobenius norm).

    Several probabilistic methods share 1 - `confidence` equally, so that the largest of their radii
    keeps it. Whatever is drawn for an input follows from the generator and the input alone (or its
    number in `rows`): its certificate is the same alone, in any batch and in any order.

    Warning:
        Centered keeps sigma(x) of the clean input under attack. Where sigma is learned the deployed
        model draws with sigma(x + delta): that is `displacement="full"`.

    Args:
        vae: A `vae` or `lipschitz-vae`; hierarchies that climb from the data, and wrapped
            modules that can be traced, by "neyman_pearson"; any model by "first_order". What is not
            covered abstains, by name. A `Victim` speaks of its defense.
        x: Images in [0, 1], (B, C, H, W), or whatever `as_images` reads.
        r: l2 distance between outputs, in pixel units, positive.
        m: Probability wanted, in (0, 1).
        displacement: "centered": Delta = g(mu(x+d) + eta sigma(x)) - g(mu(x)); "paired": two
            independent draws; "full": Delta = g(mu(x+d) + eta sigma(x+d)) - g(mu(x)).
        generator: Of which one number is spent; all draws follow from it.
        question: In place of r, m, displacement, center, norm and box, all in one.
        center: What "full" is measured from: see `Question`. None for "own" with a victim that has
            noise on its input, else "mean".
        norm: "l2", or "linf": for Neyman-Pearson by bounds over that ball, else the l2 radius over
            sqrt(C H W).
        methods: Names or specs of methods to take instead of the guaranteed ones, of one kind; see
            `robustvae list certificate-method`. "smoothing:draws=2000,most=100000" spends more
            draws where they pay.
        confidence: Of the probabilistic methods, per input, in (0, 1).
        draws: Of the sampled methods, per input; None for the method's own choice.
        box: Speak only of perturbations that keep the pixels in [0, 1], which "neyman_pearson"
            makes use of; the other methods' certificates are as without.
        rows: The inputs' own numbers, from which their draws follow; None for their content.

    Returns:
        A `Certificate`; radius 0 and status "abstain" where nothing can be proved. An input for
        which the model raises has radius NaN and its reason in the status, where others do not.

    Raises:
        UnknownNameError: An unknown displacement, norm, center or method.
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
        >>> smooth = rv.Victim(rv.load("digits-vae"), rv.InputNoise(stddev=0.1))
        >>> lower = rv.certify(smooth, x, r=1.5, draws=500, generator=rv.generator(0))
        >>> lower.kind, lower.center, lower.status
        ('probabilistic', 'own', ('ok', 'ok', 'ok', 'ok'))
    """
    arguments = {
        **{"r": r, "m": m, "displacement": displacement, "question": question, "center": center},
        **{"norm": norm, "methods": methods, "confidence": confidence, "draws": draws, "box": box},
    }
    inquiry = inquire(vae, x, {**arguments, "rows": rows, "generator": generator})
    results = pieces(len(x), inquiry.answer)
    if len(results) == 1:
        (certificate,) = (part for _, part in results)
        return certificate
    certificate = joined(
        [
            Failure(places[0], failure(part))
            if isinstance(part, Exception)
            else plain(dataclasses.replace(part, centers=None))
            for places, part in results
        ],
        x.device,
    )
    centers = {p: part.centers for p, part in results if getattr(part, "centers", None) is not None}
    if not centers:
        return certificate
    example = next(iter(centers.values()))
    every = example.new_full((len(x), *example.shape[1:]), torch.nan)
    for places, some in centers.items():
        every[list(places)] = some
    return dataclasses.replace(certificate, centers=every)


@final
@dataclass(frozen=True, eq=False)
class Inquiry:
    """What `certify` was asked, ready to be answered for all inputs or for some of them.

    Attributes:
        task: What the methods are asked.
        members: The methods by name, all of one kind.
        confidence: Per input.
        suggests: Whether inputs without a radius are told what else may certify them.
    """

    task: Task
    members: dict[str, Method]
    confidence: float
    suggests: bool

    def answer(self, rows: Sequence[int] | None = None) -> Certificate:
        """The certificate of some rows of the inputs, as in the batch of all; None: of all.

        Radii that hold together are those of all inputs, whatever the rows.
        """
        task = self.task
        if rows is not None and len(rows) < len(task.x):
            task = dataclasses.replace(
                task,
                x=task.x[list(rows)],
                rows=tuple(task.rows[row] for row in rows),
                memo={},  # it holds the inputs
                together=task.count,
            )
        certificate = answer(task, self.members, self.confidence)
        return _with_suggestions(task, certificate) if self.suggests else certificate


def inquire(vae: VAE | Victim, x: Tensor, asked: Mapping[str, Any]) -> Inquiry:
    """What `certify` is asked, validated.

    Args:
        vae: As of `certify`.
        x: As of `certify`.
        asked: The other arguments of `certify`, all of them, by name.
    """
    center, displacement, methods = asked["center"], asked["displacement"], asked["methods"]
    draws, confidence, generator = asked["draws"], asked["confidence"], asked["generator"]
    if center is None:
        is_smooth = isinstance(vae, Victim) and vae.noise is not None and displacement != "paired"
        center = "own" if is_smooth else "mean"
    fields = {key: asked[key] for key in ("m", "norm", "displacement", "box")}
    question = one_question("certify", asked["question"], asked["r"], center=center, **fields)
    victim = as_victim(vae)
    check_images(x, victim.vae.image_shape)
    victim.vae.check(x)
    check_weights(victim.vae)
    check_probability(confidence, "confidence")
    if draws is not None:
        check_count(draws, "draws")
    check_type(generator, "generator", torch.Generator)
    usual = GUARANTEED if victim.noise is None else ("smoothing",)
    members = methods_by_name(methods, usual)
    probabilistic = sum(method.kind == "probabilistic" for method in members.values())
    task = Task(
        victim=victim,
        x=x,
        question=question,
        # a union bound over the methods: the largest of their radii is returned
        confidence=1 - (1 - confidence) / max(1, probabilistic),
        draws=draws,
        rows=tuple(row_numbers(x, asked["rows"])),
        seed=seed_of(generator),
        methods=tuple(members),
    )
    return Inquiry(task, members, confidence, methods is None)


def as_victim(victim: VAE | Victim) -> Victim:
    """The victim, or a model as one that draws from its own posterior."""
    if isinstance(victim, VAE):
        return Victim(victim)
    if not isinstance(victim, Victim):
        raise DtypeError(
            f"vae must be a VAE or a Victim, got {type(victim).__name__}: "
            "make one with rv.wrap(module)"
        )
    return victim


def seed_of(generator: torch.Generator) -> int:
    """One number of a generator, from which all draws of a call follow."""
    top = torch.iinfo(torch.int64).max
    return int(torch.randint(top, (), generator=generator, device=generator.device))


def methods_by_name(methods: Sequence[Any] | None, usual: tuple[str, ...]) -> dict[str, Method]:
    """The methods by name, all of one kind."""
    if methods is not None and (isinstance(methods, str) or not isinstance(methods, Sequence)):
        raise ConfigError(f"methods must be a list of names or specs, got {methods!r}")
    specs = usual if methods is None else methods
    members = [build("certificate-method", spec) for spec in specs]
    if not members:
        raise ConfigError("methods must name at least one method, or be None for the usual ones")
    by_name: dict[str, Method] = {}
    for one in members:
        name = name_of("certificate-method", one) or type(one).__name__
        if one not in by_name.values():  # one method with other fields is another method
            by_name[name if name not in by_name else f"{name} {len(by_name) + 1}"] = one
    kinds = {method.kind for method in by_name.values()}
    if len(kinds) > 1:
        raise ConfigError(
            f"methods of several kinds at once: {', '.join(sorted(kinds))}; ask for each kind apart"
        )
    return by_name


def answer(task: Task, asked: dict[str, Method], confidence: float) -> Certificate:
    """The largest radius of each input by the methods, which are of one kind."""
    ask, x = task.question, task.x
    kind = next(iter(asked.values())).kind
    findings: dict[str, Finding] = {}
    refusals: list[str] = []
    with frozen(task.vae), torch.no_grad():
        before = _first_outputs(task)
        for name, method in asked.items():
            try:
                findings[name] = method(task)
            except UnsupportedError as refusal:
                refusals.append(f"not covered: {refusal}")
        # a victim with noise is looked at by its own method
        if findings and not _same(before, _first_outputs(task)):
            findings.clear()
            refusals.append(
                "not covered: the model's output has changed while it was certified, so that a "
                "bound does not speak for the next call; remove its cache or state"
            )
    by_method: dict[str, Tensor] = {}
    assumptions: list[str] = []
    # one l2 radius within a linf ball's inscribed l2 ball
    per_pixel = x[0].numel() ** -0.5 * (1 - bounds.SLACK)
    together: Tensor | None = None
    for name, finding in findings.items():
        needs_conversion = ask.norm not in asked[name].norms
        if finding.simultaneous is not None:
            # each method has its share of what may fail, so that the larger one holds as well
            proof = finding.simultaneous.nan_to_num(nan=0.0, posinf=torch.inf)
            proof = proof * per_pixel if needs_conversion else proof
            together = proof if together is None else torch.maximum(together, proof)
        for bound, radii in finding.radii.items():
            # not a number is not a proof
            proof = radii.nan_to_num(nan=0.0, posinf=torch.inf)
            if bound in by_method:
                bound = f"{bound}, {name}"
            by_method[bound] = proof * per_pixel if needs_conversion else proof
        assumptions += finding.assumptions
        if needs_conversion:
            assumptions.append("linf from l2: ||d||_2 <= sqrt(C H W) ||d||_inf")
    if findings and task.victim.draws_own_posterior and not is_random(task.victim.defense):
        assumptions.append(
            "of draws of the posterior; of the reconstruction from its mean, which this victim "
            "makes, only where a method bounds every latent near the mean"
        )
    radius = torch.zeros(len(x), dtype=torch.float64)
    names = ["none"] * len(x)
    for bound, radii in by_method.items():
        for i in (radii > radius).nonzero()[:, 0].tolist():
            names[i] = bound
        radius = torch.maximum(radius, radii)
    is_sampled = kind == "probabilistic"
    alone = next(iter(findings.values())) if len(asked) == len(findings) == 1 else Finding({})
    return Certificate(
        radius=radius.to(x.device),
        kind=kind,
        confidence=confidence if is_sampled else 1.0,
        method=tuple(names),
        status=tuple("ok" if value > 0 else "abstain" for value in radius.tolist()),
        assumptions=tuple(dict.fromkeys([*assumptions, *refusals])),
        displacement=ask.displacement,
        norm=ask.norm,
        by_method={name: radii.to(x.device) for name, radii in by_method.items()},
        box=ask.box and is_sampled,
        center=ask.center,
        centers=alone.centers,
        simultaneous=None if together is None else together.to(x.device),
        draws=alone.spent,
    )


def _first_outputs(task: Task) -> list[Tensor]:
    """What a model without a defense gives for the first input: to be seen again."""
    if not task.victim.draws_own_posterior or task.vae.output_only:
        return []
    try:
        mean = task.vae.encode(task.x[:1]).mean
        return [mean, task.vae.decode(mean).mean]
    except Exception:  # what cannot run is refused by the methods, with their reason
        return []


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    # equal calls may differ in their last digits on accelerators
    close = functools.partial(torch.allclose, rtol=1e-4, atol=1e-6, equal_nan=True)
    return len(one) == len(other) and all(map(close, one, other))


def _with_suggestions(task: Task, certificate: Certificate) -> Certificate:
    """The certificate, and for the inputs it says nothing of what else does or may."""
    silent = (certificate.radius <= 0).nonzero()[:, 0].tolist()
    if not silent or not task.victim.draws_own_posterior:
        return certificate
    words = [""] * len(task.x)
    # its linear bounds take milliseconds for dense layers, seconds for convolutions
    if any(isinstance(part, nn.Conv2d | nn.ConvTranspose2d) for part in task.vae.modules()):
        for i in silent:
            words[i] = (
                "neyman_pearson may certify it (seconds an input): methods=['neyman_pearson']"
            )
        return dataclasses.replace(certificate, suggestions=tuple(words))
    part = dataclasses.replace(
        task,
        x=task.x[silent],
        rows=tuple(task.rows[i] for i in silent),
        methods=("neyman_pearson",),
        memo={},
        together=task.count,
    )
    other = answer(part, {"neyman_pearson": NeymanPearson()}, task.confidence)
    radius, together = torch.zeros_like(certificate.radius), torch.zeros_like(certificate.radius)
    radius[silent] = other.radius
    together[silent] = other.radius if other.simultaneous is None else other.simultaneous
    method, status = ["none"] * len(task.x), ["not asked"] * len(task.x)
    for place, i in enumerate(silent):
        method[i], status[i] = other.method[place], other.status[place]
        if other.radius[place] > 0:
            words[i] = f"neyman_pearson certifies {floor(other.radius[place])} (probabilistic)"
    by_method = {}
    for bound, radii in other.by_method.items():
        by_method[bound] = torch.zeros_like(radius).index_put((torch.tensor(silent),), radii)
    beside = dataclasses.replace(
        other,
        radius=radius,
        simultaneous=together,
        method=tuple(method),
        status=tuple(status),
        by_method=by_method,
    )
    return dataclasses.replace(certificate, beside=beside, suggestions=tuple(words))
