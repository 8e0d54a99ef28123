"""Put several audits side by side, with paired differences; all must ask one question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustvae.errors import check_choice

FORMATS = ("text", "csv", "html", "json", "latex", "markdown")
_SUFFIXES = {".csv": "csv", ".html": "html", ".json": "json", ".tex": "latex", ".md": "markdown"}


def run(
    records: Annotated[
        list[Path], typer.Argument(help="Folders that audits wrote, or their record.json.")
    ],
    format: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(FORMATS)}; by default what the name of --out says."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the table here, too.")] = None,
) -> None:
    """Put several audits side by side, with paired differences; all must ask one question.

    Each victim of each audit is a row; rows are compared with the first over the inputs that both
    have.

    Examples:

        robustvae compare audits/plain audits/lipschitz

        robustvae compare audits/* --out table.tex
    """
    from robustvae.cli.printing import show, show_table
    from robustvae.records import write_text
    from robustvae.report.compare import compare

    kind = format or ("text" if out is None else _SUFFIXES.get(out.suffix, "text"))
    check_choice("format", kind, FORMATS)
    table = compare(records)
    text = repr(table) + "\n" if kind == "text" else getattr(table, f"to_{kind}")()
    if out is not None:
        write_text(out, text)
    if format is not None and format != "text" and out is None:
        print(text, end="")
        return
    headings, *lines = table.lines()
    show_table(lines, title=table.title, headings=headings, numbers=range(1, len(headings)))
    for note in table.notes:
        show(note)
    if out is not None:
        show(f"written: {out}")
