"""[Kuzina22] Table 7: what the length of training does to likelihood and error.

The stored models were trained for 20 or 30 epochs, the paper's for 300. Each goes on here for a few
epochs by its own objective; the same draws judge it before and after, so that the difference is
known far better than either number.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import (
    errors_and_losses,
    references,
    similarity,
    their_search,
)
from robustvae.attacks import LatentShift
from robustvae.defenses import Victim
from robustvae.models import VAE
from robustvae.models.base import frozen
from robustvae.objectives import create
from robustvae.training import Recipe

SETS = ("mnist", "fashion", "color-mnist")
PRINTED = {f"{data}-conv28": f"vae/{data.partition('-')[0]}" for data in SETS} | {
    f"{data}-conv28-{kind}-{n}": f"{kind}-{n}/{data.partition('-')[0]}"
    for data in SETS
    for kind in ("beta", "tc")
    for n in (2, 5, 10)
}
# the weights of tc-10, of Fashion-MNIST's and of all colored ones are not kept
STORED = (
    *("mnist-conv28", "fashion-conv28"),
    *(f"mnist-conv28-{kind}-{n}" for kind in ("beta", "tc") for n in (2, 5, 10)),
)[:-1]  # the last is tc-10


@final
@dataclass(frozen=True)
class Spec:
    """What is trained on and measured.

    Attributes:
        models: Stored models, or folders of their recipes' names.
        epochs: More of them; `rates` says by which steps the learning rate falls.
        lr: Learning rate.
        train: Training images; 0 is all.
        inputs: Test images.
        draws: Of the code, for each.
        images: References of the attack on the encoder.
    """

    models: tuple[str, ...] = STORED
    epochs: int = 2
    lr: float = 2e-4
    train: int = 0
    inputs: int = 2000
    draws: int = 4
    images: int = 100


@item(
    "kuzina2022/length",
    "[Kuzina22] Table 7 and Table 2",
    sizes={
        "smoke": Spec(("digits-vae",), 1, 2e-4, 64, 20, 1, 4),
        "laptop": Spec(),
        "full": Spec(epochs=270),
    },
)
def length(spec: Spec, run: Run) -> Result:
    """Error, ELBO and similarity of stored models before and after more epochs, draw by draw."""
    rows = list[Row]()
    for path in run.each(spec.models):
        name = Path(path).name
        recipe, vae = Recipe.read(name), run.model(path)
        data = recipe.data.name
        train, test = run.images(data, "train"), run.images(data)
        objective = create(recipe.objective.name, **recipe.objective.options)
        longer = run.train(
            f"length/{name}-{spec.epochs}-{spec.train}-{run.seed}",
            rv.load(path),
            objective,
            train[: spec.train] if spec.train else train,
            epochs=spec.epochs,
            batch_size=128,
            lr=rates(spec.lr, spec.epochs),
            precision="bf16-mixed",
        )
        x = test.sample(min(spec.inputs, len(test)), generator=run.noise("inputs"))[0]
        few = references(test[:1024], spec.images, run.seed)[0]
        both = [
            run.part(f"{name}, {n}", functools.partial(_measure, v, x, few, spec, run), v)
            for n, v in (("before", vae), ("after", longer))
        ]
        for setting in both[0]:
            before, after = (torch.tensor(part[setting], dtype=torch.float64) for part in both)
            source = source_of(name, setting)
            rows += [
                measured(name, "before", before, section=setting),
                measured(name, "after", after, section=setting),
                measured(name, "change", after - before, section=setting, source=source),
            ]
        run.progress(f"{name}: {rows[-1].cell}")
    return run.result(
        "What a few more epochs change",
        "squared gray levels a pixel, nats, MS-SSIM",
        rows,
        (
            f"{spec.epochs} more epochs at learning rate {spec.lr:g} that falls to a tenth of it, "
            f"by each model's own objective; {spec.inputs:,} test images, {spec.draws} draws of "
            "the code, the same before and after: the change is taken image by image.",
            f"MS-SSIM: {spec.images} references among the first 1,024 test images, undefended, "
            "under the authors' attack (50 steps of symmetric KL, l-infinity).",
        ),
    )


def rates(lr: float, epochs: int) -> list[tuple[int, float]]:
    """Learning rates from which epoch on: halved twice on the way, and a tenth at the end.

    Examples:
        >>> rates(1.0, 20)
        [(0, 1.0), (10, 0.5), (15, 0.25), (18, 0.1)]
        >>> rates(1.0, 2)
        [(0, 1.0), (1, 0.1)]
    """
    last = max(1, epochs - max(1, epochs // 10))
    between = {epochs // 2: lr / 2, 3 * epochs // 4: lr / 4}
    return [(0, lr), *((k, v) for k, v in between.items() if 0 < k < last), (last, lr / 10)]


def source_of(name: str, setting: str) -> str | None:
    """The printed cell that a change of one measure speaks of.

    Examples:
        >>> source_of("mnist-conv28-tc-2", "MS-SSIM, linf 0.1")
        'kuzina2022/table-2/mnist/tc/ms-ssim 0.1'
    """
    row, _, data = PRINTED.get(name, "").partition("/")
    if setting.startswith("MS-SSIM"):
        kind, _, beta = row.partition("-")
        radius = setting.rpartition(" ")[2]
        number = 3 if data == "color" else 2
        return (
            f"kuzina2022/table-{number}/{data}/{kind}/ms-ssim {radius}"
            if data and beta in ("", "2")
            else None
        )
    column = "mse" if setting.startswith("squared") else "nll"
    return f"kuzina2022/table-7/{row}/{data}/{column}" if data else None


def _measure(vae: VAE, x: Tensor, few: Tensor, spec: Spec, run: Run) -> dict[str, list[float]]:
    generator = run.noise("draws")
    values = errors_and_losses(vae, x, spec.draws, generator)
    few, victim = few.to(vae.dtype), Victim(vae)
    clean = victim.reconstruct(few, generator=generator)
    for radius in (0.1, 0.2):
        with frozen(vae):
            score = LatentShift("symmetric_kl").bind(victim, few, generator=generator)
            moved = their_search(score, few, radius, 50, run.noise(f"attack {radius:g}"))
        x_hat = victim.reconstruct(moved, generator=generator)
        values[f"MS-SSIM, linf {radius:g}"] = similarity(x_hat, clean).tolist()
    return values
