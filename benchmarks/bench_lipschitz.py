"""A training step of the Lipschitz-VAE against the plain VAE's, and against Björck in the forward.

    OMP_NUM_THREADS=1 python benchmarks/bench_lipschitz.py [--rounds 9] [--elbo 12000]

784-512-512-10 both ways, K = 10, sigma = 0.1, continuous Bernoulli, MNIST, batch 128, Adam 1e-3;
the plain VAE has the same widths, sigma and likelihood, and ReLU. `in_forward` is the published
way: three Björck iterations of order 1 in every forward pass, with gradients through them. The
sides train in turns within one run, on the same batches, after an epoch's first 150 steps. Times
are the process's own (one thread), so a busy machine disturbs them less. The Lipschitz-VAE's steps
include its retractions; what `finalize` costs once an epoch is added too.

`--elbo N` trains both Lipschitz variants for 5 epochs on N images (60,000 are all) with 3 seeds and
compares the ELBO of the whole test set; finished trainings are kept in the result file, so a run
that was stopped goes on. Everything is written to benchmarks/results/lipschitz.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import robustvae as rv
from robustvae.models.lipschitz import bjorck
from robustvae.training import optimizer_of

RESULTS = Path(__file__).parent / "results" / "lipschitz.json"
BATCH, LR, EPOCHS, SEEDS = 128, 1e-3, 5, (0, 1, 2)
SHARED = {"latent": 10, "hidden": [512, 512], "stddev": 0.1}
WANTED = 1.5


class Bjorck(nn.Module):
    """The published parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return bjorck(weight, steps=3)


def plain(seed: int = 0) -> rv.VAE:
    return rv.models.create("vae", seed=seed, likelihood="continuous_bernoulli", **SHARED)


def lipschitz(seed: int = 0) -> rv.VAE:
    return rv.models.create(
        "lipschitz-vae", seed=seed, encoder_lipschitz=10.0, decoder_lipschitz=10.0, **SHARED
    )


def in_forward(seed: int = 0) -> rv.VAE:
    """In evaluation mode, in which the model's own tangent gradients are off."""
    vae = lipschitz(seed).eval()
    for layer in vae.modules():
        if type(layer) is nn.Linear:
            parametrize.register_parametrization(layer, "weight", Bjorck())
    return vae


def settled(vae: rv.VAE) -> rv.VAE:
    """With orthonormal weights, plainly stored."""
    for layer in vae.modules():
        if isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight")
    vae.finalize()
    return vae.eval()


def batches(x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            yield x[rows]


def trainer(vae: rv.VAE, x: Tensor, seed: int = 0) -> Callable[[int], None]:
    """A function that makes so many more optimization steps."""
    generator, objective = rv.generator(seed), rv.objectives.ELBO()
    keep = not any(parametrize.is_parametrized(part) for part in vae.modules())
    optimizer = optimizer_of(vae, LR) if keep else torch.optim.Adam(vae.parameters(), lr=LR)
    stream = batches(x, generator)

    def train(steps: int) -> None:
        for _ in range(steps):
            loss = objective(vae, next(stream), generator=generator).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if keep:
                vae.after_step()

    return train


def timed(what: Callable[[], Any]) -> float:
    began = time.process_time()
    what()
    return time.process_time() - began


def step_times(x: Tensor, rounds: int) -> dict[str, Any]:
    models = {"plain": plain(), "lipschitz": lipschitz(), "in_forward": in_forward()}
    trainers = {name: trainer(vae, x) for name, vae in models.items()}
    steps = {"plain": 64, "lipschitz": 64, "in_forward": 2}  # 64 steps hold two whole gaps
    trainers["plain"](10)
    trainers["lipschitz"](150)
    trainers["in_forward"](1)
    spent: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds):
        for name in sorted(models, reverse=bool(turn % 2)):
            spent[name].append(timed(lambda n=name: trainers[n](steps[n])) / steps[name])
    finalize = timed(models["lipschitz"].finalize) / math.ceil(60_000 / BATCH)
    ratios = [
        (ours + finalize) / bare
        for ours, bare in zip(spent["lipschitz"], spent["plain"], strict=True)
    ]
    published = [a / b for a, b in zip(spent["in_forward"], spent["plain"], strict=True)]
    return {
        "ms_per_step": {k: round(statistics.median(v) * 1e3, 2) for k, v in spent.items()},
        "finalize_ms_per_step": round(finalize * 1e3, 2),
        "lipschitz_over_plain": round(statistics.median(ratios), 3),
        "spread": [round(value, 3) for value in (min(ratios), max(ratios))],
        "in_forward_over_plain": round(statistics.median(published), 1),
        "wanted_at_most": WANTED,
        "rounds": rounds,
    }


@torch.no_grad()
def test_elbo(vae: rv.VAE, x: Tensor) -> float:
    objective, generator = rv.objectives.ELBO(), rv.generator(1)
    losses = [objective(vae, part, generator=generator) for part in x.split(1000)]
    return -float(torch.cat(losses).mean())


def distance(vae: rv.VAE) -> float:
    layers = [part for part in vae.modules() if isinstance(part, nn.Linear)]
    values = [torch.linalg.svdvals(layer.weight.detach().double()) for layer in layers]
    return max(float((1 - value).abs().max()) for value in values)


def compare(images: int, result: dict[str, Any], save: Callable[[], None]) -> None:
    x, unseen = rv.data.load("mnist").x[:images], rv.data.load("mnist", split="test").x
    done = result.setdefault("elbo", {}).setdefault(str(images), {"trainings": {}})
    for seed in SEEDS:
        for name, make in (("lipschitz", lipschitz), ("in_forward", in_forward)):
            key = f"{name} {seed}"
            if key in done["trainings"]:
                continue
            vae = make(seed)
            train = trainer(vae, x, seed)
            began = time.process_time()
            for _ in range(EPOCHS):
                train(math.ceil(len(x) / BATCH))
                if name == "lipschitz":
                    vae.finalize()
            seconds = time.process_time() - began
            settled(vae)
            done["trainings"][key] = {
                "test_elbo": round(test_elbo(vae, unseen), 2),
                "distance_from_orthonormal": distance(vae),
                "seconds": round(seconds, 1),
            }
            save()
            print(key, done["trainings"][key], flush=True)
    found = {
        name: [done["trainings"][f"{name} {seed}"]["test_elbo"] for seed in SEEDS]
        for name in ("lipschitz", "in_forward")
    }
    stderr = math.sqrt(sum(statistics.variance(v) for v in found.values()) / len(SEEDS))
    gap = statistics.mean(found["lipschitz"]) - statistics.mean(found["in_forward"])
    done.update(
        images=images,
        epochs=EPOCHS,
        test_images=len(unseen),
        means={name: round(statistics.mean(values), 2) for name, values in found.items()},
        difference=round(gap, 2),
        standard_error=round(stderr, 2),
        not_below_by_two_standard_errors=gap >= -2 * stderr,
        within_two_standard_errors=abs(gap) <= 2 * stderr,
    )
    save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--elbo", type=int, default=None, metavar="IMAGES")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    result |= {
        "what": "784-512-512-10, batch 128, K = 10, sigma = 0.1, float32, one thread, MNIST",
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }

    def save() -> None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=2) + "\n")

    if given.elbo is None:
        result["steps"] = step_times(rv.data.load("mnist").x, given.rounds)
        save()
        print(json.dumps(result["steps"], indent=2))
    else:
        compare(given.elbo, result, save)
        shown = {k: v for k, v in result["elbo"][str(given.elbo)].items() if k != "trainings"}
        print(json.dumps(shown, indent=2))


if __name__ == "__main__":
    main()
