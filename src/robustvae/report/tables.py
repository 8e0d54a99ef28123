"""A table of comparable numbers, for people and for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from html import escape
from typing import Any, final

from robustvae.errors import MissingExtraError
from robustvae.rounding import MINUS, NOT_MEASURED, ceil, floor, near, number

# Rounded towards safety: what is guaranteed down, what an attack bounds from above up.
_ROUND = {"down": floor, "up": ceil, "near": near}
_LOPSIDED = 2.0  # from where on half the width of an interval says neither of its ends
MOST_COLUMNS = 4  # rows that stand side by side on a terminal with their differences
_SHORT = {
    "error_clean": "clean error",
    "damage": "damage",
    "margin_upper_box": "attacked",
    "certified_deterministic": "certified (det.)",
    "certified_probabilistic": "certified (prob.)",
    "price": "price",
}
_LATEX = {c: rf"\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    NOT_MEASURED: "--",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    MINUS: "$-$",
    "\N{SCRIPT SMALL L}": r"$\ell$",
    "₂": "$_2$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}


@final
@dataclass(frozen=True)
class Heading:
    """One column of numbers.

    Attributes:
        id: Its key in rows, JSON and CSV.
        label: What it is, in a few words.
        unit: Of its numbers.
        rounding: "down", "up" or "near".
        better: "higher", "lower", or None where neither is better.
    """

    id: str
    label: str
    unit: str = ""
    rounding: str = "near"
    better: str | None = None


@final
@dataclass(frozen=True)
class Cell:
    """A mean over inputs with its interval.

    Attributes:
        mean: The mean; infinite where an input's number is.
        low: Lower end of its 95 % interval, or None.
        high: Upper end of its 95 % interval, or None.
        n: Over how many inputs.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    n: int = 0

    def text(self, heading: Heading) -> str:
        """The mean, with half the width of its interval, or its ends where one is far off."""
        text = _ROUND[heading.rounding](self.mean)
        if self.low is None or self.high is None or not 0 < self.high - self.low < math.inf:
            return text  # an interval of no width says that all inputs are equal, not how sure
        below, above = self.mean - self.low, self.high - self.mean
        if max(below, above) > _LOPSIDED * min(below, above):
            return f"{text} ({floor(self.low, 2)} to {ceil(self.high, 2)})"
        return f"{text} ± {ceil((self.high - self.low) / 2, 2)}"


@final
@dataclass(frozen=True)
class Row:
    """One victim of one record: its names, and its cells by heading."""

    names: dict[str, str]
    cells: dict[str, Cell]


