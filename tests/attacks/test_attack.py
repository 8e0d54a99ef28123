"""The attack itself: what it returns is in the ball, re-scored, and nothing else has moved."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Laplace, Normal

from robustvae import errors
from robustvae.attacks import (
    Attack,
    ClassifierFlip,
    LatentShift,
    LatentTarget,
    MaximumDamage,
    OutputTarget,
    WeightedSum,
)
from robustvae.defenses import HMC, PosteriorMode, PosteriorSample, Victim
from robustvae.models import create, wrap
from robustvae.models.base import frozen
from robustvae.models.layout import channels_last
from robustvae.perturb import (
    LBFGS,
    Ball,
    OneShot,
    ProjectedAscent,
    RandomSearch,
    SearchResult,
    SquareSearch,
)
from robustvae.seeding import by_row, generator, rand, randn, split

like = torch.zeros(0, dtype=torch.float64)


def images(count: int = 4, seed: int = 0, side: int = 8) -> Tensor:
    return rand(count, 1, side, side, like=like, generator=generator(seed))


def small_vae():
    torch.random.default_generator.set_state(generator(5).get_state())
    return create("vae", architecture="mlp", latent=3, image_shape=(1, 8, 8), hidden=(16,)).double()


def linear_vae():
    """Encoder mean W x, spread 0.1, decoder V z: every optimum is a singular direction."""
    g = generator(2)
    w = randn(3, 64, like=like, generator=g) / 8
    v = randn(64, 3, like=like, generator=g) / 8
    vae = wrap(
        encode=lambda x: Normal(x.flatten(1) @ w.mT, 0.1),
        decode=lambda z: Normal((z @ v.mT).view(-1, 1, 8, 8), 1.0),
        latent=3,
        image_shape=(1, 8, 8),
    )
    return vae, w, v


def goals(x: Tensor) -> dict[str, object]:
    return {
        "shift": LatentShift(),
        "kl": LatentShift("kl"),
        "reverse": LatentShift("reverse_kl"),
        "means": LatentShift("means"),
        "wasserstein2": LatentShift("wasserstein2"),
        "samples": LatentShift("samples", draws=2),
        "latent": LatentShift("latent"),
        "target": LatentTarget(x.flip(0)),
        "output": OutputTarget(x.flip(0)),
        "elbo": OutputTarget(x[:1], form="elbo", draws=2),
        "mean": MaximumDamage(),
        "std": MaximumDamage("std", draws=2),
        "both": MaximumDamage("both", draws=2),
        "flip": ClassifierFlip(),
        "margin": ClassifierFlip(loss="margin"),
        "sum": WeightedSum((LatentShift(), MaximumDamage()), (1.0, 0.5)),
    }


CLASSIFIER = nn.Linear(3, 4).double()
NAMES = sorted(goals(images()))


@pytest.mark.parametrize("radius", [0.1, 0.5])
@pytest.mark.parametrize("goal", [LatentShift(), LatentShift("means"), MaximumDamage()])
def test_attack_follows_top_singular_vector(goal, radius):
    vae, w, v = linear_vae()
    x = 0.5 + 0.01 * images()
    attack = Attack(goal, ProjectedAscent(steps=60, restarts=5), Ball("l2", radius, None, None))
    found = attack(Victim(vae), x, generator=generator(0))
    if isinstance(goal, MaximumDamage):
        best = torch.linalg.matrix_norm(v @ w, 2) * radius
    else:
        best = torch.linalg.matrix_norm(w, 2).square() * radius**2
        best = best if goal.divergence == "means" else best / (2 * 0.1**2)
    assert (found.score >= 0.99 * best).all()
    assert (found.score <= best * (1 + 1e-9)).all()
    assert found.status == ("ok",) * 4


@dataclasses.dataclass(frozen=True)
class Liar:
    """Planted faults: a projection that grows the noise, and a score that is made up."""

    def __call__(self, score, x, ball, *, generator):
        much = torch.full((len(x),), 1e9, dtype=x.dtype)
        return SearchResult(x + 28.0, much, much, 0 * much, much.long())


SEARCHES = {
    "ascent": ProjectedAscent(steps=3, restarts=2),
    "Adam, plateau": ProjectedAscent(
        steps=3, restarts=2, rule="adam", schedule="plateau", step=9.0
    ),
    "L-BFGS": LBFGS(steps=4, restarts=2),
    "one shot": OneShot(count=2, steps=3),
    "random": RandomSearch(steps=4),
    "square": SquareSearch(steps=4, restarts=2),
    "one that leaves the ball": Liar(),
}
DRAWN = ("samples", "elbo", "std", "both")


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("how", SEARCHES)
@pytest.mark.parametrize("name", NAMES)
@given(
    st.one_of(st.floats(1e-3, 9.0), st.lists(st.floats(1e-3, 9.0), min_size=4, max_size=4)),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=3, deadline=None)
def test_comes_back_ball_score_says(name, how, norm, radius, box, dtype):
    vae, x = small_vae().to(dtype), images().to(dtype)
    x[0], x[1] = x[0].round(), 0.0  # corners of the box
    victim = Victim(vae, classifier=copy.deepcopy(CLASSIFIER).to(dtype))
    radii = torch.tensor(radius) if isinstance(radius, list) else radius
    ball = Ball(norm, radii) if box else Ball(norm, radii, None, None)
    attack = Attack(goals(x)[name], SEARCHES[how], ball)
    found = attack(victim, x, generator=generator(1))
    assert found.x_adv.dtype == dtype and found.x_adv.shape == x.shape
    gap = (found.x_adv.double() - x.double()).flatten(1)
    size = gap.norm(dim=1) if norm == "l2" else gap.abs().amax(1)
    assert (size <= ball.radii(x).double() + 1e-6).all()
    assert not box or ((found.x_adv >= -1e-6) & (found.x_adv <= 1 + 1e-6)).all()
    torch.testing.assert_close(found.size.double(), size, atol=1e-6, rtol=1e-5)
    # the noise that is put by for the verdict
    *_, own = split(by_row(generator(1), "attack", x), 3)
    again = attack.score(victim, x, found.x_adv, generator=own)
    torch.testing.assert_close(found.score, again)
    if name not in DRAWN:
        strange = attack.score(victim, x, found.x_adv, generator=generator(9))
        torch.testing.assert_close(found.score, strange)


def test_what_search_claims_is_not_believed():
    x, vae = images(), small_vae()
    ball = Ball("l2", 0.3)
    attack = Attack(MaximumDamage(), Liar(), ball)
    found = attack(Victim(vae), x, generator=generator(0))
    assert ball.contains(x, found.x_adv).all()
    torch.testing.assert_close(
        found.score, attack.score(Victim(vae), x, found.x_adv, generator=generator(1))
    )
    assert (found.score < 1e3).all()


def test_a_detached_defense_is_inconclusive():
    """Planted fault: the published sampler, which hands the attacker gradient 0."""
    x, vae = images(), small_vae()

    def detached(vae, x, *, generator):
        return PosteriorMode(steps=3)(vae, x.detach(), generator=generator)

    attack = Attack(LatentShift(), ProjectedAscent(steps=3, restarts=2), Ball("linf", 0.1))
    blind = attack(Victim(vae, detached), x, generator=generator(0))
    assert blind.status == ("inconclusive",) * 4
    assert (blind.gradient_norm == 0).all()
    assert (blind.zero_gradients == 1).all()
    seeing = attack(Victim(vae, PosteriorMode(steps=3)), x, generator=generator(0))
    assert seeing.status == ("ok",) * 4
    assert (seeing.score > blind.score).all()


@pytest.mark.parametrize("defense", [PosteriorSample(), HMC(steps=2, n_leapfrog=2)])
def test_random_defenses_averaged_attacked_gradient(defense):
    x, victim = images(2), Victim(small_vae(), defense)
    for goal in (MaximumDamage(draws=2), LatentShift("latent", draws=2)):
        attack = Attack(goal, ProjectedAscent(steps=3, restarts=1), Ball("linf", 0.3))
        found = attack(victim, x, generator=generator(0))
        assert found.status == ("ok", "ok")
        first = attack.score(victim, x, found.x_adv, generator=generator(1))
        again = attack.score(victim, x, found.x_adv, generator=generator(1))
        assert torch.equal(first, again)
        fresh = attack.score(victim, x, found.x_adv, generator=generator(2))
        assert not torch.equal(first, fresh)


def test_attack_restores_mode_and_state():
    vae = create("vae", architecture="conv8", latent=3).double()
    vae.train()
    vae.trunk.eval()
    vae.decoder[0].weight.requires_grad_(False)
    before = [(p.data_ptr(), p.requires_grad, p.stride()) for p in vae.parameters()]
    state, x = torch.random.get_rng_state(), images()
    attack = Attack(MaximumDamage(), ProjectedAscent(steps=2, restarts=2), Ball("linf", 0.1))
    with torch.no_grad():
        found = attack(Victim(vae), x, generator=generator(0))
        assert not torch.is_grad_enabled()
    assert [(p.data_ptr(), p.requires_grad, p.stride()) for p in vae.parameters()] == before
    assert vae.training and not vae.trunk.training and all(p.grad is None for p in vae.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not found.x_adv.requires_grad and not found.score.requires_grad
    with torch.inference_mode():
        inside = attack(Victim(vae), x, generator=generator(0))
    torch.testing.assert_close(inside.x_adv, found.x_adv)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8)])
def test_faster_convolutions_have_same_derivatives(shape):
    """First and second, and the modules are as they were."""
    vae = create("vae", architecture="conv8", latent=3, image_shape=shape).double()
    x = rand(2, *shape, like=like, generator=generator(1)).requires_grad_()
    v = randn(*x.shape, like=like, generator=generator(2))

    def derivatives() -> tuple[Tensor, Tensor, Tensor]:
        q = vae.encode(x)
        value = (q.mean.square() + q.stddev).sum()
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        (curve,) = torch.autograd.grad(slope, x, v)
        return value.detach(), slope.detach(), curve

    with frozen(vae):
        plain = derivatives()
        with channels_last(vae):
            assert "forward" in vars(vae.trunk[0])
            fast = derivatives()
    assert "forward" not in vars(vae.trunk[0])
    for a, b in zip(plain, fast, strict=True):
        torch.testing.assert_close(a, b)


def test_attack_is_repeatable_and_pure():
    x, vae = images(), small_vae()
    kept = x.clone()
    attack = Attack(LatentShift(), ProjectedAscent(steps=4, restarts=3), Ball("l2", 0.5))
    one = attack(Victim(vae), x, generator=generator(0))
    two = attack(Victim(vae), x, generator=generator(0))
    assert torch.equal(one.x_adv, two.x_adv) and torch.equal(x, kept)


def test_maximum_damage_averages_fixed_draws():
    """On a linear VAE the best direction is known: fresh noise at each step loses most of it."""
    vae, w, v = linear_vae()
    x = 0.5 + 0.01 * images()
    search, ball = ProjectedAscent(steps=60, restarts=3), Ball("l2", 0.3, None, None)
    found = Attack(MaximumDamage("both", draws=16), search, ball)(
        Victim(vae), x, generator=generator(0)
    )
    reached = ((found.x_adv - x).flatten(1) @ (v @ w).mT).norm(dim=1)
    assert (reached > 0.9 * 0.3 * torch.linalg.matrix_norm(v @ w, 2)).all()


def test_classes_are_flipped():
    vae, x = small_vae(), images()
    victim = Victim(vae, classifier=CLASSIFIER)
    clean = victim.classify(x, generator=generator(0)).argmax(1)
    for label in (None, clean):
        attack = Attack(
            ClassifierFlip(label, "margin"), ProjectedAscent(steps=30), Ball("l2", 20.0, None, None)
        )
        found = attack(victim, x, generator=generator(0))
        now = victim.classify(found.x_adv, generator=generator(0)).argmax(1)
        assert torch.equal(now != clean, found.score > 0)
        assert (now != clean).any()


@pytest.mark.parametrize(
    ("goal", "x", "ball", "error"),
    [
        (LatentShift(), images()[0], Ball("l2", 1.0), errors.ShapeError),
        (LatentShift(), images(side=4), Ball("l2", 1.0), errors.ShapeError),
        (LatentShift(), 2 * images(), Ball("l2", 1.0), errors.RangeError),
        (LatentShift(), images().float(), Ball("l2", 1.0), errors.DtypeError),
        (LatentShift(), images() * torch.nan, Ball("l2", 1.0), errors.NonFiniteError),
        (LatentShift(), images(), Ball("l2", torch.ones(3)), errors.ShapeError),
        (LatentTarget(images(3)), images(), Ball("l2", 1.0), errors.ShapeError),
        (LatentShift(layers=(0,)), images(), Ball("l2", 1.0), errors.UnsupportedError),
        (ClassifierFlip(), images(), Ball("l2", 1.0), errors.ConfigError),
    ],
)
def test_nonsense_is_refused_in_one_sentence(goal, x, ball, error):
    with pytest.raises(error) as caught:
        Attack(goal, ProjectedAscent(), ball)(Victim(small_vae()), x, generator=generator(0))
    assert "\n" not in str(caught.value)


def test_weights_not_finite_refused():
    vae, x = small_vae(), images()
    with torch.no_grad():
        next(vae.parameters())[0, 0] = torch.nan
    for defense in (PosteriorSample(), HMC(steps=1)):
        with pytest.raises(errors.NonFiniteError, match="weights"):
            Victim(vae, defense).reconstruct(x, generator=generator(0))
    with pytest.raises(errors.NonFiniteError, match="weights"):
        HMC(steps=1)(vae, x, generator=generator(0))
    attack = Attack(LatentShift(), ProjectedAscent(steps=1), Ball("l2", 1.0))
    with pytest.raises(errors.NonFiniteError, match="weights"):
        attack(Victim(vae), x, generator=generator(0))
    good = small_vae()
    classifier = nn.Linear(3, 2).double()
    nn.init.constant_(classifier.bias, torch.nan)
    with pytest.raises(errors.NonFiniteError, match="bias"):
        attack(Victim(good, classifier=classifier), x, generator=generator(0))


def test_gaussian_formulas_refuse_other_posteriors():
    _, w, v = linear_vae()
    vae = wrap(
        encode=lambda x: Laplace(x.flatten(1) @ w.mT, 0.1),
        decode=lambda z: Normal((z @ v.mT).view(-1, 1, 8, 8), 1.0),
        latent=3,
        image_shape=(1, 8, 8),
    )
    x, victim = images(), Victim(vae)
    refused = [LatentShift(name) for name in ("kl", "reverse_kl", "symmetric_kl", "wasserstein2")]
    for goal in (*refused, LatentShift("samples"), OutputTarget(x, "elbo")):
        with pytest.raises(errors.UnsupportedError, match="Gaussian posterior, got Laplace"):
            goal.bind(victim, x, generator=generator(0))
    for goal in (LatentShift("means"), LatentShift("latent"), OutputTarget(x)):
        assert goal.bind(victim, x, generator=generator(0))(x, torch.arange(4)).isfinite().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: LatentShift("kll"),
        lambda: LatentShift(draws=0),
        lambda: MaximumDamage("middle"),
        lambda: OutputTarget(images(), "mse"),
        lambda: ClassifierFlip(loss="hinge"),
        lambda: WeightedSum((), ()),
        lambda: WeightedSum((LatentShift(),), (float("inf"),)),
    ],
)
def test_goals_refuse_nonsense(make):
    with pytest.raises(errors.RobustVAEError):
        make()
