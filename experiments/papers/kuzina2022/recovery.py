"""How far each defense brings the reconstruction of an attacked image back to the clean one.

The attack shifts the latent (symmetric KL) and does not know the defense. The robust modes assume
the radius, half and twice the radius; the last column attacks in another norm than they assume.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import (
    BALLS,
    RADII,
    attacked,
    gradients,
    share_of,
    squared,
    undefended,
)
from robustvae.defenses import (
    HMC,
    Defense,
    PosteriorMean,
    PosteriorMode,
    PosteriorSample,
    Refined,
    RobustPosterior,
    Threshold,
    Victim,
    estimate_radius,
)
from robustvae.perturb import Ball

TRIED = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
ESTIMATED, GUESS = "robust mode, radius estimated", "that radius, in pixel units"


@final
@dataclass(frozen=True)
class Spec:
    """What is measured.

    Attributes:
        model: The victim.
        data: Its data set.
        images: Inputs, balanced over the classes.
        steps: Of the attack.
        restarts: Of the attack.
        effort: Share of each defense's gradients.
    """

    model: str = "mnist-conv28"
    data: str = "mnist"
    images: int = 100
    steps: int = 50
    restarts: int = 10
    effort: float = 1.0


SIZES = {
    "smoke": Spec("digits-vae", "digits", 8, 5, 1, 0.1),
    "laptop": Spec(),
    "full": Spec(images=500),
}


def rows_of(radius: float, effort: float) -> dict[str, Defense]:
    """The defenses of one column, by name; the robust ones never know more than the radius."""
    half, double = radius / 2, 2 * radius

    def n(count: int) -> int:
        return share_of(count, effort)

    def restarted(radius: float) -> RobustPosterior:
        return RobustPosterior("linf", radius, max(20, n(200)), start="prior", rate=0.4)

    return {
        "undefended (posterior mean)": PosteriorMean(),
        "posterior sample": PosteriorSample(),
        "HMC": HMC(steps=n(26), step_size=0.5, mass="encoder"),
        "posterior mode": PosteriorMode(steps=n(50)),
        "threshold at 1/2, then posterior mean": Refined(Threshold(0.5)),
        "robust mode, radius right": RobustPosterior("linf", radius, steps=n(50)),
        "robust mode, half the radius": RobustPosterior("linf", half, steps=n(50)),
        "robust mode, twice the radius": RobustPosterior("linf", double, steps=n(50)),
        "robust mode, restarted, radius right": restarted(radius),
        "robust mode, restarted, half the radius": restarted(half),
        "robust mode, restarted, twice the radius": restarted(double),
        "robust HMC, radius right": HMC(steps=n(26), ball=Ball("linf", radius)),
        "robust mode, l2 2": RobustPosterior("l2", 2.0, steps=n(50)),
    }


@item("kuzina2022/recovery", "[Kuzina22] sections 4 and 5; the robust mode is ours", sizes=SIZES)
def recovery(spec: Spec, run: Run) -> Result:
    """Squared distance to the clean reconstruction by defense, radius right and misstated."""
    vae, images = run.model(spec.model), run.images(spec.data)
    chosen = images.choose(spec.images, stratified=True, generator=run.noise("data"))
    x, elsewhere = images.read(chosen), torch.ones(len(images), dtype=torch.bool)
    elsewhere[chosen] = False
    others, _ = images[elsewhere.nonzero()[:, 0]].sample(spec.images, generator=run.noise("others"))
    clean, rows = undefended(vae, x, run), list[Row]()
    for setting, ball in run.each(
        {"clean": None, **{f"{b.norm} {b.radius:g}": b for b in BALLS}}.items()
    ):
        x_adv = x
        if ball is not None:
            x_adv = run.tensor(
                f"{setting}, attacked",
                x,
                functools.partial(attacked, vae, x, ball, spec.steps, spec.restarts, run.seed),
                vae,
            )
        assumed = float(ball.radius) if ball is not None and ball.norm == "linf" else RADII[-1]
        for name, defense in run.each(rows_of(assumed, spec.effort).items()):

            def distance(name: str = name, defense: Defense = defense, y: Tensor = x_adv) -> object:
                x_hat = Victim(vae, defense).reconstruct(y, generator=run.noise(name))
                return squared(x_hat, clean)

            values = run.part(f"{setting}, {name}: {defense}", distance, vae)
            rows.append(measured(name, setting, values, cost=gradients(defense)))
            run.progress(f"{setting}: {name}: {rows[-1].cell}")
        steps = share_of(50, spec.effort)

        def guessed(y: Tensor = x_adv, steps: int = steps) -> object:
            noise = run.noise(ESTIMATED)
            guess = estimate_radius(vae, y, others, radii=TRIED, steps=steps, generator=noise)
            radius = min(guess.radius, max(guess.radii))
            victim = Victim(vae, RobustPosterior("linf", radius, steps))
            return {
                ESTIMATED: squared(victim.reconstruct(y, generator=noise), clean),
                GUESS: [radius],
            }

        for name, values in run.part(f"{setting}, {ESTIMATED}", guessed, vae).items():
            rows.append(measured(name, setting, values, cost=steps * (len(TRIED) + 1)))
    return run.result(
        "Squared distance to the clean reconstruction",
        "squared pixel units, summed over the image",
        rows,
        (
            f"{spec.images} test images, balanced over the classes.",
            "Attack: symmetric KL of the encoder's posteriors, a ball in [0, 1], projected ascent, "
            f"{spec.steps} steps, {spec.restarts} restarts; it does not know the defense.",
            "Distance: between the defended reconstruction of the attacked image and the "
            "undefended reconstruction of the clean one.",
            "In the clean column, where nothing is attacked, and in the l2 one the l-infinity "
            "radius called right is 0.2.",
            "A robust mode's radius is one number for all images. The estimated one is "
            f"`estimate_radius` of the column's images against {spec.images} other clean ones, by "
            "their excess energy; those gradients on the column's images are counted.",
        ),
    )
