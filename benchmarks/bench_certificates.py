"""Speed of certificates and of margins, against their slow definitions.

    python benchmarks/bench_certificates.py runs/mnist-lipschitz-10

Certificates: 10,000 noncentral margins after the encodings, both envelopes for each input. Margins:
`find_margin` (5 restarts) against one scipy L-BFGS-B problem for every radius and restart, 20 radii
x 5 restarts with 40 draws each, on the same images, centered and free. Times are of the processor,
on one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

import robustvae as rv
from robustvae import bounds
from robustvae.certificates import lipschitz_constants, tangent_reach
from robustvae.certificates.methods import lipschitz
from robustvae.models import LipschitzVAE
from robustvae.robustness import Bisection, displacements, find_margin

R, M, RADII, RESTARTS, DRAWS = 8.0, 0.5, 20, 5, 40


def seconds(work: Callable[[], Any], rounds: int) -> float:
    """The median processor time of some rounds, after one that is not counted."""
    work()
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return float(np.median(spent))


def certificates(vae: LipschitzVAE, x: Tensor, rounds: int) -> dict[str, Any]:
    """Seconds for 10,000 noncentral margins, and milliseconds an input of the envelopes."""
    constants = lipschitz_constants(vae)
    exact = vae.double()
    with torch.no_grad():
        means = exact.encode(x.double()).mean
        logits = exact.decoder(means).flatten(1)
    many = 10_000
    stddev = 0.05 + 0.1 * torch.rand(many, vae.latent, generator=rv.generator(0)).double()
    reach = 2 + 3 * torch.rand(many, generator=rv.generator(1)).double()
    moved = lipschitz._moved_stddev(stddev, constants, "centered")

    def noncentral() -> Tensor:
        return lipschitz._margin("noncentral", reach, moved, constants.b, M, vae.latent)

    def slow() -> Tensor:
        rows = torch.arange(many)

        def holds(rho: Tensor) -> Tensor:
            spread = moved(rho, rows)[0]
            return bounds.noncentral_probability(reach, constants.b * rho, spread, vae.latent) > M

        return bounds.largest(holds, reach / constants.b)

    gap = ((noncentral() - slow()) / slow()).abs().max()
    count = len(x)
    return {
        "noncentral, 10,000 inputs, seconds": seconds(noncentral, rounds),
        "the same by plain bisection, seconds": seconds(slow, 1),
        "largest relative difference of the two": float(gap),
        "envelope, milliseconds an input": seconds(lambda: bounds.envelope_reach(logits, R), rounds)
        / count
        * 1e3,
        "tangent envelope, milliseconds an input": seconds(
            lambda: tangent_reach(exact.decoder, means, R), rounds
        )
        / count
        * 1e3,
        "inputs in a batch": count,
        "date": time.strftime("%Y-%m-%d"),
    }


def ours(vae: rv.VAE, x: Tensor) -> Tensor:
    """Margins by `find_margin`."""
    search = rv.ProjectedAscent(steps=30, restarts=RESTARTS, chunk=1000)
    how = Bisection(search=search, largest=2.0)
    found = find_margin(
        rv.Victim(vae), x, R, M, "centered", box=False, bisection=how, generator=rv.generator(2)
    )
    return torch.as_tensor(found.estimate.value)


def plain(vae: rv.VAE, x: Tensor, restarts: int) -> float:
    """One image's margin by the papers' protocol: a scipy problem for each radius and restart."""
    victim, g = rv.Victim(vae), rv.generator(3)
    with torch.no_grad():
        clean = vae.decode(vae.encode(x).mean).mean
    shape = x.shape

    def loss(v: np.ndarray, radius: float) -> tuple[float, np.ndarray]:
        free = torch.tensor(v, dtype=x.dtype).view(shape).requires_grad_(True)
        size = free.norm()
        change = free * (radius / size).clamp(max=1.0)
        damage = -(vae.decode(vae.encode(x + change).mean).mean - clean).norm()
        (grad,) = torch.autograd.grad(damage, free)
        return float(damage.detach()), grad.double().flatten().numpy()

    margin = 2.0
    for radius in np.linspace(2.0, 0.1, RADII):
        broken = False
        for _ in range(restarts):
            start = torch.randn(shape, generator=g)
            start = (radius * start / start.norm()).flatten().double().numpy()
            found = minimize(loss, start, (radius,), jac=True, method="L-BFGS-B")
            change = torch.tensor(found.x, dtype=x.dtype).view(shape)
            change = change * min(1.0, radius / float(change.norm()))
            moved = displacements(victim, x, x + change, "centered", generator=g, draws=DRAWS)
            broken |= bool((moved <= R).double().mean() <= M)
        if broken:
            margin = float(radius)
    return margin


def margins(vae: rv.VAE, x: Tensor, slow: int, restarts: int) -> dict[str, Any]:
    """Seconds an image, ours and by the plain protocol, and both margins of the same images."""
    began = time.process_time()
    fast = ours(vae, x)
    each = (time.process_time() - began) / len(x)
    began = time.process_time()
    theirs = [plain(vae, x[i : i + 1], restarts) for i in range(slow)]
    slow_each = (time.process_time() - began) / slow * RESTARTS / restarts
    return {
        "ours, seconds an image": each,
        f"plain, seconds an image, from {restarts} of {RESTARTS} restarts": slow_each,
        "times faster": slow_each / each,
        "ours": fast[:slow].tolist(),
        "plain, on a grid of 0.1": theirs,
        "images": [len(x), slow],
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--inputs", type=int, default=64)
    parser.add_argument("--images", type=int, default=20, help="of the batch of margins")
    parser.add_argument("--slow", type=int, default=2, help="of these, by the plain protocol")
    parser.add_argument("--timed", type=int, default=RESTARTS, help="restarts of the plain one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["certificates", "margins"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = given.out or Path(__file__).parent / "results" / "certificates.json"
    vae = rv.load(given.model)
    assert isinstance(vae, LipschitzVAE)
    vae.requires_grad_(False)
    images = rv.data.load(given.data, split="test")
    x, _ = images.sample(given.inputs, stratified=True, generator=rv.generator(0))
    kept = json.loads(out.read_text()) if out.is_file() else {}
    record = {**kept, "model": Path(given.model).name, "torch": torch.__version__}
    if given.only != "certificates":
        record["margins"] = margins(vae, x[: given.images], given.slow, given.timed)
    if given.only != "margins":
        record["certificates"] = certificates(vae, x, given.rounds)
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
