"""r-robustness: how likely an output stays near its clean one, and where that fails."""

from robustvae.certificates.question import CENTERS, DISPLACEMENTS, Displacement
from robustvae.robustness.displacement import (
    Noise,
    Ruler,
    displacements,
)
from robustvae.robustness.margin import Margin, estimate_margin
from robustvae.robustness.probability import (
    clean_quantile,
    overall_margin,
    robustness_curve,
    robustness_probability,
)
from robustvae.robustness.walk import Budget

__all__ = [
    "CENTERS",
    "DISPLACEMENTS",
    "Budget",
    "Displacement",
    "Margin",
    "Noise",
    "Ruler",
    "clean_quantile",
    "displacements",
    "estimate_margin",
    "overall_margin",
    "robustness_curve",
    "robustness_probability",
]
