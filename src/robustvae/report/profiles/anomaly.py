"""The section of the profile "anomaly": what is hidden, what is rejected, what is certified."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from robustvae.records.parts import UseFacts
from robustvae.report.profiles import charts
from robustvae.report.profiles.detection import (
    Interval,
    auroc,
    average_precision,
    curve,
    share,
)
from robustvae.report.profiles.section import (
    Section,
    at_words,
    ball_words,
    balls_of,
    of_all,
    smallness,
)
from robustvae.report.tables import Cell, Heading, Row, Table
from robustvae.rounding import floor, number

_WEAK = 0.7  # below it a reader must first know that the detector is poor

Scores = tuple[list[float], list[float]]

HEADINGS = (
    Heading("both", "AUROC, both sides attacked", better="higher"),
    Heading("evasion", "AUROC, anomalies attacked", better="higher"),
    Heading("alarm", "AUROC, normal inputs attacked", better="higher"),
    Heading("auprc", "AUPRC, both", better="higher"),
    Heading("tpr", "anomalies flagged", better="higher"),
    Heading("fpr", "normal inputs flagged", better="lower"),
)


def section(use: UseFacts, victims: list[str]) -> Section:
    """The section, of the use's rows."""
    victims = [name for name in victims if f"threshold of {name}" in use.facts]
    tables = [_table(use, victim) for victim in victims]
    kinds = sorted({str(row["kind"]) for row in use.rows if row["side"] == "anomalous"})
    if len(kinds) > 1:
        tables.append(_by_kind(use, victims[0], kinds))
    figures: list[tuple[Callable[[int], str], str]] = []
    for victim in victims:
        curves = _curves(use, victim)
        if len(curves) > 1:
            drawing = functools.partial(charts.roc, curves)
            is_certified = any(style == "proved" for _, style, _ in curves)
            figures.append((drawing, _caption(victim, victims, is_certified)))
    return Section(
        "Can an anomaly be hidden, can a normal input be rejected?",
        tuple(_answer(use, victims)),
        tuple(tables),
        tuple(figures),
        (*use.notes, *_how(use, victims)),
    )


def scores(use: UseFacts, victim: str, ball: tuple[str, float] | None = None) -> Scores:
    """Scores of normal inputs and anomalies, clean or attacked in a ball."""
    condition = "clean" if ball is None else "attacked"

    def side(name: str) -> list[float]:
        return [
            float(row["score"])
            for row in _rows(use, victim, condition, ball)
            if row["side"] == name
        ]

    return side("normal"), side("anomalous")


def certified(use: UseFacts, victim: str, radius: float) -> Scores:
    """Upper ends of normal inputs and lower ends of anomalies at an l2 size; empty without."""
    rows = list(_rows(use, victim, "certified", ("l2", radius)))
    upper = [number(row["upper"]) for row in rows if row["side"] == "normal"]
    lower = [number(row["lower"]) for row in rows if row["side"] == "anomalous"]
    return [float(v) for v in upper if v is not None], [float(v) for v in lower if v is not None]


def _rows(
    use: UseFacts, victim: str, condition: str, ball: tuple[str, float] | None = None
) -> Iterable[dict[str, Any]]:
    for row in use.rows:
        fits = row["victim"] == victim and row["condition"] == condition
        if fits and (ball is None or (row["norm"], row["radius"]) == ball):
            yield row


