"""What an evaluation is: measures, and the numbers of single images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, final

from robustvae.display import three_lines
from robustvae.errors import check_choice, single_line
from robustvae.records import plain

_ABOUT = ("data", "split", "inputs", "seed")  # facts that stand in the first line


@final
@dataclass(frozen=True)
class Measure:
    """One number of a model.

    Attributes:
        key: Its name in records.
        label: What it is.
        value: The number.
        stderr: Its standard error over the images; None where images play no part.
        n: How many images.
        unit: Of the number.

    Examples:
        >>> from robustvae.evaluation import Measure
        >>> Measure("nll", "-log p(x)", 90.0, 0.5, 2000, "nats").interval
        (89.02, 90.98)
    """

    key: str
    label: str
    value: float
    stderr: float | None
    n: int
    unit: str

    @property
    def shown(self) -> str:
        """The value as text; an upper bound is rounded up."""
        if self.key.endswith("_lipschitz"):
            return f"{math.ceil(self.value * 1e4) / 1e4:.4f}"
        return f"{self.value:.5g}"

    @property
    def interval(self) -> tuple[float, float] | None:
        """The normal 95 % interval over images; None where there is no standard error."""
        if self.stderr is None:
            return None
        return self.value - 1.96 * self.stderr, self.value + 1.96 * self.stderr


@final
@three_lines()
@dataclass(frozen=True, repr=False)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        measures: The numbers.
        absent: What could not be measured, with the reason.
        per_image: The numbers of the single images, by key, and under "index" which images these
            are; the first of them where a measure took fewer.
        facts: Data, split, seed, draws, the weights' sha256, seconds, and under "environment"
            versions, device, threads and floating type.

    Examples:
        >>> import robustvae as rv
        >>> images = rv.data.load("digits", split="test")
        >>> found = rv.evaluate(rv.load("digits-vae"), images, parts=["reconstruction"], seed=0)
        >>> found["mse"].unit
        '(0..255)^2 a pixel'
    """

    measures: tuple[Measure, ...]
    absent: dict[str, str] = field(default_factory=dict)
    per_image: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        about = ", ".join(f"{key} {self.facts[key]}" for key in _ABOUT if key in self.facts)
        values = "; ".join(f"{one.key} {one.shown}" for one in self.measures)
        reasons = f"not measured: {', '.join(self.absent)}" if self.absent else "all measured"
        return "\n".join(
            single_line(line, 240)
            for line in (
                f"Evaluation: {len(self.measures)} measures{about and f' of {about}'}",
                values or "no measures",
                f"{reasons}; per image: {', '.join(self.per_image) or 'nothing'}",
            )
        )

    def __getitem__(self, key: str) -> Measure:
        """The measure of that key."""
        by_key = {measure.key: measure for measure in self.measures}
        check_choice("measure", key, by_key)
        return by_key[key]


def as_number(value: Any) -> float:
    """A number as `plain` writes it."""
    return math.nan if value is None else float(value)


def stored(measure: Measure) -> dict[str, Any]:
    """A measure in JSON's own types, a standard error that is not a number told from none."""
    errors = [] if measure.stderr is None else [measure.stderr]
    fields: dict[str, Any] = plain(
        {**vars(measure), "value": [measure.value, *errors], "stderr": None}
    )
    return fields


def restored(fields: dict[str, Any]) -> Measure:
    """A measure from `stored`."""
    value, *stderr = map(as_number, fields["value"])
    return Measure(**{**fields, "value": value, "stderr": stderr[0] if stderr else None})
