"""[Khan23] Figs. 2, 3, 5, 6 and 10: the spectrum of the encoder's pullback metric against beta.

Trains VAEs under a range of beta, one with mixup and one with two latent coordinates, and measures
their geometry on test images. The paper does not name its likelihood; its released errors fit a
Gaussian of variance 1/2 (`likelihood=gaussian`), which khan2023/released holds against them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pydantic
import torch

from experiments.harness import Result, Row, Run, item
from experiments.papers.khan2023.measures import (
    CLIMB,
    CLIMB_OUTPUT,
    DISPLAYED,
    MIXUP,
    ONE_SHOT,
    PLAIN,
    PLANE,
    RANDOM,
    STEPS,
    Measured,
    Scale,
    Spread,
    measure,
)
from experiments.papers.khan2023.pictures import draw
from robustvae.models import VAE
from robustvae.objectives import ELBO, Mixup
from robustvae.objectives.base import Objective
from robustvae.perturb import ProjectedAscent
from robustvae.records import plain

LEARNING_RATE, BATCH = 3e-3, 128
RISE = 0.01  # of the mean squared error, counted as a change that matters
HALF = 0.5**0.5  # standard deviation under which minus the log density is a sum of squares


@final
@dataclass(frozen=True)
class Spec:
    """How much is run.

    Attributes:
        data: To train on and measure at.
        betas: How many, log-spaced in [0.01, 10].
        latent: d.
        hidden: Widths of the encoder, from the pixels inwards.
        train: Training images.
        epochs: Passes over them.
        images: Test images.
        attacked: Test images in the comparison of attacks.
        steps: Of projected ascent.
        restarts: Of projected ascent.
        likelihood: "bernoulli", or "gaussian" of variance 1/2 as the released errors have it.
        pictures: Folder of the figures; empty draws none.
    """

    data: str = "mnist"
    betas: int = 13
    latent: int = 32
    hidden: tuple[int, ...] = (256, 256, 512)
    train: int = 60_000
    epochs: int = 5
    images: int = 200
    attacked: int = 100
    steps: int = 50
    restarts: int = 5
    likelihood: str = "bernoulli"
    pictures: str = ""


SIZES = {
    "smoke": Spec("digits", 4, 4, (32, 16), 256, 1, 8, 4, 4, 1),
    "laptop": Spec(),
    "full": Spec(betas=50, epochs=100),
}


def objectives_of(betas: int) -> dict[str, Objective]:
    """What is trained, by name: one for each beta, then mixup, then the model of the map."""
    spaced = [10 ** (-2 + 3 * i / (betas - 1)) for i in range(betas)]
    return {f"beta {b:.4g}": ELBO(beta=b) for b in spaced} | {MIXUP: Mixup(), PLANE: ELBO()}


def network(
    latent: int, hidden: Sequence[int], image_shape: Sequence[int], likelihood: str = "gaussian"
) -> dict[str, Any]:
    """Options of a VAE of [Khan23] appendix A, of the likelihood that their code has."""
    options: dict[str, Any] = {
        "name": "vae",
        "architecture": "mlp",
        "latent": latent,
        "image_shape": image_shape,
        "hidden": list(hidden),
        "activation": "tanh",
        "batch_norm": True,
    }
    if likelihood == "gaussian":
        options |= {"likelihood": "gaussian", "scale": HALF}
    return options


def trained(name: str, objective: Objective, spec: Spec, run: Run) -> VAE:
    """One model of [Khan23] appendix A; `PLANE` has two latent coordinates."""
    images = run.images(spec.data, "train")[: spec.train]
    latent = 2 if name == PLANE else spec.latent
    options = network(latent, spec.hidden, images.image_shape, spec.likelihood)
    label = f"{spec.data}-{spec.likelihood}-{name}-{len(images)}-{spec.epochs}-{run.seed}"
    folder = f"khan-geometry/{label}".replace(", ", "-").replace(" ", "-")
    settings: dict[str, Any] = {"batch_size": BATCH, "lr": LEARNING_RATE}
    return run.train(folder, options, objective, images, epochs=spec.epochs, **settings)


@final
@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and whether these numbers bear it out."""

    source: str
    sentence: str
    holds: bool
    evidence: str


