"""Margins against a linear Gaussian VAE, where all of them are known, and tests by betting."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import chi2, ncx2

import robustvae as rv
from robustvae.errors import DtypeError, NonFiniteError, RangeError, ShapeError
from robustvae.robustness import Budget, betting, walk
from robustvae.seeding import generator, rand, randn

GAIN, SPREAD, LATENT, SHAPE = 2.0, 0.1, 3, (1, 2, 4)
PIXELS = math.prod(SHAPE)
NOISES = {"centered": 1.0, "full": 1.0, "paired": math.sqrt(2.0)}
LIKE = torch.zeros(0, dtype=torch.float64)
SURE = Budget(confidence=1 - 1e-5)


def linear_vae(encoder, spread=SPREAD, detach=False):
    """mu = A x, sigma = spread, g = GAIN Q z."""
    latent = len(encoder)
    turn, _ = torch.linalg.qr(randn(PIXELS, latent, like=LIKE, generator=generator(7)))

    def encode(x):
        mean = (x.detach() if detach else x).flatten(1) @ encoder.mT
        return rv.models.Gaussian(mean, torch.full_like(mean, spread))

    def decode(z):
        mean = (GAIN * z @ turn.mT).view(-1, *SHAPE)
        return rv.models.Gaussian(mean, torch.ones_like(mean))

    return rv.wrap(encode=encode, decode=decode, latent=latent, image_shape=SHAPE)


def some_encoder(latent=LATENT):
    return randn(latent, PIXELS, like=LIKE, generator=generator(3)) / 4


@dataclass(frozen=True)
class Shifted:
    """A defense whose code is the encoder's mean, half a unit off."""

    is_random: ClassVar[bool] = False
    reads_encoder_mean: ClassVar[bool] = False

    def __call__(self, vae, x, *, generator):
        return vae.encode(x).mean + 0.5 / math.sqrt(LATENT)


def exact_shift(r, m, displacement="centered", spread=SPREAD, latent=LATENT):
    """The latent shift at which P(||Delta|| <= r) = m."""
    noise = spread * NOISES[displacement]

    def excess(shift):
        return ncx2.cdf((r / (GAIN * noise)) ** 2, latent, (shift / noise) ** 2) - m

    return brentq(excess, 1e-6, 10.0)


def images(batch, seed=1):
    return rand(batch, *SHAPE, like=LIKE, generator=generator(seed))


def ask(victim, x, g, displacement="centered", r=1.0, **settings):
    return rv.estimate_margin(victim, x, r, 0.5, displacement, generator=g, **settings)


@pytest.mark.parametrize("displacement", ["centered", "full", "paired"])
def test_margin_close_to_truth(displacement, generator):
    """At the default budget within some percent on average; never below at a high confidence."""
    encoder, x = some_encoder(), images(12)
    exact = exact_shift(1.0, 0.5, displacement) / float(torch.linalg.matrix_norm(encoder, 2))
    victim = rv.Victim(linear_vae(encoder))
    found = ask(victim, x, generator, displacement, box=False, budget=SURE)
    assert (found.value >= exact * (1 - 1e-9)).all() and (found.value <= 1.35 * exact).all()
    assert (found.probability_high <= 0.5).all()
    torch.testing.assert_close(found.value, (found.x_adv - x).flatten(1).norm(dim=1))
    assert found.status == ("ok",) * 12 and not found.low.any()
    usual = ask(victim, x, generator, displacement, box=False)
    # paired draws differ by twice the variance, so that a test of as many draws needs more room
    slack = {"centered": 1.03, "full": 1.045, "paired": 1.09}[displacement]
    assert float(usual.value.mean()) <= slack * exact
    assert float((usual.value < exact).double().mean()) <= 0.25


