"""`fit` against a bare PyTorch loop of the same model: conv28, batch 128.

The bare side calls the networks directly: draw, binary cross-entropy with logits, closed-form KL,
Adam, nothing else. `fit` adds the objective's terms, the guard on every gradient, the log's sums
and its own start. Each side makes `steps` optimization steps from the same weights.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any, final

import torch
from torch.nn import functional

import robustvae as rv
from experiments.bench.timing import interleaved, ratio, timed_rows
from experiments.harness import Result, Row, Run, item
from robustvae.data import Images


@final
@dataclass(frozen=True)
class Spec:
    """What is timed.

    Attributes:
        data: 28 x 28 pixels; empty takes noise, which costs the same.
        steps: Optimization steps of each side in each round.
        rounds: Of the sides in turn.
        batch: Images a step.
    """

    data: str = "mnist"
    steps: int = 20
    rounds: int = 11
    batch: int = 128


def _model() -> Any:
    return rv.models.create("vae", architecture="conv28", latent=64)


def _bare(images: Images, batch: int) -> None:
    vae = _model()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    for rows in torch.randperm(len(images.x), generator=generator).split(batch):
        x = images.x[rows]
        features = vae.trunk(x)
        mean, log_var = vae.mean_head(features), vae.log_var_head(features)
        z = mean + torch.exp(0.5 * log_var) * torch.randn(mean.shape, generator=generator)
        distortion = functional.binary_cross_entropy_with_logits(vae.decoder(z), x, reduction="sum")
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()
        optimizer.zero_grad()
        ((distortion + kl) / len(x)).backward()
        optimizer.step()


def _fitted(images: Images, batch: int, out: str | None = None) -> None:
    rv.fit(
        _model(),
        rv.objectives.ELBO(),
        images,
        epochs=1,
        generator=rv.generator(0),
        batch_size=batch,
        validation=None,
        out=out,
        progress=False,
    )


@item("bench/training", sizes={"smoke": Spec("", 1, 1, 4), "laptop": Spec()})
def training(spec: Spec, run: Run) -> Result:
    """A training step of `fit` by that of a bare loop, and what an epoch's checkpoint takes."""
    count = spec.steps * spec.batch
    if spec.data:
        images = run.images(spec.data, "train")[:count]
    else:
        noise = torch.rand(count, 1, 28, 28, generator=rv.generator(run.seed))
        images = Images(noise, torch.zeros(count, dtype=torch.int64), name="noise")
    if images.x.dtype != torch.get_default_dtype():
        images = Images(images.x.to(torch.get_default_dtype()), images.y, name=images.name)
    _bare(images, spec.batch)
    _fitted(images, spec.batch)
    times = interleaved(
        {
            "bare loop": lambda: _bare(images, spec.batch),
            "fit": lambda: _fitted(images, spec.batch),
        },
        spec.rounds,
    )
    first, places = images[: spec.batch], iter(range(spec.rounds))
    with tempfile.TemporaryDirectory() as folder:
        stored = interleaved(
            {
                "one batch, stored": lambda: _fitted(first, spec.batch, f"{folder}/{next(places)}"),
                "one batch": lambda: _fitted(first, spec.batch),
            },
            spec.rounds,
        )
    rows = timed_rows(times, per=spec.steps) + timed_rows(stored)
    rows.append(Row("fit", "times the bare loop", ratio(times, "fit", "bare loop")))
    return run.result(
        "A training step by a bare loop's",
        "milliseconds a step, and ratios",
        rows,
        (
            f"conv28, batch {spec.batch}, {spec.steps} steps in each of {spec.rounds} rounds; the "
            "last two lines are one batch with and without checkpoint, state and log.",
        ),
        {"seconds": times},
    )
