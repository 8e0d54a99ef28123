"""Mixup, smooth encoders and self-consistency against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Beta, Normal, kl_divergence
from torch.testing import assert_close

import robustvae as rv
from robustvae import errors
from robustvae.models import Gaussian
from robustvae.objectives import (
    ELBO,
    Adversarial,
    Mixup,
    Objective,
    SelfConsistency,
    SelfSupervision,
    SmoothEncoder,
    SpectralRegularization,
    SupportSet,
    TotalCorrelation,
)


@pytest.fixture
def vae() -> rv.VAE:
    return rv.models.create("vae", image_shape=(1, 2, 3), latent=2, hidden=[8])


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.rand(5, 1, 2, 3, generator=generator)


def linear(weight: Tensor, stddev: float = 0.5) -> rv.VAE:
    """mu(x) = W x with a constant spread, and g(z) = W' z."""

    def encode(x: Tensor) -> Gaussian:
        mean = x.flatten(1) @ weight.mT
        return Gaussian(mean, torch.full_like(mean, stddev))

    def decode(z: Tensor) -> Gaussian:
        mean = (z @ weight).view(-1, 1, 2, 3)
        return Gaussian(mean, torch.ones_like(mean))

    return rv.wrap(encode=encode, decode=decode, latent=len(weight), image_shape=(1, 2, 3))


def test_mixup_matches_formula_for_one_pair(vae: rv.VAE, x: Tensor) -> None:
    """Of two images each is the other's partner; the share is read off the mixture of codes."""
    pair = x[:2]
    seen: dict[str, Tensor] = {}

    def encode(images: Tensor) -> Gaussian:
        seen["x_mixed"] = images
        return vae.encode(images)

    def decode(z: Tensor):  # type: ignore[no-untyped-def]
        seen["z_mixed"] = z
        return vae.decode(z)

    spied = rv.wrap(encode=encode, decode=decode, latent=2, image_shape=(1, 2, 3))
    for squared in (False, True):
        terms = Mixup(3.0, squared).terms(spied, pair, generator=rv.generator(4))
        z, other = vae.encode(pair).mean, vae.encode(pair.flip(0)).mean
        a = ((seen["z_mixed"] - other) / (z - other)).mean(1)
        assert ((a > 0) & (a < 1)).all()
        share = a.view(-1, 1, 1, 1)
        x_mixed = share * pair + (1 - share) * pair.flip(0)
        assert_close(seen["x_mixed"], x_mixed)
        q = vae.encode(x_mixed)
        z_mixed = a[:, None] * z + (1 - a[:, None]) * other
        power = 2 if squared else 1
        encoder = (z_mixed - q.mean).norm(dim=1) ** power
        decoder = (vae.decode(z_mixed).mean - x_mixed).flatten(1).norm(dim=1) ** power
        assert_close(terms["mixup_encoder"], encoder)
        assert_close(terms["mixup_decoder"], decoder)
        penalty = encoder + decoder
        if squared:
            kl = kl_divergence(Normal(q.mean, q.stddev), Normal(0.0, 1.0)).sum(1)
            assert_close(terms["mixup_kl"], kl)
            penalty = penalty + kl
        elbo = ELBO()(spied, pair, generator=rv.generator(4))
        assert_close(terms["loss"], elbo + 3.0 * penalty)


def test_mixup_free_maps_undo_other(x: Tensor, generator: torch.Generator) -> None:
    orthonormal = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    terms = Mixup().terms(linear(orthonormal), x, generator=generator)
    assert_close(terms["mixup_encoder"] + terms["mixup_decoder"], torch.zeros(5), atol=1e-6, rtol=0)


