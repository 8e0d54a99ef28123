"""What an attacker can do to an anomaly detector, and what smoothing certifies.

The profile "anomaly" on models of the zoo: for every model the undefended detector, and the one
that reads its input under noise of a fixed spread, with the l2 reconstruction error as score.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, final

import torch

from experiments.harness import Result, Row, Run, item
from robustvae.audit.profiles.anomaly import Anomaly
from robustvae.audit.profiles.base import UseContext
from robustvae.data import Images, joined
from robustvae.defenses import InputNoise, PosteriorMean, Victim
from robustvae.models import VAE
from robustvae.objectives import ELBO
from robustvae.perturb import Ball
from robustvae.records.parts import UseFacts
from robustvae.report.profiles.anomaly import certified, scores
from robustvae.report.profiles.detection import Interval, auroc


@final
@dataclass(frozen=True)
class Spec:
    """What is attacked, how hard, and with how many draws it is certified.

    Attributes:
        models: Model, spread of the noise of its smoothed detector, and draws of an input.
        normal: Data set of the normal inputs.
        anomalous: Data set of the anomalies; empty for held-out labels of `normal`.
        held_out: Labels of `normal` that are anomalies.
        inputs: Of each side.
        sizes: l2 sizes, attacked and certified.
        linf: Size of the attack in the maximum norm.
        steps: Of the gradient search.
        restarts: Of the gradient search.
        suite: Further gradient searches, by their specs.
        gradient_free: Candidates of the search without gradients.
        score: By which the detector decides, a name of the family "score".
        epochs: Above 0 each model is trained anew on the normal labels alone, as `held_out` needs:
            of the same kind, so many passes.
        train_noise: Spread of the noise of that; None for its detector's.
        train: Training images of that; 0 for all.
        beta: Of the objective of that.
    """

    models: tuple[tuple[str, float, int], ...] = (
        ("zoo/mnist-conv28-noise-0.5", 0.5, 2000),
        ("zoo/mnist-conv28", 0.1, 300),
        ("zoo/mnist-conv28-adversarial", 0.1, 300),
        ("zoo/mnist-conv28-noise-0.25", 0.25, 1000),
    )
    normal: str = "mnist"
    anomalous: str = "fashion_mnist"
    held_out: tuple[int, ...] = ()
    inputs: int = 200
    sizes: tuple[float, ...] = (0.5, 1.0, 2.0)
    linf: float = 0.1
    steps: int = 20
    restarts: int = 1
    suite: tuple[str, ...] = ()
    gradient_free: int = 10
    score: str = "anomaly-score"
    epochs: int = 0
    train_noise: float | None = None
    train: int = 0
    beta: float = 1.0


@item(
    "own/anomaly",
    "ours",
    sizes={
        "smoke": Spec(
            (("digits-vae-noise", 0.25, 300),), "digits", "", (4,), 6, (0.5, 1.0), 0.1, 3, 1, (), 5
        ),
        "laptop": Spec(),
        "full": Spec(steps=100, restarts=10, gradient_free=1000, inputs=1000),
    },
)
def anomaly(spec: Spec, run: Run) -> Result:
    """AUROC of detectors: clean, attacked in l2 and linf, certified."""
    images = run.images(spec.normal)
    if spec.anomalous:
        images = joined({"normal": images, "anomalous": run.images(spec.anomalous)})
    rows: list[Row] = []
    for name, stddev, draws in run.each(spec.models):
        vae = _trained(name, stddev, spec, run) if spec.epochs else run.model(name)
        part = run.part(
            f"{name} {stddev:g} {draws}",
            functools.partial(_measured, vae, images, spec, (stddev, draws), run),
            vae,
        )
        for line, cells in part.items():
            rows += [
                Row(f"{name}, {line}", cell, value, error, count)
                for cell, (value, error, count) in cells.items()
            ]
        run.progress(f"{name}: done")
    what = spec.anomalous or f"the labels {list(spec.held_out)}"
    suite = "".join(f"{search}, " for search in spec.suite)
    return run.result(
        f"Anomaly detection: {spec.normal} against {what}",
        "",
        rows,
        (
            f"AUROC of the score {spec.score}, {spec.inputs} inputs of each side, both sides "
            f"attacked, with its standard error (DeLong). Attacks: projected ascent on the score "
            f"({spec.steps} steps, {spec.restarts} restarts), {suite}{spec.gradient_free} "
            "candidates without gradients, for the smoothed detector also attacks made for the "
            "undefended one; the worst for each input by the deployed score, the median of 21 "
            "draws.",
            "Certified: smoothing of the median score, all intervals of both sides together with "
            "confidence 0.999; ties lose. s is the spread of the noise.",
        ),
    )


def _trained(name: str, stddev: float, spec: Spec, run: Run) -> VAE:
    """A model of the same kind that has seen the normal labels alone."""
    images = run.images(spec.normal, "train", spec.train)
    is_normal = ~torch.isin(images.y, torch.tensor(spec.held_out, dtype=torch.int64))
    vae = run.model(name)
    labels = "-".join(map(str, spec.held_out))
    noise = stddev if spec.train_noise is None else spec.train_noise
    return run.train(
        f"without-{labels}/{name.rpartition('/')[2]}-{noise:g}-{spec.beta:g}-{spec.epochs}-"
        f"{spec.train}-{run.seed}",
        {"name": "vae", **vae.config},
        ELBO(beta=spec.beta, input_noise=noise),
        images[is_normal],
        epochs=spec.epochs,
        batch_size=128,
    )


def _measured(
    vae: VAE, images: Images, spec: Spec, noise: tuple[float, int], run: Run
) -> dict[str, Any]:
    stddev, draws = noise
    l2 = tuple(Ball("l2", size) for size in spec.sizes)
    use = Anomaly(
        score=spec.score,
        balls=(*l2, Ball("linf", spec.linf)),
        inputs=spec.inputs,
        anomalous=() if spec.anomalous else spec.held_out,
        search=f"projected-ascent:steps={spec.steps},restarts={spec.restarts}",
        suite=spec.suite,
        gradient_free=spec.gradient_free,
        draws=draws,
    )
    smoothed = Victim(vae, InputNoise(stddev, defense=PosteriorMean()))
    victims = {"undefended": Victim(vae), f"smoothed, s = {stddev:g}": smoothed}
    lines: dict[str, Any] = {}
    torch.set_num_threads(1)
    result = use(
        UseContext(victims, images, run.seed, lambda words: run.tell(*run.steps(0), words))
    )
    facts = UseFacts(name="anomaly", rows=result.rows, facts=result.facts)
    for name in victims:
        cells = {"clean": _cell(auroc(*scores(facts, name)), spec.inputs)}
        for ball in use.balls:
            key = ball.norm, float(ball.radius)
            attacked = auroc(*scores(facts, name, key))
            cells[f"attacked {ball.norm} {key[1]:g}"] = _cell(attacked, spec.inputs)
        for size in spec.sizes:
            ends = certified(facts, name, size)
            if ends[0] and ends[1]:
                cells[f"certified l2 {size:g}"] = _cell(auroc(*ends, tie=0), spec.inputs)
        lines[name] = cells
    return lines


def _cell(value: Interval, count: int) -> tuple[float, float, int]:
    """A number with its standard error, from the half of its interval."""
    return value.value, (value.high - value.low) / 2 / 1.96, 2 * count
