"""The attack suite: named, versioned, one call, one table; the pointwise worst case leads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.attacks.attack import Attack, Search
from robustvae.attacks.goals import Goal, LatentShift, MaximumDamage
from robustvae.data.changes import blur, jpeg
from robustvae.defenses import Victim
from robustvae.display import three_lines
from robustvae.errors import RangeError, UnsupportedError, check_choice, check_type
from robustvae.metrics import mean_stderr
from robustvae.perturb import LBFGS, Ball, OneShot, ProjectedAscent, SquareSearch, outward
from robustvae.seeding import split

_BALLS = (Ball("linf", 0.1), Ball("linf", 0.2), Ball("l2", 1.0), Ball("l2", 2.0))
_STANDARD: tuple[tuple[str, Goal, Search], ...] = (
    ("latent shift, ascent", LatentShift(), ProjectedAscent()),
    ("damage, ascent", MaximumDamage(), ProjectedAscent()),
    ("damage, ascent with momentum", MaximumDamage(), ProjectedAscent(momentum=0.75, restarts=5)),
    ("damage, L-BFGS", MaximumDamage(), LBFGS(restarts=3)),
    ("latent means, one shot", LatentShift("means"), OneShot(count=3)),
    ("damage, square search", MaximumDamage(), SquareSearch(steps=300)),
)
_SMOKE: tuple[tuple[str, Goal, Search], ...] = (
    ("latent shift, ascent", LatentShift(), ProjectedAscent(steps=10, restarts=2)),
    ("damage, ascent", MaximumDamage(), ProjectedAscent(steps=10, restarts=2)),
    ("damage, square search", MaximumDamage(), SquareSearch(steps=20)),
)
SUITES = {"standard": ("1", _STANDARD, _BALLS), "smoke": ("1", _SMOKE, (_BALLS[0], _BALLS[2]))}
WORST = "worst of the attacks"


@final
@dataclass(frozen=True, eq=False)
class SuiteRow:
    """One attack, or one floor, in one ball.

    Attributes:
        name: What was done; `WORST` for the pointwise worst case over the attacks.
        attack: Whether it is an attack (True) or a floor: noise, blur, JPEG (False).
        ball: Where.
        size: ||x_adv - x|| in the ball's norm, in pixel units, (B,).
        damage: ||reconstruction(x_adv) - reconstruction(x)||_2 by the victim, in pixel units, (B,).
        x_adv: Attacked images, (B, C, H, W).
        status: As in `AttackResult`; "ok" for floors.
    """

    name: str
    attack: bool
    ball: Ball
    size: Tensor
    damage: Tensor
    x_adv: Tensor
    status: tuple[str, ...]


@final
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
class SuiteResult:
    """All rows of a suite, ball by ball, the worst case of each ball first.

    Attributes:
        suite: Name and version, such as "standard-1".
        rows: The rows.
    """

    suite: str
    rows: tuple[SuiteRow, ...]

    def worst(self, ball: Ball) -> SuiteRow:
        """The pointwise worst case over all attacks in one of the suite's balls."""
        for row in self.rows:
            if row.name == WORST and row.ball == ball:
                return row
        raise RangeError(f"{self.suite} has no ball {ball.norm} {ball.radius}")

    def table(self) -> str:
        """The table as text: mean damage with its standard error, and inconclusive inputs."""
        lines = [
            f"{self.suite}: ||reconstruction(x_adv) - reconstruction(x)||_2, mean over inputs",
            f"{'ball':<12} {'attack':<32} {'damage':>8} {'s.e.':>7} {'size':>7} {'inconcl.':>8}",
        ]
        for row in self.rows:
            mean, stderr = mean_stderr(row.damage.tolist())
            blind = sum(status != "ok" for status in row.status)
            ball = f"{row.ball.norm} {row.ball.radius:g}"
            name = row.name if row.attack else f"  floor: {row.name}"
            size = float(row.size.mean())
            lines.append(
                f"{ball:<12} {name:<32} {mean:>8.3f} {stderr:>7.3f} {size:>7.3f} {blind:>8}"
            )
        return "\n".join(lines)