def test_mixup_weights_follow_arcsine_law(generator: torch.Generator) -> None:
    """Shares recovered from images 0, 1/n, 2/n, ... encoded as themselves."""
    n, seen = 2001, []

    def decode(z: Tensor) -> Gaussian:
        seen.append(z.flatten())
        return Gaussian(z.view(-1, 1, 1, 1), torch.ones(len(z), 1, 1, 1))

    def encode(x: Tensor) -> Gaussian:
        return Gaussian(x.flatten(1), torch.ones(len(x), 1))

    vae = rv.wrap(encode=encode, decode=decode, latent=1, image_shape=(1, 1, 1))
    x = (torch.arange(n) % 2).to(torch.float64).view(-1, 1, 1, 1)
    Mixup()(vae, x, generator=generator)
    mixed = seen[-1]
    strictly = mixed[(mixed > 0) & (mixed < 1)]  # partners of the other kind: the share, or 1 - it
    assert abs(len(strictly) / n - 0.5) < 4 * 0.5 / math.sqrt(n)
    law = Beta(torch.tensor(0.5), torch.tensor(0.5))
    assert abs(strictly.mean() - law.mean) < 4 * law.stddev / math.sqrt(len(strictly))
    spread = (strictly - 0.5).square()
    assert abs(spread.mean() - law.variance) < 4 * spread.std() / math.sqrt(len(strictly))


def test_smooth_encoder_solves_linear_encoder(x: Tensor, generator: torch.Generator) -> None:
    """One code W x: the farthest point of the ball lies in the corner sign(W), or its opposite."""
    weight = torch.randn(1, 6, generator=generator)
    inside = 0.3 + 0.4 * x
    objective = SmoothEncoder(weight=2.0, radius=0.1, steps=12)
    terms = objective.terms(linear(weight), inside, generator=rv.generator(3))
    assert_close(terms["smoothness"], torch.full((5,), (0.1 * weight.abs().sum()) ** 2))
    elbo = ELBO()(linear(weight), inside, generator=rv.generator(3))
    assert_close(terms["loss"], elbo + 2.0 * terms["smoothness"])


def test_smooth_encoder_beats_random_noise(vae: rv.VAE, x: Tensor) -> None:
    objective = SmoothEncoder(radius=0.2, steps=10)
    y = objective._adversary(vae, x, rv.generator(1))
    ball = rv.Ball("linf", 0.2)
    assert ball.contains(x, y).all()
    with torch.no_grad():
        found = objective.terms(vae, x, generator=rv.generator(1))["smoothness"]
        q = vae.encode(x)
        for _ in range(20):
            p = vae.encode(ball.sample(x, generator=rv.generator(5)))
            noise = (p.mean - q.mean).square().sum(1) + (p.stddev - q.stddev).square().sum(1)
            assert (found > noise).all()


def test_self_consistency_matches_its_formula(vae: rv.VAE, x: Tensor) -> None:
    rho = 0.9
    base, terms = (
        objective.terms(vae, x, generator=rv.generator(2))
        for objective in (ELBO(), SelfConsistency(rho, weight=2.0, coupled=True))
    )
    generator = rv.generator(2)
    rv.draw(vae.encode(x), generator=generator)  # the base's
    z = rv.draw(vae.encode(x), generator=generator)
    again = vae.encode(vae.decode(z).mean)
    target = Normal(rho * z, math.sqrt(1 - rho**2))
    kl = kl_divergence(Normal(again.mean, again.stddev), target).sum(1)
    assert_close(terms["self_consistency"], kl)
    assert_close(terms["loss"], base["loss"] + 2.0 * kl)


def test_self_consistency_of_uncoupled_draws(vae: rv.VAE, x: Tensor) -> None:
    rho, n = 0.9, 20_000
    kl = SelfConsistency(rho).terms(vae, x, generator=rv.generator(2))["self_consistency"]
    generator = rv.generator(2)
    rv.draw(vae.encode(x), generator=generator)  # the base's
    again = vae.encode(vae.decode(rv.draw(vae.encode(x), generator=generator)).mean)
    z = rv.draw(vae.encode(x), (n,), generator=rv.generator(5))
    target = Normal(rho * z, math.sqrt(1 - rho**2))
    each = kl_divergence(Normal(again.mean, again.stddev), target).sum(2)
    assert ((kl - each.mean(0)).abs() < 5 * each.std(0) / math.sqrt(n)).all()


