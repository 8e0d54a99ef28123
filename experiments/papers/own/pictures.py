"""The papers' galleries, on stored models: eight images each, and how far they are from the clean.

[Barrett22] Fig. 1 and appendix E: Lipschitz beside plain under attack; [Kuzina22] Fig. 1, 3 and 12:
the defense in a plane and in pictures, without and with an attacker who goes through the chain;
[Khan23] Fig. 7 to 9: steps along the top directions, after mixup and with the decoder's metric.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.figures import gallery, new_figures, save
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import similarity
from robustvae.attacks import Attack, LatentShift, MaximumDamage, StraightThrough
from robustvae.geometry import pullback
from robustvae.models import VAE
from robustvae.objectives import ELBO, Mixup
from robustvae.perturb import Ball, ProjectedAscent

Lines = dict[str, Tensor]


@final
@dataclass(frozen=True)
class Spec:
    """What is drawn.

    Attributes:
        model: A plain model.
        lipschitz: A Lipschitz-VAE.
        data: Their data set.
        images: In a line.
        sizes: l2 sizes of the attacks on both, in pixel units.
        steps: Of an attack.
        chain: Transitions of the defense.
        train: Training images of the three small models.
        epochs: Of the three small models.
        step: Along a top direction, l2, in pixel units.
        pictures: Folder; empty draws none.
    """

    model: str = "mnist-conv28"
    lipschitz: str = "mnist-lipschitz-10"
    data: str = "mnist"
    images: int = 8
    sizes: tuple[float, ...] = (1.0, 3.0)
    steps: int = 30
    chain: int = 26
    train: int = 10_000
    epochs: int = 3
    step: float = 3.0
    pictures: str = ""


@item(
    "own/pictures",
    "[Barrett22] Fig. 1, appendix E; [Kuzina22] Fig. 1, 3 and 12; [Khan23] Fig. 7 to 9",
    sizes={
        "smoke": Spec("digits-vae", "digits-lipschitz-vae", "digits", 2, (0.5,), 2, 2, 64, 1),
        "laptop": Spec(),
    },
)
def pictures(spec: Spec, run: Run) -> Result:
    """Galleries of attacks, of the defense and of top directions, with their similarity."""
    x, _ = run.images(spec.data).sample(spec.images, generator=run.noise("images"))
    plain, lipschitz = run.model(spec.model), run.model(spec.lipschitz)
    small = {name: _small(name, run, spec) for name in ("plain", "mixup", "plane")}
    drawn = {
        "barrett": _attacked({spec.model: plain, spec.lipschitz: lipschitz}, x, spec, run),
        "kuzina": _defended(plain, x, spec, run),
        "khan": _directions({name: small[name] for name in ("plain", "mixup")}, x, spec),
    }
    rows = list[Row]()
    for paper, lines in drawn.items():
        clean = None
        for name, images in lines.items():
            if name.endswith("clean"):
                clean = images
            elif clean is not None and "out" in name:
                rows.append(measured(name, "MS-SSIM", similarity(images, clean), section=paper))
        if spec.pictures:
            path = Path(spec.pictures) / f"{paper}-pictures-{spec.data}.png"
            gallery({"image": x, **lines}, path)
    moved = _plane(small["plane"], x[:1], spec, run)
    rows += [Row(name, "distance of the code", d, section="plane") for name, d in moved.items()]
    return run.result(
        f"Galleries: {spec.data}",
        "MS-SSIM (variant kuzina2022) to the clean reconstruction; latent units",
        rows,
        (
            f"{spec.images} test images. Barrett: largest damage, l2, {spec.steps} steps. Kuzina: "
            f"symmetric KL, l-infinity 0.2, then {spec.chain} transitions of HMC; through the "
            "chain: an attack on the damage behind it, each gradient straight through. Khan: a "
            f"step of {spec.step:g} along the top direction of the pullback metric, and of that "
            f"with the decoder's metric; MLPs, {spec.epochs} epochs of {spec.train:,} images.",
        ),
    )


def _small(name: str, run: Run, spec: Spec) -> VAE:
    train = run.images(spec.data, "train")[: spec.train]
    options: dict[str, Any] = {
        "name": "vae",
        "architecture": "mlp",
        "image_shape": train.image_shape,
        "hidden": [256],
        "latent": 2 if name == "plane" else 16,
    }
    objective = Mixup() if name == "mixup" else ELBO()
    settings: dict[str, Any] = {"batch_size": 128, "lr": 1e-3}
    label = f"pictures/{name}-{spec.data}-{spec.train}-{spec.epochs}"
    return run.train(label, options, objective, train, epochs=spec.epochs, **settings)


@torch.no_grad()
def _out(vae: VAE, x: Tensor) -> Tensor:
    return vae.decode(vae.encode(x.to(vae.dtype)).mean).mean


def _attacked(vaes: dict[str, VAE], x: Tensor, spec: Spec, run: Run) -> Lines:
    lines: Lines = {}
    for name, vae in vaes.items():
        lines[f"{name}: clean"] = _out(vae, x)
        for size in spec.sizes:
            search = ProjectedAscent(steps=spec.steps, restarts=2)
            attack = Attack(MaximumDamage(), search, Ball("l2", size))
            moved = attack(rv.Victim(vae), x, generator=run.noise(f"{name} {size}")).x_adv
            lines |= {f"{name}: in, {size:g}": moved, f"{name}: out, {size:g}": _out(vae, moved)}
    return lines


def _defended(vae: VAE, x: Tensor, spec: Spec, run: Run) -> Lines:
    chain = rv.HMC(spec.chain, step_size=0.5, mass="encoder")
    search, ball = ProjectedAscent(steps=spec.steps, restarts=1), Ball("linf", 0.2)
    blind = Attack(LatentShift("symmetric_kl"), search, ball)
    # the chain is run at every step: a third of the steps keeps the gallery cheap
    short = ProjectedAscent(steps=-(-spec.steps // 3), restarts=1)
    through = Attack(MaximumDamage(draws=1), short, ball)
    lines = {"clean": _out(vae, x)}
    for name, attack, victim in (
        ("blind", blind, rv.Victim(vae)),
        ("through the chain", through, rv.Victim(vae, StraightThrough(chain))),
    ):
        moved = attack(victim, x, generator=run.noise(name)).x_adv
        defended = rv.Victim(vae, chain).reconstruct(moved, generator=run.noise("chain"))
        lines[f"{name}: in"] = moved
        lines |= {f"{name}: out": _out(vae, moved), f"{name}: out, HMC": defended}
    return lines


def _directions(vaes: dict[str, VAE], x: Tensor, spec: Spec) -> Lines:
    lines: Lines = {}
    for name, vae in vaes.items():
        lines[f"{name}: clean"] = _out(vae, x)
        for latent in ("flat", "riemannian"):
            top = pullback(vae, x, latent, count=1).directions[:, 0]
            moved = x + spec.step * top
            lines[f"{name}, {latent}: in"] = moved
            lines[f"{name}, {latent}: out"] = _out(vae, moved)
    return lines


def _plane(vae: VAE, x: Tensor, spec: Spec, run: Run) -> dict[str, float]:
    """[Kuzina22] Fig. 1: where the clean code, the attacked one and the chain's draws lie."""
    search, ball = ProjectedAscent(steps=spec.steps, restarts=4), Ball("linf", 0.2)
    attack = Attack(LatentShift("symmetric_kl"), search, ball)
    moved = attack(rv.Victim(vae), x, generator=run.noise("plane")).x_adv
    exact = copy.deepcopy(vae)
    victim = rv.Victim(exact, rv.HMC(spec.chain, n_leapfrog=5, step_size=0.1, adapt="chain"))
    many = moved.expand(50, -1, -1, -1)
    drawn = victim.latent(many, generator=run.noise("plane, chain"))
    with torch.no_grad():
        clean, there = vae.encode(x).mean, vae.encode(moved).mean
    if spec.pictures:
        with torch.no_grad():
            codes = vae.encode(run.images(spec.data).x[:1000].to(vae.dtype)).mean
        with new_figures() as new:
            figure = new(4, 3.6)
            axes = figure.subplots()
            first, second = codes.T.tolist()
            axes.scatter(first, second, s=2, lw=0, color="0.8")
            first, second = drawn.T.tolist()
            axes.scatter(first, second, s=6, lw=0, color="C2", label="draws of the chain")
            axes.plot(*clean[0].tolist(), "o", color="C0", label="clean")
            axes.plot(*there[0].tolist(), "x", color="C3", label="attacked")
            axes.set(xlabel="$z_1$", ylabel="$z_2$")
            axes.legend()
            save(figure, Path(spec.pictures) / f"kuzina-plane-{spec.data}.png")
    return {
        "attacked": float((there - clean).norm()),
        "mean of the chain's draws": float((drawn.mean(0) - clean).norm()),
    }
