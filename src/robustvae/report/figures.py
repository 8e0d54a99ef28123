"""Figures: functions from a record to one SVG that stands alone, in light and in dark.

Each takes a width, since text on a phone should not be a shrunken desktop's. Where a record holds
nothing to draw, a figure is the empty string.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from robustvae.records import Record
from robustvae.report import marks
from robustvae.report.drawing import (
    Axis,
    draw_legend,
    draw_svg,
    draw_text,
    draw_y_axis,
    escaped,
    fitted,
    legend_height,
    trimmed,
)
from robustvae.report.marks import Mark
from robustvae.report.reading import (
    AttackRows,
    Bracket,
    brackets,
    everywhere,
    finite,
    inconclusive,
    kind_in_words,
    mean,
    mean_stderr,
    rows_of,
    worst,
)
from robustvae.rounding import ceil, floor, given, near, number

_DAMAGES = ("damage_noise", "damage")


def bracket(record: Record, width: int = 760) -> str:
    """The bracket: for every input, what is certified, what attacks reach, and the gap between.

    Args:
        record: Read: certified, margin_upper_unconstrained, margin_upper_box, first_order.
        width: Of the drawing in pixels.

    Returns:
        SVG, or "" where the record holds no margins.
    """
    members = sorted(brackets(rows_of(record)), key=_order)
    # an estimate to first order bounds nothing: alone it makes no bracket
    if not any(part is not None for b in members for part in (b.certified, b.free, b.box)):
        return ""
    wide = width >= 560
    ends = [v for b in members for v in (b.certified, b.free, b.box, b.first_order)]
    open_ended = any(v is not None and math.isinf(v) for v in ends)
    keys = _bracket_keys(members)
    key, top = draw_legend(keys, width, 60)
    top += 26 if open_ended else 10
    bottom = top + (300 if wide else 250)
    axis = Axis.over(finite(ends), bottom, top)
    left, right = 52.0, width - (140.0 if wide else 10.0)
    step = (right - left) / len(members)
    radius = min(4.5, max(1.6, step * 0.32))
    parts = [key, *draw_y_axis(axis, left, right)]
    for i, b in enumerate(members):
        x = left + (i + 0.5) * step
        parts.append(_bracket_column(b, axis, x, step, radius, top, bottom))
    parts.append(f'<path class="axis" d="M{left} {bottom:.1f}H{right}"/>')
    if wide:
        parts.append(_means(members, axis, right))
    parts.append(draw_text(left - 44, legend_height(keys, width) + 17, "size of change (ℓ₂)"))
    below = 40 if any(b.abstained for b in members) else 24
    words = f"{len(members)} inputs, sorted by the size at which attacks break them"
    if not wide:
        words = f"{len(members)} inputs, sorted"
    parts.append(draw_text((left + right) / 2, bottom + below, words, anchor="middle"))
    label = "The bracket of each input. " + _bracket_alt(members)
    return draw_svg(width, bottom + below + 12, label, parts)


def coverage(record: Record, width: int = 760) -> str:
    """Share of inputs certified beyond each radius, and not yet broken by attacks at it.

    Args:
        record: Read: certified, margin_upper_unconstrained, margin_upper_box.
        width: Of the drawing in pixels.

    Returns:
        SVG with a panel for each displacement, or "" where no input has a certificate.
    """
    panels = {record.question.displacement: brackets(rows_of(record))}
    panels = {
        name: members for name, members in panels.items() if any(b.certified for b in members)
    }
    if not panels:
        return ""
    ends = [v for members in panels.values() for b in members for v in (b.certified, b.free, b.box)]
    scale = Axis(0.0, max(finite(ends)) * 1.06, 52.0, width - 14.0)
    keys: list[tuple[str, Mark]] = [
        (words, marks.bar(kind))
        for words, kind, ends_of_kind in (
            ("certified: nothing smaller breaks it", "proved", True),
            (
                "not broken by attacks (unconstrained)",
                "free",
                any(v is not None for v in ends[1::3]),
            ),
            ("the same, pixels in range", "box", any(v is not None for v in ends[2::3])),
        )
        if ends_of_kind
    ]
    key, y = draw_legend(keys, width, 8)
    parts, words = [key], []
    for name, members in panels.items():
        panel, y, sentences = _coverage_panel(name, members, scale, y)
        parts += panel
        words.append(sentences)
    label = "Share of inputs at each size of change. " + "; ".join(words) + "."
    return draw_svg(width, y, label, parts)


def _coverage_panel(
    displacement: str, found: Sequence[Bracket], scale: Axis, y: float
) -> tuple[list[str], float, str]:
    top, bottom = y + 34, y + 194
    axis = Axis(0.0, 1.0, bottom, top)
    parts = [draw_text(8, y + 20, f"{displacement}, {len(found)} inputs", kind="strong")]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<path class="grid" d="M{scale.start} {axis(share):.1f}H{scale.stop:.1f}"/>')
        parts.append(draw_text(scale.start - 8, axis(share) + 4, f"{share:g}", anchor="end"))
    for tick in scale.ticks():
        parts.append(draw_text(scale(tick), bottom + 16, trimmed(near(tick)), anchor="middle"))
    sentences = []
    for kind, values in (
        ("box", [b.box for b in found]),
        ("free", [b.free for b in found]),
        ("proved", [b.certified for b in found]),
    ):
        if all(value is None for value in values):
            continue
        numbers = sorted(value for value in values if value is not None)
        path, left = f"M{scale.start:.1f} {axis(sum(v > 0 for v in numbers) / len(found)):.1f}", 0
        for i, value in enumerate(numbers):
            if 0 < value < math.inf:
                left = len(numbers) - i - 1
                path += f"H{scale(value):.1f}V{axis(left / len(found)):.1f}"
        parts.append(f'<path class="shares {kind}" d="{path}H{scale.stop:.1f}"/>')
        middle = numbers[(len(numbers) - 1) // 2]
        text = {"proved": floor(middle)}.get(kind, ceil(middle))
        name = {"proved": "certified", "free": "attacked", "box": "attacked in range"}[kind]
        sentences.append(f"{name} median {text}")
    parts.append(f'<path class="axis" d="M{scale.start} {bottom:.1f}H{scale.stop:.1f}"/>')
    place = (scale.start + scale.stop) / 2
    parts.append(draw_text(place, bottom + 34, "size of change (ℓ₂)", anchor="middle"))
    return parts, bottom + 46, f"{displacement}: {', '.join(sentences)}"


def damage(record: Record, width: int = 760) -> str:
    """How far each attack moves the reconstruction, against random noise of the same size.

    Args:
        record: Read: damage and damage_noise of the worst attack on each input.
        width: Of the drawing in pixels.

    Returns:
        SVG with a panel for each ball, or "" where the record holds no damage.
    """
    groups = [attack for attack in worst(record) if attack.column("damage")]
    if not groups:
        return ""
    keys: list[tuple[str, Mark]] = [("attacked", marks.dot("free", 4))]
    if any(attack.column("damage_noise") for attack in groups):
        keys.append(("random noise of the same size", marks.dot("noise", 3.6)))
    if any(attack.inconclusive for attack in groups):
        keys.append(("search inconclusive", marks.cross("none", 3.2)))
    limit = record.question.r
    key, y = draw_legend(keys, width, 8)
    parts, words = [key], []
    scale = Axis.over((v for a in groups for k in _DAMAGES for v in a.column(k)), 0.0, -1.0)
    for attack in groups:
        panel, y = _damage_panel(attack, scale, limit, width, y)
        parts += panel
        words.append(f"{attack.name}: {_times(attack)}")
    label = "Distance that the reconstruction moved, for each input. " + "; ".join(words) + "."
    return draw_svg(width, y, label, parts)


def similarity(record: Record, width: int = 760) -> str:
    """MS-SSIM of reconstructions: clean, under noise, and under the worst attack of each ball.

    Args:
        record: Read: ms_ssim_clean, ms_ssim_noise, ms_ssim_attacked.
        width: Of the drawing in pixels.

    Returns:
        SVG, or "" where the record holds no similarities.
    """
    rows: list[tuple[str, str, Mark | None, list[float]]] = []
    groups = worst(record)
    clean = {row.get("input"): row.get("ms_ssim_clean") for row in rows_of(record)}
    if finite(clean.values()):
        rows.append(
            ("", "clean, to the input itself", marks.dot("clean", 2.6), finite(clean.values()))
        )
    kinds: list[tuple[str, str, Mark]] = [
        ("ms_ssim_noise", "random noise of the same size", marks.dot("noise", 2.6)),
        ("ms_ssim_attacked", "attacked", marks.dot("free", 2.6)),
    ]
    for attack in groups:
        lines = [(attack.name, *kind[1:], attack.column(kind[0])) for kind in kinds]
        rows += [line for line in lines if line[3]]
    if not rows:
        return ""
    wide = width >= 560
    left, right = 10.0, width - (128.0 if wide else 62.0)
    axis = Axis(0.0, 1.0, left, right)
    parts: list[str] = []
    words: list[str] = []
    y, heading = 8.0, ""
    for group, name, mark, values in rows:
        if group != heading:
            heading = group
            parts.append(draw_text(left, y + 20, fitted(group, width - 20), kind="strong"))
            y += 28
        parts.append(_strip(axis, y, name, mark, values))
        middle, stderr = mean_stderr(values)
        error = f" ± {ceil(stderr, 2)}" if wide and stderr is not None else ""
        parts.append(draw_text(right + 14, y + 31, near(middle) + error, kind="strong"))
        words.append(f"{f'{group}, ' if group else ''}{name}: mean {near(middle)}")
        y += 46
    grid = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = axis(tick)
        grid.append(f'<path class="grid" d="M{x:.1f} 10V{y + 2:.1f}"/>')
        grid.append(draw_text(x, y + 16, f"{tick:g}", anchor="middle"))
    parts.append(draw_text(left, y + 34, "MS-SSIM: 1 is the same picture"))
    parts.append(draw_text(right + 14, y + 16, "mean"))
    label = "Similarity of reconstructions. " + "; ".join(words) + "."
    return draw_svg(width, y + 44, label, grid + parts)


def _order(b: Bracket) -> tuple[float, float]:
    ends = (b.free, b.box, b.certified)
    numbers = [end for end in ends if end is not None]
    return (numbers[0] if numbers else math.inf, b.certified or 0.0)


def _bracket_keys(found: Sequence[Bracket]) -> list[tuple[str, Mark]]:
    keys: list[tuple[str, Mark]] = []
    if any(b.certified for b in found):
        keys.append(
            (f"certified{kind_in_words(found)}: nothing smaller breaks it", marks.bar("proved"))
        )
    if any(b.free is not None for b in found):
        keys.append(("attacked: this change breaks it (unconstrained)", marks.dot("free", 4)))
    if any(b.box is not None for b in found):
        keys.append(("attacked, pixels kept in range", marks.dot("box", 3.6)))
    if any(b.certified is not None and b.upper is not None for b in found):
        keys.append(("not known", marks.bar("gap")))
    if any(b.first_order is not None for b in found):
        keys.append(("first-order estimate: no bound", marks.diamond("guess", 4)))
    if any(math.inf in (b.free, b.box) for b in found):
        kind = "openfree" if any(b.free == math.inf for b in found) else "openbox"
        keys.append(("no attack broke it: open end", marks.arrow(kind, 5)))
    if any(b.abstained for b in found):
        keys.append(("abstained: nothing certified", marks.cross("none", 3.2)))
    return keys


def _bracket_column(
    b: Bracket, axis: Axis, x: float, step: float, radius: float, top: float, bottom: float
) -> str:
    half = min(7.0, step * 0.36)
    parts = [f"<title>{escaped(_bracket_title(b))}</title>"]

    def bar(kind: str, low: float, high: float) -> None:
        height = max(low - high, 0.0)
        parts.append(
            f'<rect class="{kind}" x="{x - half:.1f}" y="{high:.1f}" '
            f'width="{2 * half:.1f}" height="{height:.1f}"/>'
        )

    def place(value: float) -> float:
        return top if math.isinf(value) else axis(value)

    floor_at = bottom if not b.certified else axis(b.certified)
    if b.certified:
        bar("proved", bottom, floor_at)
    if b.certified is not None and b.upper is not None:
        bar("gap", floor_at, place(b.upper))
    if b.free is not None and b.box is not None:
        bar("gap2", place(b.free), place(b.box))
    if b.first_order is not None:
        parts.append(marks.diamond("guess", radius * 0.95)(x, place(b.first_order)))
    for value, kind, offset in ((b.box, "box", 16.0), (b.free, "free", 4.0)):
        if value is None:
            continue
        if math.isinf(value):
            parts.append(marks.arrow(f"open{kind}", radius)(x, top - offset))
        else:
            parts.append(marks.dot(kind, radius * (0.9 if kind == "box" else 1))(x, axis(value)))
    if b.abstained:
        parts.append(marks.cross("none", min(3.2, radius))(x, bottom + 10))
    return f"<g>{''.join(parts)}</g>"


def _bracket_title(b: Bracket) -> str:
    label = "" if b.label is None else f" (label {b.label})"
    parts = [f"input {b.input}{label}:"]
    if b.certified is not None:
        parts.append("nothing certified," if b.abstained else f"certified {floor(b.certified)},")
    if b.free is not None:
        parts.append(f"attacked {ceil(b.free)} unconstrained,")
    if b.box is not None:
        parts.append(f"attacked {ceil(b.box)} with pixels in range,")
    if b.first_order is not None:
        parts.append(f"first-order estimate {near(b.first_order)},")
    return " ".join(parts).rstrip(",")


def _bracket_alt(found: Sequence[Bracket]) -> str:
    words = [f"{len(found)} inputs"]
    for name, values, text in (
        (f"certified{kind_in_words(found)}", [b.certified for b in found], floor),
        ("attacked unconstrained", [b.free for b in found], ceil),
        ("attacked with pixels in range", [b.box for b in found], ceil),
    ):
        numbers = finite(values)
        if numbers:
            words.append(f"{name} from {text(min(numbers))} to {text(max(numbers))}")
    return "; ".join(words) + "."


def _means(found: Sequence[Bracket], axis: Axis, x: float) -> str:
    """The means at the right edge, kept apart so that none covers another."""
    means = [
        ("proved", "certified", everywhere(b.certified for b in found), floor),
        ("free", "attacked", everywhere(b.free for b in found), ceil),
        ("box", "in range", everywhere(b.box for b in found), ceil),
    ]
    entries = sorted(
        ((axis(value), kind, name, form(value)) for kind, name, value, form in means if value),
        reverse=True,
    )
    parts, last = [], math.inf
    for y, kind, name, value in entries:
        at = min(y, last - 17)
        last = at
        parts.append(
            f'<path style="stroke:var(--{kind});fill:none;stroke-width:1.6" '
            f'd="M{x:.1f} {y:.1f}h8L{x + 16:.1f} {at:.1f}h6"/>'
        )
        parts.append(draw_text(x + 26, at + 4, f"{value} {name}", kind="strong"))
    if entries:
        parts.append(draw_text(x + 26, last - 14, "means"))
    return "".join(parts)


def _damage_panel(
    attack: AttackRows, scale: Axis, limit: float | None, width: int, y: float
) -> tuple[list[str], float]:
    rows = [row for row in attack.rows if finite([row.get("damage")])]
    rows.sort(key=lambda row: float(row["damage"]))
    columns = [[number(row.get(key)) for row in rows] for key in _DAMAGES]
    wide = width >= 560
    left, right = 52.0, width - 56.0
    parts = [
        draw_text(8, y + 22, fitted(attack.name, width * (0.55 if wide else 1)), kind="strong")
    ]
    if wide:
        parts.append(draw_text(width - 10, y + 22, _times(attack), anchor="end"))
    else:
        parts.append(draw_text(8, y + 39, _times(attack)))
    top = y + (36 if wide else 52)
    bottom = top + (150 if wide else 130)
    axis = scale.between(bottom, top)
    parts += draw_y_axis(axis, left, right)
    if limit and axis.low < limit < axis.high:
        parts.append(f'<path class="limit" d="M{left} {axis(limit):.1f}H{right}"/>')
        parts.append(draw_text(right + 6, axis(limit) + 4, f"r = {given(limit)}"))
    step = (right - left) / len(rows)
    radius = min(4.0, max(1.5, step * 0.32))
    pair = (marks.dot("noise", radius * 0.9), marks.dot("free", radius))
    for i, row in enumerate(rows):
        x = left + (i + 0.5) * step
        values = [column[i] for column in columns]
        sample = [f"<title>{escaped(_damage_title(row))}</title>"]
        noise, hit = values
        if noise is not None and hit is not None:
            sample.append(f'<path class="stem" d="M{x:.1f} {axis(noise):.1f}V{axis(hit):.1f}"/>')
        sample += [
            mark(x, axis(value))
            for mark, value in zip(pair, values, strict=True)
            if value is not None and math.isfinite(value)
        ]
        if inconclusive(row):
            sample.append(marks.cross("none", min(3.2, radius))(x, bottom + 10))
        parts.append(f"<g>{''.join(sample)}</g>")
    parts.append(f'<path class="axis" d="M{left} {bottom:.1f}H{right}"/>')
    below = 34 if attack.inconclusive else 22
    words = f"{len(rows)} inputs, sorted by damage"
    parts.append(draw_text((left + right) / 2, bottom + below, words, anchor="middle"))
    return parts, bottom + below + 14


def _damage_title(row: dict[str, object]) -> str:
    words = [f"input {row.get('input')}: moved {near(row.get('damage'))} by the attack"]
    if row.get("damage_noise") is not None:
        words.append(f"{near(row['damage_noise'])} by noise")
    if row.get("attack") is not None:
        words.append(str(row["attack"]))
    return ", ".join(words)


def _times(attack: AttackRows) -> str:
    hit, noise = mean(attack.column("damage")), mean(attack.column("damage_noise"))
    if hit is None:
        return "no damage measured"
    if not noise:
        return f"mean {near(hit)}"
    return f"mean {near(hit)}, noise {near(noise)}: {near(hit / noise, 2)} times as far"


def _strip(axis: Axis, y: float, name: str, mark: Mark | None, values: list[float]) -> str:
    """One line of dots, stacked where they would cover each other, with mean and error."""
    parts = [draw_text(axis.start, y + 12, name)]
    counts: dict[int, int] = {}
    for value in sorted(values):
        x = axis(min(max(value, 0.0), 1.0))
        bin_ = round(x / 4)
        level = counts.get(bin_, 0)
        counts[bin_] = level + 1
        offset = (level + 1) // 2 * (3.2 if level % 2 else -3.2)
        if mark is not None:
            parts.append(mark(x, y + 28 + max(-9.0, min(9.0, offset))))
    middle, stderr = mean_stderr(values)
    if middle is not None:
        x = axis(middle)
        parts.append(f'<path class="mean" d="M{x:.1f} {y + 17:.1f}v22"/>')
        if stderr is not None:
            low, high = axis(max(0.0, middle - stderr)), axis(min(1.0, middle + stderr))
            parts.append(f'<path class="mean" d="M{low:.1f} {y + 28:.1f}H{high:.1f}"/>')
    return "".join(parts)
