"""What every score, refinement, suite and logger promises."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from robustvae.attacks import AttackSuite
from robustvae.attacks.suite import Suite
from robustvae.defenses import Victim
from robustvae.defenses.refine import Refinement
from robustvae.loggers import Logger
from robustvae.models import VAE
from robustvae.perturb import Ball
from robustvae.registry import build
from robustvae.scores import Score
from robustvae.seeding import generator
from robustvae.testing.contracts import check_gradient, close, member_of, require, unchanged
from robustvae.testing.planted import gray_images, tiny_vae


def check_score(
    score: Score | str,
    victim: Victim | None = None,
    x: Tensor | None = None,
    *,
    anomalies: Tensor | None = None,
    differentiable: bool = True,
) -> None:
    """Check a score's contract: one finite number a row that the generator and the row decide.

    Args:
        score: The score, or its spec, fitted where it must be.
        victim: Whose scores are taken; the undefended `tiny_vae()` by default.
        x: Normal inputs of its model, (B, C, H, W), B at least 2.
        anomalies: Inputs, (K, C, H, W), whose mean score must lie above that of `x`.
        differentiable: Whether attacks get a gradient from it.

    Raises:
        ContractError: A broken promise, in a sentence.

    Examples:
        >>> from robustvae.scores import ReconstructionError
        >>> from robustvae.testing import check_score
        >>> check_score(ReconstructionError())
    """
    victim = Victim(tiny_vae()) if victim is None else victim
    x = gray_images(3, victim.vae.image_shape[-1]) if x is None else x
    member: Score = member_of("score", score)
    what = f"the score {type(member).__name__}"
    require(isinstance(member, Score), f"{what} is not called as (victim, x, *, generator)")

    def read(images: Tensor, seed: int = 1) -> Tensor:
        with torch.no_grad():
            return member(victim, images, generator=generator(seed))

    with unchanged(victim.vae, what):
        values = read(x)
    require(
        values.shape == (len(x),) and values.is_floating_point() and bool(values.isfinite().all()),
        f"{what} returns {tuple(values.shape)} {values.dtype}, not {len(x)} finite numbers",
    )
    require(torch.equal(values, read(x)), f"{what} gives other values for the same generator")
    if torch.equal(values, read(x, 2)):
        alone = torch.cat([read(row) for row in x.split(1)])
        require(close(alone, values, 1e-6), f"{what} lets a row's value depend on the other rows")
    if anomalies is not None:
        gap = float(read(anomalies).mean() - values.mean())
        require(gap > 0, f"{what} is {gap:.3g} higher for anomalies: higher is less normal")
    if differentiable:
        leaf = x.clone().requires_grad_()
        value = member(victim, leaf, generator=generator(1))
        check_gradient(value, leaf, what)


def check_refinement(
    refinement: Refinement | str,
    vae: VAE | None = None,
    x: Tensor | None = None,
    *,
    differentiable: bool = True,
) -> None:
    """Check a refinement's contract: images in [0, 1] to images in [0, 1], row by row.

    Args:
        refinement: The refinement, or its spec.
        vae: A model in float64; `tiny_vae()` by default.
        x: Inputs of that model, (B, C, H, W), B at least 2.
        differentiable: Whether it passes gradients on, straight through where its own are 0.

    Raises:
        ContractError: A broken promise, in a sentence.

    Examples:
        >>> from robustvae.defenses import Median
        >>> from robustvae.testing import check_refinement
        >>> check_refinement(Median(3))
    """
    vae = tiny_vae() if vae is None else vae
    x = gray_images(3, vae.image_shape[-1]) if x is None else x
    member: Refinement = member_of("refinement", refinement)
    what = f"the refinement {type(member).__name__}"
    require(isinstance(member, Refinement), f"{what} is not called as (vae, x, *, generator)")

    def read(images: Tensor, seed: int = 1) -> Tensor:
        with torch.no_grad():
            return member(vae, images, generator=generator(seed))

    with unchanged(vae, what):
        y = read(x)
    require(
        y.shape == x.shape and y.dtype == x.dtype,
        f"{what} returns {tuple(y.shape)} {y.dtype}, not images {tuple(x.shape)} {x.dtype}",
    )
    inside = bool(((y >= 0) & (y <= 1)).all())
    require(inside, f"{what} leaves [0, 1], or is not finite: clamp last")
    require(torch.equal(y, read(x)), f"{what} gives other images for the same generator")
    is_moved = not torch.equal(y, read(x, 2))
    random = getattr(member, "is_random", None)
    require(
        random is None or random or not is_moved,
        f"{what} says that it is not random and depends on its generator",
    )
    if not is_moved:
        alone = torch.cat([read(row) for row in x.split(1)])
        require(close(alone, y, 1e-6), f"{what} lets an image depend on the other rows")
    if differentiable:
        leaf = x.clone().requires_grad_()
        check_gradient(member(vae, leaf, generator=generator(1)), leaf, what)


def check_suite(name: str, victim: Victim | None = None, x: Tensor | None = None) -> None:
    """Check a suite's contract: it runs whole, stays inside its balls, and beats noise.

    Args:
        name: The suite's name in the registry, or `package.module:Name`.
        victim: What is attacked; the undefended `tiny_vae()` by default.
        x: Inputs of its model, (B, C, H, W).

    Raises:
        ContractError: A broken promise, in a sentence.

    Examples:
        >>> from robustvae.testing import check_suite
        >>> check_suite("smoke")
    """
    victim = Victim(tiny_vae()) if victim is None else victim
    x = gray_images(2, victim.vae.image_shape[-1]) if x is None else x
    what = f"the suite {name}"
    suite = build("suite", name)
    require(isinstance(suite, Suite), f"{what} is a {type(suite).__name__}, not a Suite")
    names = [member for member, _, _ in suite.members]
    require(bool(names) and bool(suite.balls), f"{what} holds no attack, or no ball")
    require(len(set(names)) == len(names), f"{what} has two attacks of one name")
    require(bool(suite.version), f"{what} has no version: results must say what they came from")
    # the smallest ball of each norm: attacks are the same in the others, and cost as much
    balls: dict[str, Ball] = {}
    for ball in sorted(suite.balls, key=lambda ball: float(torch.as_tensor(ball.radius).max())):
        balls.setdefault(ball.norm, ball)
    with unchanged(victim.vae, what):
        result = AttackSuite(name, tuple(balls.values()))(victim, x, generator=generator(1))
    for row in result.rows:
        inside = bool(row.ball.contains(x, row.x_adv).all())
        require(inside, f"{what} leaves its {row.ball.norm} ball in {row.name!r}")
    for ball in balls.values():
        noise = next(row for row in result.rows if row.ball == ball and row.name == "noise")
        worst = result.worst(ball)
        require(
            bool((worst.damage >= noise.damage).all()),
            f"{what} does less damage than noise of its size in {ball.norm} {ball.radius}",
        )


def check_logger(logger: Logger | str) -> None:
    """Check a logger's contract: it takes numbers with and without a step, again and again.

    What it writes is its own matter: read it where it went.

    Args:
        logger: The logger, or its spec, made for a place that may be written to.

    Raises:
        ContractError: A broken promise, in a sentence.

    Examples:
        >>> import tempfile
        >>> from robustvae.loggers import JSONLines
        >>> from robustvae.testing import check_logger
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_logger(JSONLines(f"{folder}/log.jsonl"))
    """
    member: Logger = member_of("logger", logger)
    what = f"the logger {type(member).__name__}"
    require(isinstance(member, Logger), f"{what} has no log(values, *, step) or log_files(folder)")
    values = {"audit/damage": 1.5, "audit/required: damage<=2": 1.0}
    before = dict(values)
    try:
        member.log(values, step=1)
        member.log({"audit/damage": 0.5}, step=2)
        member.log({"loss": 1e-300})
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "report.html").write_text("<p>1</p>", encoding="utf-8")
            member.log_files(folder)
    except Exception as error:  # whatever a tracker raises would end a training
        require(False, f"{what} raises {type(error).__name__}: {error}")
    require(values == before, f"{what} changes the numbers that it is given")
