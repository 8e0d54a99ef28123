"""A stranger's measure and check show up in rows, summary and report without touching ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

import robustvae as rv
from robustvae import errors, registry
from robustvae.audit import check_names, read_plan, summary_keys
from robustvae.certificates.methods.base import Finding
from robustvae.records import Case, Column, Outcome


@dataclass(frozen=True)
class Brightness:
    """How bright the attacked input is."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column(id="brightness", label="mean pixel of the attacked input", headline="Brightness"),
    )
    gain: float = 1.0

    def __call__(self, context):
        return {"brightness": self.gain * context.x_adv.flatten(1).mean(1)}


@dataclass(frozen=True)
class BrightEnough:
    """Attacked inputs are not pitch black."""

    subject: ClassVar[str] = "evidence"
    meaning: ClassVar[str] = "If not, there is nothing to see."
    least: float = 0.9

    def __call__(self, case: Case) -> Outcome:
        values = case.numbers("brightness")
        return Outcome(min(values) >= self.least, f"least {min(values):.2f}")


MEASURE, CHECK = f"{__name__}:Brightness", f"{__name__}:BrightEnough"


def test_plugins_show_up(digits, one):
    plan = {**one, "measures": [{"name": MEASURE, "gain": 2.0}], "checks": [CHECK]}
    record = rv.audit(rv.load("digits-vae"), digits, plan=plan, question={"r": 1.0})
    assert all(row["brightness"] > 0 for row in record.rows)
    assert any(entry.key == "brightness" for entry in record.summary)
    (judged,) = [check for check in record.checks if check.id == CHECK]
    assert judged.sentence == "Attacked inputs are not pitch black." and not judged.passed
    assert CHECK in record.verdict.first
    assert {"brightness"} <= set(summary_keys(read_plan(plan)))
    assert CHECK in check_names(read_plan(plan))
    from robustvae.report.page import render

    page = render(record)
    assert "Attacked inputs are not pitch black." in page and "Brightness" in page


@dataclass(frozen=True)
class Cautious:
    """Half of what the bound of Markov proves."""

    kind: ClassVar[str] = "deterministic"
    norms: ClassVar[tuple[str, ...]] = ("l2",)

    def __call__(self, task):
        finding = registry.build("certificate-method", "trace_markov")(task)
        return Finding({"cautious": finding.radii["trace_markov"] / 2}, finding.assumptions)


def test_certificate_methods_are_named_by_plans(digits, one):
    """Instead of the usual ones, a stranger's too; an estimate is refused by its name."""
    radii = {}
    for method in ("trace_markov", f"{__name__}:Cautious"):
        plan = {
            **one,
            "certificates": True,
            "measures": [{"name": "certificate", "methods": [method]}],
        }
        record = rv.audit(rv.load("digits-lipschitz-vae"), digits, plan=plan, question={"r": 1.0})
        row = record.rows[0]
        radii[row["certified_deterministic_method"]] = row["certified_deterministic"]
    assert set(radii) == {"trace_markov", "cautious"}
    assert radii["cautious"] == pytest.approx(radii["trace_markov"] / 2)
    assert radii["cautious"] > 0
    plan = {**one, "measures": [{"name": "certificate", "methods": ["first_order"]}]}
    with pytest.raises(errors.ConfigError, match="an estimate is a measure of its own"):
        read_plan(plan)


def test_members_can_be_left_out(digits, one):
    plan = {**one, "without": ["similarity", "beats_random_noise"]}
    record = rv.audit(rv.load("digits-vae"), digits, plan=plan, question={"r": 1.0})
    assert "ms_ssim_clean" not in record.rows[0]
    assert "beats_random_noise" not in {check.id for check in record.checks}
