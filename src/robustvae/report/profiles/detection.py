"""How well scores tell anomalies from normal inputs, with intervals; numbers without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

Z = 1.959963984540054  # of a two-sided 95 % interval
_RESAMPLES = 400  # of the bootstrap: its 95 % ends are then known to a tenth of their distance
_SEED = 20261130  # of the resampling only, so that equal scores give equal intervals


@final
@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval over the sampling of inputs."""

    value: float
    low: float
    high: float


def auroc(normal: Sequence[float], anomalous: Sequence[float], tie: float = 0.5) -> Interval:
    """Area under the ROC curve: the share of pairs in which the anomaly scores higher.

    The interval is DeLong's; where every pair is in order, or none, it is that of a share in as
    many trials as the smaller side has inputs, since no spread is seen.

    Args:
        normal: Scores of normal inputs.
        anomalous: Scores of anomalies.
        tie: What an equal pair counts: half, or 0 where ties must not flatter.

    References:
        DeLong et al., 1988.

    Examples:
        >>> from robustvae.report.profiles.detection import auroc
        >>> auroc([0.0, 1.0], [1.0, 2.0]).value
        0.875
    """
    below, above = np.asarray(normal, float), np.asarray(anomalous, float)
    pairs = (above[:, None] > below[None, :]) + tie * (above[:, None] == below[None, :])
    value = float(pairs.mean())
    by_anomaly, by_normal = pairs.mean(1), pairs.mean(0)
    least = min(len(below), len(above))
    if value in (0.0, 1.0) or least < 2:
        width = 1 - 0.025 ** (1 / max(least, 1))
        return Interval(value, max(0.0, value - width), min(1.0, value + width))
    variance = by_anomaly.var(ddof=1) / len(above) + by_normal.var(ddof=1) / len(below)
    half = Z * math.sqrt(float(variance))
    return Interval(value, max(0.0, value - half), min(1.0, value + half))


def average_precision(normal: Sequence[float], anomalous: Sequence[float]) -> Interval:
    """Area under the precision-recall curve, with the interval of a bootstrap of each side.

    References:
        `scipy.stats.bootstrap`; Efron & Tibshirani, 1993, section 13.3 (percentiles).

    Examples:
        >>> from robustvae.report.profiles.detection import average_precision
        >>> average_precision([0.0, 1.0], [2.0, 3.0]).value
        1.0
    """
    from scipy.stats import bootstrap

    below, above = np.asarray(normal, float), np.asarray(anomalous, float)
    value = _precision(below, above)
    if min(len(below), len(above)) < 2:  # one input says nothing of its spread
        return Interval(value, 0.0, 1.0)
    low, high = bootstrap(
        (below, above),
        _precision,
        n_resamples=_RESAMPLES,
        vectorized=False,
        method="percentile",
        random_state=np.random.default_rng(_SEED),
    ).confidence_interval
    return Interval(value, min(value, float(low)), max(value, float(high)))


def share(hits: int, count: int) -> Interval:
    """A share with its exact (Clopper-Pearson) interval.

    Examples:
        >>> from robustvae.report.profiles.detection import share
        >>> share(5, 10).value
        0.5
    """
    from scipy.stats import beta

    if not count:
        return Interval(0.0, 0.0, 1.0)
    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, count - hits + 1))
    high = 1.0 if hits == count else float(beta.ppf(0.975, hits + 1, count - hits))
    return Interval(hits / count, low, high)


def curve(normal: Sequence[float], anomalous: Sequence[float]) -> list[tuple[float, float]]:
    """The ROC curve, ties not in favor of the detector: false and true positive rates, rising."""
    below, above = np.sort(np.asarray(normal, float)), np.sort(np.asarray(anomalous, float))
    points = [(0.0, 0.0)]
    for threshold in below[::-1]:
        false = float((below >= threshold).mean())
        true = float((above > threshold).mean())
        points.append((false, max(true, points[-1][1])))
    return [*points, (1.0, 1.0)]


def _precision(below: np.ndarray, above: np.ndarray) -> float:
    """Mean over the anomalies of the precision at their score; ties count as alarms."""
    values = np.concatenate([below, above])
    thresholds = np.sort(above)[::-1]
    ranked_all, ranked = np.sort(values), np.sort(above)
    alarms = len(values) - np.searchsorted(ranked_all, thresholds, side="left")
    hits = len(above) - np.searchsorted(ranked, thresholds, side="left")
    return float((hits / alarms).mean())
