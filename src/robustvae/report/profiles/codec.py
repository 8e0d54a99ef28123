"""The section of the profile "codec": bits and quality under attack."""

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

HEADINGS = (
    Heading("bpp", "bits a pixel", better="lower"),
    Heading("ratio", "times the clean bits", better="lower"),
    Heading("worst", "times, worst image", better="lower"),
    Heading("psnr", "PSNR of what comes back", "dB", better="higher"),
    Heading("ms_ssim", "MS-SSIM of what comes back", better="higher"),
)
_STYLES = {
    "rate": "free",
    "distortion": "box",
    "rate and distortion": "defended",
    "random noise": "noise",
}


def section(use: UseFacts, victims: list[str]) -> Section:
    """The section, of the use's rows."""
    tables = [_table(use, victim) for victim in victims]
    curves = []
    for goal, style in _STYLES.items():
        points = [(0.0, 1.0)]
        for radius in _radii(use):
            ratios = _ratios(use, victims[0], goal, radius)
            if ratios:
                points.append((round(radius * 255, 6), sum(ratios) / len(ratios)))
        if len(points) > 1:
            curves.append((goal, style, points))
    frame = charts.Frame("size of the change, levels of 255", "times the clean bits")
    figures = ((functools.partial(charts.lines, curves, frame), _CAPTION),) if curves else ()
    return Section(
        "Can one image cost many times the bits, or come back broken?",
        tuple(_answer(use, victims[0])),
        tuple(tables),
        figures,
        (*use.notes, *_how(use, victims)),
    )


_CAPTION = "Mean over images of the bits of the changed image, in those of the clean one."


def _answer(use: UseFacts, victim: str) -> Iterable[str]:
    radius = _radii(use)[-1]
    ratios = _ratios(use, victim, "rate", radius)
    noise = _ratios(use, victim, "random noise", radius)
    if not ratios:
        yield "No change that raises the rate was made."
        return
    mean = sum(ratios) / len(ratios)
    beside = f", random noise of that size {_more(sum(noise) / len(noise))}" if noise else ""
    yield (
        f"{at_words('linf', radius)} an attacker makes an image cost {_more(mean)} bits on "
        f"average and {_more(max(ratios))} at worst{beside}."
    )
    clean, hit = (
        _column(use, victim, goal, r, "psnr")
        for goal, r in (("nothing", 0.0), ("distortion", radius))
    )
    if clean and hit:
        drops = [a - b for a, b in zip(clean, hit, strict=True)]
        yield (
            f"The picture that comes back loses {near(sum(drops) / len(drops), 2)} dB on average "
            f"and {near(max(drops), 2)} dB at worst, from {near(sum(clean) / len(clean), 3)} dB."
        )
    flips = use.facts.get(f"flips_in_batch of {victim}")
    if isinstance(flips, int | float):
        exact = use.facts.get(f"flips_in_float64 of {victim}")
        yield (
            f"Computed beside other images {float(flips):.2%} of the codes come out otherwise, in "
            f"double precision {float(exact or 0):.2%}"
            + (": the sender and the receiver must compute alike." if flips or exact else ".")
        )


def _more(ratio: float) -> str:
    """A ratio in words, such as "15% more"."""
    return f"{abs(ratio - 1):.0%} {'more' if ratio >= 1 else 'fewer'}"


def _table(use: UseFacts, victim: str) -> Table:
    pixels = float(use.facts["pixels"])  # type: ignore[arg-type]
    rows = []
    for goal, radius in [("nothing", 0.0), *((g, r) for r in _radii(use) for g in _STYLES)]:
        bits = _column(use, victim, goal, radius, "bits")
        if not bits:
            continue
        ratios = _ratios(use, victim, goal, radius)
        cells = {
            "bpp": _cell([b / pixels for b in bits]),
            "ratio": _cell(ratios),
            "worst": Cell(max(ratios), n=1),
            "psnr": _cell(_column(use, victim, goal, radius, "psnr")),
            "ms_ssim": _cell(_column(use, victim, goal, radius, "ms_ssim")),
        }
        size = "none" if goal == "nothing" else ball_words("linf", radius)
        rows.append(Row({"size": size, "change made for": goal}, cells))
    return Table(f"{victim}: bits by {use.facts[f'counted of {victim}']}", HEADINGS, tuple(rows))


def _radii(use: UseFacts) -> list[float]:
    return sorted({float(row["radius"]) for row in use.rows if row["radius"]})


def _column(use: UseFacts, victim: str, goal: str, radius: float, key: str) -> list[float]:
    rows: Iterable[dict[str, Any]] = use.rows
    return [
        float(row[key])
        for row in rows
        if row["victim"] == victim and row["goal"] == goal and row["radius"] == radius
    ]


def _ratios(use: UseFacts, victim: str, goal: str, radius: float) -> list[float]:
    clean = _column(use, victim, "nothing", 0.0, "bits")
    bits = _column(use, victim, goal, radius, "bits")
    return [b / max(a, 1e-9) for a, b in zip(clean, bits, strict=False)]


def _cell(values: list[float]) -> Cell:
    middle, error = mean_stderr(values)
    return Cell(middle, middle - 1.96 * error, middle + 1.96 * error, len(values))


def _how(use: UseFacts, victims: list[str]) -> Iterable[str]:
    counted = use.facts.get(f"counted of {victims[0]}")
    yield (
        f"{use.facts['inputs']} images. The search climbs the likelihood of codes under additive "
        f"noise; the bits above are counted by {counted}. Quality compares what comes back with "
        "the picture that was sent. Intervals: 1.96 standard errors over images."
    )
