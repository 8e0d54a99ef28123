"""Pullback metrics against the dense D x D definition, and what theory says of them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import robustvae as rv
from robustvae.errors import RangeError, ShapeError, UnknownNameError, UnsupportedError
from robustvae.geometry import Geometry, decoder_metric, leading_pullback, pullback, step_curves
from robustvae.geometry import metric as metrics
from robustvae.models import Gaussian
from robustvae.seeding import generator, rand, randn

LIKE = torch.zeros(0, dtype=torch.float64)
SHAPE = (1, 4, 5)
PIXELS, LATENT = 20, 3
CHOICES = [
    (latent, part, std_term)
    for latent in ("flat", "riemannian")
    for part in ("mean", "std", "both")
    for std_term in ("expected", "paper")
    if latent == "riemannian" or std_term == "expected"
]


def images(shape=SHAPE, batch=4):
    return rand(batch, *shape, like=LIKE, generator=generator(1))


def layers(*widths):
    torch.manual_seed(0)
    found = []
    for fan_in, fan_out in itertools.pairwise(widths):
        found += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*found[:-1])


def small_vae(turn=None, learned_spread=True):
    """Smooth networks with a Gaussian decoder; `turn` rotates the latent and is undone after."""
    encoder, decoder = layers(PIXELS, 12, 2 * LATENT), layers(LATENT, 12, 2 * PIXELS)
    turn = torch.eye(LATENT) if turn is None else turn

    def encode(x):
        mean, spread = encoder(x.flatten(1)).chunk(2, 1)
        return Gaussian(mean @ turn.mT, spread.exp() @ turn.abs().mT)

    def decode(z):
        mean, spread = decoder(z @ turn).view(-1, 2, *SHAPE).unbind(1)
        return Gaussian(mean, spread.exp() if learned_spread else torch.ones_like(mean))

    return rv.wrap(encode=encode, decode=decode, latent=LATENT, image_shape=SHAPE)


def built_in(architecture, **settings):
    torch.manual_seed(0)
    vae = rv.models.create("vae", architecture=architecture, latent=LATENT, **settings)
    return vae.double()


VAES = {
    "smooth": (small_vae, SHAPE),
    "mlp": (lambda: built_in("mlp", image_shape=SHAPE, hidden=[11, 7]), SHAPE),
    "conv": (lambda: built_in("conv8", image_shape=(2, 8, 8)), (2, 8, 8)),
    "fixed spread": (lambda: small_vae(learned_spread=False), SHAPE),
}


def slow_jacobian(f, x):
    rows = [torch.func.jacrev(lambda one: f(one[None])[0])(one) for one in x]
    return torch.stack(rows).flatten(2)


def slow_decoder_metric(vae, z):
    parts = [lambda one: vae.decode(one).mean.flatten(1)]
    if vae.decode(z).stddev.requires_grad and isinstance(vae.decode(z), Gaussian):
        parts.append(lambda one: vae.decode(one).stddev.flatten(1))
    return sum(j.mT @ j for j in (slow_jacobian(part, z) for part in parts))


def slow_metric(vae, x, latent, part, std_term):
    """G, D x D, by its definition."""
    mean = slow_jacobian(lambda y: vae.encode(y).mean, x)
    std = slow_jacobian(lambda y: vae.encode(y).stddev, x)
    full = torch.eye(LATENT).expand(len(x), LATENT, LATENT)
    if latent == "riemannian":
        full = slow_decoder_metric(vae, vae.encode(x).mean)
    spread = full if std_term == "paper" else full * torch.eye(LATENT)
    terms = {"mean": mean.mT @ full @ mean, "std": std.mT @ spread @ std}
    return terms["mean"] + terms["std"] if part == "both" else terms[part]


@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
def test_spectrum_is_that_of_dense_metric(name, choice):
    make, shape = VAES[name]
    vae, x = make(), images(shape)
    vae.requires_grad_(True)
    dense = slow_metric(vae, x, *choice).detach()
    found = pullback(vae, x, *choice, chunk=3)
    n = LATENT * (2 if choice[1] == "both" else 1)
    wanted = torch.linalg.eigvalsh(dense).flip(1)
    scale = wanted[:, :1].clamp_min(1)
    assert found.eigenvalues.shape == (len(x), n)
    assert ((found.eigenvalues - wanted[:, :n]).abs() <= 1e-8 * scale).all()
    assert (wanted[:, n:].abs() <= 1e-8 * scale).all()
    v = found.directions.flatten(2)
    image = v @ dense
    assert ((image - found.eigenvalues[..., None] * v).abs() <= 1e-8 * scale[..., None]).all()
    held = (found.eigenvalues > 1e-12 * scale).to(v)
    torch.testing.assert_close(v @ v.mT, torch.diag_embed(held), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
def test_lanczos_finds_the_same_top(name, choice, generator):
    make, shape = VAES[name]
    vae, x = make(), images(shape)
    full = pullback(vae, x, *choice)
    top = leading_pullback(vae, x, *choice, count=2, generator=generator)
    torch.testing.assert_close(top.eigenvalues, full.eigenvalues[:, :2], atol=1e-8, rtol=1e-8)
    assert not top.complete
    apart = full.eigenvalues[:, 0] > 1.01 * full.eigenvalues[:, 1]
    cosine = (top.directions * full.directions[:, :2]).sum((2, 3, 4))[:, 0]
    torch.testing.assert_close(cosine[apart], torch.ones(int(apart.sum())), atol=1e-6, rtol=0)
    with pytest.raises(UnsupportedError, match="whole spectrum"):
        top.entropy()


@pytest.mark.parametrize("batched", [False, True])
def test_batching_chunks_and_count_change_nothing(batched):
    vae, x = small_vae(), images(batch=5)
    whole = pullback(vae, x, "riemannian")
    part = pullback(vae, x, "riemannian", count=2, batched=batched, chunk=2)
    torch.testing.assert_close(part.eigenvalues, whole.eigenvalues)
    torch.testing.assert_close(part.directions, whole.directions[:, :2])


def test_metric_of_linear_encoder_is_exact():
    weights = randn(LATENT, PIXELS, like=LIKE, generator=generator(2))
    vae = rv.wrap(
        encode=lambda x: Gaussian(x.flatten(1) @ weights.mT, torch.ones(len(x), LATENT)),
        decode=lambda z: Gaussian((z @ weights).view(-1, *SHAPE), torch.ones(len(z), *SHAPE)),
        latent=LATENT,
        image_shape=SHAPE,
    )
    x = images()
    squares = torch.linalg.svdvals(weights) ** 2
    flat = pullback(vae, x)
    torch.testing.assert_close(flat.eigenvalues[:, :LATENT], squares.expand(4, LATENT))
    assert not flat.eigenvalues[:, LATENT:].any() and not flat.directions[:, LATENT:].any()
    torch.testing.assert_close(flat.log_volume(), 0.5 * squares.log().sum().expand(4))
    curved = pullback(vae, x, "riemannian", "mean")
    torch.testing.assert_close(curved.eigenvalues, (squares**2).expand(4, LATENT))
    torch.testing.assert_close(decoder_metric(vae, torch.zeros(1, LATENT))[0], weights @ weights.mT)
    nothing = pullback(vae, x, part="std")
    assert not nothing.eigenvalues.any() and not nothing.directions.any()
    assert not nothing.entropy().any() and not nothing.anisotropy.any()


@pytest.mark.parametrize("latent", ["flat", "riemannian"])
def test_turned_codes_keep_the_spectrum(latent):
    x = images()
    turn, _ = torch.linalg.qr(randn(LATENT, LATENT, like=LIKE, generator=generator(3)))
    swap = torch.eye(LATENT)[[2, 0, 1]] * torch.tensor([[1.0], [-1.0], [-1.0]])
    plain, turned, swapped = small_vae(), small_vae(turn), small_vae(swap)

    def spectrum(vae, part):
        return pullback(vae, x, latent, part).eigenvalues

    torch.testing.assert_close(spectrum(turned, "mean"), spectrum(plain, "mean"))
    for part in ("mean", "std", "both"):
        torch.testing.assert_close(spectrum(swapped, part), spectrum(plain, part))
    assert (spectrum(turned, "std") / spectrum(plain, "std") - 1).abs().max() > 0.01


def test_expected_std_term_mean_over_noise():
    """E[(J_mu + diag(e) J_sigma)^T G_z (J_mu + diag(e) J_sigma)] by Monte Carlo."""
    vae, x = small_vae(), images(batch=2)
    mean = slow_jacobian(lambda y: vae.encode(y).mean, x).detach()
    std = slow_jacobian(lambda y: vae.encode(y).stddev, x).detach()
    metric = slow_decoder_metric(vae, vae.encode(x).mean).detach()
    noise = randn(20_000, 1, LATENT, 1, like=LIKE, generator=generator(4))
    root = torch.linalg.cholesky(metric).mT @ (mean + noise * std)
    probe = randn(30, PIXELS, 1, like=LIKE, generator=generator(5))
    for direction in probe:
        sampled = (root @ direction).square().sum((2, 3))
        stderr = sampled.std(0) / math.sqrt(len(noise))
        gap = {
            std_term: (
                sampled.mean(0)
                - (
                    direction.mT
                    @ slow_metric(vae, x, "riemannian", "both", std_term).detach()
                    @ direction
                )[:, 0, 0]
            ).abs()
            / stderr
            for std_term in ("expected", "paper")
        }
        assert (gap["expected"] < 4.5).all()
    expected, paper = (
        pullback(vae, x, "riemannian", "std", term).spectral_radius
        for term in ("expected", "paper")
    )
    assert (paper / expected - 1).abs().max() > 0.05


def geometry(values):
    values = torch.tensor(values)
    directions = torch.eye(PIXELS)[: values.shape[1]].expand(len(values), -1, -1)
    return Geometry(values, directions.view(len(values), -1, *SHAPE), "flat", "both", "expected")


def test_scores_of_known_spectra():
    known = geometry([[5.0, 0, 0, 0], [2.0, 2, 2, 2], [4.0, 2, 1, 1]])
    share = torch.tensor([0.5, 0.25, 0.125, 0.125])
    mixed = -(share * share.log()).sum()
    torch.testing.assert_close(known.entropy("trace"), torch.tensor([0, math.log(4), mixed]))
    torch.testing.assert_close(known.effective_rank, torch.tensor([1.0, 4.0, mixed.exp()]))
    half = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    torch.testing.assert_close(known.entropy("max"), torch.tensor([0.0, 0.0, half]))
    raw = torch.tensor([-5 * math.log(5), -8 * math.log(2), -(4 * math.log(4) + 2 * math.log(2))])
    torch.testing.assert_close(known.entropy(None), raw)
    torch.testing.assert_close(known.anisotropy, torch.tensor([4.0, 1.0, 2.0]))
    torch.testing.assert_close(
        known.log_volume(), 0.5 * torch.tensor([math.log(5), math.log(16), math.log(8)])
    )
    assert known.spectral_radius.tolist() == [5.0, 2.0, 4.0]


def test_alignment_of_known_directions():
    first = geometry([[4.0, 3, 2, 1]])
    for count in (1, 3):
        torch.testing.assert_close(first.alignment(first, count), torch.ones(1))
    other = Geometry(
        first.eigenvalues, first.directions.flip(1), first.latent, first.part, first.std_term
    )
    assert first.alignment(other, 2) == 0 and first.alignment(other, 4) == 1
    torch.testing.assert_close(first.alignment(other, 3), torch.tensor([2 / 3]))
    spans = torch.linalg.qr(randn(400, PIXELS, 2, like=LIKE, generator=generator(6)))[0].mT
    at_random = Geometry(
        torch.ones(400, 2), spans.reshape(400, 2, *SHAPE), "flat", "mean", "expected"
    )
    fixed = Geometry(
        torch.ones(400, 2),
        first.directions[:, :2].expand(400, -1, *SHAPE),
        "flat",
        "mean",
        "expected",
    )
    found = fixed.alignment(at_random, 2)
    assert abs(found.mean() - 2 / PIXELS) < 4 * found.std() / 20
    with pytest.raises(RangeError, match="count"):
        first.alignment(first, 5)
    with pytest.raises(ShapeError, match="same inputs"):
        first.alignment(at_random)


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("scale", ["unit", "eigenvalue"])
def test_step_curves_by_their_definition(box, scale):
    vae, x = small_vae(), images()
    found = pullback(vae, x)
    steps = [0.01, 0.5, 3.0]
    curves = step_curves(vae, x, found, steps=steps, count=2, box=box, scale=scale, chunk=7)
    for i in range(2):
        length = found.eigenvalues[:, i].view(-1, 1, 1, 1) if scale == "eigenvalue" else 1.0
        for k, step in enumerate(steps):
            ends = [x + sign * step * length * found.directions[:, i] for sign in (1, -1)]
            ends = [y.clamp(0, 1) if box else y for y in ends]
            codes = [vae.encode(y).mean for y in ends]
            error = [(vae.decode(z).mean - x).square().mean((1, 2, 3)) for z in codes]
            shift = [(z - vae.encode(x).mean).norm(dim=1) for z in codes]
            size = [(y - x).flatten(1).norm(dim=1) for y in ends]
            for curve, pair in (
                (curves.error, error),
                (curves.displacement, shift),
                (curves.size, size),
            ):
                torch.testing.assert_close(curve[:, i, k], torch.maximum(*pair).detach())
    assert curves.box is box and curves.steps.tolist() == steps


def test_small_steps_move_code_root_eigenvalue():
    vae, x = small_vae(), images()
    found = pullback(vae, x, part="mean")
    curves = step_curves(vae, x, found, steps=[1e-5], count=LATENT)
    torch.testing.assert_close(
        curves.displacement[:, :, 0] / 1e-5, found.eigenvalues.sqrt(), rtol=1e-3, atol=1e-6
    )


def test_first_direction_moves_code_most():
    """[Khan23] Theorem 3.2, to first order."""
    vae, x = small_vae(), images()
    found = pullback(vae, x, part="mean")
    jacobian = slow_jacobian(lambda y: vae.encode(y).mean, x).detach()
    probes = randn(len(x), PIXELS, 500, like=LIKE, generator=generator(9))
    moved = (jacobian @ (probes / probes.norm(dim=1, keepdim=True))).norm(dim=1)
    assert (moved.amax(1) <= found.spectral_radius.sqrt()).all()


def test_float32_is_near_float64():
    vae = built_in("mlp", image_shape=SHAPE, hidden=[11, 7])
    x = images()
    exact = pullback(vae, x)
    found = pullback(vae.float(), x.float())
    assert found.eigenvalues.dtype == torch.float64 and found.directions.dtype == torch.float32
    torch.testing.assert_close(found.eigenvalues, exact.eigenvalues, rtol=1e-4, atol=1e-6)


def test_model_is_left_as_it_was(generator):
    vae, x = built_in("conv8", image_shape=(2, 8, 8)), images((2, 8, 8))
    vae.train()
    found = pullback(vae, x, "riemannian")
    leading_pullback(vae, x, "riemannian", generator=generator)
    step_curves(vae, x, found, count=1, steps=[1.0])
    assert vae.training and all(p.requires_grad and p.grad is None for p in vae.parameters())
    assert not found.directions.requires_grad


def test_bad_arguments_are_refused(generator):
    vae, x = small_vae(), images()
    with pytest.raises(UnknownNameError, match="riemannian"):
        pullback(vae, x, "riemanian")
    with pytest.raises(UnknownNameError, match="part"):
        pullback(vae, x, part="stddev")
    with pytest.raises(UnknownNameError, match="expected"):
        pullback(vae, x, std_term="papers")
    with pytest.raises(ShapeError, match="x must be"):
        pullback(vae, x[0])
    with pytest.raises(ShapeError, match="z must be"):
        decoder_metric(vae, torch.zeros(1, LATENT + 1))
    with pytest.raises(RangeError, match="count"):
        leading_pullback(vae, x, count=PIXELS + 1, generator=generator)
    found = pullback(vae, x, count=1)
    with pytest.raises(UnknownNameError, match="trace"):
        found.entropy("sum")
    with pytest.raises(RangeError, match="directions held"):
        step_curves(vae, x, found)
    with pytest.raises(RangeError, match="steps"):
        step_curves(vae, x, found, count=1, steps=[0.0])
    with pytest.raises(ShapeError, match="geometry"):
        step_curves(vae, x[:2], found, count=1)


class Attention(torch.nn.Module):
    """Codes of fused attention, whose backward pass has no derivative."""

    def __init__(self):
        super().__init__()
        self.tokens, self.out = torch.nn.Linear(4, 8), torch.nn.Linear(32, 3)
        self.back = torch.nn.Linear(3, 16)

    def encode(self, x):
        q = self.tokens(x.reshape(len(x), 1, 4, 4))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        return self.out(mixed.flatten(1))

    def decode(self, z):
        return torch.sigmoid(self.back(z)).reshape(-1, 1, 4, 4)


def test_large_models_need_no_jacobian(monkeypatch):
    g = generator(0)
    vae = rv.models.create("vae", architecture="mlp", latent=12, image_shape=(1, 8, 8), hidden=[32])
    x = torch.rand(3, 1, 8, 8, generator=g)
    exact = metrics.spectrum(vae, x, generator=g)
    monkeypatch.setattr(metrics, "_ROWS_AT_MOST", 1)
    found = metrics.spectrum(vae, x, probes=64, generator=g)
    assert exact.is_exact and not found.is_exact
    torch.testing.assert_close(found.spectral_radius, exact.spectral_radius)
    # the rank's standard error with 64 probes of 24 rows is some percent
    torch.testing.assert_close(found.effective_rank, exact.effective_rank, rtol=0.15, atol=0)


def test_fused_attention_has_a_spectrum(monkeypatch):
    g = generator(0)
    model = Attention()
    vae = rv.wrap(model, image_shape=(1, 4, 4))
    x = torch.rand(2, 1, 4, 4, generator=g)
    exact = metrics.spectrum(vae, x, generator=g)
    monkeypatch.setattr(metrics, "_ROWS_AT_MOST", 1)
    found = metrics.spectrum(vae, x, generator=g)
    torch.testing.assert_close(found.spectral_radius, exact.spectral_radius, rtol=1e-4, atol=1e-8)


def test_black_boxes_have_no_metric():
    vae = rv.wrap(torch.nn.Identity(), image_shape=(1, 4, 4), output_only=True)
    with pytest.raises(UnsupportedError, match="black box"):
        pullback(vae, torch.rand(2, 1, 4, 4))
