"""What every search promises."""

from __future__ import annotations

import torch
from torch import Tensor

from robustvae.attacks.attack import Search
from robustvae.perturb import Ball
from robustvae.seeding import generator, randn
from robustvae.testing.contracts import close, member_of, require
from robustvae.testing.planted import gray_images


def check_search(
    search: Search | str, *, share: float = 0.9, norms: tuple[str, ...] = ("l2",)
) -> None:
    """Check a search's contract on a planted optimum: inside the ball, honest, and near the best.

    The score is a concave quadratic whose maximum over the ball is known.

    Args:
        search: The search, or its spec.
        share: Share of the planted optimum that it must reach; a gradient-free one reaches less.
        norms: Norms that it must work in.

    Raises:
        ContractError: A broken promise, in a sentence.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.testing import check_search
        >>> check_search(rv.ProjectedAscent(steps=30, restarts=2), norms=("l2", "linf"))
    """
    member: Search = member_of("search", search)
    what = f"the search {type(member).__name__}"
    require(isinstance(member, Search), f"{what} is not called as (score, x, ball, *, generator)")
    x = gray_images(3)
    slope = randn(*x.shape, like=x, generator=generator(11))

    def score(y: Tensor, rows: Tensor) -> Tensor:
        # even in the change, so that searches of second order see it too
        return ((y - x[rows]) * slope[rows]).flatten(1).sum(1).square()

    for norm in norms:
        ball = Ball(norm, 0.1)
        result = member(score, x, ball, generator=generator(0))
        require(result.y.shape == x.shape, f"{what} returns points of another shape")
        require(
            bool(ball.contains(x, result.y).all()), f"{what} leaves its {norm} ball: project last"
        )
        with torch.no_grad():
            again = score(result.y, torch.arange(len(x)))
        require(close(result.score, again, 1e-6), f"{what} reports scores that its points lack")
        require(bool((result.queries >= 1).all()), f"{what} counts no queries")
        length = slope.flatten(1).norm(dim=1) if norm == "l2" else slope.abs().flatten(1).sum(1)
        best = (0.1 * length).square()
        ratio = float((again / best).min())
        require(ratio >= share, f"{what} reaches {ratio:.2f} of the optimum in {norm}, not {share}")
