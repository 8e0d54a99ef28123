"""The tangent envelope by effort: what its search costs, and what less or more of it proves."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch

import robustvae as rv
from experiments.bench.timing import seconds
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from robustvae.certificates import multipliers as search
from robustvae.certificates import tangent_reach
from robustvae.certificates.methods import lipschitz


@final
@dataclass(frozen=True)
class Spec:
    """What is timed.

    Attributes:
        model: A Lipschitz-VAE.
        data: Its data set.
        dtype: Of the model.
        r: Of the certificates.
        inputs: Certified.
        steps: Of the search for the multipliers; a row of the table each.
        near: Logits nearest to 0 whose moves are looked at.
        tried: Moves of each.
        look: Steps between looks at all moves.
        farthest: Reaches are cut off at so many times the free envelope's.
    """

    model: str = "mnist-lipschitz-10"
    data: str = "mnist"
    dtype: str = "float64"
    r: float = 8.0
    inputs: int = 64
    steps: tuple[int, ...] = (0, 5, 10, 20, 40, 100, 300)
    near: int = 256
    tried: int = 18
    look: int = 5
    farthest: float = 1.8


@item(
    "bench/tangent",
    sizes={
        "smoke": Spec("digits-lipschitz-vae", "digits", r=1.0, inputs=2, steps=(2,)),
        "laptop": Spec(),
    },
)
def tangent(spec: Spec, run: Run) -> Result:
    """Certified radii and milliseconds an input by the steps of the search, centered, m = 1/2."""
    vae = run.model(spec.model).to(getattr(torch, spec.dtype))
    x, _ = run.images(spec.data).sample(
        spec.inputs, stratified=True, generator=rv.generator(run.seed)
    )
    x, rows = x.to(vae.dtype), list[Row]()
    question = rv.Question(r=spec.r, displacement="centered", box=False)

    def certify(*methods: str) -> rv.Certificate:
        ask: dict[str, Any] = {"question": question, "methods": list(methods)}
        return rv.certify(vae, x, generator=rv.generator(0), **ask)

    certify("envelope")  # imports and tables
    free = certify("envelope").radius
    rows.append(measured("envelope", "radius", free))
    spent = seconds(lambda: certify("envelope"), time.process_time)
    rows.append(Row("envelope", "ms an input", 1e3 * spent / len(x), n=len(x)))
    for steps in run.each(spec.steps):
        with _effort(spec, steps):
            radius = certify("tangent").radius
            spent = seconds(lambda: certify("tangent"), time.process_time)
        name = f"{steps} steps"
        rows.append(measured(name, "radius", radius))
        rows.append(Row(name, "ms an input", 1e3 * spent / len(x), n=len(x)))
        run.progress(f"{name}: {float(radius.mean()):.4f}")
    return run.result(
        "The tangent envelope by effort",
        "pixel units, and processor seconds of one thread",
        rows,
        (
            f"r = {spec.r:g}, m = 0.5, centered, {spec.dtype}; looks at {spec.near} logits and "
            f"{spec.tried} moves of each, every {spec.look} steps; each time is of all that "
            "certify does.",
        ),
    )


@contextlib.contextmanager
def _effort(spec: Spec, steps: int) -> Iterator[None]:
    """Within: the search has this effort in place of its own."""
    efforts: list[tuple[Any, str, Any]] = [
        (search, "_NEAR", spec.near),
        (search, "_TRIED", spec.tried),
        (search, "_LOOK", spec.look),
        (lipschitz, "_FARTHEST", spec.farthest),
        (lipschitz, "tangent_reach", functools.partial(tangent_reach, steps=steps)),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in efforts]
    try:
        for owner, name, value in efforts:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
