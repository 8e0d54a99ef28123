"""Whether certificates and attacks agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "certified_below_attacked")
@final
@dataclass(frozen=True)
class CertifiedBelowAttacked:
    """No certified lower bound exceeds the attacked upper bound of its input."""

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = "One violation refutes the certificate, or the record was changed."

    def __call__(self, case: Case) -> Outcome:
        """Compare the two ends of every bracket."""
        pairs = [
            (float(row["certified"]), float(row[column]))
            for row in case.inputs()
            for column in ("margin_upper_unconstrained", "margin_upper_box")
            if row.get("certified") is not None and row.get(column) is not None
        ]
        violations = sum(low > high + 1e-6 for low, high in pairs)
        return Outcome(
            violations == 0 if pairs else None,
            f"{violations} of {len(pairs)} bounds violated" if pairs else "no certificate",
        )
