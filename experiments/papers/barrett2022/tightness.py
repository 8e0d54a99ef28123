"""[Barrett22] Fig. 4 and 5: certified margins of Lipschitz-VAEs beside their bounds and attacks.

r = 8, m = 1/2, l2. Every input's certified margin, centered and paired, beside Theorem 3 (a = b =
K, paired in the stronger of two readings; centered the same two tail bounds) and beside the margin
that attacks reach, free and box, centered: the standard suite in one free and one box ball, and
projected ascent in a bisection over the radius.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import joined
from robustvae import bounds
from robustvae.attacks import AttackSuite
from robustvae.certificates import global_margin, lipschitz_constants
from robustvae.evaluation import negative_log_likelihood
from robustvae.models import VAE, LipschitzVAE
from robustvae.robustness import Budget
from robustvae.seeding import shard_generator

DISPLACEMENTS = ("centered", "paired")
LARGEST = 6.0  # l2; at r = 8 no margin of these models comes near it


@final
@dataclass(frozen=True)
class Spec:
    """What is measured.

    Attributes:
        model: A Lipschitz-VAE.
        data: Its data set.
        inputs: Test images, balanced over the classes.
        r: l2 distance between outputs, in pixel units.
        m: Probability wanted.
        restarts: Of the attack at each radius.
        steps: Of the attack at each radius.
        shard: Inputs measured at once.
        scored: Images of the likelihood; 0 leaves it out.
        suite: Name of the attack suite.
    """

    model: str = "mnist-lipschitz-10"
    data: str = "mnist"
    inputs: int = 40
    r: float = 8.0
    m: float = 0.5
    restarts: int = 20
    steps: int = 200
    shard: int = 5
    scored: int = 200
    suite: str = "standard"


@item(
    "barrett2022/tightness",
    "[Barrett22] Theorem 3, Fig. 4 and 5",
    sizes={
        "smoke": Spec("digits-lipschitz-vae", "digits", 4, 1.0, 0.5, 1, 5, 2, 10, "smoke"),
        "laptop": Spec(),
        "full": Spec(inputs=100),
    },
)
def tightness(spec: Spec, run: Run) -> Result:
    """Certified margins beside [Barrett22]'s bound and beside attacked margins, input by input."""
    vae, images = run.model(spec.model), run.images(spec.data)
    assert isinstance(vae, LipschitzVAE)
    x, _ = images.sample(spec.inputs, stratified=True, generator=run.noise("inputs"))
    likely = {}
    if spec.scored:
        likely = run.part("likelihood", functools.partial(_likelihood, vae, images, spec, run), vae)
    parts = []
    for number, part in run.each(enumerate(x.split(spec.shard))):
        compute = functools.partial(_margins, vae, part, spec, run.seed + number, number)
        parts.append(run.part(f"shard {number}", compute, vae))
        run.progress(f"{min(spec.inputs, (number + 1) * spec.shard)} of {spec.inputs} inputs")
    columns = joined(parts)
    name, k = spec.model, float(vae.config["decoder_lipschitz"])
    rows = [measured(name, what, values, section="Margins") for what, values in columns.items()]
    rows += [measured(name, what, values, section="Likelihood") for what, values in likely.items()]
    rows += _beside_barrett(vae, columns, k, spec)
    for kind in ("free", "box"):
        pairs = list(zip(columns["centered"], columns[f"attacked, {kind}"], strict=True))
        ratios = [low / high for low, high in pairs]
        broken = sum(low > high for low, high in pairs)
        section = "Beside attacks"
        rows.append(measured(name, f"certified / attacked, {kind}", ratios, section=section))
        rows.append(Row(name, f"violations, {kind}", broken, n=len(pairs), section=section))
    return run.result(
        f"Tightness of the certificates: K = {k:g}",
        "pixel units, nats and ratios",
        rows,
        (
            f"{spec.inputs} test images, balanced over the classes; r = {spec.r:g}, m = "
            f"{spec.m:g}, l2.",
            f"Attacked, centered: the {spec.suite} suite and projected ascent of {spec.restarts} "
            f"restarts x {spec.steps} steps at each radius of a bisection.",
        ),
        {"columns": columns},
        constants=str(vars(lipschitz_constants(vae))),
    )


