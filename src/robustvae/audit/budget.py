"""An audit within a number of minutes: what its parts cost, and a clock."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from robustvae.attacks import Attack
from robustvae.audit.measures.band import along_draws
from robustvae.audit.measures.probability import rival_draws
from robustvae.audit.plan import EXPLORED, AttackPlan, Plan
from robustvae.audit.unit_cost import UnitCost, unit_cost
from robustvae.data import Images
from robustvae.defenses import Victim, is_posterior_mean, is_random
from robustvae.display import duration
from robustvae.errors import UnsupportedError
from robustvae.geometry import is_small
from robustvae.perturb.ascent import rows_that_fit
from robustvae.perturb.deadline import until
from robustvae.robustness.walk import SURROGATE_DRAWS

_MOMENT = 15.0  # seconds that nobody minds waiting without a word
_GRACE = 1.1  # of the budget, after which not even the required stages begin
_TRIFLE = 0.01  # share of the remaining time for which no stage is refused
_PACE = 20.0  # times slower than measured a machine may become and still be believed
# draws that place a margin's boundary in two boxes: a number, and for each that chooses; and the
# share of the plan's that its tests take
_MARGIN_DRAWS, _MARGIN_CHOOSING, _MARGIN_TESTS = 700, 5.5, 0.75
_STILL_LOOKS = 60  # outputs that place one of a victim that draws nothing
_ALL_ONE_SIDE = 0.6  # share of a headline's draws that are made: looks at a quarter end many
_PROBE_RUNS = 7  # attacks of the probes: at x, twice and without radius, and at four neighbors
# forward passes of the probes' differences, which attacks ask for too: of the outputs, and for each
# draw of the goal
_PROBE_PASSES, _PROBE_DRAWS = 180, 115
_BAND_SMOOTHING = 2000  # draws of the certified band
_OVERFLOW_PASSES = 40  # 20 steps, and a bisection of 14 looks
_OTHER_PASSES = 10  # of each attack, for measures that are not the library's own

Note = Callable[[str], None]
Compute = Callable[[Sequence[int]], Any]
BY_INPUT = "certificate"  # the measure of which some inputs are better than none
_LEAST_STEPS = 3
REQUIRED = ("perturbation", "damage", "usefulness", "geometry", "certificate")
"""Measures that are made first and are left out last where minutes are counted, in their order."""
FIRST = "first attack"
"""Of each victim: before all measures."""


def step_count(search: object, otherwise: int = 50) -> int:
    """Steps of a search from one start; `otherwise` where it does not say, or chooses itself."""
    return getattr(search, "steps", None) or otherwise


def search_seconds(search: Any, unit: UnitCost) -> float:
    """What one search takes for an input."""
    steps = step_count(search) * getattr(search, "restarts", 1)
    directions = getattr(search, "directions", None)
    if isinstance(directions, int):  # slopes by differences
        return float(2 * steps * directions * unit.forward)
    reads_gradients = getattr(search, "reads_gradients", True)
    return float((steps + 1) * (unit.gradient if reads_gradients else unit.forward))


def attack_seconds(attack: AttackPlan, unit: UnitCost, victim: Victim) -> float:
    """What one attack of a plan takes for an input."""
    value = attack.build()
    return draws_of(value.goal, victim) * search_seconds(value.search, unit)


def draws_of(goal: Any, victim: Victim) -> int:
    """How many draws of a victim one score of a goal averages."""
    draws = getattr(goal, "draws", 1)
    return draws if isinstance(draws, int) and is_random(victim.defense) else 1


def stage_seconds(
    plan: Plan, victim: Victim, unit: UnitCost, x: Tensor, bare: float
) -> dict[str, float]:
    """What each stage takes for an input: "attacks", every measure by name, and "probes".

    Args:
        plan: What is done.
        victim: To whom.
        unit: The victim's cost.
        x: An input.
        bare: Seconds of a gradient of the model without defense.
    """
    first = plan.attacks[0].build()
    search, draws = first.search, draws_of(first.goal, victim)
    attacks = sum(attack_seconds(attack, unit, victim) for attack in plan.attacks)
    count = len(plan.attacks)
    if plan.longer > 1:  # it goes on from one point, the best of the restarts
        seconds = attack_seconds(plan.attacks[0], unit, victim)
        attacks += plan.longer * seconds / max(getattr(search, "restarts", 1), 1)
        count += 1
    if plan.gradient_free:
        climb = (step_count(search) + 1) * unit.gradient
        attacks += len(plan.balls) * draws * (plan.gradient_free * unit.forward + climb)
        count += 2 * len(plan.balls)
    if plan.transfer and not is_posterior_mean(victim.defense):
        count += len(plan.balls)
        transfer = dataclasses.replace(unit, gradient=bare)  # it looks at the bare model
        attacks += len(plan.balls) * search_seconds(search, transfer)
    probe_steps = min(20, step_count(search)) * min(2, getattr(search, "restarts", 2))
    rows = victim.vae.latent * (2 if getattr(victim.vae, "has_spread", True) else 1)
    products = rows if is_small(victim.vae, x) else plan.products
    # of a victim that answers the same again, measures draw once, whatever the plan says
    random = victim.draws_own_posterior or is_random(victim.defense)
    headline, clean, rival, along = 1.0, 1.0, 1.0, 1.0
    if random:
        along = float(along_draws(plan.draws))
        headline, clean = _ALL_ONE_SIDE * plan.draws, float(plan.draws // 4)
        rival = float(rival_draws(plan.draws))
    others = {spec["name"]: _OTHER_PASSES * count * unit.forward for spec in plan.measures}
    norm = plan.norm or plan.attacks[0].norm
    same = max(1, count * sum(one == norm for one, _ in plan.balls) // len(plan.balls))
    return others | {
        "attacks": attacks,
        "perturbation": 0.0,
        "damage": 2 * count * unit.forward,
        "damage-curve": 3 * len(plan.balls) * unit.forward,
        # the draws at the attacked inputs serve for their probabilities too
        "band-attacked": (3 * along + headline + (same - 1) * rival) * unit.forward,
        "band-certified": (_BAND_SMOOTHING if victim.noise is not None else 1) * unit.forward,
        "similarity": count * unit.forward,
        "usefulness": 3 * unit.forward,
        "probability": (count - same) * rival * unit.forward,
        "survival": 2 * count * unit.forward,
        "clean-probability": clean * unit.forward,
        "margin": margin_seconds(plan, victim, unit),
        "certificate": (plan.smoothing if victim.noise is not None else 1) * unit.forward,
        "first-order": products * bare + clean * unit.forward
        if is_small(victim.vae, x) and is_posterior_mean(victim.defense)
        else 0.0,
        "geometry": products * bare,
        "overflow": _OVERFLOW_PASSES * bare if _is_half(victim) else 0.0,
        "probes": draws * _PROBE_RUNS * probe_steps * unit.gradient
        + (_PROBE_PASSES + draws * _PROBE_DRAWS) * unit.forward,
    }


def margin_seconds(plan: Plan, victim: Victim, unit: UnitCost) -> float:
    """What the margins of an input take, in range and unconstrained."""
    if plan.margins is None:
        return 0.0
    starts = plan.margins.restarts + 1 + EXPLORED
    half = max(1, plan.margins.steps // 2)
    # random starts and the nearest known ones; the better half of them again, and one in common
    walks = starts + -(-starts // 2)
    gradients = 2.0 * half * (walks + -(-walks // 2) + 1)
    draws, looks = 1, _STILL_LOOKS * 1.0
    if victim.draws_own_posterior or is_random(victim.defense):
        looks = _MARGIN_DRAWS + _MARGIN_CHOOSING * plan.margins.choosing
        looks += _MARGIN_TESTS * plan.draws
        draws = 1 if victim.draws_own_posterior else SURROGATE_DRAWS
    return draws * gradients * unit.gradient + looks * unit.forward


def _is_half(victim: Victim) -> bool:
    return bool({p.dtype for p in victim.vae.parameters()} & {torch.float16, torch.bfloat16})


def total_seconds(plan: Plan, seconds: Mapping[str, float]) -> float:
    """What a plan takes for one victim, given what its stages take for an input."""
    stages = sum(value for name, value in seconds.items() if name != "probes")
    return plan.inputs * stages + min(plan.probes, plan.inputs) * seconds["probes"]


@final
class Costs:
    """What an audit's victims cost, measured once.

    Args:
        named: Victims by name.
        images: Where the inputs are taken from.
        diagnosis: Seconds that the diagnosis of a model took.
    """

    def __init__(self, named: Mapping[str, Victim], images: Images, diagnosis: float = 0.0) -> None:
        self.named = dict(named)
        self.units = {name: unit_cost(victim, images) for name, victim in named.items()}
        self.x = images.read(torch.arange(1))
        self.diagnosis, self.resident = diagnosis, resident_bytes()

    @classmethod
    def restored(cls, named: Mapping[str, Victim], x: Tensor, facts: Mapping[str, Any]) -> Costs:
        """Costs that were measured in another process, by what `facts` said there.

        Args:
            named: The victims.
            x: An input, (1, C, H, W).
            facts: In JSON's own types.
        """
        costs = cls.__new__(cls)
        costs.named, costs.x = dict(named), x
        costs.units = {name: UnitCost(*facts["units"][name]) for name in named}
        costs.diagnosis, costs.resident = facts["diagnosis"], facts["resident"]
        return costs

    def facts(self) -> dict[str, Any]:
        """What another process needs to know these costs."""
        units = {name: list(dataclasses.astuple(unit)) for name, unit in self.units.items()}
        return {"units": units, "diagnosis": self.diagnosis, "resident": self.resident}

    def stages(self, plan: Plan, name: str) -> dict[str, float]:
        """Seconds of each stage for an input of one victim."""
        bare = min(unit.gradient for unit in self.units.values())
        stages = stage_seconds(plan, self.named[name], self.units[name], self.x, bare)
        names = list(self.named)
        earlier = [self.named[one].vae for one in names[: names.index(name)]]
        if any(vae is self.named[name].vae for vae in earlier):
            stages["geometry"] = 0.0  # the model's own, which it has already
        return stages

    def seconds(self, plan: Plan) -> float:
        """Seconds of a plan, all victims together."""
        return sum(
            total_seconds(plan, self.stages(plan, name)) + self.diagnosis for name in self.named
        )

    def required(self, plan: Plan) -> float:
        """Seconds of what the first victim's inputs may not lack: an attack, and `REQUIRED`."""
        name = next(iter(self.named))
        stages = self.stages(plan, name)
        attack = attack_seconds(plan.attacks[0], self.units[name], self.named[name])
        return self.diagnosis + plan.inputs * (attack + sum(stages[one] for one in REQUIRED))

    def memory(self, plan: Plan) -> float:
        """Bytes at the most, about: what the process has, and the largest graph of an attack."""
        graphs = []
        for name in self.named:
            searches = [attack.build().search for attack in plan.attacks]
            inputs = min(plan.shard, plan.inputs)
            rows = max(getattr(search, "restarts", 1) for search in searches) * inputs
            # of several draws only one graph is kept where inputs are large
            fitting = rows_that_fit(self.x, rows)
            graphs.append(fitting * self.units[name].memory)
        return self.resident + 1.5 * max(graphs)  # gradients beside what the graph keeps

    def words(self, plan: Plan, minutes: float | None = None) -> str:
        """Minutes and memory in a sentence.

        Args:
            plan: What is done.
            minutes: Those that were given; None for as many as it takes.
        """
        victims = f" by {len(self.named)} victims" if len(self.named) > 1 else ""
        seconds = self.seconds(plan)
        words = f"about {duration(seconds)} at the speed seen now"
        if minutes is not None and seconds > 60 * minutes:
            words = (
                f"{minutes:g} min, in which not all fits that would take {words}: what is "
                "required goes first, and what is left out is said"
            )
        memory = f"{self.memory(plan) / 1e9:.1f} GB of memory"
        return f"{plan.inputs} inputs{victims}: {words}, and {memory}"


