"""Training that holds without any defense: plain, under noise, against an adversary.

Nothing stands between encoder and decoder here: what is judged is the model alone, reconstructing
from the mean of its posterior, under two attacks that know all of it. Beside the strength stand its
price (error on clean images, and when the input carries the noise of a smoothed victim) and the
cost of its training.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import references, similarity, squared
from robustvae import zoo
from robustvae.attacks import Attack, ClassifierFlip, Goal, MaximumDamage
from robustvae.defenses import Victim
from robustvae.models import VAE
from robustvae.models.base import frozen
from robustvae.objectives import create
from robustvae.objectives.base import cost_of
from robustvae.perturb import Ball, ProjectedAscent, Score
from robustvae.seeding import draw, randn
from robustvae.training import Recipe, recipe_names

RADII = (0.1, 0.2)
CHUNK = 500
EVIDENCE = "Evidence: MS-SSIM under transferred attacks; gradients against central differences"
NUDGE = 1e-4  # of a central difference, in pixel units, in float64


@final
@dataclass(frozen=True)
class Spec:
    """What is measured.

    Attributes:
        models: By name.
        data: Their data set.
        images: References of the attacks, balanced over the classes.
        steps: Of each attack.
        restarts: Of each attack.
        clean: Other clean images, on which the errors are measured.
        noises: Standard deviations of noise on the input, under which the error is measured too.
    """

    models: tuple[str, ...] = (
        "mnist-conv28",
        "mnist-conv28-noise-0.25",
        "mnist-conv28-noise-0.5",
    )
    data: str = "mnist"
    images: int = 100
    steps: int = 50
    restarts: int = 4
    clean: int = 2000
    noises: tuple[float, ...] = (0.25, 0.5)


@final
@dataclass(frozen=True)
class SimilarityLoss:
    """Lower the MS-SSIM of the reconstruction to that of the clean image."""

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """1 - MS-SSIM, variant "kuzina2022", of candidates; see `Goal.bind`."""
        vae = victim.vae
        with torch.no_grad():
            clean = vae.decode(vae.encode(x).mean).mean
        return lambda y, rows: 1 - similarity(vae.decode(vae.encode(y).mean).mean, clean[rows])


GOALS: dict[str, Goal] = {"damage": MaximumDamage(), "MS-SSIM": SimilarityLoss()}

PROTOTYPE: dict[tuple[str, str], float] = {
    ("mnist-conv28", "error of the mean"): 5.3,
    ("mnist-conv28", "error of a draw"): 7.9,
    ("mnist-conv28", "damage, linf 0.1"): 0.52,
    ("mnist-conv28", "damage, linf 0.2"): 0.19,
    ("mnist-conv28-noise-0.25", "error of the mean"): 6.1,
    ("mnist-conv28-noise-0.25", "error of a draw at noise 0.25"): 9.3,
    ("mnist-conv28-noise-0.25", "damage, linf 0.1"): 0.97,
    ("mnist-conv28-noise-0.25", "damage, linf 0.2"): 0.81,
    ("mnist-conv28-noise-0.25", "MS-SSIM, linf 0.1"): 0.957,
    ("mnist-conv28-noise-0.25", "MS-SSIM, linf 0.2"): 0.766,
    ("mnist-conv28-noise-0.5", "error of the mean"): 8.5,
    ("mnist-conv28-noise-0.5", "error of a draw at noise 0.5"): 13.3,
    ("mnist-conv28-noise-0.5", "damage, linf 0.1"): 0.97,
    ("mnist-conv28-noise-0.5", "damage, linf 0.2"): 0.86,
    ("mnist-conv28-noise-0.5", "MS-SSIM, linf 0.1"): 0.962,
    ("mnist-conv28-noise-0.5", "MS-SSIM, linf 0.2"): 0.813,
    ("fashion-conv28", "error of the mean"): 9.6,
    ("fashion-conv28", "damage, linf 0.1"): 0.37,
    ("fashion-conv28", "damage, linf 0.2"): 0.20,
    ("fashion-conv28-noise-0.25", "error of the mean"): 10.5,
    ("fashion-conv28-noise-0.25", "damage, linf 0.1"): 0.84,
    ("fashion-conv28-noise-0.25", "damage, linf 0.2"): 0.27,
    ("fashion-conv28-noise-0.5", "error of the mean"): 12.1,
    ("fashion-conv28-noise-0.5", "damage, linf 0.1"): 0.88,
    ("fashion-conv28-noise-0.5", "damage, linf 0.2"): 0.36,
    ("fashion-conv28-noise-0.5", "MS-SSIM, linf 0.1"): 0.82,
    ("fashion-conv28-noise-0.5", "MS-SSIM, linf 0.2"): 0.11,
    ("fashion-conv28-adversarial", "error of the mean"): 11.3,
    ("fashion-conv28-adversarial", "damage, linf 0.1"): 0.93,
    ("fashion-conv28-adversarial", "damage, linf 0.2"): 0.45,
    ("fashion-conv28-adversarial", "MS-SSIM, linf 0.1"): 0.89,
    ("fashion-conv28-adversarial", "MS-SSIM, linf 0.2"): 0.25,
}
"""Of a first trial on 20 to 30 images, which this item repeats on more."""


@item(
    "own/robust-training",
    "ours",
    sizes={
        "smoke": Spec(("digits-vae",), "digits", 6, 3, 2, 20),
        "laptop": Spec(),
        "full": Spec(images=500, restarts=10, clean=10_000),
    },
)
def robust_training(spec: Spec, run: Run) -> Result:
    """Models trained under noise and against an adversary: strength undefended, and price."""
    images = run.images(spec.data)
    x, _ = references(images, spec.images, run.seed)
    clean_images, _ = images.sample(
        min(spec.clean, len(images)), generator=run.noise("clean images")
    )
    rows: list[Row] = []

    def add(model: str, setting: str, values: list[float], section: str) -> None:
        reported = PROTOTYPE.get((model, setting))
        rows.append(measured(model, setting, values, section=section, reported=reported))
        run.progress(f"{model}: {setting}: {rows[-1].cell}")

    for name in run.each(spec.models):
        vae = run.model(name)
        priced = run.part(
            f"{name}, price", functools.partial(price, vae, clean_images, spec, run), vae
        )
        for setting, values in run.each(priced.items()):
            add(name, setting, values, "Price: squared error a clean image")
        strength = {}
        for radius in run.each(RADII):
            for goal in run.each(GOALS):
                strength[f"{goal}, linf {radius:g}"] = run.part(
                    f"{name}, {goal}, linf {radius:g}",
                    functools.partial(strength_of, vae, x, goal, radius, spec, run),
                    vae,
                )
            both = zip(*(strength[f"{goal}, linf {radius:g}"] for goal in GOALS), strict=True)
            strength[f"the lower of both, linf {radius:g}"] = [min(pair) for pair in both]
        for setting, values in run.each(strength.items()):
            add(name, setting, values, "Strength: MS-SSIM under an attack on the column's score")
        first = run.model(spec.models[0])
        for radius in run.each(RADII if name != spec.models[0] else ()):
            setting = f"found on {spec.models[0]}, linf {radius:g}"
            search = functools.partial(attacked, first, x, radius, spec, run)
            moved = run.tensor(f"MS-SSIM, {setting}", x, search, first)
            judge = functools.partial(similarities, vae, moved, x, run)
            add(name, setting, run.part(f"{name}, {setting}", judge, vae, first), EVIDENCE)
        slopes = run.part(f"{name}, slopes", functools.partial(slope_errors, vae, x, run), vae)
        add(name, "error of the gradient, relative", slopes, EVIDENCE)
        steps, cost = training_cost(name)
        section = "Training"
        rows.append(Row(name, "epochs, from the start", steps, section=section, text=f"{steps:g}"))
        text = f"{cost:.3g}"
        rows.append(Row(name, "cost of a step over a plain one", cost, section=section, text=text))
    return run.result(
        f"Training that holds by itself, {spec.data}",
        "",
        rows,
        (
            f"Strength: {spec.images} test images, balanced over the classes; MS-SSIM (variant "
            "kuzina2022) of the reconstruction of the attacked image to that of the clean one, "
            "both from the mean of the posterior; nothing defends the model. Two attacks that know "
            f"it, {spec.restarts} starts of {spec.steps} steps each: one on the distance of the "
            "reconstructions (damage), one on MS-SSIM itself; then the lower of both, image by "
            "image.",
            f"Price: squared error to the image itself, in squared pixel units, on "
            f"{len(clean_images):,} test images; of a draw at noise s: as a victim smoothed by s "
            "reconstructs.",
            "Evidence against a masked gradient: attacks on MS-SSIM that were found "
            "on the first model leave more than those on the model itself, and the gradient of the "
            "damage along itself is what central differences measure.",
            "Reported: a first trial of the same on 20 to 30 images.",
            "The models go on from the plain one by their recipes; plain steps count 1.",
        ),
    )


def price(vae: VAE, x: Tensor, spec: Spec, run: Run) -> dict[str, list[float]]:
    """Squared error of each clean image: of the mean, of a draw, of draws under noise."""
    errors: dict[str, list[float]] = {}
    generator = run.noise("price")
    with torch.no_grad(), frozen(vae):
        for part in x.split(CHUNK):
            q = vae.encode(part)
            codes = {"error of the mean": q.mean, "error of a draw": draw(q, generator=generator)}
            for noise in spec.noises:
                noisy = part + noise * randn(*part.shape, like=part, generator=generator)
                codes[f"error of a draw at noise {noise:g}"] = draw(
                    vae.encode(noisy), generator=generator
                )
            for name, z in codes.items():
                errors.setdefault(name, []).extend(squared(vae.decode(z).mean, part))
    return errors


def strength_of(vae: VAE, x: Tensor, goal: str, radius: float, spec: Spec, run: Run) -> list[float]:
    """MS-SSIM that an attack leaves, image by image."""
    search = ProjectedAscent(steps=spec.steps, restarts=spec.restarts, chunk=100)
    attack = Attack(GOALS[goal], search, Ball("linf", radius))
    x_adv = attack(Victim(vae), x, generator=run.noise(f"{goal}, {radius:g}")).x_adv
    return similarities(vae, x_adv, x, run)


def attacked(vae: VAE, x: Tensor, radius: float, spec: Spec, run: Run) -> Tensor:
    """What an attack on MS-SSIM makes of the references, to be tried on other models."""
    search = ProjectedAscent(steps=spec.steps, restarts=spec.restarts, chunk=100)
    attack = Attack(SimilarityLoss(), search, Ball("linf", radius))
    return attack(Victim(vae), x, generator=run.noise(f"transfer, {radius:g}")).x_adv


def similarities(vae: VAE, x_adv: Tensor, x: Tensor, run: Run) -> list[float]:
    """MS-SSIM of the reconstructions of attacked images to those of the clean ones."""
    victim = Victim(vae)
    pair = [victim.reconstruct(y, generator=run.noise("reconstruct")) for y in (x_adv, x)]
    values: list[float] = similarity(*pair).double().tolist()
    return values


def classes_kept(victim: Victim, x: Tensor, radius: float, spec: Any, run: Run) -> list[float]:
    """1 for an image whose class stays what the classifier said, under an attack on its margin.

    Args:
        victim: With a classifier.
        x: Images, (B, C, H, W).
        radius: In the maximum norm.
        spec: Whose `steps` and `restarts` the attack has.
        run: Where the draws come from.
    """
    search = ProjectedAscent(steps=spec.steps, restarts=spec.restarts)
    attack = Attack(ClassifierFlip(loss="margin"), search, Ball("linf", radius))
    moved = attack(victim, x, generator=run.noise(f"flip {radius:g}")).x_adv
    said = victim.classify(x, generator=run.noise("said")).argmax(1)
    found = victim.classify(moved, generator=run.noise("found")).argmax(1)
    values: list[float] = (found == said).double().tolist()
    return values


def slope_errors(vae: VAE, x: Tensor, run: Run) -> list[float]:
    """Relative errors of the damage's gradient along itself, at random points within 0.1."""
    exact, clean = copy.deepcopy(vae).double(), x.double()
    y = Ball("linf", RADII[0]).sample(clean, generator=run.noise("slopes")).requires_grad_()
    rows = torch.arange(len(x))
    with frozen(exact):
        score = MaximumDamage().bind(Victim(exact), clean, generator=run.noise("slopes"))
        (slope,) = torch.autograd.grad(score(y, rows).sum(), y)
        length = torch.linalg.vector_norm(slope, dim=(1, 2, 3))
        step = NUDGE * slope / length.view(-1, 1, 1, 1)
        with torch.no_grad():
            measured_slope = (score(y + step, rows) - score(y - step, rows)) / (2 * NUDGE)
    errors: list[float] = ((measured_slope - length).abs() / length).tolist()
    return errors


def training_cost(name: str) -> tuple[float, float]:
    """Epochs since the first weights, and the cost of a step; nan where no recipe says."""
    if name not in recipe_names():
        return float("nan"), float("nan")
    recipe = Recipe.read(name)
    before = 0.0 if recipe.start is None else training_cost(recipe.start)[0]
    objective = create(recipe.objective.name, **recipe.objective.options)
    return before + float(zoo.card(name)["epochs"]), cost_of(objective)
