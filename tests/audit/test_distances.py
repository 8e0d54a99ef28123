"""Distances in units that a reader can judge, what the attacker knew, and repeated submissions."""

from __future__ import annotations

import math

import pytest
import torch

import robustvae as rv
from robustvae.metrics import clopper_pearson

PLAN = {
    "inputs": 4,
    "shard": 2,
    "draws": 50,
    "margins": {"steps": 6, "restarts": 1},
    "certificates": False,
    "geometry": False,
    "gallery": 0,
    "probes": 0,
    "gradient_free": 10,
    "longer": 2,
    "attacks": [{"search": {"name": "projected-ascent", "steps": 8, "restarts": 2}, "radius": 1.0}],
}


@pytest.fixture(scope="module")
def records(digits):
    vae = rv.load("digits-vae")
    victims = {"plain": vae, "drawn": rv.Victim(vae, rv.PosteriorSample())}
    return rv.audit(victims, digits, plan=PLAN, question={"r": 1.0})


def test_damage_in_three_units(records):
    for row in records.rows:
        assert row["damage_rms"] == pytest.approx(row["damage"] / math.sqrt(64))
        assert row["damage_relative"] == pytest.approx(row["damage"] / row["error_clean"], rel=1e-5)
        assert row["size_rms"] == pytest.approx(row["size"] / math.sqrt(64), rel=1e-5)
        assert 0 <= row["ms_ssim_attacked"] <= 1


def test_worst_submission_above_middle(records):
    drawn = [row for row in records.rows if row["victim"] == "drawn"]
    for row in drawn:
        assert row["damage_worst_of_10"] >= row["damage_majority"] > 0
    assert any(row["damage_worst_of_10"] > row["damage"] for row in drawn)
    plain = [row for row in records.rows if row["victim"] == "plain"]
    assert all(row["damage_worst_of_10"] is None for row in plain)


def test_labels_say_what_attacker_knew(records):
    labels = {entry.key: entry.label for entry in records.summary}
    assert "the attacker knew all of the model" in labels["damage"]
    transfer = next(label for key, label in labels.items() if "(transfer)" in key)
    assert "the attacker knew the undefended model only" in transfer
    assert (
        "some knew all of the model, some the victim's outputs only" in records.verdict.sentences[1]
    )


def test_longer_run_never_loses(records):
    """It goes on from the best of the shorter run's restarts."""
    scores = {}
    for row in records.rows:
        if row["victim"] == "plain" and row["role"] in ("plan", "longer"):
            scores.setdefault(row["input"], {})[row["role"]] = row["score"]
    assert all(pair["longer"] >= pair["plan"] - 1e-6 for pair in scores.values())


def test_headline_attack_has_all_draws(digits):
    """An attack that is not the worst has a tenth of the draws: its interval is the wider."""
    vae = rv.load("digits-vae")
    plan = {**PLAN, "draws": 2000, "margins": None, "inputs": 2}
    rows = rv.audit(vae, digits, plan=plan, question={"r": 2.4}).rows
    widths = [row["probability_high"] - row["probability_low"] for row in rows]
    for number in {row["input"] for row in rows}:
        local = [
            (row["damage"], w)
            for row, w in zip(rows, widths, strict=True)
            if row["input"] == number
        ]
        assert max(local)[1] < max(w for _, w in local)
    assert torch.tensor(widths).isfinite().all()


def test_draws_of_one_side_end_early(digits):
    """A quarter of the draws, all within r or all beyond it, say it; both looks share the risk."""
    vae = rv.load("digits-vae")
    plan = {**PLAN, "draws": 400, "margins": None, "inputs": 2}
    for r, share in ((50.0, 1.0), (1e-6, 0.0)):
        rows = rv.audit(vae, digits, plan=plan, question={"r": r}).rows
        headline = min(rows, key=lambda row: row["probability_high"] - row["probability_low"])
        low, high = clopper_pearson(int(share * 100), 100, 1 - 0.2 * 0.05)
        assert headline["probability"] == share
        assert headline["probability_low"] == pytest.approx(float(low))
        assert headline["probability_high"] == pytest.approx(float(high))


def test_looking_once_before_keeps_the_confidence():
    """Both looks together miss a share no oftener than the plan's risk, whatever the share is."""
    draws, risk = 400, 0.05
    for p in (0.001, 0.005, 0.02, 0.5):
        first = torch.distributions.Binomial(100, torch.tensor(p, dtype=torch.float64))
        rest = torch.distributions.Binomial(draws - 100, torch.tensor(p, dtype=torch.float64))
        wrong = 0.0
        for k in range(101):
            weight = float(first.log_prob(torch.tensor(float(k))).exp())
            if k in (0, 100):
                low, high = clopper_pearson(k, 100, 1 - 0.2 * risk)
                wrong += weight * (not low <= p <= high)
                continue
            if weight < 1e-12:
                continue
            total = torch.arange(draws - 100 + 1, dtype=torch.float64)
            low, high = clopper_pearson(total + k, draws, 1 - 0.8 * risk)
            miss = (torch.as_tensor(low) > p) | (torch.as_tensor(high) < p)
            wrong += weight * float((rest.log_prob(total).exp() * miss).sum())
        assert wrong <= risk
