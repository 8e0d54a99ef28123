"""What a trained model is worth on images it has not seen: likelihood, codes, samples, slopes."""

from robustvae.evaluation.features import (
    FeatureNet,
    frechet_distance,
    frechet_of,
    inception_features,
    train_features,
)
from robustvae.evaluation.latents import active_units, aggregate_terms, linear_probe
from robustvae.evaluation.likelihood import negative_log_likelihood, squared_error
from robustvae.evaluation.measures import Evaluation, Measure
from robustvae.evaluation.slopes import decoder_slopes, encoder_slopes, weight_norms
from robustvae.evaluation.summary import PARTS, evaluate

__all__ = [
    "active_units",
    "aggregate_terms",
    "decoder_slopes",
    "encoder_slopes",
    "evaluate",
    "Evaluation",
    "FeatureNet",
    "frechet_distance",
    "frechet_of",
    "inception_features",
    "linear_probe",
    "Measure",
    "negative_log_likelihood",
    "PARTS",
    "squared_error",
    "train_features",
    "weight_norms",
]