def claims_of(found: Sequence[Measured]) -> tuple[Claim, ...]:
    """What the paper says of its Figures 3, 5, 6 and 10, held against these numbers.

    "With beta" is Spearman's rank correlation over the betas, of at least 0.9 in size; a
    difference is one whose 95 % interval, over the same images, leaves out 0.
    """
    betas = [model for model in found if model.name != MIXUP]
    by_name = {model.name: model for model in found}

    def trend(source: str, sentence: str, sign: int, numbers: list[float]) -> Claim:
        rank = _spearman([model.beta for model in betas], numbers)
        ends = f"from {numbers[0]:.3g} at beta {betas[0].beta:g} to {numbers[-1]:.3g}"
        ends += f" at beta {betas[-1].beta:g}, rank correlation {rank:.2f}"
        return Claim(source, sentence, sign * rank >= 0.9, ends)

    def score(name: str) -> list[float]:
        return [model.scores[name].mean for model in betas]

    def steps(scale: Scale) -> list[float]:
        return [least_step(model, scale) for model in betas]

    claims = [
        trend("Fig. 5", "The spectral radius falls with beta.", -1, score("spectral radius")),
        trend(
            "Fig. 5",
            'The entropy falls with beta (l / l_max, as their code: "max").',
            -1,
            score('entropy, "max"'),
        ),
        trend(
            "Fig. 5", "The entropy as printed (None) falls with beta.", -1, score("entropy, None")
        ),
        trend(
            "Fig. 5, caption",
            'The spectrum becomes more isotropic with beta ("trace" entropy rises).',
            1,
            score('entropy, "trace"'),
        ),
        trend(
            "Fig. 5, caption",
            'The same over the active coordinates (effective rank, exp of "trace", by "active").',
            1,
            [rank_share(model) for model in betas],
        ),
        trend(
            "Fig. 5",
            f"The step along v1 that raises the error by {RISE:g} grows with beta (unit steps).",
            1,
            steps("unit"),
        ),
        trend(
            "Fig. 5",
            f"The step along l1 v1 that raises the error by {RISE:g} grows with beta (as printed).",
            1,
            steps("eigenvalue"),
        ),
        trend(
            "Fig. 3",
            "The latent displacement of a unit step of size 1 along v1 falls with beta.",
            -1,
            [_at(model.curve("unit", False).displacement, STEPS["unit"], 1.0) for model in betas],
        ),
        trend(
            "Section 4.2.1",
            "The std term's share of the metric grows with beta.",
            1,
            score("std term's share of the trace"),
        ),
    ]
    flat, curved = score("spectral radius"), score("spectral radius, Riemannian")
    higher = sum(c > f for c, f in zip(curved, flat, strict=True))
    claims.append(
        Claim(
            "Fig. 10",
            "The spectral radius is higher where the decoder's metric is taken along.",
            higher == len(flat),
            f"higher at {higher} of {len(flat)} betas",
        )
    )
    if MIXUP in by_name and PLAIN in by_name:
        for name, sentence, sign in (
            ("spectral radius", "Mixup lowers the spectral radius.", -1),
            ('entropy, "max"', 'Mixup lowers the entropy ("max").', -1),
            ('entropy, "trace"', 'Mixup makes the spectrum more isotropic ("trace").', 1),
        ):
            with_it, without = (by_name[key].scores[name] for key in (MIXUP, PLAIN))
            change = Spread.of(torch.tensor(with_it.values) - torch.tensor(without.values))
            holds = min(sign * change.low, sign * change.high) > 0
            evidence = f"from {without} to {with_it}, change {change}"
            claims.append(Claim("Fig. 6", sentence, holds, evidence))
        pair = [least_step(by_name[key], "unit") for key in (PLAIN, MIXUP)]
        claims.append(
            Claim(
                "Fig. 6",
                f"Mixup makes the unit step along v1 that raises the error by {RISE:g} longer.",
                pair[1] > pair[0],
                f"from {pair[0]:.3g} to {pair[1]:.3g}",
            )
        )
    return tuple(claims)


def least_step(model: Measured, scale: Scale) -> float:
    """The least step along the top direction that raises the mean error by `RISE`, or infinity."""
    errors = model.curve(scale, box=False).error
    steps = zip(STEPS[scale], errors, strict=True)
    return next((step for step, error in steps if error > model.error + RISE), float("inf"))


def rank_share(model: Measured) -> float:
    """The mean effective rank of the metric by the number of active latent coordinates."""
    ranks = torch.tensor(model.scores['entropy, "trace"'].values).exp()
    return float(ranks.mean()) / max(1, model.active)


@item("khan2023/geometry", "[Khan23] Figs. 2, 3, 5, 6 and 10, appendix A", sizes=SIZES)
def geometry(spec: Spec, run: Run) -> Result:
    """Spectral radius, entropy, steps and one-shot attacks against beta, with mixup beside."""
    test = run.images(spec.data)
    x, _ = test.sample(spec.images, stratified=True, generator=run.noise("data"))
    ascent = ProjectedAscent(steps=spec.steps, restarts=spec.restarts)
    vaes, found = dict[str, VAE](), list[Measured]()
    for name, objective in run.each(objectives_of(spec.betas).items()):
        vae = vaes[name] = trained(name, objective, spec, run)
        if name != PLANE:
            beta = objective.beta if isinstance(objective, ELBO) else 1.0

            def compute(name: str = name, beta: float = beta, vae: VAE = vae) -> Any:
                more: dict[str, Any] = {"attacked": spec.attacked, "ascent": ascent}
                return plain(measure(name, beta, vae, x, seed=run.seed, **more))

            part = run.part(name, compute, vae)
            found.append(pydantic.TypeAdapter(Measured).validate_python(part))
        run.progress(name)
    if spec.pictures:
        draw(found, vaes, x, test, Path(spec.pictures), f"khan-geometry-{spec.data}")
    rows = [*_claim_rows(found), *_score_rows(found), *_step_rows(found), *_attack_rows(found)]
    models = {model.name: plain(model) for model in found}
    for model in models.values():
        for damage in model["damage"]:  # shares of single images follow from what moved
            del damage["latent_share"]["values"], damage["output_share"]["values"]
    title = "Geometry of the encoder against beta"
    unit = "pixel units, nats and shares"
    return run.result(title, unit, rows, protocol_of(spec), {"models": models, "steps": STEPS})


