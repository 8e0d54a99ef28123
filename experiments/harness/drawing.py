"""Pictures that are a function of stored results: curves, bars, clouds, histograms, fields.

`drawings.yaml` says which rows, cells or lists the panels of each show; nothing is computed.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from experiments.harness.figures import new_figures, save
from experiments.harness.provenance import ROOT
from robustvae.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWINGS = Path(__file__).parents[1] / "drawings.yaml"
RESULTS = ROOT / "docs" / "results"
COLUMNS = 4  # panels in a row
GRAY = "0.35"  # of what a paper prints


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@final
class Series(_Frozen):
    """Which stored numbers are shown: rows of a result, cells of the ledger, or lists.

    Attributes:
        source: A JSON file below `docs/results`, without its ending; "ledger" for cells.
        section: Of the rows; every section where it is None.
        along: What varies along the axis, "setting" or "what"; the other one makes lines.
        match: Of `along`, whole; its group, or else all of it, is the place on the axis. Of the
            ledger's keys: its named groups are.
        where: Of the other one, whole; its group, or else all of it, is the line's name.
        name: Of all lines, instead.
        by: The place is the number of this other column of the same line, of rows along "what".
        x: Path to a list of numbers in the file; "*" stands for every part.
        y: Path to a list of numbers, or of lists whose mean and standard deviation are shown.
        printed: Show the paper's numbers, too, where the rows have them.
    """

    source: str
    section: str | None = None
    along: Literal["setting", "what"] = "setting"
    match: str = "(.*)"
    where: str = "(.*)"
    name: str = ""
    by: str = ""
    x: str = ""
    y: str = ""
    printed: bool = False


@final
class Panel(_Frozen):
    """One pair of axes.

    Attributes:
        form: "curves" by a number, "bars" by a word, "cloud" of points, "histogram", "field".
        title: Above it.
        x: Label of the axis.
        y: Label of the axis.
        log: Axes on a logarithmic scale: "", "x", "y", "xy".
        diagonal: Draw y = x.
        series: What is shown.
    """

    form: Literal["curves", "bars", "cloud", "histogram", "field"] = "curves"
    title: str = ""
    x: str = ""
    y: str = ""
    log: Literal["", "x", "y", "xy"] = ""
    diagonal: bool = False
    series: tuple[Series, ...]


@final
class Drawing(_Frozen):
    """One picture.

    Attributes:
        picture: Its file below `docs/img`.
        panels: From left to right, four in a row.
        columns: Fewer of them in a row.
    """

    picture: str
    panels: tuple[Panel, ...] = Field(min_length=1)
    columns: int = COLUMNS


@final
@dataclass(frozen=True)
class Point:
    """One number of a line: its place, value, error, and what the paper prints there."""

    x: str
    y: float
    error: float = 0.0
    printed: float | None = None

    @property
    def place(self) -> float:
        """The place as a number."""
        return float(self.x.replace(",", ""))


Lines = dict[str, list[Point]]


def drawings() -> tuple[Drawing, ...]:
    """Every picture that `drawings.yaml` describes."""
    return TypeAdapter(tuple[Drawing, ...]).validate_python(
        yaml.safe_load(DRAWINGS.read_text("utf-8"))
    )


def draw(drawing: Drawing, folder: Path) -> None:
    """Write a picture into a folder.

    Raises:
        ConfigError: A series finds no numbers.
        MissingExtraError: No matplotlib.
    """
    columns = min(drawing.columns, len(drawing.panels))
    count = math.ceil(len(drawing.panels) / columns)
    with new_figures() as new:
        figure = new(max(3.6, 2.9 * columns), 2.6 * count)
        grid = figure.subplots(count, columns, squeeze=False).flatten()
        for axes, panel in zip(grid, drawing.panels, strict=False):
            lines = lines_of(panel.series, drawing.picture)
            FORMS[panel.form](axes, lines)
            axes.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
            axes.title.set_fontsize(9)
            if "x" in panel.log:
                axes.set_xscale("log")
            if "y" in panel.log:
                axes.set_yscale("log")
            if panel.diagonal:
                axes.axline((0, 0), slope=1, color=GRAY, linewidth=0.8)
            if panel.form != "field" and (len(lines) > 1 or next(iter(lines))):
                axes.legend(fontsize=7)
        for axes in grid[len(drawing.panels) :]:
            axes.set_visible(False)
        save(figure, folder / drawing.picture)


def lines_of(series: Iterable[Series], picture: str) -> Lines:
    """The points of every line, in the order of the file.

    Raises:
        ConfigError: A series finds no numbers.
    """
    lines: Lines = {}
    for one in series:
        before = sum(map(len, lines.values()))
        for name, point in _read(one):
            lines.setdefault(one.name or name, []).append(point)
        if sum(map(len, lines.values())) == before:
            raise ConfigError(f"{picture}: no number of {one.source} fits {one.match!r}")
    return lines


def _read(series: Series) -> Iterator[tuple[str, Point]]:
    path = ROOT / "experiments" / "ledger.json"
    if series.source != "ledger":
        path = RESULTS / f"{series.source}.json"
    content = json.loads(path.read_text("utf-8"))
    if series.y:
        yield from _listed(content, series)
        return
    if series.source == "ledger":
        for cell in content["cells"]:
            found = re.fullmatch(series.match, cell["key"])
            if found and cell["ours"]:
                ours = cell["ours"]
                place = "/".join(found.groupdict().values())
                printed = cell["value"] if series.printed else None
                yield "", Point(place, ours["value"], ours["error"], printed)
        return
    places = {
        row["what"]: row["measured"] for row in content["rows"] if row["setting"] == series.by
    }
    for row in content["rows"]:
        here, there = row[series.along], row["what" if series.along == "setting" else "setting"]
        at, line = re.fullmatch(series.match, here), re.fullmatch(series.where, there)
        if at and line and series.section in (None, row.get("section", "")):
            printed = row["reported"] if series.printed else None
            x = str(places[here]) if series.by else at[1] if at.re.groups else here
            name = line[1] if line.re.groups else there
            yield name, Point(x, float(row["measured"]), float(row["stderr"]), printed)


def _listed(content: Any, series: Series) -> Iterator[tuple[str, Point]]:
    values = list(_path(content, series.y))
    places = list(_path(content, series.x)) if series.x else [0.0] * len(values)
    for x, y in zip(places, values, strict=True):
        if isinstance(y, list):
            spread = statistics.stdev(y) if len(y) > 1 else 0.0
            yield "", Point(str(x), statistics.fmean(y), spread)
        else:
            yield "", Point(str(x), float(y))


def _path(content: Any, path: str) -> list[Any]:
    """The list at a path of keys, places and "*", parted by "/"."""
    parts = [content]
    for key in path.split("/"):
        if key == "*":
            parts = [inner for part in parts for inner in part]
        else:
            parts = [part[int(key) if isinstance(part, list) else key] for part in parts]
    return parts[0] if len(parts) == 1 and isinstance(parts[0], list) else parts


def _curves(axes: Axes, lines: Lines) -> None:
    for i, (name, points) in enumerate(lines.items()):
        points = sorted(points, key=lambda point: point.place)
        x, y = [point.place for point in points], [point.y for point in points]
        low = [point.y - 1.96 * point.error for point in points]
        high = [point.y + 1.96 * point.error for point in points]
        axes.plot(x, y, ".-", color=f"C{i}", label=name or None)
        axes.fill_between(x, low, high, color=f"C{i}", alpha=0.2, linewidth=0)
        _printed(axes, x, points, first=not i)


def _bars(axes: Axes, lines: Lines) -> None:
    places = list(dict.fromkeys(point.x for points in lines.values() for point in points))
    width = 0.8 / len(lines)
    for i, (name, points) in enumerate(lines.items()):
        shift = (i - (len(lines) - 1) / 2) * width
        x = [places.index(point.x) + shift for point in points]
        errors = [1.96 * point.error for point in points]
        y = [point.y for point in points]
        axes.bar(x, y, width, yerr=errors, color=f"C{i}", label=name or None, capsize=2)
        _printed(axes, x, points, first=not i)
    slanted = max(map(len, places)) > 8
    turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if slanted else {}
    axes.set_xticks(range(len(places)), places, fontsize=7, **turned)
    axes.margins(y=0.3)  # room for the legend above the bars


def _printed(axes: Axes, x: list[float], points: list[Point], *, first: bool) -> None:
    """What the paper prints, as hollow diamonds; `first` names them in the legend."""
    pairs = [(at, p.printed) for at, p in zip(x, points, strict=True) if p.printed is not None]
    if pairs:
        label = "printed" if first else None
        axes.plot(*zip(*pairs, strict=True), "D", mfc="none", color=GRAY, ms=4, label=label)


def _cloud(axes: Axes, lines: Lines) -> None:
    for i, (name, points) in enumerate(lines.items()):
        x, y = [point.place for point in points], [point.y for point in points]
        axes.plot(x, y, "o", color=f"C{i}", ms=3, alpha=0.7, label=name or None)


def _histogram(axes: Axes, lines: Lines) -> None:
    everything = sorted(point.y for points in lines.values() for point in points)
    low, high = everything[0], everything[-1]
    edges = [low + (high - low) * i / 25 for i in range(26)]
    for i, (name, points) in enumerate(lines.items()):
        y = [point.y for point in points]
        axes.hist(y, edges, color=f"C{i}", alpha=0.5, density=True, label=name or None)


def _field(axes: Axes, lines: Lines) -> None:
    """A line a row, from below; colors by the logarithm, numbers written in."""
    places = list(dict.fromkeys(point.x for points in lines.values() for point in points))
    values = [[math.nan] * len(places) for _ in lines]
    for row, points in zip(values, lines.values(), strict=True):
        for point in points:
            row[places.index(point.x)] = point.y
    shown = [[math.log10(v) if v > 0 else math.nan for v in row] for row in values]
    axes.imshow(shown, cmap="viridis", aspect="auto", origin="lower")
    middle = statistics.median(v for row in shown for v in row if math.isfinite(v))
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            color = "black" if shown[i][j] > middle else "white"
            axes.text(j, i, f"{value:.3g}", ha="center", va="center", color=color, fontsize=7)
    axes.set_xticks(range(len(places)), places)
    axes.set_yticks(range(len(lines)), list(lines))
    axes.spines[:].set_visible(False)


FORMS = {
    "curves": _curves,
    "bars": _bars,
    "cloud": _cloud,
    "histogram": _histogram,
    "field": _field,
}
