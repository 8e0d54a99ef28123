"""How far the aggregate posteriors of Lipschitz-VAEs spread, and what beta does about it.

    python -m robustvae.studies.lipschitz_spread --out docs/results --pictures docs/img

Trains plain and Lipschitz-VAEs with two latent coordinates and keeps each in the folder of runs;
the same command goes on where it was stopped. The picture needs the extra `plots`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from robustvae import data
from robustvae.data import Images
from robustvae.errors import check_choice, check_count
from robustvae.evaluation.latents import encoded
from robustvae.metrics import kl
from robustvae.objectives import ELBO
from robustvae.records import plain, write_text
from robustvae.seeding import randn, shard_generator
from robustvae.studies.khan_pictures import new_figures, save
from robustvae.studies.runs import across_runs, balanced, trained
from robustvae.studies.table import surroundings

LATENT, LR, BATCH = 2, 1e-3, 128
EDGE = 9.2103  # squared radius within which the prior of two coordinates has 99 % of its mass
DOTS = 1500


@final
@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        train: Training images.
        epochs: Passes over them.
        hidden: Widths of every network.
        constants: K of encoder and decoder.
        betas: Weights of the KL for each K.
    """

    train: int
    epochs: int
    hidden: tuple[int, ...]
    constants: tuple[float, ...]
    betas: tuple[float, ...]


SIZES = {
    "smoke": Size(128, 1, (16, 16), (5.0,), (1.0, 10.0)),
    "laptop": Size(6_000, 5, (512, 512), (5.0, 10.0), (1.0, 16.0)),
}


@final
@dataclass(frozen=True)
class Spread:
    """The aggregate posterior of one model, run by run.

    Attributes:
        constant: K, None for the plain VAE.
        beta: Weight of the KL.
        width: Root of a coordinate's variance under the aggregate posterior; the prior's is 1.
        shift: Distance of the aggregate posterior's mean from the prior's.
        outside: Share of its mass where the prior has 1 %.
        kl: Mean KL from the prior, in nats.
    """

    constant: float | None
    beta: float
    width: tuple[float, ...]
    shift: tuple[float, ...]
    outside: tuple[float, ...]
    kl: tuple[float, ...]

    @property
    def name(self) -> str:
        """The model in words."""
        if self.constant is None:
            return f"plain VAE, beta = {self.beta:g}"
        return f"K = {self.constant:g}, beta = {self.beta:g}"


@final
@dataclass(frozen=True)
class LipschitzSpread:
    """What the study found: everything that its page says is a function of this."""

    spreads: tuple[Spread, ...]
    facts: dict[str, Any]

    def claims(self) -> list[tuple[str, str, str]]:
        """The paper's two sentences for every K: sentence, difference of widths, verdict."""
        flat = next(spread for spread in self.spreads if spread.constant is None)
        rows = []
        for constant in dict.fromkeys(s.constant for s in self.spreads if s.constant is not None):
            own = [spread for spread in self.spreads if spread.constant == constant]
            rows.append(_claim(f"K = {constant:g} spreads wider than the plain VAE", flat, own[0]))
            for low, high in itertools.pairwise(own):
                rows.append(_claim(f"{high.name}: narrower than beta = {low.beta:g}", high, low))
        return rows

    def to_markdown(self, command: str, picture: str | None = None) -> str:
        """The page of the study."""
        facts, runs = self.facts, len(self.spreads[0].width)
        lines = [f"# Spread of aggregate posteriors: {facts['data']}", ""]
        lines += ["```sh", command, "```", ""]
        lines += [
            f"[Barrett22] Fig. 6 and appendix C in small: {facts['epochs']} epochs on "
            f"{facts['train']:,} images, d = 2, networks {facts['hidden']}, learned sigma, "
            f"continuous Bernoulli, Adam at {LR:g}, {runs} seeds. Over the {facts['test']:,} test "
            "images. Means over the runs ± half a 95 % interval (Student's t).",
            "",
            "| | standard deviation of a coordinate (prior: 1) | mean's distance from the "
            "prior's | mass outside the prior's 99 % disc (prior: 1 %) | KL, nats |",
            "|---|---:|---:|---:|---:|",
        ]
        for spread in self.spreads:
            measured = (spread.width, spread.shift, spread.outside, spread.kl)
            cells = ["{:.3g} ± {:.2g}".format(*across_runs(values)) for values in measured]
            mean, half = across_runs(spread.outside)
            cells[2] = f"{100 * mean:.1f} ± {100 * half:.1f} %"
            lines.append(f"| {spread.name} | {' | '.join(cells)} |")
        lines += ["", "| the paper | difference of the first column | |", "|---|---:|---|"]
        lines += [f"| {' | '.join(row)} |" for row in self.claims()]
        lines += ["", "The paper shows pictures without numbers, and does not name its beta.", ""]
        if picture is not None:
            lines += [f"![Draws from the aggregate posteriors, seed 0]({picture})", ""]
        return "\n".join([*lines, *(f"- {key}: {value}" for key, value in facts.items())]) + "\n"


