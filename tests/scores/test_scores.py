"""Anomaly scores against their definitions."""

from __future__ import annotations

import pytest
import torch

import robustvae as rv
from robustvae.errors import RobustVAEError
from robustvae.scores import (
    ContrastError,
    ImportanceWeighted,
    LatentDistance,
    NegativeELBO,
    NoisyDistance,
    ReconstructionError,
)
from robustvae.testing import members_of, tiny_vae
from robustvae.testing.planted import gray_images


@pytest.fixture
def victim():
    return rv.Victim(tiny_vae())


def test_every_score_is_tested():
    names = {
        "anomaly-score",
        "contrast-error",
        "detector",  # in tests/audit/profiles, with the adapter
        "importance-weighted",
        "latent-distance",
        "negative-elbo",
        "noisy-distance",
    }
    assert names == members_of("robustvae", "score")


def test_error_is_the_distance(victim, generator):
    x = gray_images(4)
    y = victim.reconstruct(x, generator=generator)
    slow = torch.stack([(x[i] - y[i]).norm() for i in range(4)])
    torch.testing.assert_close(ReconstructionError()(victim, x, generator=generator), slow)
    squared = ReconstructionError(squared=True)(victim, x, generator=generator)
    torch.testing.assert_close(squared, slow**2)


def test_contrast_error_is_of_the_cut(victim, generator):
    """Pixel by pixel the cut of the definition; its slopes are those of the line everywhere."""
    x = torch.linspace(0, 1, 32).reshape(2, 1, 4, 4)
    score = ContrastError(0.2, 0.7)
    cut = torch.tensor([min(max((v - 0.2) / 0.5, 0.0), 1.0) for v in x.flatten().tolist()])
    slow = ReconstructionError()(victim, cut.reshape(x.shape).to(x), generator=generator)
    torch.testing.assert_close(score(victim, x, generator=generator), slow)
    # within the ends the score of an uncut line has the same gradient; flat parts have one too
    middle = (0.3 + 0.3 * x).requires_grad_()
    line = (middle - 0.2) / 0.5
    expected = torch.autograd.grad(
        ReconstructionError()(victim, line, generator=generator).sum(), middle
    )
    actual = torch.autograd.grad(score(victim, middle, generator=generator).sum(), middle)
    torch.testing.assert_close(actual, expected)
    black = torch.zeros_like(x).requires_grad_()
    (slope,) = torch.autograd.grad(score(victim, black, generator=generator).sum(), black)
    assert (slope != 0).any(dim=(1, 2, 3)).all()


def test_contrast_error_ignores_small_changes(victim, generator):
    x = (torch.rand(3, 1, 4, 4, generator=generator) > 0.5).to(torch.float64)
    moved = (x + 0.1 * torch.randn_like(x).sign()).clamp(0, 1)
    score = ContrastError(0.100001, 0.899999)
    assert torch.equal(
        score(victim, x, generator=generator), score(victim, moved, generator=generator)
    )
    with pytest.raises(RobustVAEError, match="low must lie below high and both in"):
        ContrastError(0.6, 0.4)


def test_elbo_matches_closed_form(generator):
    """Over draws of z the score's mean is -E log p(x|z) + KL, whose KL is in closed form."""
    vae, x = tiny_vae(), gray_images(2)
    victim = rv.Victim(vae, rv.PosteriorSample())
    score = NegativeELBO()
    draws = torch.stack([score(victim, x, generator=generator) for _ in range(4000)]).detach()
    q = vae.encode(x)
    kl = 0.5 * (q.mean**2 + q.stddev**2 - 1 - 2 * q.stddev.log()).sum(1)
    z = rv.draw(q, (4000,), generator=generator)
    likelihood = vae.decode(z.flatten(0, 1)).log_prob(x.repeat(4000, 1, 1, 1)).flatten(1).sum(1)
    exact = kl - likelihood.reshape(4000, 2).mean(0)
    error = (draws.std(0) ** 2 / 4000 + likelihood.reshape(4000, 2).std(0) ** 2 / 4000).sqrt()
    assert ((draws.mean(0) - exact).abs() < 4 * error).all()


