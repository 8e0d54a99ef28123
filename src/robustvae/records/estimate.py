"""A number with its interval, from samples or attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from robustvae.display import three_lines


@final
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    """A number with its confidence interval, from samples or attacks.

    Warning:
        An estimate says nothing about what was not tried. It is never a certificate.

    Attributes:
        value: The estimate, (B,).
        low: Lower end of the interval, (B,).
        high: Upper end of the interval, (B,).
        confidence: Of the interval, in (0, 1).
        box: Whether perturbed images had to stay in the pixel range; None where it plays no part.
        status: A word per input, or empty where there is nothing to say.

    Examples:
        >>> import robustvae as rv
        >>> rv.Estimate(value=0.5, low=0.4, high=0.6, confidence=0.95, box=None).high
        0.6
    """

    value: Any
    low: Any
    high: Any
    confidence: float
    box: bool | None
    status: tuple[str, ...] = ()
