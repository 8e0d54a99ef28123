"""Whether a decision on the code, and the code itself, can be changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from robustvae import registry
from robustvae.attacks import Attack, ClassifierFlip, EncoderTarget
from robustvae.audit.profiles.anomaly import NO_SMOOTHING
from robustvae.audit.profiles.base import LATE, Stage, UseContext, UseResult, in_parts, numbers
from robustvae.audit.profiles.changes import (
    ONLY_COUNTS,
    allowances,
    check_allowances,
    is_discrete,
)
from robustvae.audit.profiles.heads import LinearHead, load_head, save_head
from robustvae.audit.profiles.latent_diffusion import SAME_CODE
from robustvae.audit.profiles.minutes import (
    check_searches,
    pass_seconds,
    scaled,
    scaled_draws,
    scaled_search,
    search_passes,
)
from robustvae.audit.unit_cost import UnitCost
from robustvae.certificates import certify_decision
from robustvae.defenses import Victim, is_random
from robustvae.errors import (
    ConfigError,
    NonFiniteError,
    RobustVAEError,
    UnsupportedError,
    check_count,
    check_probability,
)
from robustvae.perturb import Ball
from robustvae.registry import register
from robustvae.registry.members import PATH

BALLS = (Ball("l2", 0.5), Ball("l2", 1.0), Ball("linf", 8 / 255))
_MOST_CLASSES = 10_000  # a weight for each coordinate of the code and each of them is trained
_LEAST_CUT = 8  # inputs, in however little time
TRAINING = 2000  # inputs of a linear head: more change a probe of some hundred weights little


@register("use", "representation")
@final
@dataclass(frozen=True)
class Representation:
    """Whether a decision on the code, and the code itself, can be changed.

    A head reads the code: a linear one, trained here on inputs that are not judged, or the user's
    own. Attacks turn its decision, move the code, and flip whose code is nearest among reference
    inputs; of quantized codes also tokens. A victim with noise on its input gets certified radii of
    its decision.

    Args:
        head: None trains a linear head; a path ending in .safetensors loads one, or stores the one
            trained where there is none yet; `package.module:Name` is a function or module of yours,
            codes (B, d) to logits (B, K).
        balls: What the attacker may do; of "l0" the radius is a number of values.
        snr: Signal-to-noise ratios in decibels of more changes in l2, for signals.
        inputs: Inputs judged, at most.
        search: The gradient search.
        draws: Of each input for its certified radius.
        confidence: Of each certified radius.
        votes: Draws whose majority is the decision of a random victim; odd.

    Raises:
        ConfigError: No ball, or `votes` is even.
        RangeError: A count below 1.

    References:
        Cohen et al., 2019 (certified accuracy); [Kuzina22] section 4.2 (accuracy against the
        prediction).

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.audit.profiles.base import UseContext
        >>> from robustvae.audit.profiles.representation import Representation
        >>> images = rv.data.load("digits", split="test")
        >>> use = Representation(balls=(rv.Ball("l2", 0.5),), inputs=4,
        ...     search="projected-ascent:steps=2,restarts=1")
        >>> victims = {"plain": rv.Victim(rv.load("digits-vae"))}
        >>> len(use(UseContext(victims, images)).rows)
        8
    """

    question: ClassVar[str] = "Can the decision that is made on the code be changed?"

    head: Any = None
    balls: tuple[Ball, ...] = BALLS
    snr: tuple[float, ...] = ()
    inputs: int = 100
    search: Any = "projected-ascent:steps=40,restarts=2"
    draws: int = 2000
    confidence: float = 0.999
    votes: int = 21

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_allowances(self.balls, self.snr, "representation")
        check_count(self.inputs, "inputs")
        check_searches(self.search)
        check_probability(self.confidence, "confidence")
        if self.head is not None and not (isinstance(self.head, str | Path) or callable(self.head)):
            raise ConfigError(
                f"a head is a path, package.module:Name or a function of codes, got {self.head!r}"
            )
        is_path = isinstance(self.head, str | Path) and not PATH.fullmatch(str(self.head))
        if is_path and Path(self.head).suffix != ".safetensors":
            raise ConfigError(
                f"a head is FILE.safetensors or package.module:Name, got {str(self.head)!r}"
            )
        check_count(self.draws, "draws")
        check_count(self.votes, "votes")
        if self.votes % 2 == 0:
            raise ConfigError(f"votes must be odd, got {self.votes}: an even number can tie")

    def __call__(self, context: UseContext) -> UseResult:
        """Decisions, drift and neighbors of every input: clean, attacked and certified."""
        result, images = UseResult(), context.images
        everything = torch.arange(len(images))
        subjects = context.choose(everything, self.inputs, "judged")
        others = context.choose(everything[~torch.isin(everything, subjects)], TRAINING, "training")
        result.facts |= {"inputs": len(subjects), "confidence": self.confidence}
        refusals = []
        for name, victim in context.victims.items():
            if getattr(victim.vae, "output_only", False):
                raise UnsupportedError(
                    "the profile representation needs codes, and this model is a black box: wrap "
                    "it with encode= and decode="
                )
            result.probes[name] = {"decides_by": "the head"}
            context.step(f"{name}: the head")
            head = self._head(context, victim, others, result)
            seen = dataclasses.replace(victim, classifier=head)
            try:
                self._measure(name, seen, context, subjects, others, result)
            except UnsupportedError as error:
                refusals.append(error)
                result.omit("decisions", name, error)
        if len(refusals) == len(context.victims):
            raise refusals[0]
        return result

    def seconds(self, victims: Mapping[str, Victim], units: Mapping[str, UnitCost]) -> float:
        """About how long it takes, by what a row costs each victim."""
        total = 0.0
        for name, victim in victims.items():
            forward, gradient = pass_seconds(victim, units[name])
            # two goals, of which one averages four draws of a random victim
            passes = search_passes(self.search) * (5 if victim.noise is not None else 2)
            balls = len(self.balls) + len(self.snr)
            readings = 2 * (self.votes if is_random(victim.defense) else 1)
            total += self.inputs * balls * (passes * gradient + (2 + readings) * forward)
            total += (TRAINING + 500) * forward
            if victim.noise is not None:
                total += self.inputs * self.draws * forward
        return total

    def cut(self, share: float) -> Representation:
        """The same question for about that share of the time."""
        return dataclasses.replace(
            self,
            inputs=scaled(self.inputs, share, _LEAST_CUT),
            search=scaled_search(self.search, share),
            draws=scaled_draws(self.draws, share),
        )

    def _head(self, context: UseContext, victim: Victim, others: Tensor, result: UseResult) -> Any:
        """The head that was named, or a linear one trained on the code of other inputs."""
        width = victim.vae.latent
        if victim.classifier is not None:
            return _seen(victim.classifier, victim, context.inputs(others[:4]))
        if isinstance(self.head, str) and PATH.fullmatch(self.head):
            member = registry.lookup("model", self.head)
            own = member() if isinstance(member, type) else member
            return _seen(own, victim, context.inputs(others[:4]))
        if callable(self.head):
            return _seen(self.head, victim, context.inputs(others[:4]))
        path = None if self.head is None else Path(self.head).expanduser()
        if path is not None and path.exists():
            result.facts["head"] = f"linear, read from {path.name}"
            return load_head(path, width).to(victim.vae.device, victim.vae.dtype)
        if len(others) < 2 * len(context.images.y.unique()):
            raise ConfigError(
                f"a head is trained on inputs that are not judged, and {len(others)} are left: "
                "lower inputs=, or name a head with head=FILE.safetensors"
            )
        _check_labels(context.images.y)
        codes = in_parts(lambda x: victim.vae.encode(x).mean, context.inputs(others))
        head = LinearHead.fit(codes, context.images.y[others])
        result.facts["head"] = f"linear, trained on {len(others)} other inputs"
        if path is not None:
            save_head(head, path)
            result.notes.append(f"The head is stored in {path.name}; name it again to use it.")
        return head

    def _measure(
        self,
        name: str,
        victim: Victim,
        context: UseContext,
        judged: Tensor,
        others: Tensor,
        result: UseResult,
    ) -> None:
        x, rows = context.inputs(judged), judged.tolist()
        labels = context.images.y[judged]
        reader = Reader(victim, context, rows, others, self.votes)
        clean = reader.read(x)
        base = [
            {"victim": name, "input": i, "label": int(label)}
            for i, label in zip(rows, labels, strict=True)
        ]
        _add(result, base, {"condition": "clean"}, clean)
        sizes, ruled_out = allowances(self.balls, self.snr, victim.vae)
        for one in ruled_out:
            result.omit(f"attacks in {one.words}", name, ONLY_COUNTS)
        for number, one in enumerate(sizes):
            # the first ball is attacked in any case: without it there is no answer
            if number and context.is_late:
                result.omit(f"attacks in {one.words}", name, LATE)
                continue
            context.step(f"{name}: attacks, {one.words}")
            where = {**one.row(), "condition": "attacked"}
            x_adv = {}
            for goal, member in (
                ("decision", ClassifierFlip(loss="margin", draws=4)),
                ("code", EncoderTarget(spread=False)),
            ):
                place = f"attack on the {goal}, {one.words}", name
                draws = 4 if goal == "decision" and victim.noise is not None else 1
                stage = Stage(name, f"{goal} {one.norm} {one.size:g}", draws)
                try:
                    attack = Attack(member, registry.build("search", self.search), one.ball(x))
                    x_adv[goal], words = context.attacked(stage, attack, victim, x, rows)
                except (RobustVAEError, RuntimeError) as error:
                    result.omit(*place, error)
                    continue
                if words:
                    result.omit(*place, words)
            if x_adv:
                _add(result, base, where, reader.worst(clean, x_adv))
        if is_discrete(victim.vae) or context.is_late:
            words = NO_SMOOTHING if is_discrete(victim.vae) else LATE
            result.omit("certified decisions", name, words)
            return
        if victim.noise is None:
            result.omit(
                "certified decisions",
                name,
                "there is no noise on its input; add a victim by --defense input-noise:stddev=0.25",
            )
            return
        context.step(f"{name}: certified decisions")
        decided = certify_decision(
            victim,
            x,
            generator=context.streams("certified", [0]).streams[0],
            confidence=self.confidence,
            draws=self.draws,
            rows=rows,
        )
        decided.check_complete()
        values = {"decision": decided.decision, "certified": decided.radius}
        _add(result, base, {"condition": "certified"}, values)


@final
class Reader:
    """What is read of inputs: decisions, codes, nearest references, tokens."""

    def __init__(
        self,
        victim: Victim,
        context: UseContext,
        rows: list[int],
        others: Tensor,
        votes: int = 1,
    ) -> None:
        self.victim, self.context, self.rows = victim, context, rows
        self.votes = votes if is_random(victim.defense) else 1
        # without other inputs there is no neighbor, and the judged ones set the unit
        places = others[:500] if len(others) else torch.tensor(rows)
        codes = in_parts(lambda x: victim.vae.encode(x).mean, context.inputs(places))
        self.references = codes if len(others) else codes[:0]
        gap = float((codes - codes.roll(-1, 0)).norm(dim=1).median()) if len(codes) > 1 else 0.0
        # no unit, no drift: most inputs have one code
        self.unit = gap if gap > SAME_CODE * float(codes.norm(dim=1).median()) else None

    def read(self, x: Tensor) -> dict[str, Tensor]:
        """Decision, code, nearest reference and tokens of each input."""
        decision = self.decide(x)
        code = in_parts(lambda part: self.victim.vae.encode(part).mean, x)
        result = {"decision": decision, "code": code}
        if len(self.references):
            result["nearest"] = torch.cdist(code, self.references).argmin(1)
        decisions = getattr(self.victim.vae, "decisions", None)
        if decisions is not None:
            try:
                with torch.no_grad():
                    result["tokens"] = decisions(code)
            except UnsupportedError:  # continuous codes
                pass
        return result

    def decide(self, x: Tensor) -> Tensor:
        """The decision, (B,); of a random victim what most of its draws say, as is certified."""
        counts: Tensor | None = None
        for vote in range(self.votes):
            streams = self.context.streams(f"reading {vote}", self.rows)
            with torch.no_grad():
                logits = self.victim.classify(x, generator=streams)
            one = functional.one_hot(logits.argmax(1), logits.shape[1])
            counts = one if counts is None else counts + one
        assert counts is not None, "at least one vote"
        return counts.argmax(1)

    def worst(self, clean: dict[str, Tensor], x_adv: dict[str, Tensor]) -> dict[str, Tensor]:
        """The worst of several attacks on each input: any flip counts, the largest drift."""
        parts: dict[str, list[Tensor]] = {}
        decision = clean["decision"].clone()
        for attacked in x_adv.values():
            values = self.read(attacked)
            flips = (decision == clean["decision"]) & (values["decision"] != clean["decision"])
            decision = torch.where(flips, values["decision"], decision)
            if self.unit is not None:
                drift = (values["code"] - clean["code"]).norm(dim=1) / self.unit
                parts.setdefault("drift", []).append(drift)
            if "nearest" in values:
                moved = (values["nearest"] != clean["nearest"]).double()
                parts.setdefault("neighbor_flip", []).append(moved)
            if "tokens" in values:
                rate = (values["tokens"] != clean["tokens"]).flatten(1).double().mean(1)
                parts.setdefault("token_flips", []).append(rate)
        worst = {key: torch.stack(values).amax(0) for key, values in parts.items()}
        return {"decision": decision, **worst}


def _add(
    result: UseResult, base: list[dict[str, Any]], same: dict[str, Any], values: dict[str, Tensor]
) -> None:
    """A row for each input; codes and tokens themselves stay out."""
    lists = {
        key: [int(v) for v in column.tolist()] if key == "decision" else numbers(column)
        for key, column in values.items()
        if key not in ("code", "tokens", "nearest")
    }
    result.rows += [
        {**row, **same, **{key: lists[key][i] for key in lists}} for i, row in enumerate(base)
    ]


def _seen(head: Any, victim: Victim, x: Tensor) -> Any:
    """A head of the user's own, after it read the code of one input; it may be anything.

    Raises:
        ConfigError: It raises, or gives no logits.
    """
    words = f"the head {getattr(head, '__name__', type(head).__name__)} must "
    try:
        with torch.no_grad():
            logits = head(victim.vae.encode(x).mean)
    except RobustVAEError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{words}take codes, (B, d), and raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"{words}give logits, (B, K), got {got} for {len(x)}")
    if logits.shape[1] < 2:
        raise ConfigError(f"{words}give logits of at least 2 classes, got 1: one decides nothing")
    if not logits.is_floating_point():
        raise ConfigError(f"{words}give logits of a floating type, got {logits.dtype}")
    if not bool(logits.isfinite().all()):
        raise NonFiniteError(
            f"{words}give finite logits, got {int((~logits.isfinite()).sum())} "
            f"others in those of {len(x)} inputs"
        )
    return head


def _check_labels(y: Tensor) -> None:
    """Raise on labels that no linear head can learn.

    Raises:
        ConfigError: One class, or labels that are not class numbers.
    """
    if len(y.unique()) < 2:
        raise ConfigError(
            "a head is trained on at least two classes, and all inputs have one label: give "
            "labels, or name a head of yours with head=package.module:Name"
        )
    if int(y.min()) < 0 or int(y.max()) >= _MOST_CLASSES:
        raise ConfigError(
            f"labels of a head are numbers of classes from 0 to {_MOST_CLASSES - 1}, got "
            f"{int(y.min())} to {int(y.max())}: number the classes anew"
        )
