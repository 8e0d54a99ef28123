"""AUROC, AUPRC and shares against their definitions and scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from robustvae.report.profiles.charts import Frame, lines
from robustvae.report.profiles.detection import auroc, average_precision, curve, share
from robustvae.report.profiles.section import ball_words, of_all


def drawn(shift, n=80, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=n), random.normal(size=n) + shift


def test_auroc_matches_sklearn():
    from sklearn.metrics import average_precision_score, roc_auc_score

    normal, anomalous = (np.round(side, 1) for side in drawn(1.0))
    labels, values = np.repeat([0, 1], 80), np.concatenate([normal, anomalous])
    assert auroc(normal, anomalous).value == pytest.approx(roc_auc_score(labels, values))
    expected = average_precision_score(labels, values)
    # scikit-learn weights distinct thresholds, ours anomalies: equal without ties
    smooth, other = drawn(1.0)
    values = np.concatenate([smooth, other])
    expected = average_precision_score(labels, values)
    assert average_precision(smooth, other).value == pytest.approx(expected)


def test_delong_covers_truth():
    """The 95 % interval holds the true value about 95 times in a hundred."""
    from scipy.stats import norm

    truth = float(norm.cdf(1.0 / np.sqrt(2)))
    intervals = [auroc(*drawn(1.0, seed=seed)) for seed in range(300)]
    cover = np.mean([one.low <= truth <= one.high for one in intervals])
    assert abs(cover - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 300)


def test_bootstrap_narrows_with_inputs():
    """Four times the same inputs leave the AUPRC as it is, and halve its interval."""
    few, many = (average_precision(*(np.tile(x, k) for x in drawn(1.0))) for k in (1, 4))
    assert few.low < few.value < few.high and many.value == pytest.approx(few.value)
    # each width is known to about a tenth by so many resamples
    assert 0.35 < (many.high - many.low) / (few.high - few.low) < 0.65
    alone = average_precision([0.0], [1.0])
    assert (alone.value, alone.low, alone.high) == (1.0, 0.0, 1.0)


def test_perfect_order_keeps_doubt():
    interval = auroc([0.0] * 10, [1.0] * 20)
    assert interval.value == interval.high == 1 and interval.low == pytest.approx(0.025**0.1)


def test_ties_may_count_nothing():
    assert auroc([1.0], [1.0], tie=0).value == 0
    assert auroc([1.0], [1.0]).value == 0.5


def test_curve_encloses_auroc():
    normal, anomalous = drawn(1.0)
    points = curve(normal, anomalous)
    area = sum((x - x0) * (y + y0) / 2 for (x0, y0), (x, y) in itertools.pairwise(points))
    assert area == pytest.approx(auroc(normal, anomalous).value, abs=0.02)


def test_share_is_exact():
    from scipy.stats import binomtest

    exact = binomtest(3, 20).proportion_ci(method="exact")
    assert (share(3, 20).low, share(3, 20).high) == pytest.approx((exact.low, exact.high))
    assert share(0, 0).value == 0


def test_words_of_balls_and_counts():
    assert ball_words("linf", 16 / 255) == "linf 16/255"
    assert of_all(4, 4, "dogs") == "all 4 dogs" and of_all(0, 4, "dogs") == "none of 4 dogs"


def test_lines_need_points():
    assert lines([("a", "free", [])], Frame("x", "y")) == ""
    svg = lines([("<a>", "free", [(0.0, 1.0), (1.0, float("inf"))])], Frame("x", "y"), 360)
    assert "&lt;a&gt;" in svg and "<a>" not in svg