@final
@dataclass(frozen=True, repr=False)
class Table:
    """Rows that answer one question, and their differences from the first row.

    Attributes:
        title: What all rows have in common.
        headings: The columns of numbers.
        rows: One for each victim of each record.
        differences: For each row but the first, its cells less the first row's over the inputs
            that both have; empty where they share none.
        notes: Sentences that belong under it.
        failures: Rows that are broken for sure, inconclusive or changed, of all records, the most
            harmful first, each as a flat mapping.

    Examples:
        >>> from robustvae.report.tables import Cell, Heading, Row, Table
        >>> heading = Heading("certified", "certified radius", rounding="down")
        >>> row = Row({"model": "a", "defense": ""}, {"certified": Cell(0.19999)})
        >>> print(Table("digits", (heading,), (row,)).to_csv(), end="")
        model,defense,certified,certified_low,certified_high,certified_n
        a,,0.19999,,,0
    """

    title: str
    headings: tuple[Heading, ...]
    rows: tuple[Row, ...]
    differences: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    failures: tuple[dict[str, Any], ...] = ()

    def names(self) -> list[str]:
        """Headings of the columns of words."""
        return list(self.rows[0].names) if self.rows else []

    def body(self, rows: tuple[Row, ...] | None = None) -> list[list[str]]:
        """The cells as text, row by row."""
        return [
            [
                *row.names.values(),
                *(
                    row.cells[h.id].text(h) if h.id in row.cells else NOT_MEASURED
                    for h in self.headings
                ),
            ]
            for row in (self.rows if rows is None else rows)
        ]

    def head(self) -> list[str]:
        """The headings as text, with units and which way is better."""
        arrows = {"higher": " ↑", "lower": " ↓", None: ""}
        return [
            *self.names(),
            *(
                f"{h.label}{f' [{h.unit}]' if h.unit else ''}{arrows[h.better]}"
                for h in self.headings
            ),
        ]

    def to_csv(self) -> str:
        """Unrounded numbers: mean, low, high and n of each column."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        records = self._records(self.rows)
        if records:
            writer.writerow(records[0])
            writer.writerows(record.values() for record in records)
        return buffer.getvalue()

    def to_json(self) -> str:
        """Everything, unrounded; an infinity is the string "inf"."""
        content = {
            "title": self.title,
            "columns": [vars(heading) for heading in self.headings],
            "rows": self._records(self.rows),
            "differences": self._records(self.differences),
            "failures": list(self.failures),
            "notes": list(self.notes),
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """A pipe table, and the differences as a second one."""
        text = f"**{_pipe(self.title)}**\n\n" + self._markdown(self.body())
        if self.differences:
            text += f"\n**Less the first row**\n\n{self._markdown(self.body(self.differences))}"
        return text + "".join(f"\n{note}\n" for note in self.notes)

    def to_latex(self) -> str:
        """A `tabular` with rules of booktabs; notes are comments, the caption is yours to write."""
        columns = "l" * len(self.names()) + "r" * len(self.headings)
        body = [self._latex(self.head()), r"\midrule"]
        body += [self._latex(row) for row in self.body()]
        if self.differences:
            words = rf"\multicolumn{{{len(columns)}}}{{l}}{{less the first row}} \\"
            body += [r"\midrule", words]
            body += [self._latex(row) for row in self.body(self.differences)]
        text = "\n".join(body)
        head = "".join(f"% {' '.join(line.split())}\n" for line in (self.title, *self.notes))
        return (
            f"{head}\\begin{{tabular}}{{{columns}}}\n\\toprule\n"
            f"{text}\n\\bottomrule\n\\end{{tabular}}\n"
        )

    def to_html(self) -> str:
        """A `table` element, without a page around it; everything in it is escaped."""
        parts = [f'<table class="comparison"><caption>{escape(self.title)}</caption>']
        parts.append(_html_row(self.head(), "th", "thead"))
        parts.append("<tbody>")
        parts += [_html_row(row, "td") for row in self.body()]
        if self.differences:
            span = len(self.head())
            parts.append(f'<tr><th colspan="{span}">less the first row</th></tr>')
            parts += [_html_row(row, "td") for row in self.body(self.differences)]
        parts.append("</tbody></table>")
        parts += [f"<p>{escape(note)}</p>" for note in self.notes]
        return "\n".join(parts) + "\n"

    def to_frame(self) -> Any:
        """The numbers as a pandas data frame.

        Raises:
            MissingExtraError: Without pandas.
        """
        try:
            import pandas
        except ImportError:
            raise MissingExtraError(
                "a data frame needs pandas: pip install pandas, or use to_csv"
            ) from None
        return pandas.DataFrame(self._records(self.rows))

    def lines(self) -> list[list[str]]:
        """The table as it is printed: a line for each number, a column for each row.

        A record has a dozen numbers with long names, and few records are compared, so the table is
        turned on its side. The first line and the first column are headings.
        """
        body, words = self.body(), len(self.names())
        columns = [[" ".join(dict.fromkeys(row[:words])), *row[words:]] for row in body]
        for row in self.body(self.differences):
            columns.append([f"{' '.join(dict.fromkeys(row[:words]))} - first", *row[words:]])
        return [list(line) for line in zip(["", *self.head()[words:]], *columns, strict=True)]

    def short_lines(self) -> list[list[str]]:
        """The table upright with its main numbers, for more rows than stand side by side."""
        main = [h for h in self.headings if h.id in _SHORT]
        arrows = {"higher": " ↑", "lower": " ↓", None: ""}
        head = [*self.names(), *(f"{_SHORT[h.id]}{arrows[h.better]}" for h in main)]
        rows = [
            [
                *row.names.values(),
                *(row.cells[h.id].text(h) if h.id in row.cells else NOT_MEASURED for h in main),
            ]
            for row in self.rows
        ]
        return [head, *rows]

    def __repr__(self) -> str:
        """The table in columns of text."""
        lines = self.lines() if len(self.rows) <= MOST_COLUMNS else self.short_lines()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *text, *self.notes])

    def _repr_html_(self) -> str:
        return self.to_html()

    def _records(self, rows: tuple[Row, ...]) -> list[dict[str, Any]]:
        records = []
        for row in rows:
            record: dict[str, Any] = dict(row.names)
            for h in self.headings:
                cell = row.cells.get(h.id)
                ends = (None,) * 3 if cell is None else (cell.mean, cell.low, cell.high)
                for suffix, value in zip(("", "_low", "_high"), ends, strict=True):
                    infinite = value is not None and not math.isfinite(value)
                    record[h.id + suffix] = str(value) if infinite else value
                record[f"{h.id}_n"] = None if cell is None else cell.n
            records.append(record)
        return records

    def _markdown(self, body: list[list[str]]) -> str:
        marks = ["---"] * len(self.names()) + ["---:"] * len(self.headings)
        lines = [[_pipe(text) for text in line] for line in (self.head(), *body)]
        lines.insert(1, marks)
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def _latex(self, cells: list[str]) -> str:
        return " & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in cells) + r" \\"


def cell_of(mean: Any, low: Any = None, high: Any = None, n: int = 0) -> Cell | None:
    """A cell from a record's numbers, which may be missing or "inf"; None where none is there."""
    value = number(mean)
    if value is None:
        return None
    return Cell(value, number(low), number(high), n)


def _pipe(text: str) -> str:
    return escape(text, quote=False).replace("|", r"\|").replace("\n", " ")


def _html_row(cells: list[str], tag: str, group: str = "") -> str:
    row = "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
    return f"<{group}>{row}</{group}>" if group else row
