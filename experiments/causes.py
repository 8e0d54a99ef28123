"""Differences from the papers' training whose effect on a cell of the ledger was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import final

LENGTH = (
    "length of training: a little more changes {what} by {value}, toward the paper's 300 epochs"
)
HALF = (
    "length of training: its second half changes {what} by {value}, toward the paper's 300 epochs"
)
CODE = "estimate of the total correlation: that of their code changes {what} by {value} in an epoch"
CAUSES = {"length": (LENGTH, True), "short": (HALF, True), "tc-code": (CODE, False)}
ERRORS, SHARE = 3, 0.1  # a cause moves a cell by so many standard errors, and this share of its gap


@final
@dataclass(frozen=True)
class Change:
    """What one difference moves a cell by, as measured.

    Attributes:
        cause: In words, with places for what is moved and by how much.
        value: Of the move.
        error: Its standard error.
        page: Where it stands.
        is_length: Whether the cause is the length of training.
    """

    cause: str
    value: float
    error: float
    page: str
    is_length: bool


def changes_of(results: Path) -> dict[str, list[Change]]:
    """What was measured to move a cell, by its key; of one cause the page that comes last counts.

    Args:
        results: Folder of the stored pages.
    """
    changes: dict[str, list[Change]] = {}
    for kind, (cause, is_length) in CAUSES.items():
        for path in sorted(results.glob(f"kuzina2022-{kind}*.json")):
            for row in json.loads(path.read_text("utf-8"))["rows"]:
                if row["source"] and row["setting"] == "change":
                    others = [c for c in changes.get(row["source"], []) if c.cause != cause]
                    change = Change(cause, row["measured"], row["stderr"], path.stem, is_length)
                    changes[row["source"]] = [*others, change]
    return changes


def reason(changes: Iterable[Change], gap: float, training: str, *, is_loss: bool) -> str:
    """Why a cell is off, empty where no change counts: by errors, and by its share of the gap.

    Args:
        changes: That were measured for this cell.
        gap: The printed value less ours.
        training: How long ours was trained; length explains nothing at 300 epochs.
        is_loss: Whether the cell is a likelihood, for which the ELBO was measured.

    Examples:
        >>> from experiments.causes import Change, reason
        >>> more = Change("more changes {what} by {value}", -20.0, 1.0, "page", True)
        >>> reason([more], -180.0, "20 epochs", is_loss=False)
        'more changes it by -20 ± 1 (page.md); -180 are missing'
        >>> reason([more], -180.0, "300 epochs", is_loss=False)
        ''
    """
    what, reasons = "minus the ELBO" if is_loss else "it", list[str]()
    for change in changes:
        counts = abs(change.value) > ERRORS * change.error and change.value / gap >= SHARE
        if counts and not (change.is_length and training == "300 epochs"):
            value = f"{change.value:+.3g} ± {change.error:.1g} ({change.page}.md)"
            reasons.append(change.cause.format(what=what, value=value))
    return "; ".join([*reasons, f"{gap:+.3g} are missing"]) if reasons else ""
