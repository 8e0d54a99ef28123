"""r-robustness: how likely an output stays near its clean one, and where that fails."""

from robustvae.robustness.displacement import (
    CENTERS,
    DISPLACEMENTS,
    Displacement,
    Noise,
    Ruler,
    displacements,
)
from robustvae.robustness.margin import Margin, Margins, estimate_margin
from robustvae.robustness.probability import (
    overall_margin,
    rest_quantile,
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
    "Margins",
    "Noise",
    "Ruler",
    "displacements",
    "estimate_margin",
    "overall_margin",
    "rest_quantile",
    "robustness_curve",
    "robustness_probability",
]
