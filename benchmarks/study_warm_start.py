"""Does a batch that starts with the step size of the batch before recover more?

    python benchmarks/study_warm_start.py runs/mnist-conv28

120 MNIST test images under one latent-shift attack each, l-infinity 0.2; the first 40 adapt, the
other 80 start with their median step size or with the default, 131 gradients both, same noise.
Squared distances to the clean reconstruction, and warm minus cold image by image.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import robustvae as rv
from robustvae import data
from robustvae.attacks import LatentShift
from robustvae.metrics import mean_stderr
from robustvae.seeding import shard_generator
from robustvae.studies.defense_table import squared

ROWS = {
    "encoder's mass": rv.HMC(26, step_size=0.5, mass="encoder"),
    "no mass": rv.HMC(26),
    "no mass, acceptance 0.5": rv.HMC(26, acceptance=0.5),
}
FIRST = 40


def main() -> None:
    """Print a line for each chain."""
    vae = rv.load(sys.argv[1])
    images = data.load("mnist", split="test")
    x, _ = images.sample(120, stratified=True, generator=shard_generator(5, 0, "data"))
    search, ball = rv.ProjectedAscent(steps=50, restarts=1), rv.Ball("linf", 0.2)
    attack = rv.Attack(LatentShift("symmetric_kl"), search, ball)
    x_adv = attack(rv.Victim(vae), x, generator=rv.generator(1)).x_adv
    clean = rv.Victim(vae).reconstruct(x, generator=rv.generator(0))
    for name, cold in ROWS.items():
        adapted = cold.run(vae, x_adv[:FIRST], generator=rv.generator(3)).step_size
        warm = replace(cold, step_size=float(adapted.median()))
        one, other = (
            squared(
                rv.Victim(vae, chain).reconstruct(x_adv[FIRST:], generator=rv.generator(2)),
                clean[FIRST:],
            )
            for chain in (cold, warm)
        )
        for what, values in (
            ("cold", one),
            ("warm", other),
            ("warm - cold", [b - a for a, b in zip(one, other, strict=True)]),
        ):
            mean, stderr = mean_stderr(values)
            print(f"{name}, {what}: {mean:.2f} ± {stderr:.2f}", flush=True)


if __name__ == "__main__":
    main()
