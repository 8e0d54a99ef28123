"""r-robustness against a linear Gaussian VAE, where all of it is known in closed form.

g(z) = a Q z with orthonormal columns and sigma(x) = s, so ||Delta||^2 / (a s)^2 is noncentral chi
squared, with noncentrality ||A delta||^2 / s^2 (and 2 s^2 for s^2 where both ends are drawn).
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import chi2, ncx2, norm

import robustvae as rv
from robustvae import robustness
from robustvae.errors import (
    DtypeError,
    NonFiniteError,
    RangeError,
    RobustVAEError,
    ShapeError,
    UnsupportedError,
)
from robustvae.metrics import clopper_pearson
from robustvae.robustness import (
    Bisection,
    displacements,
    find_margin,
    find_margins,
    overall_margin,
    rest_quantile,
    robustness_curve,
)
from robustvae.seeding import generator, rand, randn

GAIN, SPREAD, LATENT, SHAPE = 2.0, 0.1, 3, (1, 2, 4)
PIXELS = math.prod(SHAPE)
NOISES = {"centered": 1.0, "full": 1.0, "paired": math.sqrt(2.0)}
LIKE = torch.zeros(0, dtype=torch.float64)


def linear_vae(encoder, spread=SPREAD, slope=0.0, detach=False):
    """mu = A x, sigma = spread (1 + slope mean(x)), g = GAIN Q z."""
    latent = len(encoder)
    turn, _ = torch.linalg.qr(randn(PIXELS, latent, like=LIKE, generator=generator(7)))

    def encode(x):
        flat = (x.detach() if detach else x).flatten(1)
        sigma = spread * (1 + slope * flat.mean(1, keepdim=True))
        return rv.models.Gaussian(flat @ encoder.mT, sigma.expand(-1, latent))

    def decode(z):
        mean = (GAIN * z @ turn.mT).view(-1, *SHAPE)
        return rv.models.Gaussian(mean, torch.ones_like(mean))

    return rv.wrap(encode=encode, decode=decode, latent=latent, image_shape=SHAPE)


def some_encoder(latent=LATENT):
    return randn(latent, PIXELS, like=LIKE, generator=generator(3)) / 4


def within(r, shift, spread, latent=LATENT):
    """P(||Delta|| <= r) where the latent moves by `shift` and is drawn with `spread`."""
    spread = torch.as_tensor(spread)
    return ncx2.cdf((r / (GAIN * spread)) ** 2, latent, (torch.as_tensor(shift) / spread) ** 2)


def exact_shift(r, m, displacement, spread=SPREAD, latent=LATENT):
    """The latent shift at which P(||Delta|| <= r) = m."""
    noise = spread * NOISES[displacement]
    return brentq(lambda shift: float(within(r, shift, noise, latent)) - m, 1e-6, 10.0)


def images(batch, seed=1):
    return rand(batch, *SHAPE, like=LIKE, generator=generator(seed))


def moved(x, size, seed=5):
    direction = randn(*x.shape, like=x, generator=generator(seed))
    return x + size * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def shift_of(encoder, x, x_adv):
    return ((x_adv - x).flatten(1) @ encoder.mT).norm(dim=1)


@pytest.mark.parametrize("displacement", ["centered", "full", "paired"])
def test_each_version_is_its_own_noncentral_chi_square(displacement, generator):
    encoder = some_encoder()
    vae, x = linear_vae(encoder, slope=1.5), images(40)
    x_adv = moved(x + 0.4, 0.5)
    shift = shift_of(encoder, x, x_adv)
    rest, attacked = (vae.encode(y).stddev[:, 0] for y in (x, x_adv))
    spread = {"centered": rest, "full": attacked, "paired": (rest**2 + attacked**2).sqrt()}
    exact = {name: torch.as_tensor(within(1.2, shift, spread[name])) for name in NOISES}
    found = rv.robustness_probability(
        rv.Victim(vae), x, x_adv, 1.2, displacement, generator=generator, confidence=1 - 1e-5
    )
    inside = {name: ((found.low <= p) & (p <= found.high)).all() for name, p in exact.items()}
    assert inside == {name: name == displacement for name in NOISES}
    assert found.box is None and found.value.shape == (40,)


def test_the_clopper_pearson_interval_covers(generator):
    encoder = some_encoder()
    x = images(1).expand(600, *SHAPE)
    x_adv = moved(x[:1], 1.0).expand_as(x)
    exact = float(within(1.0, shift_of(encoder, x[:1], x_adv[:1]), SPREAD)[0])
    found = rv.robustness_probability(
        rv.Victim(linear_vae(encoder)),
        x,
        x_adv,
        1.0,
        "centered",
        generator=generator,
        draws=50,
        confidence=0.8,
    )
    covered = ((found.low <= exact) & (exact <= found.high)).double().mean()
    assert 0.05 < exact < 0.95
    assert covered >= 0.8 - 4 * math.sqrt(0.8 * 0.2 / 600)


@pytest.mark.parametrize("displacement", ["centered", "paired"])
def test_a_defense_is_sampled_through(displacement, generator):
    encoder = some_encoder()
    vae, x = linear_vae(encoder), images(10)
    x_adv = moved(x, 0.6)
    victim = rv.Victim(vae, rv.PosteriorSample())
    found = rv.robustness_probability(
        victim, x, x_adv, 1.0, displacement, generator=generator, confidence=1 - 1e-5
    )
    exact = torch.as_tensor(within(1.0, shift_of(encoder, x, x_adv), SPREAD * NOISES[displacement]))
    assert ((found.low <= exact) & (exact <= found.high)).all()


def test_a_defense_has_no_version_full(generator):
    victim = rv.Victim(linear_vae(some_encoder()), rv.PosteriorSample())
    with pytest.raises(UnsupportedError, match="full"):
        rv.robustness_probability(victim, images(1), images(1), 1.0, "full", generator=generator)


def test_the_curve_is_the_closed_form_and_monotone(generator):
    encoder, x = some_encoder(), images(6)
    direction = randn(*x.shape, like=x, generator=generator)
    sizes = [0.0, 0.3, 0.6, 1.2, 2.4]
    curve = robustness_curve(
        rv.Victim(linear_vae(encoder)),
        x,
        direction,
        sizes,
        1.0,
        "centered",
        generator=generator,
        confidence=1 - 1e-5,
    )
    unit = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    slope = shift_of(encoder, x, x + unit)
    exact = torch.as_tensor(within(1.0, slope[:, None] * torch.tensor(sizes), SPREAD))
    assert ((curve.low <= exact) & (exact <= curve.high)).all()
    assert (curve.value.diff(dim=1) <= 0).all()
    assert curve.box is False


def test_a_boxed_curve_stays_in_the_box(generator):
    seen = []
    vae = linear_vae(some_encoder())
    watched = rv.wrap(
        encode=lambda x: (seen.append(x), vae.encode(x))[1],
        decode=vae.decode,
        latent=LATENT,
        image_shape=SHAPE,
    )
    x = images(3)
    robustness_curve(
        rv.Victim(watched), x, x - 0.5, [5.0], 1.0, "full", generator=generator, box=True
    )
    assert all(y.min() >= 0 and y.max() <= 1 for y in seen)


def test_the_rest_quantile_covers(generator):
    x = images(1).expand(500, *SHAPE)
    victim = rv.Victim(linear_vae(some_encoder()))
    for displacement, noise in NOISES.items():
        exact = GAIN * SPREAD * noise * math.sqrt(chi2.ppf(0.7, LATENT))
        found = rest_quantile(
            victim, x, 0.7, displacement, generator=generator, draws=60, confidence=0.8
        )
        covered = ((found.low <= exact) & (exact <= found.high)).double().mean()
        assert 0.8 - 4 * math.sqrt(0.16 / 500) <= covered <= 0.95
        assert abs(found.value.mean() - exact) < 0.05 * exact


def test_the_rest_quantile_of_few_draws_is_open_above(generator):
    victim = rv.Victim(linear_vae(some_encoder()))
    found = rest_quantile(victim, images(2), 0.99, "centered", generator=generator, draws=20)
    assert found.high.isinf().all() and (found.low > 0).all()


@pytest.mark.parametrize("displacement", ["centered", "full", "paired"])
def test_the_free_margin_of_a_linear_vae(displacement, generator):
    encoder, x = some_encoder(), images(12)
    exact = exact_shift(1.0, 0.5, displacement) / float(torch.linalg.matrix_norm(encoder, 2))
    found = find_margin(
        rv.Victim(linear_vae(encoder)),
        x,
        1.0,
        0.5,
        displacement,
        box=False,
        generator=generator,
        confidence=1 - 1e-5,
    )
    value = found.estimate.value
    assert (value >= exact).all() and (value <= 1.35 * exact).all()
    assert (found.probability_high <= 0.5).all()
    torch.testing.assert_close(value, (found.x_adv - x).flatten(1).norm(dim=1))
    assert found.estimate.status == ("ok",) * 12
    assert not found.estimate.low.any() and found.estimate.high is value


def test_a_boxed_margin_stays_in_the_box_and_is_the_larger(generator):
    encoder, x = some_encoder(), images(12).round()
    exact = exact_shift(1.0, 0.5, "centered") / float(torch.linalg.matrix_norm(encoder, 2))
    victim = rv.Victim(linear_vae(encoder))
    found = find_margins(victim, x, 1.0, 0.5, "centered", generator=generator)
    box, free = found.box, found.free
    assert box.x_adv.min() >= 0 and box.x_adv.max() <= 1
    assert (box.estimate.value >= exact).all() and box.estimate.box
    assert box.estimate.value.mean() > 1.1 * free.estimate.value.mean()
    assert (free.estimate.value >= exact).all() and not free.estimate.box
    assert box.estimate.confidence == free.estimate.confidence == 0.95
    for margin in (box, free):
        size = (margin.x_adv - x).flatten(1).norm(dim=1)
        torch.testing.assert_close(margin.estimate.value, size)


def test_free_is_never_above_box(generator):
    """Also where the free search is so poor that it finds next to nothing of its own."""
    victim, x = rv.Victim(linear_vae(some_encoder())), images(30)
    poor = Bisection(rv.ProjectedAscent(steps=1, restarts=1), rounds=0)
    found = find_margins(
        victim, x, 1.0, 0.5, "paired", generator=generator, draws=200, bisection=poor
    )
    assert (found.free.estimate.value <= found.box.estimate.value).all()
    assert found.box.estimate.value.isfinite().any()


def test_the_margin_in_the_maximum_norm(generator):
    encoder, x = some_encoder(), images(6)
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=PIXELS)))
    reach = float((corners @ encoder.mT).norm(dim=1).max())
    exact = exact_shift(1.0, 0.5, "centered") / reach
    found = rv.estimate_margin(
        rv.Victim(linear_vae(encoder)),
        x,
        1.0,
        0.5,
        "centered",
        norm="linf",
        box=False,
        generator=generator,
        confidence=1 - 1e-5,
    )
    assert (found.value >= exact).all() and (found.value <= 1.35 * exact).all()


def isotropic(latent):
    turn, _ = torch.linalg.qr(randn(PIXELS, latent, like=LIKE, generator=generator(11)))
    return turn.mT


def share_of_sound_margins(batch, seed):
    """Few draws, much noise and many equal directions to choose from: what tempts an estimate."""
    latent, spread, confidence, r = 6, 0.5, 0.8, 2.8
    encoder = isotropic(latent)
    x = images(1).expand(batch, *SHAPE).contiguous()
    directions = randn(100, 1, latent, like=LIKE, generator=generator(seed)) @ encoder
    directions = directions / directions.norm(dim=2, keepdim=True)
    candidates = x + 3 * directions.view(100, 1, *SHAPE)
    found = rv.estimate_margin(
        rv.Victim(linear_vae(encoder, spread)),
        x,
        r,
        0.5,
        "centered",
        box=False,
        generator=generator(seed + 1),
        confidence=confidence,
        draws=40,
        bisection=Bisection(
            rv.ProjectedAscent(steps=1, restarts=1), rounds=0, draws=40, largest=3.0
        ),
        candidates=candidates,
    )
    exact = exact_shift(r, 0.5, "centered", spread, latent)
    return float((found.value >= exact).double().mean()), confidence, found.value / exact


def test_margins_are_sound_in_their_share_of_runs():
    share, confidence, ratio = share_of_sound_margins(200, 100)
    assert share >= confidence - 4 * math.sqrt(confidence * (1 - confidence) / 200)
    assert ratio[ratio.isfinite()].median() < 2


def test_a_fault_reusing_the_choosing_draws_is_caught(monkeypatch):
    """Deciding by the draws that chose is what fresh draws are for: it must break the share.

    Without the slack that makes tests pass at once, which hides the fault; fresh draws need none.
    """

    def least_that_passes(m, draws, search_draws, confidence):
        high = clopper_pearson(np.arange(draws + 1), draws, confidence, sides=1)[1]
        return int((high <= m).sum()) - 1

    monkeypatch.setattr(robustness, "_failing_count", least_that_passes)
    share, confidence, _ = share_of_sound_margins(200, 100)
    lowest = confidence - 4 * math.sqrt(confidence * (1 - confidence) / 200)
    assert share >= lowest

    honest, fixed = robustness.displacements, generator(0)

    def reused(*args, generator, **settings):
        return honest(*args, generator=fixed.clone_state(), **settings)

    monkeypatch.setattr(robustness, "displacements", reused)
    share, _, _ = share_of_sound_margins(200, 100)
    assert share < lowest


def test_not_robust_at_rest(generator):
    victim = rv.Victim(linear_vae(some_encoder()))
    rest = GAIN * SPREAD * math.sqrt(chi2.ppf(0.5, LATENT))
    found = find_margin(victim, images(4), 0.8 * rest, 0.5, "centered", generator=generator)
    assert not found.estimate.value.any()
    assert found.estimate.status == ("not robust at rest",) * 4
    assert (found.x_adv == images(4)).all()


def test_no_failure_found_is_infinite(generator):
    victim = rv.Victim(linear_vae(some_encoder()))
    found = find_margin(victim, images(4), 1e6, 0.5, "paired", generator=generator)
    assert found.estimate.value.isinf().all() and not found.estimate.low.any()
    assert found.estimate.status == ("no failing perturbation found",) * 4
    assert found.probability_high.isnan().all()
    assert found.largest == math.sqrt(PIXELS)


def test_no_gradient_is_inconclusive(generator):
    victim = rv.Victim(linear_vae(some_encoder(), detach=True))
    found = rv.estimate_margin(victim, images(2), 1e6, 0.5, "centered", generator=generator)
    assert found.value.isinf().all()
    assert all(word.startswith("inconclusive") for word in found.status)


@pytest.mark.parametrize("displacement", ["centered", "paired"])
def test_the_margin_of_a_random_defense(displacement, generator):
    encoder, x = some_encoder(), images(4)
    exact = exact_shift(1.0, 0.5, displacement) / float(torch.linalg.matrix_norm(encoder, 2))
    found = rv.estimate_margin(
        rv.Victim(linear_vae(encoder), rv.PosteriorSample()),
        x,
        1.0,
        0.5,
        displacement,
        box=False,
        generator=generator,
        confidence=1 - 1e-5,
    )
    assert (found.value >= exact).all() and (found.value <= 1.5 * exact).all()


def test_a_good_candidate_helps_a_poor_search(generator):
    encoder, x = some_encoder(), images(4)
    exact = exact_shift(1.0, 0.5, "centered") / float(torch.linalg.matrix_norm(encoder, 2))
    top = torch.linalg.svd(encoder).Vh[0].view(1, *SHAPE)
    poor = Bisection(rv.ProjectedAscent(steps=1, restarts=1, step=1e-9), rounds=0)
    victim = rv.Victim(linear_vae(encoder))

    def margin(candidates):
        return rv.estimate_margin(
            victim,
            x,
            1.0,
            0.5,
            "centered",
            box=False,
            generator=generator,
            bisection=poor,
            candidates=candidates,
        ).value

    assert (margin((x + 2 * top)[None]) < 1.35 * exact).all()
    assert margin(None).isinf().all()


def test_the_same_generator_gives_the_same_margin():
    victim, x = rv.Victim(linear_vae(some_encoder())), images(3)
    first, second = (
        rv.estimate_margin(victim, x, 1.0, 0.5, "paired", generator=generator(4)).value
        for _ in range(2)
    )
    assert (first == second).all()


def test_model_and_global_randomness_are_left_alone(generator):
    vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=SHAPE, hidden=[8])
    vae.train()
    x = images(2)
    before = torch.get_rng_state()
    rv.estimate_margin(rv.Victim(vae), x, 0.5, 0.5, "full", generator=generator)
    assert (torch.get_rng_state() == before).all()
    assert vae.training and all(p.requires_grad and p.grad is None for p in vae.parameters())


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_chunks_of_any_size(chunk, generator):
    victim, x = rv.Victim(linear_vae(some_encoder())), images(3)
    found = displacements(victim, x, x, "paired", generator=generator, draws=40, chunk=chunk)
    assert found.shape == (40, 3) and not found.requires_grad
    assert len(found.unique()) == 120


def margins(values):
    values = torch.as_tensor(values)
    return rv.Estimate(values, torch.zeros_like(values), values, 0.95, box=True)


def test_the_overall_margin_covers():
    draws = 3 + randn(600, 12, like=LIKE, generator=generator(8))
    means = [overall_margin(margins(row), confidence=0.8) for row in draws]
    covered = sum(mean.low <= 3 <= mean.high for mean in means) / 600
    assert abs(covered - 0.8) < 4 * math.sqrt(0.16 / 600)
    known = norm.ppf(0.9) / math.sqrt(12)
    assert 0.8 * known < sum(mean.high - mean.value for mean in means) / 600 < 1.3 * known


def test_an_infinite_margin_makes_the_mean_infinite():
    mean = overall_margin(margins([1.0, 2.0, math.inf, 2.0]))
    assert mean.value == mean.high == math.inf
    assert 0 < mean.low < 1.75
    assert mean.status == ("1 of 4 margins are infinite",)
    nothing = overall_margin(margins([math.inf]))
    assert (nothing.low, nothing.value) == (0.0, math.inf)
    one = overall_margin(margins([2.0]))
    assert (one.low, one.value, one.high) == (0.0, 2.0, math.inf)


def test_bad_arguments_are_refused(generator):
    victim, x = rv.Victim(linear_vae(some_encoder())), images(2)
    with pytest.raises(RobustVAEError, match="centered"):
        rv.robustness_probability(victim, x, x, 1.0, "centred", generator=generator)
    with pytest.raises(ShapeError, match="x_adv"):
        rv.robustness_probability(victim, x, x[:1], 1.0, "paired", generator=generator)
    with pytest.raises(RangeError, match="r must be positive"):
        rv.robustness_probability(victim, x, x, 0.0, "paired", generator=generator)
    with pytest.raises(RangeError, match="x must lie"):
        rv.estimate_margin(victim, x + 1, 1.0, 0.5, "paired", generator=generator)
    with pytest.raises(RangeError, match="draws must be at least"):
        rv.estimate_margin(victim, x, 1.0, 1e-4, "paired", generator=generator)
    with pytest.raises(RangeError, match="length"):
        robustness_curve(victim, x, 0 * x, [1.0], 1.0, "paired", generator=generator)
    with pytest.raises(RangeError, match="sizes"):
        robustness_curve(victim, x, x, [-1.0], 1.0, "paired", generator=generator)
    with pytest.raises(RangeError, match="rounds"):
        Bisection(rounds=-1)


@pytest.mark.parametrize(
    ("candidates", "error"),
    [
        (images(2), ShapeError),
        (images(3)[None], ShapeError),
        (images(2)[:0].unsqueeze(0), ShapeError),
        (images(2)[None].numpy(), DtypeError),
        (images(2)[None] + 1, RangeError),
        (images(2)[None] * math.nan, NonFiniteError),
    ],
)
def test_bad_candidates_are_refused(candidates, error, generator):
    victim = rv.Victim(linear_vae(some_encoder()))
    with pytest.raises(error, match="candidates"):
        rv.estimate_margin(
            victim, images(2), 1.0, 0.5, "paired", candidates=candidates, generator=generator
        )


@pytest.mark.parametrize("sizes", [1.0, ["a"], "12", [True], [], [math.inf], torch.tensor(1.0)])
def test_bad_sizes_are_refused(sizes, generator):
    victim, x = rv.Victim(linear_vae(some_encoder())), images(2)
    with pytest.raises(RobustVAEError, match="sizes"):
        robustness_curve(victim, x, x, sizes, 1.0, "paired", generator=generator)


def test_sizes_may_be_arrays(generator):
    victim, x = rv.Victim(linear_vae(some_encoder())), images(2)
    for sizes in (torch.linspace(0, 1, 3), np.linspace(0, 1, 3)):
        curve = robustness_curve(victim, x, x, sizes, 1.0, "paired", generator=generator, draws=9)
        assert curve.value.shape == (2, 3)


def test_bad_searches_are_refused(generator):
    victim, x = rv.Victim(linear_vae(some_encoder())), images(2)
    for bisection in (3, 0):
        with pytest.raises(DtypeError, match="bisection"):
            rv.estimate_margin(
                victim, x, 1.0, 0.5, "paired", bisection=bisection, generator=generator
            )
    with pytest.raises(DtypeError, match="search"):
        Bisection(search=3)
    with pytest.raises(DtypeError, match="goal"):
        Bisection(goal="damage")
    with pytest.raises(RangeError, match="chunk"):
        Bisection(chunk=-1)


def asks(victim, x, generator):
    yield lambda: rv.robustness_probability(victim, x, x, 1.0, "full", generator=generator)
    yield lambda: rv.estimate_margin(victim, x, 1.0, 0.5, "full", generator=generator)
    yield lambda: robustness_curve(victim, x, x, [1.0], 1.0, "full", generator=generator)
    yield lambda: rest_quantile(victim, x, 0.5, "full", generator=generator)


def test_weights_that_are_no_numbers_are_no_result(generator):
    vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=SHAPE).double()
    with torch.no_grad():
        vae.log_var_head.bias[0] = math.nan
    for ask in asks(rv.Victim(vae), images(2), generator):
        with pytest.raises(NonFiniteError, match=r"log_var_head\.bias"):
            ask()


def wrapped(posterior):
    """An encoder from the first two pixels, a decoder to the two sums of half the pixels."""

    def decode(z):
        mean = z.repeat_interleave(PIXELS // 2, 1).view(-1, *SHAPE)
        return rv.models.Gaussian(mean, torch.ones_like(mean))

    return rv.wrap(
        encode=lambda x: posterior(x.flatten(1)[:, :2]), decode=decode, latent=2, image_shape=SHAPE
    )


def test_hidden_numbers_that_are_none_are_refused_or_outside(generator):
    nowhere = wrapped(lambda mean: rv.models.Gaussian(mean * math.nan, torch.ones_like(mean)))
    for ask in asks(rv.Victim(nowhere), images(2), generator):
        with pytest.raises(NonFiniteError, match="clean reconstructions"):
            ask()
    spreadless = wrapped(lambda mean: rv.models.Gaussian(mean, mean * math.nan))
    x = images(2)
    assert displacements(rv.Victim(spreadless), x, x, "full", generator=generator).isposinf().all()


def test_each_posterior_is_drawn_from_as_it_is(generator):
    """A correlated pair and a Laplace: the diagonal Gaussian with their moments is another law."""
    covariance = torch.tensor([[1.0, -0.99], [-0.99, 1.0]])
    x, count = images(1), 20_000
    half = math.sqrt(PIXELS / 2)

    def drawn(posterior, displacement):
        victim = rv.Victim(wrapped(posterior))
        return displacements(victim, x, x, displacement, generator=generator, draws=count) / half

    normal = torch.distributions.MultivariateNormal
    both = drawn(lambda mean: normal(mean, covariance), "full").square()
    # Var(|z|^2) = 2 tr(C^2), which is 4 for independent coordinates
    assert both.var() == pytest.approx(2 * float(covariance.square().sum()), rel=0.15)
    laplace = drawn(lambda mean: torch.distributions.Laplace(mean, 1.0), "full").square()
    assert laplace.var() == pytest.approx(2 * (24 - 4), rel=0.3)  # 8 for a Gaussian of variance 2
    with pytest.raises(UnsupportedError, match="Gaussian posterior, got MultivariateNormal"):
        drawn(lambda mean: normal(mean, covariance), "centered")


@pytest.mark.parametrize("name", ["dlgm", "seatbelt"])
def test_layers_of_gaussians_have_a_centered_version(name, generator):
    vae = rv.models.create(name, widths=[3, 2], image_shape=(1, 8, 8), hidden=[8]).double()
    x = rand(2, 1, 8, 8, like=LIKE, generator=generator)
    p = rv.robustness_probability(rv.Victim(vae), x, x, 100.0, "centered", generator=generator)
    assert (p.value == 1).all()


def test_more_deciding_draws_choose_better(generator):
    """What the search chooses follows the draws that decide, not a fixed number of its own."""
    encoder, x = some_encoder(), images(6)
    exact = exact_shift(1.0, 0.5, "centered") / float(torch.linalg.matrix_norm(encoder, 2))

    def slack(choosing):
        search = rv.ProjectedAscent(steps=10, restarts=1)
        found = rv.estimate_margin(
            rv.Victim(linear_vae(encoder)),
            x,
            1.0,
            0.5,
            "centered",
            box=False,
            draws=10_000,
            bisection=Bisection(search, rounds=2, draws=choosing),
            generator=generator.clone_state(),
        )
        return float((found.value / exact).mean()) - 1

    assert 0 < slack(None) < 0.9 * slack(200)
