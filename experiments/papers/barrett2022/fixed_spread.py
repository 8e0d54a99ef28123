"""[Barrett22] Fig. 3: does the Lipschitz constant decide the margin, or the encoder's fixed sigma?

Trains Lipschitz-VAEs with a = b = K and a fixed sigma for each pair, and looks for the smallest
change of each test image that breaks them. The paper: the constants matter most, sigma less.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.figures import new_figures, save
from experiments.harness.rows import measured
from robustvae import bounds
from robustvae.models import VAE
from robustvae.objectives import ELBO
from robustvae.robustness import Budget
from robustvae.seeding import shard_generator

LR, BATCH = 1e-3, 128
LARGEST = 8.0  # l2; a change of r at the input


@final
@dataclass(frozen=True)
class Spec:
    """What is trained and measured.

    Attributes:
        data: To train on and attack at.
        train: Training images.
        epochs: Passes over them.
        hidden: Widths of every network.
        latent: d.
        constants: K, with a = b = K.
        stddevs: Fixed sigma of the encoder.
        seeds: Training runs of each pair.
        inputs: Test images, balanced over the classes, the same for all.
        r: l2 distance between outputs, in pixel units.
        m: Probability wanted.
        steps: Of the attack on the margin.
        pictures: Folder of the picture; empty draws none.
    """

    data: str = "mnist"
    train: int = 6_000
    epochs: int = 5
    hidden: tuple[int, ...] = (256, 256)
    latent: int = 10
    constants: tuple[float, ...] = (5.0, 7.0, 10.0)
    stddevs: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    seeds: int = 2
    inputs: int = 20
    r: float = 8.0
    m: float = 0.5
    steps: int = 40
    pictures: str = ""


@item(
    "barrett2022/fig-3",
    "[Barrett22] Fig. 3, section 3.3",
    sizes={
        "smoke": Spec(
            "digits", 100, 1, (16,), 2, (5.0, 10.0), (0.1, 0.3), seeds=1, inputs=3, r=1.0, steps=5
        ),
        "laptop": Spec(),
        "full": Spec(train=60_000, epochs=30, hidden=(512, 512), seeds=5, inputs=100, steps=200),
    },
)
def fixed_spread(spec: Spec, run: Run) -> Result:
    """Attacked margins of Lipschitz-VAEs by K and by the sigma that they were trained with."""
    train, test = run.images(spec.data, "train"), run.images(spec.data)
    part = train[
        train.choose(spec.train, stratified=True, generator=shard_generator(0, 0, "train"))
    ]
    x, _ = test.sample(spec.inputs, stratified=True, generator=run.noise("inputs"))
    rows, margins, errors = list[Row](), dict[tuple[float, float], list[float]](), list[Row]()
    for k, stddev in run.each(itertools.product(spec.constants, spec.stddevs)):
        options: dict[str, Any] = {
            "name": "lipschitz-vae",
            "image_shape": train.image_shape,
            "hidden": list(spec.hidden),
            "latent": spec.latent,
            "encoder_lipschitz": k,
            "decoder_lipschitz": k,
            "stddev": stddev,
        }
        columns = [list[float](), list[float]()]
        for seed in run.each(range(spec.seeds)):
            label = f"fig-3/{spec.data}-{k:g}-{stddev:g}-{spec.train}-{spec.epochs}-{seed}"
            settings: dict[str, Any] = {"batch_size": BATCH, "lr": LR, "epochs": spec.epochs}
            vae = run.train(label, options, ELBO(), part, seed=seed, **settings)
            compute = functools.partial(_measure, vae, x, spec, seed)
            found = run.part(f"K = {k:g}, sigma = {stddev:g}, {seed}", compute, vae)
            columns[0] += found["margin"]
            columns[1] += found["error"]
        what, setting = f"K = {k:g}", f"sigma = {stddev:g}"
        margins[k, stddev] = columns[0]
        rows.append(measured(what, setting, columns[0], section="Attacked margin"))
        errors.append(measured(what, setting, columns[1], section="Clean error"))
        run.progress(f"{what}, {setting}: {rows[-1].cell}")
    for k, stddev in itertools.product(spec.constants, spec.stddevs):
        ask: dict[str, Any] = {"r": spec.r, "m": spec.m, "latent": spec.latent}
        bound = bounds.barrett_global_margin(stddev, a=k, b=k, **ask)
        setting = f"sigma = {stddev:g}"
        rows.append(Row(f"K = {k:g}", setting, bound, section="Theorem 3, stronger reading"))
    rows += errors + _shares(margins, spec)
    if spec.pictures:
        _draw(margins, spec, Path(spec.pictures) / f"barrett-fixed-spread-{spec.data}.png")
    return run.result(
        f"Lipschitz constant or fixed sigma: {spec.data}",
        "pixel units, l2",
        rows,
        (
            f"{spec.epochs} epochs on {spec.train:,} images, d = {spec.latent}, networks "
            f"{spec.hidden}, Adam at {LR:g}, {spec.seeds} seeds; {spec.inputs} test images, the "
            "same for all.",
            f"Margins: the smallest change found (walk of {spec.steps} steps from three starts) "
            f"that takes the output further than r = {spec.r:g} with probability {spec.m:g}, "
            f"centered, without a box, looked for up to {LARGEST:g}.",
            "Range of the means: over K at one sigma, and over sigma at one K; the share of the "
            "variance of the cells' means that K alone, and sigma alone, explains.",
        ),
    )


def _measure(vae: VAE, x: Tensor, spec: Spec, seed: int) -> dict[str, list[float]]:
    victim = rv.Victim(vae)
    margin = rv.estimate_margin(
        victim,
        x,
        r=spec.r,
        m=spec.m,
        displacement="centered",
        box=False,
        budget=Budget(starts=3, steps=spec.steps, largest=LARGEST),
        generator=shard_generator(seed, 0, "margin"),
    )
    error = (victim.reconstruct(x, generator=rv.generator(0)) - x).flatten(1).norm(dim=1)
    return {"margin": margin.value.clamp(max=LARGEST).tolist(), "error": error.tolist()}


def _shares(margins: dict[tuple[float, float], list[float]], spec: Spec) -> list[Row]:
    """How much of the cells' spread K explains, and sigma: main effects of a two-way table."""
    mean = {key: statistics.fmean(values) for key, values in margins.items()}
    whole = statistics.fmean(mean.values())
    total = sum((value - whole) ** 2 for value in mean.values())
    section, rows = "What decides", list[Row]()
    for name, axis, levels, others in (
        ("K", 0, spec.constants, spec.stddevs),
        ("sigma", 1, spec.stddevs, spec.constants),
    ):
        by_level = [
            statistics.fmean(value for key, value in mean.items() if key[axis] == level)
            for level in levels
        ]
        explained = len(others) * sum((value - whole) ** 2 for value in by_level)
        rows.append(Row(name, "range of the means", max(by_level) - min(by_level), section=section))
        share = explained / total if total else 0.0
        rows.append(Row(name, "share of the variance", share, section=section))
    k, sigma = rows[1].measured, rows[3].measured
    said = "agrees" if k > sigma else "the opposite here"
    rows.append(
        Row("The constants decide, sigma less", "verdict", k - sigma, section=section, text=said)
    )
    return rows


def _draw(margins: dict[tuple[float, float], list[float]], spec: Spec, path: Path) -> None:
    with new_figures() as new:
        figure = new(4.2, 3)
        axes = figure.subplots()
        for i, stddev in enumerate(spec.stddevs):
            means = [statistics.fmean(margins[k, stddev]) for k in spec.constants]
            axes.plot(spec.constants, means, ".-", color=f"C{i}", label=f"sigma = {stddev:g}")
        axes.set(xlabel="K, of encoder and decoder", ylabel="attacked margin, l2")
        axes.legend()
        save(figure, path)
