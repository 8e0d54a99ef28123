"""A suite: what darkens, by walking and by climbing."""

from robustvae.attacks.suite import Suite
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.registry import register
from robustvae_example.goal import Darkening
from robustvae_example.search import RandomWalk


@register("suite", "dark")
def dark() -> Suite:
    """Two attacks that darken the output, in one l2 ball."""
    members = (
        ("darkening, random walk", Darkening(), RandomWalk(steps=5)),
        ("darkening, ascent", Darkening(), ProjectedAscent(steps=3, restarts=1)),
    )
    return Suite("1", members, (Ball("l2", 0.5),))
