"""Damage against size, classes, signals: what is drawn is what the record holds."""

from __future__ import annotations

import re

import numpy as np
import pytest

from robustvae.report import curves


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_quantile_matches_numpy(q: float) -> None:
    values = sorted(np.random.default_rng(0).normal(size=17).tolist())
    assert curves._quantile(values, q) == pytest.approx(np.quantile(values, q))


def test_damage_curve_names_its_medians(make_record) -> None:
    record = make_record(5)
    svg = curves.damage_curve(record)
    rows = [row for row in record.rows if row["norm"] == "l2"]
    median = np.median([row["damage"] for row in rows])
    assert f"median damage {0.4 * median:.3g}"[:18] in svg
    assert svg.count('class="limit"') == 2  # r, in a panel for each ball


def test_damage_curve_needs_its_columns(make_record) -> None:
    record = make_record(4)
    rows = [{**row, "damage_at_50": None} for row in record.rows]
    assert curves.damage_curve(record.model_copy(update={"rows": rows})) == ""


def test_least_robust_class_comes_first(make_record) -> None:
    record = make_record(40, margins=True)
    svg = curves.classes(record)
    labels = re.findall(r">class (\d+), (\d+)<", svg)
    means = {}
    for row in record.rows:
        means.setdefault(str(row["label"]), {})[row["input"]] = row["margin_upper_unconstrained"]
    expected = sorted(means, key=lambda label: np.mean(list(means[label].values())))
    assert [label for label, _ in labels] == expected
    assert all(int(count) == len(means[label]) for label, count in labels)


def test_one_class_is_no_picture(make_record) -> None:
    record = make_record(5)
    rows = [{**row, "label": 3} for row in record.rows]
    assert curves.classes(record.model_copy(update={"rows": rows})) == ""


def test_signal_marks_zero_and_values() -> None:
    svg = curves.signal([[-1.0, 0.0, 1.0]], -1.0, 1.0, "what")
    heights = [float(h) for h in re.findall(r'<rect class="proved".*?height="([\d.]+)"', svg)]
    assert heights == [41.0, 0.5, 41.0]
    line = curves.signal([[0.0, 1.0]] * 2, 0.0, 1.0, "what")
    assert line.count('class="shares') == 2 and "<rect" not in line.split("</style>")[1]
