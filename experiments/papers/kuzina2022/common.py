"""What the items on defenses share: attacks, distances, the classifier, the reference pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from experiments.harness import Run
from robustvae import data
from robustvae.attacks import Attack, LatentShift
from robustvae.data import Images
from robustvae.defenses import Defense, Victim
from robustvae.metrics import ms_ssim, ms_ssim_terms
from robustvae.models.base import VAE, frozen
from robustvae.objectives import ELBO
from robustvae.perturb import Ball, ProjectedAscent, Score
from robustvae.seeding import draw, randn, shard_generator

RADII = (0.1, 0.2)
BALLS = (*(Ball("linf", radius) for radius in RADII), Ball("l2", 2.0))
ENLARGED = 196  # the textbook's MS-SSIM wants at least 176 pixels a side
THEIR_SEED = 1234  # of `run_attack.py`
FLOOR = 1e-5  # of the probabilities of the authors' likelihood
ERROR, LOSS = "squared error of a draw", "minus the ELBO"


def share_of(count: int, effort: float) -> int:
    """A share of so many steps, at least 2."""
    return max(2, round(count * effort))


def references(images: Images, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Test images and their labels, balanced over the classes."""
    return images.sample(count, stratified=True, generator=shard_generator(seed, 0, "data"))


def drawn_by_them(images: Images, count: int) -> tuple[Tensor, Tensor]:
    """The very references of the authors' code: their split by their seed, of all of `images`."""
    from sklearn.model_selection import train_test_split

    rows, kinds = range(len(images)), images.y.numpy()
    state = np.random.RandomState(THEIR_SEED)  # pl.seed_everything seeds the global one alike
    picked = train_test_split(rows, stratify=kinds, test_size=count, random_state=state)[1]
    return images[torch.as_tensor(picked)].x, images.y[torch.as_tensor(picked)]


def undefended(vae: VAE, x: Tensor, run: Run, reading: Defense | None = None) -> Tensor:
    """The undefended reconstruction of clean images, (B, C, H, W), of the mean by default."""
    victim = Victim(vae) if reading is None else Victim(vae, reading)
    return victim.reconstruct(x, generator=run.noise("clean"))


def attacked(vae: VAE, x: Tensor, ball: Ball, steps: int, restarts: int, seed: int) -> Tensor:
    """Images in [0, 1] that the encoder reads as far as possible from `x`, (B, C, H, W)."""
    search = ProjectedAscent(steps=steps, restarts=restarts)
    attack = Attack(LatentShift("symmetric_kl"), search, ball)
    noise = shard_generator(seed, 0, f"{ball.norm} {ball.radius:g}")
    return attack(Victim(vae), x, generator=noise).x_adv


def their_search(
    score: Score, x: Tensor, radius: float, steps: int, generator: torch.Generator
) -> Tensor:
    """The last point of the authors' ascent: plain gradients of rate 1, each cut at the radius.

    Its start has the standard deviation 0.2 of their code; Table 8 has the variance 0.2.
    """
    away = 0.2 * randn(*x.shape, like=x, generator=generator)
    rows = torch.arange(len(x))
    for _ in range(steps):
        y = (x + away.clamp(-radius, radius)).clamp(0, 1).requires_grad_()
        (slope,) = torch.autograd.grad(score(y, rows).sum(), y)
        away = y.detach() - x + slope.clamp(-radius, radius)
    return (x + away.clamp(-radius, radius)).clamp(0, 1)


def squared(a: Tensor, b: Tensor) -> list[float]:
    """Squared 2-norm of each image's difference, in squared pixel units."""
    distances: list[float] = (a - b).flatten(1).square().sum(1).double().tolist()
    return distances


