"""Progress, intervals and requirements: the small parts of an audit."""

from __future__ import annotations

import io
import random
import statistics

import pytest

from robustvae.display import Lines
from robustvae.records.intervals import mean_interval, mean_stderr, paired, share_interval


def test_lines_tell_remaining_time():
    now, stream = [0.0], io.StringIO()
    tell = Lines(every=20, stream=stream, clock=lambda: now[0])
    for done, seconds in ((0, 1.0), (1, 30.0), (2, 31.0), (5, 90.0)):
        now[0] = seconds
        tell(done, 10, "attacks")
    assert stream.getvalue().splitlines() == [
        "10 % after 30 s, about 270 s to go: attacks".replace("270 s", "4 min"),
        "50 % after 90 s, about 90 s to go: attacks",
    ]


def test_lines_count_no_earlier_steps():
    """What a stopped run had done took no time of this one, and says nothing of its pace."""
    now, stream = [0.0], io.StringIO()
    tell = Lines(every=20, stream=stream, clock=lambda: now[0], task="\x1b[31maudit")
    for done, seconds in ((90, 1.0), (91, 50.0)):
        now[0] = seconds
        tell(done, 100, "attacks")
    assert stream.getvalue() == "\\x1b[31maudit: 91 % after 50 s, about 8 min to go: attacks\n"


def test_share_interval_is_exact():
    assert share_interval(0, 10)[0] == 0.0
    assert share_interval(10, 10)[1] == 1.0
    low, high = share_interval(3, 10)
    assert low == pytest.approx(0.0667, abs=1e-3) and high == pytest.approx(0.6525, abs=1e-3)


def test_interval_allows_for_skew():
    source, trials, missed, missed_t = random.Random(1), 200, 0, 0
    for _ in range(trials):
        values = [source.expovariate(1.0) for _ in range(20)]
        low, high = mean_interval(values)
        missed += not low <= 1.0 <= high
        mean, stderr = mean_stderr(values)
        missed_t += not abs(mean - 1.0) <= 2.093 * stderr
    # 95 % promised: three standard errors of 200 trials are 0.046
    assert missed / trials <= 0.05 + 0.046
    assert missed <= missed_t


def test_paired_keeps_common_inputs():
    result = paired({1: 1.0, 2: 2.0, 3: float("inf")}, {1: 2.0, 2: 4.0, 3: 1.0})
    assert result.gap == 1.5
    assert result.stderr == pytest.approx(statistics.stdev([1.0, 2.0]) / 2**0.5)
    assert paired({1: 1.0}, {2: 1.0}) is None