def _answer(use: UseFacts, victims: list[str]) -> Iterable[str]:
    """The answer: the ball in which most is hidden first."""
    victim = victims[0]
    threshold = float(use.facts[f"threshold of {victim}"])  # type: ignore[arg-type]
    normal, anomalous = scores(use, victim)
    seen = [i for i, value in enumerate(anomalous) if value > threshold]
    passed = [i for i, value in enumerate(normal) if value <= threshold]
    clean = auroc(normal, anomalous)
    if clean.value < _WEAK:
        yield (
            f"Without any attack the detector hardly tells anomalies from normal inputs: its AUROC "
            f"is {clean.value:.3f}, where chance has 0.5."
        )
    outcomes = []
    for ball in balls_of(use, victim=victim):
        attacked_normal, attacked = scores(use, victim, ball)
        hidden = sum(attacked[i] <= threshold for i in seen)
        alarms = sum(attacked_normal[i] > threshold for i in passed)
        order = -auroc(attacked_normal, attacked).value
        outcomes.append((hidden + alarms, order, smallness(*ball), ball, hidden, alarms))
    if not outcomes:
        yield "No attack was run."
        return
    # the ball in which most decisions change; of equal ones that with the lowest AUROC, since
    # sizes of two norms have no order; and of these, of one norm, the smallest
    *_, ball, hidden, alarms = max(outcomes, key=lambda one: one[:3])
    hides = f"hides {of_all(hidden, len(seen), 'anomalies that the detector finds')}"
    rejects = f"makes it reject {of_all(alarms, len(passed), 'normal inputs that it accepts')}"
    if not seen:
        hides = "has nothing to hide, since the detector finds no anomaly at its threshold"
    if not passed:
        rejects = "can make it reject no more, since it accepts no normal input"
    yield f"{at_words(*ball)} an attacker {hides}, and {rejects}."
    attacked_both = auroc(*scores(use, victim, ball))
    yield (
        f"The AUROC is {clean.value:.3f} without an attack and {attacked_both.value:.3f} with both "
        f"sides attacked there."
    )
    for name in victims:
        sizes = [radius for _, radius in balls_of(use, "certified", name)]
        ends = [(radius, certified(use, name, radius)) for radius in sizes]
        proofs = [(r, auroc(*pair, tie=0).value) for r, pair in ends if pair[0] and pair[1]]
        # rounded down: a guarantee is never made larger by printing it
        words = [f"{floor(value)} at l2 {radius:g}" for radius, value in proofs if value > 0]
        if words:
            yield (
                f"Certified, {name}: whatever changes an attacker makes, the AUROC of the "
                f"median score on these inputs stays at least {', '.join(words)}, with confidence "
                f"{use.facts['confidence']:g} for all of them together."
            )
        elif proofs:
            yield f"Nothing could be certified for {name} at l2 {proofs[0][0]:g} or more."
    if not any(row["condition"] == "certified" for row in use.rows):
        yield "Nothing is certified: a detector with noise on its input would be."


def _table(use: UseFacts, victim: str) -> Table:
    threshold = float(use.facts[f"threshold of {victim}"])  # type: ignore[arg-type]
    clean = scores(use, victim)
    rows = [Row({"change": "none"}, _cells(clean, clean, threshold))]
    for ball in balls_of(use, victim=victim):
        rows.append(
            Row(
                {"change": f"{ball_words(*ball)}, attacked"},
                _cells(clean, scores(use, victim, ball), threshold),
            )
        )
    for _, radius in balls_of(use, "certified", victim):
        ends = certified(use, victim, radius)
        if ends[0] and ends[1]:
            detections = share(sum(v > threshold for v in ends[1]), len(ends[1]))
            alarms = share(sum(v > threshold for v in ends[0]), len(ends[0]))
            rows.append(
                Row(
                    {"change": f"l2 {radius:g}, certified"},
                    {
                        "both": _cell(auroc(*ends, tie=0), len(ends[1])),
                        "tpr": _cell(detections, len(ends[1])),
                        "fpr": _cell(alarms, len(ends[0])),
                    },
                )
            )
    return Table(
        f"{victim}: score {use.facts[f'score of {victim}']}, threshold {threshold:.3g}",
        HEADINGS,
        tuple(rows),
    )


