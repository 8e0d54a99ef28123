"""Which parts of [Kuzina22]'s protocol move the undefended and the defended numbers on MNIST.

    python benchmarks/study_kuzina_attack.py runs/mnist-conv28 [--long]

One row for each protocol, every one with the change of those before it: first that of
`robustvae.studies.defence_strength`; then codes drawn from the posterior, in reading, in learning
the classifier and as the reference; then images binarised by chance; then the authors' attack
(start N(0, 0.2 I), plain gradient steps of length 1 whose entries are cut at the radius, the last
point). The authors' code says all but the variance of the start, which stands in Table 8.
`--long` adds HMC by their rule with 1,001 gradients to the last protocol, at radius 0.2.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import robustvae as rv
from robustvae import data
from robustvae.attacks import Attack, ClassifierFlip, LatentShift
from robustvae.defences import HMC, Defence, PosteriorMean, PosteriorSample, Victim
from robustvae.metrics import mean_stderr, ms_ssim
from robustvae.models.base import VAE, frozen
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.seeding import rand, randn, shard_generator

STEPS, STARTS, IMAGES, LEARNT = 50, 2, 50, 5000
LONG = "HMC, their rule, 1,001"
Score = Callable[[Tensor, Tensor], Tensor]


def their_search(score: Score, x: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """The last point of the authors' ascent, within the ball and the pixel range."""
    away = 0.2**0.5 * randn(*x.shape, like=x, generator=generator)
    rows = torch.arange(len(x))
    for _ in range(STEPS):
        y = (x + away.clamp(-radius, radius)).clamp(0, 1).requires_grad_()
        (slope,) = torch.autograd.grad(score(y, rows).sum(), y)
        away = y.detach() - x + slope.clamp(-radius, radius)
    return (x + away.clamp(-radius, radius)).clamp(0, 1)


def classifier_of(vae: VAE, read: Defence, images: Tensor, y: Tensor) -> torch.nn.Linear:
    """Logistic regression on the codes that `read` gives."""
    with torch.no_grad():
        z = read(vae, images, generator=shard_generator(0, 0, "learn"))
    fitted = LogisticRegression(max_iter=2000).fit(z.double().numpy(), y.numpy())
    layer = torch.nn.Linear(z.shape[1], 10)
    layer.weight.data = torch.from_numpy(fitted.coef_).float()
    layer.bias.data = torch.from_numpy(fitted.intercept_).float()
    return layer.requires_grad_(False)


def main() -> None:
    """Print a row for each protocol and defence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--long", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    vae = rv.load(args.model)
    sets = [data.load("mnist", split=split) for split in ("test", "train")]
    tests = sets[0].sample(IMAGES, stratified=True, generator=shard_generator(0, 0, "data"))
    learn = sets[1].sample(LEARNT, generator=shard_generator(0, 0, "train"))
    protocols = ("ours", "+ drawn codes", "+ binarised images", "+ their ascent")
    short = HMC(26, step_size=0.5, mass="encoder")
    for number, name in enumerate(protocols):
        read: Defence = PosteriorSample() if number >= 1 else PosteriorMean()
        x, train = (
            (rand(*p.shape, like=p, generator=shard_generator(0, 0, "chance")) < p).to(p)
            if number >= 2
            else p
            for p in (tests[0], learn[0])
        )
        classifier = classifier_of(vae, read, train, learn[1])
        many, label = x.repeat(STARTS, 1, 1, 1), tests[1].repeat(STARTS)
        clean = Victim(vae, read).reconstruct(many, generator=shard_generator(0, 1, "clean"))
        defences: dict[str, Defence] = {"undefended": read, "HMC, 131": short}
        if args.long and number == len(protocols) - 1:
            defences[LONG] = HMC(50, n_leapfrog=20, adapt="paper")
        told: dict[str, list[str]] = {key: [] for key in defences}
        for goal in (LatentShift("symmetric_kl"), ClassifierFlip(label=label)):
            flips = isinstance(goal, ClassifierFlip)
            for radius in (0.0, 0.1, 0.2)[0 if flips else 1 :]:
                noise = shard_generator(0, 0, f"{type(goal).__name__} {radius}")
                victim = Victim(vae, classifier=classifier if flips else None)
                moved = many
                if radius and number < 3:
                    search = ProjectedAscent(steps=STEPS, restarts=1)
                    moved = Attack(goal, search, Ball("linf", radius))(
                        victim, many, generator=noise
                    ).x_adv
                elif radius:
                    with frozen(vae):
                        score = goal.bind(victim, many, generator=noise)
                        moved = their_search(score, many, radius, noise)
                for key, defence in defences.items():
                    if key == LONG and radius != 0.2:
                        continue
                    z = Victim(vae, defence).latent(moved, generator=shard_generator(0, 2, key))
                    with torch.no_grad():
                        if flips:
                            values = (classifier(z).argmax(1) == label).double()
                        else:
                            shown = vae.decode(z).mean.clamp(0, 1)
                            values = ms_ssim(shown, clean.clamp(0, 1), variant="kuzina2022")
                    mean, stderr = mean_stderr(values.view(STARTS, -1).mean(0).tolist())
                    what = "accuracy" if flips else "MS-SSIM"
                    told[key].append(f"{what} {radius:g}: {mean:.3f} ± {stderr:.3f}")
        for key, cells in told.items():
            print(f"{name:20s} {key:24s} " + "  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
