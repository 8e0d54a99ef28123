"""Put several audits side by side, with paired differences; all must ask one question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustvae.cli import common
from robustvae.errors import ConfigError, check_choice

FORMATS = ("text", "csv", "html", "json", "latex", "markdown", "svg")
_SUFFIXES = {
    ".csv": "csv",
    ".html": "html",
    ".json": "json",
    ".tex": "latex",
    ".md": "markdown",
    ".svg": "svg",
}


def run(
    records: Annotated[
        list[Path], typer.Argument(help="Folders that audits wrote, or their record.json.")
    ],
    format: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(FORMATS)}; by default what the name of --out says."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the table, or the picture, here, too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    failures: Annotated[
        int, typer.Option(min=0, help="How many failing rows to list; JSON holds all.")
    ] = 5,
) -> None:
    """Put several audits side by side, with paired differences; all must ask one question.

    Each victim of each audit is a row; rows are compared with the first over the inputs that both
    have. Below stand the rows that are broken for sure, inconclusive or changed since.

    Examples:

        robustvae compare audits/plain audits/lipschitz   # needs those audits

        robustvae compare audits/* --out table.tex   # needs those audits

        robustvae compare audits/* --out pareto.svg   # needs those audits
    """
    from robustvae.cli.printing import show, show_table
    from robustvae.records import write_text
    from robustvae.report.compare import compare
    from robustvae.report.pareto import draw_paretos

    format = "json" if as_json else format
    kind = format or ("text" if out is None else _SUFFIXES.get(out.suffix, "text"))
    check_choice("format", kind, FORMATS)
    table = compare(records)
    if kind == "text":
        text = repr(table) + "\n"
    elif kind == "svg":
        text = draw_paretos(table)
        if not text:
            raise ConfigError(
                "a picture wants two rows with a robustness and its price, got fewer: compare "
                "records with attacked or certified margins"
            )
    else:
        text = getattr(table, f"to_{kind}")()
    if out is not None:
        write_text(out, text)
    if format is not None and format != "text" and out is None:
        print(text, end="")
        return
    common.show_comparison(table)
    for note in table.notes:
        show(note)
    if failures and table.failures:
        columns = list(table.failures[0])
        show_table(
            [[_cell(row[key]) for key in columns] for row in table.failures[:failures]],
            title=f"failing rows, the most harmful of {len(table.failures)}",
            headings=columns,
        )
    if out is not None:
        show(f"written: {out}")


def _cell(value: object) -> str:
    from robustvae.cli.printing import short

    return "" if value is None else short(value)
