"""The margin search beside version 0.1's: CPU seconds and the margins that each finds.

Version 0.1 searched a ball of each radius anew and bisected. Where `old` names a checkout of it
(`git worktree add OLD 121d41c`), it runs there in a process of its own on the same inputs, by the
settings of its plan "quick"; without it our side stands alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from robustvae.robustness import Budget

_OLD = """
import json, sys, time
from pathlib import Path
import numpy as np, torch
import robustvae as rv
from robustvae import zoo
from robustvae.perturb import ProjectedAscent
from robustvae.robustness import Bisection, find_margins
model, path, r, displacement, steps, restarts, seed = json.loads(sys.argv[1])
x = torch.from_numpy(np.load(path))
stored = Path("zoo") / model
victim = rv.Victim(zoo.load(stored if stored.is_dir() else model))
how = Bisection(search=ProjectedAscent(steps=steps, restarts=restarts))
start = time.process_time()
found = find_margins(
    victim, x, r, 0.5, displacement, generator=rv.generator(seed), bisection=how
)
seconds = time.process_time() - start
values = [one.estimate.value.tolist() for one in (found.free, found.boxed)]
print(json.dumps([seconds, *values]))
"""


@final
@dataclass(frozen=True)
class Spec:
    """What is timed.

    Attributes:
        models: Zoo models.
        data: Their data sets.
        inputs: Of each.
        r: Tolerances, in pixel units.
        displacement: Of the question.
        steps: Of each search of version 0.1; half as many of each half of a walk.
        restarts: Of version 0.1; a walk begins from one more.
        explored: Further starts of a walk, from squares; audits have two.
        old: Folder of a checkout of version 0.1, or nothing.
    """

    models: tuple[str, ...] = ("digits-vae", "mnist-lipschitz-10", "mnist-conv28")
    data: tuple[str, ...] = ("digits", "mnist", "mnist")
    inputs: tuple[int, ...] = (40, 20, 8)
    r: tuple[float, ...] = (1.0, 8.0, 2.8)
    displacement: str = "centered"
    steps: int = 30
    restarts: int = 3
    explored: int = 2
    old: str = ""


def _old(spec: Spec, model: str, x: torch.Tensor, r: float, seed: int) -> list[Any]:
    """CPU seconds of version 0.1, its margins unconstrained and in range."""
    folder = Path(spec.old)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "x.npy"
        np.save(path, x.numpy())
        displacement = spec.displacement.replace("centered", "centred")  # as 0.1 spelled it
        arguments = [model, str(path), r, displacement, spec.steps, spec.restarts, seed]
        done = subprocess.run(
            [sys.executable, "-c", _OLD, json.dumps(arguments)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str((folder / "src").resolve())},
            capture_output=True,
            text=True,
            check=True,
        )
    result: list[Any] = json.loads(done.stdout.splitlines()[-1].replace("Infinity", "1e999"))
    return result


def _new(spec: Spec, vae: rv.VAE, x: torch.Tensor, r: float, seed: int) -> list[Any]:
    budget = Budget(
        starts=spec.restarts + 1, steps=spec.steps // 2, draws=1000, explored=spec.explored
    )
    start = time.process_time()
    found = rv.estimate_margin(
        rv.Victim(vae),
        x,
        r,
        0.5,
        spec.displacement,
        box=None,
        budget=budget,
        generator=rv.generator(seed),
    )
    seconds = time.process_time() - start
    assert found.unconstrained is not None
    return [seconds, found.unconstrained.value.tolist(), found.value.tolist()]


@item(
    "bench/margins",
    sizes={
        "smoke": Spec(("digits-vae",), ("digits",), (2,), (1.0,), steps=4, restarts=1),
        "laptop": Spec(),
    },
)
def margins(spec: Spec, run: Run) -> Result:
    """CPU seconds of a margin search and its margins, beside version 0.1."""
    rows: list[Row] = []
    raw: dict[str, Any] = {}
    for name, data, count, r in run.each(
        zip(spec.models, spec.data, spec.inputs, spec.r, strict=True)
    ):
        vae, images = run.model(name), run.images(data)
        x, _ = images.sample(count, stratified=True, generator=rv.generator(run.seed))
        ours = run.part(f"{name}, walk", lambda: _new(spec, vae, x, r, run.seed), vae)  # noqa: B023
        setting = f"{name}, {count} inputs, r = {r:g}"
        sides = {"minimum-norm walk": ours}
        if spec.old:
            sides["version 0.1"] = run.part(
                f"{name}, version 0.1",
                lambda: _old(spec, name, x, r, run.seed),  # noqa: B023
                vae,
            )
        for side, (seconds, free, box) in sides.items():
            rows += [
                Row(side, "CPU seconds", seconds, section=setting),
                Row(side, "mean, unconstrained", float(np.mean(free)), n=count, section=setting),
                Row(side, "mean, in range", float(np.mean(box)), n=count, section=setting),
            ]
        raw[name] = sides
        if spec.old:
            old = sides["version 0.1"]
            ratios = [np.array(ours[k]) / np.array(old[k]) for k in (1, 2)]
            rows += [
                Row("0.1 / walk", "CPU seconds", old[0] / ours[0], section=setting),
                Row(
                    "walk / 0.1",
                    "mean, unconstrained",
                    float(np.mean(ours[1]) / np.mean(old[1])),
                    section=setting,
                ),
                Row(
                    "walk / 0.1",
                    "mean, in range",
                    float(np.mean(ours[2]) / np.mean(old[2])),
                    section=setting,
                ),
                Row("worst input", "mean, unconstrained", float(ratios[0].max()), section=setting),
                Row("worst input", "mean, in range", float(ratios[1].max()), section=setting),
            ]
    return run.result(
        "The margin search beside version 0.1",
        "CPU seconds; margins in pixel units",
        rows,
        (
            f"l2, m = 0.5, {spec.displacement}; version 0.1 by its plan quick: {spec.steps} steps "
            f"x {spec.restarts} restarts at each radius; the walk from {spec.restarts + 1} starts "
            f"and {spec.explored} that squares found, two halves of {spec.steps // 2} gradients. "
            "One thread.",
        ),
        raw,
    )
