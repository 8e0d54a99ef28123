"""The score that an anomaly profile decides by, from its spec."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from torch import Tensor

from robustvae import registry
from robustvae.defenses import Victim
from robustvae.errors import ConfigError, RobustVAEError, unknown
from robustvae.registry.members import PATH
from robustvae.scores import LatentDistance, NoisyDistance, Score, default_score
from robustvae.seeding import generator as new_generator

_FITTED: dict[str, Any] = {"latent-distance": LatentDistance, "noisy-distance": NoisyDistance}
"""Scores that are fitted on clean normal inputs."""


def check_score(spec: Any) -> None:
    """Raise on a spec that stands for no score, before anything is computed.

    Raises:
        ConfigError: Neither a name, a mapping nor a score.
        UnknownNameError: No such score, or no such field of one that is fitted.
    """
    if spec is None or callable(spec):
        return
    if not isinstance(spec, str) and not hasattr(spec, "get"):
        raise ConfigError(
            f"a score is a name, a mapping or a function of (victim, x), got {spec!r}: see "
            "`robustvae list score`"
        )
    name = spec if isinstance(spec, str) else spec.get("name")
    registry.lookup("score", name)
    if name in _FITTED:
        fit = inspect.signature(_FITTED[name].fit)
        options = [one.name for one in fit.parameters.values() if one.default is not one.empty]
        for field in _fields(spec):
            if field not in options:
                raise unknown(f"field of score {name!r}", field, options)


def score_of(spec: Any, victim: Victim, reference: Tensor) -> Score:
    """The score that a spec stands for; one that is fitted is fitted on clean normals.

    Args:
        spec: As the argument `score` of `Anomaly`.
        victim: Whose score it is.
        reference: Clean normal inputs, (N, ...).

    Raises:
        ConfigError: A score of the user's own that gives no number for each input.
    """
    if spec is None:
        return default_score(victim)
    if callable(spec):
        function: Score = spec
        return _seen(function, victim, reference)
    if isinstance(spec, str) and PATH.fullmatch(spec):
        member = registry.lookup("score", spec)
        # a function of one's own is the score itself; a class makes one
        own = registry.build("score", spec) if isinstance(member, type) else member
        return _seen(own, victim, reference)
    name = spec if isinstance(spec, str) else spec.get("name")
    if name == "latent-distance":
        return LatentDistance.fit(victim.vae, reference)
    if name == "noisy-distance":
        fields: dict[str, Any] = _fields(spec)
        return NoisyDistance.fit(victim, reference, generator=new_generator(0), **fields)
    score: Score = registry.build("score", spec)
    return score


def probe_score(spec: Any, victim: Victim, reference: Tensor) -> Score:
    """As `score_of`, without fitting: the detector's own score where this one wants it."""
    name = spec.get("name") if hasattr(spec, "get") else spec
    is_fitted = isinstance(name, str) and name in _FITTED
    return default_score(victim) if is_fitted else score_of(spec, victim, reference)


def score_name(spec: Any, score: Score) -> str:
    """What to call a score in a report."""
    if isinstance(spec, str):
        return spec
    if dataclasses.is_dataclass(score) and not isinstance(score, type):
        name = registry.name_of("score", score)
        squared = "squared " if getattr(score, "squared", False) else ""
        return f"{squared}{name}" if name else type(score).__name__
    return getattr(score, "__name__", type(score).__name__)


def _fields(spec: Any) -> dict[str, Any]:
    return {k: v for k, v in spec.items() if k != "name"} if hasattr(spec, "items") else {}


def _seen(score: Score, victim: Victim, x: Tensor) -> Score:
    """A score of the user's own, after one reading; a function may be anything."""
    words = f"the score {getattr(score, '__name__', type(score).__name__)} "
    try:
        with torch.no_grad():
            values = score(victim, x[:1], generator=new_generator(0))
    except RobustVAEError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{words}must take (victim, x, generator=...), and raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(values, Tensor) or values.shape != (1,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ConfigError(f"{words}must give a number for each input, (B,), got {got} for one")
    return score
