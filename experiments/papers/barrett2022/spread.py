"""[Barrett22] Fig. B.8, appendix C: how far aggregate posteriors of Lipschitz-VAEs spread.

Trains plain and Lipschitz-VAEs with two latent coordinates; the paper shows pictures without
numbers, and does not name its beta.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from experiments.harness import Result, Row, Run, interval, item
from experiments.harness.figures import new_figures, save
from robustvae.data import Images
from robustvae.evaluation.latents import encoded
from robustvae.metrics import kl
from robustvae.objectives import ELBO
from robustvae.seeding import randn, shard_generator

LATENT, LR, BATCH = 2, 1e-3, 128
EDGE = 9.2103  # squared radius within which the prior of two coordinates has 99 % of its mass
DOTS = 1500
WIDTH, OUTSIDE = "standard deviation of a coordinate (prior: 1)", "mass outside the prior's 99 %"


@final
@dataclass(frozen=True)
class Spec:
    """What is trained and measured.

    Attributes:
        data: To train on and measure at.
        train: Training images.
        epochs: Passes over them.
        hidden: Widths of every network.
        constants: K of encoder and decoder; the plain VAE stands beside them.
        betas: Weights of the KL for each K.
        seeds: Training runs of each model.
        pictures: Folder of the picture; empty draws none.
    """

    data: str = "mnist"
    train: int = 6_000
    epochs: int = 5
    hidden: tuple[int, ...] = (512, 512)
    constants: tuple[float, ...] = (5.0, 10.0)
    betas: tuple[float, ...] = (1.0, 16.0)
    seeds: int = 3
    pictures: str = ""


@item(
    "barrett2022/fig-b8",
    "[Barrett22] Fig. B.8, appendix C",
    sizes={
        "smoke": Spec("digits", 128, 1, (16, 16), (5.0,), (1.0, 10.0), 2),
        "laptop": Spec(),
        "full": Spec(train=60_000, epochs=30),
    },
)
def spread(spec: Spec, run: Run) -> Result:
    """Width, shift and escaped mass of aggregate posteriors, plain and by K and beta."""
    train, test = run.images(spec.data, "train"), run.images(spec.data)
    part = train[
        train.choose(spec.train, stratified=True, generator=shard_generator(0, 0, "train"))
    ]
    kinds = [(None, 1.0), *((k, beta) for k in spec.constants for beta in spec.betas)]
    rows, widths, draws = list[Row](), dict[str, list[float]](), dict[str, Tensor]()
    for constant, beta in run.each(kinds):
        name = f"plain VAE, beta = {beta:g}"
        options: dict[str, Any] = {
            "name": "vae",
            "architecture": "mlp",
            "image_shape": train.image_shape,
            "hidden": list(spec.hidden),
            "latent": LATENT,
            "likelihood": "continuous_bernoulli",
        }
        if constant is not None:
            name = f"K = {constant:g}, beta = {beta:g}"
            del options["architecture"], options["likelihood"]
            bound = {"encoder_lipschitz": constant, "decoder_lipschitz": constant, "stddev": None}
            options |= {"name": "lipschitz-vae", **bound}
        columns: dict[str, list[float]] = {}
        for seed in run.each(range(spec.seeds)):
            label = f"{spec.data}-{constant or 'plain'}-beta-{beta:g}-{spec.train}-{spec.epochs}"
            settings: dict[str, Any] = {"batch_size": BATCH, "lr": LR, "epochs": spec.epochs}
            folder = f"fig-b8/{label}-{seed}"
            vae = run.train(folder, options, ELBO(beta=beta), part, seed=seed, **settings)
            mean, stddev = encoded(vae, test.x)
            noise = randn(*mean.shape, like=mean, generator=shard_generator(seed, 0, "draws"))
            z, prior = mean + stddev * noise, (mean.new_zeros(LATENT), mean.new_ones(LATENT))
            variance = mean.var(0, correction=0) + stddev.square().mean(0)
            for key, value in {
                WIDTH: variance.mean().sqrt(),
                "mean's distance from the prior's": mean.mean(0).norm(),
                OUTSIDE: (z.square().sum(1) > EDGE).double().mean(),
                "KL, nats": kl(mean, stddev, *prior).mean(),
            }.items():
                columns.setdefault(key, []).append(float(value))
            draws.setdefault(name, z)
        widths[name] = columns[WIDTH]
        for key, values in columns.items():
            rows.append(_over_runs(name, key, values))
        run.progress(f"{name}: {rows[-4].text}")
    rows += _claims(widths, spec)
    if spec.pictures:
        _draw(draws, test, Path(spec.pictures) / f"lipschitz-spread-{spec.data}.png")
    return run.result(
        f"Spread of aggregate posteriors: {spec.data}",
        "latent units, shares and nats",
        rows,
        (
            f"{spec.epochs} epochs on {spec.train:,} images, d = 2, networks {spec.hidden}, "
            f"learned sigma, continuous Bernoulli, Adam at {LR:g}, {spec.seeds} seeds; over the "
            f"{len(test):,} test images.",
            "Means over the runs ± half a 95 % interval (Student's t), not a standard error.",
        ),
    )


def _over_runs(what: str, setting: str, values: Sequence[float], section: str = "") -> Row:
    mean, half = interval(values)
    text = f"{mean:.3g} ± {half:.2g}"
    return Row(what, setting, mean, half / 1.96, len(values), section=section, text=text)


def _claims(widths: dict[str, list[float]], spec: Spec) -> list[Row]:
    rows, section = [], "The paper's sentences, by the first column"
    pairs = []
    plain = next(iter(widths))
    for k in spec.constants:
        names = [f"K = {k:g}, beta = {beta:g}" for beta in spec.betas]
        pairs.append((f"K = {k:g} spreads wider than the plain VAE", plain, names[0]))
        for low, high in itertools.pairwise(names):
            pairs.append((f"{high}: narrower than {low.partition(', ')[2]}", high, low))
    for sentence, less, more in pairs:
        gaps = [high - low for high, low in zip(widths[more], widths[less], strict=True)]
        mean, half = interval(gaps)
        said = "agrees" if mean > half else "the opposite here" if mean < -half else "not clear"
        rows.append(_over_runs(sentence, "difference", gaps, section))
        rows.append(Row(sentence, "verdict", mean, section=section, text=said))
    return rows


def _draw(draws: dict[str, Tensor], test: Images, path: Path) -> None:
    """The draws as dots by class, all on the same axes, with the prior's 99 % circle."""
    with new_figures() as new:
        figure = new(2.4 * len(draws), 2.6)
        reach = 1.05 * max(float(z[:DOTS].abs().max()) for z in draws.values())
        grid = figure.subplots(1, len(draws), squeeze=False)[0]
        for axes, (name, z) in zip(grid, draws.items(), strict=True):
            for label in test.y.unique().tolist():
                first, second = z[:DOTS][test.y[: len(z[:DOTS])] == label].T.tolist()
                axes.scatter(first, second, color=f"C{label}", s=2, lw=0)
            turn = torch.linspace(0, 2 * math.pi, 100)
            axes.plot(EDGE**0.5 * turn.cos(), EDGE**0.5 * turn.sin(), color="black", lw=0.8)
            axes.set(title=name, xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        save(figure, path)
