"""What is measured beside the rows, on a few inputs, for the checks to judge."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustvae.attacks import Attack
from robustvae.attacks.attack import ready
from robustvae.audit.budget import Clock
from robustvae.audit.checks.gradient_matches_function import (
    GradientMatchesFunction,
    informative,
)
from robustvae.audit.checks.gradient_seen import rests_on_plateaus
from robustvae.audit.context import Context, distance, error_of, nature_of
from robustvae.audit.plan import AttackPlan
from robustvae.defenses import Victim, cost
from robustvae.models.diagnosis import check
from robustvae.perturb import Ball, ProjectedAscent, Score
from robustvae.perturb.ascent import evaluate, rows_that_fit
from robustvae.records import Case
from robustvae.seeding import RowGenerator, randn, row_generators

STEPS, RESTARTS = 20, 2  # of the probes' own attacks: enough to tell a function from a table
_DIRECTIONS = 10
_POINTS = 3  # inputs at which the gradient is compared with the function
# root mean square step of a difference, a pixel: far above float32's rounding, far below an edge
_STEP = 0.01
# share of the function's slope below which a gradient is none, whatever the chaos
_HIDDEN = 1e-3
# root mean square step, a pixel, that looks over the plateaus on which climbs come to rest: there
# smooth models and chaotic chains keep a quarter of its slope and more, saturated ones a hundredth
_FAR = 0.1
_FAR_DIRECTIONS = 6  # of the others: only sizes are compared
_VANISHED = 0.1  # share of the slope over such a step below which the gradient has vanished
_CHEAP = 10  # passes through the model behind one code: the differences' thousand times may be paid
_AGREEING = 0.9  # cosine of a gradient that points where the function rises
_ENDS = 6  # inputs whose climbs' ends are looked at
_LOOK = 10  # steps of the climb that shows where attacks come to rest, before any was made
_CROWD = 100  # rows of a batch as attacks make them: a victim may notice that many come at once
_CROWD_PIXELS = 100_000  # of such a batch: large images come in smaller ones
# root mean square change, a pixel, of inputs that are the same but for rounding: a hundred times
# float32's own at 1, a thousandth of `_STEP`
_TINY = 1e-5
# of all probes' time: seven attacks of equal length, and the differences
_SHARES = {"gradient": 0.1, "larger": 0.25, "unbounded": 0.15, "beside": 0.5}
_MARGIN = 0.06  # keeps the differences of such steps away from the ends of the range


def probe(
    context: Context,
    unseen: Tensor,
    note: Callable[[str, Exception], None],
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Everything that the checks judge beside the rows, in JSON's own types.

    Args:
        context: The first few inputs, with all attacks on them.
        unseen: Inputs of the same data that the audit does not use, (N, ...), N possibly 0.
        note: Told the name and the error of each probe that could not be made.
        clock: Leaves out what there is no time for; None where there is no limit. The diagnosis is
            always made.
    """
    clock = Clock() if clock is None else clock
    clock.start_part(context.name, len(context.x), "probes")
    share = clock.expected.get("probes", 0.0)
    probes: dict[str, Any] = {}
    stages: dict[str, Callable[[], Any]] = {
        "diagnosis": lambda: _diagnosis(context),
        "repeat": lambda: _repeat(context),
        "batch": lambda: _batch(context),
        "near": lambda: _near(context),
        "again": lambda: _again(context),
        "gradient": lambda: _gradient(context),
        "larger": lambda: _larger(context),
        "unbounded": lambda: _unbounded(context),
        "finite": lambda: _finite(context, unseen),
        "beside": lambda: _beside(context, unseen),
    }
    for name, stage in stages.items():
        try:
            expected = None if name == "diagnosis" else share * _SHARES.get(name, 0.0)
            with clock.stage(f"probe {name}", expected):
                probes[name] = stage()
        except Exception as error:  # a stranger's model may raise anything: the rest goes on
            note(f"probe {name}", error)
            probes[name] = None
    probes["cost"] = _cost(context.victim)
    return probes


def _cost(victim: Victim) -> dict[str, int] | None:
    """What reading one code takes; None of a defense that does not say."""
    price = cost(victim.defense)
    return None if price is None else dataclasses.asdict(price)


def _diagnosis(context: Context) -> list[dict[str, Any]]:
    """What `rv.check` says of the victim."""
    return [
        {
            "name": item.name,
            "passed": True if item.fixed else item.passed,
            "message": item.message,
            "remedy": item.remedy,
        }
        for item in check(context.victim, context.x).items
    ]


