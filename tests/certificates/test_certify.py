"""Certified never above attacked, on small models of every kind, and bad bounds found out."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import robustvae as rv
from robustvae import bounds, errors
from robustvae.certificates import (
    certify,
    lipschitz_bound,
    lipschitz_constants,
    movement,
)
from robustvae.certificates.certification import GUARANTEED
from robustvae.certificates.ranges import certify_in_ranges
from robustvae.metrics import clopper_pearson
from robustvae.models import create
from robustvae.records import Store

SHAPE = (1, 4, 4)
R, M = 0.6, 0.5


def lipschitz(**options):
    settings = {"latent": 3, "hidden": [16], "encoder_lipschitz": 2.0, "decoder_lipschitz": 4.0}
    return create("lipschitz-vae", image_shape=SHAPE, **{**settings, "stddev": 0.1, **options})


def plain(**options):
    vae = create("vae", architecture="mlp", image_shape=SHAPE, latent=3, hidden=[8], **options)
    with torch.no_grad():
        vae.log_var_head.bias.fill_(-4.0)
        vae.log_var_head.weight.mul_(0.2)
    return vae


def linear(generator):
    """A linear Gaussian VAE with orthogonal maps: every margin is known in closed form."""
    vae = create(
        "lipschitz-vae",
        image_shape=SHAPE,
        latent=4,
        hidden=[],
        encoder_lipschitz=1.5,
        decoder_lipschitz=2.0,
        stddev=0.1,
        likelihood="gaussian",
    )
    return vae.double()


MODELS = {
    "lipschitz, fixed sigma": lipschitz,
    "lipschitz, learned sigma": lambda: lipschitz(
        stddev=None, encoder_lipschitz=0.2, decoder_lipschitz=1.0
    ),
    "lipschitz, clipped sigma": lambda: lipschitz(
        stddev=None, stddev_norm=0.8, encoder_lipschitz=0.2, decoder_lipschitz=1.0
    ),
    "lipschitz, exact mean": lambda: lipschitz(likelihood="continuous_bernoulli_exact"),
    "lipschitz, maxmin, Bernoulli": lambda: lipschitz(activation="maxmin", likelihood="bernoulli"),
    "lipschitz, identity": lambda: lipschitz(likelihood="gaussian", decoder_lipschitz=1.0),
    "plain": plain,
    "plain, tanh": lambda: plain(activation="tanh"),
}


def delta(vae, x, x_adv, displacement, draws, generator):
    """||Delta||, (draws, B)."""
    q, q_adv = vae.encode(x), vae.encode(x_adv)

    def outputs(mean, stddev):
        """Decoded draws, (draws, B, D): all rows at once, each call costs more than its numbers."""
        noise = torch.randn((draws, *q.mean.shape), generator=generator).to(q.mean)
        flat = vae.decode((mean + stddev * noise).flatten(0, 1)).mean
        return flat.flatten(1).unflatten(0, (draws, len(x)))

    moved = outputs(q_adv.mean, q.stddev if displacement == "centered" else q_adv.stddev)
    if displacement == "paired":
        clean = outputs(q.mean, q.stddev)
    else:
        clean = vae.decode(q.mean).mean.flatten(1)
    return (moved - clean).norm(dim=2)


def worst(vae, x, radius, generator, steps=40):
    """A gradient attack on the mean's output at just the given l2 radii, free of any box."""
    radius = radius.to(x)[:, None, None, None]
    clean = vae.decode(vae.encode(x).mean).mean.detach()
    change = torch.randn(x.shape, generator=generator).to(x)
    change = radius * change / change.flatten(1).norm(dim=1)[:, None, None, None]
    for _ in range(steps):
        change.requires_grad_(True)
        moved = vae.decode(vae.encode(x + change).mean).mean
        (grad,) = torch.autograd.grad((moved - clean).square().sum(), change)
        grad = grad / grad.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None, None]
        change = change.detach() + 0.3 * radius * grad
        change = radius * change / change.flatten(1).norm(dim=1)[:, None, None, None]
    return x + change.detach()


