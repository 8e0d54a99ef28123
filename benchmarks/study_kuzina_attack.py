"""Which parts of [Kuzina22]'s protocol move the undefended and the defended numbers.

    python benchmarks/study_kuzina_attack.py mnist-conv28 [--data mnist] [--long] [--whole]

One row for each protocol, every one with the change of those before it: first that of
`robustvae.studies.defense_strength`; then codes drawn from the posterior, in reading, in learning
the classifier and as the reference; then, on MNIST, images binarized by chance; then the authors'
attack (start N(0, 0.2 I), plain gradient steps of length 1 whose entries are cut at the radius,
the last point). The authors' code says all but the variance of the start, which stands in Table 8.
`--long` adds, to the last protocol, at radius 0.2, HMC by their rule with 1,001 gradients;
`--whole` their whole schedule (15,001 gradients, elsewhere than on MNIST 30,001) for one start an
image.
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
from robustvae.defenses import HMC, Defense, PosteriorMean, PosteriorSample, Victim
from robustvae.metrics import mean_stderr, ms_ssim
from robustvae.models.base import VAE, frozen
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.seeding import rand, randn, shard_generator

STEPS, STARTS, IMAGES, LEARNED = 50, 2, 50, 5000
LONG, WHOLE = "HMC, their rule, 1,001", "HMC, their schedule"
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


def classifier_of(vae: VAE, read: Defense, images: Tensor, y: Tensor) -> torch.nn.Linear:
    """Logistic regression on the codes that `read` gives."""
    with torch.no_grad():
        z = read(vae, images, generator=shard_generator(0, 0, "learn"))
    fitted = LogisticRegression(max_iter=2000).fit(z.double().numpy(), y.numpy())
    layer = torch.nn.Linear(z.shape[1], 10)
    layer.weight.data = torch.from_numpy(fitted.coef_).float()
    layer.bias.data = torch.from_numpy(fitted.intercept_).float()
    return layer.requires_grad_(False)


def main() -> None:
    """Print a row for each protocol and defense."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--whole", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    vae = rv.load(args.model)
    sets = [data.load(args.data, split=split) for split in ("test", "train")]
    tests = sets[0].sample(IMAGES, stratified=True, generator=shard_generator(0, 0, "data"))
    learn = sets[1].sample(LEARNED, generator=shard_generator(0, 0, "train"))
    on_mnist = args.data == "mnist"
    protocols = ["ours", "+ drawn codes", "+ binarized images", "+ their ascent"]
    if not on_mnist:
        protocols.remove("+ binarized images")
    short = HMC(26, step_size=0.5, mass="encoder")
    long = HMC(100, acceptance=0.5)
    by_their_rule = HMC(50, n_leapfrog=20, adapt="paper")
    schedule = (750, 0.1) if on_mnist else (1500, 0.05)
    whole = HMC(*schedule, n_leapfrog=20, adapt="paper")
    for number, name in enumerate(protocols):
        last = number == len(protocols) - 1
        read: Defense = PosteriorSample() if number >= 1 else PosteriorMean()
        x, train = (
            (rand(*p.shape, like=p, generator=shard_generator(0, 0, "chance")) < p).to(p)
            if on_mnist and number >= 2
            else p
            for p in (tests[0], learn[0])
        )
        classifier = classifier_of(vae, read, train, learn[1])
        many, label = x.repeat(STARTS, 1, 1, 1), tests[1].repeat(STARTS)
        clean = Victim(vae, read).reconstruct(many, generator=shard_generator(0, 1, "clean"))
        defenses: dict[str, Defense] = {"undefended": read, "HMC, 131": short, "HMC, 501": long}
        if args.long and last:
            defenses[LONG] = by_their_rule
        if args.whole and last:
            defenses[WHOLE] = whole
        told: dict[str, list[str]] = {key: [] for key in defenses}
        for goal in (LatentShift("symmetric_kl"), ClassifierFlip(label=label)):
            flips = isinstance(goal, ClassifierFlip)
            for radius in (0.0, 0.1, 0.2)[0 if flips else 1 :]:
                noise = shard_generator(0, 0, f"{type(goal).__name__} {radius}")
                victim = Victim(vae, classifier=classifier if flips else None)
                moved = many
                if radius and not last:
                    search = ProjectedAscent(steps=STEPS, restarts=1)
                    moved = Attack(goal, search, Ball("linf", radius))(
                        victim, many, generator=noise
                    ).x_adv
                elif radius:
                    with frozen(vae):
                        score = goal.bind(victim, many, generator=noise)
                        moved = their_search(score, many, radius, noise)
                for key, defense in defenses.items():
                    if key in (LONG, WHOLE) and radius != 0.2:
                        continue
                    n = IMAGES if key == WHOLE else len(many)
                    noise = shard_generator(0, 2, key)
                    z = Victim(vae, defense).latent(moved[:n], generator=noise)
                    with torch.no_grad():
                        if flips:
                            values = (classifier(z).argmax(1) == label[:n]).double()
                        else:
                            shown = vae.decode(z).mean.clamp(0, 1)
                            values = ms_ssim(shown, clean[:n].clamp(0, 1), variant="kuzina2022")
                    mean, stderr = mean_stderr(values.view(-1, IMAGES).mean(0).tolist())
                    what = "accuracy" if flips else "MS-SSIM"
                    told[key].append(f"{what} {radius:g}: {mean:.3f} ± {stderr:.3f}")
                    print(f"  {name}: {key}: {told[key][-1]}", flush=True)
        for key, cells in told.items():
            print(f"{name:20s} {key:24s} " + "  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
