"""An attack is a goal, a search and a ball; what the search returns is judged here, once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from robustvae.attacks.goals import Goal
from robustvae.defenses import Victim
from robustvae.errors import check_images, check_type
from robustvae.models.base import check_weights, frozen
from robustvae.models.layout import channels_last
from robustvae.perturb import Ball, Score, SearchResult
from robustvae.registry import family_base
from robustvae.seeding import split

_CHUNK = 250


@family_base("search")
@runtime_checkable
class Search(Protocol):
    """How an attacker looks: any way to raise a score within a ball."""

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Look around each of `x`, (B, C, H, W)."""
        ...


@final
@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack found, one row per input; every number is recomputed from `x_adv`.

    Attributes:
        x_adv: Attacked images, in the ball and its box, (B, C, H, W).
        size: ||x_adv - x|| in the ball's norm, in pixel units, (B,).
        score: The goal's score of `x_adv`, (B,).
        status: "ok", or "inconclusive" where the search met no gradient but 0, or no score that
            is a number: then nothing was learned about that input, least of all robustness.
        queries: Scores that the search computed, (B,) int.
        gradient_norm: Greatest gradient norm met, (B,); NaN for searches without gradients.
        zero_gradients: Share of gradients that were exactly 0, (B,).

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> search = rv.ProjectedAscent(steps=5, restarts=2)
        >>> attack = rv.Attack(rv.MaximumDamage(), search, rv.Ball("l2", 0.5))
        >>> found = attack(rv.Victim(vae), torch.rand(2, 1, 4, 4), generator=rv.generator(0))
        >>> found.status, found.x_adv.shape
        (('ok', 'ok'), torch.Size([2, 1, 4, 4]))
    """

    x_adv: Tensor
    size: Tensor
    score: Tensor
    status: tuple[str, ...]
    queries: Tensor
    gradient_norm: Tensor
    zero_gradients: Tensor


@final
@dataclass(frozen=True)
class Attack:
    """Goal x search x ball; called on a victim and its inputs.

    While it runs the model is in evaluation mode with frozen weights; mode, gradients, memory
    layout and the caller's grad mode are restored, and no global random state is touched.

    Args:
        goal: What the attacker wants.
        search: How it looks.
        ball: What it may do.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> search = rv.ProjectedAscent(steps=5, restarts=2)
        >>> attack = rv.Attack(rv.MaximumDamage(), search, rv.Ball("l2", 0.5))
        >>> x = torch.rand(3, 1, 4, 4)
        >>> found = attack(rv.Victim(vae), x, generator=rv.generator(0))
        >>> bool((found.size <= 0.5 + 1e-6).all())
        True
    """

    goal: Goal
    search: Search
    ball: Ball

    def __post_init__(self) -> None:
        """Refuse what is no goal, no search or no ball."""
        check_type(self.goal, "goal", Goal)
        check_type(self.search, "search", Search)
        check_type(self.ball, "ball", Ball)

    def __call__(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> AttackResult:
        """Attack each of `x`.

        Args:
            victim: What is attacked; point at a defended one for a defense-aware attack.
            x: Images in the ball's box, (B, C, H, W).
            generator: Spent by starts, noises and the defense.

        Raises:
            ShapeError: Images the model cannot read, or radii for another number of them.
            DtypeError: Images of another type than the model.
            RangeError: Pixels outside the ball's box.
            NonFiniteError: A pixel or a weight that is not finite.
        """
        for_search, for_starts, for_score = split(generator, 3)
        with ready(victim, x, self.ball) as clean:
            goal = self.goal.bind(victim, clean, generator=for_search)
            found = self.search(goal, clean, self.ball, generator=for_starts)
            x_adv = self.ball.project(clean, found.y).contiguous()
            score = self._score(victim, clean, x_adv, for_score)
        blind = (found.gradient_norm == 0) | ~found.score.isfinite() | ~score.isfinite()
        return AttackResult(
            x_adv,
            self.ball.size(x, x_adv),
            score,
            tuple("inconclusive" if row else "ok" for row in blind.tolist()),
            found.queries,
            found.gradient_norm,
            found.zero_gradients,
        )

    def score(
        self, victim: Victim, x: Tensor, x_adv: Tensor, *, generator: torch.Generator
    ) -> Tensor:
        """The goal's score of given images, (B,), by fresh noise where there is any.

        Args:
            victim: What is attacked.
            x: Clean images, (B, C, H, W).
            x_adv: Attacked images, (B, C, H, W).
            generator: Spent by the goal and the defense.
        """
        with ready(victim, x, self.ball) as clean:
            check_images(x_adv, victim.vae.image_shape, name="x_adv", low=None, high=None)
            return self._score(victim, clean, x_adv.detach(), generator)

    def _score(
        self, victim: Victim, x: Tensor, x_adv: Tensor, generator: torch.Generator
    ) -> Tensor:
        score = self.goal.bind(victim, x, generator=generator)
        rows = torch.arange(len(x), device=x.device).split(_CHUNK)
        with torch.no_grad():
            return torch.cat([score(x_adv[part], part) for part in rows])


@contextlib.contextmanager
def ready(victim: Victim, x: Tensor, ball: Ball) -> Iterator[Tensor]:
    """Within: a victim that can be attacked, and its checked inputs; afterwards all as it was.

    The model and a classifier that is a module are in evaluation mode, frozen, and laid out for
    speed; gradients are on whatever the caller's mode.
    """
    check_type(victim, "victim", Victim)
    check_images(x, victim.vae.image_shape, low=ball.low, high=ball.high)
    victim.vae.check(x)
    ball.radii(x)
    models: list[nn.Module] = [victim.vae]
    if isinstance(victim.classifier, nn.Module):
        models.append(victim.classifier)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for model in models:
            check_weights(model)
            stack.enter_context(frozen(model))
            stack.enter_context(channels_last(model))
        yield x.detach().clone(memory_format=torch.contiguous_format)
