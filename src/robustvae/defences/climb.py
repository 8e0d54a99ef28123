"""How defences look for a mode: one of several searches, and how attacks see through it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robustvae.defences.targets import fisher
from robustvae.errors import UnsupportedError, check_choice, check_count, check_positive
from robustvae.mcmc import LogDensity, gauss_newton, implicit, lbfgs, mode_search
from robustvae.models.base import VAE

Method = Literal["adam", "lbfgs", "gauss-newton"]
Gradient = Literal["unrolled", "implicit"]


def check_climb(method: Method, rate: float, gradient: Gradient, chunk: int) -> None:
    """Raise unless these are settings of `climb`, and `chunk` is a count."""
    check_choice("mode search", method, ("adam", "lbfgs", "gauss-newton"))
    check_choice("gradient", gradient, ("unrolled", "implicit"))
    check_positive(rate, "rate")
    check_count(chunk, "chunk")


def climb(
    vae: VAE,
    target: LogDensity,
    starts: list[Tensor],
    *,
    steps: int,
    method: Method,
    rate: float,
    gradient: Gradient,
    graph: bool,
) -> Tensor:
    """The highest point that searches from several starts meet.

    Args:
        vae: The model that the target judges by.
        target: Latents (B, d) to log densities (B,).
        starts: Where each search begins, (B, d) each.
        steps: Gradient evaluations, shared equally by the starts.
        method: The search. Gauss-Newton's steps each cost a Fisher matrix besides.
        rate: First step length of Adam.
        gradient: With `graph`, differentiate the search itself or the mode.
        graph: Keep a graph.

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
    steps = steps // len(starts)
    found = []
    for z in starts:
        if method == "adam":
            found.append(mode_search(target, z, steps=steps, rate=rate, graph=unrolled))
        elif method == "lbfgs":
            found.append(lbfgs(target, z, steps=steps))
        else:
            found.append(gauss_newton(target, lambda z: fisher(vae, z), z, steps=steps))
    best, highest = found[0].z, found[0].log_density
    for other in found[1:]:
        higher = other.log_density > highest
        best = torch.where(higher.unsqueeze(1), other.z, best)
        highest = torch.where(higher, other.log_density, highest)
    return implicit(target, best) if graph and not unrolled else best
