"""The verdict says what the rows say, and no more."""

from __future__ import annotations

import pytest

from robustvae.report import reading


def row(i=0, **changes):
    return {
        "input": i,
        "label": 3,
        "attack": "maximum damage, l2 1",
        "norm": "l2",
        "radius": 1.0,
        "box": True,
        "status": "ok",
        "r": 1.0,
        "m": 0.5,
        "displacement": "centered",
        **changes,
    }


def verdict(make_record, *rows):
    return reading.verdict(make_record(2, rows=list(rows)))


@pytest.mark.parametrize("kind", ["deterministic", "probabilistic"])
def test_certified_and_attacked(make_record, kind):
    rows = [
        row(0, certified=0.3009, margin_upper_unconstrained=0.7001, margin_upper_box=1.2),
        row(1, certified=0.1, margin_upper_unconstrained=0.9, margin_upper_box=1.4),
    ]
    for each in rows:
        each["certified_kind"] = kind
    assert verdict(make_record, *rows) == (
        "On average an attack breaks this model with a change of size 0.801 (1.30 where pixels "
        f"must stay in range); the certified radius is 0.200 on average ({kind})."
    )


def test_headlines_name_the_kinds_that_hold(make_record):
    def labels(*kinds, certified=0.1):
        rows = [row(i, certified=certified, certified_kind=k) for i, k in enumerate(kinds)]
        means = [{"key": "certified", "mean": 0.1, "stderr": 0.0, "n": 2, "unit": ""}]
        return [
            entry["label"] for entry in reading.headlines(make_record(rows=rows, summary=means))
        ]

    assert labels("probabilistic") == ["Certified radius (probabilistic)"]
    assert labels("probabilistic", "deterministic") == [
        "Certified radius (deterministic, probabilistic)"
    ]
    assert labels("deterministic", certified=0.0) == labels(None) == ["Certified radius"]


def test_each_input_counts_once_however_many_attacks(make_record):
    bracket = {"certified": 0.25, "margin_upper_unconstrained": 0.5}
    rows = [
        row(0, **bracket),
        row(0, attack="b", **bracket),
        row(1, margin_upper_unconstrained=1.0),
    ]
    assert "size 0.750" in verdict(make_record, *rows)


def test_an_open_end_is_not_averaged_away(make_record):
    rows = [row(0, margin_upper_unconstrained="inf"), row(1, margin_upper_unconstrained=0.5)]
    assert verdict(make_record, *rows) == (
        "Attacks broke 1 of 2 inputs, with a change of size 0.500 on average; certificates were "
        "not asked for, so smaller changes may do so too."
    )
    none = verdict(make_record, row(0, margin_upper_unconstrained="inf", certified=0.0))
    assert none.startswith("No attack tried broke any of the 1 inputs; nothing could be certified")


def test_without_margins_the_damage_speaks(make_record):
    words = verdict(make_record, row(damage=2.0, damage_noise=0.5))
    assert words == (
        "The attack “maximum damage, l2 1” moves the reconstruction by 2.00, 4.0 times as far as "
        "random noise of the same size."
    )
    assert "nothing to judge by" in verdict(make_record, row())
    assert "nothing to judge by" in verdict(make_record)


@pytest.mark.parametrize(
    ("low", "high", "broken", "held"), [(0.1, 0.5, 1, 0), (0.4, 0.6, 0, 0), (0.51, 0.9, 0, 1)]
)
def test_broken_only_when_the_whole_interval_says_so(make_record, low, high, broken, held):
    rows = [row(probability=0.5, probability_low=low, probability_high=high)]
    (attack,) = reading.attacks(make_record(2, rows=rows))
    assert (attack.broken, attack.held, attack.judged) == (broken, held, 1)


def test_zero_gradient_is_inconclusive(make_record):
    (attack,) = reading.attacks(make_record(2, rows=[row(status="inconclusive"), row(1)]))
    assert attack.inconclusive == 1


def test_words_for_the_event(make_record):
    centered = reading.margin_in_words(make_record(2))
    assert "more than r = 1.2 away from the clean one at least half of the time" in centered
    paired = reading.margin_in_words(make_record(2, rows=[row(displacement="paired", m=0.9)]))
    assert "more than r = 1 apart with probability 0.100 or more" in paired
    assert reading.margin_in_words(make_record(2, rows=[])) == ""
