"""A search: a random walk that keeps what is better."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.perturb import Ball, SearchResult
from robustvae.registry import register
from robustvae.seeding import randn


@register("search", "random-walk")
@final
@dataclass(frozen=True)
class RandomWalk:
    """Step at random, and stay where the score is higher.

    Args:
        steps: Steps of each row.
    """

    steps: int = 100
    reads_gradients = False

    def __call__(self, score, x: Tensor, ball: Ball, *, generator: torch.Generator) -> SearchResult:
        """Walk around each of `x`, (B, C, H, W)."""
        rows = torch.arange(len(x), device=x.device)
        y, step = x, float(torch.as_tensor(ball.radius).min()) / x[0].numel() ** 0.5
        with torch.no_grad():
            best = score(y, rows)
            for _ in range(self.steps):
                noise = randn(*x.shape, like=x, generator=generator)
                candidate = ball.project(x, y + step * noise)
                value = score(candidate, rows)
                higher = value > best
                y = torch.where(higher.view(-1, 1, 1, 1), candidate, y)
                best = torch.where(higher, value, best)
        unknown = torch.full_like(best, float("nan"))  # it has no gradients to speak of
        queries = torch.full_like(rows, self.steps + 1)
        return SearchResult(y, best, unknown, unknown, queries)
