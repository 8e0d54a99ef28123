"""The 10 pairs x 51 penalties sweep in one batch against scipy's L-BFGS-B, one problem at a time.

    python benchmarks/bench_sweep.py [--model digits-vae|FOLDER] [--data digits|mnist] [--sample 40]

scipy is timed on a sample of the 510 problems, spread over pairs and penalties, and scaled. Both
sides minimise the same objective from the same start with the same bounds, one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize

import robustvae as rv
from robustvae.attacks import LatentTarget, PenaltySweep
from robustvae.models.base import frozen

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="digits-vae")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--sample", type=int, default=40)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    vae = rv.load(given.model)
    x, _ = rv.data.load(given.data, split="test").sample(20, generator=rv.generator(0))
    x, target = x[:10], x[10:]
    victim, goal = rv.Victim(vae), LatentTarget(target)
    sweep = PenaltySweep(goal, steps=given.steps)
    batched = []
    for _ in range(3):
        began = time.perf_counter()
        found = sweep(victim, x, generator=rv.generator(0))
        batched.append(time.perf_counter() - began)

    gaps, spent, calls = [], [], []
    every = 510 // given.sample
    with frozen(vae):
        score = goal.bind(victim, x, generator=rv.generator(0))
        for k in range(0, 510, every):
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
            began = time.perf_counter()
            oracle = minimize(
                objective,
                start,
                jac=True,
                method="L-BFGS-B",
                bounds=[(0.0, 1.0)] * len(start),
                options={"maxfun": given.steps},
            )
            spent.append(time.perf_counter() - began)
            calls.append(oracle.nfev)
            rest = abs(objective(start)[0])
            gaps.append((float(found.objective[i, j]) - oracle.fun) / max(rest, 1e-9))
    record = {
        "what": f"10 pairs x 51 penalties, latent KL, {given.model} on {given.data}, float32, "
        "one thread, at most "
        f"{given.steps} evaluations a problem on both sides",
        "batched_s": statistics.median(batched),
        "scipy_s": statistics.fmean(spent) * 510,
        "scipy_problems_timed": len(spent),
        "ratio": statistics.fmean(spent) * 510 / statistics.median(batched),
        "evaluations_batched_mean": float(found.evaluations.float().mean()),
        "evaluations_scipy_mean": statistics.fmean(calls),
        "gap_over_value_at_rest": {
            "mean": statistics.fmean(gaps),
            "worst": max(gaps),
            "best": min(gaps),
        },
        "share_within_1e-4_or_better": statistics.fmean(g <= 1e-4 for g in gaps),
        "auddc_mean": float(found.auddc.mean()),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"sweep-{given.data}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
