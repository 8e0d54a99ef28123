"""Trials of certificates: perturbations inside the radius, each judged by draws of the output.

A trial is an input and a perturbation shorter than its certified radius. It fails when the
Clopper-Pearson upper bound on P(||Delta|| <= r), at confidence 1 - 1e-8, is at most m; draws are
added until that is decided either way, or the last of `LOOKS` is reached. One failure refutes a
certificate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from robustvae.attacks import AttackSuite
from robustvae.certificates import Question, certify
from robustvae.defenses import Victim
from robustvae.display import three_lines
from robustvae.metrics import clopper_pearson
from robustvae.models import VAE, Distribution, Gaussian
from robustvae.perturb import Ball
from robustvae.seeding import draw, randn

SHARES = (0.25, 0.7, 0.95, 0.999, 1 - 1e-6)
"""Sizes of the perturbations, as shares of the certified radius."""

LOOKS = (12, 96, 768, 6144, 30720)
"""Draws after which a trial is looked at; the last of them ends it."""

VIOLATED, HELD = 1e-8, 1e-3
_BLENDS = (0.0, 0.0, 0.3, 1.0)  # noise added to the direction of an attack, relative to its length
_ROWS = 2**15  # decoded at once


@final
@three_lines()
@dataclass(repr=False)
class Trials:
    """A count of trials and how they ended.

    Attributes:
        done: Trials made.
        violations: Those that refute the certificate.
        undecided: Those too close to m for the draws allowed.
        adversarial: Those along the direction of an attack.
        box: Those whose perturbed image lies in [0, 1].
        draws: Draws of the output spent.
        inputs: Inputs with a radius above 0, summed over the rounds.
        abstained: Inputs without one.
    """

    done: int = 0
    violations: int = 0
    undecided: int = 0
    adversarial: int = 0
    box: int = 0
    draws: int = 0
    inputs: int = 0
    abstained: int = 0

    def add(self, other: Trials) -> None:
        """Count the other's trials as well."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def trials(
    vae: VAE,
    x: Tensor,
    question: Question,
    *,
    count: int,
    generator: torch.Generator,
    methods: Sequence[Any] | None = None,
    suite: str = "smoke",
) -> Trials:
    """Try to refute the certificates of some inputs.

    Every round certifies anew, attacks each input at its own radius with every attack of a suite,
    and tries those directions, blends of them with noise, and noise alone, at several shares of
    the radius, in the pixel range and out of it.

    Args:
        vae: What is certified.
        x: Images in [0, 1], (B, C, H, W).
        question: What is certified: l2, from the mean center; with and without the box.
        count: Trials at least; fewer only where every input abstains.
        generator: Spent by all of it.
        methods: As of `certify`.
        suite: Name of the attack suite.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.testing import trials
        >>> vae = rv.load("digits-lipschitz-vae")
        >>> x = rv.data.load("digits", split="test").x[:4]
        >>> question = rv.Question(r=1.0, displacement="centered", box=False)
        >>> found = trials(vae, x, question, count=500, generator=rv.generator(0))
        >>> found.done >= 500, found.violations
        (True, 0)
    """
    total = Trials()
    while total.done < count:
        certificate = certify(vae, x, question=question, generator=generator, methods=methods)
        is_positive = certificate.radius > 0
        total.inputs += int(is_positive.sum())
        total.abstained += int((~is_positive).sum())
        if not bool(is_positive.any()):
            break
        inside = x[is_positive]
        radius = certificate.radius[is_positive].to(x.dtype).view(-1, 1, 1, 1)
        attacks = _attacked(vae, inside, radius.flatten(), suite, generator)
        for direction, attacked in _directions(inside, attacks, generator):
            results = _round(vae, inside, radius * direction, question, generator)
            results.adversarial = results.done * attacked
            total.add(results)
            if total.done >= count:
                break
    return total


def _attacked(
    vae: VAE, x: Tensor, radius: Tensor, suite: str, generator: torch.Generator
) -> list[tuple[Tensor, bool]]:
    """The perturbations of the suite at each input's own radius, and whether by an attack."""
    steps = []
    for box in ((0.0, 1.0), (None, None)):
        ball = Ball("l2", radius, *box)
        result = AttackSuite(suite, balls=(ball,))(Victim(vae), x, generator=generator)
        steps += [(row.x_adv - x, row.attack) for row in result.rows]
    return steps


