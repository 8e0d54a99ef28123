"""Gradients through defenses, against finite differences; the published attack's gradient is 0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustvae import errors
from robustvae.attacks import (
    Attack,
    Checkpointed,
    Implicit,
    LatentShift,
    MaximumDamage,
    StraightThrough,
    Truncated,
)
from robustvae.defenses import HMC, PosteriorMode, RobustPosterior, Victim
from robustvae.models import create
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.seeding import generator, rand, randn

like = torch.zeros(0, dtype=torch.float64)


@pytest.fixture(scope="module")
def vae():
    torch.random.default_generator.set_state(generator(5).get_state())
    return create(
        "vae", architecture="mlp", latent=3, image_shape=(1, 4, 4), hidden=(12,), activation="tanh"
    ).double()


@pytest.fixture
def x() -> Tensor:
    return 0.3 + 0.4 * rand(2, 1, 4, 4, like=like, generator=generator(1))


def slope_and_difference(vae, defense, x, read=None) -> tuple[Tensor, Tensor]:
    """d/dt of a weighted sum of latents along a direction: autograd, and central differences."""
    g = generator(3)
    weight, v = randn(2, 3, like=like, generator=g), randn(*x.shape, like=like, generator=g)

    def value(at: Tensor, by=defense) -> Tensor:
        return (by(vae, at, generator=generator(7)) * weight).sum()

    at = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(at), at)
    h, by = 1e-5, read or defense
    difference = (value(x + h * v, by) - value(x - h * v, by)) / (2 * h)
    return (slope * v).sum(), difference.detach()


@pytest.mark.parametrize(
    "defense",
    [
        HMC(steps=6, n_leapfrog=3, adapt=None),
        Checkpointed(HMC(steps=6, n_leapfrog=3, adapt=None), segment=2),
        Checkpointed(HMC(steps=6, n_leapfrog=3, adapt=None), segment=4),
        PosteriorMode(steps=20),
        PosteriorMode(steps=16, start="prior", starts=3),
        RobustPosterior(radius=0.05, steps=20),
    ],
)
def test_gradients_through_defenses_are_true(vae, x, defense):
    slope, difference = slope_and_difference(vae, defense, x)
    assert abs(difference) > 1e-4
    torch.testing.assert_close(slope, difference, rtol=2e-4, atol=1e-7)


def test_the_published_attack_sees_nothing(vae, x):
    """It detaches the chain: gradient exactly 0, where the true one is not."""

    def published(vae, x, *, generator):
        return HMC(steps=6, n_leapfrog=3, adapt=None)(vae, x.detach(), generator=generator)

    goal, ball = MaximumDamage(draws=2), Ball("linf", 0.2)
    attack = Attack(goal, ProjectedAscent(steps=3, restarts=1), ball)
    blind = attack(Victim(vae, published), x, generator=generator(0))
    assert (blind.gradient_norm == 0).all() and blind.status == ("inconclusive",) * 2
    seeing = attack(Victim(vae, HMC(steps=6, n_leapfrog=3, adapt=None)), x, generator=generator(0))
    assert (seeing.gradient_norm > 0).all() and seeing.status == ("ok",) * 2


@pytest.mark.parametrize(
    "mode", [PosteriorMode(steps=400), RobustPosterior(radius=0.05, steps=400)]
)
def test_implicit_gradient_is_that_of_mode(vae, x, mode):
    slope, difference = slope_and_difference(vae, Implicit(mode), x, mode)
    torch.testing.assert_close(slope, difference, rtol=1e-2, atol=1e-6)
    plain = mode(vae, x, generator=generator(0))
    torch.testing.assert_close(Implicit(mode)(vae, x, generator=generator(0)), plain)


CHAINS = {
    "plain": {},
    "ball": {"ball": Ball("linf", 0.1)},
    "encoder": {"mass": "encoder"},
    "fisher": {"mass": "fisher"},
    "start": {"start": PosteriorMode(steps=5)},
    "all": {"ball": Ball("l2", 0.3), "mass": "encoder", "jitter": 0.3, "acceptance": 0.5},
    "chunks": {"chunk": 1},
    "floor": {"floor": 0.45},
}


@pytest.mark.parametrize("wrap", [Checkpointed, Truncated])
@pytest.mark.parametrize("options", CHAINS.values(), ids=CHAINS)
def test_chain_attacked_is_one_given(vae, x, wrap, options):
    own = HMC(steps=5, n_leapfrog=2, step_size=0.2, adapt=None, **options)
    cuts = {Checkpointed: {"segment": 2}, Truncated: {"last": 2}}
    at = x.clone().requires_grad_()
    z, wanted = (d(vae, at, generator=generator(7)) for d in (wrap(own, **cuts[wrap]), own))
    # a projection onto an l2 ball is solved to 1e-6 from wherever the segment before it ended
    torch.testing.assert_close(z, wanted, rtol=1e-5, atol=1e-5)
    if wrap is Checkpointed:
        slope, true = (torch.autograd.grad(end.square().sum(), at)[0] for end in (z, wanted))
        torch.testing.assert_close(slope, true, rtol=1e-4, atol=1e-5)
        assert (true.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("adapt", ["chain", "paper"])
def test_truncating_nothing_is_the_sampler(vae, x, adapt):
    own = HMC(steps=6, n_leapfrog=2, adapt=adapt, acceptance=0.6)
    z, wanted = (d(vae, x, generator=generator(7)) for d in (Truncated(own, last=6), own))
    torch.testing.assert_close(z, wanted)


def test_the_acceptance_wanted_is_the_samplers(vae, x):
    """[Kuzina22]'s rule runs on through segments: those of the checkpoints are HMC's own."""
    own = HMC(steps=30, n_leapfrog=2, step_size=0.4, adapt="paper", acceptance=0.3)
    z, wanted = (d(vae, x, generator=generator(7)) for d in (Checkpointed(own, segment=7), own))
    torch.testing.assert_close(z, wanted)


@pytest.mark.parametrize("wrap", [Checkpointed, lambda own: Truncated(own, last=2)])
@pytest.mark.parametrize("options", [{"average": True}, {"plateau": 2}, {"force": "bfloat16"}])
def test_chains_cannot_cut_refused(wrap, options):
    with pytest.raises(errors.UnsupportedError, match="no average, no plateau and the exact force"):
        wrap(HMC(steps=6, **options))


@pytest.mark.parametrize(
    "defense",
    [
        Truncated(HMC(steps=3), last=2),
        Checkpointed(HMC(steps=3, adapt=None), segment=2),
        StraightThrough(PosteriorMode(steps=2)),
        Implicit(PosteriorMode(steps=50)),
    ],
    ids=lambda d: type(d).__name__,
)
def test_model_in_training_left_as(defense, x):
    """Its running statistics too; and what is differentiated is the model without attack."""
    shape = {"architecture": "mlp", "latent": 3, "image_shape": (1, 4, 4), "hidden": (12,)}
    vae = create("vae", **shape, activation="tanh", batch_norm=True, seed=5).double()
    at, slopes = x.clone().requires_grad_(), []
    for training in (False, True):
        vae.train(training)
        before = {name: value.clone() for name, value in vae.state_dict().items()}
        z = defense(vae, at, generator=generator(0))
        slopes.append(torch.autograd.grad(z.square().sum(), at)[0])
        assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
        assert vae.training == training and all(p.requires_grad for p in vae.parameters())
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("adapt", [None, "chain", "paper"])
def test_checkpointing_keeps_every_code(vae, x, adapt):
    own = HMC(steps=7, n_leapfrog=2, adapt=adapt)
    z = Checkpointed(own, segment=3)(vae, x, generator=generator(0))
    assert z.shape == (2, 3) and z.isfinite().all()
    if adapt is None:
        torch.testing.assert_close(z, own(vae, x, generator=generator(0)))


@pytest.mark.parametrize("last", [3, 6])
def test_truncated_gradients_of_last_transitions(vae, x, last):
    """With the start carried over by the encoder's mean: the chain rule by hand."""
    own = HMC(steps=6, n_leapfrog=2, adapt=None)
    at = x.clone().requires_grad_()
    z = Truncated(own, last=last)(vae, at, generator=generator(7))
    torch.testing.assert_close(z.detach(), own(vae, x, generator=generator(7)))
    (slope,) = torch.autograd.grad(z.sum(), at)
    if last == 6:
        (whole,) = torch.autograd.grad(own(vae, at, generator=generator(7)).sum(), at)
        torch.testing.assert_close(slope, whole)
    assert (slope.flatten(1).norm(dim=1) > 0).all()