def _claim_rows(found: Sequence[Measured]) -> list[Row]:
    section, rows = "The paper's sentences", []
    for claim in claims_of(found):
        what = f"{claim.source}: {claim.sentence}"
        said = "holds" if claim.holds else "**not**"
        rows.append(Row(what, "here", float(claim.holds), section=section, text=said))
        rows.append(Row(what, "numbers", float(claim.holds), section=section, text=claim.evidence))
    return rows


def _score_rows(found: Sequence[Measured]) -> list[Row]:
    rows = []
    for model in found:
        columns: dict[str, Spread | float] = {
            **model.scores,
            "error a pixel": model.error,
            "KL, nats": model.kl,
            "active": float(model.active),
            "rank / active": rank_share(model),
        }
        for setting, value in columns.items():
            rows.append(_row(model.name, setting, value, "Scores"))
    return rows


def _step_rows(found: Sequence[Measured]) -> list[Row]:
    rows, section = [], "Mean squared error a pixel after a step of unit length, free and (clipped)"
    for model in found:
        pair = [model.curve("unit", box).error for box in (False, True)]
        for mark in (0.1, *DISPLAYED, 1.0, 3.0, 10.0):
            free, box = (_at(curve, STEPS["unit"], mark) for curve in pair)
            text = f"{free:.3g} ({box:.3g})"
            rows.append(Row(model.name, f"s = {mark:g}", free, section=section, text=text))
        for scale, what in (("unit", "s v"), ("eigenvalue", "s l v")):
            least = least_step(model, scale)  # type: ignore[arg-type]
            rows.append(Row(model.name, f"+{RISE:g} at s, {what}", least, section=section))
    return rows


def _attack_rows(found: Sequence[Measured]) -> list[Row]:
    rows, section = [], "One shot against projected ascent at equal radius: shares, image by image"
    for model in found:
        for (radius, box), at in model.by_ball().items():
            what = f"{model.name}, l2 {radius:g}" + ("" if box else ", free")
            columns = {
                "one shot, latent": at[ONE_SHOT].latent_share,
                "one shot, output": at[ONE_SHOT].output_share,
                "random direction, latent": at[RANDOM].latent_share,
                "random direction, output": at[RANDOM].output_share,
                "latent moved by ascent": at[CLIMB].latent,
                "output moved by ascent": at[CLIMB_OUTPUT].output,
            }
            rows += [_row(what, setting, value, section) for setting, value in columns.items()]
    return rows


def _row(what: str, setting: str, value: Spread | float, section: str) -> Row:
    if not isinstance(value, Spread):
        return Row(what, setting, value, section=section)
    stderr = value.stddev / len(value.values) ** 0.5
    return Row(what, setting, value.mean, stderr, len(value.values), section=section)


def protocol_of(spec: Spec) -> tuple[str, ...]:
    """What was done, in sentences."""
    return (
        f"Each model: {spec.epochs} epochs of {spec.train:,} training images, "
        f"Adam {LEARNING_RATE:g}, batches of {BATCH}, {spec.likelihood} likelihood; one "
        "seed, the same for all. The paper's code trains 100 epochs with a cosine schedule, at 50 "
        "betas; the paper does not name its likelihood.",
        f"{spec.images} test images, balanced over the classes; intervals are over these images "
        "and do not speak of another training seed.",
        "Mixup is the printed penalty (norms, not squared), weight 1, on top of beta 1.",
        "Curves take the worse of both signs of a direction; the paper steps one way. Steps: "
        "logspace(-1, 1, 40) times the unit direction, and logspace(-2, 1, 40) times eigenvalue "
        "times direction as printed; each free and clipped to [0, 1].",
        f"Attacks: {spec.attacked} of the images, in [0, 1] unless free; one shot and projected "
        f"ascent ({spec.steps} steps, {spec.restarts} restarts) raise the squared 2-Wasserstein "
        "distance of the posteriors, whose half Hessian is the pullback metric; projected ascent "
        "on the output raises the distance of reconstructions. A share is of projected ascent's, "
        "image by image. One shot spends 24 Hessian-vector products, about two gradients each, and "
        f"2 scores an image; projected ascent {spec.restarts * (spec.steps + 1)} gradients.",
        '"active" counts latent coordinates whose posterior mean has a variance above 0.01.',
    )


def _at(curve: Sequence[float], steps: Sequence[float], step: float) -> float:
    """The curve at the step of its grid that is nearest to `step`, by ratio."""
    return min(zip(steps, curve, strict=True), key=lambda pair: abs(math.log(pair[0] / step)))[1]


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    from scipy.stats import spearmanr

    if len(set(b)) == 1:
        return 0.0
    return float(spearmanr(a, b).statistic)
