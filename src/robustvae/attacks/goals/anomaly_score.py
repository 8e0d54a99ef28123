"""Raise or lower the score that a detector computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from robustvae.attacks.goals.base import Readings
from robustvae.defenses import Victim
from robustvae.errors import check_count, check_type
from robustvae.perturb import Score
from robustvae.registry import build, register


@register("goal", "anomaly-score")
@final
@dataclass(frozen=True)
class AnomalyScore:
    """Raise an anomaly score, so that a normal input is rejected, or lower it, to hide a fault.

    Args:
        score: The deployed score: a member of the family "score", or its spec. It is what is
            reported, and by it restarts are kept.
        raises: Whether the attacker raises it (False alarms) or lowers it (evasion).
        search: Another score to climb where the deployed one has no useful gradient, such as one
            that is rounded; None climbs the deployed one.
        draws: Draws of the victim's randomness that are averaged, where it has any.

    Raises:
        UnknownNameError: A spec that names no score.
        RangeError: `draws` below 1.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> score = rv.AnomalyScore(raises=False).bind(rv.Victim(vae), x, generator=g)
        >>> bool((score(x, torch.arange(3)) < 0).all())
        True
    """

    score: Any = "anomaly-score"
    raises: bool = True
    search: Any = None
    draws: int = 8

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_type(self.raises, "raises", bool)
        check_count(self.draws, "draws")
        for spec in (self.score, self.search):
            if spec is not None:
                build("score", spec)

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The search score, up or down; see `Goal.bind`."""
        return self._bound(self.score if self.search is None else self.search, victim, x, generator)

    def report(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The deployed score, up or down; in the form of `Goal.bind`."""
        return self._bound(self.score, victim, x, generator)

    def _bound(self, spec: Any, victim: Victim, x: Tensor, generator: torch.Generator) -> Score:
        measure = build("score", spec)

        def read(y: Tensor, *, generator: torch.Generator) -> Tensor:
            value: Tensor = measure(victim, y, generator=generator)
            return value

        # scores may draw although the victim does not: two readings tell
        readings = Readings(read, victim, x, self.draws, generator, probe=True)
        sign = 1.0 if self.raises else -1.0
        return lambda y, rows: sign * readings(y, rows).mean(0)
