"""Neyman-Pearson in latent space (ours): any decoder, linear bounds on how the posterior moves."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from robustvae import bounds
from robustvae.certificates.constants import fixed_stddev
from robustvae.certificates.methods.base import (
    SILENT,
    Finding,
    Task,
    clean_probability,
    row_normals,
)
from robustvae.certificates.methods.lipschitz import EVALUATION_FACTOR, check_own_posterior
from robustvae.certificates.movement import Encoder, Movement, first, largest_radius
from robustvae.certificates.propagation import METHODS, Method
from robustvae.certificates.question import Question
from robustvae.registry import register

# inputs whose bounds are propagated together
_AT_ONCE = 16


@register("certificate-method", "neyman_pearson")
@final
@dataclass(frozen=True)
class NeymanPearson:
    """Any decoder: what happens at the clean input goes on while the posterior moves little (ours).

    The bound's name says how the encoder was bounded, "crown" or what it fell back to.
    """

    kind: ClassVar[str] = "probabilistic"
    norms: ClassVar[tuple[str, ...]] = ("l2", "linf")

    def __call__(self, task: Task) -> Finding:
        """Radii at which the lemma keeps the event of the clean draws."""
        check_own_posterior(task)
        vae, ask = task.vae, task.question
        exact = copy.deepcopy(vae).to("cpu", torch.float64)
        still = ask.displacement == "centered" or fixed_stddev(vae)
        encoder = Encoder(exact, spread=not still)
        error = 2 * EVALUATION_FACTOR * _evaluation_error(task, encoder)
        failure = 1 - clean_probability(task, task.confidence)
        images = task.x.to("cpu", torch.float64)
        parts = [
            _radius(encoder, images[i], failure[i], error[0, i], error[1, i], ask)
            for i in torch.arange(len(images)).split(_AT_ONCE)
        ]
        method = min((used for _, used in parts), key=METHODS.index)
        assumptions: tuple[str, ...] = (
            "the stored weights, in exact arithmetic",
            f"{task.draws or 1000} draws at the clean input; confidence {task.confidence:g} for "
            "each input",
            f"evaluation in {str(vae.dtype).removeprefix('torch.')} moves a latent by at most "
            f"{float(error[0].max()) / 2:.1e} standard deviations ({EVALUATION_FACTOR:g} times the "
            "largest seen); twice that is taken off",
        )
        if ask.displacement == "centered" and not fixed_stddev(vae):
            assumptions += (SILENT,)
        radii = torch.cat([radius for radius, _ in parts])
        return Finding({f"neyman_pearson, {method}": radii}, assumptions)


def _evaluation_error(task: Task, encoder: Encoder) -> Tensor:
    """What the floating type does to each mean, in standard deviations, and to these, (2, B)."""
    vae, x = task.vae, task.x
    error = torch.zeros(2, len(x), dtype=torch.float64)
    if vae.dtype == torch.float64:
        return error
    sizes = x.new_tensor([0.0, 0.1, 1.0]).view(-1, *[1] * (x.ndim - 1))
    noises = row_normals(x, task.generators("evaluation/input"), len(sizes))
    for i in range(len(x)):
        probes = x[i] + sizes * noises[i]
        q, exact = first(vae, probes, encoder.width), encoder.posterior(probes.cpu().double())
        mean, spread = q.mean.cpu().double(), q.stddev.cpu().double()
        stddev = encoder.posterior(x[i : i + 1].cpu().double()).stddev
        error[0, i] = ((mean - exact.mean) / stddev).norm(dim=1).max()
        error[1, i] = (spread / exact.stddev - 1).abs().max()
    return error


def _radius(
    encoder: Encoder,
    x: Tensor,
    failure: Tensor,
    error: Tensor,
    spread_error: Tensor,
    ask: Question,
) -> tuple[Tensor, Method]:
    """The largest radius at which Neyman-Pearson keeps the event, and how the encoder was bounded.

    `failure` bounds how rarely the event fails at the clean input, `error` what evaluation does to
    the mean, in standard deviations, and `spread_error` to these, relatively.
    """
    stddev = encoder.posterior(x).stddev
    budget = bounds.neyman_pearson_shift(1 - failure, ask.m) - error
    possible = (failure < 1 - ask.m) & (budget > 0)
    budget = torch.where(possible, budget, 1.0)
    failure = torch.where(possible, failure, (1 - ask.m) / 2)
    allowed = (1 - ask.m) * (1 - bounds.CDF_SLACK)
    used: list[Method] = []

    def moved(radius: Tensor) -> tuple[Movement, Tensor]:
        found = encoder.over(x, radius, norm=ask.norm, box=ask.box)
        used.append(found.method)
        return found, found.length((1 + bounds.SLACK) / stddev)

    def share(radius: Tensor) -> Tensor:
        found, shift = moved(radius)
        if not encoder.spread:
            return shift / budget
        least, most = (
            found.least * (1 - spread_error[:, None]),
            found.most * (1 + spread_error[:, None]),
        )
        after = bounds.moved_failure(failure, shift + error, stddev, least, most)
        spent = ((after / failure).log() / (allowed / failure).log()).clamp_min(0).sqrt()
        # at a failure of 1 the share has reached its end and says nothing of how far off it is
        failed = torch.where(after < 1, spent.clamp_min(1.0 + 1e-9), torch.inf)
        return torch.where(after <= allowed, spent.clamp(max=1.0), failed)

    small = torch.full_like(failure, 1e-6)
    linear = small * budget / moved(small)[1]
    radius = largest_radius(share, linear / 4, 1.5 * linear)
    return radius * possible, min(used, key=METHODS.index)