def _beside_barrett(
    vae: LipschitzVAE, columns: dict[str, list[float]], k: float, spec: Spec
) -> list[Row]:
    rows, name, section = [], spec.model, "Beside [Barrett22]'s tail bounds"
    assert vae.stddev is not None
    for displacement in DISPLACEMENTS:
        ask: dict[str, Any] = {"r": spec.r, "m": spec.m, "displacement": displacement}
        common = {**ask, "b": k, "latent": vae.latent}
        theirs = bounds.barrett_global_margin(vae.stddev, a=k, **common)
        slope = bounds.barrett_global_margin(vae.stddev, a=k / 4, **common)
        ours, n = global_margin(vae, **ask), len(columns[displacement])
        below = sum(c < theirs for c in columns[displacement])
        ratios = [c / theirs if theirs else float("inf") for c in columns[displacement]]
        rows += [
            Row(name, f"theirs, {displacement}", theirs, section=section),
            Row(name, f"theirs with the sigmoid's slope, {displacement}", slope, section=section),
            Row(name, f"global, {displacement}", float(ours), section=section),
            measured(name, f"certified / theirs, {displacement}", ratios, section=section),
            Row(name, f"below theirs, {displacement}", below, n=n, section=section),
        ]
    return rows


def attacked(vae: VAE, x: Tensor, spec: Spec, seed: int) -> dict[str, list[float]]:
    """Upper bounds on the centered margin, free and box, by everything at hand."""
    victim, question = rv.Victim(vae), {"r": spec.r, "m": spec.m}
    ends: dict[str, Tensor] = {}
    known: list[Tensor] = []
    for name, box in (("box", True), ("free", False)):
        g = shard_generator(seed, 0, f"attacks {name}")
        ask: dict[str, Any] = {"displacement": "centered", "box": box, "generator": g}
        ask |= question
        quick = Budget(starts=min(3, spec.restarts), steps=min(15, spec.steps), largest=LARGEST)
        first = rv.estimate_margin(victim, x, **ask, budget=quick)
        broken = first.value[first.value.isfinite()]
        # A short search may break nothing: then the suite attacks at the largest size asked for.
        radius = 1.05 * float(broken.max()) if len(broken) else LARGEST
        ball = rv.Ball("l2", radius) if box else rv.Ball("l2", radius, None, None)
        suite = AttackSuite(spec.suite, balls=(ball,))(victim, x, generator=g)
        images = [first.x_adv, *(row.x_adv for row in suite.rows if row.attack)]
        known += [y.clamp(0, 1) for y in images] if box else images
        budget = Budget(starts=len(known) + spec.restarts, steps=spec.steps, confidence=0.975)
        best = rv.estimate_margin(victim, x, **ask, budget=budget, candidates=torch.stack(known))
        known.append(best.x_adv)
        ends[name] = best.value
    ends["free"] = torch.minimum(ends["free"], ends["box"])
    return {f"attacked, {name}": ends[name].tolist() for name in ("free", "box")}


def _margins(vae: VAE, x: Tensor, spec: Spec, seed: int, shard: int) -> dict[str, list[float]]:
    g = shard_generator(seed - shard, shard, "certify")

    def radius(displacement: str, **more: Any) -> list[float]:
        found = rv.certify(
            vae, x, spec.r, spec.m, displacement=displacement, generator=g, **more
        ).radius
        values: list[float] = found.tolist()
        return values

    return {
        "centered": radius("centered"),
        "centered, envelope": radius("centered", methods=["envelope"]),
        "paired": radius("paired"),
    } | attacked(vae, x, spec, seed)


def _likelihood(vae: VAE, images: rv.data.Images, spec: Spec, run: Run) -> dict[str, Any]:
    objective, g = rv.objectives.ELBO(), run.noise("elbo")
    with torch.no_grad():
        parts = [objective(vae, part, generator=g) for part in images.x.split(500)]
        errors = [
            (vae.decode(vae.encode(part).mean).mean - part).flatten(1).square().sum(1)
            for part in images.x.split(500)
        ]
    few, _ = images.sample(spec.scored, stratified=True, generator=g)
    nll = [negative_log_likelihood(vae, x, generator=g) for x in few.split(20)]
    return {
        "negative log likelihood, 1,000 draws": torch.cat(nll).tolist(),
        "negative ELBO": torch.cat(parts).tolist(),
        "squared error": torch.cat(errors).tolist(),
    }
