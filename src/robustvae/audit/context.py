"""What measures are given: a victim, some inputs, the question, and generators for each input."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from robustvae.attacks.attack import AttackResult, as_they_occur
from robustvae.audit.plan import AttackPlan, Plan
from robustvae.defenses import PosteriorMean, Victim, is_posterior_mean
from robustvae.perturb import Ball
from robustvae.records import Column, QuestionFacts
from robustvae.registry import family_base
from robustvae.seeding import RowGenerator, randn, row_generators, shard_generator

BASE_COLUMNS = (
    Column(id="victim", label="victim", kind="text", reduction="none"),
    Column(id="input", label="input", kind="count", reduction="none"),
    Column(id="label", label="label", kind="count", reduction="none"),
    Column(id="attack", label="attack", kind="text", reduction="none"),
    Column(id="role", label="why it was made", kind="text", reduction="none"),
    Column(id="knows", label="what the attacker knew", kind="text", reduction="none"),
    Column(id="goal", label="goal", kind="text", reduction="none"),
    Column(id="norm", label="norm", kind="text", reduction="none"),
    Column(id="radius", label="radius", unit="pixel units", reduction="none"),
    Column(id="box", label="kept in range", kind="flag", reduction="none"),
    Column(id="status", label="status", kind="text", reduction="none"),
    Column(id="queries", label="queries", kind="count", reduction="none"),
    Column(id="score", label="the goal's score", reduction="none"),
    Column(id="zero_gradients", label="share of zero gradients", kind="share", reduction="none"),
    Column(id="adversarial", label="SHA-256 of the attacked input", kind="text", reduction="none"),
)
"""Columns of every row, whatever is measured."""


@final
@dataclass(frozen=True, eq=False)
class Attacked:
    """One attack's outcome on the inputs of a context.

    Attributes:
        plan: The attack.
        id: Its name in the rows.
        role: "plan", "gradient-free", "explored", "longer", "transfer" or "differences".
        knows: What the attacker knew, in words.
        result: What it found.
    """

    plan: AttackPlan
    id: str
    role: str
    knows: str
    result: AttackResult

    @property
    def x_adv(self) -> Tensor:
        """Attacked inputs, (B, ...)."""
        return self.result.x_adv

    def part(self, rows: Sequence[int]) -> Attacked:
        """The outcome on some of the inputs."""
        fields: dict[str, Any] = {}
        for entry in dataclasses.fields(self.result):
            value = getattr(self.result, entry.name)
            part = value[list(rows)] if isinstance(value, Tensor) else [value[i] for i in rows]
            fields[entry.name] = part if isinstance(value, Tensor) else tuple(part)
        return dataclasses.replace(self, result=AttackResult(**fields))


@final
@dataclass(frozen=True, eq=False)
class Context:
    """Some inputs of an audit and a victim; what is costly is computed once.

    Every generator follows from (seed, purpose) and, through `each`, the input's own number, so
    that a row is the same alone, in any batch and in any order.

    Attributes:
        victim: What is measured.
        name: Its name in the rows.
        plain: The same model without a defense.
        x: Inputs, (B, ...).
        numbers: Their places in the data set, B.
        question: The question.
        plan: The plan.
        seed: Of every generator.
        random: Whether the victim's output depends on a generator.
        constant: The best constant output for the audited data, (1, ...).
        attacked: The attack that a measure of attacks is asked about; None for one of inputs.
        attacks: All attacks on these inputs, once they are known.
    """

    victim: Victim
    name: str
    plain: Victim
    x: Tensor
    numbers: tuple[int, ...]
    question: QuestionFacts
    plan: Plan
    seed: int
    random: bool
    constant: Tensor
    attacked: Attacked | None = None
    attacks: tuple[Attacked, ...] = ()
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def defended(self) -> bool:
        """Whether the victim reads its code otherwise than by the encoder's mean."""
        return is_defended(self.victim)

    @property
    def x_adv(self) -> Tensor:
        """The attacked inputs, (B, ...)."""
        assert self.attacked is not None, "a measure of inputs has no attack"
        return self.attacked.x_adv

    @property
    def ball(self) -> Ball:
        """The attack's ball."""
        assert self.attacked is not None, "a measure of inputs has no attack"
        return Ball(self.attacked.plan.norm, self.attacked.plan.radius)

    def generator(self, purpose: str) -> torch.Generator:
        """A generator that only the seed and the purpose decide: the same for every batch."""
        return shard_generator(self.seed, 0, purpose, self.x.device)

    def generators(self, purpose: str) -> list[torch.Generator]:
        """A generator for each input, which its own number decides."""
        return row_generators(self.seed, purpose, self.numbers, self.x.device)

    def each(self, purpose: str, measure: Callable[[slice, torch.Generator], Any]) -> list[Any]:
        """What `measure(row, generator)` gives for each input alone, in their order."""
        return [
            measure(slice(i, i + 1), generator)
            for i, generator in enumerate(self.generators(purpose))
        ]

    def streams(self, purpose: str) -> RowGenerator:
        """The generators of all inputs as one, for functions that draw row by row."""
        return RowGenerator(self.generators(purpose))

    def read(self, victim: Victim, images: Tensor, purpose: str) -> Tensor:
        """Outputs of a victim, (B, ...), each input with its own numbers.

        Equal purposes give equal numbers, so that only the images make the difference.
        """
        nature = nature_of(victim, images[:1])
        if not nature.random:
            return victim.reconstruct(images, generator=self.generator(purpose))
        if nature.by_row:
            return victim.reconstruct(images, generator=self.streams(purpose))
        return torch.cat(
            self.each(purpose, lambda row, g: victim.reconstruct(images[row], generator=g))
        )

    def once(self, name: Any, compute: Callable[[], Any]) -> Any:
        """The result of `compute`, kept under a name for the measures of the same inputs."""
        if name not in self.cache:
            self.cache[name] = compute()
        return self.cache[name]

    @property
    def output(self) -> Tensor:
        """The victim's own clean outputs, (B, ...)."""
        result: Tensor = self.once(
            ("output", self.name), lambda: self.read(self.victim, self.x, "output")
        )
        return result

    @property
    def plain_output(self) -> Tensor:
        """The undefended model's clean outputs, (B, ...)."""
        result: Tensor = self.once("plain", lambda: self.read(self.plain, self.x, "output"))
        return result

    @property
    def attacked_output(self) -> Tensor:
        """The victim's outputs at the attacked inputs, (B, ...)."""
        assert self.attacked is not None, "a measure of inputs has no attack"
        result: Tensor = self.once(
            ("attacked", self.attacked.id), lambda: self.read(self.victim, self.x_adv, "output")
        )
        return result

    @property
    def noise(self) -> Tensor:
        """Random inputs at the size that the attack spent on each, kept in range, (B, ...)."""
        assert self.attacked is not None, "a measure of inputs has no attack"

        def draw() -> Tensor:
            steps = self.each(
                f"noise {self.ball.norm}",
                lambda row, g: randn(*self.x[row].shape, like=self.x, generator=g),
            )
            step = torch.cat(steps)
            # far outside: the projection cuts it to the size that was spent
            far = step.sign() if self.ball.norm == "linf" else step * math.sqrt(step[0].numel())
            size = self.ball.size(self.x, self.x_adv).clamp_min(1e-9)
            ball = Ball(self.ball.norm, size)
            noisy = ball.project(self.x, self.x + far)
            return as_they_occur(self.victim.vae, ball, self.x, noisy)

        result: Tensor = self.once(("noise", self.attacked.id), draw)
        return result

    def part(self, rows: Sequence[int]) -> Context:
        """Some of the inputs, as if they were the batch."""
        index = torch.tensor(list(rows), device=self.x.device)
        attacks = tuple(one.part(rows) for one in self.attacks)
        attacked = None if self.attacked is None else self.attacked.part(rows)
        kept = ("partners", "of models")
        cache = {key: self.cache[key] for key in kept if key in self.cache}
        return dataclasses.replace(
            self,
            x=self.x[index],
            numbers=tuple(self.numbers[row] for row in rows),
            attacks=attacks,
            attacked=attacked,
            cache=cache,
        )

    def about(self, attacked: Attacked) -> Context:
        """The same inputs under one attack; what was computed once stays."""
        return dataclasses.replace(self, attacked=attacked)


