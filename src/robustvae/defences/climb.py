"""How defences look for a mode: one of several searches, and how attacks see through it."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

from robustvae.defences.targets import fisher
from robustvae.errors import UnsupportedError, check_choice, check_count, check_positive
from robustvae.mcmc import LogDensity, Mode, gauss_newton, implicit, lbfgs, mode_search
from robustvae.models.base import VAE
from robustvae.seeding import draw

Start = Literal["mean", "zero", "both", "prior"]
Method = Literal["adam", "lbfgs", "gauss-newton"]
Gradient = Literal["unrolled", "implicit"]


def check_climb(
    method: Method,
    rate: float,
    gradient: Gradient,
    chunk: int,
    start: Start,
    starts: int,
    steps: int,
) -> None:
    """Raise unless these are settings of `climb` and of its starts, and `chunk` is a count."""
    check_count(starts, "starts")
    # From the prior: the least n with n - n // 4 >= starts, so that `shares` gives each search one.
    least = {"both": 2, "prior": (4 * starts - 1) // 3}.get(start, 1)
    check_count(steps, "steps", least=least)
    check_choice("mode search", method, ("adam", "lbfgs", "gauss-newton"))
    check_choice("gradient", gradient, ("unrolled", "implicit"))
    check_positive(rate, "rate")
    check_count(chunk, "chunk")


def shares(start: Start, starts: int, steps: int) -> tuple[int, int, int]:
    """How many searches there are, the gradients of each, and of one more from the best end.

    Draws of the prior are scouts: they get three quarters of the steps.
    """
    count = {"both": 2, "prior": starts}.get(start, 1)
    last = steps // 4 if start == "prior" else 0
    return count, (steps - last) // count, last


def spent(start: Start, starts: int, steps: int) -> int:
    """Gradients of all searches."""
    count, each, last = shares(start, starts, steps)
    return count * each + last


def climb(
    vae: VAE,
    target: LogDensity,
    mean: Tensor,
    *,
    start: Start,
    starts: int,
    steps: int,
    method: Method,
    rate: float,
    gradient: Gradient,
    graph: bool,
    generator: torch.Generator,
) -> Tensor:
    """The highest point that searches from one or several starts meet.

    Args:
        vae: The model that the target judges by.
        target: Latents (B, d) to log densities (B,).
        mean: The encoder's means, (B, d).
        start: Where searches begin: "mean" there; "zero" at the prior's mean; "both" at each;
            "prior" at draws of the prior, the best of whose ends is climbed from once more.
        starts: Draws of the prior.
        steps: Gradient evaluations: see `shares`.
        method: The search. Gauss-Newton's steps each cost a Fisher matrix besides.
        rate: First step length of Adam.
        gradient: With `graph`, differentiate the search itself or the mode.
        graph: Keep a graph.
        generator: Spent by draws of the prior.

    Returns:
        Latents, (B, d).

    Raises:
        UnsupportedError: A graph through the steps of L-BFGS or Gauss-Newton.
    """
    unrolled = graph and gradient == "unrolled"
    if unrolled and method != "adam":
        raise UnsupportedError(
            f"no gradient flows through the steps of {method!r}: give gradient='implicit'"
        )
    count, each, last = shares(start, starts, steps)

    def search(z: Tensor, steps: int) -> Mode:
        if method == "adam":
            return mode_search(target, z, steps=steps, rate=rate, graph=unrolled)
        if method == "lbfgs":
            return lbfgs(target, z, steps=steps)
        return gauss_newton(target, lambda z: fisher(vae, z), z, steps=steps)

    prior = vae.prior()
    if start == "prior":
        begin = [draw(prior, (len(mean),), generator=generator).to(mean) for _ in range(count)]
    else:
        begin = [mean] if start == "mean" else [prior.mean.to(mean).expand_as(mean)]
        begin += [mean] if start == "both" else []
    best = functools.reduce(_better, (search(z, each) for z in begin))
    if last:
        best = search(best.z, last)
    return implicit(target, best.z) if graph and not unrolled else best.z


def _better(one: Mode, other: Mode) -> Mode:
    """Of each row the higher; a NaN is lower than anything."""
    higher = (other.log_density > one.log_density) | one.log_density.isnan()
    return Mode(
        torch.where(higher.unsqueeze(1), other.z, one.z),
        torch.where(higher, other.log_density, one.log_density),
        one.gradients + other.gradients,
    )
