"""Whether the output is a function that hangs together, or noise that the input's bits choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "near_inputs_near_outputs")
@final
@dataclass(frozen=True)
class NearInputsNearOutputs:
    """Inputs that differ by rounding alone have outputs that hardly differ.

    Args:
        share: Of the distance that a change a thousand times as large makes, which a change of
            rounding's size may make: about a thousandth where the output is smooth.
    """

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = (
        "If not, the input's last bits choose the output, as noise seeded by the input does: no "
        "search can climb it, and the next copy of the image gets another output."
    )

    share: float = 0.3

    def __call__(self, case: Case) -> Outcome:
        """Compare median distances of outputs after changes of two sizes."""
        probe = case.probes.get("near")
        if not probe:
            return Outcome(None, "not judged: the victim draws random numbers")
        tiny, step = float(probe["tiny"]), float(probe["step"])
        words = f"outputs {tiny:.2g} apart after a change of rounding, {step:.2g} after a real one"
        if step <= 1e-9:
            return Outcome(None, "nothing moved")
        return Outcome(tiny <= self.share * step, words)
