"""Foreign models: recognized by protocol, wrapped as they are."""

from robustvae.models.adapters.adapter import Adapter
from robustvae.models.adapters.losses import TrainingLoss
from robustvae.models.adapters.trial import Trial
from robustvae.models.adapters.wrapped import BlackBox, Match, WrappedVAE
from robustvae.models.adapters.wrapping import wrap

__all__ = ["Adapter", "BlackBox", "Match", "TrainingLoss", "Trial", "wrap", "WrappedVAE"]
