"""[Camuto21] Fig. 6a-c: do first-order margins rank the margins that attacks find?"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, final

import torch
from scipy import stats
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from robustvae import bounds
from robustvae.jacobians import jacobian
from robustvae.models import VAE
from robustvae.robustness import Budget, clean_quantile

M = 0.5


@final
@dataclass(frozen=True)
class Spec:
    """What is measured.

    Attributes:
        models: The victims.
        data: Its data set.
        inputs: Test images, balanced over the classes.
        restarts: Of the attack at each radius.
        steps: Of the attack at each radius.
        draws: Of the probability without attack.
    """

    models: tuple[str, ...] = ("digits-vae",)
    data: str = "digits"
    inputs: int = 100
    restarts: int = 20
    steps: int = 100
    draws: int = 2000


@item(
    "camuto2021/fig-6",
    "[Camuto21] Theorem 1, Fig. 6a-c",
    sizes={"smoke": Spec(inputs=8, restarts=1, steps=5, draws=200), "laptop": Spec()},
)
def first_order(spec: Spec, run: Run) -> Result:
    """First-order margins, Camuto's and ours, beside attacked margins, and their correlations."""
    images = run.images(spec.data)
    x, _ = images.sample(spec.inputs, stratified=True, generator=rv.generator(run.seed))
    rows, points, radii = list[Row](), dict[str, list[list[float]]](), list[str]()
    for name in run.each(spec.models):
        vae = run.model(name)
        compute = functools.partial(_measure, vae, x.to(vae.dtype), spec, run.seed)
        found = run.part(name, compute, vae)
        points[name] = found["columns"]
        radii.append(f"{found['r']:.3g}")
        if len(spec.models) > 1:
            rows += _rows(points[name], f"{name}: ")
        run.progress(f"{name}: {rows[-1].cell}" if rows else name)
    pooled = [[v for columns in points.values() for v in columns[i]] for i in range(len(NAMES))]
    rows = _rows(pooled, "") + rows
    ours, theirs = pooled[2], pooled[1]
    below = sum(o < t for o, t in zip(ours, theirs, strict=True))
    rows.append(Row("ours", "below Camuto's", below, n=len(ours)))
    return run.result(
        f"First-order margins: {', '.join(spec.models)}",
        "pixel units",
        rows,
        (
            f"{spec.inputs} test images (balanced), centered, free, m = 1/2, r = "
            f"{', '.join(radii)}: twice the median over the inputs of the m-quantile without "
            "attack.",
            f"Attack: {spec.restarts} restarts x {spec.steps} steps at each radius. Neither "
            "first-order margin is a guarantee.",
        ),
        {"points": {name: dict(zip(NAMES, parts, strict=True)) for name, parts in points.items()}},
    )


NAMES = ("attacked", "Theorem 1, Frobenius", "ours, spectral, in units of sigma")


def _measure(vae: VAE, x: Tensor, spec: Spec, seed: int) -> dict[str, Any]:
    victim = rv.Victim(vae)
    ask: dict[str, Any] = {"displacement": "centered", "generator": rv.generator(seed + 1)}
    r = 2 * float(torch.as_tensor(clean_quantile(victim, x, M, **ask).value).median())
    chance = rv.robustness_probability(
        victim, x, x, r, draws=spec.draws, confidence=0.999, **ask
    ).low
    with torch.no_grad():
        stddev = vae.encode(x).stddev
    slopes = jacobian(lambda y: vae.encode(y).mean, x)
    budget = Budget(starts=spec.restarts, steps=spec.steps)
    end = rv.estimate_margin(victim, x, r, M, box=False, budget=budget, **ask).value
    usable = end.isfinite() & (end > 0)
    theirs = bounds.camuto_margin(chance, M, slopes, stddev)
    ours = bounds.first_order_margin(chance, M, slopes, stddev)
    return {"r": r, "columns": [part[usable].tolist() for part in (end, theirs, ours)]}


def _rows(columns: list[list[float]], of: str) -> list[Row]:
    end, *bounds_of = columns
    rows = [measured(f"{of}attacked", "mean", end)]
    for name, first in zip(NAMES[1:], bounds_of, strict=True):
        ratios = [low / high for low, high in zip(first, end, strict=True)]
        rows += [
            measured(f"{of}{name}", "mean", first),
            measured(f"{of}{name}", "over attacked", ratios),
            Row(f"{of}{name}", "Pearson", float(stats.pearsonr(first, end).statistic), n=len(end)),
            Row(
                f"{of}{name}", "Spearman", float(stats.spearmanr(first, end).statistic), n=len(end)
            ),
        ]
    return rows
