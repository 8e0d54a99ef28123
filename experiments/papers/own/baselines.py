"""What holds best, at which price: every baseline of the papers and our trainings, judged alike.

Each line is a stored model, or one that is trained here from a stored one on the same training
images. All are judged by the same attacks, on the same test images, by four measures that need not
agree: MS-SSIM under two attacks, the radius that smoothing certifies, and what a linear classifier
still reads. Scores that are read off one Jacobian stand beside them, with their rank correlations.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
import yaml
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import linear_classifier, references
from experiments.papers.own.robust_training import (
    GOALS,
    RADII,
    classes_kept,
    price,
    strength_of,
)
from experiments.papers.own.robust_training import Spec as Effort
from robustvae.defenses import InputNoise, Victim
from robustvae.evaluation.slopes import decoder_slopes, encoder_slopes
from robustvae.models import VAE
from robustvae.models.base import frozen
from robustvae.objectives import create
from robustvae.objectives.base import cost_of
from robustvae.perturb import Ball

VARIANTS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("variants.yaml").read_text("utf-8")
)
NOISE, TOLERANCE = 0.25, 2.89  # of the certificates: the question of docs/results/smoothing.md
SCORES = ("encoder's slope", "decoder's slope", "encoder's deviation")
STRENGTHS = ("MS-SSIM, linf 0.1", "MS-SSIM, linf 0.2", "certified radius", "accuracy, linf 0.2")


@final
@dataclass(frozen=True)
class Spec:
    """What is measured.

    Attributes:
        models: Stored models, or names of `variants.yaml`.
        data: Their data set.
        images: References of the attacks, balanced over the classes.
        steps: Of each attack.
        restarts: Of each attack.
        clean: Other clean images, on which the errors are measured.
        certified: How many of the references are certified.
        draws: Of each certificate.
        learn: Training images of the classifier.
        head: Epochs in which the classifier also learns from images that attack it; 0 is none.
        train: Training images of the variants; 0 is all.
        seeds: Training runs of each variant.
    """

    models: tuple[str, ...] = (
        "mnist-conv28",
        "mnist-conv28-beta-2",
        "mnist-conv28-beta-5",
        "mnist-conv28-beta-10",
        "mnist-conv28-tc-2",
        "mnist-conv28-tc-5",
        "mnist-seatbelt-2",
        "mnist-lipschitz-10",
        "mixup",
        "smooth-encoder",
        "avae",
        "mnist-conv28-noise-0.25",
        "mnist-conv28-noise-0.5",
        "mnist-conv28-adversarial",
    )
    data: str = "mnist"
    images: int = 50
    steps: int = 50
    restarts: int = 2
    clean: int = 1000
    certified: int = 20
    draws: int = 2000
    learn: int = 5000
    head: int = 0
    train: int = 0
    seeds: int = 1


@item(
    "own/baselines",
    "ours",
    sizes={
        "smoke": Spec(("digits-vae", "smoke"), "digits", 6, 3, 1, 20, 2, 100, 100, 1, 64),
        "laptop": Spec(),
        "full": Spec(images=200, restarts=4, certified=100, draws=10_000),
    },
)
def baselines(spec: Spec, run: Run) -> Result:
    """Every baseline by damage, MS-SSIM, certified radius and accuracy; ranks of cheap scores."""
    images, rows, means = run.images(spec.data), list[Row](), dict[str, list[float]]()
    x, y = references(images, spec.images, run.seed)
    more, _ = images.sample(min(spec.clean, len(images)), generator=run.noise("clean images"))
    for name in run.each(spec.models):
        runs = spec.seeds if name in VARIANTS else 1
        parts: list[dict[str, list[float]]] = []
        for seed in run.each(range(runs)):
            vae, costs = _model(name, seed, spec, run)
            judge = functools.partial(_judged, vae, x, y, more, spec, run)
            parts.append(run.part(f"{name}, {seed}", judge, vae))
            run.progress(f"{name}, {seed}")
        for setting in parts[0]:
            values = [torch.tensor(part[setting], dtype=torch.float64) for part in parts]
            section = "Scores without an attack" if setting in SCORES else ""
            row = measured(name, setting, torch.stack(values).mean(0), section=section)
            if runs > 1:  # the spread of the training runs, where it is larger
                spread = float(torch.stack([v.mean() for v in values]).std() / runs**0.5)
                row = Row(name, setting, row.measured, max(row.stderr or 0.0, spread), row.n)
            rows.append(row)
            means.setdefault(setting, []).append(row.measured)
        if costs is not None:
            text = f"{costs:.3g}"
            setting = "training, in plain epochs"
            rows.append(Row(name, setting, costs, section="Cost", text=text))
    for score in SCORES:
        for strength in STRENGTHS if len(spec.models) > 2 else ():
            rank = float(spearmanr(means[score], means[strength]).statistic)
            rows.append(Row(score, strength, rank, section="Rank correlations over the models"))
    trained = f"{spec.train:,}" if spec.train else "all"
    return run.result(
        f"Baselines, {spec.data}",
        "squared pixel units, MS-SSIM, pixel units, shares",
        rows,
        (
            f"{spec.images} test images, balanced over the classes. MS-SSIM (variant kuzina2022) "
            "of the reconstruction of the attacked image to that of the clean one, from the means; "
            "the lower of two attacks that know the model, image by image: one on the distance of "
            f"the reconstructions (damage, also alone), one on MS-SSIM; {spec.restarts} starts of "
            f"{spec.steps} steps, l-infinity, pixels kept in [0, 1].",
            f"Error: squared, on {len(more):,} test images. Certified: mean radius of smoothing at "
            f"{NOISE}, r = {TOLERANCE}, m = 1/2, full, own center, {spec.draws:,} draws, the first "
            f"{spec.certified} images.",
            "Accuracy: a linear classifier on the means says what it says of the clean image, "
            "under an attack on its margin of the same length"
            + (
                f"; it learned for {spec.head} epochs from attacks at 0.2 on it." * bool(spec.head)
                or "."
            ),
            f"Variants (variants.yaml) are trained here on {trained} training images, "
            f"{spec.seeds} run(s) each; slopes: Frobenius norms of the Jacobians of both means.",
        ),
    )


def _model(name: str, seed: int, spec: Spec, run: Run) -> tuple[VAE, float | None]:
    """The model of a line, and what its training cost beyond its start, in plain epochs."""
    variant = VARIANTS.get(name)
    if variant is None:
        return run.model(name), None
    train = run.images(spec.data, "train")
    train = train[: spec.train] if spec.train else train
    objective = create(**variant["objective"])
    epochs = int(variant["epochs"])
    rates = {0: 5e-4, epochs // 2: 2e-4, max(1, epochs - 1): 5e-5} if epochs > 1 else {0: 2e-4}
    vae = run.train(
        f"variants/{name}-{spec.data}-{spec.train}-{seed}",
        variant.get("model") or rv.load(variant["start"]),
        objective,
        train,
        epochs=epochs,
        seed=seed,
        batch_size=128,
        lr=sorted(rates.items()),
        precision="bf16-mixed",
    )
    return vae, epochs * cost_of(objective)


def _judged(
    vae: VAE, x: Tensor, y: Tensor, more: Tensor, spec: Spec, run: Run
) -> dict[str, list[float]]:
    """All measures of one model, image by image."""
    x, more = x.to(vae.dtype), more.to(vae.dtype)
    effort = Effort(steps=spec.steps, restarts=spec.restarts, noises=(NOISE,))
    priced = price(vae, more, effort, run)
    values = {"error": priced["error of the mean"]}
    values[f"error of a draw at noise {NOISE}"] = priced[f"error of a draw at noise {NOISE:g}"]
    for radius in RADII:
        left = {goal: strength_of(vae, x, goal, radius, effort, run) for goal in GOALS}
        values[f"damage, linf {radius:g}"] = left["damage"]
        values[f"MS-SSIM, linf {radius:g}"] = [
            min(pair) for pair in zip(*left.values(), strict=True)
        ]
    values["certified radius"] = rv.certify(
        Victim(vae, InputNoise(NOISE)),
        x[: spec.certified],
        r=TOLERANCE,
        center="own",
        methods=["smoothing"],
        draws=spec.draws,
        generator=run.noise("certify"),
    ).radius.tolist()
    values |= accuracies(vae, x, y, spec, run)
    with torch.no_grad():
        deviation = vae.encode(x).stddev.mean(1)
    slopes = encoder_slopes(vae, x), decoder_slopes(vae, x)
    for score, numbers in zip(SCORES, (*slopes, deviation), strict=True):
        values[score] = numbers.tolist()
    return values


def accuracies(vae: VAE, x: Tensor, y: Tensor, spec: Spec, run: Run) -> dict[str, list[float]]:
    """How often the classifier says the label, and under attack what it said without one."""
    images = run.images(spec.data)
    classifier: Any = linear_classifier(vae, images, spec.learn, run.noise("train"))
    if spec.head:
        classifier = hardened(vae, classifier, spec, run)
    victim = Victim(vae, classifier=classifier)
    said = victim.classify(x, generator=run.noise("said")).argmax(1)
    values = {"accuracy": (said == y).double().tolist()}
    for radius in RADII:
        values[f"accuracy, linf {radius:g}"] = classes_kept(victim, x, radius, spec, run)
    return values


def hardened(vae: VAE, head: nn.Linear, spec: Spec, run: Run) -> nn.Linear:
    """The classifier trained on against l-infinity 0.2: four signed steps of its own gradient."""
    ball, g = Ball("linf", RADII[-1]), run.noise("head")
    x, y = run.images(spec.data, "train").sample(spec.learn, generator=g)
    x, head = x.to(vae.dtype), copy.deepcopy(head).requires_grad_(True)
    adam = torch.optim.Adam(head.parameters(), lr=5e-3)
    with frozen(vae):
        orders = [torch.randperm(len(x), generator=g) for _ in range(spec.head)]
        for rows in torch.cat(orders).split(250):
            clean, label = x[rows], y[rows]
            moved = ball.sample(clean, generator=g)
            for _ in range(4):
                leaf = moved.detach().requires_grad_(True)
                loss = functional.cross_entropy(head(vae.encode(leaf).mean), label)
                (slope,) = torch.autograd.grad(loss, leaf)
                moved = ball.project(clean, leaf.detach() + 0.4 * RADII[-1] * slope.sign())
            with torch.no_grad():
                code = vae.encode(moved).mean
            adam.zero_grad()
            functional.cross_entropy(head(code), label).backward()
            adam.step()
    return head.requires_grad_(False)
