"""Certified errors: support sets on models trained for them, smoothing beside them.

Both bound the norm of g(z) - x that a draw exceeds with probability at most 1 - m, whatever change
of a size in l-infinity was made: the support set by the worst of a box of latents, smoothing by the
quantile of fresh draws under noise, whose l2 radius holds the l-infinity ball.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Run, item
from experiments.harness.rows import Row, measured
from robustvae.certificates import certify_score, support_set_error
from robustvae.objectives import ELBO, SupportSet

NORMS = {"linf": math.inf, "l2": 2.0}


@final
@dataclass(frozen=True)
class Spec:
    """What is compared.

    Attributes:
        plain: A model as it is; its network is trained again under the objective.
        noisy: A model trained under noise, smoothed.
        data: Their data set.
        stddev: Of the noise.
        m: Share of the draws.
        sizes: l-infinity, of the change.
        trained: Size and weight of each training for support sets.
        epochs: Of each training.
        inputs: Test images.
        draws: Of each smoothing bound.
    """

    plain: str = "digits-vae"
    noisy: str = "digits-vae-noise"
    data: str = "digits"
    stddev: float = 0.25
    m: float = 0.5
    sizes: tuple[float, ...] = (0.0, 0.01, 0.02, 0.05)
    trained: tuple[tuple[float, float], ...] = ((0.02, 0.2), (0.02, 1.0), (0.05, 1.0))
    epochs: int = 100
    inputs: int = 20
    draws: int = 10_000


@item(
    "bench/support-sets",
    sizes={
        "smoke": Spec(sizes=(0.02,), trained=((0.02, 1.0),), epochs=1, inputs=2, draws=300),
        "laptop": Spec(),
    },
)
def support_sets(spec: Spec, run: Run) -> Result:
    """Support sets before and after training for them, and smoothing of a noisy model."""
    x, _ = run.images(spec.data).sample(
        spec.inputs, stratified=True, generator=rv.generator(run.seed)
    )
    models = {f"support set, {spec.plain}": run.model(spec.plain)}
    for size, weight in run.each(spec.trained, (0, 3)):
        models[f"support set, trained at {size:g}, weight {weight:g}"] = _trained(
            spec, run, size, weight
        )
    rows = list[Row]()
    for name, vae in run.each(models.items(), (1, 3)):
        rows.append(measured("l2 error of a draw", name, _errors(rv.Victim(vae), x, run.seed)))
        for size in run.each(spec.sizes):
            for error in NORMS:
                bound = support_set_error(vae, x, size, spec.m, error=error)
                rows.append(measured(f"certified {error} error at {size:g}", name, bound))
            run.progress(f"{name}, {size:g}: {float(bound.mean()):.3g}")
    victim, name = rv.Victim(run.model(spec.noisy), rv.InputNoise(spec.stddev)), "smoothing"
    rows.append(measured("l2 error of a draw", name, _errors(victim, x, run.seed)))
    root = x[0].numel() ** 0.5
    for size in run.each(spec.sizes, (2, 3)):
        for error, order in NORMS.items():
            bound = torch.stack([_smoothed(victim, y, size * root, order, spec, run) for y in x])
            rows.append(measured(f"certified {error} error at {size:g}", name, bound))
    return run.result(
        "Certified errors under changes in l-infinity",
        "pixel units",
        rows,
        (
            f"{spec.inputs} test images (balanced), m = {spec.m:g}; the network of digits-vae, "
            f"{spec.epochs} epochs from the start under the objective support-set; smoothing: "
            f"{spec.noisy}, noise {spec.stddev:g}, {spec.draws:,} draws, confidence 0.999.",
        ),
    )


def _trained(spec: Spec, run: Run, size: float, weight: float) -> rv.VAE:
    images = run.images(spec.data, split="train")
    epochs = spec.epochs
    steps = epochs * -(-len(images) // 64)
    model = {"name": "vae", "architecture": "mlp", "latent": 16, "hidden": [128, 128]}
    return run.train(
        f"support-sets/{size:g}-{weight:g}",
        {**model, "image_shape": [1, 8, 8], "likelihood": "bernoulli"},
        SupportSet(size, m=spec.m, weight=weight, warmup=steps // 2, base=ELBO(beta=0.2)),
        images,
        epochs=epochs,
        batch_size=64,
        lr=[(0, 0.002), (epochs * 3 // 4, 0.0003)] if epochs > 3 else 0.002,
    )


def _errors(victim: rv.Victim, x: Tensor, seed: int) -> Tensor:
    """The mean l2 error of ten draws, (B,)."""
    g = rv.generator(seed)
    draws = [(victim.reconstruct(x, generator=g) - x).flatten(1).norm(dim=1) for _ in range(10)]
    return torch.stack(draws).mean(0).double()


def _smoothed(
    victim: rv.Victim, x: Tensor, size: float, order: float, spec: Spec, run: Run
) -> Tensor:
    """The bound for one image, (C, H, W), on the norm of that order, ()."""

    def error(output: Tensor) -> Tensor:
        return torch.linalg.vector_norm((output - x).flatten(1), order, dim=1)

    found = certify_score(
        victim,
        x[None],
        error,
        [size],
        quantile=spec.m,
        draws=spec.draws,
        generator=rv.generator(run.seed + 1),
    )
    # pixels of both lie in [0, 1]
    return found.upper[0, 0].clamp(max=float(x.numel() ** (1 / order)))
