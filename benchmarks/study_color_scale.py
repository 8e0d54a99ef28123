"""How much HMC brings back on ColorMNIST depends on the decoder's standard deviation.

    python benchmarks/study_color_scale.py runs/color-scale runs/color-mnist-conv28

The given model of that recipe, then short runs (60,000 images, two epochs) of its architecture
with narrower Gaussians than its 1; 50 test images under one latent-shift attack each.
[Kuzina22] Table 3 reports MS-SSIM 0.36 and 0.19 undefended, 0.96 and 0.90 behind HMC, at 0.1 and
0.2.
"""

from __future__ import annotations

import sys
from pathlib import Path

import robustvae as rv
from robustvae import data
from robustvae.attacks import LatentShift
from robustvae.data import Images
from robustvae.metrics import mean_stderr
from robustvae.models import VAE
from robustvae.seeding import shard_generator
from robustvae.studies.defence_strength import similarities
from robustvae.studies.runs import balanced, trained

DEFENCES = {
    "undefended": rv.PosteriorMean(),
    "HMC, 131 gradients": rv.HMC(26, step_size=0.5, mass="encoder"),
    "HMC, acceptance 0.5, 501": rv.HMC(100, acceptance=0.5),
    "HMC, L = 10, 1,001": rv.HMC(100, n_leapfrog=10),
}


def narrow(images: Images, scale: float) -> VAE:
    """A short run with this standard deviation of a pixel."""
    return trained(
        Path(sys.argv[1]) / f"scale-{scale:g}",
        {
            "name": "vae",
            "architecture": "conv28",
            "image_shape": [3, 28, 28],
            "latent": 64,
            "likelihood": "gaussian",
            "scale": scale,
        },
        rv.objectives.ELBO(),
        balanced(images, 60_000, "training"),
        epochs=2,
        seed=0,
        batch_size=128,
        lr=[[0, 0.001], [1, 0.0003]],
        precision="bf16-mixed",
    )


def main() -> None:
    """Train what is not trained yet, then print a line for each scale, radius and defence."""
    images, test = (data.load("color_mnist", split=split) for split in ("train", "test"))
    x, _ = test.sample(50, stratified=True, generator=shard_generator(0, 0, "data"))
    for scale in (1.0, 0.3, 0.1):
        vae = rv.load(sys.argv[2]) if scale == 1 else narrow(images, scale)
        clean = rv.Victim(vae).reconstruct(x, generator=rv.generator(0))
        for radius in (0.1, 0.2):
            search, ball = rv.ProjectedAscent(steps=50, restarts=1), rv.Ball("linf", radius)
            attack = rv.Attack(LatentShift("symmetric_kl"), search, ball)
            x_adv = attack(rv.Victim(vae), x, generator=rv.generator(1)).x_adv
            for name, defence in DEFENCES.items():
                x_hat = rv.Victim(vae, defence).reconstruct(x_adv, generator=rv.generator(2))
                mean, stderr = mean_stderr(similarities(x_hat, clean)["MS-SSIM"].tolist())
                print(f"scale {scale}, {radius}, {name}: {mean:.3f} ± {stderr:.3f}", flush=True)


if __name__ == "__main__":
    main()
