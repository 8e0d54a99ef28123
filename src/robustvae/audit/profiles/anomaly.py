"""Whether a detector can be made to miss anomalies, or to reject what is normal."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from robustvae import registry
from robustvae.attacks import AnomalyScore, Attack
from robustvae.audit.attacking import climb_of
from robustvae.audit.context import is_defended, undefended
from robustvae.audit.profiles.base import LATE, Stage, UseContext, UseResult, numbers, parts
from robustvae.audit.profiles.changes import (
    ONLY_COUNTS,
    Allowance,
    allowances,
    check_allowances,
    is_discrete,
)
from robustvae.audit.profiles.minutes import (
    LEAST_DRAWS,
    check_searches,
    pass_seconds,
    scaled,
    scaled_draws,
    scaled_search,
    search_passes,
)
from robustvae.audit.profiles.score_spec import (
    check_rows,
    check_score,
    probe_score,
    read_score,
    score_name,
    score_of,
)
from robustvae.audit.profiles.shards import Values
from robustvae.audit.store import tensor_sha256
from robustvae.audit.unit_cost import UnitCost
from robustvae.certificates import certify_score
from robustvae.data import Images
from robustvae.defenses import Victim
from robustvae.errors import (
    ConfigError,
    RangeError,
    RobustVAEError,
    UnsupportedError,
    check_count,
    check_probability,
    unknown,
)
from robustvae.perturb import Ball, Masked, SquareSearch
from robustvae.registry import register
from robustvae.scores import Score

NORMAL_NAMES = ("normal", "good", "ok", "benign")
REFERENCE = 500  # clean normals that set the threshold: a share of 5 % is known to 1 %
_LEAST_REFERENCE = 20  # fewer others than this: the judged normals set the threshold themselves
_LEAST_CUT = 8  # inputs of each side, in however little time
# shares of the time below which the search without gradients is left out, and balls are
_BLIND_SHARE, _BALL_SHARE = 0.1, 0.02
NO_SMOOTHING = (
    "smoothing adds normal noise, which makes fractions of counts, and those do not occur: counts "
    "are judged by attacks in l0 alone"
)
_EXPLORED = "gradients from there"  # where the search without gradients ended
_DRAWS = 2  # that a search averages of a random victim: fresh ones judge what it finds
BALLS = (Ball("l2", 0.5), Ball("l2", 1.0), Ball("l2", 2.0), Ball("linf", 0.1))


@register("use", "anomaly")
@final
@dataclass(frozen=True)
class Anomaly:
    """Whether a detector can be made to miss anomalies, or to reject what is normal.

    Every input is attacked against its own side: an anomaly's score is lowered, a normal input's
    raised. The attacker knows the victim. The worst of all gradient searches, a search without
    gradients, in l2 a climb from where that ended and, where the victim is defended, attacks made
    for the undefended model counts, each judged by the score that is deployed; what a smaller ball
    of the same norm gave is tried in the larger one too. A victim with noise on its input gets
    certified intervals of its median score, all of which hold together.

    Args:
        score: A registered score, its spec, `package.module:Name` of a score of yours, or an
            object; None for the detector's own, else the squared reconstruction error.
        balls: What the attacker may do; sizes in units of the input range [0, 1], of "l0" numbers
            of values, such as features of a table.
        snr: Signal-to-noise ratios in decibels of more changes in l2, for signals.
        fpr: False positive rate on clean normals at which the threshold is set, in (0, 1).
        inputs: Inputs judged on each side, at most.
        normal: Labels or class names of normal inputs; empty for a class named normal, good, ok
            or benign, else the first label.
        anomalous: Labels or class names of anomalies; empty for all others.
        masked: Places in the flat input that the attacker cannot change, such as features of a
            table that nobody can forge.
        search: The gradient search.
        suite: Further gradient searches, such as those of a whole suite, each a search or its spec.
        gradient_free: Candidates of the search without gradients; 0 leaves it out.
        draws: Of each input for its certified interval.
        confidence: With which all intervals hold together.
        votes: Draws whose median is the deployed score of a random victim; odd.
        reference: Clean normal inputs that set the threshold, at most.

    Raises:
        RangeError: A count or a probability out of range.
        ConfigError: `votes` is even, or no ball.

    References:
        docs/theory.md, "Smoothing"; Chiang et al., 2020 (percentiles of smoothed scores).

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.audit.profiles.anomaly import Anomaly
        >>> from robustvae.audit.profiles.base import UseContext
        >>> images = rv.data.load("digits", split="test")
        >>> victims = {"plain": rv.Victim(rv.load("digits-vae"))}
        >>> use = Anomaly(inputs=4, balls=(rv.Ball("linf", 0.1),), gradient_free=0,
        ...     search="projected-ascent:steps=3,restarts=1")
        >>> len(use(UseContext(victims, images)).rows)
        16
    """

    question: ClassVar[str] = "Can an anomaly be hidden, and can a normal input be rejected?"

    score: Any = None
    balls: tuple[Ball, ...] = BALLS
    snr: tuple[float, ...] = ()
    fpr: float = 0.05
    inputs: int = 100
    normal: tuple[Any, ...] = ()
    anomalous: tuple[Any, ...] = ()
    masked: tuple[int, ...] = ()
    search: Any = "projected-ascent:steps=40,restarts=2"
    suite: tuple[Any, ...] = ()
    gradient_free: int = 150
    draws: int = 2000
    confidence: float = 0.999
    votes: int = 21
    reference: int = REFERENCE

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_probability(self.fpr, "fpr")
        check_probability(self.confidence, "confidence")
        least = {"inputs": 2, "gradient_free": 0, "reference": _LEAST_REFERENCE}
        for name in (*least, "draws", "votes"):
            check_count(getattr(self, name), name, least=least.get(name, 1))
        if self.votes % 2 == 0:
            raise ConfigError(f"votes must be odd, so that there is a median, got {self.votes}")
        check_allowances(self.balls, self.snr, "anomaly")
        check_searches(self.search, *self.suite)
        check_score(self.score)
        if any(place < 0 for place in self.masked):
            raise RangeError(f"masked places count from 0, got {min(self.masked)}")

    def plan_images(self, images: Images) -> Images:
        """The normal inputs: what the model is meant to reproduce."""
        normal, _ = self.sides(images)
        return images[normal]

    def probe(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The score of each input, (B,); the detector's own where this one wants to be fitted."""
        return read_score(probe_score(self.score, victim, x), victim, x, generator=generator)

    def sides(self, images: Images) -> tuple[Tensor, Tensor]:
        """Rows of the normal inputs and of the anomalies.

        Raises:
            ConfigError: No input on one side.
            UnknownNameError: A class that the images do not have.
        """
        normal = self._labels(images, self.normal)
        anomalous = self._labels(images, self.anomalous)
        labels = images.y.unique().tolist()
        if both := sorted(normal & anomalous):
            raise ConfigError(
                f"labels are normal or anomalous, got {both[0]} on both sides: name each once"
            )
        width = images.read(torch.arange(min(1, len(images)))).numel()
        if width and self.masked and max(self.masked) >= width:
            raise RangeError(
                f"masked places of inputs with {width} values lie below {width}, got "
                f"{max(self.masked)}"
            )
        if width and len(set(self.masked)) >= width:
            raise RangeError(f"all {width} places of an input are masked: leave at least one")
        if not normal:
            named = {i for i, name in enumerate(images.classes) if name.lower() in NORMAL_NAMES}
            others = [label for label in labels if label not in anomalous]
            normal = named or (set(others) if anomalous else {labels[0]})
        if not anomalous:
            anomalous = {label for label in labels if label not in normal}
        sides = tuple(
            torch.isin(images.y, torch.tensor(sorted(part), dtype=torch.int64)).nonzero()[:, 0]
            for part in (normal, anomalous)
        )
        for side, rows in zip(("normal inputs", "anomalies"), sides, strict=True):
            if len(rows) < 2:
                raise ConfigError(
                    f"the profile anomaly needs {side}, and {images.name} has {len(rows)} of them: "
                    "give folders normal/ and anomalous/, --anomalous DATA, or "
                    "--profile 'anomaly:anomalous=[LABEL]'"
                )
        return sides[0], sides[1]

    def __call__(self, context: UseContext) -> UseResult:
        """Scores of every input: clean, attacked in every ball, and certified."""
        images, result = context.images, UseResult()
        normal, anomalous = self.sides(images)
        judged = [
            context.choose(rows, self.inputs, side)
            for rows, side in ((normal, "normal"), (anomalous, "anomalous"))
        ]
        left = normal[~torch.isin(normal, judged[0])]
        reference = context.choose(left, self.reference, "reference")
        if len(left) < _LEAST_REFERENCE:
            reference = judged[0]
            result.notes.append(
                f"The threshold was set on the {len(reference)} normal inputs that are judged, "
                "since there are no others."
            )
        result.facts |= {"fpr": self.fpr, "reference": len(reference), "votes": self.votes}
        result.facts |= {"confidence": self.confidence, "draws": self.draws}
        refusals = []
        for name, victim in context.victims.items():
            context.step(f"{name}: anomaly scores")
            try:
                detector = Detector(self, context, name, victim, reference)
            except UnsupportedError as error:
                refusals.append(error)
                result.omit("anomaly scores", name, error)
                continue
            detector.leads = not result.rows
            for one in detector.ruled_out:
                result.omit(f"attacks in {one.words}", name, ONLY_COUNTS)
            result.facts[f"threshold of {name}"] = detector.threshold
            result.facts[f"score of {name}"] = detector.name
            for side, rows in zip(("normal", "anomalous"), judged, strict=True):
                result.rows += self._side(detector, side, rows, result)
            result.probes[name] = {"decides_by": "the score", **violations(result.rows, name)}
        if len(refusals) == len(context.victims):
            raise refusals[0]
        return result

    def _side(
        self, detector: Detector, side: str, rows: Tensor, result: UseResult
    ) -> list[dict[str, Any]]:
        context, name = detector.context, detector.victim_name
        x = context.inputs(rows)
        kinds = [context.images.class_name(int(y)) for y in context.images.y[rows]]
        base = [
            {"victim": name, "input": i, "side": side, "kind": kind}
            for i, kind in zip(rows.tolist(), kinds, strict=True)
        ]
        clean = detector.deployed(x, rows.tolist(), "report")
        table = [
            {**row, "condition": "clean", "score": value}
            for row, value in zip(base, numbers(clean), strict=True)
        ]
        context.step(f"{name}: attacks on {side} inputs")
        show = side == "anomalous" and detector.leads
        highest = -1
        choice: tuple[Allowance, Tensor, Tensor] | None = None
        for ball, x_adv, score, attack in detector.attacks(x, rows, side == "normal", result):
            table += [
                {**row, **ball.row(), "condition": "attacked", "score": value, "attack": by}
                for row, value, by in zip(base, numbers(score), attack, strict=True)
            ]
            # the pictures are of the change that hides most anomalies; the last of equal ones
            count = int((score <= detector.threshold).sum())
            if show and count >= highest:
                highest, choice = count, (ball, x_adv, score)
        if choice is not None:
            ball, x_adv, score = choice
            detector.pictures(x, x_adv, (clean, score), base, ball.words, result)
        context.step(f"{name}: certified scores of {side} inputs")
        bounds = detector.certified(x, rows.tolist(), side, result)
        if bounds is not None:
            sizes, lower, upper = bounds
            for k, size in enumerate(sizes):
                ends = zip(base, numbers(lower[:, k]), numbers(upper[:, k]), strict=True)
                table += [
                    {
                        **row,
                        "condition": "certified",
                        "norm": "l2",
                        "radius": size,
                        "lower": low,
                        "upper": high,
                    }
                    for row, low, high in ends
                ]
        return table

    def seconds(self, victims: Mapping[str, Victim], units: Mapping[str, UnitCost]) -> float:
        """About how long it takes, by what a row costs each victim."""
        total = 0.0
        for name, victim in victims.items():
            forward, gradient = pass_seconds(victim, units[name])
            is_guarded = is_defended(victim)
            readings = (self.votes if is_guarded else 1) * forward
            passes = sum(search_passes(spec) for spec in (self.search, *self.suite))
            gradients = passes * _DRAWS * gradient * (1 + is_guarded)
            balls = len(self.balls) + len(self.snr)
            # every candidate is judged, and the clean score and the chosen change again
            each = gradients + self.gradient_free * _DRAWS * forward + 6 * readings
            total += 2 * self.inputs * (balls * each + 2 * readings) + self.reference * readings
            climb = climb_of(registry.build("search", self.search))
            if self.gradient_free and climb is not None:
                round_balls = sum(ball.norm == "l2" for ball in self.balls) + len(self.snr)
                steps = search_passes(climb) * _DRAWS * gradient + readings
                total += 2 * self.inputs * round_balls * steps
            if victim.noise is not None:
                total += 2 * self.inputs * self.draws * forward
        return total

    def cut(self, share: float) -> Anomaly:
        """The same question for about that share of the time."""
        return dataclasses.replace(
            self,
            inputs=scaled(self.inputs, share, _LEAST_CUT),
            reference=scaled(self.reference, share, 2 * _LEAST_REFERENCE),
            search=scaled_search(self.search, share),
            suite=tuple(scaled_search(spec, share) for spec in self.suite),
            gradient_free=scaled(self.gradient_free, share, 0) if share > _BLIND_SHARE else 0,
            draws=scaled_draws(self.draws, share),
            balls=self.balls if share > _BALL_SHARE else self._one_ball_a_norm(),
        )

    def _one_ball_a_norm(self) -> tuple[Ball, ...]:
        middle = {}
        for norm in dict.fromkeys(ball.norm for ball in self.balls):
            same = [ball for ball in self.balls if ball.norm == norm]
            middle[norm] = same[len(same) // 2]
        return tuple(middle.values())

    def _labels(self, images: Images, chosen: Sequence[Any]) -> set[int]:
        labels: set[int] = set()
        for one in chosen:
            if isinstance(one, str) and one in images.classes:
                labels.add(images.classes.index(one))
            elif str(one) in map(str, images.y.unique().tolist()):
                labels.add(int(one))
            else:
                options = images.classes or sorted(map(str, images.y.unique().tolist()))
                raise unknown("class", str(one), options)
        return labels


@final
class Detector:
    """One victim's deployed score, its threshold, its attacks and its certificates."""

    def __init__(
        self, use: Anomaly, context: UseContext, name: str, victim: Victim, reference: Tensor
    ) -> None:
        self.use, self.context, self.victim_name, self.victim = use, context, name, victim
        self.leads = True  # its pictures are shown: it is the first victim that is measured
        clean = context.inputs(reference)
        self.score: Score = score_of(use.score, victim, clean)
        self.name = score_name(use.score, self.score)
        self.allowed, self.ruled_out = allowances(use.balls, use.snr, victim.vae)
        check_rows(self.score, victim, clean[:4])
        self.random = self._is_random(clean[:1])
        values = self.deployed(clean, reference.tolist(), "reference").sort().values
        # the least value that at most the stated share of clean normals lies above
        self.threshold = float(values[len(values) - 1 - int(use.fpr * len(values))])

    def _is_random(self, x: Tensor) -> bool:
        with torch.no_grad():
            first, second = (
                self.score(self.victim, x, generator=self.context.streams(purpose, [0]))
                for purpose in ("one reading", "another reading")
            )
        return not torch.equal(first, second)

    def deployed(self, x: Tensor, rows: Sequence[int], purpose: str) -> Tensor:
        """What the system decides by: the score, or the median of several draws, (B,)."""
        context, votes = self.context, self.use.votes if self.random else 1

        def compute(part: slice) -> tuple[Values, list[str]]:
            readings = []
            for vote in range(votes):
                streams = context.streams(f"{purpose} {vote}", rows[part])
                with torch.no_grad():
                    readings.append(read_score(self.score, self.victim, x[part], generator=streams))
            return {"score": torch.stack(readings).double().median(0).values}, []

        if not self.random:  # cheaper to compute again than to keep
            return torch.cat([compute(part)[0]["score"] for part in parts(len(x))])
        context.clock.room(len(x) * votes * context.clock.unit(self.victim_name).forward)
        who = f"{self.victim_name}/{self.name}/{context.shards.identity(self.victim)}"
        label = f"{who}/{purpose}/{votes}/{tensor_sha256(x)}"
        return context.shards.measured(label, len(x), compute)[0]["score"]

    def attacks(
        self, x: Tensor, rows: Tensor, raises: bool, result: UseResult
    ) -> Iterator[tuple[Allowance, Tensor, Tensor, list[str]]]:
        """In every ball the attacked inputs, their deployed scores, and what made each."""
        sign = 1.0 if raises else -1.0
        carried: dict[str, Tensor] = {}
        # smaller balls first: what they give is a candidate in the larger ones of their norm
        for number, ball in enumerate(self.allowed):
            # the first ball is attacked in any case: without it there is no answer
            if number and self.context.is_late:
                side = "normal inputs" if raises else "anomalies"
                result.omit(f"attacks on {side} in {ball.words}", self.victim_name, LATE)
                continue
            best, attack = x.clone(), ["none"] * len(x)
            value = sign * self.deployed(x, rows.tolist(), "selection")
            candidates = dict(self._candidates(ball, x, rows, raises, result))
            if ball.norm in carried:
                candidates["a smaller change"] = carried[ball.norm]
            if not candidates:  # nothing was tried: the clean score stands for no attack
                continue
            for name, x_adv in candidates.items():
                score = sign * self.deployed(x_adv, rows.tolist(), "selection")
                better = (score > value).cpu()
                best[better], value[better] = x_adv[better], score[better]
                attack = [
                    name if is_better else old
                    for is_better, old in zip(better.tolist(), attack, strict=True)
                ]
            carried[ball.norm] = best
            # by draws that chose nothing
            yield ball, best, self.deployed(best, rows.tolist(), "report"), attack

    def _candidates(
        self, allowed: Allowance, x: Tensor, rows: Tensor, raises: bool, result: UseResult
    ) -> Iterator[tuple[str, Tensor]]:
        use, ball = self.use, allowed.ball(x)
        votes = _DRAWS if self.random else 1
        searches: list[tuple[str, Any, Victim]] = []
        if not getattr(self.victim.vae, "without_gradients", False):
            for number, spec in enumerate((use.search, *use.suite), 1):
                search, which = registry.build("search", spec), f" {number}" * (number > 1)
                searches.append((f"gradients{which}", search, self.victim))
                if is_defended(self.victim):
                    searches.append((f"transfer{which}", search, undefended(self.victim)))
        if use.gradient_free:
            searches.append(("no gradients", SquareSearch(steps=use.gradient_free), self.victim))
            climb = climb_of(registry.build("search", use.search))
            # models that bear noise are flat where random starts lie, in l2 alone
            if len(searches) > 1 and climb is not None and ball.norm == "l2":
                searches.append((_EXPLORED, climb, self.victim))
        squares: Tensor | None = None
        for name, search, victim in searches:
            if name == _EXPLORED and squares is None:  # that search failed, as was said
                continue
            goal = AnomalyScore(score=self.score, raises=raises, draws=_DRAWS)
            if use.masked:
                search = Masked(search, use.masked)
            purpose = f"{name} {allowed.norm} {allowed.size:g} {raises}"
            begin = squares if name == _EXPLORED else None
            stage = Stage(self.victim_name, purpose, votes, begin)
            place = f"attack by {name}, {allowed.words}", self.victim_name
            try:
                attack = Attack(goal, search, ball)
                x_adv, words = self.context.attacked(stage, attack, victim, x, rows.tolist())
            except (RobustVAEError, RuntimeError) as error:
                result.omit(*place, error)
                continue
            if words:
                result.omit(*place, words)
            squares = x_adv if name == "no gradients" else squares
            yield name, x_adv

    def certified(
        self, x: Tensor, rows: Sequence[int], side: str, result: UseResult
    ) -> tuple[list[float], Tensor, Tensor] | None:
        """Sizes of the l2 balls, and the ends of the median score's intervals, or None."""
        use = self.use
        sizes = [float(ball.radius) for ball in use.balls if ball.norm == "l2"]
        if is_discrete(self.victim.vae):
            if side == "normal":
                result.omit("certified scores", self.victim_name, NO_SMOOTHING)
            return None
        if self.context.is_late:
            result.omit(f"certified scores of {side} inputs", self.victim_name, LATE)
            return None
        if self.victim.noise is None or not sizes:
            if side == "normal":
                words = "no ball in l2" if self.victim.noise else "there is no noise on its input"
                hint = "; add a victim by --defense input-noise:stddev=0.25"
                result.omit("certified scores", self.victim_name, words + hint)
            return None
        try:
            lower, upper, words = self._intervals(x, rows, side, sizes)
        except RobustVAEError as error:
            if side == "normal":
                result.omit("certified scores", self.victim_name, error)
            return None
        if words:
            result.omit(f"certified scores of {side} inputs", self.victim_name, words)
        return sorted(sizes), lower, upper

    def _intervals(
        self, x: Tensor, rows: Sequence[int], side: str, sizes: list[float]
    ) -> tuple[Tensor, Tensor, str]:
        """Lower and upper ends, (B, K) each, and in words where time was short."""
        use, context = self.use, self.context
        clock = context.clock
        seconds = clock.unit(self.victim_name).forward

        def compute(part: slice) -> tuple[Values, list[str]]:
            nonlocal seconds
            count = part.stop - part.start
            room = clock.room(count * use.draws * seconds)
            draws, notes = use.draws, []
            if room < count * draws * seconds:
                draws = int(room / (count * seconds))
                notes = [f"some inputs have fewer draws than {use.draws}, for want of time"]
            if draws < LEAST_DRAWS:  # an interval that says nothing is a true one
                nothing = torch.full((count, len(sizes)), math.inf, dtype=torch.float64)
                return {"lower": -nothing, "upper": nothing}, [LATE]
            begin = time.monotonic()
            bounds = certify_score(
                self.victim,
                x[part],
                self.score,
                sizes,
                generator=context.streams(f"certified {side}", [0]).streams[0],
                # half of what may fail for each side, and of that each input's share
                confidence=1 - (1 - use.confidence) / 2 * count / len(x),
                draws=draws,
                all_inputs=True,
                rows=rows[part],
            )
            bounds.check_complete()
            seconds = (time.monotonic() - begin) / (count * draws)
            return {"lower": bounds.lower, "upper": bounds.upper}, notes

        who = f"{self.victim_name}/{self.name}/{context.shards.identity(self.victim)}"
        label = f"{who}/certified {side}/{tensor_sha256(x)}"
        values, notes = context.shards.measured(label, len(x), compute)
        return values["lower"], values["upper"], "; ".join(dict.fromkeys(notes))

    def pictures(
        self,
        x: Tensor,
        x_adv: Tensor,
        scores: tuple[Tensor, Tensor],
        base: list[dict[str, Any]],
        change: str,
        result: UseResult,
    ) -> None:
        """The anomalies whose scores fell furthest, with their reconstructions."""
        order = (scores[1] / scores[0].abs().clamp_min(1e-12)).argsort()[:4].tolist()
        for i in order:
            pair = torch.stack([x[i], x_adv[i]])
            streams = self.context.streams("pictures", [0, 0])
            with torch.no_grad():
                output = self.victim.reconstruct(pair, generator=streams)
            if output.shape != pair.shape:
                return
            result.show(
                base[i]["input"],
                int(self.context.images.y[base[i]["input"]]),
                change,
                f"{base[i]['kind']}: score {float(scores[0][i]):.3g}, attacked "
                f"{float(scores[1][i]):.3g}, threshold {self.threshold:.3g}",
                input=pair[0],
                attacked=pair[1],
                reconstruction=output[0],
                attacked_reconstruction=output[1],
            )


def violations(rows: Sequence[dict[str, Any]], victim: str) -> dict[str, Any]:
    """How many attacked scores lie outside the certified interval of the same size."""
    ends = {
        (row["input"], row["radius"]): (_number(row["lower"]), _number(row["upper"]))
        for row in rows
        if row["victim"] == victim and row["condition"] == "certified"
    }
    outside, count = 0, 0
    for row in rows:
        if row["victim"] != victim or row["condition"] != "attacked" or row["norm"] != "l2":
            continue
        if (row["input"], row["radius"]) in ends:
            low, high = ends[row["input"], row["radius"]]
            count += 1
            outside += not low <= row["score"] <= high
    return {"use": {"attacked_outside_certified": outside, "compared": count}} if count else {}


def _number(value: Any) -> float:
    return {"inf": math.inf, "-inf": -math.inf}.get(value, value)
