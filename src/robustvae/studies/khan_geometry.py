"""The spectrum of the encoder's pullback metric against beta, and what steps along it do.

    python -m robustvae.studies.khan_geometry --data mnist --out docs/results --pictures docs/img

Trains VAEs under a range of beta, one with mixup and one with two latent coordinates, keeps each
in the folder of runs, and measures their geometry on test images. Run again, it takes from that
folder what is trained already.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from robustvae import data, models
from robustvae.data import Images
from robustvae.errors import CheckpointError, check_choice
from robustvae.models import VAE, checkpoint
from robustvae.objectives import ELBO, Mixup
from robustvae.objectives.base import Objective
from robustvae.perturb import ProjectedAscent
from robustvae.records import plain, write_text
from robustvae.seeding import shard_generator
from robustvae.studies.khan_measures import (
    CLIMB,
    CLIMB_OUTPUT,
    DISPLAYED,
    MIXUP,
    ONE_SHOT,
    PLAIN,
    PLANE,
    RANDOM,
    STEPS,
    Measured,
    Scale,
    Spread,
    measure,
    short,
)
from robustvae.studies.khan_pictures import draw
from robustvae.studies.table import facts_of
from robustvae.training import fit

LEARNING_RATE, BATCH = 3e-3, 128
RISE = 0.01  # of the mean squared error, counted as a change that matters


@final
@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        betas: How many, log-spaced in [0.01, 10].
        latent: d.
        hidden: Widths of the encoder, from the pixels inwards.
        train: Training images.
        epochs: Passes over them.
        images: Test images.
        attacked: Test images in the comparison of attacks.
        steps: Of projected ascent.
        restarts: Of projected ascent.
    """

    betas: int
    latent: int
    hidden: tuple[int, ...]
    train: int
    epochs: int
    images: int
    attacked: int
    steps: int
    restarts: int


SIZES = {
    "smoke": Size(4, 4, (32, 16), 256, 1, 8, 4, 4, 1),
    "laptop": Size(13, 32, (256, 256, 512), 60_000, 5, 200, 100, 50, 5),
}


def objectives_of(plan: Size) -> dict[str, Objective]:
    """What is trained, by name: one for each beta, then mixup, then the model of the map."""
    spaced = [10 ** (-2 + 3 * i / (plan.betas - 1)) for i in range(plan.betas)]
    found: dict[str, Objective] = {f"beta {beta:.4g}": ELBO(beta=beta) for beta in spaced}
    return found | {MIXUP: Mixup(), PLANE: ELBO()}


def trained(
    name: str, objective: Objective, images: Images, plan: Size, seed: int, runs: Path | None
) -> VAE:
    """One model of [Khan23] appendix A, from its folder below `runs` or trained.

    Args:
        name: Names the folder; `PLANE` has two latent coordinates.
        objective: What is minimized.
        images: To train on.
        plan: Networks and epochs.
        seed: Of weights and everything random after, the same for every objective.
        runs: None keeps nothing.
    """
    options: dict[str, Any] = {
        "architecture": "mlp",
        "latent": 2 if name == PLANE else plan.latent,
        "image_shape": images.image_shape,
        "hidden": list(plan.hidden),
        "activation": "tanh",
        "batch_norm": True,
    }
    card = {
        "data": f"{images.name}, {images.split}, {len(images)} images",
        "objective": str(objective),
        "epochs": plan.epochs,
        "lr": LEARNING_RATE,
        "batch_size": BATCH,
        "seed": seed,
    }
    folder = None if runs is None else runs / f"{images.name}-{name.replace(', ', '-')}"
    folder = None if folder is None else folder.with_name(folder.name.replace(" ", "-"))
    if folder is not None and folder.exists():
        if checkpoint.read_config(folder)["card"] != card:
            raise CheckpointError(f"{folder} holds another run: name another folder of runs")
        return checkpoint.load(folder)
    vae = models.create("vae", seed=seed, **options).to(images.x.dtype)
    fit(
        vae,
        objective,
        images,
        epochs=plan.epochs,
        batch_size=BATCH,
        lr=LEARNING_RATE,
        validation=None,
        generator=shard_generator(seed, 0, "training"),
        progress=False,
    )
    if folder is not None:
        checkpoint.save(vae, folder, card=card)
    return vae