def test_straight_through_uses_encoder_slope(vae, x):
    own = PosteriorMode(steps=10)
    at = x.clone().requires_grad_()
    z = StraightThrough(own)(vae, at, generator=generator(0))
    torch.testing.assert_close(z.detach(), own(vae, x, generator=generator(0)))
    (slope,) = torch.autograd.grad(z.sum(), at)
    (wanted,) = torch.autograd.grad(vae.encode(at).mean.sum(), at)
    torch.testing.assert_close(slope, wanted)


def test_every_way_through_is_attacked(vae, x):
    ways = (
        Truncated(HMC(steps=6, n_leapfrog=2), last=2),
        Checkpointed(HMC(steps=6, n_leapfrog=2), segment=2),
        StraightThrough(HMC(steps=3)),
        Implicit(PosteriorMode(steps=20)),
    )
    for defense in ways:
        goal = LatentShift("latent", draws=2)
        attack = Attack(goal, ProjectedAscent(steps=3, restarts=2), Ball("linf", 0.2))
        found = attack(Victim(vae, defense), x, generator=generator(0))
        assert found.status == ("ok", "ok")


def test_nonsense_is_refused():
    with pytest.raises(errors.RangeError):
        Truncated(HMC(steps=3), last=4)
    with pytest.raises(errors.RangeError):
        Checkpointed(HMC(), segment=0)
    with pytest.raises(errors.RangeError):
        Implicit(PosteriorMode(), damping=0.0)


def test_second_derivative_through_checkpoints_is_refused():
    vae = create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
    x = torch.full((1, 1, 4, 4), 0.5).requires_grad_()
    chain = Checkpointed(HMC(steps=2, adapt=None), segment=1)
    z = chain(vae, x, generator=generator(0))
    with pytest.raises(errors.UnsupportedError, match="first derivatives"):
        torch.autograd.grad(z.square().sum(), x, create_graph=True)


def test_chain_keeps_the_models_dtype():
    with torch.random.fork_rng():
        vae = create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4)).double()
    x = torch.full((2, 1, 4, 4), 0.3, dtype=torch.float64)
    own = HMC(steps=3, adapt=None)
    torch.set_default_dtype(torch.float32)
    try:
        wanted = own(vae, x, generator=generator(0))
        for same in (Checkpointed(own, segment=2), Truncated(own, last=1)):
            assert torch.equal(same(vae, x, generator=generator(0)), wanted)
    finally:
        torch.set_default_dtype(torch.float64)