def lipschitz_spread(
    train: Images,
    test: Images,
    *,
    runs: Path,
    size: str = "laptop",
    seeds: int = 3,
    epochs: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[LipschitzSpread, list[Tensor]]:
    """Run the study.

    Args:
        train: To train on; a balanced part is taken.
        test: Whose codes make the aggregate posteriors.
        runs: Folder of the runs.
        size: "smoke" or "laptop".
        seeds: How many runs of each model, from seed 0.
        epochs: Instead of the size's; more than before goes on from the kept runs.
        progress: Told what has been done, a line at a time.

    Returns:
        What was found, and of every model a draw for each test image, first seed, (N, 2) each.

    Raises:
        UnknownNameError: Any other size.
        RangeError: Fewer than two seeds: no interval.

    References:
        [Barrett22] Fig. 6, appendix C.
    """
    check_choice("size", size, SIZES)
    check_count(seeds, "seeds", least=2)
    plan = SIZES[size]
    plan = plan if epochs is None else replace(plan, epochs=epochs)
    part = balanced(train, plan.train, "train")
    spreads, draws = [], []
    shared = {"latent": LATENT, "hidden": list(plan.hidden), "image_shape": train.image_shape}
    shared["likelihood"] = "continuous_bernoulli"
    kinds: list[tuple[float | None, float]] = [(None, 1.0)]
    kinds += [(constant, beta) for constant in plan.constants for beta in plan.betas]
    for constant, beta in kinds:
        options: dict[str, Any] = shared | {"name": "vae", "architecture": "mlp"}
        if constant is not None:
            bound = {"encoder_lipschitz": constant, "decoder_lipschitz": constant, "stddev": None}
            options = shared | {"name": "lipschitz-vae", **bound}
        found = []
        for seed in range(seeds):
            folder = runs / f"{train.name}-{constant or 'plain'}-beta-{beta:g}-{seed}"
            vae = trained(
                folder,
                options,
                ELBO(beta=beta),
                part,
                epochs=plan.epochs,
                seed=seed,
                batch_size=BATCH,
                lr=LR,
            )
            mean, stddev = encoded(vae, test.x)
            noise = randn(*mean.shape, like=mean, generator=shard_generator(seed, 0, "draws"))
            z = mean + stddev * noise
            prior = (mean.new_zeros(LATENT), mean.new_ones(LATENT))
            variance = mean.var(0, correction=0) + stddev.square().mean(0)
            outside = float((z.square().sum(1) > EDGE).double().mean())
            nats = float(kl(mean, stddev, *prior).mean())
            shift = float(mean.mean(0).norm())
            found.append((float(variance.mean().sqrt()), shift, outside, nats))
            if seed == 0:
                draws.append(z)
        spreads.append(Spread(constant, beta, *zip(*found, strict=True)))
        if progress is not None:
            progress(f"{spreads[-1].name}: " + ", ".join(f"{w:.3g}" for w in spreads[-1].width))
    facts = {"data": train.name, "size": size, **vars(plan), "test": len(test), "seeds": seeds}
    return LipschitzSpread(tuple(spreads), facts | surroundings()), draws


def draw(found: LipschitzSpread, draws: Sequence[Tensor], test: Images, path: Path) -> None:
    """The draws as dots by class, all on the same axes, with the prior's 99 % circle.

    Raises:
        MissingExtraError: No matplotlib.
    """

    with new_figures() as new:
        high, wide = len(found.facts["constants"]), 1 + len(found.facts["betas"])
        figure = new(2.4 * wide, 2.4 * high)
        grid = figure.subplots(high, wide, squeeze=False)
        reach = 1.05 * max(float(z[:DOTS].abs().max()) for z in draws)
        empty = [row[0] for row in grid[1:]]
        cells = [grid[0][0], *(axes for row in grid for axes in row[1:])]
        for axes in empty:
            axes.set_axis_off()
        for axes, spread, z in zip(cells, found.spreads, draws, strict=True):
            for label in test.y.unique().tolist():
                first, second = z[:DOTS][test.y[: len(z[:DOTS])] == label].T.tolist()
                axes.scatter(first, second, color=f"C{label}", s=2, lw=0)
            turn = torch.linspace(0, 2 * math.pi, 100)
            axes.plot(EDGE**0.5 * turn.cos(), EDGE**0.5 * turn.sin(), color="black", lw=0.8)
            axes.set(title=spread.name, xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        save(figure, path)


def _claim(sentence: str, less: Spread, more: Spread) -> tuple[str, str, str]:
    pairs = zip(more.width, less.width, strict=True)
    mean, half = across_runs([high - low for high, low in pairs])
    said = "agrees" if mean > half else "the opposite here" if mean < -half else "not clear"
    return sentence, f"{mean:.3g} ± {half:.2g}", said


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--size", default="laptop")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="go on to so many; by default the size's")
    parser.add_argument("--runs", type=Path, default=Path("runs/lipschitz-spread"))
    parser.add_argument("--pictures", type=Path, help="folder of the picture; none without")
    parser.add_argument("--out", type=Path, default=Path("out"))
    given = parser.parse_args()
    test = data.load(given.data, "test")
    found, draws = lipschitz_spread(
        data.load(given.data, "train"),
        test,
        runs=given.runs,
        size=given.size,
        seeds=given.seeds,
        epochs=given.epochs,
        progress=lambda line: print(line, flush=True),
    )
    name = f"lipschitz-spread-{given.data.replace('_', '-')}"
    picture = None
    if given.pictures is not None:
        path = given.pictures / f"{name}.png"
        draw(found, draws, test, path)
        picture = Path(os.path.relpath(path, given.out)).as_posix()
    command = f"python -m robustvae.studies.lipschitz_spread {shlex.join(sys.argv[1:])}"
    page = found.to_markdown(command, picture)
    write_text(given.out / f"{name}.json", json.dumps(plain(found)) + "\n")
    write_text(given.out / f"{name}.md", page)
    print(page)


if __name__ == "__main__":
    _main()
