"""[Kuzina22]: what the floor of 1e-5 that the authors' code gives probabilities does to training.

Behind HMC the floor decides (`kuzina2022/strength defenses=rules`). Their training has it too. A
model is trained alike with and without it where the two gradients are alike, batch by batch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import FLOOR
from robustvae.defenses import posterior
from robustvae.models import VAE
from robustvae.seeding import draw


@final
@dataclass(frozen=True)
class Spec:
    """What is compared.

    Attributes:
        models: Trained with a Bernoulli likelihood, without a floor.
        data: The data set of each.
        batches: Of training images, over which means and errors are taken.
        size: Of a batch; the paper: 128.
    """

    models: tuple[str, ...] = ("mnist-conv28", "fashion-conv28")
    data: tuple[str, ...] = ("mnist", "fashion_mnist")
    batches: int = 8
    size: int = 128


@item(
    "kuzina2022/floor",
    "[Kuzina22] section 4.2 and the published code",
    sizes={"smoke": Spec(("digits-vae",), ("digits",), 2, 16), "laptop": Spec()},
)
def floor(spec: Spec, run: Run) -> Result:
    """Loss and gradient of training by the exact likelihood and by the one with a floor."""
    rows = list[Row]()
    for name, data in run.each(zip(spec.models, spec.data, strict=True)):
        vae = copy.deepcopy(run.model(name)).requires_grad_(True)
        train = run.images(data, "train")
        count = min(spec.batches * spec.size, len(train))
        x = train.sample(count, generator=run.noise("train"))[0].to(vae.dtype)
        parts = [
            _compared(vae, part, run.noise(f"{i}")) for i, part in enumerate(x.split(spec.size))
        ]
        for setting in parts[0]:
            rows.append(measured(name, setting, [part[setting] for part in parts]))
        run.progress(f"{name}: {rows[-1].cell}")
    return run.result(
        "Training with a floor under the probabilities",
        "shares of the pixels, nats an image, and a share of the exact gradient's norm",
        rows,
        (
            f"Probabilities cut to [{FLOOR:g}, 1 - {FLOOR:g}], as in the authors' code; "
            f"{spec.batches} batches of {spec.size} training images, one draw of the code each.",
            "Models trained by the exact likelihood: what the next step would be by either. How "
            "the steps of a whole training add up is not measured.",
        ),
    )


def _compared(vae: VAE, x: Tensor, generator: torch.Generator) -> dict[str, float]:
    q = vae.encode(x)
    z = draw(q, generator=generator)
    entropy = -q.log_prob(z).sum(1)
    losses = [-(posterior(vae, x, floor=at)(z) + entropy).mean() for at in (None, FLOOR)]
    exact, cut = (
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(loss, list(vae.parameters()), retain_graph=True)
            ]
        )
        for loss in losses
    )
    with torch.no_grad():
        p = vae.decode(z).mean
        beyond = (p < FLOOR) | (p > 1 - FLOOR)
    return {
        "pixels beyond the floor": float(beyond.double().mean()),
        "loss, exact less cut": float((losses[0] - losses[1]).detach()),
        "difference of the gradients": float((exact - cut).norm() / exact.norm()),
    }