@final
@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and whether these numbers bear it out."""

    source: str
    sentence: str
    holds: bool
    evidence: str


def claims_of(found: Sequence[Measured]) -> tuple[Claim, ...]:
    """What the paper says of its Figures 3, 5, 6 and 10, held against these numbers.

    "With beta" is Spearman's rank correlation over the betas, of at least 0.9 in size; a
    difference is one whose 95 % interval, over the same images, leaves out 0.
    """
    betas = [model for model in found if model.name != MIXUP]
    by_name = {model.name: model for model in found}

    def trend(source: str, sentence: str, sign: int, numbers: list[float]) -> Claim:
        rank = _spearman([model.beta for model in betas], numbers)
        ends = f"from {numbers[0]:.3g} at beta {betas[0].beta:g} to {numbers[-1]:.3g}"
        ends += f" at beta {betas[-1].beta:g}, rank correlation {rank:.2f}"
        return Claim(source, sentence, sign * rank >= 0.9, ends)

    def score(name: str) -> list[float]:
        return [model.scores[name].mean for model in betas]

    def steps(scale: Scale) -> list[float]:
        return [least_step(model, scale) for model in betas]

    claims = [
        trend("Fig. 5", "The spectral radius falls with beta.", -1, score("spectral radius")),
        trend(
            "Fig. 5",
            'The entropy falls with beta (l / l_max, as their code: "max").',
            -1,
            score('entropy, "max"'),
        ),
        trend(
            "Fig. 5", "The entropy as printed (None) falls with beta.", -1, score("entropy, None")
        ),
        trend(
            "Fig. 5, caption",
            'The spectrum becomes more isotropic with beta ("trace" entropy rises).',
            1,
            score('entropy, "trace"'),
        ),
        trend(
            "Fig. 5, caption",
            'The same over the active coordinates (effective rank, exp of "trace", by "active").',
            1,
            [rank_share(model) for model in betas],
        ),
        trend(
            "Fig. 5",
            f"The step along v1 that raises the error by {RISE:g} grows with beta (unit steps).",
            1,
            steps("unit"),
        ),
        trend(
            "Fig. 5",
            f"The step along l1 v1 that raises the error by {RISE:g} grows with beta (as printed).",
            1,
            steps("eigenvalue"),
        ),
        trend(
            "Fig. 3",
            "The latent displacement of a unit step of size 1 along v1 falls with beta.",
            -1,
            [_at(model.curve("unit", False).displacement, STEPS["unit"], 1.0) for model in betas],
        ),
        trend(
            "Section 4.2.1",
            "The std term's share of the metric grows with beta.",
            1,
            score("std term's share of the trace"),
        ),
    ]
    flat, curved = score("spectral radius"), score("spectral radius, Riemannian")
    higher = sum(c > f for c, f in zip(curved, flat, strict=True))
    claims.append(
        Claim(
            "Fig. 10",
            "The spectral radius is higher where the decoder's metric is taken along.",
            higher == len(flat),
            f"higher at {higher} of {len(flat)} betas",
        )
    )
    if MIXUP in by_name and PLAIN in by_name:
        for name, sentence, sign in (
            ("spectral radius", "Mixup lowers the spectral radius.", -1),
            ('entropy, "max"', 'Mixup lowers the entropy ("max").', -1),
            ('entropy, "trace"', 'Mixup makes the spectrum more isotropic ("trace").', 1),
        ):
            with_it, without = (by_name[key].scores[name] for key in (MIXUP, PLAIN))
            change = Spread.of(torch.tensor(with_it.values) - torch.tensor(without.values))
            holds = min(sign * change.low, sign * change.high) > 0
            evidence = f"from {without} to {with_it}, change {change}"
            claims.append(Claim("Fig. 6", sentence, holds, evidence))
        pair = [least_step(by_name[key], "unit") for key in (PLAIN, MIXUP)]
        claims.append(
            Claim(
                "Fig. 6",
                f"Mixup makes the unit step along v1 that raises the error by {RISE:g} longer.",
                pair[1] > pair[0],
                f"from {pair[0]:.3g} to {pair[1]:.3g}",
            )
        )
    return tuple(claims)


def least_step(model: Measured, scale: Scale) -> float:
    """The least step along the top direction that raises the mean error by `RISE`, or infinity."""
    errors = model.curve(scale, box=False).error
    steps = zip(STEPS[scale], errors, strict=True)
    return next((step for step, error in steps if error > model.error + RISE), float("inf"))


def rank_share(model: Measured) -> float:
    """The mean effective rank of the metric by the number of active latent coordinates."""
    ranks = torch.tensor(model.scores['entropy, "trace"'].values).exp()
    return float(ranks.mean()) / max(1, model.active)


@final
@dataclass(frozen=True)
class Result:
    """The study's result: its page and its pictures are functions of this and of the models.

    Attributes:
        models: In the order of beta, mixup last.
        claims: The paper's, each with what was found.
        protocol: Sentences that say what was done.
        facts: Data, size, seed, versions and time.
    """

    models: tuple[Measured, ...]
    claims: tuple[Claim, ...]
    protocol: tuple[str, ...]
    facts: dict[str, Any]

    def to_json(self) -> str:
        """The result as JSON, a model a line; shares of single images follow from what moved."""
        parts = {
            key: json.dumps(plain(getattr(self, key))) for key in ("claims", "protocol", "facts")
        }
        found = [plain(model) for model in self.models]
        for damage in (damage for model in found for damage in model["damage"]):
            del damage["latent_share"]["values"], damage["output_share"]["values"]
        rows = ",\n".join(json.dumps(model) for model in found)
        steps = json.dumps({key: short(torch.tensor(value), 5) for key, value in STEPS.items()})
        lines = [f'"{key}": {text}' for key, text in parts.items()]
        return "{" + ",\n".join([*lines, f'"steps": {steps}', f'"models": [\n{rows}]']) + "}\n"

    def to_markdown(self) -> str:
        """The page: what agrees, the scores, the steps, the attacks, and how it was done."""
        names = list(self.models[0].scores)
        lines = ["# Geometry of the encoder against beta", ""]
        lines += ["Means over the test images, ± half a 95 % interval over them.", ""]
        lines += ["## The paper's sentences", ""]
        lines += _table(
            ["where", "sentence", "here", "numbers"],
            [
                [c.source, c.sentence, "holds" if c.holds else "**not**", c.evidence]
                for c in self.claims
            ],
        )
        lines += ["", "## Scores", ""]
        lines += _table(
            ["", *names, "error a pixel", "KL, nats", "active", "rank / active"],
            [
                [
                    m.name,
                    *(str(m.scores[name]) for name in names),
                    f"{m.error:.3g}",
                    f"{m.kl:.3g}",
                    str(m.active),
                    f"{rank_share(m):.2f}",
                ]
                for m in self.models
            ],
        )
        lines += ["", "## Steps along the top eigendirection", ""]
        lines += ["Mean squared error a pixel at a step of unit length, free and (clipped).", ""]
        marks = (0.1, *DISPLAYED, 1.0, 3.0, 10.0)
        rows = []
        for m in self.models:
            pair = [m.curve("unit", box).error for box in (False, True)]
            cells = [[_at(curve, STEPS["unit"], mark) for curve in pair] for mark in marks]
            last = [f"{least_step(m, scale):.3g}" for scale in STEPS]
            rows.append([m.name, *(f"{free:.3g} ({box:.3g})" for free, box in cells), *last])
        heads = [f"s = {mark:g}" for mark in marks]
        lines += _table(["", *heads, f"+{RISE:g} at s", f"+{RISE:g} at s, s l v"], rows)
        lines += ["", "## One shot against projected ascent at equal radius", ""]
        lines += ["Shares of what projected ascent moves the same thing by, image by image.", ""]
        lines += _table(
            [
                "",
                "l2 radius",
                "one shot, latent",
                "one shot, output",
                "random direction, latent",
                "random direction, output",
                "latent moved by ascent",
                "output moved by ascent",
            ],
            [
                [
                    m.name,
                    f"{radius:g}" + ("" if box else ", free"),
                    *(
                        str(share)
                        for attack in (ONE_SHOT, RANDOM)
                        for share in (at[attack].latent_share, at[attack].output_share)
                    ),
                    str(at[CLIMB].latent),
                    str(at[CLIMB_OUTPUT].output),
                ]
                for m in self.models
                for (radius, box), at in m.by_ball().items()
            ],
        )
        lines += ["", *(f"- {sentence}" for sentence in self.protocol), ""]
        lines += [f"- {key}: {value}" for key, value in self.facts.items()]
        return "\n".join(lines) + "\n"

    def write(self, folder: str | Path, name: str) -> None:
        """Write `name`.json and `name`.md."""
        write_text(Path(folder) / f"{name}.json", self.to_json())
        write_text(Path(folder) / f"{name}.md", self.to_markdown())


def khan_geometry(
    train: Images,
    test: Images,
    *,
    size: str = "laptop",
    seed: int = 0,
    runs: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[Result, dict[str, VAE], Tensor]:
    """Run the study.

    Args:
        train: To train on.
        test: Where the inputs are sampled, class by class.
        size: "smoke" or "laptop".
        seed: Of everything random.
        runs: Folder of the trained models; None keeps nothing.
        progress: Told what has been done, a line at a time.

    Returns:
        The result, the models by name, and the images measured, (B, C, H, W).

    Raises:
        UnknownNameError: Any other size.
        CheckpointError: A folder of `runs` holds a run of other settings.

    References:
        [Khan23] sections 3.2 and 4, Figs. 3, 5, 6 and 10, appendix A.
    """
    check_choice("size", size, SIZES)
    plan, began = SIZES[size], time.perf_counter()
    x, _ = test.sample(plan.images, stratified=True, generator=shard_generator(seed, 0, "data"))
    ascent = ProjectedAscent(steps=plan.steps, restarts=plan.restarts)
    vaes, found = {}, []
    for name, objective in objectives_of(plan).items():
        vaes[name] = trained(name, objective, train[: plan.train], plan, seed, runs)
        if name != PLANE:
            beta = objective.beta if isinstance(objective, ELBO) else 1.0
            found.append(
                measure(name, beta, vaes[name], x, attacked=plan.attacked, ascent=ascent, seed=seed)
            )
        if progress is not None:
            progress(f"{name}: {time.perf_counter() - began:.0f} s")
    facts = facts_of(vaes[MIXUP], test, size, seed, began)
    del facts["weights sha256"]
    facts["seconds, without models taken from the runs"] = facts.pop("seconds")
    return (
        Result(tuple(found), claims_of(found), protocol_of(plan, train), facts),
        vaes,
        x,
    )


def protocol_of(plan: Size, train: Images) -> tuple[str, ...]:
    """What was done, in sentences."""
    return (
        f"Each model: {plan.epochs} epochs of {min(plan.train, len(train)):,} training images, "
        f"Adam {LEARNING_RATE:g}, batches of {BATCH}, Bernoulli likelihood of gray pixels; one "
        "seed, the same for all. The paper's code trains 100 epochs with a cosine schedule, at 50 "
        "betas; the paper does not name its likelihood.",
        f"{plan.images} test images, balanced over the classes; intervals are over these images "
        "and do not speak of another training seed.",
        "Mixup is the printed penalty (norms, not squared), weight 1, on top of beta 1.",
        "Curves take the worse of both signs of a direction; the paper steps one way. Steps: "
        "logspace(-1, 1, 40) times the unit direction, and logspace(-2, 1, 40) times eigenvalue "
        "times direction as printed; each free and clipped to [0, 1].",
        f"Attacks: {plan.attacked} of the images, in [0, 1] unless free; one shot and projected "
        f"ascent ({plan.steps} steps, {plan.restarts} restarts) raise the squared 2-Wasserstein "
        "distance of the posteriors, whose half Hessian is the pullback metric; projected ascent "
        "on the output raises the distance of reconstructions. A share is of projected ascent's, "
        "image by image. One shot spends 24 Hessian-vector products, about two gradients each, and "
        f"2 scores an image; projected ascent {plan.restarts * (plan.steps + 1)} gradients.",
        '"active" counts latent coordinates whose posterior mean has a variance above 0.01.',
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--size", default="laptop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/khan-geometry"))
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--pictures", type=Path, help="folder of figures; needs matplotlib")
    given = parser.parse_args()
    train, test = (data.load(given.data, split) for split in ("train", "test"))
    torch.set_num_threads(1)
    result, vaes, x = khan_geometry(
        train,
        test,
        size=given.size,
        seed=given.seed,
        runs=given.runs,
        progress=lambda line: print(line, flush=True),
    )
    command = f"python -m robustvae.studies.khan_geometry {shlex.join(sys.argv[1:])}"
    result = replace(result, facts=result.facts | {"command": command})
    name = f"khan-geometry-{given.data.replace('_', '-')}"
    result.write(given.out, name)
    print(result.to_markdown())
    if given.pictures is not None:
        draw(result.models, vaes, x, test, given.pictures, name)


def _at(curve: Sequence[float], steps: Sequence[float], step: float) -> float:
    """The curve at the step of its grid that is nearest to `step`, by ratio."""
    return min(zip(steps, curve, strict=True), key=lambda pair: abs(math.log(pair[0] / step)))[1]


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    from scipy.stats import spearmanr

    if len(set(b)) == 1:
        return 0.0
    return float(spearmanr(a, b).statistic)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


if __name__ == "__main__":
    main()
