"""Audits: a plan of measures and checks, a question from outside, and the record of both."""

from typing import TYPE_CHECKING

from robustvae._lazy import attach

if TYPE_CHECKING:  # the same names for type checkers and editors, which read no table
    from robustvae.audit.context import Attacked, Context, Measure
    from robustvae.audit.plan import AttackPlan, MarginPlan, Plan, read_plan
    from robustvae.audit.protocol import Protocol, read_protocol
    from robustvae.audit.requirements import check_names, summary_keys
    from robustvae.audit.run import audit
    from robustvae.audit.tasks import Run
    from robustvae.audit.verifying import Verification, verify

_HOMES = {
    "Attacked": "context",
    "AttackPlan": "plan",
    "audit": "run",
    "check_names": "requirements",
    "Context": "context",
    "MarginPlan": "plan",
    "Measure": "context",
    "Plan": "plan",
    "Protocol": "protocol",
    "read_plan": "plan",
    "read_protocol": "protocol",
    "Run": "tasks",
    "summary_keys": "requirements",
    "Verification": "verifying",
    "verify": "verifying",
}

__all__ = [
    "Attacked",
    "AttackPlan",
    "audit",
    "check_names",
    "Context",
    "MarginPlan",
    "Measure",
    "Plan",
    "Protocol",
    "read_plan",
    "read_protocol",
    "Run",
    "summary_keys",
    "Verification",
    "verify",
]

attach(__name__, _HOMES)