@final
@dataclass(frozen=True)
class AttackSuite:
    """A fixed list of goals, searches and balls, with floors of the same size beside them.

    The headline is the pointwise worst case: for every input the attack that moved the victim's
    own reconstruction furthest. Noise, blur and JPEG are stretched to the ball's radius, so that
    an attack that does no better is seen for what it is.

    Args:
        name: "standard" (version 1), or "smoke", the same in seconds, for tests only.
        balls: Other balls than the suite's own; the result then says "custom balls".

    Raises:
        UnknownNameError: Any other suite.

    References:
        Croce & Hein, 2020 (a fixed ensemble, judged pointwise).

    Examples:
        >>> from robustvae.attacks import AttackSuite
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> suite = AttackSuite("smoke", balls=(rv.Ball("l2", 0.5),))
        >>> found = suite(rv.Victim(vae), torch.rand(2, 1, 4, 4), generator=rv.generator(0))
        >>> found.rows[0].name
        'worst of the attacks'
    """

    name: str = "standard"
    balls: tuple[Ball, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown suite."""
        check_choice("attack suite", self.name, SUITES)
        if self.balls is not None:
            check_type(self.balls, "balls", tuple)
            for ball in self.balls:
                check_type(ball, "each of balls", Ball)

    def __call__(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> SuiteResult:
        """Run every attack and every floor on each of `x`, (B, C, H, W), in [0, 1]."""
        version, members, balls = SUITES[self.name]
        label = f"{self.name}-{version}"
        if self.balls is not None:
            balls, label = self.balls, f"{label}, custom balls"
        (for_images,) = split(generator, 1)
        state = for_images.get_state()

        def reconstruct(images: Tensor) -> Tensor:
            for_images.set_state(state)  # the same noise for all, so that only the image differs
            with torch.no_grad():
                return victim.reconstruct(images, generator=for_images)

        clean, rows = reconstruct(x), []
        for ball in balls:
            seeds = split(generator, len(members) + 1)
            results = []
            for (name, goal, search), seed in zip(members, seeds, strict=False):
                try:
                    result = Attack(goal, search, ball)(victim, x, generator=seed)
                except UnsupportedError:
                    continue
                results.append((name, True, result.x_adv, result.status))
            fine = ("ok",) * len(x)
            floors = {
                "noise": outward(x, ball, generator=seeds[-1]),
                "blur": stretched(x, blur(x), ball),
                "JPEG": stretched(x, jpeg(x), ball),
            }
            results += [(name, False, y, fine) for name, y in floors.items()]
            of_ball = [
                SuiteRow(name, attack, ball, ball.size(x, y), _far(reconstruct(y), clean), y, how)
                for name, attack, y, how in results
            ]
            rows += [_worst([row for row in of_ball if row.attack], ball), *of_ball]
        return SuiteResult(label, tuple(rows))


def stretched(x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """`y` moved along the ray from `x` to the ball's radius, then projected: equal size."""
    size = ball.size(x, y).clamp_min(1e-12)
    return ball.project(x, x + (y - x) * (ball.radii(x) / size).view(-1, 1, 1, 1))


def _worst(rows: list[SuiteRow], ball: Ball) -> SuiteRow:
    damage = torch.stack([row.damage for row in rows])
    best = damage.argmax(0)
    at = torch.arange(len(best), device=best.device)
    return SuiteRow(
        WORST,
        True,
        ball,
        torch.stack([row.size for row in rows])[best, at],
        damage[best, at],
        torch.stack([row.x_adv for row in rows])[best, at],
        tuple(
            "ok" if any(row.status[i] == "ok" for row in rows) else "inconclusive"
            for i in range(len(best))
        ),
    )


def _far(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm((a - b).flatten(1), dim=1)
