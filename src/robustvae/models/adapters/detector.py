"""Detectors that give a score and nothing else, after the interface of pyod and scikit-learn."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from robustvae.data.space import InputSpace
from robustvae.errors import ShapeError
from robustvae.models.adapters.trial import Trial, attribute
from robustvae.models.adapters.wrapped import user_call
from robustvae.models.base import VAE
from robustvae.models.likelihoods import PointMass
from robustvae.registry import register

_ONLY_SCORE = (
    "this model is a detector with decision_function: only its score is judged; what reads a code, "
    "a reconstruction or a likelihood is left out"
)
"""Why a detector has no density."""


@register("adapter", "detector")
@final
@dataclass(frozen=True)
class Detectors:
    """Objects with `decision_function`: their score is judged, by searches without gradients."""

    priority: ClassVar[int] = 5

    def match(self, trial: Trial) -> WrappedDetector | None:
        """The detector, whose "code" and "output" are the input itself."""
        module = trial.module
        if isinstance(module, nn.Module) or not callable(attribute(module, "decision_function")):
            return None
        # pyod counts what is abnormal upwards, scikit-learn downwards
        is_sklearn = type(module).__module__.partition(".")[0] == "sklearn"
        return WrappedDetector(module, trial.space, -1.0 if is_sklearn else 1.0)


@final
class WrappedDetector(VAE):
    """A detector of which only the score can be judged.

    Attributes:
        space: What the detector reads.
        recognized: What `wrap` matched, in words.
        without_gradients: Searches by gradients do not apply.
    """

    is_foreign = True
    output_only = True
    score_only = True
    without_gradients = True
    has_spread = False
    likelihood = None
    is_straight_through = False

    def __init__(self, detector: Any, space: InputSpace, sign: float) -> None:
        """Hold the detector; it must have been fitted."""
        super().__init__()
        self.space, self.image_shape = space, space.image_shape
        self.latent = math.prod(space.shape)
        self.sign = sign
        words = " of scikit-learn, whose sign is turned" if sign < 0 else ""
        self.recognized = f"{type(detector).__name__}.decision_function{words}"
        self.assumptions = ("only the score of the detector is judged",)
        self.unseen: tuple[str, ...] = ()
        self.detector = detector
        self.training = False

    def __repr__(self) -> str:
        return f"WrappedDetector({self.recognized}; inputs {self.space.shape})"

    def __deepcopy__(self, memo: dict[int, Any]) -> WrappedDetector:
        return WrappedDetector(copy.deepcopy(self.detector, memo), self.space, self.sign)

    @property
    def kind(self) -> str:
        """The class of the detector, for the record."""
        return type(self.detector).__name__

    def _check_dtype(self, value: Tensor, name: str) -> None:
        """Any floating type: a detector reads arrays."""

    def anomaly_scores(self, x: Tensor) -> Tensor:
        """The detector's numbers, higher for what is less normal, (B,).

        Args:
            x: Inputs in [0, 1], (B, C, H, W).

        Raises:
            ShapeError: Not one number for each input.
        """
        u = self.space.to_model(x.detach()).flatten(1).cpu().double().numpy()
        with user_call("decision_function", self.detector.decision_function, x):
            values = np.asarray(self.detector.decision_function(u), dtype=np.float64)
        if values.size != len(x):
            raise ShapeError(
                f"decision_function must return {len(x)} numbers, got {values.shape}: one a row"
            )
        return self.sign * torch.from_numpy(values.reshape(-1).copy()).to(x)

    def encode(self, x: Tensor) -> PointMass:
        """The input itself, flat, (B, D)."""
        self.check(x)
        return PointMass(x.flatten(1), _ONLY_SCORE)

    def decode(self, z: Tensor) -> PointMass:
        """The input itself."""
        return PointMass(z.reshape(len(z), *self.image_shape), _ONLY_SCORE)

    def prior(self) -> PointMass:
        """A point without a density."""
        return PointMass(torch.zeros(self.latent), _ONLY_SCORE)
