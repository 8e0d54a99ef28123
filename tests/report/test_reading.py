"""What is read off a record says what the rows say, and no more."""

from __future__ import annotations

import json

import pytest

from robustvae.records import Record
from robustvae.records.verdict import verdict_of
from robustvae.report import reading


def row(i=0, **changes):
    return {
        "input": i,
        "label": 3,
        "attack": "maximum-damage, l2 1",
        "role": "plan",
        "norm": "l2",
        "radius": 1.0,
        "box": True,
        "status": "ok",
        **changes,
    }


def verdict(make_record, *rows, checks=()):
    record = make_record(2, rows=list(rows), checks=list(checks))
    return verdict_of(record.rows, record.checks, record)


@pytest.mark.parametrize("kind", ["deterministic", "probabilistic"])
def test_bracket_sentence_names_kind(make_record, kind):
    rows = [
        row(0, certified=0.3009, margin_upper_unconstrained=0.7001, margin_upper_box=1.2),
        row(1, certified=0.1, margin_upper_unconstrained=0.9, margin_upper_box=1.4),
    ]
    for each in rows:
        each["certified_kind"] = kind
    assert verdict(make_record, *rows).sentences[1] == (
        "Attacks break it on average with a change of size 1.30; "
        f"the certified radius is 0.200 on average ({kind})."
    )


def test_inputs_count_once(make_record):
    bracket = {"certified": 0.25, "margin_upper_box": 0.5, "certified_kind": "deterministic"}
    rows = [row(0, **bracket), row(0, attack="b", **bracket), row(1, margin_upper_box=1.0)]
    assert "size 0.750;" in str(verdict(make_record, *rows))


def test_open_end_is_told(make_record):
    rows = [row(0, margin_upper_box="inf"), row(1, margin_upper_box=0.5)]
    words = str(verdict(make_record, *rows))
    assert "1 of 2 inputs, on average with a change of size 0.5" in words
    assert "no certificate was asked for" in words
    none = str(verdict(make_record, row(0, margin_upper_box="inf", certified=0.0)))
    assert "No attack tried broke any input; nothing could be certified" in none
    assert "no change that breaks it was found" in none
    unasked = verdict(make_record, row(0)).sentences
    assert "change that breaks it" not in unasked[0]
    assert unasked[1] == "No margin was measured, and no certificate was asked for."


def check(name, passed, subject="evidence"):
    return {
        "id": name,
        "victim": "undefended",
        "passed": passed,
        "value": "3 of 4",
        "sentence": "S.",
        "subject": subject,
    }


def test_failed_check_opens_the_verdict(make_record):
    checks = [check("gradient_seen", False), check("input_matters", True, "usefulness")]
    found = verdict(make_record, row(margin_upper_box=4.0), checks=checks)
    assert found.first == (
        "Useful; not evidence of robustness (gradient_seen failed: 3 of 4); "
        "the change that breaks it is visible (0.5 RMS a pixel)."
    )
    assert (found.useful, found.sound, found.visible, found.passed) == (True, False, True, False)
    assert found.failed == ("gradient_seen",)


def test_useless_is_the_first_word(make_record):
    checks = [check("input_matters", False, "usefulness"), check("inside_ball", True)]
    found = verdict(make_record, row(), checks=checks)
    assert found.first.startswith("Not useful (input_matters failed: 3 of 4); evidence sound")
    assert not found.passed


def test_notes_accuse_nobody(make_record):
    checks = [check("longer_search_same", False, "note"), check("inside_ball", True)]
    found = verdict(make_record, row(), checks=checks)
    assert found.passed and found.failed == () and "longer" not in found.first


@pytest.mark.parametrize(
    ("low", "high", "broken", "held"), [(0.1, 0.5, 1, 0), (0.4, 0.6, 0, 0), (0.51, 0.9, 0, 1)]
)
def test_broken_when_whole_interval_says(make_record, low, high, broken, held):
    rows = [row(probability=0.5, probability_low=low, probability_high=high)]
    (attack,) = reading.attacks(make_record(2, rows=rows))
    assert (attack.broken, attack.held, attack.judged) == (broken, held, 1)


def test_zero_gradient_is_inconclusive(make_record):
    (attack,) = reading.attacks(make_record(2, rows=[row(status="inconclusive"), row(1)]))
    assert attack.inconclusive == 1


def test_worst_takes_greatest_damage(make_record):
    rows = [row(0, damage=1.0), row(0, attack="b", damage=3.0), row(1, damage=2.0)]
    (worst,) = reading.worst(make_record(2, rows=rows))
    assert worst.name == "worst attack in l2 1" and worst.column("damage") == [3.0, 2.0]


def test_words_for_the_event(make_record):
    centered = reading.margin_in_words(make_record(2))
    assert "more than r = 1.2 away from the clean one at least half of the time" in centered
    question = {"norm": "l2", "r": 1.0, "m": 0.9, "displacement": "paired"}
    paired = reading.margin_in_words(make_record(2, question=question))
    assert "more than r = 1 apart with probability 0.100 or more" in paired


def test_reading_judges_again(make_record):
    record = make_record(4)
    content = json.loads(record.to_json())
    for each in content["rows"]:
        each["certified"] = 9.0
    read = Record.from_json(json.dumps(content))
    failed = [result.id for result in reading.failed_checks(read)]
    assert "certified_below_attacked" in failed
    assert "certified_below_attacked" in read.verdict.first
    assert read.changed_rows == list(range(len(read.rows)))
