"""What certificates cost: default `certify` by input, and smoothing against bare forward passes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import final

import torch

import robustvae as rv
from experiments.bench.timing import seconds
from experiments.harness import Result, Row, Run, item
from robustvae.models.base import frozen
from robustvae.models.layout import channels_last


@final
@dataclass(frozen=True)
class Spec:
    """What is timed.

    Attributes:
        lipschitz: A Lipschitz-VAE, whose default certificates are timed.
        smooth: A model behind noise.
        data: Their data set.
        r: Of the default certificates.
        inputs: Of the default certificates.
        stddev: Of the noise.
        smoothed: Inputs of smoothing.
        draws: Of each.
        rounds: The least time of so many counts.
    """

    lipschitz: str = "mnist-lipschitz-10"
    smooth: str = "mnist-conv28-noise-0.25"
    data: str = "mnist"
    r: float = 8.0
    inputs: int = 1000
    stddev: float = 0.25
    smoothed: int = 1
    draws: int = 10_000
    rounds: int = 3


@item(
    "bench/certify",
    sizes={
        "smoke": Spec(
            "digits-lipschitz-vae", "digits-vae-noise", "digits", 1.0, 2, 0.25, 1, 100, 1
        ),
        "laptop": Spec(),
    },
)
def certify(spec: Spec, run: Run) -> Result:
    """Milliseconds an input of default certificates; smoothing over the passes that it needs."""
    images = run.images(spec.data)
    x, _ = images.sample(spec.inputs, stratified=True, generator=rv.generator(run.seed))
    vae = run.model(spec.lipschitz)
    question = rv.Question(r=spec.r, displacement="centered", box=False)

    def default() -> None:
        rv.certify(vae, x, question=question, generator=rv.generator(0))

    rv.certify(vae, x[:2], question=question, generator=rv.generator(0))  # imports, tables
    each = min(seconds(default, time.process_time) for _ in range(spec.rounds)) / len(x)
    smooth = run.model(spec.smooth)
    victim = rv.Victim(smooth, rv.InputNoise(spec.stddev))
    y = x[: spec.smoothed]
    size = max(1, 2**18 // y[0].numel())

    def certified() -> None:
        rv.certify(
            victim, y, r=2.89, methods=["smoothing"], draws=spec.draws, generator=rv.generator(0)
        )

    def bare() -> None:
        # encode and decode as many rows in batches of the same size, nothing drawn or measured
        with frozen(smooth), channels_last(smooth), torch.no_grad():
            for image in y.split(1):
                for begin in range(0, spec.draws, size):
                    rows = image.expand(min(size, spec.draws - begin), *image.shape[1:])
                    smooth.decode(smooth.encode(rows).mean)

    certified()
    pairs = [
        (seconds(certified, time.process_time), seconds(bare, time.process_time))
        for _ in range(spec.rounds)
    ]
    with_draws, passes = (min(part) for part in zip(*pairs, strict=True))
    rows = [
        Row("default certify, ms an input", spec.lipschitz, 1e3 * each, n=len(x)),
        Row("smoothing, s an input", spec.smooth, with_draws / len(y), n=spec.draws),
        Row("bare passes, s an input", spec.smooth, passes / len(y), n=spec.draws),
        Row("smoothing, times its bare passes", spec.smooth, with_draws / passes, n=spec.rounds),
    ]
    return run.result(
        "What certificates cost",
        "processor seconds of one thread",
        rows,
        (f"Least of {spec.rounds} rounds; after one call that is not counted.",),
    )
