"""Pullback metrics: which directions of the input move the latent code most, and by how much."""

from robustvae.geometry.curves import StepCurves, step_curves
from robustvae.geometry.metric import (
    Geometry,
    Spectrum,
    decoder_metric,
    is_small,
    leading_pullback,
    pullback,
    spectrum,
)

__all__ = [
    "Geometry",
    "Spectrum",
    "StepCurves",
    "decoder_metric",
    "is_small",
    "leading_pullback",
    "pullback",
    "spectrum",
    "step_curves",
]
