"""A training step of the Lipschitz-VAE against the plain VAE's, and against Björck in the forward.

784-512-512-10 both ways, K = 10, sigma = 0.1, continuous Bernoulli, batch 128, Adam 1e-3; the plain
VAE has the same widths, sigma and likelihood, and ReLU. `in_forward` is the published way: three
Björck iterations of order 1 in every forward pass, with gradients through them. Times are the
process's own (one thread), so a busy machine disturbs them less. The Lipschitz-VAE's steps include
its retractions; what `finalize` costs once an epoch is added too.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import robustvae as rv
from experiments.bench.timing import seconds
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from robustvae.models.lipschitz import bjorck
from robustvae.training import optimizer_of

LR, EPOCH = 1e-3, 60_000


@final
@dataclass(frozen=True)
class Spec:
    """What is timed and trained.

    Attributes:
        data: To train on.
        hidden: Widths of every network.
        batch: Images a step.
        rounds: Of the sides in turn; 0 leaves the timing out.
        steps: Of the two fast sides in a round; 64 hold two whole gaps between retractions.
        warm: Steps before, an epoch's first.
        elbo: Training images of the comparison of ELBOs; 0 leaves it out.
        epochs: Of that comparison.
        seeds: Of that comparison, at least 2.
    """

    data: str = "mnist"
    hidden: tuple[int, ...] = (512, 512)
    batch: int = 128
    rounds: int = 9
    steps: int = 64
    warm: int = 150
    elbo: int = 0
    epochs: int = 5
    seeds: int = 3


@final
class _Bjorck(nn.Module):
    """The published parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return bjorck(weight, steps=3)


def _create(name: str, spec: Spec, images: Tensor, seed: int = 0) -> Any:
    shape = tuple(images.shape[1:])
    shared: dict[str, Any] = {"latent": 10, "hidden": list(spec.hidden), "stddev": 0.1}
    shared |= {"image_shape": shape, "seed": seed}
    if name == "plain":
        return rv.models.create("vae", likelihood="continuous_bernoulli", **shared)
    shared |= {"encoder_lipschitz": 10.0, "decoder_lipschitz": 10.0}
    vae = rv.models.create("lipschitz-vae", **shared)
    if name == "in_forward":
        vae.eval()  # in which the model's own tangent gradients are off
        for layer in vae.modules():
            if type(layer) is nn.Linear:
                parametrize.register_parametrization(layer, "weight", _Bjorck())
    return vae


def _settled(vae: Any) -> rv.VAE:
    """With orthonormal weights, plainly stored."""
    for layer in vae.modules():
        if isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight")
    vae.finalize()
    settled: rv.VAE = vae.eval()
    return settled


def _batches(x: Tensor, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            yield x[rows]


def _trainer(vae: Any, x: Tensor, batch: int, seed: int = 0) -> Callable[[int], None]:
    """A function that makes so many more optimization steps."""
    generator, objective = rv.generator(seed), rv.objectives.ELBO()
    tangent = not any(parametrize.is_parametrized(part) for part in vae.modules())
    optimizer = optimizer_of(vae, LR) if tangent else torch.optim.Adam(vae.parameters(), lr=LR)
    stream = _batches(x, batch, generator)

    def train(steps: int) -> None:
        for _ in range(steps):
            loss = objective(vae, next(stream), generator=generator).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if tangent:
                vae.after_step()

    return train


@item(
    "bench/lipschitz",
    sizes={"smoke": Spec("digits", (8,), 16, 1, 2, 2, 32, 1, 2), "laptop": Spec()},
)
def lipschitz(spec: Spec, run: Run) -> Result:
    """A Lipschitz training step by a plain one, and its ELBO beside Björck's in the forward."""
    x, unseen = run.images(spec.data, "train").x, run.images(spec.data).x
    x, unseen = (part.to(torch.get_default_dtype()) for part in (x, unseen))
    rows = list[Row]()
    if spec.rounds:
        rows += [Row("step", setting, value) for setting, value in _steps(x, spec).items()]
    if spec.elbo:
        rows += _elbos(x[: spec.elbo], unseen, spec, run)
    return run.result(
        "Training a Lipschitz-VAE",
        "milliseconds of processor time, ratios, nats",
        rows,
        (f"{spec.hidden}, batch {spec.batch}, K = 10, sigma = 0.1; at most 1.5 is wanted.",),
    )


def _steps(x: Tensor, spec: Spec) -> dict[str, float]:
    names = ("plain", "lipschitz", "in_forward")
    models = {name: _create(name, spec, x) for name in names}
    trainers = {name: _trainer(vae, x, spec.batch) for name, vae in models.items()}
    steps = {"plain": spec.steps, "lipschitz": spec.steps, "in_forward": 2}
    for name, count in (("plain", 10), ("lipschitz", spec.warm), ("in_forward", 1)):
        trainers[name](min(count, spec.warm))
    spent: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(spec.rounds):
        for name in sorted(models, reverse=bool(turn % 2)):
            used = seconds(partial(trainers[name], steps[name]), time.process_time)
            spent[name].append(used / steps[name])
    finalize = seconds(models["lipschitz"].finalize, time.process_time)
    finalize /= math.ceil(EPOCH / spec.batch)
    pairs = list(zip(spent["lipschitz"], spent["plain"], strict=True))
    ratios = [(ours + finalize) / bare for ours, bare in pairs]
    published = [a / b for a, b in zip(spent["in_forward"], spent["plain"], strict=True)]
    medians = {f"{name}, ms": 1e3 * statistics.median(v) for name, v in spent.items()}
    return medians | {
        "finalize, ms": 1e3 * finalize,
        "lipschitz / plain": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "in_forward / plain": statistics.median(published),
    }


def _elbos(x: Tensor, unseen: Tensor, spec: Spec, run: Run) -> list[Row]:
    rows, ends = list[Row](), dict[str, list[float]]()
    for seed in run.each(range(spec.seeds)):
        for name in run.each(("lipschitz", "in_forward")):

            def compute(name: str = name, seed: int = seed) -> list[float]:
                vae = _create(name, spec, x, seed)
                train = _trainer(vae, x, spec.batch, seed)
                for _ in range(spec.epochs):
                    train(math.ceil(len(x) / spec.batch))
                    if name == "lipschitz":
                        vae.finalize()
                settled = _settled(vae)
                layers = [part for part in settled.modules() if isinstance(part, nn.Linear)]
                values = [torch.linalg.svdvals(layer.weight.detach().double()) for layer in layers]
                objective, generator = rv.objectives.ELBO(), rv.generator(1)
                with torch.no_grad():
                    parts = unseen.split(1000)
                    losses = [objective(settled, part, generator=generator) for part in parts]
                off = max(float((1 - value).abs().max()) for value in values)
                return [-float(torch.cat(losses).mean()), off]

            elbo, off = run.part(f"{name} {seed}", compute)
            ends.setdefault(name, []).append(elbo)
            what = f"{name}, seed {seed}"
            rows.append(Row(what, "test ELBO, nats", elbo, n=len(unseen), section="ELBO"))
            rows.append(Row(what, "singular values off 1", off, section="ELBO"))
            run.progress(f"{what}: {elbo:.2f}")
    rows += [
        measured(name, "test ELBO, nats", values, section="ELBO") for name, values in ends.items()
    ]
    gaps = statistics.fmean(ends["lipschitz"]) - statistics.fmean(ends["in_forward"])
    error = math.sqrt(sum(statistics.variance(v) for v in ends.values()) / spec.seeds)
    rows.append(Row("difference", "test ELBO, nats", gaps, error, spec.seeds, section="ELBO"))
    return rows
