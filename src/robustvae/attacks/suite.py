"""The attack suite: named, versioned, one call, one table; the pointwise worst case leads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.attacks.attack import (
    AimedSearch,
    Attack,
    Search,
)
from robustvae.attacks.code_space import CodeSpace
from robustvae.attacks.directed import DirectedAscent
from robustvae.attacks.goals import Goal, LatentShift, LayerShift, MaximumDamage, MetricDrop
from robustvae.attacks.through import Through
from robustvae.data.changes import blur, jpeg
from robustvae.data.verbs import reads_inputs
from robustvae.defenses import Victim
from robustvae.display import three_lines
from robustvae.errors import RangeError, UnsupportedError, check_choice, check_type
from robustvae.metrics import default_variant, mean_stderr, ms_ssim
from robustvae.perturb import (
    LBFGS,
    Ball,
    CentralDifferences,
    ExploredAscent,
    OneShot,
    ProjectedAscent,
    SquareSearch,
    Universal,
    outward,
)
from robustvae.records import failure, failure_of, pieces
from robustvae.registry import build, register
from robustvae.seeding import split

_BALLS = (Ball("linf", 0.1), Ball("linf", 0.2), Ball("l2", 1.0), Ball("l2", 2.0))
_STANDARD: tuple[tuple[str, Goal, Search], ...] = (
    ("latent shift, ascent", LatentShift(), ProjectedAscent()),
    ("damage, ascent", MaximumDamage(), ProjectedAscent()),
    ("damage, ascent with momentum", MaximumDamage(), ProjectedAscent(momentum=0.75, restarts=5)),
    ("damage, L-BFGS", MaximumDamage(), LBFGS(restarts=3)),
    ("latent means, one shot", LatentShift("means"), OneShot(count=3)),
    ("damage, square search", MaximumDamage(), SquareSearch(steps=300)),
    ("damage, explored starts", MaximumDamage(), ExploredAscent()),
)
_SMOKE: tuple[tuple[str, Goal, Search], ...] = (
    ("latent shift, ascent", LatentShift(), ProjectedAscent(steps=10, restarts=2)),
    ("damage, ascent", MaximumDamage(), ProjectedAscent(steps=10, restarts=2)),
    ("damage, square search", MaximumDamage(), SquareSearch(steps=20)),
)
_ADAPTIVE: tuple[tuple[str, Goal, Search | AimedSearch], ...] = (
    ("latent shift, ascent", LatentShift(), ProjectedAscent()),
    ("damage, ascent", MaximumDamage(), ProjectedAscent()),
    ("similarity, ascent", MetricDrop(center="mean"), ProjectedAscent()),
    ("similarity, code space", MetricDrop(center="mean"), CodeSpace(60, 8, 40)),
    ("damage, transferred", MaximumDamage(), Through()),
    ("damage, straight through", MaximumDamage(), Through(gradient="straight-through")),
    ("damage, square search", MaximumDamage(), SquareSearch(steps=1000)),
    ("damage, explored starts", MaximumDamage(), ExploredAscent()),
)
# beside the standard ones: where gradients vanish on their way, lie, or start in the wrong place
_WIDE: tuple[tuple[str, Goal, Search | AimedSearch], ...] = (
    *_STANDARD,
    ("similarity, ascent", MetricDrop(), ProjectedAscent()),
    ("layers x output, ascent", LayerShift(times="output"), ProjectedAscent(restarts=5)),
    ("damage, directed starts", MaximumDamage(), DirectedAscent()),
    ("latent shift, directed starts", LatentShift(), DirectedAscent()),
    ("damage, central differences", MaximumDamage(), CentralDifferences()),
    ("damage, one change for all", MaximumDamage(), Universal()),
)
WORST = "worst of the attacks"


@final
@dataclass(frozen=True)
class Suite:
    """A fixed list of attacks: what a member of the family "suite" is.

    Attributes:
        version: Raised whenever a member changes, so that results say what they came from.
        members: Name, goal and search of each attack. Attacks that a victim cannot be put to are
            left out by name.
        balls: Where each attack is made.
    """

    version: str
    members: tuple[tuple[str, Goal, Search | AimedSearch], ...]
    balls: tuple[Ball, ...]


@register("suite", "standard")
def standard() -> Suite:
    """Seven attacks on code and output, by gradients, curvature and none, in four balls."""
    return Suite("2", _STANDARD, _BALLS)


@register("suite", "adaptive")
def adaptive() -> Suite:
    """Attacks that know the defense: on similarity, over codes, transferred, straight through."""
    return Suite("2", _ADAPTIVE, _BALLS)


@register("suite", "wide")
def wide() -> Suite:
    """The standard suite, and layers, chosen starts, slopes by differences, one change for all."""
    return Suite("2", _WIDE, _BALLS)


@register("suite", "smoke")
def smoke() -> Suite:
    """Three attacks of seconds in two balls, for tests only."""
    return Suite("1", _SMOKE, (_BALLS[0], _BALLS[2]))


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
        status: As in `AttackResult`; "ok" for floors. An input for which the victim raises, where
            it does not for others, has "failed: " and the reason, and damage and similarity NaN.
        similarity: MS-SSIM of those two reconstructions, in [0, 1], (B,).
    """

    name: str
    attack: bool
    ball: Ball
    size: Tensor
    damage: Tensor
    x_adv: Tensor
    status: tuple[str, ...]
    similarity: Tensor


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

    def __repr__(self) -> str:
        worst = [row for row in self.rows if row.name == WORST]
        attacks = {row.name for row in self.rows if row.attack and row.name != WORST}
        damages = "; ".join(
            f"{row.ball.norm} {row.ball.radius:g}: {float(row.damage.nanmean()):.4g}"
            for row in worst
        )
        blind = sum(status != "ok" for row in self.rows if row.attack for status in row.status)
        count = len(worst[0].damage) if worst else 0
        return (
            f"SuiteResult of {count} inputs: {self.suite}, {len(attacks)} attacks\n"
            f"mean damage by the worst attack of each ball: {damages or 'none'}\n"
            f"also: rows ({len(self.rows)}); {blind} attacks on an input inconclusive; see table()"
        )

    def worst(self, ball: Ball, by: str = "damage") -> SuiteRow:
        """The pointwise worst case over all attacks in one of the suite's balls.

        Args:
            ball: The ball.
            by: "damage", the most, or "similarity", the least: the reported metric decides.
        """
        check_choice("by", by, ("damage", "similarity"))
        rows = [row for row in self.rows if row.attack and row.name != WORST and row.ball == ball]
        if not rows:
            raise RangeError(
                f"ball must be one of the suite {self.suite}, got {ball.norm} {ball.radius}"
            )
        if by == "similarity":
            return _worst(rows, ball, by)
        return next(row for row in self.rows if row.name == WORST and row.ball == ball)

    def table(self) -> str:
        """The table as text: mean damage with its standard error, and inconclusive inputs."""
        lines = [
            f"{self.suite}: ||reconstruction(x_adv) - reconstruction(x)||_2, mean over inputs",
            f"{'ball':<12} {'attack':<32} {'damage':>8} {'s.e.':>7} {'size':>7} {'inconcl.':>8}",
        ]
        for row in self.rows:
            usable = [i for i, status in enumerate(row.status) if failure_of(status) is None]
            mean, stderr = mean_stderr(row.damage[usable].tolist())
            blind = sum(status != "ok" for status in row.status)
            ball = f"{row.ball.norm} {row.ball.radius:g}"
            name = row.name if row.attack else f"  floor: {row.name}"
            size = float(row.size[usable].mean())
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
        name: A member of the family "suite": "standard", "wide", "adaptive" for defended victims,
            "smoke" for tests, or one of your own that returns a `Suite`.
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
        """Validate name and balls."""
        build("suite", self.name)
        if self.balls is not None:
            check_type(self.balls, "balls", tuple)
            for ball in self.balls:
                check_type(ball, "each of balls", Ball)

    @reads_inputs("x", of="victim")
    def __call__(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> SuiteResult:
        """Run every attack and every floor on each of `x`, (B, C, H, W), in [0, 1]."""
        suite = build("suite", self.name)
        members, balls = suite.members, suite.balls
        label = f"{self.name}-{suite.version}"
        if self.balls is not None:
            balls, label = self.balls, f"{label}, custom balls"
        (for_images,) = split(generator, 1)
        state = for_images.get_state()

        def reconstruct(images: Tensor) -> tuple[Tensor, tuple[str, ...]]:
            def some(rows: Sequence[int]) -> Tensor:
                for_images.set_state(state)  # the same noise for all: only the image differs
                with torch.no_grad():
                    return victim.reconstruct(images[list(rows)], generator=for_images)

            output, status = torch.full_like(images, torch.nan), ["ok"] * len(images)
            for places, part in pieces(len(images), some):
                if isinstance(part, BaseException):
                    status[places[0]] = failure(part)
                else:
                    output[list(places)] = part.to(output)
            return output, tuple(status)

        clean, fine = reconstruct(x)
        rows = []
        for ball in balls:
            seeds = split(generator, len(members) + 1)
            results = []
            for (name, goal, search), seed in zip(members, seeds, strict=False):
                try:
                    result = Attack(goal, search, ball)(victim, x, generator=seed)
                except UnsupportedError:
                    continue
                results.append((name, True, result.x_adv, result.status))
            floors = {
                "noise": outward(x, ball, generator=seeds[-1]),
                "blur": stretched(x, blur(x), ball),
                "JPEG": stretched(x, jpeg(x), ball),
            }
            results += [(name, False, y, fine) for name, y in floors.items()]
            of_ball = []
            for name, attack, y, how in results:
                output, after = reconstruct(y)
                status = tuple(
                    word if failure_of(last) is None else last
                    for word, last in zip(how, after, strict=True)
                )
                usable = [i for i, word in enumerate(status) if failure_of(word) is None]
                similarity = output.new_full((len(x),), torch.nan)
                similarity[usable] = ms_ssim(
                    output[usable].clamp(0, 1),
                    clean[usable].clamp(0, 1),
                    variant=default_variant(x),
                )
                far = _far(output, clean)
                size = ball.size(x, y)
                of_ball.append(SuiteRow(name, attack, ball, size, far, y, status, similarity))
            rows += [_worst([row for row in of_ball if row.attack], ball), *of_ball]
        return SuiteResult(label, tuple(rows))


def stretched(x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """`y` moved along the ray from `x` to the ball's radius, then projected: equal size."""
    size = ball.size(x, y).clamp_min(1e-12)
    return ball.project(x, x + (y - x) * (ball.radii(x) / size).view(-1, 1, 1, 1))


def _worst(rows: list[SuiteRow], ball: Ball, by: str = "damage") -> SuiteRow:
    harm = torch.stack([row.damage if by == "damage" else -row.similarity for row in rows])
    best = harm.nan_to_num(nan=-torch.inf).argmax(0)
    at = torch.arange(len(best), device=best.device)

    def chosen(name: str) -> Tensor:
        return torch.stack([getattr(row, name) for row in rows])[best, at]

    status = tuple(
        # what was learned at best: that the input fails is said where no attack could be made
        min(
            (row.status[i] for row in rows), key=lambda word: (word != "ok", bool(failure_of(word)))
        )
        for i in range(len(best))
    )
    return SuiteRow(
        WORST,
        True,
        ball,
        chosen("size"),
        chosen("damage"),
        chosen("x_adv"),
        status,
        chosen("similarity"),
    )


def _far(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm((a - b).flatten(1), dim=1)
