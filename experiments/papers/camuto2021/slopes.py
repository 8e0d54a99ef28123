"""[Camuto21] Fig. 9c-d and [Willetts21] Table 1: what beta does to encoder, decoder and weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from experiments.harness import Result, Row, Run, interval, item
from robustvae import objectives
from robustvae.evaluation import decoder_slopes, encoder_slopes, weight_norms
from robustvae.evaluation.latents import encoded
from robustvae.models import VAE
from robustvae.seeding import shard_generator

CLAIMS = {
    "encoder_std": ("encoder's standard deviation, mean over coordinates", 1, "[Camuto21] Fig. 9c"),
    "encoder_slope": ("Jacobian of the encoder's mean, Frobenius norm", -1, "[Camuto21] Fig. 9d"),
    "encoder_weights": ("l2 norm of the encoder's weights", 1, "[Willetts21] Table 1"),
    "decoder_weights": ("l2 norm of the decoder's weights", -1, "[Willetts21] Table 1"),
    "decoder_slope": ("Jacobian of the decoder's mean, Frobenius norm", 0, ""),
}
WORDS = {1: "rises", -1: "falls", 0: ""}
LR, BATCH = 1e-3, 128


@final
@dataclass(frozen=True)
class Spec:
    """What is trained and measured.

    Attributes:
        data: To train on and measure at.
        objectives: Names of what is minimized.
        betas: In ascending order.
        seeds: Training runs at each beta, at least 2.
        train: Training images.
        epochs: Passes over them.
        hidden: Widths of the encoder, from the pixels inwards; no batch norm, before which a
            layer's scale plays no part.
        latent: d.
        inputs: Test images.
    """

    data: str = "mnist"
    objectives: tuple[str, ...] = ("elbo", "total-correlation")
    betas: tuple[float, ...] = (1.0, 3.0, 10.0)
    seeds: int = 3
    train: int = 10_000
    epochs: int = 5
    hidden: tuple[int, ...] = (256, 256)
    latent: int = 20
    inputs: int = 200


def measures(vae: VAE, x: Tensor) -> dict[str, Tensor]:
    """Every measure of `CLAIMS`: at each image, (B,), or of the model, (1,)."""
    encoder, decoder = weight_norms(vae)
    return {
        "encoder_std": encoded(vae, x)[1].mean(1),
        "encoder_slope": encoder_slopes(vae, x),
        "decoder_slope": decoder_slopes(vae, x),
        "encoder_weights": torch.tensor([encoder], dtype=torch.float64),
        "decoder_weights": torch.tensor([decoder], dtype=torch.float64),
    }


def verdict(key: str, changes: list[float]) -> str:
    """Whether a measure changes as the papers say, by the 95 % interval of its change over runs."""
    mean, half = interval(changes)
    expected = CLAIMS[key][1]
    if not expected:
        return ""
    if abs(mean) <= half:
        return "absent here"
    return "agrees" if math.copysign(1, mean) == expected else "the opposite here"


@item(
    "camuto2021/fig-9cd",
    "[Camuto21] Fig. 9c-d, [Willetts21] Table 1",
    sizes={
        "smoke": Spec("digits", ("elbo",), (1.0, 10.0), 2, 128, 1, (16,), 3, 20),
        "laptop": Spec(),
        "full": Spec(train=60_000, epochs=30, seeds=5),
    },
)
def slopes(spec: Spec, run: Run) -> Result:
    """Spread, slope and weight norms of encoder and decoder against beta, over training runs."""
    train, test = run.images(spec.data, "train"), run.images(spec.data)

    def chosen(n: int, purpose: str, images: Any) -> Any:
        noise = shard_generator(0, 0, purpose)
        return images[images.choose(n, stratified=True, generator=noise)]

    part, x = chosen(spec.train, "train", train), chosen(spec.inputs, "images", test).x
    model = {
        "name": "vae",
        "architecture": "mlp",
        "image_shape": train.image_shape,
        "hidden": list(spec.hidden),
        "latent": spec.latent,
    }
    settings: dict[str, Any] = {"epochs": spec.epochs, "batch_size": BATCH, "lr": LR}
    rows: list[Row] = []
    for objective in run.each(spec.objectives):
        more = {"size": len(part)} if objective == "total-correlation" else {}
        columns: dict[str, list[list[float]]] = {key: [] for key in CLAIMS}
        for beta in run.each(spec.betas):
            runs: dict[str, list[float]] = {key: [] for key in CLAIMS}
            for seed in run.each(range(spec.seeds)):
                label = f"{spec.data}-{objective}-{beta:g}-{spec.train}-{spec.epochs}-{seed}"
                goal = objectives.create(objective, beta=beta, **more)
                vae = run.train(f"fig-9cd/{label}", model, goal, part, seed=seed, **settings)
                for key, values in measures(vae, x).items():
                    runs[key].append(float(values.mean()))
            for key in CLAIMS:
                columns[key].append(runs[key])
            run.progress(f"{objective}, beta = {beta:g}: measured {spec.seeds} runs")
        for key, by_beta in columns.items():
            rows += _rows(objective, key, by_beta, spec)
    return run.result(
        f"Encoders under beta, over training runs: {spec.data}",
        "latent and pixel units",
        rows,
        (
            f"MLP VAEs, {spec.hidden} ReLU, no batch norm, d = {spec.latent}, Bernoulli, "
            f"{spec.epochs} epochs on {spec.train:,} images, Adam at {LR:g}, {spec.seeds} seeds at "
            f"each beta, measured at {spec.inputs:,} test images.",
            "Means over the runs ± half a 95 % interval (Student's t), not a standard error; the "
            "change is from the lowest to the highest beta, seed by seed. [Willetts21] Table 1, "
            "total correlation, other data: encoder +5 to +74 %, decoder -7 to -19 %.",
        ),
    )


def _rows(objective: str, key: str, by_beta: list[list[float]], spec: Spec) -> list[Row]:
    label, expected, source = CLAIMS[key]
    rows = []
    for beta, values in zip(spec.betas, by_beta, strict=True):
        mean, half = interval(values)
        text = f"{mean:.4g} ± {half:.2g}"
        setting, n = f"beta = {beta:g}", len(values)
        rows.append(Row(label, setting, mean, half / 1.96, n, section=objective, text=text))
    changes = [100 * (b / a - 1) for a, b in zip(by_beta[0], by_beta[-1], strict=True)]
    mean, half = interval(changes)
    text, n = f"{mean:+.1f} ± {half:.1f} %", len(changes)
    rows.append(Row(label, "change", mean, half / 1.96, n, section=objective, text=text))
    said = f"{WORDS[expected]} ({source})" if expected else ""
    rows.append(Row(label, "papers", expected, section=objective, text=said or "-"))
    found = verdict(key, changes) or "-"
    return [*rows, Row(label, "verdict", mean, section=objective, text=found)]
