"""[Willetts21] Fig. 3, 5, 6, 7 and Table 1 on sets that can be had: drawn sprites, MNIST.

Trains a beta-TCVAE (L = 1; at beta = 1 that is a VAE), beta-TCDLGMs and Seatbelt-VAEs (L from 2) at
each beta, and follows the paper's protocol at our size: ELBO, latent and output attacks over the
penalties, the likelihood under noise, and the norm of the weights. Chairs, faces and CelebA cannot
be had without a download: an analogue, never the paper's number.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.willetts2021.claims import claims_of
from robustvae.attacks import LatentTarget, OutputTarget, PenaltySweep, noise_robustness, penalties
from robustvae.data import Images
from robustvae.evaluation import weight_norms
from robustvae.models import VAE
from robustvae.objectives import ELBO, TotalCorrelation

LR, BATCH = 1e-3, 128
KINDS = ("dlgm", "seatbelt")
NAMES = {"tc": "beta-TCVAE", "dlgm": "beta-TCDLGM", "seatbelt": "Seatbelt-VAE"}
Numbers = dict[str, list[float]]


@final
@dataclass(frozen=True)
class Spec:
    """What is trained and measured.

    Attributes:
        data: To train on and attack at.
        side: Pixels of a side, by averaging; 0 leaves the images as they are.
        train: Training images.
        epochs: Passes over them.
        hidden: Widths of the encoder, from the pixels inwards.
        width: Of each layer of latents.
        depths: L, from 1 up.
        betas: In ascending order.
        free_bits: Nats that a layer of a hierarchy may spend for free.
        pairs: Of an input and a target.
        penalties: How many of the papers' 51, evenly spread.
        steps: Most evaluations of a problem.
        inputs: Test images of noise and ELBO.
        noise: Standard deviations in pixel units; theirs, 1 on [-1, 1], is 0.5 here.
        seeds: Training runs of the models whose weights are measured (Table 1).
    """

    data: str = "dsprites"
    side: int = 32
    train: int = 8_000
    epochs: int = 8
    hidden: tuple[int, ...] = (256, 256)
    width: int = 10
    depths: tuple[int, ...] = (1, 2, 3, 4)
    betas: tuple[float, ...] = (1.0, 2.0, 4.0, 10.0)
    free_bits: float = 4.0
    pairs: int = 10
    penalties: int = 14
    steps: int = 60
    inputs: int = 100
    noise: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5)
    seeds: int = 3


@item(
    "willetts2021/depths",
    "[Willetts21] section 5, Fig. 3, 5, 6, 7 and Table 1",
    sizes={
        "smoke": Spec(
            "digits", 0, 64, 1, (16,), 2, (1, 2), (1.0, 10.0), 0.0, 2, 3, 5, 6, (0.0, 0.5), 1
        ),
        "laptop": Spec(),
        "full": Spec(side=0, train=60_000, epochs=30, hidden=(1200, 1200), penalties=51, steps=200),
    },
)
def depths(spec: Spec, run: Run) -> Result:
    """ELBO, attack objectives, noise and weight norms by beta and depth, of three families."""
    train, test = _images(spec, run, "train", spec.train), _images(spec, run, "test", 0)
    found: dict[tuple[str, int, float], Numbers] = {}
    for family, depth, beta in run.each(_models(spec)):
        vae = _trained(family, depth, beta, run.seed, train, spec, run)
        compute = functools.partial(_measure, vae, test.x, family, spec, run)
        key = f"{family}, L = {depth}, beta = {beta:g}"
        values = found[family, depth, beta] = run.part(key, compute, vae)
        for kind in ("latent", "output"):  # at penalty 0, in nats
            pairs = zip(values[f"{kind}, no attack"], values[f"{kind}, share left"], strict=True)
            values[f"{kind}, free"] = [still * share for still, share in pairs]
        run.progress(f"{key}: ELBO {sum(found[family, depth, beta]['ELBO']) / spec.inputs:.4g}")
    rows = list(_rows(found, spec))
    ends: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for family, depth in run.each([("tc", 1), ("seatbelt", max(spec.depths))]):
        for seed in range(run.seed, run.seed + spec.seeds):
            norms = [
                weight_norms(_trained(family, depth, beta, seed, train, spec, run))
                for beta in (spec.betas[0], spec.betas[-1])
            ]
            change = [100 * (after / before - 1) for before, after in zip(*norms, strict=True)]
            ends.setdefault((family, depth), []).append((change[0], change[1]))
    section = f"Weights (Table 1): change in per cent, beta {spec.betas[0]:g} to {spec.betas[-1]:g}"
    for (family, depth), changes in ends.items():
        for part, values in zip(("encoder", "decoder"), zip(*changes, strict=True), strict=True):
            rows.append(measured(_line(family, depth), part, list(values), section=section))
    rows += claims_of(found, ends, spec.betas, spec.depths, spec.noise[-1])
    return run.result(
        f"Attack objectives, noise and ELBO by beta and depth: {spec.data}",
        "nats, shares and per cent",
        rows,
        _protocol(spec, train),
        {"histograms": _histograms(found, spec)},
    )


def _models(spec: Spec) -> Iterator[tuple[str, int, float]]:
    """With one layer both hierarchies are the beta-TCVAE."""
    for depth in spec.depths:
        for family in ("tc",) if depth == 1 else KINDS:
            for beta in spec.betas:
                yield family, depth, beta


def _line(family: str, depth: int) -> str:
    return f"{NAMES[family]}, L = {depth}"


def _images(spec: Spec, run: Run, split: str, count: int) -> Images:
    """A balanced choice of the set, in memory, with as many pixels as the spec says."""
    images = run.images(spec.data, split)
    count = count or 2 * spec.pairs + spec.inputs
    x, y = images.sample(count, stratified=True, generator=run.noise(f"{split} images"))
    if spec.side:
        x = functional.avg_pool2d(x, x.shape[-1] // spec.side)
    return Images(x, y, f"{spec.data}-{spec.side}", split)


def _trained(
    family: str, depth: int, beta: float, seed: int, train: Images, spec: Spec, run: Run
) -> VAE:
    options: dict[str, Any] = {
        "name": "seatbelt" if family == "tc" else family,
        "architecture": "mlp",
        "image_shape": train.image_shape,
        "hidden": list(spec.hidden),
        "widths": [spec.width] * depth,
        "between": [64],
        "likelihood": "bernoulli",
    }
    free_bits = spec.free_bits if depth > 1 else 0.0  # against layers that collapse: one does not
    goal = TotalCorrelation(beta=beta, size=len(train), free_bits=free_bits)
    size = f"{spec.side}-{len(train)}-{spec.epochs}"
    return run.train(
        f"willetts/{spec.data}-{size}-{family}-{depth}-{beta:g}-{spec.free_bits:g}-{seed}",
        options,
        goal,
        train,
        seed=seed,
        epochs=spec.epochs,
        batch_size=BATCH,
        lr=LR,
    )


def _measure(vae: VAE, x: Tensor, family: str, spec: Spec, run: Run) -> Numbers:
    x = x.to(vae.dtype)
    start, target, more = x.split([spec.pairs, spec.pairs, spec.inputs])
    grid = torch.tensor(penalties())
    grid = grid[torch.linspace(0, len(grid) - 1, spec.penalties).round().long()]
    # q(z^1 | x) is all that the decoder of a DLGM depends on: the paper's attacker stops there
    layers = (0,) if family == "dlgm" else None
    goals: dict[str, LatentTarget | OutputTarget] = {
        "latent": LatentTarget(target, layers=layers),
        "output": OutputTarget(target, form="elbo", draws=4),
    }
    values: Numbers = {}
    for kind, goal in goals.items():
        sweep = PenaltySweep(goal, weights=tuple(grid.tolist()), steps=spec.steps)
        found = sweep(rv.Victim(vae), start, generator=run.noise(kind))
        free, still = found.objective[:, 0], found.objective[:, -1]  # largest: no step pays
        values[f"{kind}, objective"] = found.objective.mean(1).tolist()
        values[f"{kind}, no attack"] = still.tolist()
        values[f"{kind}, share left"] = (free / still).tolist()
        values[f"{kind}, AUDDC"] = found.auddc.tolist()
    likely = noise_robustness(vae, more, spec.noise, generator=run.noise("noise"))
    for i, scale in enumerate(spec.noise):
        values[f"noise {scale:g}"] = likely[:, i].tolist()
    with torch.no_grad():
        values["ELBO"] = (-ELBO()(vae, more, generator=run.noise("elbo"))).tolist()
    return values


def _rows(found: dict[tuple[str, int, float], Numbers], spec: Spec) -> Iterator[Row]:
    sections = {
        "ELBO": "ELBO (Fig. 3)",
        "latent, objective": "Latent attack: objective, mean over the penalties (Fig. 5, 6)",
        "output, objective": "Output attack: objective, mean over the penalties (Fig. 5, 6)",
        "latent, free": "Latent attack: objective at penalty 0",
        "output, free": "Output attack: objective at penalty 0",
        "latent, no attack": "Latent attack: objective of the image itself",
        "latent, share left": "Latent attack: share of it left by the attack without penalty",
        "output, share left": "Output attack: share of it left by the attack without penalty",
        "latent, AUDDC": "Latent attack: AUDDC, 1 robust, 0 lost",
        f"noise {spec.noise[0]:g}": f"log p(x given z), noise {spec.noise[0]:g}",
        f"noise {spec.noise[-1]:g}": f"log p(x given z), noise {spec.noise[-1]:g} (Fig. 7)",
    }
    for key, section in sections.items():
        for (family, depth, beta), values in found.items():
            yield measured(_line(family, depth), f"beta = {beta:g}", values[key], section=section)


def _histograms(found: dict[tuple[str, int, float], Numbers], spec: Spec) -> dict[str, Any]:
    """What Fig. 7 is drawn from: log p(x given z) of single images under the largest noise."""
    shown: dict[str, dict[str, list[float]]] = {}
    for (family, depth, beta), values in found.items():
        if depth in (1, max(spec.depths)) and beta in (spec.betas[0], spec.betas[-1]):
            numbers = [float(f"{value:.5g}") for value in values[f"noise {spec.noise[-1]:g}"]]
            shown.setdefault(_line(family, depth), {})[f"beta = {beta:g}"] = numbers
    return shown


def _protocol(spec: Spec, train: Images) -> tuple[str, ...]:
    shape = "x".join(map(str, train.image_shape))
    return (
        f"Images {shape}{', averaged' if spec.side else ''}, pixels in [0, 1] (theirs in [-1, 1]); "
        f"{spec.epochs} epochs on {spec.train:,} images, MLPs {spec.hidden}, {spec.width} latents "
        f"a layer, Bernoulli, {spec.free_bits:g} free nats a layer of hierarchies, Adam at {LR:g}, "
        f"one run a model; weights over {spec.seeds} runs.",
        f"Attacks: {spec.pairs} pairs of an input and a target, {spec.penalties} of the papers' 51 "
        f"penalties, L-BFGS with at most {spec.steps} evaluations; larger objectives are harder to "
        "attack. Latent: KL to the target's posterior, summed over the layers (DLGM: the lowest); "
        "output: minus the ELBO of the target from the attacked code (Eq. 9, whose sign is the "
        "other one in print). The largest penalty, 2^20, leaves the image as it is.",
        f"ELBO (one draw) and noise on {spec.inputs} test images. A sentence holds where its "
        "number is two standard errors on its side; errors are over images or pairs of one "
        "training run.",
    )
