"""What an audit costs: CPU seconds beside a fixed amount of bare passes, and what was announced."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import final

import torch

import robustvae as rv
from experiments.bench.timing import seconds
from experiments.harness import Result, Row, Run, item
from robustvae.audit import read_plan
from robustvae.audit.budget import Costs
from robustvae.models.base import frozen
from robustvae.models.layout import channels_last

_GRADIENTS, _DRAWS = 100, 2000  # an input, of the floor
_BATCHES = (100, 250)  # rows of its gradients and of its draws


@final
@dataclass(frozen=True)
class Spec:
    """What is timed.

    Attributes:
        models: Audited models.
        data: Their data sets.
        inputs: Of each.
        plan: Of the audits.
        rounds: The least time of so many counts for the bare passes.
    """

    models: tuple[str, ...] = ("mnist-conv28", "fashion-conv28", "digits-vae")
    data: tuple[str, ...] = ("mnist", "fashion-mnist", "digits")
    inputs: tuple[int, ...] = (40, 10, 40)
    plan: str = "quick"
    rounds: int = 3


@item(
    "bench/audit-cost",
    sizes={
        "smoke": Spec(("digits-vae",), ("digits",), (2,), "smoke", 1),
        "laptop": Spec(),
    },
)
def audit_cost(spec: Spec, run: Run) -> Result:
    """CPU seconds of audits over those of bare passes, and announced over taken time."""
    rows: list[Row] = []
    for name, data, count in zip(spec.models, spec.data, spec.inputs, strict=True):
        vae, images = run.model(name), run.images(data)
        plan = read_plan({"base": spec.plan, "inputs": count})
        said = Costs({name: rv.Victim(vae)}, images).seconds(plan)
        begin = time.monotonic()
        taken = seconds(
            lambda: rv.audit(
                vae,  # noqa: B023
                images,  # noqa: B023
                plan=plan,  # noqa: B023
                seed=run.seed,
            ),
            time.process_time,
        )
        wall = time.monotonic() - begin
        floor = count * _floor(vae, images[:1].x, spec.rounds)
        setting = f"{name}, {count} inputs"
        rows += [
            Row("audit", "CPU seconds", taken, section=setting),
            Row("bare passes", "CPU seconds", floor, section=setting),
            Row("audit / bare passes", "CPU seconds", taken / floor, section=setting),
            Row("audit", "seconds", wall, section=setting),
            Row("announced", "seconds", said, section=setting),
            Row("announced / audit", "seconds", said / wall, section=setting),
        ]
    return run.result(
        "What an audit costs",
        "seconds; ratios",
        rows,
        (
            f"Plan {spec.plan}; bare passes: {_GRADIENTS} gradients through encoder and decoder in "
            f"batches of {_BATCHES[0]} and {_DRAWS:,} decodings in batches of {_BATCHES[1]} an "
            f"input, channels last, the least of {spec.rounds} counts. One thread.",
        ),
        {},
    )


def _floor(vae: rv.VAE, x: torch.Tensor, rounds: int) -> float:
    """CPU seconds of the bare passes for one input."""
    batch = x.expand(_BATCHES[0], *x.shape[1:]).contiguous()
    z = torch.zeros(_BATCHES[1], vae.latent)

    def gradient() -> None:
        y = batch.clone().requires_grad_()
        vae.decode(vae.encode(y).mean).mean.square().sum().backward()

    def decode() -> None:
        with torch.no_grad():
            vae.decode(z)

    with frozen(vae), channels_last(vae):
        slope, draw = (
            min(seconds(work, time.process_time) for _ in range(rounds + 1))
            for work in (gradient, decode)
        )
    return _GRADIENTS * slope / _BATCHES[0] + _DRAWS * draw / _BATCHES[1]
