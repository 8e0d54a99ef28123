"""Objectives by name."""

from __future__ import annotations

import inspect
from typing import Any

from robustvae.errors import check_choice, unknown
from robustvae.objectives.base import Objective
from robustvae.objectives.elbo import ELBO
from robustvae.objectives.total_correlation import TotalCorrelation

OBJECTIVES: dict[str, type[Objective]] = {
    "elbo": ELBO,
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
        options: The objective's own arguments, such as `beta`.

    Raises:
        UnknownNameError: Unknown objective or option.
        RangeError: An option out of range.

    Examples:
        >>> import robustvae as rv
        >>> rv.objectives.create("elbo", beta=2.0)
        ELBO(beta=2.0, warmup=0, free_bits=0.0)
    """
    check_choice("objective", name, OBJECTIVES)
    accepted = list(inspect.signature(OBJECTIVES[name]).parameters)
    for option in options:
        if option not in accepted:
            raise unknown(f"option of objective {name!r}", option, accepted)
    return OBJECTIVES[name](**options)