def test_consistent_encoder_has_no_penalty(
    generator: torch.Generator,
) -> None:
    """mu(g(z)) = rho z with variance 1 - rho^2, z of any origin."""
    rho, scale = 0.8, 3.0
    vae = rv.wrap(
        encode=lambda x: Gaussian(
            x.flatten(1) * rho / scale, torch.full((len(x), 6), math.sqrt(1 - rho**2))
        ),
        decode=lambda z: Gaussian(scale * z.view(-1, 1, 2, 3), torch.ones(len(z), 1, 2, 3)),
        latent=6,
        image_shape=(1, 2, 3),
    )
    x = torch.rand(4, 1, 2, 3, generator=generator)
    for objective in (SelfSupervision(rho), SelfConsistency(rho, coupled=True)):
        terms = objective.terms(vae, x, generator=generator)
        kl = terms["loss"] if isinstance(objective, SelfSupervision) else terms["self_consistency"]
        assert_close(kl, torch.zeros(4))


def gradients(vae: rv.VAE, loss: Tensor) -> dict[str, Tensor | None]:
    parameters = dict(vae.named_parameters())
    found = torch.autograd.grad(loss.sum(), list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, found, strict=True))


def test_self_supervision_trains_the_encoder_alone(vae: rv.VAE, x: Tensor) -> None:
    found = gradients(vae, SelfSupervision()(vae, x, generator=rv.generator(0)))
    for name, gradient in found.items():
        assert (gradient is None) == name.startswith("decoder"), name
    assert all(parameter.requires_grad for parameter in vae.parameters())
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    images = rv.data.Images(x.float(), torch.zeros(5, dtype=torch.int64), "few", "train")
    rv.fit(vae, SelfSupervision(), images, epochs=2, validation=None, generator=rv.generator(0))
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("decoder"), name


def test_no_gradient_passes_through_the_reconstruction(vae: rv.VAE, x: Tensor) -> None:
    """The decoder's gradient is the base's own, and freezing it meanwhile loses nothing of that."""
    whole = SelfConsistency(base=ELBO(beta=2.0))(vae, x, generator=rv.generator(1))
    base = ELBO(beta=2.0)(vae, x, generator=rv.generator(1))
    one, other = gradients(vae, whole), gradients(vae, base)
    for name, gradient in one.items():
        if name.startswith("decoder"):
            assert_close(gradient, other[name])
        else:
            assert not torch.equal(gradient, other[name])  # type: ignore[arg-type]


def test_adversary_leaves_batch_norm_alone() -> None:
    vae = rv.models.create(
        "vae", image_shape=(1, 2, 3), latent=2, hidden=[8], activation="tanh", batch_norm=True
    )
    x = torch.rand(5, 1, 2, 3)
    norms = [part for part in vae.decoder if isinstance(part, nn.BatchNorm1d)]
    SmoothEncoder(base=SelfConsistency())(vae, x, generator=rv.generator(0))
    assert vae.training
    assert [int(norm.num_batches_tracked) for norm in norms] == [1]
    encoder = next(part for part in vae.trunk if isinstance(part, nn.BatchNorm1d))
    # the ELBO; z and its re-encoding; the image and its adversary
    assert int(encoder.num_batches_tracked) == 5


def test_spectral_penalty_sums_singular_values() -> None:
    vae = rv.models.create("vae", architecture="conv8", latent=2)
    x = torch.rand(3, 1, 8, 8)
    exact = sum(
        torch.linalg.matrix_norm(p.flatten(1), ord=2) for p in vae.parameters() if p.ndim > 1
    )
    few, many = (
        SpectralRegularization(2.0, steps).terms(vae, x, generator=rv.generator(0))
        for steps in (1, 300)
    )
    assert_close(many["spectral"], exact.expand(3))
    assert (few["spectral"] < exact).all()
    elbo = ELBO()(vae, x, generator=rv.generator(0))
    assert_close(many["loss"], elbo + 2.0 * exact)
    gradients_of_norms = gradients(vae, many["spectral"][:1])
    left, _, right = torch.linalg.svd(vae.mean_head.weight)
    assert_close(gradients_of_norms["mean_head.weight"], torch.outer(left[:, 0], right[0]))


def test_objectives_compose_and_warm_up_inside() -> None:
    whole = SelfConsistency(base=SmoothEncoder(base=Mixup(base=ELBO(beta=4.0, warmup=8))))
    assert whole.at(2) == SelfConsistency(base=SmoothEncoder(base=Mixup(base=ELBO(beta=1.0))))
    assert SelfSupervision().at(3) == SelfSupervision()
    assert isinstance(whole, Objective)
    by_name = rv.objectives.create(
        "self-consistency",
        rho=0.9,
        base={"name": "smooth-encoder", "radius": 0.2, "base": {"name": "elbo", "beta": 2.0}},
    )
    assert by_name == SelfConsistency(0.9, base=SmoothEncoder(radius=0.2, base=ELBO(2.0)))


