"""NVAE `tiny` beside conv28 at equal epochs on MNIST, and a short run of it on CIFAR-10.

    python -m robustvae.studies.nvae_tiny --out docs/results

Every run is kept in the folder of runs: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch

from robustvae import data
from robustvae.data import Images
from robustvae.errors import check_choice, check_count
from robustvae.metrics import mean_stderr
from robustvae.models import VAE
from robustvae.models.checkpoint import read_config
from robustvae.objectives import ELBO
from robustvae.records import plain, write_text
from robustvae.seeding import shard_generator
from robustvae.studies.runs import across_runs, balanced, losses, trained
from robustvae.studies.table import surroundings

TINY, CONV = "NVAE tiny", "conv28"
LR, BATCH, CLIP, ROWS = 1e-3, 64, 100.0, 250
PARTS: tuple[Literal["train", "test"], ...] = ("train", "test")


@final
@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        train: Training images of the first set.
        epochs: Passes over them.
        test: Test images.
        color_train: Training images of the colored set.
        color_epochs: Passes over them.
    """

    train: int
    epochs: int
    test: int
    color_train: int
    color_epochs: int


SIZES = {
    "smoke": Size(64, 2, 20, 32, 2),
    "laptop": Size(1_920, 5, 1_000, 384, 5),
}


@final
@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        model: `TINY` or `CONV`.
        seed: Of the run.
        parameters: Numbers that were trained.
        elbos: Of the test images, in nats.
        losses: Mean negative ELBO of the training images in each epoch, in nats.
        seconds: Spent training.
    """

    model: str
    seed: int
    parameters: int
    elbos: tuple[float, ...]
    losses: tuple[float, ...]
    seconds: float


@final
@dataclass(frozen=True)
class NVAETiny:
    """What the study found: everything that its page says is a function of this.

    Attributes:
        runs: Of both models, seed by seed.
        color: The run on colored images.
        facts: Data, size, seeds, versions, date.
    """

    runs: tuple[Run, ...]
    color: Run
    facts: dict[str, Any]

    def of(self, model: str) -> list[Run]:
        """The runs of one model, in the order of seeds."""
        return [run for run in self.runs if run.model == model]

    def difference(self) -> tuple[float, float]:
        """Test ELBO of NVAE tiny minus conv28's: mean over the seeds, half a 95 % interval."""
        pairs = zip(self.of(TINY), self.of(CONV), strict=True)
        return across_runs([mean_stderr(a.elbos)[0] - mean_stderr(b.elbos)[0] for a, b in pairs])

    def to_markdown(self, command: str) -> str:
        """The page of the study."""
        seeds = len(self.of(TINY))
        lines = [f"# NVAE tiny: {self.facts['data']}", "", "```sh", command, "```", ""]
        lines += [
            f"Both trained with the plain ELBO (Bernoulli) on the same {self.facts['train']:,} "
            f"images for {self.facts['epochs']} epochs, Adam at {LR:g}, batch {BATCH}, seeds 0 to "
            f"{seeds - 1}. ELBO of the same {self.facts['test']:,} test images, one draw each, in "
            "nats: ± one standard error over the images for a run, ± half a 95 % interval over the "
            "runs (Student's t) for their mean.",
            "",
            f"| | parameters | {' | '.join(f'seed {run.seed}' for run in self.of(TINY))} | mean "
            "| seconds a run |",
            f"|---|---:|{'---:|' * seeds}---:|---:|",
        ]
        for model in (TINY, CONV):
            runs = self.of(model)
            each = [mean_stderr(run.elbos) for run in runs]
            cells = [f"{mean:.2f} ± {stderr:.2f}" for mean, stderr in each]
            mean, half = across_runs([mean for mean, _ in each])
            seconds = sum(run.seconds for run in runs) / seeds
            lines.append(
                f"| {model} | {runs[0].parameters:,} | {' | '.join(cells)} | "
                f"**{mean:.2f} ± {half:.2f}** | {seconds:.0f} |"
            )
        mean, half = self.difference()
        said = "the difference is not clear" if abs(mean) <= half else "better"
        if mean < -half:
            said = "worse"
        lines += [
            "",
            f"NVAE tiny minus conv28, seed by seed: **{mean:+.2f} ± {half:.2f}** nats: {said} at "
            "equal epochs.",
            "",
            "| training loss, mean over the seeds, nats | "
            + " | ".join(f"epoch {i}" for i in range(1, self.facts["epochs"] + 1))
            + " |",
            f"|---|{'---:|' * self.facts['epochs']}",
        ]
        for model in (TINY, CONV):
            epochs = zip(*(run.losses for run in self.of(model)), strict=True)
            means = [f"{sum(each) / seeds:.1f}" for each in epochs]
            lines.append(f"| {model} | {' | '.join(means)} |")
        end, stderr = mean_stderr(self.color.elbos)
        lines += [
            "",
            f"## {self.facts['color']}",
            "",
            f"NVAE tiny with a Gaussian likelihood (standard deviation 0.1), seed 0, "
            f"{self.facts['color_train']:,} images, {self.facts['color_epochs']} epochs. "
            "Training loss by epoch, nats an image: "
            + ", ".join(f"{loss:.0f}" for loss in self.color.losses)
            + f". Negative ELBO of {len(self.color.elbos):,} test images after it: {-end:.0f} ± "
            f"{stderr:.0f}. It trains; nothing here says how well it would do at length.",
            "",
        ]
        facts = (f"- {key}: {value}" for key, value in self.facts.items())
        return "\n".join([*lines, *facts]) + "\n"


