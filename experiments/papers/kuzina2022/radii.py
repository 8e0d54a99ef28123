"""[Kuzina22] Fig. 13, 14 and 16: how large an attack may be, and which objective attacks best."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from experiments.harness import Result, Row, Run, item
from experiments.harness.figures import gallery
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import (
    linear_classifier,
    references,
    similarity,
    undefended,
)
from robustvae.attacks import Attack, LatentShift, MaximumDamage
from robustvae.attacks.goals import Goal
from robustvae.defenses import Victim
from robustvae.perturb import Ball, ProjectedAscent

OBJECTIVES: dict[str, Goal] = {
    "KL, forward": LatentShift("kl"),
    "KL, reverse": LatentShift("reverse_kl"),
    "KL, symmetric": LatentShift("symmetric_kl"),
    "2-Wasserstein": LatentShift("wasserstein2"),
    "output": MaximumDamage(),
}
SYMMETRIC = "KL, symmetric"


@final
@dataclass(frozen=True)
class Spec:
    """What is measured.

    Attributes:
        model: The victim.
        data: Its data set.
        images: References, balanced over the classes.
        pool: They come from the first so many test images; 0 is all of them.
        radii: Of the attacks, l-infinity.
        compared: Radii at which the objectives are compared.
        steps: Of each attack.
        restarts: Of each attack.
        learn: Training images of the classifier.
        pictures: Folder of the gallery; empty draws none.
    """

    model: str = "mnist-conv28"
    data: str = "mnist"
    images: int = 50
    pool: int = 1024
    radii: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
    compared: tuple[float, ...] = (0.1, 0.2)
    steps: int = 50
    restarts: int = 1
    learn: int = 5000
    pictures: str = ""


@item(
    "kuzina2022/radii",
    "[Kuzina22] Fig. 13, 14 and 16, appendix C.4 and C.6",
    sizes={
        "smoke": Spec("digits-vae", "digits", 10, 0, (0.05, 0.5), (0.1,), 3, 1, 200),
        "laptop": Spec(),
    },
)
def radii(spec: Spec, run: Run) -> Result:
    """Similarity of images and of reconstructions by radius, and the attack objectives compared."""
    vae, images = run.model(spec.model), run.images(spec.data, pool=spec.pool)
    x, y = references(images, spec.images, run.seed)
    clean = undefended(vae, x, run)
    classifier = linear_classifier(vae, images, spec.learn, run.noise("train"))
    victim, rows, shown = Victim(vae, classifier=classifier), list[Row](), {"reference": x}
    search = ProjectedAscent(steps=spec.steps, restarts=spec.restarts)
    asked = [(SYMMETRIC, radius) for radius in spec.radii]
    asked += [(name, radius) for name in OBJECTIVES for radius in spec.compared]
    for name, radius in run.each(dict.fromkeys(asked)):
        attack = Attack(OBJECTIVES[name], search, Ball("linf", radius))
        noise = run.noise(f"{name}, {radius:g}")
        x_adv = attack(victim, x, generator=noise).x_adv
        x_hat = victim.reconstruct(x_adv, generator=run.noise("read"))
        said = victim.classify(x_adv, generator=run.noise("read")).argmax(1)
        columns: dict[str, list[float]] = {
            "MS-SSIM of the images": similarity(x_adv, x).tolist(),
            "MS-SSIM of the reconstructions": similarity(x_hat, clean).tolist(),
            "accuracy": (said == y).double().tolist(),
        }
        if name == SYMMETRIC and radius in spec.radii:
            section = "By radius (symmetric KL)"
            rows += [
                measured(f"linf {radius:g}", k, v, section=section) for k, v in columns.items()
            ]
            shown[f"linf {radius:g}"] = x_adv
            shown[f"linf {radius:g}, out"] = x_hat
        if radius in spec.compared:
            section = f"By objective at linf {radius:g}"
            rows += [measured(name, k, v, section=section) for k, v in columns.items()]
        run.progress(f"{name}, linf {radius:g}: {rows[-1].cell}")
    if spec.pictures:
        path = Path(spec.pictures) / f"kuzina-radii-{spec.data}.png"
        gallery({k: v[:8].clamp(0, 1) for k, v in shown.items()}, path)
    pool = f"the first {spec.pool:,} test images" if spec.pool else "all test images"
    return run.result(
        f"Attacks by radius and by objective: {spec.model}",
        "MS-SSIM (variant kuzina2022) and shares of the images",
        rows,
        (
            f"{spec.images} references of {pool}, the best of {spec.restarts} attacks of "
            f"{spec.steps} steps on each; the classifier is linear, on posterior means. The "
            "objectives do not see the classifier.",
        ),
    )
