"""Smoothing: closed forms, broken bounds that are found out, rows that do not see each other."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import ncx2, norm

import robustvae as rv
from robustvae import errors
from robustvae.certificates import certify
from robustvae.certificates.methods import sampling, smoothing
from robustvae.certificates.methods.sampling import Sampler, lower_index, upper_index
from robustvae.defenses import independence
from robustvae.defenses import noise as noise_module
from robustvae.metrics import clopper_pearson

S = 0.5


def plain_function(output=lambda z: z, width=1):
    """A model behind functions whose code is the image itself."""
    return rv.wrap(
        encode=lambda x: rv.models.Gaussian(x.flatten(1), torch.zeros_like(x.flatten(1))),
        decode=lambda z: rv.models.Gaussian(
            output(z).view(-1, 1, 1, width), torch.ones(len(z), 1, 1, width)
        ),
        latent=width,
        image_shape=(1, 1, width),
    )


def half_space():
    """Outputs are the positive part of x + s n: within r of the center means below a threshold."""
    return rv.Victim(plain_function(lambda z: z.clamp_min(0)), rv.InputNoise(S))


def false_rate(radius, r=0.6, m=0.4, center=0.5):
    """Share of the radii beyond the exact margin of `half_space`."""
    margin = r + center - 0.5 - S * norm.ppf(m)
    return float((radius > margin).double().mean())


def runs(count, *, seed=0, confidence=0.9, **options):
    x = torch.full((count, 1, 1, 1), 0.5)
    ask = {"r": 0.6, "m": 0.4, "center": "mean", "draws": 60, "methods": ["smoothing"], **options}
    g = rv.generator(seed)
    return certify(half_space(), x, confidence=confidence, rows=range(count), generator=g, **ask)


def too_often(rate, count, failure):
    return rate > failure + 4 * (failure * (1 - failure) / count) ** 0.5


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_false_rate_of_many_runs(count):
    """The half-space is the worst case of the lemma: the bound is met, and no more than that."""
    lower = runs(count)
    rate = false_rate(lower.radius)
    assert not too_often(rate, count, 0.1) and rate > 0.05
    assert lower.kind == "probabilistic" and lower.center == "mean"
    assert not false_rate(lower.simultaneous) and lower.confidence_of_all == 0


def test_wrong_sign_is_caught(monkeypatch):
    right = smoothing.sampler_radius
    monkeypatch.setattr(
        smoothing,
        "sampler_radius",
        lambda s, k, n, a, m: right(s, k, n, a, m) + 2 * S * norm.ppf(0.6),
    )
    assert too_often(false_rate(runs(500).radius), 500, 0.1)


def test_larger_of_two_needs_a_split():
    """Two independent certificates, each of the whole confidence, are false too often together."""
    one, two = runs(1000, seed=1), runs(1000, seed=2)
    assert too_often(false_rate(torch.maximum(one.radius, two.radius)), 1000, 0.1)
    one, two = (runs(1000, seed=seed, confidence=0.95) for seed in (1, 2))
    assert not too_often(false_rate(torch.maximum(one.radius, two.radius)), 1000, 0.1)


def test_methods_asked_together_share_the_confidence():
    x = torch.full((1, 1, 1, 1), 0.5)
    alone = runs(1, confidence=0.95).radius
    both = certify(
        half_space(),
        x,
        0.6,
        0.4,
        center="mean",
        methods=["smoothing:draws=60", "smoothing:draws=1"],
        confidence=0.9,
        rows=[0],
        generator=rv.generator(0),
    )
    assert torch.equal(both.by_method["smoothing"], alone) and len(both.by_method) == 2


def spread_out(count, width=6, **options):
    """Radii of the identity about an own center, and the exact margin about that very center."""
    victim = rv.Victim(plain_function(width=width), rv.InputNoise(S))
    x, r = torch.full((count, 1, 1, width), 0.5), 1.3
    ask = {"draws": 12, "confidence": 0.8, "rows": range(count), "m": 0.3, **options}
    lower = certify(victim, x, r, methods=["smoothing"], generator=rv.generator(0), **ask)
    return lower, x, r


def false_about_centers(count=1000):
    lower, x, r = spread_out(count)
    aside = (lower.centers - x).flatten(1).norm(dim=1).numpy()
    inside = ncx2.cdf((r / S) ** 2, x[0].numel(), (aside / S) ** 2 + 1e-12)
    return float((lower.radius.numpy() > S * (norm.ppf(inside) - norm.ppf(0.3))).mean())


def test_center_chosen_on_same_draws_caught(monkeypatch):
    assert not too_often(false_about_centers(), 1000, 0.2)
    right = Sampler.generators
    monkeypatch.setattr(sampling, "_CENTER_DRAWS", 12)
    assert not too_often(false_about_centers(), 1000, 0.2)
    monkeypatch.setattr(Sampler, "generators", lambda own, purpose: right(own, "the same"))
    # which sees that a generator is used twice
    monkeypatch.setattr(independence.Independence, "check_generator", lambda *_: None)
    assert too_often(false_about_centers(), 1000, 0.2)


def test_reused_partners_are_caught(monkeypatch):
    """Pairs must be disjoint: one partner for all draws is one trial, not sixty."""
    x = torch.full((1000, 1, 1, 1), 0.5)
    victim = rv.Victim(plain_function(), rv.InputNoise(S))
    r, m = 0.7, 0.3
    true = 2 * norm.cdf(r / (S * 2**0.5)) - 1
    ask = {"displacement": "paired", "draws": 60, "confidence": 0.95, "methods": ["smoothing"]}
    ask |= {"rows": range(1000)}

    def rate():
        lower = certify(victim, x, r, m, generator=rv.generator(0), **ask)
        claimed = norm.cdf(lower.radius.numpy() / S + norm.ppf(m))
        return float((claimed > true).mean())

    assert not too_often(rate(), 1000, 0.05)

    def crossed(own, i, center, count, g):
        end, begin = own.outputs(i, count, g), own.outputs(i, 1, g)
        return (end - begin).flatten(1).norm(dim=1).double()

    monkeypatch.setattr(Sampler, "distances", crossed)
    assert too_often(rate(), 1000, 0.05)


@pytest.mark.parametrize("level", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("count", [1, 30, 400])
def test_order_statistics_have_the_right_index(count, level):
    """X_(k) is below the quantile exactly when at least k draws are: a binomial tail."""
    from scipy.stats import binom

    for failure in (0.001, 0.1):
        k = upper_index(count, level, failure)
        if k is None:
            assert binom.sf(count - 1, count, level) > failure
        else:
            assert binom.sf(k - 1, count, level) <= failure
            assert k == 1 or binom.sf(k - 2, count, level) > failure
        k = lower_index(count, level, failure)
        if k is None:
            assert binom.cdf(0, count, level) > failure
        else:
            assert binom.cdf(k - 1, count, level) <= failure < binom.cdf(k, count, level)


def test_votes_need_the_square_root(monkeypatch):
    """The identity, 16 votes: the mean's noise is a quarter, and so is what a change may be."""
    victim = rv.Victim(plain_function(), rv.InputNoise(S, votes=16))
    x = torch.full((1, 1, 1, 1), 0.5)
    ask = {"m": 0.5, "draws": 2000, "methods": ["smoothing"]}

    def probability_at(radius):
        y = x + 0.999 * radius
        out = torch.cat([victim.reconstruct(y, generator=rv.generator(7 + k)) for k in range(400)])
        return float(((out - 0.5).abs() <= 0.4).double().mean())

    right = certify(victim, x, 0.4, generator=rv.generator(0), **ask)
    assert float(right.radius) > 0.3 and probability_at(float(right.radius)) >= 0.5
    monkeypatch.setattr(Sampler, "stddev", S)
    wrong = certify(victim, x, 0.4, generator=rv.generator(0), **ask)
    assert probability_at(float(wrong.radius)) == 0.0


