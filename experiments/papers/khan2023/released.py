"""[Khan23] Fig. 5 against the numbers that its repository publishes.

50 spectral radii and entropies of VAEs under beta (`released.json`, commit b392100, 3,072 inputs).
Their errors at the smallest step follow a squared-error likelihood summed over the pixels, so the
models here have a Gaussian of variance 1/2.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from scipy.stats import spearmanr

from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.khan2023.geometry import BATCH, LEARNING_RATE, network
from robustvae.geometry import pullback
from robustvae.models import VAE
from robustvae.objectives import ELBO

RELEASED: dict[str, Any] = json.loads(Path(__file__).with_name("released.json").read_text("utf-8"))


@final
@dataclass(frozen=True)
class Spec:
    """What is trained and measured.

    Attributes:
        data: To train on and measure at; the released numbers fit MNIST.
        models: Numbers of the released betas, 0 to 49.
        epochs: Passes over the training images; theirs: 100, with a cosine schedule.
        train: Training images.
        hidden: Widths of the encoder.
        latent: d.
        images: Test images.
    """

    data: str = "mnist"
    models: tuple[int, ...] = (0, 17, 33, 43, 49)
    epochs: int = 3
    train: int = 60_000
    hidden: tuple[int, ...] = (256, 256, 512)
    latent: int = 32
    images: int = 200


@item(
    "khan2023/released",
    "[Khan23] Fig. 5",
    sizes={
        "smoke": Spec("digits", (0, 49), 1, 128, (16,), 3, 10),
        "laptop": Spec(),
        "full": Spec(models=tuple(range(50)), epochs=100),
    },
)
def released(spec: Spec, run: Run) -> Result:
    """Spectral radius, entropy and error at the released betas, beside the released numbers."""
    train, test = run.images(spec.data, "train"), run.images(spec.data)
    x, _ = test.sample(spec.images, stratified=True, generator=run.noise("data"))
    options = network(spec.latent, spec.hidden, train.image_shape)
    settings: dict[str, Any] = {"batch_size": BATCH, "lr": LEARNING_RATE, "epochs": spec.epochs}
    rows, means = list[Row](), dict[str, list[float]]()
    inputs = RELEASED["inputs"]
    for i in run.each(spec.models):
        beta = RELEASED["beta"][i]
        label = f"released/{spec.data}-{i}-{spec.epochs}-{spec.train}-{run.seed}"
        vae = run.train(label, options, ELBO(beta=beta), train[: spec.train], **settings)
        values = run.part(f"beta {beta:g}", functools.partial(measure, vae, x), vae)
        theirs = {
            "spectral radius": (RELEASED["radius"][i], RELEASED["radius_std"][i]),
            'entropy, "max"': (RELEASED["entropy"][i], RELEASED["entropy_std"][i]),
            "error a pixel": (RELEASED["error_at_0.1"][i], None),
        }
        for setting, numbers in values.items():
            value, spread = theirs[setting]
            error = None if spread is None else spread / inputs**0.5
            more: dict[str, Any] = {"reported": value, "reported_stderr": error}
            rows.append(measured(f"beta {beta:.3g}", setting, numbers, **more))
            means.setdefault(setting, []).append(rows[-1].measured)
        run.progress(f"beta {beta:.3g}: {rows[-3].cell}")
    order = [RELEASED["beta"][i] for i in spec.models]
    for setting, key in (("spectral radius", "radius"), ('entropy, "max"', "entropy")):
        ours = float(spearmanr(order, means[setting]).statistic)
        all_of_them = float(spearmanr(RELEASED["beta"], RELEASED[key]).statistic)
        rows.append(Row("rank correlation with beta", setting, ours, reported=all_of_them))
    return run.result(
        "Geometry beside the released numbers",
        "pixel units and nats",
        rows,
        (
            f"{len(spec.models)} of the 50 released betas, {spec.epochs} epochs of {spec.train:,} "
            "images (theirs: 100 epochs), Gaussian likelihood of variance 1/2, "
            f"{spec.images} test images (theirs: {inputs:,}).",
            "Their error is that of the smallest step of 0.1 along the top direction, ours that of "
            "the clean image.",
        ),
    )


def measure(vae: VAE, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Spectral radius and entropy of the encoder's metric, and the error, at each image."""
    geometry = pullback(vae, x)
    with torch.no_grad():
        error = (vae.decode(vae.encode(x).mean).mean - x).square().flatten(1).mean(1)
    return {
        "spectral radius": geometry.spectral_radius,
        'entropy, "max"': geometry.entropy("max"),
        "error a pixel": error,
    }
