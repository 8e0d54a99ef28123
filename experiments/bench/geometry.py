"""Pullback spectra against the D x D eigendecomposition and against the SVD of the Jacobian.

float32 networks, one thread, sides interleaved, medians. The dense side is the bare
`torch.linalg.eigh` of a 784 x 784 matrix, in float32 and in float64 (ours decomposes in float64),
without making the Jacobian and without forming G = J^T J. The SVD side is the reduced SVD of the
stacked Jacobians, the full one (with its 784 x 784 factor) beside it. The networks have fresh
weights: time does not depend on them.
"""

from __future__ import annotations

import contextlib
import resource
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

import robustvae as rv
from experiments.bench.timing import interleaved, seconds
from experiments.harness import Result, Row, Run, item
from robustvae.geometry import leading_pullback, pullback
from robustvae.jacobians import eigenpairs, jacobian
from robustvae.models.base import frozen
from robustvae.models.layout import channels_last

NETWORKS: dict[str, dict[str, Any]] = {
    "mlp 256-256-512 tanh": {
        "architecture": "mlp",
        "hidden": [256, 256, 512],
        "activation": "tanh",
    },
    "mlp 512-512 relu": {"architecture": "mlp", "hidden": [512, 512]},
    "conv28": {"architecture": "conv28"},
}
IMAGES = {"CIFAR-10": (3, 32, 32), "64 x 64 color": (3, 64, 64)}
FEW = 4  # images on which the dense sides are timed


@final
@dataclass(frozen=True)
class Spec:
    """What is timed.

    Attributes:
        batch: Images at once, at least 4.
        latents: Numbers of latent coordinates.
        networks: Names; empty takes all.
        large: Names of large images; empty takes none.
        rounds: Of the sides in turn.
    """

    batch: int = 100
    latents: tuple[int, ...] = (16, 32)
    networks: tuple[str, ...] = tuple(NETWORKS)
    large: tuple[str, ...] = tuple(IMAGES)
    rounds: int = 5


@item(
    "bench/geometry",
    sizes={"smoke": Spec(4, (2,), ("mlp 512-512 relu",), (), 1), "laptop": Spec()},
)
def spectra(spec: Spec, run: Run) -> Result:
    """Pullback spectra by dense eigendecomposition and by the Jacobian's SVD."""
    g, rows = rv.generator(run.seed), list[Row]()
    for name in run.each(spec.networks):
        for latent in run.each(spec.latents):
            what = f"{name}, d = {latent}"
            rows += [
                Row(what, setting, value)
                for setting, value in _compare(NETWORKS[name], latent, spec, g).items()
            ]
            run.progress(f"{what}: {rows[-1].cell}")
    for name in spec.large:
        shape = IMAGES[name]
        vae = rv.models.create(
            "vae", architecture="mlp", latent=128, image_shape=shape, hidden=[512, 512]
        )
        x = torch.rand(spec.batch, *shape, generator=g)

        def leading(vae: rv.VAE = vae, x: Tensor = x) -> object:
            return leading_pullback(vae, x, count=5, generator=g)

        for setting, work in (
            ("pullback, 5 directions, s", lambda vae=vae, x=x: pullback(vae, x, count=5)),
            ("leading_pullback, 5 directions, s", leading),
        ):
            rows.append(Row(name, setting, seconds(work), section="Large images, d = 128"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append(Row(name, "peak GiB of the process", peak, section="Large images, d = 128"))
    return run.result(
        "Pullback spectra by their slow definitions",
        "milliseconds an image, ratios",
        rows,
        (f"Batch {spec.batch}; medians of {spec.rounds} interleaved rounds.",),
    )


def _compare(
    settings: dict[str, Any], latent: int, spec: Spec, g: torch.Generator
) -> dict[str, float]:
    vae = rv.models.create("vae", latent=latent, image_shape=(1, 28, 28), **settings)
    x = torch.rand(spec.batch, 1, 28, 28, generator=g).to(vae.dtype)
    batched = settings["architecture"] == "mlp"

    def read(y: Tensor) -> Tensor:
        posterior = vae.encode(y)
        return torch.cat([posterior.mean, posterior.stddev], 1)

    def stacked() -> Tensor:
        with frozen(vae), contextlib.nullcontext() if batched else channels_last(vae):
            return jacobian(read, x, batched=batched)

    jacobians = stacked()
    metrics = [j.mT @ j for j in jacobians[:FEW]]
    exact = [metric.double() for metric in metrics]
    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: pullback(vae, x),
        "ours, top 5": lambda: pullback(vae, x, count=5),
        "jacobian": stacked,
        "decomposition": lambda: eigenpairs(jacobians, jacobians.shape[1]),
        "svd": lambda: torch.linalg.svd(jacobians, full_matrices=False),
        "full svd": lambda: torch.linalg.svd(jacobians[:FEW], full_matrices=True),
        "eigh float32": lambda: [torch.linalg.eigh(part) for part in metrics],
        "eigh float64": lambda: [torch.linalg.eigh(part) for part in exact],
    }
    few = ("full svd", "eigh float32", "eigh float64")
    times = interleaved(sides, spec.rounds)
    each = {
        name: 1e3 * statistics.median(values) / (FEW if name in few else spec.batch)
        for name, values in times.items()
    }
    return each | {
        "eigh float32 / ours": each["eigh float32"] / each["ours"],
        "eigh float64 / ours": each["eigh float64"] / each["ours"],
        "jacobian and svd / ours": (each["jacobian"] + each["svd"]) / each["ours"],
        "jacobian and full svd / ours": (each["jacobian"] + each["full svd"]) / each["ours"],
        "svd / decomposition": each["svd"] / each["decomposition"],
        "full svd / decomposition": each["full svd"] / each["decomposition"],
    }