def test_last_bits_of_input_are_hidden(monkeypatch):
    """A victim that looks whether its input lies on the grid learns nothing of the clean one."""

    def betray(z):
        off = (z * 2**20) % 1 != 0
        return torch.where(off, torch.full_like(z, 100.0), torch.zeros_like(z))

    victim = rv.Victim(plain_function(betray, width=4), rv.InputNoise(S))
    x = torch.full((1, 1, 1, 4), 0.5)
    ask = {"m": 0.5, "draws": 500, "methods": ["smoothing"]}
    lower = certify(victim, x, 1.0, generator=rv.generator(0), **ask)
    y = x + 2**-22
    assert float(lower.radius) > float((y - x).norm())
    assert victim.reconstruct(y, generator=rv.generator(1)).abs().max() == 0

    def leaky(own, x, *, generator):
        n = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return x + ((n * own.stddev * 2**20).round() / 2**20).to(x.dtype)

    monkeypatch.setattr(noise_module.InputNoise, "noisy", leaky)
    again = certify(victim, x, 1.0, generator=rv.generator(0), **ask)
    assert float(again.radius) > 0.5  # nothing seems wrong at the clean input
    assert victim.reconstruct(y, generator=rv.generator(1)).abs().min() == 100


def test_float32_sums_on_grid_are_exact():
    x = torch.rand(3, 1, 4, 4, dtype=torch.float32)
    noisy = rv.InputNoise(3.0).noisy(x, generator=rv.generator(0))
    ticks = noisy.double() * 2**20
    assert noisy.dtype == torch.float32 and torch.equal(ticks, ticks.round())
    wide = rv.InputNoise(3.0).noisy(x.double(), generator=rv.generator(0))
    assert torch.equal(noisy.double(), wide)