def _cells(clean: Scores, attacked: Scores, threshold: float) -> dict[str, Cell]:
    normal, anomalous = attacked
    flagged = share(sum(value > threshold for value in anomalous), len(anomalous))
    alarms = share(sum(value > threshold for value in normal), len(normal))
    return {
        "both": _cell(auroc(normal, anomalous), len(anomalous)),
        "evasion": _cell(auroc(clean[0], anomalous), len(anomalous)),
        "alarm": _cell(auroc(normal, clean[1]), len(anomalous)),
        "auprc": _cell(average_precision(normal, anomalous), len(anomalous)),
        "tpr": _cell(flagged, len(anomalous)),
        "fpr": _cell(alarms, len(normal)),
    }


def _by_kind(use: UseFacts, victim: str, kinds: list[str]) -> Table:
    """Share of each kind of anomaly that is flagged, clean and attacked."""
    threshold = float(use.facts[f"threshold of {victim}"])  # type: ignore[arg-type]
    balls = balls_of(use, victim=victim)
    headings = [Heading("clean", "flagged, no change", better="higher")]
    headings += [
        Heading(f"ball{i}", f"at {ball_words(*ball)}", better="higher")
        for i, ball in enumerate(balls)
    ]
    rows = []
    for kind in kinds:
        cells = {}
        for key, ball in [("clean", None), *((f"ball{i}", ball) for i, ball in enumerate(balls))]:
            values = [
                float(row["score"])
                for row in _rows(use, victim, "clean" if ball is None else "attacked", ball)
                if row["side"] == "anomalous" and row["kind"] == kind
            ]
            hits = sum(value > threshold for value in values)
            cells[key] = _cell(share(hits, len(values)), len(values))
        rows.append(Row({"kind of anomaly": kind}, cells))
    return Table(f"{victim}: anomalies flagged, by their kind", tuple(headings), tuple(rows))


def _curves(use: UseFacts, victim: str) -> list[tuple[str, str, list[tuple[float, float]]]]:
    """The ROC curves of one victim: clean, attacked, certified, each with its style."""
    curves = [("without attack", "clean", curve(*scores(use, victim)))]
    sizes = [radius for _, radius in balls_of(use, "certified")]
    proofs = [(r, certified(use, victim, r)) for r in sizes]
    proofs = [(r, ends) for r, ends in proofs if ends[0] and ends[1] and auroc(*ends, tie=0).value]
    proofs = [(r, ends) for r, ends in proofs if scores(use, victim, ("l2", r))[1]]
    if proofs:
        radius, ends = proofs[-1]
        curves.append(
            (f"attacked, l2 {radius:g}", "free", curve(*scores(use, victim, ("l2", radius))))
        )
        curves.append((f"certified, l2 {radius:g}", "proved", curve(*ends)))
        return curves
    for ball in balls_of(use, victim=victim):
        curves.append((f"attacked, {ball_words(*ball)}", "free", curve(*scores(use, victim, ball))))
    return curves[:5]


def _caption(victim: str, victims: list[str], is_certified: bool) -> str:
    whose = f"{victim}. " if len(victims) > 1 else ""
    words = f"{whose}Anomalies flagged against normal inputs flagged, as the threshold moves."
    if not is_certified:
        return f"{words} Attackers who try harder may do worse than the attacked curve shows."
    return (
        f"{words} The worst that an attacker can do lies between the attacked curve, which was "
        "reached, and the certified one, below which no change of that size can bring it."
    )


def _how(use: UseFacts, victims: list[str]) -> Iterable[str]:
    yield (
        f"The threshold lets {float(use.facts['fpr']):.0%} of {use.facts['reference']} clean "  # type: ignore[arg-type]
        "normal inputs through as false alarms. Intervals are DeLong's for AUROC, bootstrap for "
        "AUPRC, exact for shares; all at 95 %, over the sampling of inputs."
    )
    if any(row["condition"] == "certified" for row in use.rows):
        yield (
            f"Certified: an anomaly counts only where the lower end of its score lies above the "
            f"upper end of the normal input's, {use.facts['draws']} draws an input. It speaks of "
            f"the median over the noise; the deployed median of {use.facts['votes']} draws strays "
            "from it by chance."
        )


def _cell(value: Interval, n: int) -> Cell:
    return Cell(value.value, value.low, value.high, n)