def test_unconstrained_never_above_box(generator):
    encoder, x = some_encoder(), images(12).round()
    exact = exact_shift(1.0, 0.5) / float(torch.linalg.matrix_norm(encoder, 2))
    both = ask(rv.Victim(linear_vae(encoder)), x, generator, box=None, budget=SURE)
    box, free = both, both.unconstrained
    assert box.x_adv.min() >= 0 and box.x_adv.max() <= 1
    assert (box.value >= exact).all() and box.box and not free.box
    assert box.value.mean() > 1.1 * free.value.mean()
    assert (free.value >= exact * (1 - 1e-9)).all()
    for margin in (box, free):
        size = (margin.x_adv - x).flatten(1).norm(dim=1)
        torch.testing.assert_close(margin.value, size)
    poor = Budget(starts=1, steps=1, draws=200)
    both = ask(
        rv.Victim(linear_vae(encoder)), images(30), generator, "paired", box=None, budget=poor
    )
    assert (both.unconstrained.value <= both.value).all()


def test_margin_in_maximum_norm(generator):
    encoder, x = some_encoder(), images(6)
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=PIXELS)))
    exact = exact_shift(1.0, 0.5) / float((corners @ encoder.mT).norm(dim=1).max())
    found = ask(rv.Victim(linear_vae(encoder)), x, generator, norm="linf", box=False, budget=SURE)
    assert (found.value >= exact).all() and (found.value <= 1.35 * exact).all()


def sound_share(batch, seed):
    """Few draws, much noise and many equal directions to choose from: what tempts an estimate."""
    latent, spread, confidence, r = 6, 0.5, 0.8, 2.8
    turn, _ = torch.linalg.qr(randn(PIXELS, latent, like=LIKE, generator=generator(11)))
    x = images(1).expand(batch, *SHAPE).contiguous()
    directions = randn(40, 1, latent, like=LIKE, generator=generator(seed)) @ turn.mT
    directions = directions / directions.norm(dim=2, keepdim=True)
    budget = Budget(starts=1, steps=1, draws=80, choosing=40, largest=3.0, confidence=confidence)
    found = ask(
        rv.Victim(linear_vae(turn.mT, spread)),
        x,
        generator(seed + 1),
        r=r,
        box=False,
        budget=budget,
        candidates=x + 3 * directions.view(40, 1, *SHAPE),
        rows=range(batch),
    )
    exact = exact_shift(r, 0.5, "centered", spread, latent)
    return float((found.value >= exact).double().mean()), confidence, found.value / exact


def test_margins_sound_in_their_share():
    share, confidence, ratio = sound_share(200, 100)
    assert share >= confidence - 4 * math.sqrt(confidence * (1 - confidence) / 200)
    assert ratio[ratio.isfinite()].median() < 2


def test_trusted_choosing_draws_are_caught(monkeypatch):
    """To accept what the choosing draws show, without fresh ones, must break the share."""
    walk, tests = rv.robustness.walk.Walk, rv.robustness.margin._Tests
    monkeypatch.setattr(walk, "passing", lambda self, distances: distances.quantile(0.5, dim=0))
    monkeypatch.setattr(tests, "bounds", lambda self, which, *rest: (torch.zeros(len(which)),) * 2)
    share, confidence, _ = sound_share(200, 100)
    assert share < confidence - 4 * math.sqrt(confidence * (1 - confidence) / 200)


@pytest.mark.parametrize("m", [0.3, 0.5, 0.9])
def test_betting_rejects_truth_rarely(m):
    """Pairs as the deciding tests see them, at P = m: rejected at most as often as the risk."""
    trials, pairs, risk = 2000, 200, 0.05
    first = rand(pairs, trials, like=LIKE, generator=generator(2)) < m
    second = rand(pairs, trials, like=LIKE, generator=generator(3)) < m
    x = 0.5 * (first.double() + second.double())
    rejected = betting.capital(betting.log_capitals(x, m)).amax(0) >= -math.log(risk)
    assert float(rejected.double().mean()) <= risk + 4 * math.sqrt(risk / trials)
    lower = betting.capital(betting.log_capitals(0.5 * x, m)).amax(0) >= -math.log(risk)
    assert float(lower.double().mean()) > 0.9
    bound = betting.upper_bound(0.5 * x[:, :50], risk)
    assert (bound >= 0.5 * m - 0.05).all() and float((bound <= m).double().mean()) > 0.9


def test_not_robust_without_attack(generator):
    victim = rv.Victim(linear_vae(some_encoder()))
    rest = GAIN * SPREAD * math.sqrt(chi2.ppf(0.5, LATENT))
    for found in (
        ask(victim, images(4), generator, r=0.8 * rest),
        ask(victim, images(4), generator, r=0.8 * rest, box=None).unconstrained,
    ):
        assert not found.value.any()
        assert found.status == ("not robust without attack",) * 4
        assert (found.x_adv == images(4)).all()