def test_noise_spread_and_no_end():
    g = rv.generator(0)
    draws = rv.InputNoise(0.25).noisy(torch.zeros(400_000, 1, 1, 1), generator=g).flatten()
    assert abs(float(draws.std()) - 0.25) < 4 * 0.25 / (2 * 400_000) ** 0.5
    rows = draws.view(2, -1)
    assert abs(float((rows[0] * rows[1]).mean())) < 4 * 0.25**2 / 200_000**0.5


def test_noise_passes_gradients_and_keeps_values():
    x = torch.rand(2, 1, 3, 3, requires_grad=True)
    seen = rv.InputNoise(0.1).noisy(x, generator=rv.generator(0))
    assert torch.equal(seen, rv.InputNoise(0.1).noisy(x.detach(), generator=rv.generator(0)))
    (grad,) = torch.autograd.grad(seen.sum(), x)
    assert torch.equal(grad, torch.ones_like(x))
    clipped = rv.InputNoise(0.5, clip=True).noisy(x.detach(), generator=rv.generator(0))
    assert clipped.min() >= 0 and clipped.max() <= 1


def test_identity_never_above_exact_margin(generator):
    """Full, about the own center: the exact margin is a noncentral chi-square's."""
    width, r = 5, 1.8
    victim = rv.Victim(plain_function(width=width), rv.InputNoise(S))
    x = torch.rand(6, 1, 1, width, generator=generator)
    lower = certify(victim, x, r, 0.5, draws=4000, methods=["smoothing"], generator=generator)
    aside = (lower.centers - x).flatten(1).norm(dim=1).numpy()
    sizes = np.linspace(0, 3, 3001)
    for radius, gap in zip(lower.radius.tolist(), aside, strict=True):
        # the worst change points away from the center
        holds = ncx2.cdf((r / S) ** 2, width, ((sizes + gap) / S) ** 2 + 1e-12) > 0.5
        margin = sizes[holds.nonzero()[0][-1]]
        assert 0.5 * margin < radius <= margin


def test_certificate_below_an_attack_with_expectation(generator):
    """Bundled digits under noise: no ascent at 0.999 of the radius brings P down to m."""
    vae = rv.load("digits-vae").double()
    x = rv.data.load("digits", split="test").x[:4].double()
    victim = rv.Victim(vae, rv.InputNoise(0.1))
    lower = certify(victim, x, 1.5, 0.5, draws=1000, generator=generator)
    assert lower.method == ("smoothing",) * 4 and (lower.radius > 0.1).all()
    size = 0.999 * lower.radius.view(-1, 1, 1, 1)
    change = torch.randn(x.shape, generator=generator)
    for _ in range(30):
        change = (size * change / change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).requires_grad_()
        y = (x + change).repeat(8, 1, 1, 1)
        out = victim.reconstruct(y, generator=generator).unflatten(0, (8, 4))
        gap = (out - lower.centers).flatten(2).norm(dim=2).sum()
        (grad,) = torch.autograd.grad(gap, change)
        scale = grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        change = (change + 0.5 * size * grad / scale).detach()
    change = size * change / change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    with torch.no_grad():
        out = victim.reconstruct((x + change).repeat(400, 1, 1, 1), generator=generator)
    inside = ((out.unflatten(0, (400, 4)) - lower.centers).flatten(2).norm(dim=2) <= 1.5).sum(0)
    assert (torch.as_tensor(clopper_pearson(inside, 400, 1 - 1e-8, sides=1)[1]) > 0.5).all()


