"""Smoothing of a Lipschitz-VAE: one part of a change paid by the noise, the other by the constants.

With the spread fixed, a draw of the victim is g(mu(x + s n) + sigma eta). Of a change of length
rho let rho_1 be paid by the constants: at every (n, eta) the latent moves by at most b rho_1, which
a draw whose reach is t forgives where t >= b rho_1. The noise pays the rest: with p the probability
of t >= b rho_1 at the input, the output stays within r with at least
Phi(Phi^-1(p) - (rho - rho_1) / s). So the radius is rho_1 + s (Phi^-1(p) - Phi^-1(m)), for the best
of a few rho_1 that are fixed beforehand and share the failure probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from robustvae import bounds
from robustvae.certificates import Constants, lipschitz_constants
from robustvae.certificates.methods.lipschitz import decoder_logits
from robustvae.certificates.methods.sampling import Sampler
from robustvae.certificates.methods.smoothing import sampler_radius
from robustvae.certificates.networks import composition_of
from robustvae.models.base import frozen

M = 0.5
FAILURE = 1e-3
PARTS = 16  # values of rho_1, from 0 to half of r / b


@final
@dataclass(frozen=True)
class Spec:
    """What is measured.

    Attributes:
        model: A Lipschitz-VAE, evaluated in float64.
        data: Its data set.
        r: Tolerated distance of the output.
        stddevs: Of the noise.
        inputs: Test images.
        draws: Of each.
    """

    model: str = "mnist-lipschitz-10"
    data: str = "mnist"
    r: float = 8.0
    stddevs: tuple[float, ...] = (0.05, 0.1, 0.25, 0.4)
    inputs: int = 10
    draws: int = 10_000


@item(
    "own/smoothing-lipschitz",
    sizes={
        "smoke": Spec("digits-lipschitz-vae", "digits", 1.0, (0.05,), 2, 200),
        "laptop": Spec(),
    },
)
def smoothing_lipschitz(spec: Spec, run: Run) -> Result:
    """Certified radii by smoothing, by the constants, and by both, about the own center."""
    vae = run.model(spec.model).double()
    images = run.images(spec.data)
    x, _ = images.sample(spec.inputs, stratified=True, generator=rv.generator(run.seed))
    x, constants, rows = x.double(), lipschitz_constants(vae), list[Row]()
    ask: dict[str, Any] = {
        "r": spec.r,
        "m": M,
        "displacement": "full",
        "generator": rv.generator(run.seed),
    }
    rows.append(measured("no noise", "by the constants", rv.certify(vae, x, **ask).radius))
    still = _error(rv.Victim(vae), x)
    rows.append(Row("no noise", "squared error of a draw", still, n=len(x)))
    for stddev in run.each(spec.stddevs):
        victim, name = rv.Victim(vae, rv.InputNoise(stddev)), f"noise {stddev:g}"
        sampler = Sampler(victim, x, tuple(range(len(x))), run.seed, spec.draws)
        centers = sampler.centers("own")
        columns: dict[str, list[float]] = {}
        with frozen(vae), torch.no_grad():
            for i, center in enumerate(centers):
                reaches = _reaches(sampler, i, center, constants, spec)
                for what, radius in _radii(sampler, reaches, constants.b, spec).items():
                    columns.setdefault(what, []).append(radius)
        rows += [measured(name, what, torch.tensor(radii)) for what, radii in columns.items()]
        error = _error(victim, x)
        rows.append(Row(name, "squared error of a draw", error, n=len(x)))
        run.progress(name)
    return run.result(
        f"Smoothing of a Lipschitz-VAE: {spec.model}",
        "pixel units",
        rows,
        (
            f"{spec.inputs} test images, r = {spec.r:g}, m = {M}, full; behind noise about the own "
            f"center, {spec.draws:,} draws, confidence {1 - FAILURE:g} for each; encoder's "
            f"constant {constants.b:.4g}, decoder's {constants.a:.4g}; evaluated in float64, whose "
            "rounding is left out.",
        ),
    )


def _error(victim: rv.Victim, x: Tensor) -> float:
    g = rv.generator(0)
    draws = [(victim.reconstruct(x, generator=g) - x).flatten(1).square().sum(1) for _ in range(10)]
    return float(torch.stack(draws).mean())


def _reaches(
    sampler: Sampler, i: int, center: Tensor, constants: Constants, spec: Spec
) -> dict[str, Tensor]:
    """How far each draw's latent may move, by two bounds; negative where the draw is beyond r."""
    vae, noise = sampler.victim.vae, sampler.victim.noise
    assert noise is not None
    parts = composition_of(vae)
    g = sampler.generators("smoothing/draws")[i]
    plain, free = list[Tensor](), list[Tensor]()
    for begin in range(0, spec.draws, 500):
        count = min(500, spec.draws - begin)
        rows = sampler.x[i : i + 1].expand(count, *sampler.x.shape[1:])
        z = rv.draw(vae.encode(noise.noisy(rows, generator=g)), generator=g)
        left = spec.r - (vae.decode(z).mean - center).flatten(1).norm(dim=1)
        plain.append(left / constants.a)
        wide = bounds.envelope_reach(decoder_logits(parts, z), left.clamp_min(1e-9))
        free.append(torch.where(left > 0, (wide / constants.a_logits).maximum(plain[-1]), left))
    return {"constant": torch.cat(plain), "free envelope": torch.cat(free)}


def _radii(sampler: Sampler, reaches: dict[str, Tensor], b: float, spec: Spec) -> dict[str, float]:
    """Radii by smoothing alone and with each kind of reach, the failure shared by the parts."""

    def radius(reach: Tensor, first: float, failure: float) -> float:
        inside = int((reach >= b * first * (1 + bounds.SLACK)).sum())
        rest = sampler_radius(sampler, inside, spec.draws, failure, M)
        return first + rest if rest > 0 else 0.0

    result = {"smoothing": radius(reaches["constant"], 0.0, FAILURE)}
    # no part depends on the draws: the steps are of what the constants give without noise
    step = spec.r / b / PARTS / 2
    for name, reach in reaches.items():
        tries = [radius(reach, k * step, FAILURE / PARTS) for k in range(PARTS)]
        result[f"smoothing and {name}"] = max(tries)
    return result
