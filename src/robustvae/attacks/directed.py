"""Ascent from starts that are chosen: towards other images, and along top eigenvectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from robustvae.defenses import Victim
from robustvae.errors import ShapeError, UnsupportedError, check_choice
from robustvae.perturb import Ball, OneShot, ProjectedAscent, Score, SearchResult
from robustvae.perturb.ascent import ascend_from
from robustvae.registry import build, register
from robustvae.seeding import by_row, randn, split

STARTS = ("both", "eigenvectors", "images")
_EIGENVECTORS = 2  # always as many, so that more starts go on where fewer ended


@register("search", "directed-ascent")
@final
@dataclass(frozen=True)
class DirectedAscent:
    """Projected ascent from the edge of the ball: towards other images, along top eigenvectors.

    Eigenvectors are those of the score's Hessian at x, of which a latent divergence's is the
    pullback metric. Other images are those of `pool`, or the victim's own decoded draws of its
    prior. Random starts miss directions that hardly any of them see; these do not. Starts come in
    a fixed order, first those along eigenvectors, to both sides, and between them those towards
    images, so that more of them never find less, and an input's follow from its own number.

    Args:
        search: How each start climbs: a `ProjectedAscent`, or its spec; its `restarts` counts the
            starts.
        towards: "eigenvectors", "images", or "both" in turn.
        pool: Other images, (N, C, H, W); None for those that the model makes.

    Raises:
        UnknownNameError: Any other `towards`, or a spec that names no search.
        UnsupportedError: A search other than projected ascent (when aimed).
        ShapeError: A pool of another shape than the inputs (when called).

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> search = rv.attacks.DirectedAscent("projected-ascent:steps=5,restarts=3")
        >>> attack = rv.Attack(rv.LatentShift(), search, rv.Ball("l2", 0.5))
        >>> attack(rv.Victim(vae), torch.rand(2, 1, 4, 4), generator=rv.generator(0)).status
        ('ok', 'ok')
    """

    search: Any = "projected-ascent:restarts=6"
    towards: str = "both"
    pool: Tensor | None = None

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_choice("towards", self.towards, STARTS)
        build("search", self.search)

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Never: a score alone does not show the model whose images it starts towards.

        Raises:
            UnsupportedError: Always; an `Attack` aims it at its victim first.
        """
        raise UnsupportedError("directed-ascent needs the victim: use it in an Attack")

    def aim(self, victim: Victim) -> tuple[Victim, _Directed]:
        """The victim as it is, and the search that knows its images."""
        search = build("search", self.search)
        if not isinstance(search, ProjectedAscent):
            raise UnsupportedError(
                f"directed-ascent: {type(search).__name__} takes no starts; use projected-ascent"
            )
        return victim, _Directed(self, search, victim)


@dataclass(frozen=True)
class _Directed:
    spec: DirectedAscent
    search: ProjectedAscent
    victim: Victim

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Climb from the chosen starts of each input."""
        count = self.search.restarts
        for_images, for_vectors = split(by_row(generator, "directed", x), 2)
        steps: dict[str, list[Tensor]] = {"eigenvectors": [], "images": []}
        gradients = 0
        if self.spec.towards != "images":
            finder = OneShot(count=_EIGENVECTORS)
            directions, gradients, _ = finder.directions(score, x, generator=for_vectors)
            for k in range(_EIGENVECTORS):
                steps["eigenvectors"] += [directions[:, k], -directions[:, k]]
        if self.spec.towards != "eigenvectors":
            steps["images"] = [image - x for image in self._images(x, count, for_images)]
        order = [step for pair in zip(*_padded(steps), strict=True) for step in pair]
        chosen = [step for step in order if step is not None][:count]
        shape = (-1,) + (1,) * (x.ndim - 1)
        reach = ball.radii(x).view(shape) * (x[0].numel() ** 0.5 if ball.norm == "linf" else 1.0)
        begin = []
        for step in chosen:
            unit = step.sign() if ball.norm == "linf" else step
            unit = unit / unit.flatten(1).norm(dim=1).clamp_min(1e-30).view(shape)
            begin.append(ball.project(x, x + reach * unit))
        result = ascend_from(score, x, ball, self.search, torch.stack(begin, 1))
        return SearchResult(
            result.y,
            result.score,
            result.gradient_norm,
            result.zero_gradients,
            result.queries + gradients,
        )

    def _images(self, x: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
        """As many other images for each input, each (B, C, H, W)."""
        pool, vae = self.spec.pool, self.victim.vae
        if pool is not None:
            if pool.ndim != x.ndim or pool.shape[1:] != x.shape[1:] or not len(pool):
                raise ShapeError(
                    f"pool must be (N, {', '.join(map(str, x.shape[1:]))}) with N >= 1, "
                    f"got {tuple(pool.shape)}"
                )
            return [pool[k % len(pool)].to(x).expand_as(x) for k in range(count)]
        with torch.no_grad():
            return [
                vae.decode(randn(len(x), vae.latent, like=x, generator=generator)).mean
                for _ in range(count)
            ]


def _padded(steps: dict[str, list[Tensor]]) -> list[list[Any]]:
    """The lists of equal length, filled up with None."""
    longest = max(map(len, steps.values()))
    return [part + [None] * (longest - len(part)) for part in steps.values()]
