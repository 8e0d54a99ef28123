"""[Kuzina22] Table 7: a plain model trained on by other objectives for a share of an epoch.

An epoch of ColorMNIST is 420,000 images and six minutes of a core, the paper's training 300 of
them. Here the weights of the plain model are trained on by the objective of a recipe on every so
many images, in two halves, so that one sees where the numbers go.
"""

from __future__ import annotations

import copy
import functools
import math
import re
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import ERROR, LOSS, errors_and_losses
from experiments.papers.kuzina2022.printed import value_of
from robustvae.evaluation import negative_log_likelihood
from robustvae.metrics import mean_stderr
from robustvae.models import VAE
from robustvae.objectives import create
from robustvae.training import Recipe

LIKELIHOOD = "-log p(x)"
IMPORTANCE_DRAWS = 1000  # [Kuzina22] appendix D.1


@final
@dataclass(frozen=True)
class Spec:
    """What is trained on and measured.

    Attributes:
        models: Recipes, whose objectives are taken.
        start: The plain model that each goes on from.
        data: To train on and measure at.
        every: A half of the training sees one image in so many; no multiple of 7 on ColorMNIST,
            where neighbors are the colors of one digit.
        lr: Learning rate of the first half; of the second, a fifth of it.
        inputs: Test images.
        few: Of them, how many by importance sampling; the ELBO carries it over to the others.
        draws: Importance draws.
    """

    models: tuple[str, ...] = ("color-mnist-conv28-beta-2", "color-mnist-conv28-tc-2")
    start: str = "runs/color-mnist-conv28-1"
    data: str = "color_mnist"
    every: int = 16
    lr: float = 5e-4
    inputs: int = 2000
    few: int = 50
    draws: int = IMPORTANCE_DRAWS


@item(
    "kuzina2022/short",
    "[Kuzina22] Table 7",
    sizes={
        "smoke": Spec(start="digits-vae", data="digits", inputs=20, few=2, draws=10),
        "laptop": Spec(),
        "full": Spec(every=2, inputs=10_000, few=1000),
    },
)
def short(spec: Spec, run: Run) -> Result:
    """Likelihood and error of models trained on from a plain one for a share of an epoch."""
    train, test = run.images(spec.data, "train"), run.images(spec.data)
    x = test.sample(min(spec.inputs, len(test)), generator=run.noise("inputs"))[0]
    rows = list[Row]()
    for name in run.each(("plain", *spec.models)):
        if name == "plain":
            vaes = [run.model(spec.start)]
        else:
            recipe = Recipe.read(name)
            objective = create(recipe.objective.name, **recipe.objective.options)
            vaes, vae = [], rv.load(spec.start)
            for half, lr in enumerate((spec.lr, spec.lr / 5)):
                vae = run.train(
                    f"short/{spec.every}-{run.seed}-{'ab'[half]}/{name}",
                    vae,
                    objective,
                    train[half * (spec.every // 2) :: spec.every],
                    epochs=1,
                    batch_size=128,
                    lr=lr,
                    precision="bf16-mixed",
                )
                vaes.append(copy.deepcopy(vae))  # training goes on in place
        parts = [
            run.part(
                f"{name}, {n}", functools.partial(_measure, vae, x, spec, run, vae is vaes[-1]), vae
            )
            for n, vae in enumerate(vaes)
        ]
        after = parts[-1]
        for measure in (ERROR, LOSS):
            source = source_of(name, measure)
            rows.append(measured(name, "after", after[measure], section=measure, **_cell(source)))
            if len(parts) > 1:
                before = parts[0][measure]
                change = [b - a for a, b in zip(before, after[measure], strict=True)]
                rows += [
                    measured(name, "half way", before, section=measure),
                    measured(name, "change", change, section=measure, source=source),
                ]
        mean, error = after[LIKELIHOOD]
        more: dict[str, Any] = _cell(source_of(name, LIKELIHOOD))
        rows.append(Row(name, "after", mean, error, len(x), section=LIKELIHOOD, **more))
        run.progress(f"{name}: {rows[-1].cell}")
    order = {measure: number for number, measure in enumerate((ERROR, LOSS, LIKELIHOOD))}
    share = 2 / spec.every
    return run.result(
        "Models trained on from a plain one for a share of an epoch",
        "squared gray levels a pixel, nats",
        sorted(rows, key=lambda row: order[row.section]),
        (
            f"Each from the weights of {spec.start}, by its own objective: one image in "
            f"{spec.every} at learning rate {spec.lr:g} (half way), then as many others at a fifth "
            f"of it (after); together {share:.3g} of an epoch.",
            f"{len(x):,} test images, the same draws before and after: the change is taken image "
            f"by image. -log p(x): minus the ELBO of all of them less its gap to importance "
            f"sampling of {spec.draws:,} draws on {min(spec.few, len(x))}.",
        ),
        training=f"1 + 1/{round(1 / share)} epochs of 420,000 images",
    )


def source_of(name: str, measure: str) -> str | None:
    """The printed cell of a color model's number, None where there is none.

    Examples:
        >>> from experiments.papers.kuzina2022.short import source_of
        >>> source_of("color-mnist-conv28-tc-5", "-log p(x)")
        'kuzina2022/table-7/tc-5/color/nll'
    """
    kind = re.fullmatch(r"color-mnist-conv28-((?:beta|tc)-\d+)", name)
    column = "mse" if measure == ERROR else "nll"
    return f"kuzina2022/table-7/{kind[1]}/color/{column}" if kind else None


def _cell(source: str | None) -> dict[str, Any]:
    return {} if source is None else {"source": source, "reported": value_of(source)[0]}


def _measure(vae: VAE, x: Tensor, spec: Spec, run: Run, is_last: bool) -> dict[str, list[float]]:
    values = errors_and_losses(vae, x, 1, run.noise("draws"))
    if not is_last:
        return values
    few = x[: spec.few].to(vae.dtype)
    exact = negative_log_likelihood(vae, few, draws=spec.draws, generator=run.noise("importance"))
    loss, error = mean_stderr(values[LOSS])
    gaps = torch.tensor(values[LOSS][: spec.few], dtype=torch.float64) - exact
    gap, gap_error = mean_stderr(gaps.tolist())
    return values | {LIKELIHOOD: [loss - gap, math.hypot(error, gap_error)]}
