"""The bundled models side by side, and NVAE `tiny` beside conv28 at equal epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch

import robustvae as rv
from experiments.harness import Result, Row, Run, interval, item
from experiments.harness.rows import measured
from robustvae.data import Images
from robustvae.models import VAE
from robustvae.objectives import ELBO
from robustvae.robustness import Budget, estimate_margin
from robustvae.seeding import shard_generator

TINY, CONV = "NVAE tiny", "conv28"
LR, BATCH, CLIP, ROWS = 1e-3, 64, 100.0, 250


@final
@dataclass(frozen=True)
class DigitsSpec:
    """What is measured.

    Attributes:
        models: Names.
        data: Their data set.
        inputs: Test images with margins; errors are over all of them.
        restarts: Of the attack at each radius.
        steps: Of the attack at each radius.
        r: l2 distance between outputs, in pixel units.
    """

    models: tuple[str, ...] = ("digits-vae", "digits-lipschitz-vae")
    data: str = "digits"
    inputs: int = 100
    restarts: int = 20
    steps: int = 100
    r: float = 1.0


@item(
    "own/digits-models",
    sizes={"smoke": DigitsSpec(inputs=5, restarts=1, steps=5), "laptop": DigitsSpec()},
)
def digits_models(spec: DigitsSpec, run: Run) -> Result:
    """The two bundled models side by side: reconstruction, certificates, attacked margins."""
    question: dict[str, Any] = {"r": spec.r, "m": 0.5, "displacement": "centered"}
    rows = []
    for name in run.each(spec.models):
        vae, images = run.model(name), run.images(spec.data)

        def compute(vae: VAE = vae, images: Images = images) -> dict[str, Any]:
            g = rv.generator(run.seed)
            with torch.no_grad():
                x_hat = vae.decode(vae.encode(images.x).mean).mean
                loss = rv.objectives.ELBO()(vae, images.x, generator=g)
            x, _ = images.sample(spec.inputs, stratified=True, generator=g)
            lower = rv.certify(vae, x, **question, generator=g)
            if not bool((lower.radius > 0).any()):
                methods = ["neyman_pearson"]
                lower = rv.certify(vae, x, **question, generator=g, methods=methods)
            budget = Budget(starts=spec.restarts, steps=spec.steps)
            upper = estimate_margin(
                rv.Victim(vae), x, **question, box=None, generator=g, budget=budget
            )
            assert upper.unconstrained is not None
            free, box = upper.unconstrained.value, upper.value
            return {
                "squared error": (x_hat - images.x).flatten(1).square().sum(1),
                "negative ELBO, nats": loss,
                "inputs with a certificate": (lower.radius > 0).double(),
                "certified": lower.radius,
                "attacked, free": free,
                "attacked, box": box,
                "certified / attacked, free": lower.radius / free,
                "certified / attacked, box": lower.radius / box,
                "certified above attacked": ((lower.radius > free) | (lower.radius > box)).double(),
            }

        values = run.part(name, compute, vae)
        rows += [measured(what, name, numbers) for what, numbers in values.items()]
        run.progress(name)
    return run.result(
        "The bundled models",
        "squared pixel units, nats, pixel units and ratios",
        rows,
        (
            f"All test digits for the errors, {spec.inputs} of them (balanced) for the margins; "
            f"r = {spec.r:g}, m = 0.5, centered, l2; attack: {spec.restarts} restarts x "
            f"{spec.steps} steps.",
        ),
    )


@final
@dataclass(frozen=True)
class NVAESpec:
    """How much is run.

    Attributes:
        data: To compare both on, 28 x 28 pixels.
        color: On which NVAE tiny is trained as well; empty leaves it out.
        train: Training images of the first set.
        epochs: Passes over them.
        test: Test images.
        color_train: Training images of the colored set.
        color_epochs: Passes over them.
        seeds: Runs of each model, at least 2.
    """

    data: str = "mnist"
    color: str = "cifar10"
    train: int = 1_920
    epochs: int = 5
    test: int = 1_000
    color_train: int = 384
    color_epochs: int = 5
    seeds: int = 3


@item(
    "own/nvae-tiny",
    "Vahdat & Kautz, 2020; [Kuzina22] Table 6",
    sizes={"smoke": NVAESpec("digits", "", 64, 1, 20, 0, 0, 2), "laptop": NVAESpec()},
)
def nvae_tiny(spec: NVAESpec, run: Run) -> Result:
    """NVAE tiny beside a convolutional VAE at equal epochs, and its loss on colored images."""
    train, test = run.images(spec.data, "train"), run.images(spec.data)
    part, tests = _balanced(train, spec.train, "train"), _balanced(test, spec.test, "test")
    small = train.image_shape[-1] < 28
    kinds: dict[str, dict[str, Any]] = {
        TINY: {"name": "nvae", "preset": "tiny", "image_shape": train.image_shape},
        CONV: {"name": "vae", "architecture": "conv8" if small else "conv28", "latent": 64},
    }
    rows, ends = list[Row](), dict[str, list[float]]()

    def trained(model: str, options: dict[str, Any], images: Images, epochs: int, seed: int) -> VAE:
        folder = f"nvae-tiny/{images.name}-{model.replace(' ', '-').lower()}-{epochs}-{seed}"
        settings: dict[str, Any] = {"batch_size": BATCH, "lr": LR, "clip": CLIP}
        vae = run.train(folder, options, ELBO(), images, epochs=epochs, seed=seed, **settings)
        losses = run.losses(folder)
        for epoch, loss in enumerate(losses, 1):
            section = f"Training loss: {images.name}"
            rows.append(Row(f"{model}, seed {seed}", f"epoch {epoch}", loss, section=section))
        return vae

    for seed in run.each(range(spec.seeds)):
        for model, options in run.each(kinds.items()):
            vae = trained(model, options, part, spec.epochs, seed)
            elbos = _elbos(vae, tests)
            ends.setdefault(model, []).append(sum(elbos) / len(elbos))
            rows.append(measured(model, f"seed {seed}", elbos, section="Test ELBO, nats"))
            run.progress(f"{model}, seed {seed}: {rows[-1].cell}")
    for name, values in {
        **ends,
        f"{TINY} minus {CONV}": [a - b for a, b in zip(ends[TINY], ends[CONV], strict=True)],
    }.items():
        mean, half = interval(values)
        more: dict[str, Any] = {"section": "Test ELBO, nats", "text": f"{mean:.2f} ± {half:.2f}"}
        rows.append(Row(name, "mean, 95 % interval", mean, half / 1.96, len(values), **more))
    if spec.color:
        color, judge = run.images(spec.color, "train"), run.images(spec.color)
        gaussian = {"image_shape": color.image_shape, "likelihood": "gaussian", "scale": 0.1}
        few = _balanced(color, spec.color_train, "train")
        vae = trained(TINY, kinds[TINY] | gaussian, few, spec.color_epochs, 0)
        elbos = _elbos(vae, _balanced(judge, min(spec.test, 500), "test"))
        rows.append(measured(f"{TINY}, {spec.color}", "seed 0", elbos, section="Test ELBO, nats"))
    return run.result(
        f"NVAE tiny: {spec.data}",
        "nats",
        rows,
        (
            f"Both trained with the plain ELBO (Bernoulli) on the same {spec.train:,} images for "
            f"{spec.epochs} epochs, Adam at {LR:g}, batch {BATCH}. ELBO of the same {spec.test:,} "
            "test images, one draw each: ± one standard error over the images for a run, ± half a "
            "95 % interval over the runs (Student's t) for their mean.",
        ),
    )


def _balanced(images: Images, n: int, purpose: str) -> Images:
    noise = shard_generator(0, 0, purpose)
    return images[images.choose(n, stratified=True, generator=noise)]


def _elbos(vae: VAE, images: Images) -> list[float]:
    """The ELBO of each image by one draw, in nats."""
    generator, objective = shard_generator(0, 0, "test"), ELBO()
    with torch.no_grad():
        parts = [-objective(vae, part, generator=generator) for part in images.x.split(ROWS)]
    return [round(value, 3) for value in torch.cat(parts).tolist()]
