"""Fréchet distances: of Gaussians by formula, of images that come from two known ones."""

from __future__ import annotations

import math
import sys
import types

import pytest
import scipy.linalg
import torch
from torch.testing import assert_close

import robustvae as rv
from robustvae import errors
from robustvae.evaluation import (
    frechet_distance,
    frechet_of,
    inception_features,
    train_features,
)


def covariance(generator, rank=4):
    root = torch.randn(4, rank, generator=generator)
    return root @ root.mT


@pytest.mark.parametrize("rank", [4, 2])
def test_two_gaussians_matrix_square_root(generator, rank):
    one, other = covariance(generator), covariance(generator, rank)
    mean = torch.randn(4, generator=generator)
    root = torch.from_numpy(scipy.linalg.sqrtm((one @ other).numpy() + 0j).real.astype("float64"))
    by_hand = mean.square().sum() + (one + other - 2 * root).trace()
    found = frechet_distance(mean, one, torch.zeros(4), other)
    assert found == pytest.approx(float(by_hand), rel=1e-5, abs=1e-6)
    assert frechet_distance(torch.zeros(4), other, mean, one) == pytest.approx(found, abs=1e-6)


def test_of_commuting_gaussians_in_closed_form():
    a, b = torch.tensor([1.0, 4.0]), torch.tensor([9.0, 0.25])
    found = frechet_distance(torch.zeros(2), a.diag(), torch.ones(2), b.diag())
    assert found == pytest.approx(2 + float((a.sqrt() - b.sqrt()).square().sum()))
    with pytest.raises(errors.ShapeError):
        frechet_distance(torch.zeros(3), a.diag(), torch.ones(2), b.diag())


def test_of_images_whose_features_are_gaussian(generator):
    """Pixels N(0.5, s^2) independent: the distance is D ((m - m')^2 + (s - s')^2)."""
    n = 4000

    def images(mean, stddev):
        return (mean + stddev * torch.randn(n, 1, 2, 2, generator=generator)).clamp(0, 1)

    value, stderr = frechet_of(images(0.5, 0.05), images(0.6, 0.08), lambda x: x.flatten(1))
    assert abs(value - 4 * (0.1**2 + 0.03**2)) < 4 * stderr
    assert 0 < stderr < 0.1 * value


def test_the_jackknife_agrees_with_repetition(generator):
    def found():
        real = 0.5 + 0.1 * torch.randn(400, 1, 2, 2, generator=generator)
        made = 0.6 + 0.1 * torch.randn(400, 1, 2, 2, generator=generator)
        return frechet_of(real.clamp(0, 1), made.clamp(0, 1), lambda x: x.flatten(1))

    values, stderrs = torch.tensor([found() for _ in range(60)]).unbind(1)
    assert 0.6 < float(stderrs.mean() / values.std()) < 1.6


def test_features_separate_classes_and_noise(generator):
    train, test = rv.data.load("digits"), rv.data.load("digits", split="test").x
    features = train_features(train, epochs=4, generator=rv.generator(0))
    again = train_features(train, epochs=4, generator=rv.generator(0))
    assert_close(again(test), features(test), rtol=0, atol=0)
    real, _ = frechet_of(train.x[:300], test[:300], features)
    noise, _ = frechet_of(train.x[:300], torch.rand(300, 1, 8, 8).float(), features)
    assert noise > 20 * real
    logits = features.classifier(features(test))
    right = (logits.argmax(1) == rv.data.load("digits", split="test").y).double().mean()
    assert right > 0.5
    assert not any(p.requires_grad for p in features.parameters())


def test_inception_where_the_user_has_it(monkeypatch):
    class Inception(torch.nn.Module):
        BLOCK_INDEX_BY_DIM = {2048: 3}  # noqa: RUF012

        def __init__(self, blocks):
            super().__init__()
            assert blocks == [3]

        def forward(self, x):
            assert x.shape[1] == 3 and x.dtype == torch.float32
            return [x.mean((2, 3), keepdim=True).repeat(1, 4, 1, 1)]

    module = types.ModuleType("pytorch_fid.inception")
    module.InceptionV3 = Inception
    monkeypatch.setitem(sys.modules, "pytorch_fid", types.ModuleType("pytorch_fid"))
    monkeypatch.setitem(sys.modules, "pytorch_fid.inception", module)
    features = inception_features()
    assert features(torch.full((2, 1, 8, 8), 0.25)).shape == (2, 12)
    value, _ = frechet_of(torch.zeros(40, 1, 8, 8), torch.full((40, 3, 8, 8), 0.5)[:, :1], features)
    assert value == pytest.approx(12 * 0.25)


def test_inception_where_user_has_it_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_fid.inception", None)
    with pytest.raises(errors.MissingExtraError, match="pip install pytorch-fid"):
        inception_features()


def test_refuses_too_few_images():
    few = torch.zeros(5, 1, 2, 2)
    with pytest.raises(errors.ShapeError):
        frechet_of(few, few, lambda x: x.flatten(1))
    assert math.isclose(frechet_of(few, few, lambda x: x.flatten(1), folds=2)[0], 0, abs_tol=1e-12)
