"""Searches that look at a defense through another one: transfer and surrogate gradients."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor

from robustvae.attacks.adaptive import Implicit, StraightThrough
from robustvae.defenses import PosteriorMean, Victim, seeks_mode
from robustvae.errors import UnsupportedError, check_choice
from robustvae.perturb import Ball, ProjectedAscent, Score, SearchResult
from robustvae.registry import build, register

GRADIENTS = ("implicit", "straight-through", "transfer")


@register("search", "through")
@final
@dataclass(frozen=True)
class Through:
    """A search that climbs the score of a stand-in; the victim itself judges what it finds.

    Args:
        search: The search, or its spec.
        gradient: "transfer" climbs the undefended model's score: what fools it may fool the
            defended one too. "straight-through" climbs the defended score by the encoder mean's
            gradient, for defenses that cannot be differentiated. "implicit" differentiates the
            mode itself, for mode searches.

    Raises:
        UnknownNameError: Any other gradient, or a spec that names no search.
        UnsupportedError: "implicit" where the victim's defense is not a mode search (when aimed).

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> victim = rv.Victim(vae, rv.HMC(steps=2))
        >>> search = rv.attacks.Through("projected-ascent:steps=3,restarts=1")
        >>> attack = rv.Attack(rv.MaximumDamage(), search, rv.Ball("l2", 0.5))
        >>> attack(victim, torch.rand(2, 1, 4, 4), generator=rv.generator(0)).status
        ('ok', 'ok')
    """

    search: Any = field(default_factory=ProjectedAscent)
    gradient: Literal["transfer", "straight-through", "implicit"] = "transfer"

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_choice("gradient", self.gradient, GRADIENTS)
        build("search", self.search)

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Never: a score alone does not show the defense that is to be replaced.

        Raises:
            UnsupportedError: Always; an `Attack` aims it at its victim first.
        """
        raise UnsupportedError("through needs the victim: use it in an Attack")

    @property
    def shares_change(self) -> bool:
        """Whether its search looks for one change of all inputs, as `Universal` does."""
        return bool(getattr(build("search", self.search), "shares_change", False))

    def aim(self, victim: Victim) -> tuple[Victim, Any]:
        """The stand-in, and the search that climbs it."""
        search = build("search", self.search)
        if self.gradient == "transfer":
            return dataclasses.replace(victim, defense=PosteriorMean()), search
        if self.gradient == "straight-through":
            return dataclasses.replace(victim, defense=StraightThrough(victim.defense)), search
        if not seeks_mode(victim.defense):
            raise UnsupportedError(
                f"gradient='implicit': {type(victim.defense).__name__} looks for no mode; use "
                "gradient='straight-through'"
            )
        return dataclasses.replace(victim, defense=Implicit(victim.defense)), search
