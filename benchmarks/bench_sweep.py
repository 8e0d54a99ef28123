"""The 10 pairs x 51 penalties sweep in one batch against scipy's L-BFGS-B, one problem at a time.

    python benchmarks/bench_sweep.py [--model digits-vae|mnist-mlp|FOLDER] [--data digits|mnist]

scipy is timed on a sample of the 510 problems, spread over pairs and penalties, and scaled: once
with its own tolerances, once on the objective divided by what the sweep holds its gains against,
with `ftol` at its tolerance, which stops both alike. The sweep is also timed from cold starts.
Both sides minimise the same objective from the same start with the same bounds, one thread. Times
are CPU seconds of the process, so that other work on the machine counts for little. "mnist-mlp" is
a 784-400-20 VAE trained here for one epoch.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize

import robustvae as rv
from robustvae.attacks import LatentTarget, PenaltySweep
from robustvae.attacks.sweep import GAIN, gain_scale
from robustvae.models.base import frozen
from robustvae.objectives import ELBO

RESULTS = Path(__file__).parent / "results"


def small_vae(data: str) -> rv.VAE:
    """An MLP VAE after one epoch."""
    with rv.seeding.seeded(0):
        vae = rv.models.create("vae", architecture="mlp", latent=20, hidden=(400,))
        images = rv.data.load(data, split="train").x
        adam = torch.optim.Adam(vae.parameters(), lr=1e-3)
        order = torch.randperm(len(images), generator=rv.generator(1))
        noise = rv.generator(2)
        for batch in order.split(200):
            adam.zero_grad()
            ELBO()(vae, images[batch], generator=noise).mean().backward()
            adam.step()
    return vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="digits-vae")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--sample", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    vae = small_vae(given.data) if given.model == "mnist-mlp" else rv.load(given.model)
    x, _ = rv.data.load(given.data, split="test").sample(20, generator=rv.generator(0))
    x, target = x[:10], x[10:]
    victim, goal = rv.Victim(vae), LatentTarget(target)
    sweep = PenaltySweep(goal, steps=given.steps)
    cold = PenaltySweep(goal, steps=given.steps, warm=False)
    batched: dict[bool, list[float]] = {True: [], False: []}
    results = {}
    for _ in range(given.rounds):
        for way in (sweep, cold):
            began = time.process_time()
            results[way.warm] = way(victim, x, generator=rv.generator(0))
            batched[way.warm].append(time.process_time() - began)
    found = results[True]

    spent: dict[str, list[float]] = {"own tolerances": [], "the sweep's gain": []}
    calls: dict[str, list[int]] = {name: [] for name in spent}
    gaps: dict[str, list[float]] = {name: [] for name in spent}
    own_gaps: list[float] = []
    ends: list[float] = []
    with frozen(vae):
        score = goal.bind(victim, x, generator=rv.generator(0))
        for k in range(0, 510, 510 // given.sample):
            i, j = divmod(k, 51)
            weight = float(found.penalties[j])

            def objective(
                flat: np.ndarray, i: int = i, weight: float = weight
            ) -> tuple[float, np.ndarray]:
                y = torch.as_tensor(flat, dtype=x.dtype).view(1, *x.shape[1:]).requires_grad_()
                size = torch.linalg.vector_norm(y - x[i])
                value = weight * size - score(y, torch.tensor([i]))[0]
                (slope,) = torch.autograd.grad(value, y)
                return float(value.detach()), slope.flatten().double().numpy()

            start = x[i].flatten().double().numpy()
            rest = abs(objective(start)[0])
            reach = torch.maximum(x[i], 1 - x[i]).norm()
            scale = float(gain_scale(weight * reach, torch.tensor(rest)))
            for name, unit, options in (
                ("own tolerances", 1.0, {}),
                ("the sweep's gain", scale, {"ftol": GAIN, "gtol": 1e-5 / scale}),
            ):

                def measured(flat: np.ndarray, unit: float = unit) -> tuple[float, np.ndarray]:
                    value, slope = objective(flat)
                    return value / unit, slope / unit

                began = time.process_time()
                oracle = minimize(
                    measured,
                    start,
                    jac=True,
                    method="L-BFGS-B",
                    bounds=[(0.0, 1.0)] * len(start),
                    options={"maxfun": given.steps, **options},
                )
                spent[name].append(time.process_time() - began)
                calls[name].append(oracle.nfev)
                gap = float(found.objective[i, j]) - oracle.fun * unit
                gaps[name].append(gap / rest)
                if name == "own tolerances":
                    own_gaps.append(gap / max(abs(oracle.fun), 1e-9))
                    ends.append(abs(oracle.fun) / rest)
    ours, from_x = statistics.median(batched[True]), statistics.median(batched[False])
    away = [gap for gap, end in zip(own_gaps, ends, strict=True) if end > 1e-2]
    record = {
        "what": f"10 pairs x 51 penalties, latent KL, {given.model} on {given.data}, float32, "
        "one thread, at most "
        f"{given.steps} evaluations a problem on both sides; CPU seconds",
        "date": datetime.date.today().isoformat(),
        "batched_s": ours,
        "batched_rounds_s": batched[True],
        "evaluations_batched_mean": float(found.evaluations.float().mean()),
        "cold_starts": {
            "s": from_x,
            "evaluations_mean": float(results[False].evaluations.float().mean()),
            "warm_minus_cold_over_value_at_rest_mean": float(
                (
                    (found.objective - results[False].objective)
                    / results[False].objective.amax(1, keepdim=True)
                ).mean()
            ),
        },
        "scipy_problems_timed": len(own_gaps),
        "scipy": {
            name: {
                "s": statistics.fmean(spent[name]) * 510,
                "ratio": statistics.fmean(spent[name]) * 510 / ours,
                "evaluations_mean": statistics.fmean(calls[name]),
                "ours_above_it_over_value_at_rest": {
                    "mean": statistics.fmean(gaps[name]),
                    "worst": max(gaps[name]),
                    "best": min(gaps[name]),
                },
                "share_at_most_1e-4_above": statistics.fmean(g <= 1e-4 for g in gaps[name]),
            }
            for name in spent
        },
        "share_at_most_1e-4_above_relative_to_scipy_s_own_value": statistics.fmean(
            g <= 1e-4 for g in own_gaps
        ),
        "where_scipy_ends_above_1e-2_of_the_value_at_rest": {
            "problems": len(away),
            "share_at_most_1e-4_above_scipy_s_own_value": statistics.fmean(g <= 1e-4 for g in away),
            "worst": max(away),
        },
        "auddc_mean": float(found.auddc.mean()),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"sweep-{Path(given.model).name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