def test_no_failure_is_infinite(generator):
    found = ask(rv.Victim(linear_vae(some_encoder())), images(4), generator, "paired", r=1e6)
    assert found.value.isinf().all() and not found.low.any()
    assert found.status == ("no failing perturbation found",) * 4
    assert found.probability_high.isnan().all()
    assert found.largest == math.sqrt(PIXELS)
    blind = ask(rv.Victim(linear_vae(some_encoder(), detach=True)), images(2), generator, r=1e6)
    assert all(word.startswith("inconclusive") for word in blind.status)


@pytest.mark.parametrize("displacement", ["centered", "paired"])
def test_margin_of_random_defense(displacement, generator):
    encoder, x = some_encoder(), images(4)
    exact = exact_shift(1.0, 0.5, displacement) / float(torch.linalg.matrix_norm(encoder, 2))
    victim = rv.Victim(linear_vae(encoder), rv.PosteriorSample(draws=2))
    noise = SPREAD / math.sqrt(2) if displacement == "centered" else SPREAD
    exact = exact_shift(1.0, 0.5, "centered", noise) / float(torch.linalg.matrix_norm(encoder, 2))
    found = ask(victim, x, generator, displacement, box=False, budget=SURE)
    assert (found.value >= exact).all() and (found.value <= 1.4 * exact).all()


def test_fixed_defense_is_read_once(generator):
    """A victim that is not random: P is 0 or 1, and the size is where the output leaves r."""
    encoder, x = some_encoder(), images(3)
    victim = rv.Victim(linear_vae(encoder), rv.PosteriorMode(steps=30))
    found = ask(victim, x, generator, "paired", r=0.5, box=False, budget=Budget(starts=3))
    assert found.status == ("ok",) * 3 and not found.probability_high.any()
    with torch.no_grad():
        gap = [
            (
                victim.reconstruct(y, generator=generator)
                - victim.reconstruct(x, generator=generator)
            )
            .flatten(1)
            .norm(dim=1)
            for y in (found.x_adv, x + 0.9 * (found.x_adv - x))
        ]
    assert (gap[0] > 0.5).all() and (gap[1] < 0.5).all()


def test_own_center_is_the_mean_output(generator):
    """Where the encoder's mean is not what the victim gives on average."""
    encoder, x = some_encoder(), images(4)
    victim = rv.Victim(linear_vae(encoder), Shifted())
    mean = ask(victim, x, generator, "full", r=2.0, box=False)
    own = ask(victim, x, generator, "full", r=2.0, center="own", box=False)
    # the mean center sees a displacement of 1 already: half the way is left
    assert (mean.value < 0.75 * own.value).all()
    exact = 2.0 / GAIN / float(torch.linalg.matrix_norm(encoder, 2))
    assert (own.value >= exact).all() and (own.value < 1.05 * exact).all()


def test_good_candidate_helps_poor_search(generator):
    encoder, x = some_encoder(), images(4)
    exact = exact_shift(1.0, 0.5) / float(torch.linalg.matrix_norm(encoder, 2))
    top = torch.linalg.svd(encoder).Vh[0].view(1, *SHAPE)
    poor = Budget(starts=1, steps=1, explored=0)
    victim = rv.Victim(linear_vae(encoder))
    helped = ask(victim, x, generator, box=False, budget=poor, candidates=(x + 2 * top)[None])
    assert (helped.value < 1.35 * exact).all()
    alone = ask(victim, x, generator, box=False, budget=poor)
    assert alone.value.mean() > 1.2 * helped.value.mean()


def test_margin_does_not_depend_on_batch():
    victim, x = rv.Victim(linear_vae(some_encoder())), images(5)

    def margin(part):
        return ask(victim, part, generator(4), "paired").value

    whole = margin(x)
    assert torch.equal(whole, margin(x))
    # rounding may choose another of two directions that are equally good
    torch.testing.assert_close(margin(x.flip(0)).flip(0), whole, rtol=0.01, atol=0.0)
    alone = torch.cat([margin(row) for row in x.split(1)])
    torch.testing.assert_close(alone, whole, rtol=0.01, atol=0.0)


