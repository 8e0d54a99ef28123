"""Rows of measured numbers, and the one writer of tables: markdown, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, final

from robustvae.metrics import mean_stderr
from robustvae.records import plain, write_files


@final
@dataclass(frozen=True)
class Row:
    """One measured number, or one sentence about it.

    Attributes:
        what: What was measured on, such as the defense: the line of the table.
        setting: Under which setting, such as the radius of the attack: the column.
        measured: The mean over the inputs.
        stderr: Its standard error, 0 where there is none.
        n: How many inputs, or how many runs where the runs are the sample.
        cost: Gradient evaluations an image, 0 where there is none.
        section: Under which heading of the page.
        reported: The paper's number, where it has one.
        reported_stderr: The paper's standard error, where it prints one.
        source: Where the reported number stands.
        text: Shown instead of the number, such as a verdict.
    """

    what: str
    setting: str
    measured: float
    stderr: float = 0.0
    n: int = 1
    cost: int = 0
    section: str = ""
    reported: float | None = None
    reported_stderr: float | None = None
    source: str | None = None
    text: str = ""

    @property
    def z(self) -> float | None:
        """Difference from the reported number in combined standard errors; None without one."""
        if self.reported is None:
            return None
        error = math.hypot(self.stderr, self.reported_stderr or 0.0)
        gap = self.measured - self.reported
        return gap / error if error else (0.0 if gap == 0 else math.copysign(math.inf, gap))

    @property
    def agrees(self) -> bool | None:
        """Whether it lies within two combined standard errors; None without a reported number."""
        return None if self.z is None else abs(self.z) <= 2

    @property
    def cell(self) -> str:
        """The number as a table shows it."""
        if self.text:
            return self.text
        spread = f" ± {self.stderr:.2g}" if self.stderr else ""
        error = f" ± {self.reported_stderr:.2g}" if self.reported_stderr else ""
        reported = "" if self.reported is None else f" (reported {self.reported:g}{error})"
        return f"{self.measured:.4g}{spread}{reported}"


def measured(what: str, setting: str, values: Any, **more: Any) -> Row:
    """The row of the mean of `values`, one number an input, with its standard error.

    Examples:
        >>> from experiments.harness.rows import measured
        >>> measured("HMC", "MS-SSIM", [1.0, 2.0, 3.0]).cell
        '2 ± 0.58'
    """
    if not all(math.isfinite(value) for value in values):  # an infinite margin has no error
        return Row(what, setting, math.fsum(values) / len(values), n=len(values), **more)
    mean, stderr = mean_stderr(values)
    return Row(what, setting, mean, stderr if len(values) > 1 else 0.0, len(values), **more)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half a 95 % interval, by Student's t: the training runs are the sample.

    Examples:
        >>> from experiments.harness.rows import interval
        >>> mean, half = interval([1.0, 2.0, 3.0])
        >>> mean, round(half, 3)
        (2.0, 2.484)
    """
    from scipy.stats import t

    mean, stderr = mean_stderr(values)
    return mean, float(t.ppf(0.975, max(len(values) - 1, 1))) * stderr


@final
@dataclass(frozen=True)
class Result:
    """An item's result: every page, table and cell of the ledger is a function of it.

    Attributes:
        title: What the numbers are.
        unit: Of the numbers.
        rows: The numbers.
        protocol: Sentences that say what was done.
        facts: Command, seed, versions, machine and date.
        values: Raw numbers that figures are drawn from, in JSON's own types.
    """

    title: str
    unit: str
    rows: tuple[Row, ...]
    protocol: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def row(self, what: str, setting: str, section: str | None = None) -> Row:
        """The first row of that line and column."""
        return next(
            row
            for row in self.rows
            if (row.what, row.setting) == (what, setting) and section in (None, row.section)
        )

    def to_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(plain(asdict(self)), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Read a result back; an infinity stays one."""
        content = json.loads(text)
        rows = []
        for row in content.pop("rows"):
            numbers = {k: float(v) for k, v in row.items() if v in ("inf", "-inf")}
            rows.append(Row(**(row | numbers)))
        content["rows"] = tuple(rows)
        return cls(**(content | {"protocol": tuple(content["protocol"])}))

    def to_csv(self) -> str:
        """The rows as CSV, one number a line."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """The page: a table a section, one line a `what`, one column a `setting`."""
        lines = [f"# {self.title}", ""]
        if self.unit:
            lines += [f"In {self.unit}; mean ± standard error.", ""]
        if "command" in self.facts:
            mark = "# needs data and time, as said below"  # no test runs it: a reader sees why
            lines += ["```sh", mark, str(self.facts["command"]), "```", ""]
        for section in _unique(row.section for row in self.rows):
            rows = [row for row in self.rows if row.section == section]
            lines += [f"## {section}", ""] if section else []
            lines += [*table(rows), ""]
        lines += [f"- {sentence}" for sentence in self.protocol]
        lines += [f"- {key}: {value}" for key, value in self.facts.items() if key != "command"]
        return "\n".join(lines) + "\n"

    def write(self, folder: str | Path, name: str) -> None:
        """Write `name`.json and `name`.md."""
        contents = {"json": self.to_json(), "md": self.to_markdown()}
        write_files(
            {Path(folder) / f"{name}.{kind}": text.encode() for kind, text in contents.items()}
        )


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of one markdown table; the column of gradients stands where any row has a cost."""
    settings = _unique(row.setting for row in rows)
    cells = {(row.what, row.setting): row.cell for row in rows}
    costs = {row.what: row.cost for row in rows}
    priced = any(costs.values())
    lines = [line(["", *["gradients an image"] * priced, *settings])]
    lines.append(line(["---", *["---:"] * (priced + len(settings))]))
    for what, cost in costs.items():
        shown = [cells.get((what, setting), "") for setting in settings]
        lines.append(line([what, *[f"{cost:,}"] * priced, *shown]))
    return lines


def line(cells: Sequence[str]) -> str:
    """One line of a markdown table."""
    return "| " + " | ".join(cells) + " |"


def combine(results: Sequence[Result]) -> Result:
    """One result of several seeds: means over the seeds, whose spread is in the standard error.

    The standard error is the larger of two: that of the seeds' means, and what the single runs'
    own errors give. The first sees another draw of references, the second is steadier for few.
    """
    if len(results) == 1:
        return results[0]
    rows = []
    for same in zip(*(result.rows for result in results), strict=True):
        values = [row.measured for row in same]
        mean, between = mean_stderr(values)
        within = math.sqrt(math.fsum(row.stderr**2 for row in same)) / len(same)
        error = max(between, within)
        rows.append(
            replace(same[0], measured=mean, stderr=error, n=sum(row.n for row in same), text="")
        )
    first = results[0]
    command = f"{first.facts['command']} --seeds {len(results)}"
    sentence = f"Means over {len(results)} seeds, each with its own draw of everything random."
    return replace(
        first,
        rows=tuple(rows),
        protocol=(*first.protocol, sentence),
        facts=first.facts
        | {"seed": ", ".join(str(result.facts["seed"]) for result in results), "command": command},
    )


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
