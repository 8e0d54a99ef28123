"""The section of the profile "latent-diffusion": drift, damage, survival, transfer."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from robustvae.records.intervals import mean_stderr
from robustvae.records.parts import UseFacts
from robustvae.report.profiles import charts
from robustvae.report.profiles.section import Section, at_words, ball_words
from robustvae.report.tables import Cell, Heading, Row, Table
from robustvae.rounding import near

DRIFTS = (
    Heading("drift", "the code moved by", "distances between two images", better="lower"),
    Heading("ms_ssim", "MS-SSIM of the decoded images", better="higher"),
    Heading("psnr", "PSNR of the decoded images", "dB", better="higher"),
    Heading("left_to_target", "distance left to the target", "of all"),
)
_STANDS = 0.5  # of its effect: a change that keeps half of it after a transform still stands


def section(use: UseFacts, victims: list[str]) -> Section:
    """The section, of the use's rows."""
    name = victims[0]
    direct = [
        row
        for row in use.rows
        if row["made_for"] == row["read_by"] == name and not row.get("transform")
    ]
    keys = sorted({(float(row["radius"]), str(row["goal"])) for row in direct})  # type: ignore[arg-type]
    rows = [
        Row(
            {"size": ball_words("linf", radius), "change": goal},
            {h.id: cell for h in DRIFTS if (cell := _mean(direct, h.id, goal, radius))},
        )
        for radius, goal in keys
    ]
    tables = [Table(f"{name}: codes and decoded images", DRIFTS, tuple(rows))]
    survival = [row for row in use.rows if row.get("transform")]
    figures = []
    if survival:
        tables.append(_survival(survival, name))
        transforms = [str(t) for t in dict.fromkeys(row["transform"] for row in survival)]
        curves = []
        for goal, style in (("away", "free"), ("away, through transforms", "defended")):
            cells = [_mean(survival, "drift", goal, None, transform=t) for t in transforms]
            points = [(float(i), cell.mean) for i, cell in enumerate(cells) if cell]
            if points:
                curves.append((_MADE[goal], style, points))
        frame = charts.Frame("what happened to the image", "drift", ticks=tuple(transforms))
        caption = (
            "How far the code still moves, in distances between two images' codes, after what may "
            "happen to an image on its way."
        )
        figures.append((functools.partial(charts.lines, curves, frame), caption))
    readers = list(dict.fromkeys(str(row["read_by"]) for row in use.rows))
    if len(readers) > 1:
        tables.append(_transfer(use, readers))
    return Section(
        "Can the encoder's code be moved, and does such a change last?",
        tuple(_answer(use, direct, survival, name, readers)),
        tuple(tables),
        tuple(figures),
        (*use.notes, *_how(use)),
    )


_MADE = {"away": "made for the image as it is", "away, through transforms": "made through them"}