def _directions(
    x: Tensor, suite: list[tuple[Tensor, bool]], generator: torch.Generator
) -> Iterator[tuple[Tensor, bool]]:
    """Directions of length 1, in random order, and whether an attack gave them."""

    def noise() -> Tensor:
        return randn(*x.shape, like=x, generator=generator)

    kinds: list[tuple[Tensor | None, bool, float]] = []
    for change, attack in suite:
        kinds += [(change, attack, blend) for blend in (_BLENDS if attack else _BLENDS[:1])]
        kinds += [(None, False, few) for few in (0, 1, 3)] * attack
    for i in torch.randperm(len(kinds), generator=generator).tolist():
        result, attack, how = kinds[i]
        if result is not None:
            yield _unit(_unit(result) + how * _unit(noise())), attack
            continue
        direction = noise()
        if how:  # on a few pixels only
            flat = direction.flatten(1)
            least = flat.abs().topk(int(how), dim=1).values[:, -1:]
            direction = (flat * (flat.abs() >= least)).view_as(x)
        yield _unit(direction), False


def _unit(change: Tensor) -> Tensor:
    return change / change.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, 1, 1, 1)


def _round(
    vae: VAE, x: Tensor, longest: Tensor, question: Question, generator: torch.Generator
) -> Trials:
    """Both signs of the longest changes at all shares, and the same clipped to the pixel range."""
    points = []
    for share in SHARES:
        step = share * longest
        points += [x + step, x - step, (x + step).clamp(0, 1)]
    x_adv = torch.cat(points)
    clean = x.repeat(len(points), 1, 1, 1)
    radius = longest.double().flatten(1).norm(dim=1)
    largest = torch.cat([share * radius for share in SHARES for _ in range(3)])
    size = (x_adv - clean).double().flatten(1).norm(dim=1)
    assert bool((size <= largest * (1 + 1e-6) + 1e-6).all())  # the image's own rounding
    with torch.no_grad():
        violations, open_rows, draws = judge(vae, clean, x_adv, question, generator=generator)
    return Trials(
        done=len(x_adv),
        violations=violations,
        undecided=open_rows,
        box=int(((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1).sum()),
        draws=draws,
    )


def judge(
    vae: VAE,
    x: Tensor,
    x_adv: Tensor,
    question: Question,
    *,
    generator: torch.Generator,
) -> tuple[int, int, int]:
    """Of perturbed images: how many refute robustness, how many are undecided, and draws spent."""
    r, m, displacement = question.r, question.m, question.displacement
    q, q_adv = vae.encode(x), vae.encode(x_adv)
    center = vae.decode(q.mean).mean.flatten(1)
    if displacement == "centered":
        q_adv = Gaussian(q_adv.mean, q.stddev)
    inside = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    open_ = torch.arange(len(x), device=x.device)
    violations = draw_count = before = 0
    for look in LOOKS:
        draws = look - before
        for rows in open_.split(max(1, _ROWS // draws)):
            end = _outputs(vae, x_adv, q_adv, rows, draws, generator)
            start = center[rows]
            if displacement == "paired":
                start = _outputs(vae, x, q, rows, draws, generator)
            inside[rows] += ((end - start).norm(dim=2) <= r).sum(0)
        draw_count += len(open_) * draws
        before = look
        count = inside[open_].cpu().numpy()
        _, high = clopper_pearson(count, look, 1 - VIOLATED, sides=1)
        low, _ = clopper_pearson(count, look, 1 - HELD, sides=1)
        is_violation = np.asarray(high) <= m
        violations += int(is_violation.sum())
        open_ = open_[torch.as_tensor(~is_violation & ~(np.asarray(low) > m), device=x.device)]
        if not len(open_):
            break
    return violations, len(open_), draw_count


def _outputs(
    vae: VAE,
    x: Tensor,
    q: Distribution,
    rows: Tensor,
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """Outputs of draws from the posteriors of some rows, (draws, n, D)."""
    q = Gaussian(q.mean[rows], q.stddev[rows]) if isinstance(q, Gaussian) else vae.encode(x[rows])
    z = draw(q, (draws,), generator=generator)
    return vae.decode(z.flatten(0, 1)).mean.reshape(draws, len(rows), -1)
