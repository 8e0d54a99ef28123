"""The headline numbers: functions of the rows and of what their columns are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from robustvae.records import Column, SummaryEntry
from robustvae.records.intervals import mean_interval, mean_stderr, share_interval

Row = dict[str, Any]
PREDICTORS = {
    "spectral_radius": "the spectral radius of the pullback metric",
    "effective_rank": "its effective rank",
    "first_order": "the first-order estimate",
}


def summarize(
    rows: Sequence[Row], columns: Sequence[Column], victims: Sequence[str]
) -> list[SummaryEntry]:
    """Every headline number; keys of the first victim are plain, the others' end in its name.

    The plain key of an attack's column is of the worst attack on each input in the first ball;
    `KEY / l2 1` is the worst of another ball, `KEY / ATTACK` a single attack.
    """
    entries: list[SummaryEntry] = []
    for place, victim in enumerate(victims):
        members = [row for row in rows if row["victim"] == victim]
        suffix = "" if place == 0 else f" / {victim}"
        entries += _of_victim(members, columns, suffix)
    return entries


def worst(rows: Iterable[Row], by: str = "damage") -> list[Row]:
    """For each input the row of the attack with the greatest damage."""
    greatest: dict[Any, Row] = {}
    for row in rows:
        if row.get(by) is None:
            continue
        row_before = greatest.get(row["input"])
        if row_before is None or float(row[by]) > float(row_before[by]):
            greatest[row["input"]] = row
    return list(greatest.values())


def _of_victim(rows: Sequence[Row], columns: Sequence[Column], suffix: str) -> list[SummaryEntry]:
    entries: list[SummaryEntry] = []
    balls: dict[str, list[Row]] = {}
    attacks: dict[str, list[Row]] = {}
    for row in rows:
        balls.setdefault(f"{row['norm']} {float(row['radius']):g}", []).append(row)
        attacks.setdefault(str(row["attack"]), []).append(row)
    of_attacks = [c for c in columns if c.per == "attack" and c.reduction != "none"]
    for place, (ball, members) in enumerate(balls.items()):
        for column in of_attacks:
            key = column.id if place == 0 else f"{column.id} / {ball}"
            strongest = worst(members)
            label = f"{column.label}, worst attack in {ball}{_known(strongest)}"
            headline = column.headline if place == 0 and not suffix else None
            entries += _entry(column, strongest, key + suffix, label, headline)
    if len(attacks) > 1:
        for name, members in attacks.items():
            for column in of_attacks:
                key = f"{column.id} / {name}{suffix}"
                label = f"{column.label}, {name}{_known(members)}"
                entries += _entry(column, members, key, label, None)
    inputs = list({row["input"]: row for row in reversed(rows)}.values())[::-1]
    for column in columns:
        if column.per == "input" and column.reduction != "none":
            headline = None if suffix else column.headline
            entries += _entry(column, inputs, column.id + suffix, column.label, headline)
    entries += _tightness(inputs, suffix)
    entries += _predictions(inputs, suffix)
    return entries


def _known(rows: Sequence[Row]) -> str:
    """What the attackers of some rows knew, to stand beside their number."""
    words = list(dict.fromkeys(str(row["knows"]) for row in rows if row.get("knows")))
    return f" (the attacker knew {' or '.join(words)})" if words else ""


def _entry(
    column: Column, rows: Sequence[Row], key: str, label: str, headline: str | None
) -> list[SummaryEntry]:
    values = [float(row[column.id]) for row in rows if row.get(column.id) is not None]
    if not values:
        return []
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    if not all(map(math.isfinite, values)):
        mean = math.inf if math.inf in values else -math.inf
    elif column.reduction == "share":
        mean = math.fsum(values) / len(values)
        low, high = share_interval(round(math.fsum(values)), len(values))
    else:
        mean, stderr = mean_stderr(values)
        if len(values) > 1:
            low, high = mean_interval(values, most=1.0 if column.kind == "share" else math.inf)
        else:
            stderr = None
    return [
        SummaryEntry(
            key=key,
            label=label,
            mean=_plain(mean),
            stderr=stderr,
            low=low,
            high=high,
            n=len(values),
            unit=column.unit,
            rounding=column.rounding,
            better=column.better,
            headline=headline,
        )
    ]


def _plain(value: float) -> Any:
    return value if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def _tightness(inputs: Sequence[Row], suffix: str) -> list[SummaryEntry]:
    """Certified over attacked, of each kind by itself."""
    entries: list[SummaryEntry] = []
    for kind in ("deterministic", "probabilistic"):
        ratios = []
        for row in inputs:
            low, high = row.get(f"certified_{kind}"), row.get("margin_upper_unconstrained")
            if low is not None and high is not None and 0 < float(high) < math.inf:
                ratios.append(float(low) / float(high))
        column = Column(id="tightness", label="certified / attacked", rounding="down")
        label = f"certified ({kind}) / attacked, unconstrained"
        headline = None if suffix else f"Certified ({kind}) as a share of attacked"
        rows = [{"tightness": ratio} for ratio in ratios]
        if any(ratios):
            entries += _entry(column, rows, f"tightness_{kind}{suffix}", label, headline)
    return entries


def _predictions(inputs: Sequence[Row], suffix: str) -> list[SummaryEntry]:
    """Spearman's rank correlation of the attacked bound with what is cheaper to compute."""
    entries: list[SummaryEntry] = []
    for key, label in PREDICTORS.items():
        pairs = [
            (float(row[key]), float(row["margin_upper_unconstrained"]))
            for row in inputs
            if row.get(key) is not None and row.get("margin_upper_unconstrained") is not None
        ]
        scores, margins = {a for a, _ in pairs}, {b for _, b in pairs}
        if len(pairs) < 3 or len(scores) < 2 or len(margins) < 2 or math.inf in margins:
            continue
        from scipy import stats

        first, second = zip(*pairs, strict=True)
        entries.append(
            SummaryEntry(
                key=f"predicts / {key}{suffix}",
                label=f"rank correlation of the attacked bound, unconstrained, with {label}",
                mean=float(stats.spearmanr(first, second).statistic),
                n=len(pairs),
            )
        )
    return entries