def violations(vae, x, radius, displacement, generator, *, r=R, m=M):
    """Inputs at which robustness provably fails within the radius (Clopper-Pearson, 1 - 1e-8)."""
    failed = torch.zeros(len(x), dtype=torch.bool)
    certified = radius > 0
    for share in (0.5, 1 - 1e-6):
        for x_adv in (
            worst(vae, x, share * radius, generator),
            worst(vae, x, share * radius, generator, steps=0),
        ):
            with torch.no_grad():
                inside = (delta(vae, x, x_adv, displacement, 400, generator) <= r).sum(0)
            _, high = clopper_pearson(inside, 400, 1 - 1e-8, sides=1)
            failed |= certified & (torch.as_tensor(high) <= m)
    return failed


@pytest.mark.parametrize("displacement", ["centered", "paired", "full"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_certified_is_never_above_attacked(name, displacement, dtype, generator):
    vae = MODELS[name]().to(dtype)
    x = torch.rand(12, *SHAPE, generator=generator).to(dtype)
    found = certify(vae, x, R, M, displacement, generator=generator)
    assert found.kind == "deterministic" and found.confidence == 1.0 and not found.box
    assert [s == "ok" for s in found.status] == (found.radius > 0).tolist()
    assert not violations(vae, x, found.radius, displacement, generator).any()


@pytest.mark.parametrize("displacement", ["centered", "paired"])
def test_lipschitz_models_get_a_positive_radius(displacement, generator):
    x = torch.rand(4, *SHAPE, generator=generator)
    assert (certify(lipschitz(), x, R, M, displacement, generator=generator).radius > 0.2).all()


def test_linear_model_has_its_exact_margin(generator):
    """Orthogonal maps, identity output: ||Delta|| = 2 ||N(shift, s^2 I)||, shift = 1.5 rho."""
    vae = linear(generator)
    x = torch.rand(3, *SHAPE, generator=generator)
    for displacement, spread in (("centered", 0.1), ("paired", 0.1 * math.sqrt(2))):
        found = certify(vae, x, 1.0, 0.7, displacement, generator=generator)
        exact = bounds.largest(
            lambda rho, s=spread: bounds.noncentral_probability(0.5, 1.5 * rho, s, 4) > 0.7,
            torch.ones(3),
        )
        assert_close(found.radius, exact, rtol=1e-6, atol=0)
        assert (found.radius <= exact).all()
        direction = vae.mean_net[1].weight[0].detach().reshape(SHAPE)
        direction = direction / direction.norm()
        for share, robust in ((0.95, True), (1.05, False)):
            x_adv = x + share * found.radius[:, None, None, None] * direction
            with torch.no_grad():
                held = delta(vae, x, x_adv, displacement, 3_000, generator) <= 1.0
            assert ((held.double().mean(0) > 0.7) == robust).all()


def test_best_route_is_taken_and_named(generator):
    vae, x = lipschitz(), torch.rand(6, *SHAPE, generator=generator)
    best = certify(vae, x, R, M, "centered", generator=generator)
    for method in GUARANTEED:
        alone = certify(vae, x, R, M, "centered", generator=generator, methods=[method])
        assert (best.radius >= alone.radius).all()
        assert all(name.endswith(("noncentral", "trace_markov")) for name in alone.method)
    assert torch.equal(best.radius, torch.stack(list(best.by_method.values())).amax(0))


def test_barrett_is_never_above_ours(generator):
    x = torch.rand(6, *SHAPE, generator=generator)
    for make in (lipschitz, MODELS["lipschitz, learned sigma"]):
        for m in (0.2, 0.5, 0.8):
            ours = certify(make(), x, 1.0, m, "paired", generator=generator)
            theirs = certify(make(), x, 1.0, m, "paired", generator=generator, methods=["barrett"])
            assert (ours.radius >= theirs.radius * (1 - 1e-6)).all()


def test_monotone_in_r_and_m(generator):
    vae, x = lipschitz(), torch.rand(5, *SHAPE, generator=generator)
    radii = [certify(vae, x, r, M, "centered", generator=generator).radius for r in (0.4, 0.6, 0.9)]
    assert (radii[0] <= radii[1]).all() and (radii[1] <= radii[2]).all()
    radii = [certify(vae, x, R, m, "paired", generator=generator).radius for m in (0.3, 0.6, 0.9)]
    assert (radii[0] >= radii[1]).all() and (radii[1] >= radii[2]).all()


def test_full_is_never_above_centered(generator):
    vae, x = MODELS["lipschitz, learned sigma"](), torch.rand(5, *SHAPE, generator=generator)
    centered = certify(vae, x, 1.0, M, "centered", generator=generator)
    full = certify(vae, x, 1.0, M, "full", generator=generator)
    assert (full.radius <= centered.radius).all()
    assert any("silent about sigma" in line for line in centered.assumptions)
    assert not any("silent about sigma" in line for line in full.assumptions)


def test_neyman_pearson_is_probabilistic_and_sound(generator):
    vae, x = lipschitz(), torch.rand(6, *SHAPE, generator=generator)
    for displacement in ("centered", "paired"):
        found = certify(vae, x, R, M, displacement, generator=generator, methods=["neyman_pearson"])
        assert found.kind == "probabilistic" and found.confidence == 0.999
        assert not violations(vae, x, found.radius, displacement, generator).any()


def test_neyman_pearson_covers_convolutions(generator):
    """No constant of the decoder is needed, and the encoder's bound is local."""
    vae = create("vae", architecture="conv8", latent=4)
    with torch.no_grad():
        vae.log_var_head.bias.fill_(-4.0)
    x = torch.rand(3, 1, 8, 8, generator=generator)
    with torch.no_grad():
        r = 1.5 * float(delta(vae, x, x, "centered", 200, generator).quantile(0.9))
    found = certify(vae, x, r, M, "centered", generator=generator, methods=["neyman_pearson"])
    assert found.status == ("ok",) * 3
    assert not violations(vae, x, found.radius, "centered", generator, r=r).any()


def test_box_certificate_is_larger(generator):
    vae, x = rv.load("digits-vae"), rv.data.load("digits", split="test").x[:4].float()
    ask = {"r": 1.0, "m": M, "displacement": "centered"}
    free, box = (
        certify(vae, x, **ask, generator=rv.generator(0), methods=["neyman_pearson"], box=box)
        for box in (False, True)
    )
    assert box.box and not free.box and (box.radius > free.radius).all()
    deterministic = certify(
        lipschitz(), x[:, :, :4, :4].double(), **ask, generator=generator, box=True
    )
    assert not deterministic.box


def test_neyman_pearson_linear_model_closed_form(generator):
    """Fixed sigma, linear encoder: sigma (Phi^-1(p) - Phi^-1(m)) / K."""
    vae = linear(generator)
    x = torch.rand(2, *SHAPE, generator=generator)
    found = certify(
        vae, x, 0.6, 0.5, "centered", generator=generator, methods=["neyman_pearson"], draws=10_000
    )
    true = bounds.noncentral_probability(0.3, 0.0, 0.1, 4)
    ceiling = 0.1 * torch.special.ndtri(true) / 1.5
    assert (found.radius <= ceiling).all() and (found.radius > 0.8 * ceiling).all()


def hierarchy(kind, between=(6,), lift=1.0):
    """Two layers with small spreads; the upper one moves `lift` times as far."""
    vae = create(kind, widths=[3, 2], image_shape=SHAPE, hidden=[8], between=between)
    with torch.no_grad():
        for head, level in ((vae.log_var_head, -4.0), (vae.up[0].log_var_head, -6.0)):
            head.weight.mul_(0.2)
            head.bias.fill_(level)
        vae.up[0].mean_head.weight.mul_(lift)
        vae.decoder[0].weight[:, 3:].mul_(4.0)
    return vae


@pytest.mark.parametrize("displacement", ["centered", "full", "paired"])
@pytest.mark.parametrize("kind", ["dlgm", "seatbelt"])
def test_neyman_pearson_serves_hierarchies(kind, displacement, generator):
    vae, x = hierarchy(kind, lift=4.0), torch.rand(4, *SHAPE, generator=generator)
    ask = {"generator": generator, "methods": ["neyman_pearson"], "draws": 4000}
    with torch.no_grad():
        r = 2 * float(apart(vae, x, x, displacement, 400, generator).quantile(0.5))
    found = certify(vae, x, r, M, displacement, **ask)
    assert found.status == ("ok",) * 4 and found.kind == "probabilistic"
    assert not refuted(vae, x, found.radius, displacement, generator, r).any()


def test_centered_spread_needs_upper_layer(generator, monkeypatch):
    """Its upper layer keeps its spread about a mean that moves: left out, trials find it out."""
    vae, x = (
        hierarchy("seatbelt", between=(), lift=30.0),
        torch.rand(4, *SHAPE, generator=generator),
    )
    with torch.no_grad():
        r = 2 * float(apart(vae, x, x, "centered", 400, generator).quantile(0.5))
    ask = {"generator": generator, "methods": ["neyman_pearson"], "draws": 4000}
    right = certify(vae, x, r, M, "centered", **ask)
    assert not refuted(vae, x, right.radius, "centered", generator, r).any()

    def one_layer(parts, dtype):
        place = torch.nn.Linear(3, 5, bias=False, dtype=dtype).requires_grad_(False)
        place.weight.zero_().fill_diagonal_(1.0)
        return nn.Sequential(parts.mean_head, place)

    monkeypatch.setattr(movement, "mean_path", one_layer)
    broken = certify(vae, x, r, M, "centered", **ask)
    assert broken.status == ("abstain",) * 4 and (broken.radius == 0).all()
    monkeypatch.setattr(movement.Encoder, "_check", lambda *_: None)
    broken = certify(vae, x, r, M, "centered", **ask)
    assert refuted(vae, x, broken.radius, "centered", generator, r).any()


def test_joint_hierarchy_certain_lowest_layer(generator):
    """Full and paired: what is drawn after the first layer does not see the image."""
    deep = hierarchy("seatbelt")
    flat = create("vae", architecture="mlp", image_shape=SHAPE, latent=3, hidden=[8])
    weights = {k: v for k, v in deep.state_dict().items() if k.startswith(("trunk", "mean", "log"))}
    flat.load_state_dict(weights, strict=False)
    x = torch.rand(2, *SHAPE, generator=generator)
    radius = torch.full((2,), 0.3)
    found = [movement.Encoder(vae.double()).over(x.double(), radius) for vae in (deep, flat)]
    for name in ("least", "most"):
        assert_close(getattr(found[0], name), getattr(found[1], name))
    assert_close(*(one.mean.length(torch.ones(2, 3)) for one in found))


def apart(vae, x, x_adv, displacement, draws, generator):
    """||Delta|| of a hierarchy, draws from the joint posterior, (draws, B)."""
    q, q_adv = vae.encode(x), vae.encode(x_adv)
    if displacement == "centered":
        q_adv = rv.models.Gaussian(q_adv.mean, q.stddev)
    clean = vae.decode(q.mean).mean
    sizes = []
    for _ in range(draws):
        if displacement == "paired":
            clean = vae.decode(rv.draw(q, generator=generator)).mean
        moved = vae.decode(rv.draw(q_adv, generator=generator)).mean
        sizes.append((moved - clean).flatten(1).norm(dim=1))
    return torch.stack(sizes)


def refuted(vae, x, radius, displacement, generator, r):
    """Inputs at which an attack just within the radius breaks robustness, with confidence."""
    x_adv = worst(vae, x, (1 - 1e-6) * radius, generator)
    with torch.no_grad():
        inside = (apart(vae, x, x_adv, displacement, 400, generator) <= r).sum(0)
    _, high = clopper_pearson(inside, 400, 1 - 1e-8, sides=1)
    return (radius > 0) & (torch.as_tensor(high) <= M)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("displacement", ["full", "paired"])
@pytest.mark.parametrize(
    "name", ["plain", "plain, tanh", "lipschitz, learned sigma", "lipschitz, clipped sigma"]
)
def test_neyman_pearson_covers_learned_spread(name, displacement, norm, generator):
    vae, x = MODELS[name](), torch.rand(3, *SHAPE, generator=generator)
    with torch.no_grad():
        r = 2 * float(delta(vae, x, x, displacement, 200, generator).quantile(0.9))
    ask = {"norm": norm, "methods": ["neyman_pearson"]}
    found = certify(vae, x, r, M, displacement, generator=generator, **ask)
    assert found.status == ("ok",) * 3 and set(found.method) == {"neyman_pearson, crown"}
    # the l2 ball of the same radius lies within the linf ball
    assert not violations(vae, x, found.radius, displacement, generator, r=r).any()
    centered = certify(vae, x, r, M, "centered", generator=generator, **ask)
    if displacement == "full":
        assert (found.radius < centered.radius).all()


def test_first_order_needs_no_constants(generator):
    x = torch.rand(3, *SHAPE, generator=generator)
    wrapped = rv.models.wrap(
        encode=lambda x: torch.distributions.Normal(x.flatten(1)[:, :2], 0.1),
        decode=lambda z: torch.distributions.Bernoulli(logits=z.repeat(1, 8).view(-1, *SHAPE)),
        latent=2,
        image_shape=SHAPE,
    )
    found = certify(wrapped, x, R, M, "centered", generator=generator, methods=["first_order"])
    assert found.kind == "first_order" and (found.radius > 0).all()
    ours, spectral, theirs = found.by_method.values()
    assert torch.equal(found.radius, ours)
    assert (ours >= spectral * (1 - 1e-9)).all() and (spectral >= theirs * (1 - 1e-9)).all()
    assert_close(ours, theirs * 2**0.5)  # two pixels, each the mean of a coordinate


def wrapped(encode):
    return rv.wrap(
        encode=encode,
        decode=lambda z: torch.distributions.Bernoulli(logits=z.repeat(1, 8).view(-1, *SHAPE)),
        latent=2,
        image_shape=SHAPE,
    )


def test_first_order_needs_a_positive_spread(generator, capfd):
    """One input with none abstains; the other keeps its radius."""
    x = torch.rand(2, *SHAPE, generator=generator)

    def encode(images):
        mean = images.flatten(1)[:, :2]
        return rv.models.Gaussian(mean, torch.where(images[:, 0, 0, :1] == x[0, 0, 0, 0], 0, 0.1))

    ask = {"r": R, "m": M, "displacement": "centered", "methods": ["first_order"]}
    found = certify(wrapped(encode), x, **ask, generator=generator)
    assert found.status == ("abstain", "ok")
    assert found.radius[0] == 0 and 0 < found.radius[1] < math.inf
    assert "1 inputs without a positive spread" in found.assumptions[1]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("displacement", ["centered", "full", "paired"])
def test_first_order_needs_a_gaussian_posterior(displacement, generator):
    vae = wrapped(lambda x: torch.distributions.Laplace(x.flatten(1)[:, :2], 0.1))
    x = torch.rand(2, *SHAPE, generator=generator)
    found = certify(vae, x, R, M, displacement, generator=generator, methods=["first_order"])
    assert found.status == ("abstain", "abstain") and "got Laplace" in found.assumptions[0]


def test_what_is_no_number_is_refused(generator):
    x, vae = torch.rand(2, *SHAPE, generator=generator), plain()
    with torch.no_grad():
        vae.log_var_head.bias[0] = torch.nan
    for methods in (None, ["first_order"], ["neyman_pearson"]):
        with pytest.raises(errors.NonFiniteError, match=r"log_var_head\.bias"):
            certify(vae, x, R, M, "centered", generator=generator, methods=methods)
    out_of_sight = rv.wrap(
        encode=lambda x: rv.models.Gaussian(x.flatten(1)[:, :2] * torch.nan, x.new_ones(1)),
        decode=lambda z: rv.models.Bernoulli(z.repeat(1, 8).view(-1, *SHAPE)),
        latent=2,
        image_shape=SHAPE,
    )
    with pytest.raises(errors.NonFiniteError, match="clean reconstructions"):
        certify(out_of_sight, x, R, M, "full", generator=generator, methods=["first_order"])


def test_what_not_covered_abstains_by_name(generator):
    x = torch.rand(2, 1, 8, 8, generator=generator)

    class Odd(nn.Module):
        def forward(self, x):
            return torch.distributions.Normal(x.flatten(1)[:, :2], 0.1)

    decode = nn.Sequential(nn.Linear(2, 64), nn.Unflatten(1, (1, 8, 8)))
    wrapped = rv.models.wrap(
        encode=Odd(),
        decode=lambda z: torch.distributions.Normal(decode(z), 1.0),
        latent=2,
        image_shape=(1, 8, 8),
    )
    found = certify(wrapped, x, R, M, "centered", generator=generator)
    assert found.status == ("abstain", "abstain") and found.method == ("none", "none")
    assert (found.radius == 0).all()
    assert "a wrapped encoder that gives a mean" in found.assumptions[0]


def test_not_robust_without_attack_abstains(generator):
    x = torch.rand(2, *SHAPE, generator=generator)
    found = certify(lipschitz(stddev=5.0), x, 0.1, 0.9, "centered", generator=generator)
    assert found.status == ("abstain", "abstain") and (found.radius == 0).all()


def test_linf_radius_from_l2_radius(generator):
    vae, x = lipschitz().double(), torch.rand(3, *SHAPE, generator=generator)
    l2 = certify(vae, x, R, M, "centered", generator=generator)
    linf = certify(vae, x, R, M, "centered", generator=generator, norm="linf")
    assert_close(linf.radius, l2.radius / 4, rtol=1e-9, atol=0)
    assert (linf.radius <= l2.radius / 4).all()


def test_coverage_is_a_falling_share(generator):
    x = torch.rand(8, *SHAPE, generator=generator)
    found = certify(lipschitz(), x, R, M, "centered", generator=generator)
    radii = torch.linspace(0, 1, 50)
    shares = found.coverage(radii)
    assert (shares.diff() <= 0).all() and shares[-1] == 0
    assert shares[0] == (found.radius > 0).double().mean()


def test_state_of_model_is_left_alone(generator):
    vae, x = lipschitz().train(), torch.rand(2, *SHAPE, generator=generator)
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    certify(vae, x, R, M, "centered", generator=generator)
    assert vae.training and all(p.requires_grad for p in vae.parameters())
    assert_close(vae.state_dict(), before, rtol=0, atol=0)


def test_constants_are_reached_by_no_pair(generator):
    """No two points, random or pulled apart by gradients, exceed the verified constants."""
    for make in MODELS.values():
        vae = make().double()
        constants = lipschitz_constants(vae)
        one = torch.rand(400, *SHAPE, generator=generator)
        other = one + 1e-3 * torch.randn(one.shape, generator=generator)
        codes = torch.randn(400, 3, generator=generator)
        moved = codes + 1e-3 * torch.randn(codes.shape, generator=generator)
        for f, p, q, bound in (
            (lambda x, v=vae: v.encode(x).mean, one, other, constants.b),
            (lambda x, v=vae: v.encode(x).stddev, one, other, constants.c),
            (lambda z, v=vae: v.decode(z).mean, codes, moved, constants.a),
        ):
            for _ in range(20):
                q = q.detach().requires_grad_(True)
                gap = (f(q) - f(p)).flatten(1).norm(dim=1) / (q - p).flatten(1).norm(dim=1)
                assert (gap <= bound + 1e-9).all()
                if gap.grad_fn is None or not bound:
                    break
                (grad,) = torch.autograd.grad(gap.sum(), q)
                scale = grad.flatten(1).norm(dim=1).clamp_min(1e-30)
                q = q + 1e-3 * grad / scale.reshape(-1, *[1] * (grad.ndim - 1))


def test_layer_not_covered_named():
    with pytest.raises(errors.UnsupportedError, match="Mish"):
        lipschitz_bound(nn.Sequential(nn.Linear(2, 2), nn.Mish()))
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(errors.UnsupportedError, match="hook"):
        lipschitz_bound(hooked)


def test_batch_norm_in_evaluation_mode(generator):
    layer = nn.BatchNorm1d(3).double().eval()
    layer.running_var.copy_(torch.tensor([0.25, 1.0, 4.0]))
    assert 2.0 * (1 - 1e-4) < lipschitz_bound(layer) < 2.0


@pytest.mark.parametrize(
    "change",
    [
        {"r": -1.0},
        {"r": math.nan},
        {"m": 0.0},
        {"m": 1.0},
        {"displacement": "both"},
        {"norm": "l1"},
        {"methods": ["noncentral", "first_order"]},
        {"methods": []},
        {"methods": "noncentral"},
        {"methods": ["chi"]},
        {"x": torch.ones(2, 1, 5, 5)},
        {"x": torch.full((2, *SHAPE), 2.0)},
        {"x": torch.full((2, *SHAPE), math.nan)},
        {"draws": 0},
        {"confidence": 1.0},
    ],
)
def test_bad_arguments_are_refused(change, generator):
    arguments = {"x": torch.rand(2, *SHAPE), "r": R, "m": M, "displacement": "centered", **change}
    with pytest.raises(errors.RobustVAEError):
        certify(lipschitz(), generator=generator, **arguments)


def test_speed_of_many_inputs(generator):
    """10,000 margins with a spread of their own each take well under a second."""
    import time

    spread = 0.05 + 0.1 * torch.rand(10_000, generator=generator)
    reach = torch.ones(10_000)
    started = time.perf_counter()
    bounds.largest(
        lambda rho: bounds.noncentral_probability(reach, 2 * rho, spread, 10) > 0.5, reach
    )
    assert time.perf_counter() - started < 5.0


@pytest.mark.parametrize("displacement", ["centered", "paired"])
def test_generalized_chi_square_closed_form_diagonal(displacement, generator):
    """mu_j = w_j x_j over the whole ball: every coordinate can move by w_j rho."""
    vae = linear(generator)
    gains = torch.tensor([1.5, 0.2, 0.1, 0.05])
    with torch.no_grad():
        weight = torch.zeros(4, 16)
        weight[:, :4] = torch.diag(gains)
        vae.mean_net[1].weight.copy_(weight / vae.mean_net[2].factor)
    x = torch.rand(2, *SHAPE, generator=generator)
    found = certify(vae, x, 1.0, 0.7, displacement, generator=generator, methods=["generalized"])
    spread = 0.1 * (2**0.5 if displacement == "paired" else 1.0)
    exact = bounds.largest(
        lambda rho: (
            bounds.generalized_probability(0.5, rho[:, None] * gains, torch.full((2, 4), spread))
            > 0.7
        ),
        torch.ones(2),
    )
    assert found.method == ("generalized",) * 2 and found.kind == "deterministic"
    assert (found.radius <= exact).all() and (found.radius >= 0.99 * exact).all()
    assert not violations(vae, x, found.radius, displacement, generator, r=1.0, m=0.7).any()


def test_generalized_chi_square_needs_exact_spreads(generator):
    x = torch.rand(2, *SHAPE, generator=generator)
    found = certify(plain(), x, R, M, "full", generator=generator, methods=["generalized"])
    assert found.status == ("abstain",) * 2 and "spread that does not move" in found.assumptions[0]


def test_ranges_join_to_the_certificate():
    x = rv.data.load("digits", split="test").x[:43]
    for name, asked in (
        ("digits-lipschitz-vae", {"r": 0.6}),
        ("digits-vae", {"r": 1.0, "methods": ["neyman_pearson"], "draws": 200}),
    ):
        vae = rv.load(name)
        asked = {**asked, "displacement": "centered"}
        whole = rv.certify(vae, x, generator=rv.generator(0), **asked)
        parts = certify_in_ranges(
            Store(None, ""), vae, x, tell=print, generator=rv.generator(0), **asked
        )
        assert parts.kind == whole.kind and parts.status == whole.status
        assert parts.by_method.keys() == whole.by_method.keys()
        assert torch.allclose(parts.radius, whole.radius, rtol=1e-5)
        assert (parts.beside is None) == (whole.beside is None)
        if whole.beside is not None:
            assert parts.beside.status == whole.beside.status
            assert torch.allclose(parts.beside.radius, whole.beside.radius, rtol=1e-5)
            assert parts.suggestions == whole.suggestions


def test_ranges_hold_together_for_all_inputs():
    x = rv.data.load("digits", split="test").x[:25]
    smooth = rv.Victim(rv.load("digits-vae"), rv.InputNoise(stddev=0.1))
    asked = {"r": 1.5, "draws": 200}
    whole = rv.certify(smooth, x, generator=rv.generator(0), **asked)
    parts = certify_in_ranges(
        Store(None, ""), smooth, x, tell=print, generator=rv.generator(0), **asked
    )
    assert torch.allclose(parts.simultaneous, whole.simultaneous, rtol=1e-5)
    assert parts.draws.tolist() == whole.draws.tolist()
