"""One shot: step to the boundary along the top eigenvectors of how fast the score turns up at x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.errors import check_count
from robustvae.jacobians import lanczos
from robustvae.perturb.ascent import Score, SearchResult, evaluate
from robustvae.perturb.ball import Ball
from robustvae.registry import register
from robustvae.seeding import by_row


@register("search", "one-shot")
@final
@dataclass(frozen=True)
class OneShot:
    """Steps of full radius along plus and minus the top eigenvectors of the score's Hessian at x.

    For a divergence that is 0 at x, such as `LatentShift`, half that Hessian is the pullback
    metric: J'J of the means for "means", plus that of the spreads for "wasserstein2". It is never
    formed: Lanczos on Hessian-vector products. A start is never needed, and no step is repeated.

    Warning:
        The score must be twice differentiable at x. ||g(x+d) - g(x)|| is not; its square is.

    Args:
        count: How many eigenvectors are tried, both ways each.
        steps: Dimension of the Krylov space; None for min(D, 4 count + 20).

    Raises:
        RangeError: A count below 1.

    References:
        [Khan23] Theorem 3.2.

    Examples:
        >>> from robustvae.perturb import Ball, OneShot
        >>> from robustvae.seeding import generator
        >>> import torch
        >>> x = torch.full((1, 1, 1, 2), 0.5)
        >>> wide = lambda y, rows: ((y - 0.5) * torch.tensor([1.0, 3.0])).square().flatten(1).sum(1)
        >>> found = OneShot()(wide, x, Ball("l2", 0.1), generator=generator(0))
        >>> (found.y - x).abs()
        tensor([[[[0.0000, 0.1000]]]])
    """

    count: int = 1
    steps: int | None = None

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_count(self.count, "count")
        if self.steps is not None:
            check_count(self.steps, "steps")

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Maximize `score` around each of `x` among 2 x `count` points."""
        rows = torch.arange(len(x), device=x.device)
        directions, products, norm = self.directions(score, x, generator=generator)
        shape = (-1,) + (1,) * (x.ndim - 1)
        reach = ball.reach(x).view(shape)
        best, highest = x.clone(), torch.full_like(x.flatten(1)[:, 0], -torch.inf)
        for k in range(self.count):
            # a quadratic cannot tell the two ends apart; the score itself can
            for sign in (1.0, -1.0):
                step = directions[:, k].sign() if ball.norm == "linf" else directions[:, k]
                if ball.norm == "linf":
                    step = step * x[0].numel() ** -0.5
                y = ball.project(x, x + sign * reach * step)
                value, _ = evaluate(score, y, rows, gradient=False)
                better = value > highest
                best = torch.where(better.view(shape), y, best)
                highest = torch.where(better, value, highest)
        queries = torch.full_like(rows, products + 2 * self.count)
        return SearchResult(best, highest, norm, (norm == 0).to(x), queries)

    def directions(
        self, score: Score, x: Tensor, *, generator: torch.Generator
    ) -> tuple[Tensor, int, Tensor]:
        """Top unit eigenvectors of the score's Hessian at each of `x`.

        Returns:
            Directions, (B, count, C, H, W); Hessian-vector products spent on each input; and the
            greatest norm of one, (B,), 0 where the score has no curvature that can be seen.
        """
        rows = torch.arange(len(x), device=x.device)
        y = x.detach().clone().requires_grad_()
        norms, cost = torch.zeros_like(x.flatten(1)[:, 0]), 0
        with torch.enable_grad():
            value = score(y, rows)
            slope = None
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value.sum(), y, create_graph=True, allow_unused=True)

        def hessian(v: Tensor) -> Tensor:
            nonlocal norms, cost
            cost += 1
            if slope is None or not slope.requires_grad:
                return torch.zeros_like(v)
            (product,) = torch.autograd.grad(
                slope, y, v.view_as(y).to(slope), retain_graph=True, allow_unused=True
            )
            product = torch.zeros_like(v) if product is None else product.detach().flatten(1)
            product = product.nan_to_num(0.0, 0.0, 0.0)  # a score with a corner there, as a norm
            norms = torch.maximum(norms, torch.linalg.vector_norm(product, dim=1))
            return product

        pairs = lanczos(
            hessian,
            x.flatten(1),
            count=self.count,
            steps=self.steps,
            generator=by_row(generator, "eigenvectors", x),
        )
        return pairs.vectors.view(len(x), self.count, *x.shape[1:]), cost, norms
