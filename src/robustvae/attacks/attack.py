"""An attack is a goal, a search and a ball; what the search returns is judged here, once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from robustvae.attacks.goals import Goal, bound, reported
from robustvae.data.verbs import reads_inputs
from robustvae.defenses import Victim
from robustvae.display import three_lines
from robustvae.errors import (
    ModelError,
    RobustVAEError,
    check_images,
    check_type,
    is_out_of_memory,
    single_line,
)
from robustvae.models.base import check_weights, frozen, widened
from robustvae.models.layout import channels_last
from robustvae.perturb import Ball, Score, SearchResult
from robustvae.records import failure, failures_of, pieces
from robustvae.registry import build_fields, family_base
from robustvae.seeding import by_row, split

_CHUNK = 250


@family_base("search")
@runtime_checkable
class Search(Protocol):
    """How an attacker looks: any way to raise a score within a ball.

    A search may say of itself `reads_gradients = False`: it asks for none, so that it costs less.
    Its numbers of `steps` and `restarts`, where it has them, say how many scores it takes.
    """

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Look around each of `x`, (B, C, H, W)."""
        ...


@final
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
class AttackResult:
    """What an attack found, one row per input; every number is recomputed from `x_adv`.

    Attributes:
        x_adv: Attacked images, in the ball and its box, (B, C, H, W).
        size: ||x_adv - x|| in the ball's norm, in pixel units, (B,).
        score: The goal's score of `x_adv`, (B,).
        status: "ok", or "inconclusive" where the search met no gradient but 0, or no score that
            is a number: then nothing was learned about that input, least of all robustness; or
            "failed: " and what the victim raised: then `x_adv` is the input itself, and `score`
            NaN.
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

    @property
    def failures(self) -> dict[int, str]:
        """Why inputs failed, by their place."""
        return failures_of(self.status)


@final
@dataclass(frozen=True)
class Attack:
    """Goal x search x ball; called on a victim and its inputs.

    While it runs the model is in evaluation mode with frozen weights; mode, gradients, memory
    layout and the caller's grad mode are restored, and no global random state is touched.

    Args:
        goal: What the attacker wants, or its spec.
        search: How it looks, or its spec.
        ball: What it may do.

    Raises:
        UnknownNameError: A spec that names no goal or search.
        DtypeError: Something else than these.

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
    search: Search | AimedSearch
    ball: Ball

    def __post_init__(self) -> None:
        """Validate the fields."""
        build_fields(self, goal="goal")
        if not isinstance(self.search, AimedSearch):
            build_fields(self, search="search")
        check_type(self.ball, "ball", Ball)

    @reads_inputs("x", of="victim")
    def __call__(
        self,
        victim: Victim,
        x: Tensor,
        *,
        generator: torch.Generator,
        rows: Sequence[int] | None = None,
    ) -> AttackResult:
        """Attack each of `x`.

        What is drawn for an input follows from the generator and the input's own number, so that
        its row is the same alone, in any batch and in any order, up to the rounding of batches of
        other shapes. An input for which the victim raises, where it does not for all, costs the
        others nothing: its row says so in `status`, and `failures` has the reason.

        Args:
            victim: What is attacked; point at a defended one for a defense-aware attack.
            x: Images in the ball's box, (B, C, H, W), or whatever `as_images` reads.
            generator: Spent by starts, noises and the defense.
            rows: The inputs' own numbers, (B,) whole; None for numbers that follow from the
                inputs' content. See `robustvae.seeding.row_numbers`.

        Raises:
            ShapeError: Images the model cannot read, or radii for another number of them.
            DtypeError: Images of another type than the model.
            RangeError: Pixels outside the ball's box.
            NonFiniteError: A pixel or a weight that is not finite.
            Exception: What the victim raises for every input.
        """
        check_question(victim, x, self.ball)
        streams = by_row(generator, "attack", self.ball.clip(x.detach()), rows)
        state = streams.get_state()

        def some(places: Sequence[int]) -> AttackResult:
            streams.set_state(state)  # a batch that failed may have spent some of it
            which = list(places)
            ball = self.ball.rows(torch.tensor(which))
            attack = self if ball is self.ball else replace(self, ball=ball)
            part = x if len(which) == len(x) else x[which]
            return attack.run(victim, part, generator=streams.part(which))

        result = nothing_found(x)
        for places, part in pieces(len(x), some):
            if isinstance(part, BaseException):
                part = nothing_found(x[list(places)], failure(part))
            result = part if len(places) == len(x) else put_rows(result, places, part)
        if result.failures and getattr(self.search, "shares_change", False):
            # the change is one for all: that of the inputs which can be attacked
            others = [place for place in range(len(x)) if place not in result.failures]
            result = put_rows(result, others, some(others))
        return result

    def run(
        self,
        victim: Victim,
        x: Tensor,
        *,
        generator: torch.Generator,
        rows: Sequence[int] | None = None,
    ) -> AttackResult:
        """As by calling it, but all inputs at once: what the victim raises for any is raised.

        Args:
            victim: As when called.
            x: Images in the ball's box, (B, C, H, W).
            generator: As when called.
            rows: As when called.

        Raises:
            Exception: As when called, and what the victim raises.
        """
        with ready(victim, x, self.ball) as clean:
            streams = by_row(generator, "attack", clean, rows)
            for_search, for_starts, for_score = split(streams, 3)
            victim_seen, search = aimed(self.search, victim)
            victim_seen = in_wide_type(victim_seen, clean)
            score = bound(self.goal, victim_seen, clean, generator=for_search)
            with _search_errors(victim):
                result = search(score, clean, self.ball, generator=for_starts)
            x_adv = self.ball.project(clean, result.y).contiguous()
            x_adv = as_they_occur(victim.vae, self.ball, clean, x_adv)
            value = self._score(victim, clean, x_adv, for_score)
        blind = (result.gradient_norm == 0) | ~result.score.isfinite() | ~value.isfinite()
        return AttackResult(
            x_adv,
            self.ball.size(x, x_adv),
            value,
            tuple("inconclusive" if row else "ok" for row in blind.tolist()),
            result.queries,
            result.gradient_norm,
            result.zero_gradients,
        )

    def score(
        self,
        victim: Victim,
        x: Tensor,
        x_adv: Tensor,
        *,
        generator: torch.Generator,
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """The goal's reported score of some images, (B,), by fresh noise where there is any.

        Args:
            victim: What is attacked.
            x: Clean images, (B, C, H, W).
            x_adv: Attacked images, (B, C, H, W).
            generator: Spent by the goal and the defense.
            rows: The inputs' own numbers, as when attacking.
        """
        with ready(victim, x, self.ball) as clean:
            check_images(x_adv, victim.vae.image_shape, name="x_adv", low=None, high=None)
            streams = by_row(generator, "score", clean, rows)
            return self._score(victim, clean, x_adv.detach(), streams)

    def _score(
        self, victim: Victim, x: Tensor, x_adv: Tensor, generator: torch.Generator
    ) -> Tensor:
        score = reported(self.goal, victim, x, generator=generator)
        rows = torch.arange(len(x), device=x.device).split(_CHUNK)
        with torch.no_grad():
            return torch.cat([score(x_adv[part], part) for part in rows])


def as_they_occur(vae: nn.Module, ball: Ball, x: Tensor, y: Tensor) -> Tensor:
    """Points of a ball where inputs occur: whole numbers of the unit of a discrete `InputSpace`.

    Searches move values continuously. What they find is rounded to the nearest whole number, or
    towards the clean input where that would leave the ball.

    Args:
        vae: The model; one without a space, or with one that is not discrete, reads any value.
        ball: Where the points must stay.
        x: Clean inputs in [0, 1], (B, C, H, W).
        y: Points of the ball, (B, C, H, W).

    Examples:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from robustvae.attacks.attack import as_they_occur
        >>> from robustvae.data import InputSpace
        >>> from robustvae.perturb import Ball
        >>> counts = SimpleNamespace(space=InputSpace((2,), high=10, discrete=True))
        >>> x = torch.tensor([[[[0.1, 0.5]]]])
        >>> as_they_occur(counts, Ball("l0", 2), x, x + torch.tensor([0.28, 0.02]))
        tensor([[[[0.4000, 0.5000]]]])
    """
    space = getattr(vae, "space", None)
    if space is None or not space.discrete:
        return y
    before = space.to_model(x).reshape(x.shape)
    change = space.to_model(y).reshape(x.shape) - before

    def at(steps: Tensor) -> Tensor:
        # values that do not change stay as they are, to the last bit
        return torch.where(steps == 0, x, space.from_model(before + steps).clamp(0, 1))

    nearest = at(change.round())
    inward = at((change * (1 + 1e-6)).trunc())  # 2.9999999 steps are 3 but for rounding
    inside = ball.contains(x, nearest).view(-1, *(1,) * (x.ndim - 1))
    return torch.where(inside, nearest, inward)


def nothing_found(x: Tensor, status: str = "inconclusive") -> AttackResult:
    """The outcome of an attack that could not be run: the inputs themselves, without a score."""
    column = torch.full((len(x),), torch.nan, dtype=x.dtype, device=x.device)
    return AttackResult(
        x_adv=x.clone(),
        size=torch.zeros_like(column),
        score=column,
        status=(status,) * len(x),
        queries=torch.zeros_like(column).long(),
        gradient_norm=column,
        zero_gradients=column,
    )


def take_rows(result: AttackResult, rows: Sequence[int]) -> AttackResult:
    """Some rows of a result, in their order."""
    index = torch.tensor(list(rows), dtype=torch.long, device=result.x_adv.device)
    values: dict[str, Any] = {}
    for field in fields(result):
        value = getattr(result, field.name)
        values[field.name] = (
            value[index] if isinstance(value, Tensor) else tuple(value[row] for row in rows)
        )
    return AttackResult(**values)


def put_rows(result: AttackResult, rows: Sequence[int], part: AttackResult) -> AttackResult:
    """A result with some rows replaced."""
    index = torch.tensor(rows, device=result.x_adv.device)
    values: dict[str, Any] = {}
    for field in fields(result):
        value, new = getattr(result, field.name), getattr(part, field.name)
        if isinstance(value, Tensor):
            values[field.name] = value.index_copy(0, index, new.to(value))
        else:
            words = list(value)
            for row, word in zip(rows, new, strict=True):
                words[row] = word
            values[field.name] = tuple(words)
    return AttackResult(**values)


@runtime_checkable
class AimedSearch(Protocol):
    """A search that looks at the victim first: through another gradient, or by its defense."""

    def aim(self, victim: Victim) -> tuple[Victim, Search]:
        """The victim that the score is bound to while searching, and the search itself."""
        ...


def aimed(search: Search | AimedSearch, victim: Victim) -> tuple[Victim, Search]:
    """What a search looks at and how, after it has seen the victim.

    The result is judged by `victim` whatever the search looked at.
    """
    while isinstance(search, AimedSearch):
        victim, search = search.aim(victim)
    return victim, search


def in_wide_type(victim: Victim, x: Tensor) -> Victim:
    """What a search looks at: a model in half precision in float32, which has finer steps.

    The model itself where its own code insists on half precision. The result is judged by the
    model as it is deployed.

    Args:
        victim: What is attacked.
        x: Inputs, (B, C, H, W), of which one is tried.
    """
    try:
        wide = widened(victim.vae)
        if wide is victim.vae:
            return victim
        with torch.no_grad():
            wide.decode(wide.encode(x[:1]).mean).mean  # noqa: B018
    except Exception:  # a stranger's code may raise anything in a type that it was not written for
        return victim
    return replace(victim, vae=wide)


@contextlib.contextmanager
def _search_errors(victim: Victim) -> Iterator[None]:
    """Within: a search; what a foreign model raises in its backward pass comes out by name."""
    try:
        yield
    except RobustVAEError:
        raise
    except Exception as error:  # whatever a user's code raises
        if not getattr(victim.vae, "is_foreign", False) or is_out_of_memory(error):
            raise
        raise ModelError(
            f"searching by the gradient of the wrapped model raised {type(error).__name__}: "
            f"{single_line(error)}; mend its backward pass (checkpoint(..., use_reentrant=False)), "
            "or use a search without gradients (SquareSearch)"
        ) from error


def check_question(victim: Victim, x: Tensor, ball: Ball) -> list[nn.Module]:
    """The victim's networks, after a look at the question: a wrong one is the fault of the call.

    Raises:
        RobustVAEError: Inputs, radii or weights that no attack can begin with.
    """
    check_type(victim, "victim", Victim)
    check_images(x, victim.vae.image_shape, low=ball.low, high=ball.high)
    victim.vae.check(x)
    ball.radii(x)
    models: list[nn.Module] = [victim.vae]
    if isinstance(victim.classifier, nn.Module):
        models.append(victim.classifier)
    for model in models:
        check_weights(model)
    return models


@contextlib.contextmanager
def ready(victim: Victim, x: Tensor, ball: Ball) -> Iterator[Tensor]:
    """Within: a victim that can be attacked, and its checked inputs; afterwards all as it was.

    The model and a classifier that is a module are in evaluation mode, frozen, and laid out for
    speed; gradients are on whatever the caller's mode.
    """
    models = check_question(victim, x, ball)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for model in models:
            stack.enter_context(frozen(model))
            stack.enter_context(channels_last(model))
        clean = x.detach().clone(memory_format=torch.contiguous_format)
        # round-off beyond the box, which the check lets pass
        yield ball.clip(clean)
