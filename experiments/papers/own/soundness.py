"""Trials that try to refute certificates: perturbations inside the radius, judged by draws."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any, final

import torch

from experiments.harness import Result, Row, Run, item
from robustvae.certificates.question import DISPLACEMENTS, Question
from robustvae.data import Images
from robustvae.defenses import Victim
from robustvae.models import VAE
from robustvae.robustness import clean_quantile
from robustvae.seeding import generator
from robustvae.testing.soundness import Trials, trials


@final
@dataclass(frozen=True)
class Spec:
    """What is tried.

    Attributes:
        model: What is certified.
        data: Its data set.
        r: l2 distance between outputs, in pixel units; 0 takes `rest`.
        rest: So many times the median, over 20 images, of the m-quantile without attack.
        m: Probability wanted.
        displacements: Of the certificates.
        methods: Of `certify`; empty takes those of its default.
        dtypes: Of the model.
        inputs: Certified in each round.
        count: Trials of each displacement and type.
        shard: Trials of one stored part.
        suite: Name of the attack suite.
    """

    model: str = "digits-lipschitz-vae"
    data: str = "digits"
    r: float = 1.0
    rest: float = 0.0
    m: float = 0.5
    displacements: tuple[str, ...] = DISPLACEMENTS
    methods: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32", "float64")
    inputs: int = 100
    count: int = 10_000
    shard: int = 2_000
    suite: str = "smoke"


@item(
    "own/soundness",
    sizes={
        "smoke": Spec(displacements=("centered",), dtypes=("float64",), inputs=2, count=200),
        "laptop": Spec(),
        "full": Spec(count=250_000, suite="standard"),
    },
)
def soundness(spec: Spec, run: Run) -> Result:
    """Trials that try to refute certificates; one failure refutes one."""
    images, rows = run.images(spec.data), list[Row]()
    for dtype in run.each(spec.dtypes):
        vae = run.model(spec.model).to(getattr(torch, dtype))
        for displacement in run.each(spec.displacements):
            r = spec.r
            if not r:
                x, _ = images.sample(20, stratified=True, generator=generator(run.seed))
                rest = clean_quantile(
                    Victim(vae),
                    x.to(vae.dtype),
                    spec.m,
                    displacement,  # type: ignore[arg-type]
                    generator=generator(run.seed),
                    draws=1000,
                )
                r = float(f"{spec.rest * float(torch.as_tensor(rest.value).median()):.4g}")
            case = f"{displacement}, {dtype}, r = {r:g}"
            question = Question(r=r, m=spec.m, displacement=displacement, box=False)
            total, shard = Trials(), 0
            while total.done < spec.count:
                count = min(spec.shard, spec.count - total.done)
                compute = functools.partial(
                    _shard, vae, images, question, spec, count, run.noise(case, shard)
                )
                part = Trials(**run.part(f"{case}, shard {shard}", compute, vae))
                total.add(part)
                shard += 1
                if not part.done:
                    break
            for setting, value in asdict(total).items():
                rows.append(Row(case, setting, value, n=total.done))
            run.progress(f"{case}: {total.done:,} trials, {total.violations} violations")
    return run.result(
        f"Trials of certificates: {spec.model}",
        "counts",
        rows,
        (
            "A trial is an input and a perturbation shorter than its certified radius; it fails "
            "when the Clopper-Pearson upper bound on P(||Delta|| <= r), at confidence 1 - 1e-8, "
            "is at most m.",
        ),
    )


def _shard(
    vae: VAE,
    images: Images,
    question: Question,
    spec: Spec,
    count: int,
    generator: torch.Generator,
) -> dict[str, int]:
    x, _ = images.sample(spec.inputs, stratified=True, generator=generator)
    more: dict[str, Any] = {"methods": spec.methods or None, "suite": spec.suite}
    return asdict(trials(vae, x.to(vae.dtype), question, count=count, generator=generator, **more))