def _relative(a: Tensor, b: Tensor) -> float:
    """Greatest distance of two outputs relative to their length."""
    gap = distance(a, b) / b.flatten(1).norm(dim=1).clamp_min(1e-6)
    return float(gap.nan_to_num(math.inf).max())


def _repeat(context: Context) -> float:
    """The same call again with the generator in the same state; also before all attacks."""
    x, victim = context.x, context.victim
    calls = [victim.reconstruct(x, generator=context.generator("repeat")) for _ in range(3)]
    gaps = [_relative(call, calls[0]) for call in calls[1:]]
    first = context.cache.get("first output")
    if first is not None:
        fresh = dataclasses.replace(context, cache={})
        gaps.append(_relative(fresh.output[: len(first)], first[: len(x)].to(x)))
    return max(gaps)


def _batch(context: Context) -> float | None:
    """Each input alone, in a batch, in it turned round, and among a hundred rows.

    None where rows share draws.
    """
    x, victim = context.x, context.victim
    nature = nature_of(victim, x)
    if nature.random and not nature.by_row:
        return None
    numbers = context.numbers

    def read(rows: Sequence[int]) -> Tensor:
        streams = row_generators(context.seed, "batch", [numbers[row] for row in rows], x.device)
        return victim.reconstruct(x[list(rows)], generator=RowGenerator(streams))

    everything = range(len(x))
    together = read(everything)
    alone = torch.cat([read([row]) for row in everything[:4]])
    rotation = read(everything[::-1]).flip(0)
    times = min(_CROWD, max(1, _CROWD_PIXELS // x[0].numel())) // len(x)
    crowd = read([*everything] * max(times, 2))[-len(x) :]
    return max(
        _relative(alone, together[: len(alone)]),
        _relative(rotation, together),
        _relative(crowd, together),
    )


def _near(context: Context) -> dict[str, float] | None:
    """How far outputs move for a change of rounding's size, and for one of a difference's step.

    From points beside the inputs, which themselves may lie on the edges of a rounding's steps.
    None for a victim that draws: its outputs move anyway.
    """
    if nature_of(context.victim, context.x).random:
        return None
    x = _MARGIN + (1 - 2 * _MARGIN) * context.x
    shift, change = (
        randn(*x.shape, like=x, generator=context.generator(f"near {name}")).clamp(-2.5, 2.5)
        for name in ("start", "change")
    )
    start = x + 2 * _STEP * shift
    outputs = [
        context.victim.reconstruct(start + size * change, generator=context.generator("near"))
        for size in (0.0, _TINY, _STEP)
    ]
    tiny, step = (distance(output, outputs[0]).nan_to_num(0.0) for output in outputs[1:])
    return {"tiny": float(tiny.median()), "step": float(step.median())}


def _again(context: Context) -> float:
    """The damage of the attacked inputs, measured in batches of another shape."""
    gaps = []
    for attacked in context.attacks:
        fresh = dataclasses.replace(context, cache={}).about(attacked)
        x = torch.cat([context.x, attacked.x_adv])
        pair = dataclasses.replace(
            fresh, x=x, numbers=context.numbers * 2, attacked=None, attacks=()
        )
        both = pair.read(context.victim, x, "output")
        count = len(context.x)
        damage = distance(both[count:], both[:count])
        row_damage = distance(context.about(attacked).attacked_output, context.output)
        scale = row_damage.clamp_min(0.05 * float(row_damage.max()) + 1e-6)
        gaps.append(float(((damage - row_damage).abs() / scale).nan_to_num(math.inf).max()))
    return max(gaps, default=0.0)


def _score(context: Context, x: Tensor, attack: AttackPlan) -> Score:
    goal = attack.build().goal
    return goal.bind(context.victim, x, generator=context.generator("probe score"))


def gradient_lies(context: Context) -> bool:
    """Whether the score's gradient is missing, or not that of its function, at most points.

    Then slopes by differences are climbed too; also where differences of two steps contradict each
    other, so that nothing is known of the gradient, unless the victim draws, when differences have
    its noise, or reads its code by a long search, when they cost too much.
    """
    try:
        points = _gradient(context)
    except Exception:  # a backward pass that raises gives no gradient either
        return True
    case = Case(context.name, [], {"gradient": points}, {})
    judgment = GradientMatchesFunction()(case)
    blind = sum(point["plateau"] or point["hidden"] for point in points)
    if judgment.passed is False or 2 * blind > len(points) or rests_on_plateaus(points):
        return True
    price = cost(context.victim.defense)
    cheap = price is None or price.gradients + price.forwards <= _CHEAP
    return informative(case) is None and cheap and not nature_of(context.victim, context.x).random


def _gradient(context: Context) -> list[dict[str, Any]]:
    """Gradient against central differences along random directions, at x and at the attack's end.

    Two step sizes are compared first: where they contradict each other the differences say nothing.
    """
    attack = context.plan.attacks[0]
    x = context.x[:_ENDS]
    peaks = context.attacks[0].x_adv[: len(x)] if context.attacks else _climb(context, x, attack)
    begin, ends = (_MARGIN + (1 - 2 * _MARGIN) * images for images in (x[:_POINTS], peaks))
    # at x itself the gradient of a distance vanishes
    shift = randn(*begin.shape, like=x, generator=context.generator("probe start"))
    begin = begin + 2 * _STEP * shift.clamp(-2.5, 2.5)
    points: list[dict[str, Any]] = []
    with ready(context.victim, x, Ball("l2", 1.0)) as clean:
        score = _score(context, clean, attack)
        for place, start in enumerate((begin, ends)):
            rows = torch.arange(len(start), device=x.device)
            _, slope = evaluate(score, start, rows)
            assert slope is not None
            for point in _compared(context, score, start, slope, rows):
                points.append({**point, "end": place == 1})
    # a gradient of another length everywhere leads as well: lengths count from the usual one
    ratios = [p["ratio"] for p in points if p["trusted"] and p["agreement"] > _AGREEING]
    usual = statistics.median(ratios) if ratios else 1.0
    for point in points:
        reach = point.pop("reach")
        point["vanished"] = bool(reach > 0 and usual * point.pop("guess") <= _VANISHED * reach)
        del point["ratio"]
    return points


def _climb(context: Context, x: Tensor, attack: AttackPlan) -> Tensor:
    """Where a short climb of the plan's first attack ends, (B, ...)."""
    search = ProjectedAscent(steps=_LOOK, restarts=1)
    look = Attack(attack.build().goal, search, Ball(attack.norm, attack.radius))
    return look(context.victim, x, generator=context.generator("probe climb")).x_adv


def _compared(
    context: Context, score: Score, start: Tensor, slope: Tensor, rows: Tensor
) -> list[dict[str, Any]]:
    count = len(start)
    directions = randn(
        _DIRECTIONS, 1, *start.shape[1:], like=start, generator=context.generator("directions")
    ).clamp(-2.5, 2.5)
    few = directions[:_FAR_DIRECTIONS]
    signs = (1, -1)
    near = [start + sign * size * directions for size in (_STEP, _STEP / 2) for sign in signs]
    wide = [(start + sign * _FAR * few).clamp(0, 1) for sign in signs]
    candidates = torch.cat([part.flatten(0, 1) for part in (*near, *wide)])
    # a victim that draws for a whole batch is the same function in batches of one form alone
    nature = nature_of(context.victim, start)
    at_once = rows_that_fit(start, 250) if nature.by_row or not nature.random else count
    many = rows.repeat(len(candidates) // count)
    values = torch.cat(
        [
            evaluate(score, part, which, gradient=False)[0]
            for part, which in zip(candidates.split(at_once), many.split(at_once), strict=True)
        ]
    ).double()
    parts = values.view(-1, count).split([_DIRECTIONS] * 4 + [_FAR_DIRECTIONS] * 2)
    up, down, near_up, near_down, far_up, far_down = parts
    long, short = (up - down) / (2 * _STEP), (near_up - near_down) / _STEP
    far = (far_up - far_down) / (2 * _FAR)
    prediction = (directions.double() * slope.double()).flatten(2).sum(2)
    points = []
    for i in range(count):
        one, other, local = long[:, i], short[:, i], prediction[:, i]
        size = float(torch.maximum(one.norm(), other.norm()))
        finite = math.isfinite(size) and bool(local.isfinite().all())
        level = float(values.abs().max()) if finite else math.inf
        least = 1e-4 * max(level, 1e-6)
        flat = not finite or size <= least
        agree = finite and float((one - other).norm()) <= 0.25 * size
        lengths = float(local.norm() * other.norm())
        cosine = float((local * other).sum()) / lengths if lengths > 0 else 0.0
        reach, guess = float(far[:, i].norm()), float(local[:_FAR_DIRECTIONS].norm())
        points.append(
            {
                "trusted": bool(agree and not flat),
                "agreement": cosine if math.isfinite(cosine) else 0.0,
                "hidden": bool(not flat and float(local.norm()) <= _HIDDEN * size),
                "plateau": bool(flat and float(local.norm()) == 0),
                "reach": reach if math.isfinite(reach) and reach > least else 0.0,
                "guess": guess,
                "ratio": float(other.norm() / local.norm()) if lengths > 0 else 1.0,
            }
        )
    return points


def _shortened(attack: AttackPlan) -> Any:
    """The attack's search with no more effort than probes need."""
    search = attack.build().search
    limits = {"steps": STEPS, "restarts": RESTARTS}
    names = {f.name for f in dataclasses.fields(search)} if dataclasses.is_dataclass(search) else ()
    changes = {
        name: min(limit, getattr(search, name))
        for name, limit in limits.items()
        if name in names and getattr(search, name)
    }
    return dataclasses.replace(search, **changes) if changes else search  # type: ignore[type-var]


def _run(context: Context, x: Tensor, radius: float, victim: Victim | None = None) -> Tensor:
    """Scores of the plan's first attack with a probe's effort, at some radius, (B,)."""
    attack = context.plan.attacks[0]
    result = Attack(attack.build().goal, _shortened(attack), Ball(attack.norm, radius))(
        victim or context.victim, x, generator=context.generator("probe attack")
    )
    return result.score


def _mean(values: Tensor) -> float:
    return float(values.nan_to_num(0.0, 0.0, 0.0).mean())


def _larger(context: Context) -> dict[str, float]:
    radius = context.plan.attacks[0].radius
    return {
        "base": _mean(_run(context, context.x, radius)),
        "double": _mean(_run(context, context.x, 2 * radius)),
    }


def _unbounded(context: Context) -> dict[str, float]:
    attack, x = context.plan.attacks[0], context.x
    count = x[0].numel()
    radius = {"l0": float(count), "linf": 1.0}.get(attack.norm, math.sqrt(count))
    with ready(context.victim, x, Ball(attack.norm, radius)) as clean, torch.no_grad():
        score = _score(context, clean, attack)
        exchange = score(clean.roll(1, 0), torch.arange(len(x), device=x.device))
    return {"whole": _mean(_run(context, x, radius)), "swapped": _mean(exchange)}


def _neighbors(context: Context, unseen: Tensor) -> dict[str, Tensor]:
    """Inputs beside the audited ones: shifted, lightly noised, and never seen by the audit."""
    x = context.x
    noise = randn(*x.shape, like=x, generator=context.generator("neighbors"))
    neighbor = torch.zeros_like(x)
    neighbor[..., 1:] = x[..., :-1]
    groups = {"shifted": neighbor, "noised": (x + 0.03 * noise).clamp(0, 1)}
    if len(unseen):
        groups["unseen"] = unseen[: len(x)].to(x)
    return groups


def _finite(context: Context, unseen: Tensor) -> dict[str, int]:
    groups = _neighbors(context, unseen)
    groups |= {f"attacked {i}": a.x_adv for i, a in enumerate(context.attacks)}
    finite = count = 0
    for images in groups.values():
        try:
            output = context.victim.reconstruct(images, generator=context.generator("finite"))
            finite += int(output.flatten(1).isfinite().all(1).sum())
        except (ValueError, ArithmeticError):  # a victim that refuses what it made itself
            pass
        count += len(images)
    return {"finite": finite, "count": count}


def _beside(context: Context, unseen: Tensor) -> dict[str, Any]:
    """Damage by one attack, and reconstruction error, on and beside the audited inputs.

    The error on noised inputs is the distance to the inputs without noise, less the noise's length.
    """
    attack = context.plan.attacks[0]
    search = _shortened(attack)
    measured: dict[str, Any] = {"damage_beside": {}, "error_beside": {}}
    for name, x in {"own": context.x, **_neighbors(context, unseen)}.items():
        goal = attack.build().goal
        result = Attack(goal, search, Ball(attack.norm, attack.radius))(
            context.victim, x, generator=context.generator("probe attack")
        )
        g = context.generator
        clean = context.victim.reconstruct(x, generator=g("beside"))
        shift = context.victim.reconstruct(result.x_adv, generator=g("beside"))
        # whoever passes the noise on, or takes it away, is as exact as without it
        noised = name == "noised"
        miss = error_of(clean, context.x if noised else x)
        if noised:
            miss = (miss - distance(x, context.x)).clamp_min(0)
        damage, error = _mean(distance(shift, clean)), _mean(miss)
        if name == "own":
            measured |= {"damage": damage, "error": error}
        else:
            measured["damage_beside"][name] = damage
            measured["error_beside"][name] = error
    return measured


def three_numbers(effect: float, price: float, undefended: float | None) -> dict[str, Any]:
    """What `defense_worth_its_price` judges."""
    return {"effect": effect, "price": price, "undefended": undefended}
