"""[Camuto21] Figure 6 in small: do first-order margins rank the margins that attacks find?

    python benchmarks/study_first_order.py [MODEL] [--data digits] [--inputs 100]

Camuto's bound with the Jacobian's Frobenius norm, ours with its spectral norm in units of sigma,
and `find_margin`'s upper bound (20 restarts x 100 steps, free, centered), with their correlations
over the inputs. r is twice the median over the inputs of the m-quantile at rest, m = 1/2.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from scipy import stats

import robustvae as rv
from robustvae import bounds
from robustvae.jacobians import jacobian
from robustvae.metrics import mean_stderr
from robustvae.robustness import Bisection, find_margin, rest_quantile

RESULTS = Path(__file__).parent / "results"
M, DRAWS = 0.5, 2000


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="digits-vae")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    name = Path(given.model).name
    vae, images = rv.load(given.model), rv.data.load(given.data, split="test")
    victim = rv.Victim(vae)
    x, _ = images.sample(given.inputs, stratified=True, generator=rv.generator(0))
    ask = {"displacement": "centered", "generator": rv.generator(1)}
    r = 2 * float(torch.as_tensor(rest_quantile(victim, x, M, **ask).value).median())
    chance = rv.robustness_probability(victim, x, x, r, draws=DRAWS, confidence=0.999, **ask).low
    with torch.no_grad():
        stddev = vae.encode(x).stddev
    slopes = jacobian(lambda y: vae.encode(y).mean, x)
    how = Bisection(search=rv.ProjectedAscent(steps=given.steps, restarts=given.restarts))
    found = find_margin(victim, x, r, M, box=False, bisection=how, **ask).estimate.value
    estimated = torch.as_tensor(found)
    usable = estimated.isfinite() & (estimated > 0)
    columns = {
        "Camuto, Frobenius": bounds.camuto_margin(chance, M, slopes, stddev),
        "ours, spectral": bounds.first_order_margin(chance, M, slopes, stddev),
    }
    ours, theirs = columns["ours, spectral"], columns["Camuto, Frobenius"]
    record = {
        "model": name,
        "date": time.strftime("%Y-%m-%d"),
        "r": r,
        "inputs": int(usable.sum()),
        "estimated": mean_stderr(estimated[usable]),
        "ours below Camuto's": int((ours < theirs).sum()),
    }
    for label, values in columns.items():
        first, end = values[usable].numpy(), estimated[usable].numpy()
        record[label] = {
            "mean": mean_stderr(first),
            "over estimated": mean_stderr(first / end),
            "Pearson": float(stats.pearsonr(first, end).statistic),
            "Spearman": float(stats.spearmanr(first, end).statistic),
        }
    out = given.out or RESULTS / f"first-order-{name}.json"
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
