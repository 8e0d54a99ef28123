"""`fit` against a bare PyTorch loop of the same model: conv28 on MNIST, batch 128.

    OMP_NUM_THREADS=1 python benchmarks/bench_training.py [--steps 20] [--rounds 11] [--run FOLDER]

The bare side calls the networks directly: draw, binary cross-entropy with logits, closed-form KL,
Adam, nothing else. `fit` adds the objective's terms, the guard on every gradient, the log's sums
and its own start. Each side makes `steps` optimization steps from the same weights, and the two
take turns, one first in even rounds and the other in odd ones. Medians and the median of the ratios
are written to benchmarks/results/training.json. `kept` is the time that an epoch's checkpoint,
state and log take. Without MNIST the images are noise, which costs the same. `--run` adds what the
log of a finished run says, such as that of `robustvae train mnist-conv28-6`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

import robustvae as rv
from robustvae.data import Images
from robustvae.errors import DataError

RESULTS = Path(__file__).parent / "results" / "training.json"
BATCH = 128


def model() -> rv.VAE:
    return rv.models.create("vae", architecture="conv28", latent=64)


def bare(images: Images) -> None:
    vae = model()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    for rows in torch.randperm(len(images.x), generator=generator).split(BATCH):
        x = images.x[rows]
        features = vae.trunk(x)
        mean, log_var = vae.mean_head(features), vae.log_var_head(features)
        z = mean + torch.exp(0.5 * log_var) * torch.randn(mean.shape, generator=generator)
        distortion = functional.binary_cross_entropy_with_logits(vae.decoder(z), x, reduction="sum")
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()
        optimizer.zero_grad()
        ((distortion + kl) / len(x)).backward()
        optimizer.step()


def fitted(images: Images, out: str | None = None) -> None:
    rv.fit(
        model(),
        rv.objectives.ELBO(),
        images,
        epochs=1,
        generator=rv.generator(0),
        batch_size=BATCH,
        validation=None,
        out=out,
        progress=False,
    )


def timed(what: Callable[[], None]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()

    wanted = given.steps * BATCH
    try:
        images = rv.data.load("mnist")[:wanted]
    except DataError:
        noise = torch.rand(wanted, 1, 28, 28, generator=rv.generator(0))
        images = Images(noise, torch.zeros(wanted, dtype=torch.int64), name="noise")

    sides = {"bare": lambda: bare(images), "fit": lambda: fitted(images)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for name in sides:
        sides[name]()
    for turn in range(given.rounds):
        for name in sorted(sides, reverse=bool(turn % 2)):
            times[name].append(timed(sides[name]))
    ratios = [one / other for one, other in zip(times["fit"], times["bare"], strict=True)]

    one_batch, kept = images[:BATCH], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(given.rounds):
            began = time.perf_counter()
            fitted(one_batch, f"{folder}/{turn}")
            kept.append(time.perf_counter() - began - timed(lambda: fitted(one_batch)))

    result = {
        "what": "conv28, batch 128: fit against a bare loop of the same model",
        "images": images.name,
        "steps": given.steps,
        "rounds": given.rounds,
        "threads": torch.get_num_threads(),
        "bare_ms_per_step": round(statistics.median(times["bare"]) / given.steps * 1e3, 2),
        "fit_ms_per_step": round(statistics.median(times["fit"]) / given.steps * 1e3, 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_spread": [round(value, 3) for value in (min(ratios), max(ratios))],
        "wanted_ratio": 1.3,
        "kept_ms_per_two_saves": round(statistics.median(kept) * 1e3, 1),
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    if given.run is not None:
        lines = [json.loads(line) for line in (given.run / "log.jsonl").read_text().splitlines()]
        result["run"] = {
            "recipe": given.run.name,
            "loss_by_epoch": [round(line["loss"], 2) for line in lines],
            "wanted_loss_of_the_last": 103,
        }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
