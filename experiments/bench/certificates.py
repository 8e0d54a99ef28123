"""Speed of certificates and of margins, against their slow definitions.

Certificates: noncentral margins after the encodings, both envelopes for each input. Margins:
`estimate_margin` against one scipy L-BFGS-B problem for every radius and restart, on the same
images, centered and free. Times are of the processor, on one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

import robustvae as rv
from experiments.bench.timing import seconds
from experiments.harness import Result, Row, Run, item
from robustvae import bounds
from robustvae.certificates import lipschitz_constants, tangent_reach
from robustvae.certificates.methods import lipschitz
from robustvae.models import LipschitzVAE
from robustvae.robustness import Budget, displacements

M, LARGEST = 0.5, 2.0


@final
@dataclass(frozen=True)
class Spec:
    """What is timed.

    Attributes:
        model: A Lipschitz-VAE.
        data: Its data set.
        inputs: Of the envelopes.
        many: Noncentral margins at once.
        images: Of our margins.
        slow: Of them by the plain protocol.
        radii: Of the plain protocol's grid, up to 2.
        restarts: Of both.
        timed: Restarts of the plain protocol that are run; the time is scaled.
        draws: Of the displacement.
        rounds: Of the fast sides.
        r: l2 distance between outputs, in pixel units.
    """

    model: str = "mnist-lipschitz-10"
    data: str = "mnist"
    inputs: int = 64
    many: int = 10_000
    images: int = 20
    slow: int = 2
    radii: int = 20
    restarts: int = 5
    timed: int = 5
    draws: int = 40
    rounds: int = 3
    r: float = 8.0


@item(
    "bench/certificates",
    sizes={
        "smoke": Spec("digits-lipschitz-vae", "digits", 2, 50, 1, 1, 2, 1, 1, 10, 1, 1.0),
        "laptop": Spec(),
    },
)
def certificates(spec: Spec, run: Run) -> Result:
    """Certificates and margins by plain bisection and by one scipy problem at a time."""
    vae, images = run.model(spec.model), run.images(spec.data)
    assert isinstance(vae, LipschitzVAE)
    vae.requires_grad_(False)
    x, _ = images.sample(spec.inputs, stratified=True, generator=rv.generator(run.seed))
    rows = [
        *(Row("margins", k, v) for k, v in _margins(vae, x[: spec.images], spec).items()),
        *(Row("certificates", k, v) for k, v in _certificates(vae, x, spec).items()),
    ]
    return run.result(
        "Speed of certificates and margins",
        "processor seconds of one thread",
        rows,
        (
            f"{spec.many:,} noncentral margins; envelopes in a batch of {spec.inputs}; margins of "
            f"{spec.images} images, {spec.slow} by the plain protocol with {spec.timed} of "
            f"{spec.restarts} restarts.",
        ),
    )


def _median(work: Callable[[], object], rounds: int) -> float:
    """Median processor time, after one call that is not counted."""
    work()
    return statistics.median(seconds(work, time.process_time) for _ in range(rounds))


def _certificates(vae: LipschitzVAE, x: Tensor, spec: Spec) -> dict[str, float]:
    constants = lipschitz_constants(vae)
    exact = vae.double()
    with torch.no_grad():
        means = exact.encode(x.double()).mean
        logits = exact.decoder(means).flatten(1)
    stddev = 0.05 + 0.1 * torch.rand(spec.many, vae.latent, generator=rv.generator(0)).double()
    reach = 2 + 3 * torch.rand(spec.many, generator=rv.generator(1)).double()
    moved = lipschitz._moved_stddev(stddev, constants, "centered")
    motion = lipschitz._Motion(constants.b, torch.zeros_like(reach), moved)

    def noncentral() -> Tensor:
        return lipschitz._margin("noncentral", reach, motion, M, vae.latent)

    def slow() -> Tensor:
        rows = torch.arange(spec.many)

        def holds(rho: Tensor) -> Tensor:
            spread = moved(rho, rows)[0]
            return bounds.noncentral_probability(reach, constants.b * rho, spread, vae.latent) > M

        return bounds.largest(holds, reach / constants.b)

    gap = ((noncentral() - slow()) / slow()).abs().max()
    each, r = 1e3 / len(x), spec.r
    return {
        "noncentral, s": _median(noncentral, spec.rounds),
        "by plain bisection, s": _median(slow, 1),
        "largest relative difference": float(gap),
        "envelope, ms an input": each
        * _median(lambda: bounds.envelope_reach(logits, r), spec.rounds),
        "tangent envelope, ms an input": each
        * _median(lambda: tangent_reach(exact.decoder, means, r), spec.rounds),
    }


def _margins(vae: rv.VAE, x: Tensor, spec: Spec) -> dict[str, float]:
    budget = Budget(starts=spec.restarts, largest=LARGEST)
    began = time.process_time()
    upper = rv.estimate_margin(
        rv.Victim(vae),
        x,
        spec.r,
        M,
        "centered",
        box=False,
        budget=budget,
        generator=rv.generator(2),
    )
    fast = (time.process_time() - began) / len(x)
    ours = upper.value[: spec.slow]
    began = time.process_time()
    theirs = [_plain(vae, x[i : i + 1], spec) for i in range(spec.slow)]
    slow = (time.process_time() - began) / spec.slow * spec.restarts / spec.timed
    return {
        "ours, s an image": fast,
        "plain, s an image": slow,
        "times faster": slow / fast,
        "ours": float(ours.mean()),
        "plain, on a grid": statistics.fmean(theirs),
    }


def _plain(vae: rv.VAE, x: Tensor, spec: Spec) -> float:
    """One image's margin by the papers' protocol: a scipy problem for each radius and restart."""
    victim, g = rv.Victim(vae), rv.generator(3)
    with torch.no_grad():
        clean = vae.decode(vae.encode(x).mean).mean
    shape = x.shape

    def loss(v: Any, radius: float) -> tuple[float, Any]:
        free = torch.tensor(v, dtype=x.dtype).view(shape).requires_grad_(True)
        size = free.norm()
        change = free * (radius / size).clamp(max=1.0)
        damage = -(vae.decode(vae.encode(x + change).mean).mean - clean).norm()
        (grad,) = torch.autograd.grad(damage, free)
        return float(damage.detach()), grad.double().flatten().numpy()

    margin = LARGEST
    for radius in np.linspace(LARGEST, LARGEST / spec.radii, spec.radii):
        broken = False
        for _ in range(spec.timed):
            start = torch.randn(shape, generator=g)
            at = (radius * start / start.norm()).flatten().double().numpy()
            found = minimize(loss, at, (radius,), jac=True, method="L-BFGS-B")
            change = torch.tensor(found.x, dtype=x.dtype).view(shape)
            change = change * min(1.0, radius / float(change.norm()))
            draws = spec.draws
            moved = displacements(victim, x, x + change, "centered", generator=g, draws=draws)
            broken |= bool((moved <= spec.r).double().mean() <= M)
        if broken:
            margin = float(radius)
    return margin
