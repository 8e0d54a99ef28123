"""Fréchet distance of two sets of images in the features of a network."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustvae.arguments import checked
from robustvae.data import Images
from robustvae.data.images import permutation
from robustvae.errors import (
    MissingExtraError,
    ShapeError,
    check_count,
    check_images,
    check_type,
)
from robustvae.evaluation.likelihood import ROWS
from robustvae.seeding import seeded, split

Features = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to features (B, f)."""

_BATCH = 128


@final
class FeatureNet(nn.Module):
    """A small convolutional network whose last layer but one describes an image in 64 numbers.

    Three convolutions of stride 2 with ReLU between, the mean over the positions, and a linear
    layer on top that `train_features` teaches the classes.

    Args:
        channels: Of the images.
        classes: To tell apart.

    Examples:
        >>> import torch
        >>> from robustvae.evaluation import FeatureNet
        >>> FeatureNet(channels=1, classes=10)(torch.rand(3, 1, 28, 28)).shape
        torch.Size([3, 64])
    """

    def __init__(self, channels: int, classes: int) -> None:
        """Build it; torch's global generator makes the first weights."""
        super().__init__()
        check_count(channels, "channels")
        check_count(classes, "classes")
        widths = (channels, 16, 32, 64)
        layers: list[nn.Module] = []
        for low, high in itertools.pairwise(widths):
            layers += [nn.Conv2d(low, high, 3, stride=2, padding=1), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images in [0, 1], (B, C, H, W), to features, (B, 64)."""
        features: Tensor = self.convolutions(x - 0.5).mean((2, 3))
        return features


@checked(formula=True)
def train_features(images: Images, *, epochs: int = 2, generator: torch.Generator) -> FeatureNet:
    """A `FeatureNet` taught to tell the classes of `images` apart, for Fréchet distances.

    Warning:
        Distances in these features compare with distances in the same network's only, never with
        published ones, which use Inception's.

    Args:
        images: With labels.
        epochs: Passes over them.
        generator: Decides the first weights and the order.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.evaluation import train_features
        >>> features = train_features(rv.data.load("digits"), generator=rv.generator(0))
        >>> features(rv.data.load("digits").x[:2]).shape
        torch.Size([2, 64])
    """
    check_type(images, "images", Images)
    check_count(epochs, "epochs", least=0)
    check_type(generator, "generator", torch.Generator)
    with seeded(split(generator, 1)[0].initial_seed()):
        network = FeatureNet(images.image_shape[0], int(images.y.max()) + 1)
    network.to(images[0].x)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    with torch.enable_grad():
        for _ in range(epochs):
            for batch in permutation(len(images), generator).split(_BATCH):
                logits = network.classifier(network(images.read(batch)))
                optimizer.zero_grad()
                functional.cross_entropy(logits, images.y[batch]).backward()
                optimizer.step()
    return network.eval().requires_grad_(False)


def inception_features() -> Features:
    """The 2048 features of Inception that published Fréchet distances use.

    Images are widened to three channels and resized by the package itself.

    Raises:
        MissingExtraError: The package pytorch-fid, which brings the network, is not installed.

    References:
        Heusel et al., 2017, Eq. 6.

    Examples:
        >>> from robustvae import errors
        >>> from robustvae.evaluation import inception_features
        >>> try:
        ...     features = inception_features()
        ... except errors.MissingExtraError as error:
        ...     print("pytorch-fid" in str(error))
        True
    """
    try:
        module = importlib.import_module("pytorch_fid.inception")
    except ImportError:
        raise MissingExtraError(
            "Inception's features come with the package pytorch-fid, which is not installed: "
            "pip install pytorch-fid, or use train_features"
        ) from None
    network = module.InceptionV3([module.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()

    def features(x: Tensor) -> Tensor:
        wide = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        activations: Tensor = network(wide.float())[0]
        return activations.mean((2, 3))

    return features


@checked(formula=True)
def frechet_distance(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> float:
    """Fréchet (2-Wasserstein) distance of two Gaussians, squared.

    |m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2)

    Args:
        mean: m, (f,).
        cov: C, symmetric and not negative, (f, f).
        other_mean: m', (f,).
        other_cov: C', (f, f).

    Raises:
        ShapeError: Means and covariances that do not fit.

    References:
        Dowson & Landau, 1982, Eq. 4; Heusel et al., 2017, Eq. 6.

    Examples:
        >>> import torch
        >>> from robustvae.evaluation import frechet_distance
        >>> zero, one, eye = torch.zeros(2), torch.ones(2), torch.eye(2)
        >>> frechet_distance(zero, eye, one, 4 * eye)
        4.0
    """
    f = len(mean) if mean.ndim == 1 else -1
    shapes = [tuple(value.shape) for value in (mean, cov, other_mean, other_cov)]
    if shapes != [(f,), (f, f), (f,), (f, f)]:
        raise ShapeError(f"means and covariances must be (f,) and (f, f), got {shapes}")
    mean, cov, other_mean, other_cov = (
        value.double() for value in (mean, cov, other_mean, other_cov)
    )
    values, vectors = torch.linalg.eigh(cov)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ other_cov @ root).clamp_min(0).sqrt().sum()
    mean_term = (mean - other_mean).square().sum()
    return float(mean_term + cov.trace() + other_cov.trace() - 2 * cross)


@checked(formula=True)
def frechet_of(
    real: Tensor, made: Tensor, features: Features, *, folds: int = 10
) -> tuple[float, float]:
    """Fréchet distance of two sets of images in a network's features, and its standard error.

    The error is the jackknife's over `folds` parts left out of both sets in turn.

    Warning:
        The estimate is too high for few images, by much where they are fewer than ten times the
        features: compare numbers from as many images only.

    Args:
        real: Images in [0, 1], (N, C, H, W).
        made: Images in [0, 1], (M, C, H, W).
        features: Such as `train_features(...)` or `inception_features()`.
        folds: Parts, at least 2.

    Raises:
        ShapeError: Fewer than two images a part.

    References:
        Heusel et al., 2017, Eq. 6; Efron & Stein, 1981.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.evaluation import frechet_of, train_features
        >>> images = rv.data.load("digits")
        >>> features = train_features(images, generator=rv.generator(0))
        >>> distance, stderr = frechet_of(images.x[:400], images.x[400:800], features)
        >>> 0 < distance < 0.1
        True
    """
    check_images(real, name="real")
    channels, height, width = real.shape[1:]
    check_images(made, (channels, height, width), name="made")
    check_count(folds, "folds", least=2)
    if min(len(real), len(made)) < 2 * folds:
        raise ShapeError(f"{folds} folds want {2 * folds} images, got {len(real)}, {len(made)}")
    with torch.no_grad():
        feature_pair = [
            torch.cat([features(part) for part in x.split(ROWS)]).double() for x in (real, made)
        ]
    distance = _distance(*feature_pair)
    left_out = []
    for fold in range(folds):
        subsets = (part[torch.arange(len(part)) % folds != fold] for part in feature_pair)
        left_out.append(_distance(*subsets))
    spread = torch.tensor(left_out, dtype=torch.float64).var(correction=0)
    return distance, float((spread * (folds - 1)).sqrt())


def _distance(real: Tensor, made: Tensor) -> float:
    return frechet_distance(real.mean(0), real.mT.cov(), made.mean(0), made.mT.cov())