OBJECTIVES: dict[str, list[Objective]] = {
    "adversarial": [Adversarial(steps=1, base=ELBO(input_noise=0.1))],
    "elbo": [ELBO(beta=2.0), ELBO(free_bits=0.5, warmup=4)],
    "total-correlation": [TotalCorrelation(5.0, 400), TotalCorrelation(5.0, 400, sampling="mss")],
    "mixup": [Mixup(), Mixup(squared=True), Mixup(base=TotalCorrelation(2.0, 400))],
    "smooth-encoder": [SmoothEncoder(radius=0.1, steps=2)],
    "self-consistency": [SelfConsistency(), SelfConsistency(base=SmoothEncoder(steps=2))],
    "self-supervision": [SelfSupervision()],
    "spectral-regularization": [SpectralRegularization(0.5)],
    "support-set": [SupportSet(0.01), SupportSet(0.01, base=ELBO(2.0))],
}


MODELS: dict[str, dict[str, object]] = {
    "vae": {"latent": 4, "hidden": [32]},
    "seatbelt": {"widths": [4, 3], "between": [16], "hidden": [32]},
    "dlgm": {"widths": [4, 3], "between": [16], "hidden": [32]},
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", rv.objectives.names())
def test_every_objective_falls_in_training(name: str, model: str) -> None:
    """Before and after a few epochs on digits, by the same draws."""
    torch.set_default_dtype(torch.float32)
    images = rv.data.load("digits")[:400]
    for objective in OBJECTIVES[name]:
        vae = rv.models.create(model, image_shape=(1, 8, 8), **MODELS[model])
        if name == "support-set" and model != "vae":  # bounds its decoder by the layers
            with pytest.raises(errors.UnsupportedError, match="support set"):
                objective(vae, images.x, generator=rv.generator(1))
            continue

        def loss(vae: rv.VAE, objective: Objective) -> float:
            with torch.no_grad():
                values = objective(vae, images.x, generator=rv.generator(1))
            assert values.shape == (400,)
            return float(values.mean())

        before = loss(vae, objective)
        rv.fit(
            vae,
            objective,
            images,
            epochs=3,
            batch_size=50,
            lr=3e-3,
            validation=None,
            generator=rv.generator(0),
        )
        assert loss(vae, objective) < before, objective


@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        (Mixup, {"weight": -1.0}, errors.RangeError),
        (Mixup, {"squared": 1}, errors.DtypeError),
        (Mixup, {"concentration": 0.0}, errors.RangeError),
        (Mixup, {"base": 3}, errors.RobustVAEError),
        (SmoothEncoder, {"radius": 0.0}, errors.RangeError),
        (SmoothEncoder, {"steps": 0}, errors.RangeError),
        (SmoothEncoder, {"step": math.inf}, errors.NonFiniteError),
        (SmoothEncoder, {"base": None}, errors.DtypeError),
        (SelfConsistency, {"rho": 1.0}, errors.RangeError),
        (SelfConsistency, {"weight": "1"}, errors.DtypeError),
        (SelfConsistency, {"base": {"name": "elbo", "bta": 1}}, errors.RobustVAEError),
        (SelfSupervision, {"rho": 0.0}, errors.RangeError),
        (SpectralRegularization, {"weight": -1.0}, errors.RangeError),
        (SpectralRegularization, {"steps": 0}, errors.RangeError),
        (SpectralRegularization, {"base": 1}, errors.DtypeError),
    ],
)
def test_penalties_reject_nonsense(
    kind: type[Objective], options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        kind(**options)


def test_base_without_name_is_refused() -> None:
    with pytest.raises(errors.ConfigError, match="needs a name"):
        rv.objectives.create("mixup", base={"beta": 2.0})
    with pytest.raises(errors.UnknownNameError, match="did you mean 'elbo'"):
        rv.objectives.create("mixup", base={"name": "elbow"})
