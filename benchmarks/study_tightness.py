"""How tight the certificates of a Lipschitz-VAE are: against [Barrett22]'s bounds, and attacks.

    python benchmarks/study_tightness.py runs/mnist-lipschitz-10 [--inputs 40] [--minutes 8]

r = 8, m = 1/2, l2. Every input's certified margin, centered and paired, beside [Barrett22] Theorem
3 (a = b = K, paired in their code's form; centered the same two tail bounds) and beside the margin
that attacks reach, free and box, centered: the standard suite in one free and one box ball,
and projected ascent of 20 restarts x 200 steps in a bisection over the radius. Finished inputs are
kept in the result, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import robustvae as rv
from robustvae import bounds
from robustvae.attacks import AttackSuite
from robustvae.certificates import global_margin, lipschitz_constants
from robustvae.evaluation import negative_log_likelihood
from robustvae.metrics import mean_stderr
from robustvae.models import LipschitzVAE
from robustvae.robustness import Bisection, find_margin
from robustvae.seeding import shard_generator

RESULTS = Path(__file__).parent / "results"
R, M, SHARD = 8.0, 0.5, 5
QUESTION: dict[str, Any] = {"r": R, "m": M}


def attacked(vae: rv.VAE, x: Tensor, restarts: int, steps: int, seed: int) -> dict[str, Tensor]:
    """Upper bounds on the centered margin, free and box, by everything at hand."""
    victim = rv.Victim(vae)
    found: dict[str, Tensor] = {}
    known: list[Tensor] = []
    for name, box in (("box", True), ("free", False)):
        g = shard_generator(seed, 0, f"attacks {name}")
        ask = {"displacement": "centered", "box": box, "generator": g, "confidence": 0.975}
        quick = Bisection(search=rv.ProjectedAscent(steps=30, restarts=3), rounds=3, largest=6.0)
        first = find_margin(victim, x, **QUESTION, **ask, bisection=quick)
        ends = torch.as_tensor(first.estimate.value)
        radius = 1.05 * float(ends[ends.isfinite()].max())
        ball = rv.Ball("l2", radius) if box else rv.Ball("l2", radius, None, None)
        suite = AttackSuite(balls=(ball,))(victim, x, generator=g)
        made = [first.x_adv, *(row.x_adv for row in suite.rows if row.attack)]
        known += [y.clamp(0, 1) for y in made] if box else made
        search = rv.ProjectedAscent(steps=steps, restarts=restarts, chunk=1000, target=R + 0.5)
        full = Bisection(search=search, rungs=1, rounds=4)
        best = find_margin(
            victim, x, **QUESTION, **ask, bisection=full, candidates=torch.stack(known)
        )
        known.append(best.x_adv)
        found[name] = torch.as_tensor(best.estimate.value)
    found["free"] = torch.minimum(found["free"], found["box"])
    return found


def rows(vae: rv.VAE, x: Tensor, labels: Tensor, given: argparse.Namespace, shard: int) -> list:
    """A row for each input of one shard."""
    g = shard_generator(given.seed, shard, "certify")
    ask = {**QUESTION, "generator": g}
    certified = {
        "centered": rv.certify(vae, x, displacement="centered", **ask).radius,
        "centered, envelope": rv.certify(
            vae, x, displacement="centered", methods=["envelope"], **ask
        ).radius,
        "paired": rv.certify(vae, x, displacement="paired", **ask).radius,
    }
    ends = attacked(vae, x, given.restarts, given.steps, given.seed + shard)
    columns = {**certified, "attacked, free": ends["free"], "attacked, box": ends["box"]}
    listed = {name: values.tolist() for name, values in columns.items()}
    return [
        {"input": shard * SHARD + i, "label": int(label)} | {k: v[i] for k, v in listed.items()}
        for i, label in enumerate(labels)
    ]


def likelihood(vae: rv.VAE, images: rv.data.Images, seed: int) -> dict[str, Any]:
    """Negative ELBO and distortion of all test images, one draw each, in nats."""
    objective, g = rv.objectives.ELBO(), shard_generator(seed, 0, "elbo")
    with torch.no_grad():
        parts = [objective(vae, part, generator=g) for part in images.x.split(500)]
        errors = [
            (vae.decode(vae.encode(part).mean).mean - part).flatten(1).square().sum(1)
            for part in images.x.split(500)
        ]
    few, _ = images.sample(200, stratified=True, generator=g)
    nll = torch.cat([negative_log_likelihood(vae, x, generator=g) for x in few.split(20)])
    return {
        "negative_log_likelihood": mean_stderr(nll),
        "of those": "200 images, importance sampling with 1000 draws",
        "negative_elbo": mean_stderr(torch.cat(parts)),
        "squared_error": mean_stderr(torch.cat(errors)),
        "images": len(images),
    }


def summary(vae: LipschitzVAE, found: list[dict[str, Any]]) -> dict[str, Any]:
    """What is said of the model: means, and ratios like with like."""
    k = vae.config["decoder_lipschitz"]
    column = {name: [row[name] for row in found] for name in found[0]}
    assert vae.stddev is not None
    told: dict[str, Any] = {name: mean_stderr(v) for name, v in list(column.items())[2:]}
    for displacement in ("centered", "paired"):
        common = {"r": R, "m": M, "b": k, "latent": vae.latent, "displacement": displacement}
        theirs = bounds.barrett_global_margin(vae.stddev, a=k, **common)
        told[f"barrett, {displacement}"] = theirs
        told[f"barrett with the sigmoid's slope, {displacement}"] = bounds.barrett_global_margin(
            vae.stddev, a=k / 4, **common
        )
        told[f"global, {displacement}"] = global_margin(vae, r=R, m=M, displacement=displacement)
        told[f"times barrett, {displacement}"] = mean_stderr(
            [c / theirs for c in column[displacement]]
        )
        told[f"below barrett, {displacement}"] = sum(c < theirs for c in column[displacement])
    for kind in ("free", "box"):
        pairs = list(zip(column["centered"], column[f"attacked, {kind}"], strict=True))
        told[f"certified / attacked, {kind}"] = mean_stderr([low / high for low, high in pairs])
        told[f"violations, {kind}"] = sum(low > high for low, high in pairs)
    return told


def main() -> None:
    """Measure until done or out of time, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--inputs", type=int, default=40)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = given.out or RESULTS / f"tightness-{given.model.name}.json"
    vae, images = rv.load(given.model), rv.data.load(given.data, split="test")
    assert isinstance(vae, LipschitzVAE)
    x, labels = images.sample(
        given.inputs, stratified=True, generator=shard_generator(given.seed, 0, "inputs")
    )
    settings = {
        "model": given.model.name,
        "weights": rv.models.checkpoint.weights_sha256(vae),
        "data": given.data,
        "seed": given.seed,
        "attack": f"standard suite, and {given.restarts} restarts x {given.steps} steps, 5 radii",
    }
    kept = json.loads(out.read_text()) if out.is_file() else {}
    same = all(kept.get(name) == value for name, value in settings.items())
    found = kept["rows"] if same else []
    record: dict[str, Any] = {**settings, "date": time.strftime("%Y-%m-%d"), **QUESTION}
    record["constants"] = vars(lipschitz_constants(vae)) | {"config": vae.config}
    record["likelihood"] = kept["likelihood"] if same else likelihood(vae, images, given.seed)
    began = time.monotonic()
    while len(found) < given.inputs and time.monotonic() - began < 60 * given.minutes:
        part = slice(len(found), len(found) + SHARD)
        found += rows(vae, x[part], labels[part], given, len(found) // SHARD)
        record |= {"summary": summary(vae, found), "rows": found}
        out.write_text(json.dumps(record, indent=1) + "\n")
        print(len(found), round(time.monotonic() - began), "s", flush=True)
    print(json.dumps({**record, "rows": len(found)}, indent=1))


if __name__ == "__main__":
    main()
