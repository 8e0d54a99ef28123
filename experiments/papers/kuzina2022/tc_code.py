"""[Kuzina22] Table 7, beta-TCVAEs: the estimate of the aggregate posterior in the authors' code.

`tc_vae.py` has the density of draw i under posterior j at [i, j] and sums over i. A sum over the
posteriors j, as in minibatch-weighted sampling, estimates log q(z_i); one over the draws says how
much of the batch lies under one posterior. Stored models are trained on by both.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import ERROR, errors_and_losses
from experiments.papers.kuzina2022.length import source_of
from robustvae.errors import UnsupportedError
from robustvae.models import VAE, Gaussian
from robustvae.objectives import create
from robustvae.objectives.base import Objective
from robustvae.seeding import draw
from robustvae.training import Recipe


@final
@dataclass(frozen=True)
class TotalCorrelationOfCode:
    """The loss of the authors' `tc_vae.py`, whose mean over a batch is theirs; one layer only.

    Args:
        beta: Weight of the total correlation.
    """

    beta: float

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The loss of each image, (B,)."""
        return self.terms(vae, x, generator=generator)["loss"]

    def terms(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss and its parts, (B,) each."""
        q, prior = vae.encode(x), vae.prior()
        if not isinstance(q, Gaussian):
            raise UnsupportedError(
                f"the total correlation of their code wants a Gaussian posterior, got {type(q)}"
            )
        z = draw(q, generator=generator)
        distortion = -vae.decode(z).log_prob(x).flatten(1).sum(1)
        joint, product = summed_over_draws(z, q)
        index_code = q.log_prob(z).sum(1) - joint
        total_correlation = joint - product
        dimension_kl = product - prior.log_prob(z).sum(1)
        return {
            "loss": distortion + index_code + self.beta * total_correlation + dimension_kl,
            "distortion": distortion,
            "index_code": index_code,
            "total_correlation": total_correlation,
            "dimension_kl": dimension_kl,
        }

    def at(self, step: int) -> Self:
        """The objective at a step: always the same."""
        return self


def summed_over_draws(z: Tensor, posteriors: Gaussian) -> tuple[Tensor, Tensor]:
    """Joint and product of the coordinates as the code has them, at each posterior.

    Args:
        z: Latents, row i drawn from posterior i, (M, d).
        posteriors: Of the batch, (M, d).

    Returns:
        Nats, (M,) each.
    """
    pairs = Gaussian(posteriors.mean[None], posteriors.stddev[None]).log_prob(z[:, None])
    size = math.log(len(z))
    return pairs.sum(2).logsumexp(0) - size, (pairs.logsumexp(0) - size).sum(1)


@final
@dataclass(frozen=True)
class Spec:
    """What is trained on and measured.

    Attributes:
        models: Trained by `total-correlation`: recipes, or folders of their names.
        train: Training images; 0 is all.
        lr: Learning rate.
        inputs: Test images.
        draws: Of the code, for each.
    """

    models: tuple[str, ...] = ("mnist-conv28-tc-10",)
    train: int = 0
    lr: float = 2e-4
    inputs: int = 2000
    draws: int = 2


@item(
    "kuzina2022/tc-code",
    "[Kuzina22] Table 7, beta-TCVAE",
    sizes={"smoke": Spec(("digits-vae",), 128, 1e-3, 20, 1), "laptop": Spec()},
)
def tc_code(spec: Spec, run: Run) -> Result:
    """Error and ELBO of stored TC-VAEs after an epoch by our estimate and by their code's."""
    rows = list[Row]()
    for path in run.each(spec.models):
        name = Path(path).name
        recipe = Recipe.read(name)
        beta = float(recipe.objective.options.get("beta", 1.0))
        train, test = run.images(recipe.data.name, "train"), run.images(recipe.data.name)
        options = {"beta": beta, "size": len(train)}
        ours = create("total-correlation", **options)
        objectives: dict[str, Objective] = {"ours": ours, "theirs": TotalCorrelationOfCode(beta)}
        x = test.sample(min(spec.inputs, len(test)), generator=run.noise("inputs"))[0]
        values = {"before": _measured(run.model(path), x, "before", name, spec, run)}
        for kind, objective in objectives.items():
            vae = run.train(
                f"tc-code/{name}-{kind}-{spec.train}-{run.seed}",
                rv.load(path),
                objective,
                train[: spec.train] if spec.train else train,
                epochs=1,
                batch_size=128,
                lr=spec.lr,
                precision="bf16-mixed",
            )
            values[kind] = _measured(vae, x, kind, name, spec, run)
        for measure in values["ours"]:
            rows += [
                measured(name, kind, values[kind][measure], section=measure) for kind in values
            ]
            pairs = zip(values["ours"][measure], values["theirs"][measure], strict=True)
            what = "squared" if measure == ERROR else "nll"
            source = source_of(name, what)
            change = [theirs - ours for ours, theirs in pairs]
            rows.append(measured(name, "change", change, section=measure, source=source))
        run.progress(f"{name}: {rows[-1].cell}")
    order = list(dict.fromkeys(row.section for row in rows))
    return run.result(
        "How the total correlation of a batch is estimated",
        "squared gray levels a pixel, nats",
        sorted(rows, key=lambda row: order.index(row.section)),
        (
            f"One more epoch of {spec.train or 'all'} training images at learning rate "
            f"{spec.lr:g}, from the same weights, by minibatch-weighted sampling (ours) and by the "
            "sum over the draws of the authors' code (theirs); change: theirs less ours, image by "
            f"image, {spec.inputs:,} test images.",
        ),
    )


def _measured(
    vae: VAE, x: Tensor, kind: str, name: str, spec: Spec, run: Run
) -> dict[str, list[float]]:
    compute = functools.partial(errors_and_losses, vae, x, spec.draws, run.noise("draws"))
    values: dict[str, list[float]] = run.part(f"{name}, {kind}", compute, vae)
    return values
