"""One HMC transition against its floor: L forward and backward passes of the decoder.

    OMP_NUM_THREADS=1 python benchmarks/bench_hmc.py [--model FOLDER] [--rounds 15]

conv28 decoder, L = 20 leapfrog steps, batch 100, weights frozen, one thread. The floor decodes
the batch and pulls one fixed tensor back to the latents, L times, with the weights laid out the
same way; energies, the prior, momenta and the decision come on top. The sides are interleaved;
medians and the median of the ratios are written to benchmarks/results/hmc.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch

import robustvae as rv
from robustvae.defenses import RobustTarget, posterior
from robustvae.mcmc import Kernel, State, evaluate, hmc_step
from robustvae.models.base import frozen
from robustvae.models.layout import channels_last
from robustvae.zoo import load

RESULTS = Path(__file__).parent / "results" / "hmc.json"
BATCH, LEAPFROG = 100, 20


def floor(vae: rv.VAE, z: torch.Tensor, pull: torch.Tensor) -> None:
    for _ in range(LEAPFROG):
        z = z.detach().requires_grad_()
        torch.autograd.grad(vae.decode(z).logits, z, pull)


def timed(what) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    g = rv.generator(0)
    vae = rv.models.create("vae", architecture="conv28", latent=64)
    if given.model:
        vae = load(given.model)
    x = torch.rand(BATCH, 1, 28, 28, generator=g)
    z = torch.randn(BATCH, 64, generator=g)
    pull = torch.rand(BATCH, 1, 28, 28, generator=g)

    kernel = Kernel(0.01, LEAPFROG)
    with frozen(vae):
        targets = {
            "hmc": posterior(vae, x),
            "robust_hmc": RobustTarget(vae, x, "linf", 0.2),
            "robust_hmc_l2": RobustTarget(vae, x, "l2", 2.0),
        }

        def transition(name: str, state: State) -> None:
            hmc_step(targets[name], state, kernel, generator=g)

        times: dict[str, list[float]] = {}
        with channels_last(vae):
            states = {name: evaluate(target, z) for name, target in targets.items()}
            floor(vae, z, pull)
            for _ in range(given.rounds):
                times.setdefault("floor", []).append(timed(lambda: floor(vae, z, pull)))
                for name, state in states.items():
                    spent = timed(lambda n=name, s=state: transition(n, s))
                    times.setdefault(name, []).append(spent)
        plain = [timed(lambda: floor(vae, z, pull)) for _ in range(max(3, given.rounds // 3))]

    def ratio(name: str) -> float:
        pairs = zip(times[name], times["floor"], strict=True)
        return statistics.median(spent / least for spent, least in pairs)

    record = {
        "what": f"one transition, L = {LEAPFROG}, batch {BATCH}, conv28, float32, one thread",
        "weights": "trained" if given.model else "random",
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "floor_s": statistics.median(times["floor"]),
        "floor_without_channels_last_s": statistics.median(plain),
        "transition_s": statistics.median(times["hmc"]),
        "transition_over_floor": ratio("hmc"),
        "robust_linf_over_floor": ratio("robust_hmc"),
        "robust_l2_over_floor": ratio("robust_hmc_l2"),
        "wanted_at_most": 1.1,
        "rounds": times,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps({k: v for k, v in record.items() if k != "rounds"}, indent=2))


if __name__ == "__main__":
    main()
