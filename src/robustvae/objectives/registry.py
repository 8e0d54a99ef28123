"""Objectives by name."""

from __future__ import annotations

from typing import Any

from robustvae import registry
from robustvae.arguments import checked
from robustvae.objectives.base import Objective


def names() -> list[str]:
    """Names that `create` knows, sorted.

    Examples:
        >>> import robustvae as rv
        >>> "elbo" in rv.objectives.names()
        True
    """
    return registry.names("objective")


@checked()
def create(name: str, **options: Any) -> Objective:
    """Make an objective.

    Args:
        name: One of `names()`, or `package.module:Name`.
        options: The objective's own arguments, such as `beta`; a `base` may be given as a spec.

    Raises:
        UnknownNameError: Unknown objective or option.
        ConfigError: A `base` without a name.
        RangeError: An option out of range.

    Examples:
        >>> import robustvae as rv
        >>> rv.objectives.create("elbo", beta=2.0).beta
        2.0
        >>> rv.objectives.create("mixup", base={"name": "elbo", "beta": 2.0}).base.beta
        2.0
    """
    objective: Objective = registry.build("objective", {"name": name, **options})
    return objective
