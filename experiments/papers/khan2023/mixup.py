"""[Khan23] Fig. 6 with mixup as printed (Eq. 9-10) and as the authors' code has it.

Their code (trainer.py, commit b392100) mixes codes and images with different partners and one
weight each for the whole batch, mixes drawn codes instead of means, squares the norms, sums them
over the batch, and adds the KL of the mixed image's posterior, not weighted by beta.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Self, final

import torch
from torch import Tensor
from torch.distributions import Beta

from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.khan2023.geometry import BATCH, LEARNING_RATE, network
from experiments.papers.khan2023.released import measure
from robustvae.metrics import kl_to_standard_normal
from robustvae.models import VAE
from robustvae.objectives import ELBO, Mixup
from robustvae.objectives.base import Objective
from robustvae.seeding import draw


@final
@dataclass(frozen=True)
class MixupOfCode:
    """The published trainer's loss: see the module. The mean over a batch is theirs over its size.

    Args:
        base: What the penalty is added to.
        concentration: Of the Beta distribution.
    """

    base: ELBO = field(default_factory=ELBO)
    concentration: float = 0.5

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The loss of each image, (B,)."""
        return self.terms(vae, x, generator=generator)["loss"]

    def terms(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
        """The base's terms, both squared distances and the KL, (B,)."""
        terms = self.base.terms(vae, x, generator=generator)
        z = draw(vae.encode(x), generator=generator)
        x_mixed, z_mixed = (self._mixed(values, generator) for values in (x, z))
        q_mixed = vae.encode(x_mixed)
        z_of_mixed = draw(q_mixed, generator=generator)
        penalties = {
            "mixup_kl": kl_to_standard_normal(q_mixed.mean, q_mixed.stddev),
            "mixup_decoder": (vae.decode(z_mixed).mean - x_mixed).flatten(1).square().sum(1),
            "mixup_encoder": (z_mixed - z_of_mixed).square().sum(1),
        }
        loss = terms["loss"] + torch.stack(list(penalties.values())).sum(0)
        return {**terms, **penalties, "loss": loss}

    def _mixed(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """A mixture of each row with another, by one weight for all: new ones at each call."""
        order = torch.randperm(len(values), generator=generator).to(values.device)
        both = values.new_full((1,), self.concentration)
        a = draw(Beta(both, both), generator=generator)
        return a * values + (1 - a) * values[order]

    def at(self, step: int) -> Self:
        """The objective at a step: always the same."""
        return self


OBJECTIVES: dict[str, Objective] = {
    "none": ELBO(),
    "mixup as printed": Mixup(),
    "squared norms (`squared=True`)": Mixup(squared=True),
    "mixup of their code": MixupOfCode(),
}


@final
@dataclass(frozen=True)
class Spec:
    """What is trained and measured.

    Attributes:
        data: To train on and measure at.
        epochs: Passes over the training images; theirs: 100.
        train: Training images.
        hidden: Widths of the encoder.
        latent: d.
        images: Test images.
    """

    data: str = "mnist"
    epochs: int = 3
    train: int = 20_000
    hidden: tuple[int, ...] = (256, 256, 512)
    latent: int = 32
    images: int = 100


@item(
    "khan2023/mixup",
    "[Khan23] Fig. 6, Eq. 9 and 10",
    sizes={
        "smoke": Spec("digits", 1, 128, (16,), 3, 10),
        "laptop": Spec(),
        "full": Spec(epochs=100, train=60_000, images=3_072),
    },
)
def mixup(spec: Spec, run: Run) -> Result:
    """Spectral radius and entropy at beta = 1 without mixup, with it as printed and as coded."""
    train, test = run.images(spec.data, "train"), run.images(spec.data)
    x, _ = test.sample(spec.images, stratified=True, generator=run.noise("data"))
    options = network(spec.latent, spec.hidden, train.image_shape)
    settings: dict[str, Any] = {"batch_size": BATCH, "lr": LEARNING_RATE, "epochs": spec.epochs}
    rows, plain = list[Row](), dict[str, list[float]]()
    for number, (name, objective) in run.each(enumerate(OBJECTIVES.items())):
        label = f"mixup/{spec.data}-{number}-{spec.epochs}-{spec.train}-{run.seed}"
        vae = run.train(label, options, objective, train[: spec.train], **settings)
        values = run.part(name, functools.partial(measure, vae, x), vae)
        plain = plain or values
        for key, numbers in values.items():
            change = [b - a for a, b in zip(plain[key], numbers, strict=True)]
            rows.append(measured(name, key, numbers))
            if number:
                rows.append(measured(name, f"{key}, change", change))
        run.progress(f"{name}: {rows[-2].cell}")
    return run.result(
        "Mixup as printed and as the authors' code has it",
        "pixel units and nats",
        rows,
        (
            f"beta = 1, {spec.epochs} epochs of {spec.train:,} images (theirs: 100 of 60,000), one "
            f"seed, Gaussian likelihood of variance 1/2, {spec.images} test images; changes are "
            "taken image by image.",
            "The paper says that mixup lowers the spectral radius and makes the spectrum more "
            "isotropic, which its code's entropy counts as lower.",
            "Their code: other partners and another weight for codes than for images, one weight a "
            "batch, drawn codes, squared norms, the KL of the mixed image added.",
        ),
    )
