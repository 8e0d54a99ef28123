"""How long the robust mode's search must be before an attack through it stops profiting.

    python benchmarks/study_robust_steps.py mnist-conv28 [--data mnist]

Attacks maximize the damage at l-infinity 0.2 through one search (its unrolled gradient, L-BFGS by
the implicit one), ten steps from each of five starts; every search is then held against what was
found. 20 test images; MS-SSIM and squared distance to the undefended clean reconstruction.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

import robustvae as rv
from robustvae import data
from robustvae.defenses import RobustPosterior, Victim
from robustvae.metrics import mean_stderr
from robustvae.perturb import Ball
from robustvae.seeding import shard_generator
from robustvae.studies.defense_strength import similarities
from robustvae.studies.defense_table import squared

IMAGES, SHARD, STEPS, STARTS = 20, 10, 10, 5
BALL = Ball("linf", 0.2)
SEARCHES = {
    "Adam, 50": RobustPosterior("linf", 0.2, 50),
    "Adam, 100": RobustPosterior("linf", 0.2, 100),
    "Adam, 200": RobustPosterior("linf", 0.2, 200),
    "Adam, 100, both starts": RobustPosterior("linf", 0.2, 100, start="both"),
    "L-BFGS, 50": RobustPosterior("linf", 0.2, 50, method="lbfgs"),
}
ATTACKED = ("Adam, 50", "Adam, 100", "L-BFGS, 50")


def main() -> None:
    """Print a line for each attacked search and each search held against what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", default="mnist")
    args = parser.parse_args()
    torch.set_num_threads(1)
    vae, images = rv.load(args.model), data.load(args.data, split="test")
    x, _ = images.sample(IMAGES, stratified=True, generator=shard_generator(0, 0, "data"))
    clean = Victim(vae).reconstruct(x, generator=shard_generator(0, 0, "clean"))
    search = rv.ProjectedAscent(steps=STEPS, restarts=STARTS, chunk=100)
    attack = rv.Attack(rv.MaximumDamage(), search, BALL)
    for attacked in (None, *ATTACKED):
        x_adv = x
        if attacked is not None:
            seen = SEARCHES[attacked]
            if seen.method == "lbfgs":
                seen = replace(seen, gradient="implicit")
            x_adv = torch.cat(
                [
                    attack(
                        Victim(vae, seen), x[at], generator=shard_generator(0, i, "attack")
                    ).x_adv
                    for i, at in enumerate(torch.arange(len(x)).split(SHARD))
                ]
            )
        for name, defense in SEARCHES.items():
            x_hat = Victim(vae, defense).reconstruct(x_adv, generator=rv.generator(3))
            mean, stderr = mean_stderr(similarities(x_hat, clean)["MS-SSIM"].tolist())
            far, spread = mean_stderr(squared(x_hat, clean))
            print(
                f"attack through {attacked}: {name}: MS-SSIM {mean:.3f} ± {stderr:.3f}, "
                f"squared distance {far:.2f} ± {spread:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
