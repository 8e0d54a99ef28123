"""Pullback spectra against the D x D eigendecomposition and against the SVD of the Jacobian.

    python benchmarks/bench_geometry.py [--rounds 5]

Batch 100, float32 networks, one thread, sides interleaved, medians. The dense side is the bare
`torch.linalg.eigh` of a 784 x 784 matrix, in float32 and in float64 (ours decomposes in float64),
without making the Jacobian and without forming G = J^T J; it is timed on four images. The SVD side
is the reduced SVD of the stacked Jacobians, the full one (with its 784 x 784 factor) beside it:
with the Jacobian's own time (made in the same layout as ours) against all of ours, and alone
against our decomposition.
The networks have fresh weights: time does not depend on them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import robustvae as rv
from robustvae import geometry
from robustvae.geometry import leading_pullback, pullback
from robustvae.jacobians import jacobian
from robustvae.models.base import frozen
from robustvae.models.layout import channels_last

RESULTS = Path(__file__).parent / "results" / "geometry.json"
BATCH = 100
NETWORKS = {
    "mlp 256-256-512 tanh": {
        "architecture": "mlp",
        "hidden": [256, 256, 512],
        "activation": "tanh",
    },
    "mlp 512-512 relu": {"architecture": "mlp", "hidden": [512, 512]},
    "conv28": {"architecture": "conv28"},
}
IMAGES = {"CIFAR-10": (3, 32, 32), "64 x 64 color": (3, 64, 64)}


def seconds(f: Callable[[], object]) -> float:
    began = time.perf_counter()
    f()
    return time.perf_counter() - began


def stacked(vae: rv.VAE, x: torch.Tensor, batched: bool) -> torch.Tensor:
    def read(y: torch.Tensor) -> torch.Tensor:
        posterior = vae.encode(y)
        return torch.cat([posterior.mean, posterior.stddev], 1)

    with frozen(vae), contextlib.nullcontext() if batched else channels_last(vae):
        return jacobian(read, x, batched=batched)


def compare(settings: dict, latent: int, rounds: int, generator: torch.Generator) -> dict:
    vae = rv.models.create("vae", latent=latent, image_shape=(1, 28, 28), **settings)
    x = torch.rand(BATCH, 1, 28, 28, generator=generator)
    batched = settings["architecture"] == "mlp"
    jacobians = stacked(vae, x, batched)
    metrics = [j.mT @ j for j in jacobians[:4]]
    exact = [metric.double() for metric in metrics]
    sides = {
        "ours": lambda: pullback(vae, x),
        "ours, top 5 directions": lambda: pullback(vae, x, count=5),
        "jacobian alone": lambda: stacked(vae, x, batched),
        "decomposition alone": lambda: geometry._decompose(jacobians, jacobians.shape[1]),
        "svd alone": lambda: torch.linalg.svd(jacobians, full_matrices=False),
        "full svd, 4 images": lambda: torch.linalg.svd(jacobians[:4], full_matrices=True),
        "eigh 784 float32, 4 images": lambda: [torch.linalg.eigh(g) for g in metrics],
        "eigh 784 float64, 4 images": lambda: [torch.linalg.eigh(g) for g in exact],
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(seconds(side))
    per_image = {
        name: statistics.median(values) / (4 if name.endswith("4 images") else BATCH)
        for name, values in times.items()
    }
    ours = per_image["ours"]
    return {
        "seconds_per_image": per_image,
        "eigh_float32_over_ours": per_image["eigh 784 float32, 4 images"] / ours,
        "eigh_float64_over_ours": per_image["eigh 784 float64, 4 images"] / ours,
        "jacobian_and_svd_over_ours": (per_image["jacobian alone"] + per_image["svd alone"]) / ours,
        "jacobian_and_full_svd_over_ours": (
            per_image["jacobian alone"] + per_image["full svd, 4 images"]
        )
        / ours,
        "svd_over_decomposition": per_image["svd alone"] / per_image["decomposition alone"],
        "full_svd_over_decomposition": (
            per_image["full svd, 4 images"] / per_image["decomposition alone"]
        ),
    }


def large(shape: tuple[int, int, int], generator: torch.Generator) -> dict:
    """Time and memory of large images, d = 128, batch 100."""
    vae = rv.models.create(
        "vae", architecture="mlp", latent=128, image_shape=shape, hidden=[512, 512]
    )
    x = torch.rand(BATCH, *shape, generator=generator)
    return {
        "pullback, 5 directions, seconds": seconds(lambda: pullback(vae, x, count=5)),
        "leading_pullback, 5 directions, seconds": seconds(
            lambda: leading_pullback(vae, x, count=5, generator=generator)
        ),
        "peak resident GiB of the process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    generator = rv.generator(0)
    found = {
        "what": (__doc__ or "").split("\n")[0],
        "batch": BATCH,
        "rounds": rounds,
        "torch": torch.__version__,
        "threads": 1,
        "networks": {
            f"{name}, d = {latent}": compare(settings, latent, rounds, generator)
            for name, settings in NETWORKS.items()
            for latent in (16, 32)
        },
        "large images, d = 128": {name: large(shape, generator) for name, shape in IMAGES.items()},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    for name, row in found["networks"].items():
        print(
            f"{name}: {1e3 * row['seconds_per_image']['ours']:.2f} ms an image; "
            f"eigh of 784 x 784 takes {row['eigh_float32_over_ours']:.1f}x in float32 and "
            f"{row['eigh_float64_over_ours']:.1f}x in float64, the "
            f"SVD of the Jacobian {row['svd_over_decomposition']:.1f}x our decomposition, "
            f"the full one {row['full_svd_over_decomposition']:.1f}x"
        )
    print(json.dumps(found["large images, d = 128"], indent=1))


if __name__ == "__main__":
    main()
