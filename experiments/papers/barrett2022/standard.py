"""[Barrett22] Fig. 4 and 5: margins of Lipschitz-VAEs and of a standard VAE, trained alike.

Stored models differ in training; the ones that are trained here see the same images for as many
epochs, in networks of the same size. Of a Lipschitz-VAE the certified margin and Theorem 3 stand
beside the attacked one: none may lie above it (Fig. 4).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from robustvae import bounds
from robustvae.data import Images
from robustvae.models import VAE, LipschitzVAE
from robustvae.objectives import ELBO
from robustvae.robustness import Budget
from robustvae.seeding import shard_generator

LR, BATCH, STDDEV, LATENT, M = 1e-3, 128, 0.1, 10, 0.5
STANDARD = "standard"
LARGEST = 8.0  # l2; a change of r at the input


@final
@dataclass(frozen=True)
class MarginSpec:
    """What is compared.

    Attributes:
        models: Stored models, Lipschitz and standard.
        data: Their data set.
        constants: K of the Lipschitz-VAEs that are trained here; a standard VAE beside them.
        train: Training images of those.
        epochs: Passes over them.
        hidden: Widths of their networks.
        seeds: Training runs of each.
        inputs: Test images, balanced over the classes.
        r: l2 distance between outputs, in pixel units.
        restarts: Of the attack at each radius.
        steps: Of the attack at each radius.
    """

    models: tuple[str, ...] = ()
    data: str = "mnist"
    constants: tuple[float, ...] = (5.0, 7.0, 10.0)
    train: int = 10_000
    epochs: int = 8
    hidden: tuple[int, ...] = (256, 256)
    seeds: int = 1
    inputs: int = 25
    r: float = 8.0
    restarts: int = 3
    steps: int = 30


@item(
    "barrett2022/fig-5",
    "[Barrett22] section 6, Fig. 4 and 5, appendix D",
    sizes={
        "smoke": MarginSpec(
            ("digits-lipschitz-vae",), "digits", (10.0,), 100, 1, (16,), 1, 3, 1.0, 1, 5
        ),
        "laptop": MarginSpec(),
        "full": MarginSpec(train=60_000, epochs=30, hidden=(512, 512), seeds=3, inputs=100),
    },
)
def margins(spec: MarginSpec, run: Run) -> Result:
    """Attacked and certified margins and likelihoods of Lipschitz-VAEs and of a standard VAE."""
    x, _ = run.images(spec.data).sample(spec.inputs, stratified=True, generator=run.noise("inputs"))
    train = run.images(spec.data, "train")
    part = train[
        train.choose(spec.train, stratified=True, generator=shard_generator(0, 0, "train"))
    ]
    trained = [*(f"K = {k:g}" for k in spec.constants), *[STANDARD] * bool(spec.constants)]
    columns: dict[str, dict[str, list[float]]] = {}
    for name in run.each([*spec.models, *trained]):
        for seed in run.each(range(spec.seeds if name in trained else 1)):
            vae = _train(name, part, spec, seed, run) if name in trained else run.model(name)
            compute = functools.partial(_measure, vae, x.to(vae.dtype), spec, seed)
            for key, values in run.part(f"{name}, {seed}", compute, vae).items():
                columns.setdefault(name, {}).setdefault(key, []).extend(values)
        run.progress(f"{name}: {sum(columns[name][ATTACKED]) / len(columns[name][ATTACKED]):.3g}")
    return run.result(
        f"Margins of Lipschitz-VAEs and of a standard VAE: {spec.data}",
        "pixel units, l2; nats",
        [*_rows(columns)],
        (
            f"{spec.inputs} test images, r = {spec.r:g}, m = 1/2, paired, free; {spec.restarts} "
            f"restarts x {spec.steps} steps at each radius, of a model trained here with each of "
            f"{spec.seeds} seeds. Error: 2-norm of the clean reconstruction's. Looked for up to "
            f"{LARGEST:g}, which stands where no attack was found.",
            f"Trained here: {spec.epochs} epochs on the same {spec.train:,} images, networks "
            f"{spec.hidden}, d = {LATENT}, Adam at {LR:g}, continuous Bernoulli, whose log density "
            f"is not bounded by 0; Lipschitz-VAEs with sigma = {STDDEV:g}.",
            "Theorem 3: the stronger of two readings, a = b = K.",
        ),
        {"single": columns},
    )


ATTACKED = "attacked margin"


def _train(name: str, part: Images, spec: MarginSpec, seed: int, run: Run) -> VAE:
    options: dict[str, Any] = {
        "name": "vae",
        "architecture": "mlp",
        "image_shape": part.image_shape,
        "hidden": list(spec.hidden),
        "latent": LATENT,
        "likelihood": "continuous_bernoulli",
    }
    if name != STANDARD:
        del options["architecture"]
        k = float(name.removeprefix("K = "))
        options |= {"name": "lipschitz-vae", "encoder_lipschitz": k, "decoder_lipschitz": k}
        options |= {"stddev": STDDEV}
    label = f"fig-5/{spec.data}-{name.replace(' ', '')}-{len(part)}-{spec.epochs}-{seed}"
    settings: dict[str, Any] = {"epochs": spec.epochs, "batch_size": BATCH, "lr": LR}
    return run.train(label, options, ELBO(), part, seed=seed, **settings)


def _measure(vae: VAE, x: Tensor, spec: MarginSpec, seed: int) -> dict[str, list[float]]:
    ask: dict[str, Any] = {"r": spec.r, "m": M, "displacement": "paired"}
    budget = Budget(starts=spec.restarts, steps=spec.steps, largest=LARGEST)
    g = shard_generator(seed, 0, "attack")
    upper = rv.estimate_margin(rv.Victim(vae), x, **ask, box=False, budget=budget, generator=g)
    with torch.no_grad():
        output = vae.decode(vae.encode(x).mean)
        found = {
            ATTACKED: upper.value.clamp(max=LARGEST),
            "log p(x given z)": output.log_prob(x).flatten(1).sum(1),
            "error": (output.mean - x).flatten(1).norm(dim=1),
        }
    if isinstance(vae, LipschitzVAE):
        found["certified margin"] = rv.certify(vae, x, **ask, generator=g).radius
        assert vae.stddev is not None
        k = float(vae.config["decoder_lipschitz"])
        theirs = bounds.barrett_global_margin(vae.stddev, a=k, b=k, latent=vae.latent, **ask)
        found["Theorem 3"] = torch.full((len(x),), float(theirs))
    return {key: values.double().tolist() for key, values in found.items()}


def _rows(columns: dict[str, dict[str, list[float]]]) -> list[Row]:
    rows = [
        measured(name, key, values) for name, one in columns.items() for key, values in one.items()
    ]
    section = "Against the standard VAE and the bounds"
    for name, one in columns.items():
        if name.startswith("K = ") and STANDARD in columns:
            pairs = zip(one[ATTACKED], columns[STANDARD][ATTACKED], strict=True)
            wider = [a - b for a, b in pairs]
            rows.append(
                measured(name, "attacked margin above the standard VAE's", wider, section=section)
            )
        if "certified margin" in one:
            for key in ("certified margin", "Theorem 3"):
                above = sum(a > b for a, b in zip(one[key], one[ATTACKED], strict=True))
                rows.append(
                    Row(name, f"{key} above attacked", above, n=len(one[key]), section=section)
                )
    return rows
