"""What a card says of an audit: its key numbers in words, and the facts of its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from robustvae.records import Record, SummaryEntry
from robustvae.records.parts import ModelFacts
from robustvae.report import reading
from robustvae.report.words import meaning
from robustvae.rounding import ceil, floor, near, number

ROUNDINGS = {"down": floor, "up": ceil, "near": near}


@final
@dataclass(frozen=True)
class KeyNumber:
    """One number of an audit, ready to be shown.

    Attributes:
        label: Its name.
        long: Its name in full.
        meaning: What it means, in a sentence.
        shown: The number, rounded towards safety.
        interval: Its 95 % interval, empty where there is none.
        n: Over how many inputs.
        unit: Of the number.
    """

    label: str
    long: str
    meaning: str
    shown: str
    interval: str
    n: int
    unit: str


def key_number(entry: SummaryEntry) -> KeyNumber:
    """A summary's entry in words."""
    low, high = number(entry.low), number(entry.high)
    return KeyNumber(
        label=entry.headline or entry.label,
        long=entry.label,
        meaning=meaning(entry),
        shown=ROUNDINGS[entry.rounding](entry.mean),
        interval="" if low is None or high is None else f"{floor(low)} to {ceil(high)}",
        n=entry.n,
        unit=entry.unit,
    )


def key_numbers(record: Record) -> list[KeyNumber]:
    """The headline numbers of an audit, in their order."""
    return [key_number(entry) for entry in reading.headlines(record)]


def facts_of(model: ModelFacts) -> dict[str, str]:
    """What a record knows of its model, by name.

    Examples:
        >>> from robustvae.records.parts import ModelFacts
        >>> from robustvae.report.cards import facts_of
        >>> facts_of(ModelFacts(name="m", kind="vae", image_shape=[1, 8, 8], parameters=12345))
        {'kind': 'vae', 'shape of an input': '1 × 8 × 8', 'parameters': '12,345'}
    """
    facts = {
        "kind": model.kind,
        "architecture": model.architecture,
        "shape of an input": " \N{MULTIPLICATION SIGN} ".join(map(str, model.image_shape)),
        "length of the code": model.latent,
        "likelihood": model.likelihood,
        "parameters": f"{model.parameters:,}",
        "sha256 of the weights": model.sha256,
        "source": None if model.source == model.name else model.source,
    }
    return {key: str(value) for key, value in facts.items() if value is not None}