@family_base("measure")
@runtime_checkable
class Measure(Protocol):
    """Adds columns to the rows of an audit.

    All its columns belong to attacks or all to inputs (`Column.per`).
    """

    columns: ClassVar[tuple[Column, ...]]

    def __call__(self, context: Context) -> Mapping[str, Sequence[Any] | Tensor]:
        """The values of every column, B of each.

        Raises:
            RobustVAEError: What it cannot measure here; its columns are then empty, and the
                reason stands in the record.
        """
        ...


def is_defended(victim: Victim) -> bool:
    """Whether a victim reads its code otherwise than by the encoder's mean."""
    return not is_posterior_mean(victim.defense)


def undefended(victim: Victim) -> Victim:
    """The same model read by its encoder's mean."""
    return dataclasses.replace(victim, defense=PosteriorMean()) if is_defended(victim) else victim


@final
@dataclass(frozen=True)
class Nature:
    """How a victim draws.

    Attributes:
        random: Whether its output depends on a generator.
        by_row: Whether each row draws from its own stream of a `RowGenerator`.
    """

    random: bool
    by_row: bool


def is_random(victim: Victim, x: Tensor) -> bool:
    """Whether a victim's output depends on a generator: what it says, or else what it shows."""
    return nature_of(victim, x).random


def nature_of(victim: Victim, x: Tensor) -> Nature:
    """How a victim draws, seen at one input once: whoever says nothing is asked twice.

    Args:
        victim: What is asked.
        x: At least one input, (B, ...).
    """
    entry = _SEEN.get(id(victim))
    if entry is not None and entry[0] is victim:
        return entry[1]
    nature = _look(victim, x[:1].detach())
    if len(_SEEN) > _MOST_SEEN:
        _SEEN.clear()
    _SEEN[id(victim)] = victim, nature
    return nature


