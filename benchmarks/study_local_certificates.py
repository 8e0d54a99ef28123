"""Certificates of VAEs whose weights nothing constrains, beside attacks: Neyman-Pearson by CROWN.

    python benchmarks/study_local_certificates.py --model runs/mnist-conv28-6

m = 0.5, l2; r is twice the median, over the inputs, of the m-quantile of ||Delta|| at rest. The
attack is `find_margins`; a weaker one gives a larger upper bound, so a smaller ratio.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import robustvae as rv
from robustvae import zoo
from robustvae.robustness import Bisection, find_margins, rest_quantile

RESULTS = Path(__file__).parent / "results" / "local-certificates"
M = 0.5


def measured(given: argparse.Namespace, displacement: str, x: torch.Tensor) -> dict[str, object]:
    """One displacement's row."""
    vae = rv.load(given.model)
    victim, g = rv.Victim(vae), rv.generator(0)
    rest = rest_quantile(victim, x, M, displacement, generator=g, draws=1000)
    r = 2 * float(rest.value.median())
    row: dict[str, object] = {"r": r}
    for norm in given.norms:
        start = time.process_time()
        ask = {"norm": norm, "draws": given.draws, **ROUTE}
        lower = rv.certify(vae, x, r, M, displacement, generator=rv.generator(1), **ask)
        row |= {
            f"{norm}_seconds_an_input": (time.process_time() - start) / len(x),
            f"{norm}_certified": lower.radius.tolist(),
            f"{norm}_median_certified": float(lower.radius.median()),
            f"{norm}_share_certified": float((lower.radius > 0).double().mean()),
            f"{norm}_routes": sorted(set(lower.method)),
        }
        within = rv.certify(vae, x, r, M, displacement, generator=rv.generator(1), box=True, **ask)
        row |= {
            f"{norm}_certified_box": within.radius.tolist(),
            f"{norm}_median_certified_box": float(within.radius.median()),
            f"{norm}_boxed_over_free": float((within.radius / lower.radius).median()),
        }
        if norm != "l2" or displacement not in given.attacked:
            continue
        search = rv.ProjectedAscent(steps=given.steps, restarts=given.restarts)
        upper = find_margins(
            victim, x, r, M, displacement, generator=g, bisection=Bisection(search=search)
        )
        for kind, found, proved in (("free", upper.free, lower), ("box", upper.box, within)):
            attacked = found.estimate.value
            ratio = proved.radius / attacked
            row |= {
                f"attacked_{kind}": attacked.tolist(),
                f"median_attacked_{kind}": float(attacked.median()),
                f"median_certified_over_attacked_{kind}": float(ratio.median()),
                f"least_certified_over_attacked_{kind}": float(ratio.min()),
                f"violations_{kind}": int((proved.radius > attacked).sum()),
            }
    return row


ROUTE = {"methods": ["neyman_pearson"], "confidence": 0.999}


def main() -> None:
    """Measure one model and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", help="default: what the model's card says")
    parser.add_argument("--inputs", type=int, default=20)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--displacements", nargs="+", default=["centered", "full", "paired"])
    parser.add_argument("--norms", nargs="+", default=["l2", "linf"])
    parser.add_argument("--attacked", nargs="*", default=["centered"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = given.data or zoo.trained_on(given.model)
    images = rv.data.load(data, split="test")
    x, _ = images.sample(given.inputs, stratified=True, generator=rv.generator(0))
    record: dict[str, object] = {
        "what": f"{given.model}, {len(x)} test images (seed 0, balanced), m = {M}, "
        f"{given.draws} draws, confidence 0.999; attack: {given.restarts} restarts x "
        f"{given.steps} steps",
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
    }
    name = Path(given.model).name
    out = given.out or RESULTS.with_name(f"{RESULTS.name}-{name}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    for displacement in given.displacements:
        record[displacement] = measured(given, displacement, x)
        out.write_text(json.dumps(record, indent=2) + "\n")
        shown = {k: v for k, v in record[displacement].items() if not isinstance(v, list)}  # type: ignore[attr-defined]
        print(displacement, json.dumps(shown, indent=2), flush=True)


if __name__ == "__main__":
    main()