def test_importance_weights_match_likelihood(victim, generator):
    """With many draws the estimate is the one of `negative_log_likelihood`."""
    from robustvae.evaluation.likelihood import negative_log_likelihood

    x = gray_images(2)
    many = ImportanceWeighted(draws=3000)(victim, x, generator=generator).detach()
    slow = negative_log_likelihood(victim.vae, x, draws=3000, generator=rv.generator(1))
    torch.testing.assert_close(many, slow, atol=0.05, rtol=0)


def test_latent_distance_is_whitened(generator):
    vae = tiny_vae()
    x = torch.rand(400, 1, 4, 4, generator=generator)
    score = LatentDistance.fit(vae, x, shrinkage=1e-9)
    distances = score(rv.Victim(vae), x, generator=generator).detach()
    # the mean squared Mahalanobis distance of the fitted sample is d (n - 1) / n
    assert distances.square().mean() == pytest.approx(vae.latent * 399 / 400, rel=1e-6)


def test_bad_fits_are_refused():
    with pytest.raises(RobustVAEError, match="at least 2"):
        LatentDistance.fit(tiny_vae(), gray_images(1))
    with pytest.raises(RobustVAEError, match="fit"):
        LatentDistance(torch.zeros(2), torch.zeros(3, 3))


@pytest.mark.parametrize("score", [ReconstructionError(), NegativeELBO(), ImportanceWeighted(4)])
def test_scores_have_gradients(victim, score):
    x = gray_images(3).requires_grad_()
    (gradient,) = torch.autograd.grad(score(victim, x, generator=rv.generator(0)).sum(), x)
    assert gradient.isfinite().all() and (gradient.flatten(1).norm(dim=1) > 0).all()


def test_noisy_distance_is_of_one_reading(generator):
    """Row by row: both numbers of the same noisy input, in deviations from normal ones."""
    vae, x = tiny_vae(), gray_images(40)
    victim = rv.Victim(vae, rv.InputNoise(stddev=0.3, defense=rv.PosteriorMean()))
    score = NoisyDistance.fit(victim, x, generator=generator, blur=0.0)
    values = score(victim, x[:3], generator=rv.generator(5))
    u = victim.noise.noisy(x[:3], generator=rv.generator(5))
    for i in range(3):
        code = vae.encode(u[i : i + 1]).mean
        length = (u[i] - vae.decode(code).mean[0]).norm()
        gap = code[0] - score.distance.mean
        far = (gap @ score.distance.precision @ gap).clamp_min(0).sqrt()
        slow = (length - score.center[0]) / score.spread[0] + (
            far - score.center[1]
        ) / score.spread[1]
        torch.testing.assert_close(values[i], slow)
    blurred = NoisyDistance.fit(victim, x, generator=generator, blur=1.0)
    assert blurred.center[0] < 0.8 * score.center[0]  # the noise hardly passes the blur


def test_noisy_distance_is_certified(generator):
    """No shift within the radius moves the smoothed median out of its interval."""
    vae, x = tiny_vae(), gray_images(40)
    victim = rv.Victim(vae, rv.InputNoise(stddev=0.3, defense=rv.PosteriorMean()))
    score = NoisyDistance.fit(victim, x, generator=generator)
    bounds = rv.certify_score(victim, x[:2], score, [0.2], draws=2000, generator=generator)
    attack = rv.Attack(rv.AnomalyScore(score=score), rv.ProjectedAscent(10, 1), rv.Ball("l2", 0.2))
    x_adv = attack(victim, x[:2], generator=generator).x_adv
    for i in range(2):
        many = x_adv[i : i + 1].repeat(2001, 1, 1, 1)
        median = score(victim, many, generator=generator).median()
        assert bounds.lower[i, 0] <= median <= bounds.upper[i, 0]


def test_noisy_distance_refuses():
    vae, x = tiny_vae(), gray_images(4)
    one = rv.Victim(vae, rv.InputNoise(stddev=0.3))
    score = NoisyDistance.fit(one, x, generator=rv.generator(0))
    with pytest.raises(RobustVAEError, match="one noisy input at a time, got 3 votes"):
        score(rv.Victim(vae, rv.InputNoise(stddev=0.3, votes=3)), x, generator=rv.generator(0))
    with pytest.raises(RobustVAEError, match=r"use NoisyDistance\.fit"):
        NoisyDistance(score.distance, torch.zeros(3), torch.ones(2))
    with pytest.raises(RobustVAEError, match=r"blur must be at least 0"):
        NoisyDistance.fit(one, x, generator=rv.generator(0), blur=-1.0)
