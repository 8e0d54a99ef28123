"""How far the robust mode can be driven by an attack made for it.

The code-space attack chooses the code first and the image for it after, then follows the mode in
pixel space; every image that it finds is judged by the defense as it is deployed. Beside it stands
the ascent on damage through the unrolled search.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import references
from robustvae import zoo
from robustvae.attacks import Attack, CodeSpace, MaximumDamage, MetricDrop
from robustvae.defenses import RobustPosterior, Victim
from robustvae.models import VAE
from robustvae.perturb import Ball, ProjectedAscent


@final
@dataclass(frozen=True)
class Spec:
    """What is attacked, and how hard.

    Attributes:
        models: Stored models; their cards name their data sets.
        counts: References of each.
        radius: Of the attack in the maximum norm, which the defense knows.
        mode: Gradients of the defense.
        steps: Steps over codes of each start.
        starts: Starts.
        tracked: Steps in pixel space.
        ascent: Steps of the ascent beside it; 0 leaves it out.
    """

    models: tuple[str, ...] = ("fashion-conv28", "mnist-conv28")
    counts: tuple[int, ...] = (20, 50)
    radius: float = 0.2
    mode: int = 100
    steps: int = 60
    starts: int = 8
    tracked: int = 40
    ascent: int = 0


@item(
    "own/code-space",
    "ours",
    sizes={
        "smoke": Spec(("digits-vae",), (10,), 0.2, 5, 2, 1, 1, 1),
        "laptop": Spec(),
        "full": Spec(starts=16, steps=100, tracked=100, ascent=10),
    },
)
def code_space(spec: Spec, run: Run) -> Result:
    """MS-SSIM that an attack over codes leaves of images behind the robust mode."""
    rows: list[Row] = []
    for name, count in run.each(zip(spec.models, spec.counts, strict=True)):
        images = run.images(zoo.card(name)["data"])
        vae, (x, _) = run.model(name), references(images, count, run.seed)
        part = run.part(name, functools.partial(_attacked, vae, x, spec, run), vae)
        for setting, values in run.each(part.items()):
            rows.append(measured(name, setting, values))
            run.progress(f"{name}: {rows[-1].cell}")
    return run.result(
        f"The robust mode at linf {spec.radius:g} under an attack over codes",
        "",
        rows,
        (
            "Test images, balanced over the classes; MS-SSIM (variant kuzina2022) of what the "
            f"robust mode (radius {spec.radius:g}, {spec.mode} gradients) makes of the attacked "
            "image to the undefended reconstruction of the clean one. Code space: "
            f"{spec.starts} starts of {spec.steps} steps of Adam over codes, the best images "
            f"followed for {spec.tracked} steps in pixel space; each image judged by the defense.",
        ),
    )


def _attacked(vae: VAE, x: Tensor, spec: Spec, run: Run) -> dict[str, list[float]]:
    victim = Victim(vae, RobustPosterior("linf", spec.radius, spec.mode))
    ball, goal = Ball("linf", spec.radius), MetricDrop(center="mean")
    search = CodeSpace(spec.steps, spec.starts, spec.tracked)
    attack = Attack(goal, search, ball)
    left = -attack(victim, x, generator=run.noise("attack")).score
    parts = {"code space and tracked": left}
    if spec.ascent:
        ascent = ProjectedAscent(steps=spec.ascent, restarts=spec.ascent)
        damage = Attack(MaximumDamage(), ascent, ball)
        moved = damage(victim, x, generator=run.noise("ascent")).x_adv
        parts["damage, unrolled"] = -attack.score(victim, x, moved, generator=run.noise("score"))
        parts["worst of both"] = torch.minimum(*parts.values())
    return {name: values.tolist() for name, values in parts.items()}
