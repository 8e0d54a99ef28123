"""A check: whether anything was darkened at all."""

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.registry import register


@register("check", "something_darkened")
@final
@dataclass(frozen=True)
class SomethingDarkened:
    """Some attack darkens the output of some input."""

    subject: ClassVar[str] = "evidence"
    meaning: ClassVar[str] = "If not, no attack of the plan asked for darker outputs."

    def __call__(self, case: Case) -> Outcome:
        """Judge the rows, which it never edits."""
        values = case.numbers("darkened", case.rows)
        if not values:
            return Outcome(None, "not measured")
        return Outcome(max(values) > 0, f"darkened by at most {max(values):.3g}")
