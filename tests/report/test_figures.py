"""Figures are well-formed, have a text to read out, and draw inside their frame."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from robustvae.report import figures

ALL = [figures.bracket, figures.coverage, figures.damage, figures.similarity]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("figure", ALL)
@pytest.mark.parametrize("n", [1, 2, 40, 300])
@pytest.mark.parametrize("width", [358, 760])
def test_a_figure_stands_alone(make_record, figure, n, width):
    root = ElementTree.fromstring(figure(make_record(n), width))
    assert root.get("role") == "img"
    assert len(root.get("aria-label", "")) > 20
    _, _, across, down = map(float, root.get("viewBox", "").split())
    assert across == width
    for shape in root.iter():
        for name, most in (("x", across), ("cx", across), ("y", down), ("cy", down)):
            place = float(shape.get(name, 0))
            assert math.isfinite(place) and 0 <= place <= most, (shape.tag, name, place)
        for number in re.findall(r"-?\d[\d.]*|nan|inf", shape.get("d", "")):
            assert math.isfinite(float(number))
    assert "url(" not in figure(make_record(n), width)


def drawn(svg: str, kind: str) -> list[ElementTree.Element]:
    """The marks of one kind in the plot, without the legend's."""
    groups = ElementTree.fromstring(svg).iter(f"{SVG}g")
    return [mark for group in groups for mark in group if mark.get("class") == kind]


def test_the_bracket_shows_every_end(make_record):
    record = make_record(40)
    svg = figures.bracket(record)
    inputs = {row["input"]: row for row in record.rows}.values()
    certified = [row["certified"] for row in inputs]
    open_ends = sum(row["margin_upper_box"] == "inf" for row in inputs)
    assert len(drawn(svg, "proved")) == sum(c > 0 for c in certified)
    assert len(drawn(svg, "none")) == sum(c == 0 for c in certified) > 0
    assert len(drawn(svg, "free")) == len(drawn(svg, "guess")) == 40
    assert len(drawn(svg, "openbox")) == open_ends > 0
    assert len(drawn(svg, "box")) == 40 - open_ends
    assert (
        "certified (deterministic) from 0" in svg
        and "abstained" in svg
        and "estimate: no bound" in svg
    )


def test_coverage_is_share_beyond_each_radius(make_record):
    record = make_record(40)
    root = ElementTree.fromstring(figures.coverage(record))
    curves = {path.get("class"): path.get("d") for path in root.iter(f"{SVG}path")}
    inputs = list({row["input"]: row for row in record.rows}.values())
    certified = sorted(row["certified"] for row in inputs)
    steps = [
        tuple(map(float, step))
        for step in re.findall(r"H([\d.]+)V([\d.]+)", curves["shares proved"])
    ]
    start, top = map(float, re.match(r"M([\d.]+) ([\d.]+)", curves["shares proved"]).groups())
    positive = [radius for radius in certified if radius > 0]
    assert len(steps) == len(positive)
    bottom = steps[-1][1]
    full = (bottom - top) * 40 / len(positive)
    per_unit = (steps[-1][0] - start) / positive[-1]
    for i, (radius, (across, down)) in enumerate(zip(positive, steps, strict=True)):
        assert across == pytest.approx(start + radius * per_unit, abs=0.15)
        assert (bottom - down) / full == pytest.approx((len(positive) - i - 1) / 40, abs=0.01)


def test_coverage_names_its_displacement(make_record):
    record = make_record(8)
    assert "centered, 8 inputs" in figures.coverage(record)
    for row in record.rows:
        row["certified"] = 0.0
    assert figures.coverage(record) == ""


def test_bracket_is_to_scale_and_sorted(make_record):
    record = make_record(40)
    svg = figures.bracket(record)
    dots = [float(dot.get("cy", 0)) for dot in drawn(svg, "free")]
    assert dots == sorted(dots, reverse=True)
    values = sorted(
        {row["input"]: row["margin_upper_unconstrained"] for row in record.rows}.values()
    )
    slopes = [(dots[0] - y) / (v - values[0]) for y, v in zip(dots[1:], values[1:], strict=True)]
    assert slopes[-1] == pytest.approx(slopes[20], rel=0.01)


def test_wide_range_logarithmic_place_zero(make_record):
    record = make_record(4)
    for i, row in enumerate(record.rows):
        row.update(
            certified=0.0, margin_upper_unconstrained=10.0 ** (i // 2 - 3), margin_upper_box=None
        )
        row.update(first_order=None)
    svg = figures.bracket(record)
    dots = [float(dot.get("cy", 0)) for dot in drawn(svg, "free")]
    gaps = [a - b for a, b in itertools.pairwise(dots)]
    assert gaps == pytest.approx([gaps[0]] * 3, abs=0.2)
    assert ">0</text>" in svg


@pytest.mark.parametrize("certified", [0.0, 1e-9])
@pytest.mark.parametrize("value", [0.0, "inf", 1e-12, 1e12])
def test_figures_of_degenerate_margins(make_record, value, certified):
    record = make_record(3)
    for row in record.rows:
        row.update(certified=certified, margin_upper_unconstrained=value, margin_upper_box=value)
        row.update(first_order=None, damage=0.0, damage_noise=0.0)
    for figure in ALL:
        svg = figure(record)
        if figure is figures.coverage and not certified:
            assert svg == ""
        else:
            ElementTree.fromstring(svg)


@pytest.mark.parametrize("figure", ALL)
def test_nothing_to_draw(make_record, figure):
    assert figure(make_record(2, rows=[])) == ""


def test_what_not_measured_not_drawn(make_record):
    bare = figures.bracket(make_record(5, certified=False))
    assert not drawn(bare, "proved") and not drawn(bare, "gap") and not drawn(bare, "none")
    assert "certified" not in bare
    assert figures.bracket(make_record(5, certified=False, margins=False)) == ""
