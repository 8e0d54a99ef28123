"""What climbs find from random places, from chosen ones, and from where squares ended."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import references
from robustvae.attacks import Attack, DirectedAscent, MaximumDamage
from robustvae.defenses import Victim
from robustvae.models import VAE
from robustvae.perturb import Ball, ExploredAscent, ProjectedAscent, SquareSearch
from robustvae.robustness import Budget


@final
@dataclass(frozen=True)
class Spec:
    """Who is attacked, and how long.

    Attributes:
        models: By name.
        data: Their data set.
        images: References, balanced over the classes.
        steps: Gradients of each start.
        squares: Candidates of each search by squares.
        r: Of the margins, beside each model's name.
        margins: Of how many images.
    """

    models: tuple[str, ...] = (
        "mnist-conv28",
        "mnist-conv28-noise-0.25",
        "mnist-conv28-noise-0.5",
        "mnist-conv28-adversarial",
        "mnist-lipschitz-10",
    )
    data: str = "mnist"
    images: int = 40
    steps: int = 50
    squares: int = 100
    r: tuple[float, ...] = (2.89, 2.89, 4.5, 2.89, 8.0)
    margins: int = 20


_BALLS = (Ball("l2", 1.0), Ball("l2", 2.0), Ball("linf", 0.1), Ball("linf", 0.2))


def searches_of(spec: Spec) -> dict[str, Any]:
    """Every search by name: about 200 gradients an input, or as much time."""
    climb, square = ProjectedAscent(steps=spec.steps, restarts=4), SquareSearch(steps=spec.squares)
    three = ProjectedAscent(steps=spec.steps, restarts=3)
    return {
        "4 random starts": climb,
        "20 random starts": ProjectedAscent(steps=spec.steps, restarts=20),
        "4 starts from the edge": DirectedAscent(climb),
        "squares alone": square,
        "3 starts from squares": ExploredAscent(three, square),
    }


@item(
    "own/explored-starts",
    "ours",
    sizes={
        "smoke": Spec(("digits-vae-noise",), "digits", 4, 2, 3, (1.0,), 2),
        "laptop": Spec(),
    },
)
def explored_starts(spec: Spec, run: Run) -> Result:
    """Damage by where climbs begin, and margins with and without starts from squares."""
    images = run.images(spec.data)
    x, _ = references(images, spec.images, run.seed)
    rows: list[Row] = []
    for name, r in zip(spec.models, spec.r, strict=True):
        vae = run.model(name)
        for ball in _BALLS:
            for label, search in searches_of(spec).items():
                make = functools.partial(_damage, vae, x, search, ball, run)
                key = f"{name}, {label}, {ball.norm} {ball.radius:g}"
                section = f"{name}: damage at {ball.norm} {ball.radius:g}"
                value = run.part(key, make, vae)
                rows.append(measured(label, "damage", value["damage"], section=section))
                rows.append(Row(label, "CPU ms an input", value["cost"], section=section))
        for starts in (0, 4):
            key = f"{name}, margins, {starts} from squares"
            label = f"{starts} starts from squares"
            value = run.part(key, functools.partial(_margin, vae, x, r, starts, spec, run), vae)
            section = f"{name}: margin, r = {r:g}"
            for side in ("in range", "unconstrained"):
                rows.append(measured(label, side, value[side], section=section))
            rows.append(Row(label, "CPU ms an input", value["cost"], section=section))
        run.progress(name)
    return run.result(
        "Where climbs begin",
        "2-norms of the change of the reconstruction; l2 sizes of the least changes that fail",
        rows,
        (
            f"{spec.images} test images, balanced over the classes; nothing defends the models. "
            f"Goal maximum-damage, {spec.steps} gradients a start; squares: {spec.squares} "
            f"candidates a start. Margins: {spec.margins} images, m = 0.5, centered, the default "
            "effort of `rv.estimate_margin` but for the starts. One thread.",
        ),
    )


def _damage(vae: VAE, x: Tensor, search: Any, ball: Ball, run: Run) -> dict[str, Any]:
    begin = time.process_time()
    attack = Attack(MaximumDamage(), search, ball)
    found = attack(Victim(vae), x, generator=run.noise(f"{search}, {ball}"))
    cost = 1000 * (time.process_time() - begin) / len(x)
    return {"damage": found.score.tolist(), "cost": cost}


def _margin(vae: VAE, x: Tensor, r: float, starts: int, spec: Spec, run: Run) -> dict[str, Any]:
    begin = time.process_time()
    x = x[: spec.margins]
    budget = Budget(explored=starts)
    found = rv.estimate_margin(
        Victim(vae), x, r, 0.5, "centered", box=None, budget=budget, generator=run.noise("margin")
    )
    assert found.unconstrained is not None
    cost = 1000 * (time.process_time() - begin) / len(x)
    return {
        "in range": found.value.tolist(),
        "unconstrained": found.unconstrained.value.tolist(),
        "cost": cost,
    }
