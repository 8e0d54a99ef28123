"""Sampled reach of a Lipschitz-VAE for the paired displacement, in float64 and in float32."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Run, item
from experiments.harness.rows import Row, measured


@final
@dataclass(frozen=True)
class Spec:
    """What is measured.

    Attributes:
        model: A Lipschitz-VAE with a fixed spread.
        data: Its data set.
        inputs: Test images, balanced over the classes.
        r: Tolerated distance of the outputs.
        displacement: Of the certificate.
        dtypes: In which the model runs.
        draws: Pairs of each input.
        steps: Gradient steps of each tangent envelope.
    """

    model: str = "mnist-lipschitz-10"
    data: str = "mnist"
    inputs: int = 40
    r: float = 8.0
    displacement: str = "paired"
    dtypes: tuple[str, ...] = ("float64", "float32")
    draws: int = 128
    steps: int = 100


@item(
    "own/sampled-reach",
    sizes={
        "smoke": Spec("digits-lipschitz-vae", "digits", 2, 1.0, draws=16, steps=5),
        "laptop": Spec(),
    },
)
def sampled_reach(spec: Spec, run: Run) -> Result:
    """Radii by sampled reach beside those by the noncentral chi-square."""
    x, _ = run.images(spec.data).sample(
        spec.inputs, stratified=True, generator=rv.generator(run.seed)
    )
    rows, values = list[Row](), dict[str, Any]()
    for dtype in run.each(spec.dtypes):
        vae = run.model(spec.model).to(getattr(torch, dtype))
        work = functools.partial(_certified, vae, x.to(vae.dtype), spec, run.seed)
        values[dtype] = run.part(f"{dtype}", work, vae)
        rows += [measured(w, "mean", n, section=dtype) for w, n in values[dtype].items()]
        run.progress(f"{dtype}: {rows[-4].measured}")
    return run.result(
        f"Sampled reach: {spec.model}, {spec.displacement}",
        "pixel units and seconds",
        rows,
        (
            f"{spec.inputs} test images (balanced), m = 0.5, r = {spec.r:g}, {spec.draws} pairs of "
            f"draws, {spec.steps} steps, confidence 0.999 for each image.",
        ),
        values,
    )


def _certified(vae: rv.VAE, x: Tensor, spec: Spec, seed: int) -> dict[str, Any]:
    question = rv.Question(r=spec.r, displacement=spec.displacement, box=False)

    def ask(methods: list[str]) -> rv.Certificate:
        return rv.certify(
            vae, x, question=question, methods=methods, generator=rv.generator(seed + 1)
        )

    start = time.process_time()
    lower = ask([f"sampled_reach:draws={spec.draws},steps={spec.steps}"])
    spent = time.process_time() - start
    assert lower.simultaneous is not None
    return {
        "sampled reach": lower.radius,
        "the same, all inputs together": lower.simultaneous,
        "noncentral chi-square": ask(["noncentral"]).radius,
        "seconds an input": [spent / len(x)],
    }
