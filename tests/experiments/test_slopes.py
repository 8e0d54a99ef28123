"""The verdicts over training runs."""

from __future__ import annotations

import pytest

from experiments.harness import interval, load_items
from experiments.papers.camuto2021.slopes import verdict

ITEM = load_items()["camuto2021/fig-9cd"]


@pytest.mark.parametrize(
    ("key", "changes", "said"),
    [
        ("encoder_std", [10.0, 11.0, 9.0], "agrees"),
        ("encoder_slope", [10.0, 11.0, 9.0], "the opposite here"),
        ("encoder_weights", [50.0, -50.0, 10.0], "absent here"),
        ("decoder_weights", [-5.0, -4.0, -6.0], "agrees"),
        ("decoder_slope", [10.0, 11.0, 9.0], ""),
    ],
)
def test_verdict_follows_the_interval(key, changes, said):
    assert verdict(key, changes) == said


def test_interval_is_students():
    mean, half = interval([50.0, -50.0, 10.0])
    assert mean == pytest.approx(10 / 3) and half == pytest.approx(4.3026527 * 29.0593, rel=1e-4)


def test_second_run_trains_nothing(tmp_path):
    first = ITEM.run(root=tmp_path)
    logs = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("log.jsonl")}
    assert len(logs) == 4
    assert ITEM.run(root=tmp_path).rows == first.rows
    assert logs == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("log.jsonl")}
