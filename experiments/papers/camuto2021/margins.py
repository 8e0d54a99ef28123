"""[Camuto21] Fig. 1, 4, 5, 7, 8, 9a and 9b: damage and margins against beta and the offset tau.

Of stored models by ascending beta, or of small ones that are trained here with sigma + tau.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.figures import gallery
from experiments.harness.rows import measured
from robustvae.attacks import (
    Attack,
    MaximumDamage,
    likelihood_degradation,
    noise_robustness,
)
from robustvae.models import VAE
from robustvae.objectives import ELBO
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.robustness import Budget, estimate_margin, robustness_probability

PARTS = ("mean", "std", "both")
TAU, HIDDEN, LATENT, LR = "tau = ", (256, 256), 20, 1e-3


@final
@dataclass(frozen=True)
class Spec:
    """What is measured.

    Attributes:
        models: Stored models, by ascending beta.
        data: Their data set.
        inputs: Test images, balanced over the classes; the paper: 25.
        r: l2 distance between outputs, in pixel units; the paper's Fig. 5: 4.
        radius: Of the damage through mean, standard deviation and both.
        sizes: Attack norms of Fig. 5 and 9b, ascending.
        steps: Of each attack.
        restarts: Of each attack.
        draws: Of a probability.
        noise: Standard deviations of Fig. 7's noise, in pixel units.
        taus: Offsets of the standard deviation, of models that are trained beside the stored ones.
        train: Training images of those.
        epochs: Passes over them.
        pictures: Folder of the gallery; empty draws none.
    """

    models: tuple[str, ...] = (
        "mnist-conv28",
        "mnist-conv28-beta-2",
        "mnist-conv28-beta-5",
        "mnist-conv28-beta-10",
    )
    data: str = "mnist"
    inputs: int = 25
    r: float = 4.0
    radius: float = 2.0
    sizes: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    steps: int = 30
    restarts: int = 2
    draws: int = 200
    noise: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0)
    taus: tuple[float, ...] = ()
    train: int = 6_000
    epochs: int = 8
    pictures: str = ""


@item(
    "camuto2021/margins",
    "[Camuto21] Fig. 1, 4, 5, 7, 8 and 9, section 3.2.2",
    sizes={
        "smoke": Spec(
            ("digits-vae",), "digits", 3, 1.0, 1.0, (0.2, 1.0), 3, 1, 50, (0.0, 0.5), (0.5,), 64, 1
        ),
        "laptop": Spec(),
    },
)
def margins(spec: Spec, run: Run) -> Result:
    """Damage through mean and spread, margins, and likelihood under attack, by model."""
    x, _ = run.images(spec.data).sample(spec.inputs, stratified=True, generator=run.noise("inputs"))
    rows, shown = list[Row](), {"input": x[:8]}
    for name in run.each([*spec.models, *(f"tau = {tau:g}" for tau in spec.taus)]):
        vae = _with_offset(name, spec, run) if name.startswith(TAU) else run.model(name)

        def compute(vae: VAE = vae) -> dict[str, Any]:
            return _measure(vae, x.to(vae.dtype), spec, run)

        part = run.part(name, compute, vae)
        for setting, values in part.items():
            section, _, column = setting.partition(": ")
            rows.append(measured(name, column, values, section=section))
        run.progress(f"{name}: {rows[-1].cell}")
        if spec.pictures:
            attacked = _attack(vae, x[:8], spec.radius, "mean", spec, run)
            with torch.no_grad():
                shown |= {
                    f"{name}, in": attacked,
                    f"{name}, out": vae.decode(vae.encode(attacked).mean).mean,
                }
    if spec.pictures:
        gallery(shown, Path(spec.pictures) / f"camuto-gallery-{spec.data}.png")
    return run.result(
        f"Damage and margins against beta: {spec.data}",
        "pixel units, l2; shares",
        rows,
        (
            f"{spec.inputs} test images; maximum damage, l2, pixels kept in [0, 1], "
            f"{spec.restarts} restarts x {spec.steps} steps. Margins: centered, r = {spec.r:g}, "
            "m = 1/2, by bisection; their mean is the overall margin.",
            "Fig. 5: share of draws within r of the clean reconstruction along the direction of "
            "the damage attack, by size. Fig. 9b: relative loss of log p(x | mean code). Fig. 7: "
            "log p(x | mean code of x + noise).",
            *([_trained(spec)] if spec.taus else []),
        ),
    )


def _trained(spec: Spec) -> str:
    return (
        f"Offsets tau: MLPs {HIDDEN}, d = {LATENT}, Bernoulli, {spec.epochs} epochs on "
        f"{spec.train:,} images, Adam at {LR:g}, one run each; sigma + tau at training and after."
    )


def _with_offset(name: str, spec: Spec, run: Run) -> VAE:
    images = run.images(spec.data, "train")
    part = images[images.choose(spec.train, stratified=True, generator=rv.generator(0))]
    options: dict[str, Any] = {
        "name": "vae",
        "architecture": "mlp",
        "image_shape": part.image_shape,
        "hidden": list(HIDDEN),
        "latent": LATENT,
        "stddev_offset": float(name.removeprefix(TAU)),
    }
    label = f"fig-7/{spec.data}-{spec.train}-{spec.epochs}-{name.removeprefix(TAU)}"
    settings: dict[str, Any] = {"epochs": spec.epochs, "batch_size": 128, "lr": LR}
    return run.train(label, options, ELBO(), part, **settings)


def _attack(vae: VAE, x: Tensor, radius: float, through: str, spec: Spec, run: Run) -> Tensor:
    search = ProjectedAscent(steps=spec.steps, restarts=spec.restarts)
    attack = Attack(MaximumDamage(through), search, Ball("l2", radius))
    return attack(rv.Victim(vae), x, generator=run.noise(f"{through} {radius:g}")).x_adv


def _measure(vae: VAE, x: Tensor, spec: Spec, run: Run) -> dict[str, Any]:
    victim, columns = rv.Victim(vae), dict[str, Any]()
    with torch.no_grad():
        clean = vae.decode(vae.encode(x).mean).mean
    for through in PARTS:
        x_adv = _attack(vae, x, spec.radius, through, spec, run)
        score = MaximumDamage("both", draws=spec.draws).bind(
            victim, x, generator=run.noise("damage")
        )
        with torch.no_grad():
            damage = score(x_adv, torch.arange(len(x)))
        columns[f"Fig. 4, damage at l2 {spec.radius:g}: through {through}"] = damage
    budget = Budget(starts=spec.restarts, steps=spec.steps)
    columns["Fig. 9a: margin"] = estimate_margin(
        victim, x, spec.r, 0.5, "centered", budget=budget, generator=run.noise("margin")
    ).value
    largest = _attack(vae, x, spec.sizes[-1], "mean", spec, run) - x
    direction = largest / largest.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    for size in spec.sizes:
        moved = (x + size * direction).clamp(0, 1)
        chance = robustness_probability(
            victim, x, moved, spec.r, displacement="centered", draws=spec.draws,
            generator=run.noise("chance"),
        )  # fmt: skip
        columns[f"Fig. 5, share within r: size {size:g}"] = torch.as_tensor(chance.value)
        x_adv = _attack(vae, x, size, "mean", spec, run)
        columns[f"Fig. 9b, loss of likelihood: size {size:g}"] = likelihood_degradation(
            vae, x, x_adv
        )
    likely = noise_robustness(vae, x, spec.noise, generator=run.noise("noise"))
    for i, scale in enumerate(spec.noise):
        columns[f"Fig. 7, log p(x | z) under noise: {scale:g}"] = likely[:, i]
    columns["Clean: error"] = (clean - x).flatten(1).norm(dim=1)
    return columns
