"""The worst of a whole suite of attacks, image by image, on models that nothing defends.

`own/robust-training` asks two attacks. Here every kind of search that the library has is asked:
ascents on the damage, on MS-SSIM and on the code, with and without momentum, from random places,
from the edge and from where squares ended, one change for all, searches without gradients, and
changes that were made for other models. What an image keeps is the least that any of them leaves.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import linear_classifier, references
from experiments.papers.own.robust_training import RADII, SimilarityLoss, classes_kept, similarities
from robustvae.attacks import Attack, Goal, LatentShift, MaximumDamage, MetricDrop
from robustvae.attacks.directed import DirectedAscent
from robustvae.data import Images
from robustvae.defenses import Victim
from robustvae.models import VAE
from robustvae.perturb import Ball, ExploredAscent, ProjectedAscent, SquareSearch, Universal


@final
@dataclass(frozen=True)
class Spec:
    """What is attacked, and how long.

    Attributes:
        models: By name; each is also attacked by what was found on the others.
        data: Their data set.
        images: References, balanced over the classes.
        steps: Of each gradient search.
        restarts: Of each gradient search.
        queries: Of each search without gradients.
        learn: Training images of the classifier.
    """

    models: tuple[str, ...] = ("mnist-conv28-adversarial", "mnist-conv28-noise-0.25")
    data: str = "mnist"
    images: int = 100
    steps: int = 50
    restarts: int = 4
    queries: int = 500
    learn: int = 5000


def attacks_of(spec: Spec) -> dict[str, tuple[Goal, Any]]:
    """Every attack by name: its goal and its search."""
    plain = ProjectedAscent(steps=spec.steps, restarts=spec.restarts, chunk=100)
    swift = ProjectedAscent(steps=spec.steps, restarts=spec.restarts, momentum=0.75, chunk=100)
    square = SquareSearch(steps=spec.queries)
    return {
        "damage": (MaximumDamage(), plain),
        "damage, momentum": (MaximumDamage(), swift),
        "damage, from the edge": (MaximumDamage(), DirectedAscent(plain)),
        "damage, one change for all": (MaximumDamage(), Universal(spec.steps, 1)),
        "damage, no gradients": (MaximumDamage(), square),
        "MS-SSIM": (SimilarityLoss(), plain),
        "MS-SSIM, momentum": (SimilarityLoss(), swift),
        "MS-SSIM, no gradients": (SimilarityLoss(), square),
        "damage, from where squares ended": (MaximumDamage(), ExploredAscent(plain)),
        "MS-SSIM, from where squares ended": (SimilarityLoss(), ExploredAscent(plain)),
        "logarithms of MS-SSIM": (MetricDrop(), plain),
        "code, symmetric KL": (LatentShift("symmetric_kl"), plain),
    }


@item(
    "own/whole-suite",
    "ours",
    sizes={
        "smoke": Spec(("digits-vae", "digits-vae-noise"), "digits", 4, 2, 1, 5, 200),
        "laptop": Spec(),
        "full": Spec(images=500, steps=200, restarts=10, queries=5000),
    },
)
def whole_suite(spec: Spec, run: Run) -> Result:
    """MS-SSIM that the worst of twelve attacks and transfers leaves of each image, and accuracy."""
    images = run.images(spec.data)
    x, _ = references(images, spec.images, run.seed)
    rows: list[Row] = []
    found: dict[tuple[str, float], dict[str, Tensor]] = {}
    vaes = {name: run.model(name) for name in spec.models}
    for name, vae in vaes.items():
        for radius in RADII:
            changed = found.setdefault((name, radius), {})
            for attack, (goal, search) in attacks_of(spec).items():
                make = functools.partial(_attacked, vae, x, goal, search, radius, run)
                changed[attack] = run.tensor(f"{name}, {attack}, linf {radius:g}", x, make, vae)
    for name, vae in vaes.items():
        for radius in RADII:
            left = {
                attack: run.part(
                    f"left of {name}, {attack}, linf {radius:g}",
                    functools.partial(similarities, vae, x_adv, x, run),
                    vae,
                )
                for attack, x_adv in found[name, radius].items()
            }
            for other in spec.models:
                if other != name:
                    x_adv = found[other, radius]["MS-SSIM"]
                    judge = functools.partial(similarities, vae, x_adv, x, run)
                    key = f"made for {other}"
                    left[key] = run.part(f"{name}, {key}, linf {radius:g}", judge, vae, vaes[other])
            worst = [min(values) for values in zip(*left.values(), strict=True)]
            for attack, values in {**left, "worst for each image": worst}.items():
                rows.append(measured(attack, f"{name}, linf {radius:g}", values))
            run.progress(f"{name}, linf {radius:g}: {rows[-1].cell}")
        rows += _accuracy(name, vae, images, x, spec, run)
    return run.result(
        f"The worst of a whole suite, {spec.data}",
        "MS-SSIM (variant kuzina2022); shares of the images",
        rows,
        (
            f"{spec.images} test images, balanced over the classes; nothing defends the models. "
            f"Gradient searches: {spec.restarts} starts of {spec.steps} steps (one change for all: "
            f"one start); without gradients {spec.queries} queries. MS-SSIM of the reconstruction "
            "of the attacked image to that of the clean one, both from the mean of the posterior.",
            "Accuracy: the class that a linear classifier on the posterior means, learned on "
            f"{spec.learn:,} training images, finds under an attack on its margin, against its "
            "own clean prediction.",
        ),
    )


def _attacked(vae: VAE, x: Tensor, goal: Goal, search: Any, radius: float, run: Run) -> Tensor:
    attack = Attack(goal, search, Ball("linf", radius))
    return attack(Victim(vae), x, generator=run.noise(f"{goal}, {search}, {radius:g}")).x_adv


def _accuracy(name: str, vae: VAE, images: Images, x: Tensor, spec: Spec, run: Run) -> list[Row]:
    classifier: Any = linear_classifier(vae, images, spec.learn, run.noise("classifier"))
    victim, rows = Victim(vae, classifier=classifier), list[Row]()
    for radius in RADII:
        key = f"{name}, accuracy, linf {radius:g}"
        kept = functools.partial(classes_kept, victim, x, radius, spec, run)
        rows.append(measured("accuracy", f"{name}, linf {radius:g}", run.part(key, kept, vae)))
    return rows