def test_model_is_left_alone(generator):
    vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=SHAPE, hidden=[8])
    vae.train()
    before = torch.get_rng_state()
    rv.estimate_margin(rv.Victim(vae), images(2), 0.5, 0.5, "full", generator=generator)
    assert (torch.get_rng_state() == before).all()
    assert vae.training and all(p.requires_grad and p.grad is None for p in vae.parameters())


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
    with pytest.raises(error, match="candidates"):
        ask(rv.Victim(linear_vae(some_encoder())), images(2), generator, candidates=candidates)


def test_bad_budgets_are_refused(generator):
    victim = rv.Victim(linear_vae(some_encoder()))
    with pytest.raises(DtypeError, match="budget"):
        ask(victim, images(2), generator, budget=3)
    with pytest.raises(RangeError, match="draws must be at least"):
        ask(victim, images(2), generator, budget=Budget(draws=4))
    with pytest.raises(RangeError, match="steps"):
        Budget(steps=0)
    with pytest.raises(RangeError, match="confidence"):
        Budget(confidence=1.0)


def test_shared_points_are_drawn_once(monkeypatch, generator):
    """What both threat models ask about the same point is drawn once, and is the same number."""
    victim, x = rv.Victim(linear_vae(some_encoder())), images(3)
    known = (x + 0.1).clamp(0, 1)[None]
    drawn, results = [], []
    distances = rv.robustness.displacement.Ruler.distances

    def counted(self, y, rows, noise):
        drawn.append(0 if torch.is_grad_enabled() else noise.draws * len(y))
        return distances(self, y, rows, noise)

    monkeypatch.setattr(rv.robustness.displacement.Ruler, "distances", counted)
    for twins in (walk._twins, lambda y, rows: None):
        monkeypatch.setattr(walk, "_twins", twins)
        budget = Budget(starts=2, steps=4, explored=0)
        both = ask(victim, x, rv.generator(0), box=None, budget=budget, candidates=known)
        results.append((both.value, both.unconstrained.value, sum(drawn)))
        drawn.clear()
    torch.testing.assert_close(results[0][:2], results[1][:2])
    assert results[0][2] < results[1][2]


def test_fresh_noises_shorten_margins(monkeypatch):
    """A walk that sees the same few noises at each step is led by what they have in common."""
    vae = rv.load("digits-vae-noise")
    x = rv.data.load("digits", split="test").x[:4].to(vae.dtype)
    victim = rv.Victim(vae, rv.InputNoise(0.25))
    budget = Budget(starts=3, steps=10, draws=500, choosing=64)
    ask = {"center": "own", "box": False, "budget": budget}
    means = []
    for bank in (4, 64):
        monkeypatch.setattr(walk, "_BANK", bank)
        result = rv.estimate_margin(victim, x, 1.2, 0.5, "full", generator=rv.generator(0), **ask)
        means.append(float(result.value.mean()))
    assert means[1] < 0.96 * means[0]


@pytest.mark.parametrize("displacement", ["full", "centered"])
def test_broken_candidates_bound_margins(displacement):
    """An input that nearly fails by itself: draws flatter tiny changes, and none is confirmed."""
    victim = rv.Victim(rv.load("digits-vae"))
    x, _ = rv.data.load("digits", split="test").sample(60, generator=rv.generator(3))
    search = rv.ProjectedAscent(steps=20, restarts=2)
    attack = rv.Attack(goal=rv.MaximumDamage(), ball=rv.Ball("l2", 1.0), search=search)
    known = attack(victim, x, generator=rv.generator(0)).x_adv[None]
    margin = rv.estimate_margin(
        victim, x, 0.5, 0.5, displacement, candidates=known, budget=Budget(2, 8, 600),
        generator=rv.generator(1),
    )  # fmt: skip
    seen = rv.robustness_probability(
        victim, x, known[0], 0.5, displacement, draws=600, generator=rv.generator(2)
    )
    assert int((seen.high < 0.4).sum()) > 50
    assert float(margin.value[seen.high < 0.4].max()) <= 1.0 + 1e-6
