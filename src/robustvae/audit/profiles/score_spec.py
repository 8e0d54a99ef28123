"""The score that an anomaly profile decides by, from its spec."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from torch import Tensor

from robustvae import registry
from robustvae.defenses import Victim
from robustvae.errors import ConfigError, NonFiniteError, RobustVAEError, unknown
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


def read_score(score: Score, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Tensor:
    """The score of each input, (B,), of whoever's making.

    Raises:
        ConfigError: Not one number of a floating type for each input.
        NonFiniteError: NaN, which neither lies above a threshold nor below it.
    """
    values = score(victim, x, generator=generator)
    words = f"the score {_name(score)} must give a floating-point number for each input, (B,), got "
    if not isinstance(values, Tensor):
        raise ConfigError(f"{words}{type(values).__name__} for {len(x)}")
    if values.shape != (len(x),):
        raise ConfigError(f"{words}{tuple(values.shape)} for {len(x)}")
    if not values.is_floating_point():
        raise ConfigError(f"{words}{values.dtype}: use .float()")
    if bool(values.isnan().any()):
        count = int(values.isnan().sum())
        raise NonFiniteError(f"the score {_name(score)} is NaN for {count} of {len(x)} inputs")
    return values


def check_rows(score: Score, victim: Victim, x: Tensor) -> None:
    """Raise where a score reads other rows of its batch, or changes what it is given.

    Args:
        score: Of whoever's making.
        victim: Whose score it is.
        x: A few inputs, (B, ...).

    Raises:
        ConfigError: It does; attacks and thresholds would then speak of batches, not of inputs.
    """
    with torch.no_grad():
        before = x.clone()
        first, second = (
            read_score(score, victim, x, generator=new_generator(seed)) for seed in (0, 1)
        )
        if not torch.equal(x, before):
            x.copy_(before)
            raise ConfigError(f"the score {_name(score)} changes its inputs in place: clone them")
        if not torch.equal(first, second):  # a random one cannot be compared so
            return
        alone = torch.cat(
            [read_score(score, victim, row, generator=new_generator(0)) for row in x.split(1)]
        )
    scale = first.abs().clamp_min(1e-6)
    # batches of other shapes round otherwise, by far less than this
    if bool(((alone - first).abs() > 1e-3 * scale).any()):
        raise ConfigError(
            f"the score {_name(score)} of an input depends on the inputs beside it: compute each "
            "row's number from that row alone"
        )


def _name(score: Any) -> str:
    return str(getattr(score, "__name__", type(score).__name__))


def _seen(score: Score, victim: Victim, x: Tensor) -> Score:
    """A score of the user's own, after one reading; a function may be anything."""
    try:
        with torch.no_grad():
            read_score(score, victim, x[:1].clone(), generator=new_generator(0))
    except RobustVAEError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the score {_name(score)} must take (victim, x, generator=...), and raised "
            f"{type(error).__name__}: {error}"
        ) from error
    return score