def _answer(
    use: UseFacts,
    direct: list[dict[str, Any]],
    survival: list[dict[str, Any]],
    name: str,
    readers: list[str],
) -> Iterable[str]:
    radii = sorted({float(row["radius"]) for row in direct})
    radius = radii[len(radii) // 2]
    away, noise = (_mean(direct, "drift", goal, radius) for goal in ("away", "noise"))
    if away is None:
        yield "No change of the code was made."
        return
    alike = _mean(direct, "ms_ssim", "away", radius)
    beside = "" if noise is None else f" (random changes of that size: {near(noise.mean, 2)})"
    yield (
        f"{at_words('linf', radius)} an attacker moves an image's code by "
        f"{near(away.mean, 2)} times the distance between the codes of two different images"
        f"{beside}."
    )
    if alike is not None:
        yield (
            f"The image that is decoded of it has an MS-SSIM of {near(alike.mean, 2)} with the one "
            "decoded without the change; 1 would be equal."
        )
    best = "away, through transforms"
    kept = {}
    for goal in ("away", best):
        baseline = _mean(survival, "drift", goal, None, transform="none")
        for transform in dict.fromkeys(str(row["transform"]) for row in survival):
            part = _mean(survival, "drift", goal, None, transform=transform)
            if transform != "none" and part and baseline and baseline.mean > 0:
                kept[goal, transform] = part.mean / baseline.mean
    if kept:
        goal = best if any(g == best for g, _ in kept) else "away"
        shares = {t: value for (g, t), value in kept.items() if g == goal}
        weakest = min(shares, key=shares.__getitem__)
        stands = all(value >= _STANDS for value in shares.values())
        yield (
            f"As a protection such a change {'lasts' if stands else 'does not last'}: "
            f"{'even ' if stands else ''}after {_words(weakest)}, {shares[weakest]:.0%} of its "
            "effect is left."
        )
    if len(readers) > 1:
        others = [
            cell.mean
            for reader in readers
            if reader != name and (cell := _cross(use, name, reader)) is not None
        ]
        if others:
            yield (f"Read by another encoder it moves the code by {near(max(others), 2)} at most.")


def _survival(rows: list[dict[str, Any]], name: str) -> Table:
    transforms = [str(t) for t in dict.fromkeys(row["transform"] for row in rows)]
    headings = tuple(Heading(f"t{i}", _words(transform)) for i, transform in enumerate(transforms))
    lines = []
    for goal in dict.fromkeys(str(row["goal"]) for row in rows):
        cells = {
            heading.id: cell
            for heading, transform in zip(headings, transforms, strict=True)
            if (cell := _mean(rows, "drift", goal, None, transform=transform))
        }
        lines.append(Row({"change": _MADE[goal]}, cells))
    size = ball_words("linf", float(rows[0]["radius"]))
    return Table(f"{name}: drift that is left on an image's way, {size}", headings, tuple(lines))


def _transfer(use: UseFacts, readers: list[str]) -> Table:
    headings = tuple(Heading(f"r{i}", f"read by {name}") for i, name in enumerate(readers))
    lines = [
        Row(
            {"made for": source},
            {
                f"r{i}": cell
                for i, reader in enumerate(readers)
                if (cell := _cross(use, source, reader)) is not None
            },
        )
        for source in readers
    ]
    return Table(
        "Drift of changes made for one encoder and read by another", headings, tuple(lines)
    )


def _cross(use: UseFacts, source: str, reader: str) -> Cell | None:
    rows = [
        row
        for row in use.rows
        if row["made_for"] == source and row["read_by"] == reader and not row.get("transform")
    ]
    radii = sorted({float(row["radius"]) for row in use.rows})  # type: ignore[arg-type]
    return _mean(rows, "drift", "away", radii[len(radii) // 2])


def _mean(
    rows: list[dict[str, Any]],
    column: str,
    goal: str,
    radius: float | None,
    transform: str | None = None,
) -> Cell | None:
    values = [
        float(row[column])
        for row in rows
        if row["goal"] == goal
        and row.get(column) is not None
        and (radius is None or row["radius"] == radius)
        and (transform is None or row.get("transform") == transform)
    ]
    if not values:
        return None
    middle, error = mean_stderr(values)
    return Cell(middle, middle - 1.96 * error, middle + 1.96 * error, len(values))


def _words(transform: str) -> str:
    kind, _, number = transform.partition(":")
    return {
        "none": "nothing",
        "jpeg": f"JPEG of quality {number}",
        "resize": f"resizing to {number} and back",
        "blur": f"blur of {number} pixels",
        "noise": f"noise of spread {number}",
    }.get(kind, transform)


def _how(use: UseFacts) -> Iterable[str]:
    yield (
        f"{use.facts['inputs']} images; the unit of a drift is the median distance between the "
        "codes of two different images, in the unit that the diffusion model reads. The search "
        + (
            "counts the posterior's spread beside its mean."
            if use.facts["spread"]
            else "reads means."
        )
        + " Intervals: 1.96 standard errors over images."
    )
