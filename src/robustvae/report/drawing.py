"""What the figures are drawn with: colors, axes, legends, text, one SVG that stands alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import final

from robustvae.report.marks import Mark
from robustvae.rounding import near

# Blue, vermillion, purple and green after Okabe and Ito: told apart with any color vision, and
# every one has a shape of its own beside its color.
PALETTE = """
:root{color-scheme:light dark;--ink:#1d2530;--soft:#55606e;--line:#d5dae1;--grid:#e9ecf0;
--page:#fbfbfa;--card:#fff;--proved:#0b62a4;--free:#c8500a;--box:#8a3a86;--guess:#6b7480;
--noise:#79828d;--defended:#0a7d5a;--bad:#b3261e;--tint:#eef3f8;--shade:#0003}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#a3adb9;--line:#39424d;--grid:#29313a;
--page:#12161b;--card:#191f26;--proved:#5eb1ee;--free:#ff9152;--box:#d894d4;--guess:#a7b0bb;
--noise:#96a0ab;--defended:#4cc79f;--bad:#ff8a80;--tint:#1d2733;--shade:#000b}}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--line:#bbb;--grid:#e4e4e4;--page:#fff;
--card:#fff;--proved:#0b62a4;--free:#c8500a;--box:#8a3a86;--guess:#6b7480;--noise:#79828d;
--defended:#0a7d5a;--bad:#b3261e;--tint:#f3f3f3;--shade:#fff}}
""".strip()

_CHART = """
svg.chart{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
.chart text{fill:var(--soft)}.chart .strong{fill:var(--ink);font-weight:600}
.chart .grid{stroke:var(--grid)}.chart .axis{stroke:var(--line)}
.chart .proved{fill:var(--proved)}.chart .gap{fill:var(--free);opacity:.16}
.chart .gap2{fill:var(--box);opacity:.13}
.chart .free{fill:var(--free)}.chart .box{fill:var(--card);stroke:var(--box);stroke-width:1.6}
.chart .guess{fill:none;stroke:var(--guess);stroke-width:1.3}
.chart .openfree{fill:none;stroke:var(--free);stroke-width:1.6}
.chart .openbox{fill:none;stroke:var(--box);stroke-width:1.6}
.chart .none{stroke:var(--soft);stroke-width:1.4;fill:none}
.chart .noise{fill:var(--card);stroke:var(--noise);stroke-width:1.4}
.chart .defended{fill:var(--defended)}.chart .stem{stroke:var(--free);opacity:.3;stroke-width:1.4}
.chart .limit{stroke:var(--soft);stroke-dasharray:4 4;fill:none}
.chart .shares{fill:none;stroke-width:2}.chart .shares.proved{stroke:var(--proved)}
.chart .shares.free{stroke:var(--free)}.chart .shares.box{stroke:var(--box);stroke-width:1.6}
.chart .clean{fill:var(--proved)}.chart .mean{stroke:var(--ink);stroke-width:2;fill:none}
""".strip()

STYLE = f"{PALETTE}\n{_CHART}"

_GLYPH = 6.6  # width of a character at 12 px, generous
_LOG_RATIO = 100.0  # of the greatest to the least positive value, from which an axis is logarithmic
_ZERO_STRIP = 16.0


@final
@dataclass(frozen=True)
class Axis:
    """Data to pixels along one direction; on a log axis, zero has a strip of its own."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False
    zero: float | None = None

    def between(self, start: float, stop: float) -> Axis:
        """The same scale over other pixels."""
        zero = None if self.zero is None else start
        step = math.copysign(_ZERO_STRIP, stop - start) if self.zero is not None else 0.0
        return dataclasses.replace(self, start=start + step, stop=stop, zero=zero)

    @classmethod
    def over(cls, values: Iterable[float], start: float, stop: float) -> Axis:
        """An axis from zero to the greatest value; logarithmic where values span decades."""
        numbers = [value for value in values if value >= 0]
        positive = [value for value in numbers if value > 0] or [1.0]
        least, greatest = min(positive), max(positive)
        if greatest / least <= _LOG_RATIO:
            return cls(0.0, greatest * 1.06, start, stop)
        low, high = _nice_below(least), greatest * 1.15
        zero = start if 0.0 in numbers else None
        return cls(low, high, start, stop, log=True, zero=zero).between(start, stop)

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        if self.log and value <= 0:
            return self.start if self.zero is None else self.zero
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Values that have a grid line."""
        if not self.log:
            step = _nice_above((self.high - self.low) / 6)
            return [i * step for i in range(int(self.high / step + 1e-9) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1,) if len(decades) > 4 else (1, 2, 5)
        ticks = [s * 10.0**d for d in decades for s in steps]
        return [tick for tick in ticks if self.low * (1 - 1e-9) <= tick <= self.high]


def draw_y_axis(axis: Axis, left: float, right: float) -> list[str]:
    """Grid lines and numbers of an axis upwards."""
    parts = []
    for tick in [*axis.ticks(), *([] if axis.zero is None else [0.0])]:
        y = axis(tick)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(draw_text(left - 8, y + 4, trimmed(near(tick)), anchor="end"))
    return parts


def draw_legend(keys: list[tuple[str, Mark]], width: int, after: float) -> tuple[str, float]:
    """The legend's drawing, wrapped to `width`, and where the figure may begin below it."""
    parts = []
    for (words, mark), (x, y) in zip(keys, _legend_places(keys, width), strict=True):
        parts.append(mark(x + 8, y - 4) + draw_text(x + 20, y, words))
    return "".join(parts), legend_height(keys, width) + after * 0.4


def legend_height(keys: list[tuple[str, Mark]], width: int) -> float:
    """How much room a legend takes."""
    places = _legend_places(keys, width)
    return places[-1][1] + 8 if places else 0.0


def _legend_places(keys: list[tuple[str, Mark]], width: int) -> list[tuple[float, float]]:
    places, x, y = [], 0.0, 16.0
    for words, _ in keys:
        width_of_entry = 20 + len(words) * _GLYPH + 12
        if x and x + width_of_entry > width:
            x, y = 0.0, y + 20
        places.append((x, y))
        x += width_of_entry
    return places


def draw_text(x: float, y: float, words: str, *, anchor: str = "start", kind: str = "") -> str:
    """Words at a place."""
    anchor_text = "" if anchor == "start" else f' text-anchor="{anchor}"'
    class_text = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{anchor_text}{class_text}>{escaped(words)}</text>'


def fitted(words: str, width: float) -> str:
    """Words cut to a width."""
    limit = max(8, int(width / 7.2))
    return words if len(words) <= limit else words[: limit - 1] + "…"


def trimmed(words: str) -> str:
    """A number without trailing zeros."""
    return words.rstrip("0").rstrip(".") if "." in words else words


def _nice_below(value: float) -> float:
    decade = 10.0 ** math.floor(math.log10(value))
    return max(step * decade for step in (1, 2, 5) if step * decade <= value * (1 + 1e-9))


def _nice_above(value: float) -> float:
    decade = 10.0 ** math.floor(math.log10(value))
    return min(step * decade for step in (1, 2, 5, 10) if step * decade >= value * (1 - 1e-9))


def escaped(words: str) -> str:
    """Text that may stand in SVG."""
    return escape(words, quote=True)


def draw_svg(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    """One drawing that stands alone, with words for those who cannot see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" '
        f'aria-label="{escaped(label)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>"
    )
