"""Adversarial training: against a written-out search, and against closed-form worst cases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import robustvae as rv
from robustvae import errors
from robustvae.models import Gaussian
from robustvae.objectives import (
    ELBO,
    Adversarial,
    Mixup,
    SelfConsistency,
    SelfSupervision,
    SmoothEncoder,
    SpectralRegularization,
    TotalCorrelation,
)
from robustvae.objectives.adversarial import PASSES
from robustvae.objectives.base import cost_of
from robustvae.perturb import Ball
from robustvae.registry import build, spec_of


@pytest.fixture
def vae() -> rv.VAE:
    return rv.models.create("vae", architecture="conv8", latent=2, seed=3)


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.rand(6, 1, 8, 8, generator=generator)


def linear(weight: Tensor) -> rv.VAE:
    """One code, mu(x) = a.x; g(z) = (z, 2z), so damage is sqrt(5) |a.(x' - x)|."""
    return rv.wrap(
        encode=lambda x: Gaussian((x.flatten(1) @ weight)[:, None], torch.full((len(x), 1), 0.3)),
        decode=lambda z: Gaussian(
            (z * torch.tensor([1.0, 2.0])).view(-1, 1, 1, 2), torch.full((1,), 0.5)
        ),
        latent=1,
        image_shape=(1, 1, 2),
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("harm", ["damage", "latent"])
def test_search_reaches_the_worst_case(norm: str, harm: str, generator: torch.Generator) -> None:
    weight = torch.tensor([1.5, -0.5])
    x = torch.full((6, 1, 1, 2), 0.5)
    radii = (0.1, 0.3)
    objective = Adversarial(radii=radii, norm=norm, harm=harm, steps=20)
    _, harms = objective.attack(linear(weight), x, generator=generator)
    dual = float(weight.abs().sum() if norm == "linf" else weight.norm())
    shift = torch.tensor(radii).repeat(3) * dual
    worst = 5**0.5 * shift if harm == "damage" else shift.square()
    torch.testing.assert_close(harms, worst, rtol=1e-3, atol=1e-4)


def test_search_matches_its_definition(vae: rv.VAE, x: Tensor) -> None:
    objective = Adversarial(radii=(0.1, 0.2), steps=2, step=0.5)
    got, harm = objective.attack(vae, x, generator=rv.generator(7))
    radius = torch.tensor([0.1, 0.2] * 3).view(-1, 1, 1, 1)
    y = x + radius * (2 * torch.rand(x.shape, generator=rv.generator(7)) - 1)
    y = y.clamp(0, 1)
    vae.eval()
    clean = vae.decode(vae.encode(x).mean).mean.detach()
    for _ in range(2):
        y = y.detach().requires_grad_()
        damage = (vae.decode(vae.encode(y).mean).mean - clean).flatten(1).norm(dim=1)
        damage.sum().backward()
        y = (y + 0.5 * radius * y.grad.sign()).detach()
        y = torch.minimum(torch.maximum(y, x - radius), x + radius).clamp(0, 1)
    torch.testing.assert_close(got, y)
    moved = vae.decode(vae.encode(y).mean).mean - clean
    torch.testing.assert_close(harm, moved.flatten(1).norm(dim=1).detach())


@pytest.mark.parametrize("harm", PASSES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_radius_and_box_are_kept(
    harm: str, norm: str, vae: rv.VAE, x: Tensor, generator: torch.Generator
) -> None:
    objective = Adversarial(radii=(0.05, 0.3, 0.6), norm=norm, harm=(harm,), steps=2, step=3.0)
    x_adv, harms = objective.attack(vae, x, generator=generator)
    radii = torch.tensor([0.05, 0.3, 0.6] * 2)
    assert bool(Ball(norm, radii).contains(x, x_adv).all())
    assert bool(harms.isfinite().all()) and float(harms.min()) > 0


def test_more_steps_do_more_harm(vae: rv.VAE, x: Tensor) -> None:
    harms = [
        float(Adversarial(steps=steps).attack(vae, x, generator=rv.generator(0))[1].mean())
        for steps in (1, 10)
    ]
    assert harms[1] > harms[0]


def test_loss_explains_the_clean_image(vae: rv.VAE, x: Tensor) -> None:
    objective = Adversarial(base=ELBO(beta=2.0, input_noise=0.1))
    terms = objective.terms(vae, x, generator=rv.generator(4))
    g = rv.generator(4)
    x_adv, harm = objective.attack(vae, x, generator=g)
    torch.testing.assert_close(terms["harm"], harm)
    q = vae.encode(x_adv + 0.1 * torch.randn(x.shape, generator=g))
    z = q.mean + q.stddev * torch.randn(q.mean.shape, generator=g)
    torch.testing.assert_close(terms["distortion"], -vae.decode(z).log_prob(x).flatten(1).sum(1))


def test_search_leaves_the_model_alone(vae: rv.VAE, x: Tensor) -> None:
    vae.train()
    objective = Adversarial(share=0.5)
    x_adv, _ = objective.attack(vae, x, generator=rv.generator(0))
    assert vae.training
    assert all(p.requires_grad and p.grad is None for p in vae.parameters())
    assert not x_adv.requires_grad
    vae.eval()
    got = torch.autograd.grad(
        objective(vae, x, generator=rv.generator(1)).sum(), list(vae.parameters())
    )
    g = rv.generator(1)
    x_adv, _ = objective.attack(vae, x, generator=g)
    loss = ELBO().terms(vae, x, generator=g, reads=x_adv)["loss"].sum()
    torch.testing.assert_close(got, torch.autograd.grad(loss, list(vae.parameters())))


def test_share_leaves_the_others_clean(vae: rv.VAE, x: Tensor, generator: torch.Generator) -> None:
    x_adv, harm = Adversarial(share=0.5).attack(vae, x, generator=generator)
    assert bool((x_adv[3:] == x[3:]).all()) and not bool((x_adv[:3] == x[:3]).all())
    assert harm[3:].tolist() == [0, 0, 0] and float(harm[:3].min()) > 0


def test_harms_are_taken_in_turn() -> None:
    objective = Adversarial(harm=("damage", "latent"), base=ELBO(warmup=10))
    assert [objective.at(step).harm for step in range(3)] == [("damage",), ("latent",), ("damage",)]
    assert objective.at(5).base == ELBO(beta=0.5)
    assert objective.at(10) == objective.at(12)


@pytest.mark.parametrize(
    "base",
    [
        TotalCorrelation(input_noise=0.1),
        Mixup(base=ELBO(beta=2.0)),
        SelfConsistency(),
        SmoothEncoder(steps=1),
        SpectralRegularization(),
    ],
    ids=lambda base: type(base).__name__,
)
def test_every_base_reads_the_attack(base: rv.objectives.Objective, vae: rv.VAE, x: Tensor) -> None:
    objective = Adversarial(steps=1, base=base)
    g = rv.generator(2)
    x_adv, _ = objective.attack(vae, x, generator=g)
    plain = base.terms(vae, x, generator=rv.generator(9))
    moved = base.terms(vae, x, generator=rv.generator(9), reads=x_adv)
    assert not torch.allclose(plain["distortion"], moved["distortion"])
    loss = objective(vae, x, generator=g).mean()
    loss.backward()
    gradients = [p.grad for p in vae.parameters() if p.grad is not None]
    assert gradients and all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert cost_of(objective) == pytest.approx(cost_of(base) + 2 / 3, abs=2e-3)


@pytest.mark.parametrize("name", ["dlgm", "seatbelt", "nvae", "lipschitz-vae"])
def test_every_model_is_attacked(name: str, x: Tensor, generator: torch.Generator) -> None:
    options = {
        "dlgm": {"widths": [4, 2], "hidden": [16]},
        "seatbelt": {"widths": [4, 2], "hidden": [16]},
        "nvae": {"channels": 4},
        "lipschitz-vae": {"hidden": [16], "latent": 2},
    }[name]
    vae = rv.models.create(name, image_shape=(1, 8, 8), **options)
    for harm in PASSES:
        terms = Adversarial(harm=harm, steps=1).terms(vae, x, generator=generator)
        assert bool(terms["loss"].isfinite().all())


def test_training_resumes_bit_for_bit(tmp_path) -> None:
    few = rv.data.load("digits")[:64]
    objective = Adversarial(harm=("damage", "latent"), steps=2, base=ELBO(input_noise=0.2))
    options = {"batch_size": 20, "validation": None, "progress": False}

    def fitted(epochs: list[int], out) -> dict[str, Tensor]:
        for count in epochs:
            vae = rv.models.create("vae", architecture="conv8", latent=2, seed=0)
            rv.fit(vae, objective, few, epochs=count, generator=rv.generator(0), out=out, **options)
        return vae.state_dict()

    straight, resumed = fitted([2], tmp_path / "a"), fitted([1, 2], tmp_path / "b")
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_training_makes_a_model_hold(generator: torch.Generator) -> None:
    """120 steps, plain and adversarial, from the same weights: three quarters of the harm."""
    digits = rv.data.load("digits")
    few, judge = digits.x[:128].float(), Adversarial(radii=(0.2,), steps=5)
    harms = []
    for objective in (ELBO(beta=0.2), Adversarial(radii=(0.2,), base=ELBO(beta=0.2))):
        vae = rv.models.create("vae", image_shape=(1, 8, 8), latent=4, hidden=[32], seed=0)
        vae = vae.to(few.dtype)
        adam = torch.optim.Adam(vae.parameters(), lr=5e-3)
        for _ in range(120):
            adam.zero_grad()
            objective(vae, few, generator=generator).mean().backward()
            adam.step()
        harms.append(float(judge.attack(vae, few, generator=generator)[1].mean()))
    assert harms[1] < 0.75 * harms[0]


def test_objective_survives_its_spec() -> None:
    text = "adversarial:radii=[0.1,0.2],harm=[damage,latent],base=(elbo:input_noise=0.25)"
    objective = build("objective", text)
    assert objective == Adversarial(harm=("damage", "latent"), base=ELBO(input_noise=0.25))
    assert build("objective", spec_of("objective", objective)) == objective


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"radii": ()}, errors.RangeError),
        ({"radii": (0.1, 0.0)}, errors.RangeError),
        ({"norm": "l1"}, errors.UnknownNameError),
        ({"harm": ("damage", "mean")}, errors.UnknownNameError),
        ({"steps": 0}, errors.RangeError),
        ({"step": -1.0}, errors.RangeError),
        ({"share": 0.0}, errors.RangeError),
        ({"share": 1.5}, errors.RangeError),
        ({"base": SelfSupervision()}, errors.ConfigError),
        ({"base": Adversarial()}, errors.ConfigError),
        ({"base": Mixup(base=SelfSupervision())}, errors.ConfigError),
        ({"base": 3}, errors.RobustVAEError),
    ],
)
def test_impossible_settings_are_refused(options: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        Adversarial(**options)
