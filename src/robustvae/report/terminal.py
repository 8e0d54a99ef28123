"""The record as a table on the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from robustvae.records import Record
from robustvae.report import reading
from robustvae.report.numbers import NOT_MEASURED, ceil, near, number, rounded


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
        >>> plan = {"inputs": 2, "attacks": [{"radius": 0.5, "steps": 2, "restarts": 1}]}
        >>> record = rv.audit(rv.Victim(rv.load("digits-vae")), images, plan=plan, seed=0)
        >>> Console(quiet=True).print(rv.report.table(record))
    """
    parts: list[Table | Text] = [Text(record.title, style="bold"), Text(reading.verdict(record))]
    headlines = reading.headlines(record)
    if headlines:
        numbers = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column, justify in (("key numbers", "left"), ("mean", "right"), ("± s.e.", "right")):
            numbers.add_column(column, justify=justify)  # type: ignore[arg-type]
        numbers.add_column("n", justify="right")
        numbers.add_column("unit")
        for entry in headlines:
            stderr = number(entry.get("stderr"))
            numbers.add_row(
                Text(str(entry.get("label", ""))),
                rounded(str(entry.get("key", "")), entry.get("mean")),
                "" if stderr is None else ceil(stderr, 2),
                Text(str(entry.get("n", ""))),
                Text(str(entry.get("unit") or "")),
            )
        parts += [Text(), numbers]
    found = reading.attacks(record)
    if found:
        lines = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        lines.add_column("attack")
        for column in ("damage", "noise", "defended", "broken", "inconclusive"):
            lines.add_column(column, justify="right")
        for attack in found:
            means = (reading.mean(attack.column(key)) for key in _DAMAGES)
            lines.add_row(
                Text(attack.name),
                *(near(value) for value in means),
                f"{attack.broken} of {attack.judged}",
                str(attack.inconclusive),
            )
        parts += [Text(), lines]
    if record.checks:
        parts.append(Text())
    for check in record.checks:
        passed = check.get("passed")
        mark, style = _MARKS[passed if isinstance(passed, bool) else None]
        line = Text(f"{mark} ", style=style)
        line.append(str(check.get("name", "")), style="default")
        if passed is False:
            line.append(f": {check.get('meaning', '')}", style="default")
        parts.append(line)
    return Group(*parts)


_MARKS = {True: ("✓", "green"), False: ("✗", "bold red"), None: (NOT_MEASURED, "dim")}
_DAMAGES = ("damage", "damage_noise", "damage_defended")