_SEEN: dict[int, tuple[Victim, Nature]] = {}
_MOST_SEEN = 16  # victims that are remembered: an audit asks about the same few again and again


def _look(victim: Victim, x: Tensor) -> Nature:
    def same(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)

    def read(rows: Tensor, numbers: Sequence[int]) -> Tensor:
        streams = row_generators(0, "nature", numbers, x.device)
        return victim.reconstruct(rows, generator=RowGenerator(streams))

    statement = getattr(victim.defense, "is_random", None)
    random = statement if isinstance(statement, bool) else not same(read(x, [1]), read(x, [2]))
    if not random:
        return Nature(random=False, by_row=True)
    try:
        both = read(torch.cat([x, x]), [1, 2])
        alone = torch.cat([read(x, [1]), read(x, [2])])
    except RuntimeError:  # a defense of its own may not know such a generator
        return Nature(random=True, by_row=False)
    return Nature(random=True, by_row=same(both, alone))


def distance(a: Tensor, b: Tensor) -> Tensor:
    """The 2-norm of a - b over everything but the batch, (B,)."""
    return (a - b).flatten(1).norm(dim=1)


@functools.cache
def standard_measures() -> tuple[str, ...]:
    """The library's own measures, in the order of their columns."""
    return (
        "perturbation",
        "damage",
        "damage-curve",
        "band-attacked",
        "similarity",
        "probability",
        "survival",
        "resubmission",
        "usefulness",
        "clean-probability",
        "margin",
        "certificate",
        "band-certified",
        "first-order",
        "geometry",
        "overflow",
    )


def error_of(output: Tensor, x: Tensor) -> Tensor:
    """Distance of outputs, (B, ...), from inputs, (B,); NaN where an output has another shape.

    Examples:
        >>> import torch
        >>> from robustvae.audit.context import error_of
        >>> x = torch.zeros(1, 1, 2, 2)
        >>> error_of(x, x), error_of(torch.zeros(1, 1, 1, 10), x)
        (tensor([0.]), tensor([nan]))
    """
    if output.shape[1:] != x.shape[1:]:
        return x.new_full((len(x),), torch.nan)
    return distance(output, x)
