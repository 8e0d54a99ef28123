"""The record as a table on the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from robustvae.arguments import checked
from robustvae.errors import check_type, single_line
from robustvae.records import Record
from robustvae.report import reading
from robustvae.report.cards import key_numbers
from robustvae.report.profiles.section import section_of
from robustvae.report.tables import Table as Numbers
from robustvae.rounding import NOT_MEASURED, near


@checked()
def table(record: Record) -> Group:
    """What an audit prints at its end: the verdict, the key numbers, the attacks, the checks.

    Args:
        record: An audit.

    Returns:
        Something for `rich.console.Console.print`; it adapts to the width of the terminal.

    Examples:
        >>> import robustvae as rv
        >>> from rich.console import Console
        >>> images = rv.data.load("digits", split="test")
        >>> record = rv.audit(rv.load("digits-vae"), images, plan="smoke", seed=0)
        >>> Console(quiet=True).print(rv.report.table(record))
    """
    check_type(record, "record", Record)
    parts: list[Table | Text] = [Text(single_line(record.title), style="bold")]
    section = section_of(record)
    if section is not None:
        parts.append(Text(section.answer[0], style="bold"))
        parts += [Text(sentence) for sentence in section.answer[1:]]
        for rows in section.tables:
            parts += [Text(), _turned(rows)]
        parts.append(Text())
    style = "green" if record.verdict.passed else "bold red"
    parts.append(Text(record.verdict.first, style=style))
    parts += [Text(sentence) for sentence in record.verdict.sentences[1:]]
    if record.changed_rows:
        words = f"{len(record.changed_rows)} rows are not those that were measured."
        parts.append(Text(words, style="bold red"))
    headlines = key_numbers(record)
    if headlines:
        numbers = _table(("key numbers", "mean", "95 % interval", "n", "unit"), text=(0, 4))
        for entry in headlines:
            texts = (Text(entry.label), entry.shown, entry.interval, str(entry.n), Text(entry.unit))
            numbers.add_row(*texts)
        parts += [Text(), numbers]
    groups = [*reading.worst(record), *reading.attacks(record)]
    if groups:
        lines = _table(("attack", "damage", "noise", "broken", "inconclusive"), text=(0,))
        for attack in groups:
            means = (reading.mean(attack.column(key)) for key in ("damage", "damage_noise"))
            lines.add_row(
                Text(attack.name),
                *(near(value) for value in means),
                f"{attack.broken} of {attack.judged}",
                str(attack.inconclusive),
            )
        parts += [Text(), lines]
    if len(record.victims) > 1 or record.victims[0].defended:
        parts += [Text(), _victims(record)]
    if record.checks:
        parts += [Text(), *_checks(record)]
    for omission in record.left_out:
        whose = f" ({omission.victim})" if len(record.victims) > 1 and omission.victim else ""
        parts.append(Text(f"left out: {omission.stage}{whose}: {omission.reason}", style="dim"))
    return Group(*parts)


def _checks(record: Record) -> list[Text]:
    """What failed, each in a line with its meaning; of the first victim also what did not."""
    who = len(record.victims) > 1
    lines = []
    for check in record.checks:
        if check.passed is False:
            mark, style = _MARKS[False]
            line = Text(f"{mark} ", style=style)
            line.append(f"{check.victim}: " if who else "", style="default")
            line.append(f"{check.id}: {check.value}. {check.meaning}", style="default")
            lines.append(line)
    first = record.victims[0].name
    for passed, words in ((True, "passed"), (None, "not judged, too little was measured")):
        names = [
            check.id for check in record.checks if check.victim == first and check.passed is passed
        ]
        if names:
            mark, style = _MARKS[passed]
            line = Text(f"{mark} ", style=style)
            whose = f" ({first})" if who else ""
            line.append(f"{words}{whose}: {', '.join(names)}", style="default")
            lines.append(line)
    return lines


def _victims(record: Record) -> Table:
    """The victims side by side, each with its three numbers."""
    lines = _table(
        ("victim", "effect of the worst attack", "price without attack", "attacked, from input"),
        text=(0,),
    )
    for victim in record.victims:
        values = (victim.effect, victim.price, victim.distance)
        lines.add_row(Text(victim.name), *(near(value) for value in values))
    return lines


def _turned(rows: Numbers) -> Table:
    """A table of a use, as it stands in the report."""
    lines = _table(tuple(rows.head()), text=tuple(range(len(rows.names()))))
    lines.title, lines.title_justify = rows.title, "left"
    for cells in rows.body():
        lines.add_row(*map(Text, cells))
    return lines


def _table(headings: tuple[str, ...], text: tuple[int, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="left" if place in text else "right")
    return table


_MARKS = {True: ("✓", "green"), False: ("✗", "bold red"), None: (NOT_MEASURED, "dim")}
