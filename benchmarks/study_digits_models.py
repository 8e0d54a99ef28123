"""The two bundled models side by side: reconstruction, certificates and attacked margins on digits.

    python benchmarks/study_digits_models.py

r = 1, m = 0.5, centered, free and box perturbations, l2; the attack is `rv.estimate_margin` with
20 restarts of 100 steps.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import robustvae as rv
from robustvae.metrics import mean_stderr
from robustvae.robustness import Bisection, find_margins

RESULTS = Path(__file__).parent / "results" / "digits-models.json"
QUESTION = {"r": 1.0, "m": 0.5, "displacement": "centered"}


def measured(name: str, inputs: int, restarts: int, steps: int) -> dict[str, object]:
    """One model's row; every mean with its standard error."""
    vae, images = rv.load(name), rv.data.load("digits", split="test")
    g = rv.generator(0)
    with torch.no_grad():
        x_hat = vae.decode(vae.encode(images.x).mean).mean
        errors = (x_hat - images.x).flatten(1).square().sum(1)
        loss = rv.objectives.ELBO()(vae, images.x, generator=g)
    x, _ = images.sample(inputs, stratified=True, generator=g)
    lower = rv.certify(vae, x, **QUESTION, generator=g)
    if not bool((lower.radius > 0).any()):
        lower = rv.certify(vae, x, **QUESTION, generator=g, methods=["neyman_pearson"])
    search = rv.ProjectedAscent(steps=steps, restarts=restarts)
    upper = find_margins(
        rv.Victim(vae), x, **QUESTION, generator=g, bisection=Bisection(search=search)
    )
    free, box = upper.free.estimate.value, upper.box.estimate.value
    return {
        "squared_error": mean_stderr(errors),
        "negative_elbo": mean_stderr(loss),
        "certificate": lower.kind,
        "certified": mean_stderr(lower.radius),
        "share_certified": float((lower.radius > 0).double().mean()),
        "attacked_free": mean_stderr(free),
        "attacked_box": mean_stderr(box),
        "certified_over_attacked_free": mean_stderr(lower.radius / free),
        "certified_over_attacked_box": mean_stderr(lower.radius / box),
        "violations": int((lower.radius > free).sum() + (lower.radius > box).sum()),
    }


def main() -> None:
    """Measure both models and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    record: dict[str, object] = {
        "what": "bundled models, all 355 test digits for the errors, "
        f"{given.inputs} of them (seed 0, balanced) for the margins; r = 1, m = 0.5, centered, l2; "
        f"attack: {given.restarts} restarts x {given.steps} steps",
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
    }
    for name in ("digits-vae", "digits-lipschitz-vae"):
        record[name] = measured(name, given.inputs, given.restarts, given.steps)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
