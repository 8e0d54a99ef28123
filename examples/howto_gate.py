"""A robustness gate as a test: run it with pytest, or as a script."""

import robustvae as rv
from robustvae.records.requirements import outcomes

REQUIREMENTS = ["inside_ball", "damage<=5"]


def test_model_is_robust_enough() -> None:
    images = rv.data.load("digits", split="test")
    vae = rv.load("digits-vae")
    record = rv.audit(vae, images, plan="smoke", question={"r": 0.86}, seed=0)
    record = record.model_copy(update={"requirements": REQUIREMENTS})
    unmet = [reason for _, reason in outcomes(record) if reason is not None]
    assert record.verdict.passed, record.verdict.first
    assert not unmet, unmet


test_model_is_robust_enough()
print("the gate holds")