@pytest.mark.parametrize("shard", [1, 5, 20])
@pytest.mark.parametrize("name", ["smoothing", "lipschitz", "neyman_pearson"])
def test_certificates_do_not_see_their_neighbors(name, shard):
    x = rv.data.load("digits", split="test").x[:20].float()
    if name == "smoothing":
        victim = rv.Victim(rv.load("digits-vae").float(), rv.InputNoise(0.1))
        ask = {"r": 1.5, "displacement": "full", "draws": 200}
    elif name == "lipschitz":
        victim = rv.load("digits-lipschitz-vae").float()
        ask = {"r": 1.0, "displacement": "centered", "methods": ["noncentral", "envelope"]}
    else:
        victim = rv.load("digits-vae").float()
        ask = {"r": 1.0, "displacement": "centered", "methods": ["neyman_pearson"], "draws": 300}

    def radii(rows):
        return certify(victim, x[rows], generator=rv.generator(3), **ask).radius

    rows = torch.arange(20)
    whole = radii(rows)
    assert (whole > 0).any()
    parts = torch.cat([radii(part) for part in rows.split(shard)])
    turned = torch.cat([radii(part) for part in rows.flip(0).split(shard)]).flip(0)
    for other in (parts, turned):
        assert torch.allclose(whole, other, rtol=1e-6, atol=0)


def shared(vae, x, *, generator):
    z = vae.encode(x).mean
    return z - z.mean(0)


def placed(vae, x, *, generator):
    z = vae.encode(x).mean
    return z + torch.arange(len(x), dtype=z.dtype)[:, None]


placed.is_random = False


def repeated(vae, x, *, generator):
    z = vae.encode(x).mean
    return z + torch.randn(z.shape, generator=rv.generator(0))


@dataclass
class Counting:
    calls: int = 0

    def __call__(self, vae, x, *, generator):
        self.calls += 1
        return vae.encode(x).mean + self.calls


@pytest.mark.parametrize(
    ("defense", "says"),
    [
        (shared, "other rows of its batch"),
        (placed, "reads their place"),
        (repeated, "repeats its random numbers"),
        (Counting(), "earlier calls|other rows"),
        (rv.HMC(steps=4, adapt="paper"), "other rows of its batch"),
    ],
)
def test_draws_not_independent_refused(defense, says):
    victim = rv.Victim(rv.load("digits-vae").double(), rv.InputNoise(0.1, defense))
    x = rv.data.load("digits", split="test").x[:2].double()
    lower = certify(victim, x, 1.0, generator=rv.generator(0), draws=20)
    assert lower.status == ("abstain", "abstain")
    assert any("smoothing needs" in line for line in lower.assumptions)
    with pytest.raises(errors.UnsupportedError, match=says):
        independence.Independence(victim, x, at_once=64)


@pytest.mark.parametrize(
    "defense",
    [
        rv.PosteriorSample(),
        rv.PosteriorMean(),
        rv.HMC(steps=3, n_leapfrog=2),
        rv.RobustPosterior(steps=4),
        rv.PosteriorMode(steps=4, start="prior", starts=2),
    ],
    ids=lambda d: type(d).__name__,
)
def test_any_defense_behind_noise_is_certified(defense):
    victim = rv.Victim(rv.load("digits-vae").double(), rv.InputNoise(0.1, defense))
    x = rv.data.load("digits", split="test").x[:1].double()
    lower = certify(victim, x, 3.0, generator=rv.generator(0), draws=40)
    assert lower.status == ("ok",), lower.assumptions


def test_quantizer_and_sequence_are_certified(generator):
    """What has no gradient: rounding in place, behind plain functions."""

    def quantized(z):
        return z.mul(4).round_().div_(4)

    victim = rv.Victim(plain_function(quantized, width=3), rv.InputNoise(0.2))
    x = torch.rand(2, 1, 1, 3, generator=generator)
    lower = certify(victim, x, 1.0, draws=300, generator=generator)
    assert lower.status == ("ok", "ok") and lower.kind == "probabilistic"


