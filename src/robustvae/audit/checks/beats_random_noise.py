"""Whether attacks do more than noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.intervals import mean_stderr
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "beats_random_noise")
@final
@dataclass(frozen=True)
class BeatsRandomNoise:
    """The worst attack of each ball moves the output further than random noise of its size."""

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = "If not, the attacks are too weak to say anything."

    def __call__(self, case: Case) -> Outcome:
        """Compare the worst attack on each input with the noise beside it."""
        words, any_failure, any_judgment = [], False, False
        for ball, rows in case.balls():
            damage, noise = case.best("damage", rows), case.best("damage_noise", rows)
            gains = [damage[name] - noise[name] for name in damage.keys() & noise.keys()]
            if not gains or max(damage.values()) <= 1e-9:
                continue
            any_judgment = True
            mean, stderr = mean_stderr(gains)
            any_failure |= mean <= (2 * stderr if len(gains) > 1 and math.isfinite(stderr) else 0.0)
            words.append(f"{ball}: {mean:.3g} more ({stderr:.2g} standard error)")
        return Outcome(
            not any_failure if any_judgment else None, "; ".join(words) or "nothing moved"
        )
