"""[Willetts21]'s sweep of penalties in one batch against scipy's L-BFGS-B, problem by problem.

scipy is timed on every `every`-th problem, spread over all pairs and penalties and scaled, with its
own tolerances; on a fifth of them also on the objective divided by what the sweep holds its gains
against, with `ftol` at its tolerance, which stops both alike. The sweep is timed in every round, in
the first also from cold starts, and the problems are dealt out to the rounds, so that both sides
meet the machine's better and worse minutes. Both minimize the same objective from the same start
with the same bounds, one thread. Times are CPU seconds of the process.
"""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from scipy.optimize import minimize
from torch import Tensor

import robustvae as rv
from experiments.bench.timing import seconds
from experiments.harness import Result, Row, Run, item
from robustvae.attacks import LatentTarget, PenaltySweep, penalties
from robustvae.attacks.sweep import GAIN, gain_scale
from robustvae.models.base import frozen
from robustvae.models.layout import channels_last
from robustvae.objectives import ELBO
from robustvae.perturb import Score
from robustvae.perturb.ascent import evaluate

SMALL = "small-mlp"


@final
@dataclass(frozen=True)
class Spec:
    """What is timed.

    Attributes:
        model: The victim; "small-mlp" is a 784-400-20 VAE trained here for one epoch.
        data: Its data set.
        pairs: Of an input and a target.
        steps: Most evaluations of a problem.
        rounds: Of both sides in turn.
        every: One of so many problems is given to scipy.
    """

    model: str = "digits-vae"
    data: str = "digits"
    pairs: int = 10
    steps: int = 200
    rounds: int = 3
    every: int = 1


@item(
    "bench/sweep",
    "[Willetts21] Eq. 9-12",
    sizes={"smoke": Spec(pairs=2, steps=10, rounds=1, every=20), "laptop": Spec()},
)
def sweep(spec: Spec, run: Run) -> Result:
    """The sweep of penalties in one batch by scipy's L-BFGS-B, one problem at a time."""
    if spec.model == SMALL:
        images = run.images(spec.data, "train")
        model = {"name": "vae", "architecture": "mlp", "latent": 20, "hidden": [400]}
        vae = run.train(f"sweep/{SMALL}", model, ELBO(), images, epochs=1, batch_size=200, lr=1e-3)
    else:
        vae = run.model(spec.model)
    x, _ = run.images(spec.data).sample(2 * spec.pairs, generator=rv.generator(run.seed))
    x, target = x[: spec.pairs], x[spec.pairs :]
    victim, goal = rv.Victim(vae), LatentTarget(target)
    with frozen(vae):
        score = goal.bind(victim, x, generator=rv.generator(0))
        alone = _gradient_us(score, x, 1)
        with channels_last(vae):
            together = _gradient_us(score, x, 125)
    weights, rest = penalties(), -score(x, torch.arange(len(x))).detach()
    reach = torch.maximum(x, 1 - x).flatten(1).norm(dim=1)
    scales = gain_scale(torch.tensor(weights) * reach.unsqueeze(1), rest.unsqueeze(1))

    def oracle(i: int, j: int, unit: float, **options: float) -> tuple[float, int, float]:
        """Value, evaluations and seconds of scipy on one problem."""

        def objective(flat: Any) -> tuple[float, Any]:
            y = torch.as_tensor(flat, dtype=x.dtype).view(1, *x.shape[1:]).requires_grad_()
            size = torch.linalg.vector_norm(y - x[i])
            value = weights[j] * size - score(y, torch.tensor([i]))[0]
            (slope,) = torch.autograd.grad(value, y)
            return float(value.detach()) / unit, slope.flatten().double().numpy() / unit

        start = x[i].flatten().double().numpy()
        box = [(0.0, 1.0)] * len(start)
        how: Any = {"maxfun": spec.steps, **options}
        began = time.process_time()
        end = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=box, options=how)
        return end.fun * unit, end.nfev, time.process_time() - began

    count, pairs = len(weights), len(x)
    warm, cold = (PenaltySweep(goal, steps=spec.steps, warm=way) for way in (True, False))
    default, alike = torch.full((2, 3, pairs, count), torch.nan, dtype=torch.float64)
    everywhere = itertools.product(range(pairs), range(count))
    asked = [(i, j) for i, j in everywhere if (i + j) % spec.every == 0]
    found = warm(victim, x, generator=rv.generator(0))
    from_x = cold(victim, x, generator=rv.generator(0))
    rounds: list[float] = []
    for turn in run.each(range(spec.rounds)):
        again = partial(warm, victim, x, generator=rv.generator(0))
        rounds.append(seconds(again, time.process_time))
        with frozen(vae):
            for i, j in asked[turn :: spec.rounds]:
                unit = float(scales[i, j])
                default[:, i, j] = torch.tensor(oracle(i, j, 1.0))
                if (2 * i + j) % 5 == 0:
                    alike[:, i, j] = torch.tensor(oracle(i, j, unit, ftol=GAIN, gtol=1e-5 / unit))
        run.progress(f"round {turn + 1} of {spec.rounds}: {rounds[-1]:.2f} s")
    start_value = rest.unsqueeze(1).double()

    def compared(ends: Tensor) -> dict[str, float]:
        """What the sweep gained in time and value, over the problems that scipy was timed on."""
        ran = ends[2].isfinite()
        value, calls, spent = ends[:, ran]
        gaps = ((found.objective - ends[0]) / start_value)[ran]
        total = float(spent.mean()) * pairs * count
        return {
            "problems": len(value),
            "s": total,
            "times faster": total / statistics.median(rounds),
            "least": total / max(rounds),
            "most": total / min(rounds),
            "evaluations": float(calls.mean()),
            "ours above, of the value without attack": float(gaps.mean()),
            "most above": float(gaps.max()),
            "share at most 1e-4 above": float((gaps <= 1e-4).double().mean()),
        }

    away = default[0].abs() > 1e-2 * start_value  # False where scipy did not run
    gaps = ((found.objective - default[0]) / default[0].abs())[away]
    rows = [
        Row("together", "s", statistics.median(rounds), n=len(rounds)),
        Row("together", "evaluations", float(found.evaluations.float().mean())),
        Row("cold starts", "evaluations", float(from_x.evaluations.float().mean())),
        Row("one by one", "µs a gradient", alone),
        Row("125 together", "µs a gradient", together),
        Row("where scipy ends high", "problems", len(gaps)),
        Row("where scipy ends high", "share at most 1e-4 above", _share(gaps)),
    ]
    for name, ends in (("scipy", default), ("scipy, stopped alike", alike)):
        if bool(ends[2].isfinite().any()):
            rows += [Row(name, setting, value) for setting, value in compared(ends).items()]
    return run.result(
        f"The sweep of penalties: {spec.model}",
        "CPU seconds, ratios",
        rows,
        (
            f"{pairs} pairs x {count} penalties, latent KL, float32, one thread, at most "
            f"{spec.steps} evaluations a problem on both sides.",
        ),
    )


def _share(gaps: Tensor) -> float:
    return float((gaps <= 1e-4).double().mean()) if len(gaps) else 1.0


def _gradient_us(score: Score, x: Tensor, count: int, least: float = 0.1) -> float:
    """Microseconds of one gradient in a batch of `count`, the median of repeats."""
    rows = torch.arange(count) % len(x)
    y, times = x[rows], list[float]()
    while len(times) < 5 or sum(times) < least:
        times.append(seconds(lambda: evaluate(score, y, rows), time.process_time))
    return statistics.median(times) / count * 1e6