def test_hopeless_inputs_stop_early(generator):
    victim = rv.Victim(plain_function(width=4), rv.InputNoise(S))
    x = torch.rand(1, 1, 1, 4, generator=generator)
    method = smoothing.Smoothing(draws=10_000_000)
    lower = certify(victim, x, 0.01, methods=[method], generator=generator)
    assert lower.status == ("abstain",) and int(lower.draws[0]) < 200_000


def test_giving_up_rests_on_enough_draws(generator, monkeypatch):
    monkeypatch.setattr(sampling, "_VALUES_AT_ONCE", 1)  # as for outputs of many numbers
    victim = rv.Victim(plain_function(width=4), rv.InputNoise(S))
    x = torch.rand(1, 1, 1, 4, generator=generator)
    for draws, least in ((1000, 200), (60, 60)):
        lower = certify(victim, x, 0.01, methods=["smoothing"], draws=draws, generator=generator)
        assert lower.status == ("abstain",) and int(lower.draws[0]) == least


def test_more_draws_only_where_they_pay(generator):
    victim = rv.Victim(plain_function(width=2), rv.InputNoise(S))
    x = torch.rand(1, 1, 1, 2, generator=generator)
    method = smoothing.Smoothing(draws=1000, most=64_000)
    sure = certify(victim, x, 5.0, methods=[method], generator=generator)
    unsure = certify(victim, x, 0.7, methods=[method], generator=generator)
    assert int(sure.draws[0]) == 64_000 > int(unsure.draws[0])
    fixed = certify(victim, x, 5.0, methods=["smoothing:draws=1000"], generator=generator)
    assert sure.radius > fixed.radius


def test_noise_is_needed_and_spec_works(generator):
    vae, x = plain_function(width=2), torch.rand(1, 1, 1, 2, generator=generator)
    lower = certify(vae, x, 1.0, methods=["smoothing"], generator=generator)
    assert "rv.InputNoise" in lower.assumptions[0] and lower.status == ("abstain",)
    victim = rv.Victim(vae, "input-noise:stddev=0.2,defense=(posterior-mean)")
    assert victim.defense == rv.InputNoise(0.2, rv.PosteriorMean()) and victim.votes == 1
    linf = certify(victim, x, 1.0, norm="linf", draws=200, generator=rv.generator(0))
    l2 = certify(victim, x, 1.0, draws=200, generator=rv.generator(0))
    assert torch.allclose(linf.radius, l2.radius / 2**0.5)


def test_full_question_works_verbatim(generator):
    vae, x = plain_function(width=2), torch.rand(2, 1, 1, 2, generator=generator)
    smooth = rv.Victim(vae, rv.InputNoise(stddev=0.25))
    g = rv.generator(0)
    lower = rv.certify(
        smooth,
        x,
        r=2.9,
        m=0.5,
        displacement="full",
        center="own",
        methods=["smoothing"],
        generator=g,
        draws=100,
    )
    question = rv.Question(r=2.9, center="own")
    same = rv.certify(smooth, x, question=question, draws=100, generator=rv.generator(0))
    assert torch.equal(lower.radius, same.radius) and "probabilistic" in repr(lower)
    with pytest.raises(errors.ConfigError):
        rv.certify(smooth, x, r=1.0, question=question, generator=g)
    with pytest.raises(errors.ConfigError):
        rv.certify(smooth, x, generator=g)


def test_default_names_what_would_certify():
    """Where nothing deterministic holds, the probabilistic answer stands beside it."""
    vae = rv.load("digits-vae").double()
    x = rv.data.load("digits", split="test").x[:3].double()
    lower = certify(vae, x, 1.0, 0.5, "centered", generator=rv.generator(0))
    assert lower.kind == "deterministic" and lower.status == ("abstain",) * 3
    assert lower.beside.kind == "probabilistic" and (lower.beside.radius > 0).all()
    assert all("neyman_pearson certifies" in line for line in lower.suggestions)


def test_convolutions_are_named_not_run():
    vae = rv.models.create("vae", architecture="conv8", latent=4, image_shape=(1, 8, 8))
    x = torch.rand(1, 1, 8, 8)
    lower = certify(vae, x, 1.0, 0.5, "full", generator=rv.generator(0))
    assert lower.beside is None and "neyman_pearson may" in lower.suggestions[0]