def tell_cost(announce: Callable[[str], None] | None, words: str, seconds: float) -> None:
    """Tell beforehand what an audit will cost, on standard error where nobody else wants it.

    Args:
        announce: Whom to tell; None for standard error, and then only of more than a moment.
        words: What to say.
        seconds: What it takes.
    """
    if announce is not None:
        announce(words)
    elif seconds > _MOMENT:
        print(words, file=sys.stderr, flush=True)


def resident_bytes() -> float:
    """Bytes of memory that this process has had at the most, 0 where that cannot be asked."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    # kilobytes on Linux, bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


@final
class Clock:
    """Decides stage by stage whether there is time for it, at the pace that the machine shows.

    What was measured before an audit says little of a machine that becomes busy: each stage that
    ends corrects the pace. Optional stages leave the required ones their time. Workers have a clock
    each, of the same end, and expect an equal share of the work.

    Args:
        minutes: The budget; None for no limit.
        costs: Of the victims; needed where there is a limit.
        plan: What is done.
        spent: Seconds of the budget that are gone.
        workers: How many share the work.
    """

    def __init__(
        self,
        minutes: float | None = None,
        costs: Costs | None = None,
        plan: Plan | None = None,
        spent: float = 0.0,
        workers: int = 1,
    ) -> None:
        self.minutes, self.costs, self.plan, self.workers = minutes, costs, plan, workers
        self.limited = minutes is not None and costs is not None and plan is not None
        if not self.limited:
            self.costs = self.plan = None
        seconds = math.inf if minutes is None else 60 * minutes
        self.begin = time.monotonic() - spent
        self.end = self.begin + seconds
        self.last = self.begin + _GRACE * seconds
        self.deadline = self.end
        self.pace = 1.0
        self.name = ""
        self.expected: dict[str, float] = {}
        self.ahead: list[str] = []
        self.attacks: dict[tuple[str, str], bool] = {}
        self.required: dict[tuple[str, str], float] = {}
        self.remaining = 0.0
        if costs is not None and plan is not None:
            self.remaining = costs.seconds(plan) / workers
            for name, victim in costs.named.items():
                attack = attack_seconds(plan.attacks[0], costs.units[name], victim)
                stages = {FIRST: attack, **costs.stages(plan, name)}
                for stage in (FIRST, *REQUIRED):
                    self.required[(name, stage)] = plan.inputs * stages[stage] / workers

    def facts(self) -> dict[str, Any] | None:
        """What a worker needs for a clock of its own; None where there is no limit."""
        if self.costs is None:
            return None
        begin = time.time() - (time.monotonic() - self.begin)
        limits = {"minutes": self.minutes, "begin": begin, "workers": self.workers}
        return {**limits, "costs": self.costs.facts()}

    @classmethod
    def restored(
        cls, named: Mapping[str, Victim], x: Tensor, plan: Plan, facts: Mapping[str, Any]
    ) -> Clock:
        """A worker's clock, by what `facts` said in the driver.

        Args:
            named: The victims.
            x: An input, (1, C, H, W).
            plan: What is done.
            facts: In JSON's own types.
        """
        costs = Costs.restored(named, x, facts["costs"])
        # the same end on every machine, as far as their clocks agree
        spent = max(time.time() - facts["begin"], 0.0)
        return cls(facts["minutes"], costs, plan, spent, facts["workers"])

    def start_part(self, name: str, count: int, part: str) -> None:
        """Begin a part of the audit, which may take its share of the time that is left.

        Args:
            name: The victim.
            count: How many inputs.
            part: "attacks", "measures" or "probes".
        """
        if self.costs is None or self.plan is None:
            return
        stages = self.costs.stages(self.plan, name)
        self.expected = {stage: count * seconds for stage, seconds in stages.items()}
        self.ahead, self.name = [], name
        seconds = self.expected["attacks"]
        if part == "measures":
            seconds = sum(self.expected.values()) - seconds - self.expected["probes"]
            self.ahead = [stage for stage in REQUIRED if stage in self.expected]
        elif part == "probes":
            self.expected["probe diagnosis"] = self.costs.diagnosis
            self.ahead = ["probe diagnosis"]
            seconds = self.expected["probes"] + self.costs.diagnosis
        self._share(seconds)

    def _share(self, seconds: float) -> None:
        """Set the deadline of a part that was expected to take so long."""
        now = time.monotonic()
        share = seconds / self.remaining if self.remaining > 0 else 1.0
        self.deadline = now + min(share, 1.0) * max(self.end - now, 0.0)
        self.remaining = max(self.remaining - seconds, 0.0)

    def ordered(self, measures: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Required measures first, where time is counted."""
        if not self.limited:
            return list(measures)
        order = {name: place for place, name in enumerate(REQUIRED)}
        return sorted(measures, key=lambda pair: order.get(pair[0], len(order)))

    def reserve(self, before: str | None = None) -> float:
        """Seconds at the pace of now that required parts still want, of all victims.

        Args:
            before: Only what goes before this one, which it may not take the time of.
        """
        order = (FIRST, *REQUIRED)
        names = order if before is None else order[: order.index(before)]
        return self.pace * sum(
            seconds for (_, stage), seconds in self.required.items() if stage in names
        )

    def _settle(self, stage: str, seconds: float) -> None:
        """Take what was done, or could not be, off what is still required."""
        key = self.name, stage
        if key in self.required:
            self.required[key] = max(self.required[key] - seconds, 0.0)

    @contextlib.contextmanager
    def stage(self, name: str, seconds: float | None = None) -> Iterator[None]:
        """Within: a stage runs; afterwards the pace is known better.

        Args:
            name: The stage.
            seconds: What it takes; None for what was measured.

        Raises:
            UnsupportedError: There is no time for it.
        """
        expected = self.expected.get(name, 0.0) if seconds is None else seconds
        if self.limited:
            self._settle(name, expected)
            if name != BY_INPUT:
                self._check(name, self.pace * expected)
        begin = time.monotonic()
        try:
            yield
        finally:
            if name in self.ahead:
                self.ahead.remove(name)
            # shorter ones are noise, and a certificate may stop early: no word on the machine
            if self.limited and expected > 1.0 and name != BY_INPUT:
                ratio = (time.monotonic() - begin) / expected
                self.pace = min(_PACE, max(1 / _PACE, (self.pace + ratio) / 2))

    def paced(self, name: str, count: int, compute: Compute) -> Compute:
        """What measures some inputs, which refuses those for which there is no time.

        Only certificates are made input by input: each is a proof that stands alone.

        Args:
            name: The stage.
            count: How many inputs it has.
            compute: What measures some of them, by their places.
        """
        if not self.limited or name != BY_INPUT:
            return compute
        each, latest = self.expected.get(name, 0.0) / max(count, 1), math.inf

        def part(rows: Sequence[int]) -> Any:
            nonlocal latest
            begin = time.monotonic()
            self._check(name, len(rows) * min(self.pace * each, latest))
            result = compute(rows)
            if len(rows) == 1:  # by which the next one is foretold
                latest = time.monotonic() - begin
            return result

        return part

    @contextlib.contextmanager
    def attack(
        self, place: tuple[str, str], attack: Attack, count: int, note: Note
    ) -> Iterator[Attack]:
        """Within: an attack on some inputs of a victim, the attack itself or a shorter one.

        The first attack of a victim is always made, with fewer steps where time is short, and what
        was made of its first inputs is made of all of them.

        Args:
            place: The victim's and the attack's name.
            attack: The attack.
            count: How many inputs.
            note: Told why it is shorter.
        """
        if self.costs is None:
            yield attack
            return
        name = place[0]
        draws = draws_of(attack.goal, self.costs.named[name])
        seconds = count * draws * search_seconds(attack.search, self.costs.units[name])
        if self.attacks.get(place, not any(victim == name for victim, _ in self.attacks)):
            self.attacks[place] = True
            self._settle(FIRST, seconds)
            free, before = self.end - time.monotonic(), self.reserve("certificate")
            # certificates, which a few draws more would not give, make room for steps
            room = free - before
            if room < self.pace * seconds:
                room = max(room, free * seconds / max(seconds + before / self.pace, 1e-9))
            attack = _shortened(attack, room / max(self.pace * seconds, 1e-9), note)
            with self._watched(room, note):
                yield attack
            return
        self.attacks[place] = False
        with self.stage("attack", seconds):
            self.attacks[place] = True
            with self._watched(self.deadline - time.monotonic(), note):
                yield attack

    @contextlib.contextmanager
    def _watched(self, room: float, note: Note) -> Iterator[None]:
        """Within: a search stops between two steps once its room in seconds is used up."""
        with until(time.monotonic() + max(room, 0.0)) as deadline:
            yield
        if deadline.fewest is not None:
            note(f"stopped after {deadline.fewest} steps, for want of time")

    def _check(self, name: str, wanted: float) -> None:
        """Raise unless there is time for a stage, beside what goes before it."""
        now = time.monotonic()
        if name in REQUIRED:
            limit = self.last - self.reserve(name)
        elif name == "probe diagnosis":
            limit = self.last
        else:
            others = self.pace * sum(self.expected[one] for one in self.ahead if one != name)
            limit = min(self.deadline - others, self.end - self.reserve())
            if wanted <= _TRIFLE * (self.end - now):
                return
        if now + wanted <= limit:
            return
        raise UnsupportedError(
            f"no time for it: it takes about {duration(wanted)}, and "
            f"{duration(max(limit - now, 0.0))} of the {self.minutes:g} minutes are free; "
            "give more minutes"
        )


def _shortened(attack: Attack, share: float, note: Note) -> Attack:
    """An attack with that share of its steps, at least three of them; itself from 1 on."""
    steps = getattr(attack.search, "steps", None)
    if share >= 1 or not isinstance(steps, int) or not dataclasses.is_dataclass(attack.search):
        return attack
    fewer = min(steps, max(_LEAST_STEPS, int(share * steps)))
    if fewer < steps:
        note(f"{fewer} of {steps} steps, for want of time")
    return dataclasses.replace(attack, search=dataclasses.replace(attack.search, steps=fewer))
