"""[Camuto21] Fig. 6a-c: do first-order margins rank the margins that attacks find?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from scipy import stats

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from robustvae import bounds
from robustvae.jacobians import jacobian
from robustvae.robustness import Budget, clean_quantile

M = 0.5


@final
@dataclass(frozen=True)
class Spec:
    """What is measured.

    Attributes:
        model: The victim.
        data: Its data set.
        inputs: Test images, balanced over the classes.
        restarts: Of the attack at each radius.
        steps: Of the attack at each radius.
        draws: Of the probability without attack.
    """

    model: str = "digits-vae"
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
    vae, images = run.model(spec.model), run.images(spec.data)
    victim = rv.Victim(vae)
    x, _ = images.sample(spec.inputs, stratified=True, generator=rv.generator(run.seed))
    ask: dict[str, Any] = {"displacement": "centered", "generator": rv.generator(run.seed + 1)}
    r = 2 * float(torch.as_tensor(clean_quantile(victim, x, M, **ask).value).median())
    chance = rv.robustness_probability(
        victim, x, x, r, draws=spec.draws, confidence=0.999, **ask
    ).low
    with torch.no_grad():
        stddev = vae.encode(x).stddev
    slopes = jacobian(lambda y: vae.encode(y).mean, x)

    def attack() -> torch.Tensor:
        budget = Budget(starts=spec.restarts, steps=spec.steps)
        return rv.estimate_margin(victim, x, r, M, box=False, budget=budget, **ask).value

    estimated = torch.tensor(run.part("attacked", attack, vae), dtype=torch.float64)
    usable = estimated.isfinite() & (estimated > 0)
    columns = {
        "Theorem 1, Frobenius": bounds.camuto_margin(chance, M, slopes, stddev),
        "ours, spectral, in units of sigma": bounds.first_order_margin(chance, M, slopes, stddev),
    }
    theirs, ours = columns.values()
    rows = [measured("attacked", "mean", estimated[usable].tolist())]
    for name, values in columns.items():
        first, end = values[usable].numpy(), estimated[usable].numpy()
        rows += [
            measured(name, "mean", first.tolist()),
            measured(name, "over attacked", (first / end).tolist()),
            Row(name, "Pearson", float(stats.pearsonr(first, end).statistic), n=len(end)),
            Row(name, "Spearman", float(stats.spearmanr(first, end).statistic), n=len(end)),
        ]
    rows.append(Row("ours", "below Camuto's", int((ours < theirs).sum()), n=len(x)))
    return run.result(
        f"First-order margins: {spec.model}",
        "pixel units",
        rows,
        (
            f"{spec.inputs} test images (balanced), centered, free, m = 1/2, r = {r:.3g}: twice "
            "the median over the inputs of the m-quantile without attack.",
            f"Attack: {spec.restarts} restarts x {spec.steps} steps at each radius. Neither "
            "first-order margin is a guarantee.",
        ),
    )