def nvae_tiny(
    train: Images,
    test: Images,
    color: Images,
    color_test: Images,
    *,
    runs: Path,
    size: str = "laptop",
    seeds: int = 3,
    progress: Callable[[str], None] | None = None,
) -> NVAETiny:
    """Run the study.

    Args:
        train: To train both on, 28 x 28 pixels; a balanced part is taken.
        test: To compare them on.
        color: To train NVAE tiny on as well.
        color_test: To judge that on.
        runs: Folder of the runs.
        size: "smoke" or "laptop".
        seeds: How many runs of each model, from seed 0.
        progress: Told what has been done, a line at a time.

    Raises:
        UnknownNameError: Any other size.
        RangeError: Fewer than two seeds: no interval.

    References:
        Vahdat & Kautz, 2020; [Kuzina22] Table 6.
    """
    check_choice("size", size, SIZES)
    check_count(seeds, "seeds", least=2)
    plan = SIZES[size]
    part, tests = balanced(train, plan.train, "train"), balanced(test, plan.test, "test")

    def run(
        model: str, options: dict[str, Any], images: Images, judge: Images, **given: int
    ) -> Run:
        folder = runs / f"{images.name}-{model.replace(' ', '-').lower()}-{given['seed']}"
        vae = trained(folder, options, ELBO(), images, batch_size=BATCH, lr=LR, clip=CLIP, **given)
        found = Run(
            model,
            given["seed"],
            sum(parameter.numel() for parameter in vae.parameters()),
            _elbos(vae, judge),
            tuple(losses(folder)),
            read_config(folder)["card"]["seconds"],
        )
        if progress is not None:
            mean, stderr = mean_stderr(found.elbos)
            progress(f"{folder.name}: test ELBO {mean:.2f} ± {stderr:.2f}, {found.seconds:.0f} s")
        return found

    kinds: dict[str, dict[str, Any]] = {
        TINY: {"name": "nvae", "preset": "tiny", "image_shape": train.image_shape},
        CONV: {"name": "vae", "architecture": "conv28", "latent": 64},
    }
    found = [
        run(model, options, part, tests, epochs=plan.epochs, seed=seed)
        for seed in range(seeds)
        for model, options in kinds.items()
    ]
    gaussian = {"image_shape": color.image_shape, "likelihood": "gaussian", "scale": 0.1}
    colored = run(
        TINY,
        kinds[TINY] | gaussian,
        balanced(color, plan.color_train, "train"),
        balanced(color_test, min(plan.test, 500), "test"),
        epochs=plan.color_epochs,
        seed=0,
    )
    facts = {"data": train.name, "color": color.name, "size": size, **vars(plan), "seeds": seeds}
    return NVAETiny(tuple(found), colored, facts | surroundings())


def _elbos(vae: VAE, images: Images) -> tuple[float, ...]:
    """The ELBO of each image by one draw, in nats."""
    generator, objective = shard_generator(0, 0, "test"), ELBO()
    with torch.no_grad():
        parts = [-objective(vae, part, generator=generator) for part in images.x.split(ROWS)]
    return tuple(round(value, 3) for value in torch.cat(parts).tolist())


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--color", default="cifar10")
    parser.add_argument("--size", default="laptop")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/nvae-tiny"))
    parser.add_argument("--out", type=Path, default=Path("out"))
    given = parser.parse_args()
    sets = [data.load(name, part) for name in (given.data, given.color) for part in PARTS]
    found = nvae_tiny(
        *sets,
        runs=given.runs,
        size=given.size,
        seeds=given.seeds,
        progress=lambda line: print(line, flush=True),
    )
    page = found.to_markdown(f"python -m robustvae.studies.nvae_tiny {shlex.join(sys.argv[1:])}")
    name = f"nvae-tiny-{given.data.replace('_', '-')}"
    write_text(given.out / f"{name}.json", json.dumps(plain(found)) + "\n")
    write_text(given.out / f"{name}.md", page)
    print(page)


if __name__ == "__main__":
    _main()
