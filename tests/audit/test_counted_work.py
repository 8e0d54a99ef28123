"""What an audit is said to cost, beside the rows that it is seen to compute: nothing is timed."""

from __future__ import annotations

import pytest
import torch

import robustvae as rv
from robustvae.audit import Run, read_plan
from robustvae.audit.auditor import Auditor
from robustvae.audit.budget import stage_seconds
from robustvae.audit.unit_cost import UnitCost

PLAN = {"base": "quick", "inputs": 3, "shard": 3, "probes": 0}
STAGES = ("attacks", "margin", "band-attacked", "probability", "clean-probability")


@pytest.mark.parametrize("defense", [None, "posterior-sample"])
def test_announced_work_is_the_work_done(digits, monkeypatch, defense):
    """Rows through the decoder, with a gradient and without, stage by stage."""
    vae = rv.load("digits-vae")
    victim = rv.Victim(vae) if defense is None else rv.Victim(vae, defense)
    rows: dict[tuple[str, bool], int] = {}
    stage = [""]
    decode, measure, outcome = type(vae).decode, Auditor._measure, Auditor._outcome

    def counted(self, z, *args, **options):
        if isinstance(z, torch.Tensor) and isinstance(z.shape[0], int):
            key = stage[0], torch.is_grad_enabled() and z.requires_grad
            rows[key] = rows.get(key, 0) + len(z)
        return decode(self, z, *args, **options)

    def within(name, call, *args):
        stage[0] = name
        try:
            return call(*args)
        finally:
            stage[0] = ""

    monkeypatch.setattr(type(vae), "decode", counted)
    monkeypatch.setattr(Auditor, "_measure", lambda *a: within(a[2], measure, *a))
    monkeypatch.setattr(Auditor, "_outcome", lambda *a: within("attacks", outcome, *a))
    plan = read_plan(PLAN)
    rv.audit(victim, digits, plan=plan, question={"r": 0.86}, run=Run(announce=lambda words: None))
    for gradients, unit in ((False, UnitCost(1, 0, 0)), (True, UnitCost(0, 1, 0))):
        guesses = stage_seconds(plan, victim, unit, digits[:1].x, unit.gradient)
        for name in STAGES:
            seen = rows.get((name, gradients), 0) / plan.inputs
            assert 0.6 * seen <= guesses[name] <= 1.7 * seen + 10, (name, gradients)
