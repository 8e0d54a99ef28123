"""Whether the victim is as robust beside the audited inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "same_beside_inputs")
@final
@dataclass(frozen=True)
class SameBesideInputs:
    """Inputs beside the audited ones, shifted, noised or never seen, are no easier to attack.

    Args:
        factor: By which the damage or the error beside the inputs may be larger.
    """

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = (
        "If they are, the victim knows the audited inputs by heart: the numbers say nothing about "
        "any other input."
    )

    factor: float = 2.5  # honest models differ by up to 1.5 between samples of a few inputs

    def __call__(self, case: Case) -> Outcome:
        """Compare damage and reconstruction error on and beside the audited inputs."""
        probe = case.probes.get("beside")
        if not probe:
            return Outcome(None, "not measured")
        words, failures = [], False
        for what in ("damage", "error"):
            local = probe.get(what)
            others = [
                (name, float(value))
                for name, value in (probe.get(f"{what}_beside") or {}).items()
                # a shifted input may be unlike any training input: its error says nothing
                if value is not None and (what, name) != ("error", "shifted")
            ]
            if local is None or not others:
                continue
            name, worst = max(others, key=lambda pair: pair[1])
            failures |= worst > self.factor * float(local) + 1e-9
            words.append(f"{what} {float(local):.3g}, {worst:.3g} on {name} inputs")
        return Outcome(not failures if words else None, "; ".join(words) or "not measured")
