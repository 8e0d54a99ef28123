"""What a profile measures beyond its plan: the family "use", and what its members share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from robustvae.attacks import Attack
from robustvae.audit.attacking import go_on
from robustvae.audit.pictures import picture
from robustvae.audit.profiles.pace import UseClock
from robustvae.audit.profiles.shards import Shards, Values
from robustvae.audit.store import tensor_sha256
from robustvae.data import Images
from robustvae.defenses import Victim
from robustvae.errors import RobustVAEError
from robustvae.records import plain
from robustvae.records.parts import Omission
from robustvae.registry import family_base
from robustvae.seeding import RowGenerator, row_generators, shard_generator

LATE = "the minutes of the audit are over; give more minutes"
GALLERY = 4  # inputs shown: the rows have all of them


@final
@dataclass(frozen=True)
class Stage:
    """An attack of a use.

    Attributes:
        victim: Name of the victim that it is made for.
        name: What it is called.
        passes: Gradients that a step takes, such as one for each draw that is averaged.
        begin: Where each input's climb begins, (B, ...), in the ball; None for the search's own
            starts.
    """

    victim: str
    name: str
    passes: float = 1.0
    begin: Tensor | None = None


@final
@dataclass(frozen=True)
class UseContext:
    """What a use may measure.

    Attributes:
        victims: The victims by name; the first one is what the answer speaks of.
        images: The user's inputs.
        seed: Of every generator.
        step: Called with a few words when a stage begins.
        clock: Of the minutes; stages that would begin after its end are left out.
        shards: Where finished measurements lie.
        seen: Numbers of the inputs that were read.
        failed: Numbers of inputs that no victim may be asked about, since one of them raises.
    """

    victims: dict[str, Victim]
    images: Images
    seed: int = 0
    step: Callable[[str], None] = lambda words: None
    clock: UseClock = field(default_factory=UseClock)
    shards: Shards = field(default_factory=Shards)
    seen: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    searches: dict[str, list[int]] = field(default_factory=dict)

    @property
    def first(self) -> Victim:
        """The victim that the answer speaks of."""
        return next(iter(self.victims.values()))

    @property
    def is_late(self) -> bool:
        """Whether the minutes of the audit are over."""
        return self.clock.is_over

    def inputs(self, rows: Tensor) -> Tensor:
        """Some inputs as the models read them, (n, ...)."""
        vae = self.first.vae
        self.seen.update(rows.tolist())
        return self.images.read(rows).to(device=vae.device, dtype=vae.dtype)

    def choose(self, rows: Tensor, count: int, purpose: str) -> Tensor:
        """At most `count` of some rows, balanced over their labels, in ascending order.

        Failed ones are left out of what is chosen, so that the others are the same without them.
        """
        if len(rows) > count:
            noise = shard_generator(self.seed, 0, purpose)
            rows = rows[self.images[rows].choose(count, stratified=True, generator=noise).sort()[0]]
        return rows[~torch.isin(rows, torch.tensor(sorted(self.failed), dtype=rows.dtype))]

    def attacked(
        self, stage: Stage, attack: Attack, victim: Victim, x: Tensor, rows: Sequence[int]
    ) -> tuple[Tensor, str]:
        """Attacked inputs, and in words what went wrong: a stop, a failed input, no slope.

        They are searched in ranges, each of which is kept and has its share of the minutes.

        Args:
            stage: What it is called, which decides the random numbers, and what it costs.
            attack: The attack.
            victim: What it is made for.
            x: Inputs, (B, ...).
            rows: Their own numbers.

        Raises:
            Exception: What every input raises.
        """
        clock, seconds = self.clock, stage.passes * self.clock.search_seconds(stage.victim, attack)

        def compute(part: slice) -> tuple[Values, list[str]]:
            streams = self.streams(stage.name, rows[part])
            climb = attack if stage.begin is None else go_on(attack, stage.begin[part])
            with clock.watched(seconds * (part.stop - part.start)) as notes:
                result = climb.run(victim, x[part], generator=streams)
            blind = torch.tensor([status != "ok" for status in result.status])
            return {"x_adv": result.x_adv, "blind": blind}, notes

        def unchanged(part: slice) -> Values:
            return {"x_adv": x[part], "blind": torch.zeros(part.stop - part.start).bool()}

        label = f"{stage.victim}/{stage.name}/{self.shards.identity(victim)}/{tensor_sha256(x)}"
        if stage.begin is not None:
            label += f"/{tensor_sha256(stage.begin)}"
        values, notes = self.shards.measured(label, len(x), compute, unchanged)
        blind = int(values["blind"].sum())
        counts = self.searches.setdefault(stage.victim, [0, 0])
        counts[0], counts[1] = counts[0] + blind, counts[1] + len(x)
        if blind:
            notes.append(
                f"the search met no slope, or no finite score, for {blind} of {len(x)} inputs: "
                "withstanding it does not count as evidence"
            )
        return values["x_adv"].to(x), "; ".join(dict.fromkeys(notes))

    def streams(self, purpose: str, numbers: Sequence[int]) -> RowGenerator:
        """A generator for each input, which the seed, the purpose and its own number decide."""
        device = self.first.vae.device
        return RowGenerator(row_generators(self.seed, purpose, numbers, device))


@final
@dataclass
class UseResult:
    """What a use measured; see `robustvae.records.UseFacts`.

    Attributes:
        rows: Plain values.
        facts: Numbers of the whole.
        notes: Sentences on how it was measured.
        gallery: Inputs with their pictures.
        probes: For each victim, what the profile's checks judge.
        left_out: What was not measured, and why.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    gallery: list[dict[str, Any]] = field(default_factory=list)
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: list[Omission] = field(default_factory=list)

    def omit(self, stage: str, victim: str, error: Exception | str) -> None:
        """Note that a stage was left out, and why."""
        words = " ".join(str(error).split())
        if isinstance(error, Exception) and not isinstance(error, RobustVAEError):
            words = f"{type(error).__name__}: {words}"
        self.left_out.append(Omission(stage=stage, victim=victim, reason=words[:400]))

    def show(self, number: int, label: int, attack: str, caption: str, **images: Tensor) -> None:
        """Add one input's pictures, each (C, H, W) in [0, 1]; other data are left out."""
        if len(self.gallery) >= GALLERY or any(min(x.shape[-2:]) < 2 for x in images.values()):
            return
        panels = {name.replace("_", " "): picture(image) for name, image in images.items()}
        self.gallery.append(
            {
                "input": number,
                "label": label,
                "attack": attack,
                "caption": caption,
                "panels": panels,
            }
        )


@family_base("use")
@runtime_checkable
class Use(Protocol):
    """Answers the question of people who decide by a model: rows, of which the report is made.

    A use may have `plan_images(images)`, the inputs that the plan's own audit is about, where
    these are not all, and `probe(victim, x, generator=)`, what it asks of each input, where that
    is not the reconstruction: it finds the inputs for which a victim raises.
    """

    question: ClassVar[str]

    def __call__(self, context: UseContext) -> UseResult:
        """Measure.

        Raises:
            RobustVAEError: Inputs or victims that the question does not fit.
        """
        ...


def parts(count: int, size: int = 250) -> Iterator[slice]:
    """Slices that cover `count` rows, `size` at a time."""
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))


def numbers(values: Tensor) -> list[Any]:
    """A tensor as plain numbers."""
    result: list[Any] = plain(values.detach().double().cpu().tolist())
    return result


def in_parts(function: Callable[[Tensor], Tensor], x: Tensor, size: int = 250) -> Tensor:
    """A function of a batch, applied to a part at a time and without gradients."""
    with torch.no_grad():
        return torch.cat([function(x[part]) for part in parts(len(x), size)])
