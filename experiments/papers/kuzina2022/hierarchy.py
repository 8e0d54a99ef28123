"""[Kuzina22] Fig. 4, section 4.3: an attacked hierarchy, NVAE, with and without HMC.

The attack shifts the codes of the top groups, as the paper's does, or of all groups, and does not
know the defense. The paper takes the authors' trained NVAE; here a small one of ours is trained.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.figures import new_figures, save
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import references, similarity, undefended
from robustvae.defenses import HMC, Victim
from robustvae.models import NVAE
from robustvae.objectives import ELBO
from robustvae.seeding import shard_generator

BATCH, LR, CLIP = 64, 2e-3, 100.0
DEFENSES = ("undefended", "HMC")


@final
@dataclass(frozen=True)
class Spec:
    """What is trained, attacked and defended.

    Attributes:
        data: To train on and attack at.
        preset: Of the NVAE.
        train: Training images.
        epochs: Passes over them.
        images: Reference images, balanced over the classes.
        radii: Of the attack, linf.
        top: How many groups from the top are attacked; beside it, all are.
        attack: Steps of the attack.
        steps: Transitions of HMC.
        leapfrog: Leapfrog steps of each.
        pictures: Folder of the picture; empty draws none.
    """

    data: str = "mnist"
    preset: str = "tiny"
    train: int = 1_920
    epochs: int = 10
    images: int = 20
    radii: tuple[float, ...] = (0.05, 0.1)
    top: int = 3
    attack: int = 50
    steps: int = 50
    leapfrog: int = 5
    pictures: str = ""


@item(
    "kuzina2022/fig-4",
    "[Kuzina22] Fig. 4, section 4.3",
    sizes={
        "smoke": Spec("digits", train=64, epochs=1, images=2, attack=2, steps=2, leapfrog=2),
        "laptop": Spec(),
        "full": Spec(train=60_000, epochs=30, images=100, steps=500, leapfrog=20),
    },
)
def hierarchy(spec: Spec, run: Run) -> Result:
    """MS-SSIM of reconstructions of reference and attacked images by NVAE, with and without HMC."""
    train, test = run.images(spec.data, "train"), run.images(spec.data)
    chosen = train.choose(spec.train, stratified=True, generator=shard_generator(0, 0, "train"))
    options = {"name": "nvae", "preset": spec.preset, "image_shape": train.image_shape}
    settings: dict[str, Any] = {"batch_size": BATCH, "lr": LR, "clip": CLIP}
    folder = f"fig-4/{spec.data}-{spec.preset}-{spec.train}-{spec.epochs}"
    vae = run.train(folder, options, ELBO(), train[chosen], epochs=spec.epochs, **settings)
    assert isinstance(vae, NVAE)
    x, _ = references(test, spec.images, run.seed)
    clean, rows = undefended(vae, x, run), list[Row]()
    error = (clean - x).flatten(1).square().sum(1).tolist()
    rows.append(measured("clean squared error", "", error, section="The model"))
    groups = len(vae.widths)
    means: dict[str, dict[str, list[float]]] = {}
    targets = {
        f"top {spec.top} groups": tuple(range(groups - spec.top, groups)),
        f"all {groups} groups": None,
    }
    for name, layers in run.each(targets.items()):
        for radius in run.each((0.0, *spec.radii)):
            setting = f"linf {radius:g}" if radius else "no attack"
            y = x
            if radius:
                y = run.tensor(
                    f"{name}, {setting}",
                    x,
                    functools.partial(_attacked, vae, x, radius, layers, spec, run.seed),
                    vae,
                )
            for defense in run.each(DEFENSES):
                compute = functools.partial(_similar, vae, y, clean, defense, spec, run)
                values = run.part(f"{name}, {setting}, {defense}", compute, vae)
                rows.append(measured(defense, setting, values, section=f"Attack on {name}"))
                means.setdefault(name, {}).setdefault(defense, []).append(sum(values) / len(values))
                run.progress(f"{name}, {setting}, {defense}: {rows[-1].cell}")
    if spec.pictures:
        _draw(means, spec, Path(spec.pictures) / f"kuzina-nvae-{spec.data}.png")
    return run.result(
        f"A hierarchy behind HMC: {spec.data}",
        "MS-SSIM as [Kuzina22] computes it; squared pixel units",
        rows,
        (
            f"NVAE {spec.preset} of {groups} groups, trained here for {spec.epochs} epochs on "
            f"{spec.train:,} images; the paper's is the authors' released one.",
            f"{spec.images} references; {spec.attack} steps of ascent on the symmetric KL, one "
            f"restart, the defense unknown to it; HMC of {spec.steps} transitions of "
            f"{spec.leapfrog} leapfrog steps from a posterior draw, all groups at once.",
            "Similarity of what is reconstructed from the attacked image to the undefended "
            "reconstruction of the reference.",
        ),
    )


def _attacked(
    vae: NVAE, x: Tensor, radius: float, layers: tuple[int, ...] | None, spec: Spec, seed: int
) -> Tensor:
    search = rv.ProjectedAscent(steps=spec.attack, restarts=1)
    goal = rv.LatentShift("symmetric_kl", layers=layers)
    attack = rv.Attack(goal, search, rv.Ball("linf", radius))
    return attack(Victim(vae), x, generator=shard_generator(seed, 0, f"linf {radius:g}")).x_adv


def _similar(
    vae: NVAE, y: Tensor, clean: Tensor, defense: str, spec: Spec, run: Run
) -> list[float]:
    victim = Victim(vae)
    if defense == "HMC":
        victim = Victim(vae, HMC(steps=spec.steps, n_leapfrog=spec.leapfrog, step_size=0.02))
    with torch.no_grad():
        values = similarity(victim.reconstruct(y, generator=run.noise(defense)), clean)
    result: list[float] = values.double().tolist()
    return result


def _draw(means: dict[str, dict[str, list[float]]], spec: Spec, path: Path) -> None:
    with new_figures() as new:
        figure = new(3.2 * len(means), 2.8)
        grid = figure.subplots(1, len(means), squeeze=False, sharey=True)[0]
        places = range(len(spec.radii) + 1)
        for axes, (name, by_defense) in zip(grid, means.items(), strict=True):
            for i, (defense, values) in enumerate(by_defense.items()):
                offset = [place + 0.4 * (i - 0.5) for place in places]
                axes.bar(offset, values, 0.38, color=f"C{i}", label=defense)
            axes.set(title=f"attack on {name}", ylim=(0, 1), xlabel="radius, linf")
            axes.set_xticks(list(places), [f"{radius:g}" for radius in (0.0, *spec.radii)])
        grid[0].set(ylabel="MS-SSIM to the clean reconstruction")
        grid[0].legend(loc="lower right", framealpha=1)
        save(figure, path)
