"""How defenses look for a mode: one of several searches, and how attacks see through it."""

from __future__ import annotations

import abc
import functools
from typing import Literal, Protocol, cast

import torch
from torch import Tensor

from robustvae.defenses.defense import Cost
from robustvae.defenses.targets import fisher
from robustvae.errors import UnsupportedError, check_choice, check_count, check_positive
from robustvae.mcmc import LogDensity, Mode, gauss_newton, implicit, lbfgs, mode_search
from robustvae.models.base import VAE
from robustvae.seeding import draw

Start = Literal["mean", "zero", "both", "prior"]
Method = Literal["adam", "lbfgs", "gauss-newton"]
Gradient = Literal["unrolled", "implicit"]


class Search(Protocol):
    """What a defense that looks for a mode says of its search; the fields of its own docstring."""

    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def rate(self) -> float: ...  # noqa: D102
    @property
    def gradient(self) -> Gradient: ...  # noqa: D102
    @property
    def chunk(self) -> int: ...  # noqa: D102
    @property
    def method(self) -> Method: ...  # noqa: D102
    @property
    def start(self) -> Start: ...  # noqa: D102
    @property
    def starts(self) -> int: ...  # noqa: D102


class Climbing(abc.ABC):
    """A defense whose latent is where its searches end: what it costs, and whether it is random."""

    start: Start

    @abc.abstractmethod
    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""

    @property
    def gradients(self) -> int:
        """Gradient evaluations spent on each image; Gauss-Newton's matrices are left out."""
        return spent(cast(Search, self))

    @property
    def is_random(self) -> bool:
        """Whether two calls on one image may differ: from draws of the prior they may."""
        return self.start == "prior"

    @property
    def cost(self) -> Cost:
        """What one image takes."""
        return Cost(self.gradients, 1)


def check_search(search: Search) -> None:
    """Raise unless these settings, whose `start` is a known one, make a search."""
    check_count(search.starts, "starts")
    # From the prior: the least n with n - n // 4 >= starts, so that `shares` gives each search one.
    least = {"both": 2, "prior": (4 * search.starts - 1) // 3}.get(search.start, 1)
    check_count(search.steps, "steps", least=least)
    check_choice("mode search", search.method, ("adam", "lbfgs", "gauss-newton"))
    check_choice("gradient", search.gradient, ("unrolled", "implicit"))
    check_positive(search.rate, "rate")
    check_count(search.chunk, "chunk")


def shares(search: Search) -> tuple[int, int, int]:
    """How many searches there are, the gradients of each, and of one more from the best end.

    Draws of the prior are scouts: they get three quarters of the steps.
    """
    count = {"both": 2, "prior": search.starts}.get(search.start, 1)
    last = search.steps // 4 if search.start == "prior" else 0
    return count, (search.steps - last) // count, last


def spent(search: Search) -> int:
    """Gradients of all searches."""
    count, each, last = shares(search)
    return count * each + last


def climb(
    search: Search,
    vae: VAE,
    target: LogDensity,
    mean: Tensor,
    *,
    graph: bool,
    generator: torch.Generator,
) -> Tensor:
    """The highest point that searches from one or several starts meet.

    Args:
        search: It begins by `start` "mean" at the encoder's means, "zero" at the prior's
            mean, "both" at each, "prior" at draws of the prior, the best of whose ends is climbed
            from once more; `shares` divides its `steps`.
        vae: The model that the target judges by.
        target: Latents (B, d) to log densities (B,).
        mean: The encoder's means, (B, d).
        graph: Keep a graph.
        generator: Spent by draws of the prior.

    Returns:
        Latents, (B, d).

    Raises:
        UnsupportedError: A graph through the steps of L-BFGS or Gauss-Newton.
    """
    unrolled = graph and search.gradient == "unrolled"
    if unrolled and search.method != "adam":
        raise UnsupportedError(
            f"no gradient flows through the steps of {search.method!r}: give gradient='implicit'"
        )
    count, each, last = shares(search)

    def run(z: Tensor, steps: int) -> Mode:
        if search.method == "adam":
            return mode_search(target, z, steps=steps, rate=search.rate, graph=unrolled)
        if search.method == "lbfgs":
            return lbfgs(target, z, steps=steps)
        return gauss_newton(target, lambda z: fisher(vae, z), z, steps=steps)

    prior = vae.prior()
    if search.start == "prior":
        begin = [draw(prior, (len(mean),), generator=generator).to(mean) for _ in range(count)]
    else:
        begin = [mean] if search.start == "mean" else [prior.mean.to(mean).expand_as(mean)]
        begin += [mean] if search.start == "both" else []
    best = functools.reduce(_better, (run(z, each) for z in begin))
    if last:
        best = run(best.z, last)
    return implicit(target, best.z) if graph and not unrolled else best.z


def _better(one: Mode, other: Mode) -> Mode:
    """Of each row the higher; a NaN is lower than anything."""
    higher = (other.log_density > one.log_density) | one.log_density.isnan()
    return Mode(
        torch.where(higher.unsqueeze(1), other.z, one.z),
        torch.where(higher, other.log_density, one.log_density),
        one.gradients + other.gradients,
    )
