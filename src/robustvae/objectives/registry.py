"""Objectives by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from robustvae.errors import ConfigError, check_choice, unknown
from robustvae.objectives.base import Objective
from robustvae.objectives.elbo import ELBO
from robustvae.objectives.mixup import Mixup
from robustvae.objectives.self_consistency import SelfConsistency, SelfSupervision
from robustvae.objectives.smooth_encoder import SmoothEncoder
from robustvae.objectives.spectral import SpectralRegularization
from robustvae.objectives.total_correlation import TotalCorrelation

OBJECTIVES: dict[str, type[Objective]] = {
    "elbo": ELBO,
    "mixup": Mixup,
    "self-consistency": SelfConsistency,
    "self-supervision": SelfSupervision,
    "smooth-encoder": SmoothEncoder,
    "spectral-regularization": SpectralRegularization,
    "total-correlation": TotalCorrelation,
}


def names() -> list[str]:
    """Names that `create` knows, sorted.

    Examples:
        >>> import robustvae as rv
        >>> "elbo" in rv.objectives.names()
        True
    """
    return sorted(OBJECTIVES)


def create(name: str, **options: Any) -> Objective:
    """Make an objective.

    Args:
        name: One of `names()`.
        options: The objective's own arguments, such as `beta`; a `base` may be given as a mapping
            of `name` and options.

    Raises:
        UnknownNameError: Unknown objective or option.
        ConfigError: A `base` without a name.
        RangeError: An option out of range.

    Examples:
        >>> import robustvae as rv
        >>> rv.objectives.create("elbo", beta=2.0)
        ELBO(beta=2.0, warmup=0, free_bits=0.0, input_noise=0.0, noise_warmup=0)
        >>> rv.objectives.create("mixup", base={"name": "elbo", "beta": 2.0}).base.beta
        2.0
    """
    check_choice("objective", name, OBJECTIVES)
    accepted = list(inspect.signature(OBJECTIVES[name]).parameters)
    for option in options:
        if option not in accepted:
            raise unknown(f"option of objective {name!r}", option, accepted)
    base = options.get("base")
    if isinstance(base, Mapping):
        if "name" not in base:
            raise ConfigError(f"the base of objective {name!r} wants a name, got {dict(base)!r}")
        options["base"] = create(**base)
    return OBJECTIVES[name](**options)