def errors_and_losses(
    vae: VAE, x: Tensor, draws: int, generator: torch.Generator
) -> dict[str, list[float]]:
    """Error of a drawn code in the papers' unit, and minus the ELBO, of each image of (B, C, H, W).

    Args:
        vae: The model.
        x: Images in [0, 1].
        draws: Of the code of each image; both are means over them.
        generator: Spent by the draws.

    Returns:
        By name: squared gray levels, the mean over the pixels; and nats.
    """
    errors, losses = list[float](), list[float]()
    gray = 255**2 / x[0].numel()
    with torch.no_grad(), frozen(vae):
        for part in x.to(vae.dtype).split(500):
            q, error, loss = vae.encode(part), torch.zeros(len(part)), torch.zeros(len(part))
            for _ in range(draws):
                z = draw(q, generator=generator)
                error += torch.tensor(squared(vae.decode(z).mean, part)) / draws
                loss += ELBO()(vae, part, generator=generator) / draws
            errors += (error * gray).tolist()
            losses += loss.tolist()
    return {ERROR: errors, LOSS: losses}


def similarity(x_hat: Tensor, wanted: Tensor) -> Tensor:
    """MS-SSIM of each pair as the paper's code has it, both clipped to the pixel range, (B,)."""
    return ms_ssim(x_hat.clamp(0, 1), wanted.clamp(0, 1), variant="kuzina2022")


def similarities(x_hat: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """MS-SSIM of each pair of images (B, C, H, W), clipped to the pixel range, in both variants.

    The textbook's wants 176 pixels a side and gets `ENLARGED`, every pixel a block.
    """
    large = []
    pairs = zip(x_hat.clamp(0, 1).split(50), wanted.clamp(0, 1).split(50), strict=True)
    for pair in pairs:
        blocks = [functional.interpolate(x, size=(ENLARGED, ENLARGED)) for x in pair]
        large.append(ms_ssim(*blocks, variant="wang2003"))
    return {
        "MS-SSIM": similarity(x_hat, wanted),
        "MS-SSIM, wang2003 enlarged": torch.cat(large),
    }


def unclipped(x_hat: Tensor, wanted: Tensor) -> Tensor:
    """MS-SSIM as the authors' code takes it of a Gaussian's means, which may leave [0, 1], (B,)."""
    terms, weights = ms_ssim_terms(x_hat, wanted, variant="kuzina2022")
    return (terms.relu() ** weights.unsqueeze(1)).prod(0)


def linear_classifier(
    vae: VAE, images: Images, count: int, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """Latents (B, d) to logits (B, K), by logistic regression on posterior means.

    Args:
        vae: The model.
        images: Of the data set whose training images are learned from, by the label these carry.
        count: Most images to learn from.
        generator: Picks them.
    """
    train = data.load(images.name, split="train")
    kind = kind_of(images)
    train = train if kind is None else train.labeled_by(kind)
    x, y = train.sample(min(count, len(train)), generator=generator)
    with torch.no_grad(), frozen(vae):
        mean = torch.cat([vae.encode(part).mean for part in x.to(vae.dtype).split(500)])
    return regression(mean, y)


def regression(codes: Tensor, labels: Tensor) -> torch.nn.Linear:
    """Logistic regression of labels on codes, as a frozen layer."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(max_iter=2000).fit(codes.double().numpy(), labels.numpy())
    layer = torch.nn.Linear(codes.shape[1], len(fitted.classes_), dtype=codes.dtype)
    layer.weight.data = torch.from_numpy(fitted.coef_).to(codes.dtype)
    layer.bias.data = torch.from_numpy(fitted.intercept_).to(codes.dtype)
    return layer.requires_grad_(False)


def kind_of(images: Images) -> str | None:
    """The name of the labels that `images` carries as `y`, where it has several."""
    return next((k for k, labels in images.labels.items() if torch.equal(labels, images.y)), None)


def gradients(defense: object) -> int:
    """What a defense spends on an image, 0 where it spends nothing."""
    return int(getattr(defense, "gradients", 0))


def by_image(values: Tensor, repeats: int) -> list[float]:
    """Means over the attacks on each image of values that lie attack by attack, (repeats * B,)."""
    means: list[float] = values.double().view(repeats, -1).mean(0).tolist()
    return means


def joined(parts: Iterable[dict[str, list[float]]]) -> dict[str, list[float]]:
    """The parts' lists, one after the other, by name."""
    whole: dict[str, list[float]] = {}
    for part in parts:
        for key, values in part.items():
            whole.setdefault(key, []).extend(values)
    return whole
