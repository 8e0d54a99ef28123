import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from robustvae import errors
from robustvae.models import ContinuousBernoulli, checkpoint, create
from robustvae.models.lipschitz import _polar, _retract, bjorck
from robustvae.models.sorts import GroupSort, MaxMin
from robustvae.norms import spectral_norm_bound
from robustvae.objectives import ELBO


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_bjorck_finds_the_polar_factor(order, shape, generator):
    weight = torch.randn(shape, generator=generator)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    near = left @ torch.diag(values.clamp(0.6, 1.4)) @ right
    assert_close(bjorck(near, steps=40, order=order), left @ right, atol=1e-9, rtol=0)


def test_bjorck_order_order_of_convergence():
    """One step takes a singular value 1 - e to 1 - O(e^(order + 1))."""
    for order in (1, 2, 3):
        defects = []
        for e in (0.1, 0.05):
            weight = torch.eye(2) * (1 - e)
            defects.append(float((1 - bjorck(weight, order=order)[0, 0]).abs()))
        rate = torch.tensor(defects[0] / defects[1]).log2()
        assert abs(rate - (order + 1)) < 0.3


def test_bjorck_step_matches_textbook(generator):
    weight = 0.3 * torch.randn(5, 3, generator=generator)
    assert_close(bjorck(weight), 1.5 * weight - 0.5 * weight @ weight.T @ weight)


def test_bjorck_is_differentiable(generator):
    weight = 0.3 * torch.randn(4, 3, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: bjorck(w, steps=2, order=2), weight)


@pytest.mark.parametrize("sort", [GroupSort(), GroupSort(4), MaxMin()])
def test_sorts_permute_and_keep_gradient_norms(sort, generator):
    x = torch.randn(50, 8, generator=generator, requires_grad=True)
    y = sort(x)
    assert_close(y.sort(1).values, x.sort(1).values)
    cotangent = torch.randn(50, 8, generator=generator)
    (grad,) = torch.autograd.grad(y, x, cotangent)
    assert_close(grad.norm(dim=1), cotangent.norm(dim=1))


@pytest.mark.parametrize("sort", [GroupSort(), MaxMin()])
def test_sorts_two_differentiable_twice_batches(sort, generator):
    x = torch.randn(6, 8, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(sort, x)
    assert torch.autograd.gradgradcheck(sort, x)
    eye = torch.eye(x.numel()).reshape(-1, *x.shape)
    (batched,) = torch.autograd.grad(sort(x), x, eye, is_grads_batched=True)
    one_by_one = [torch.autograd.grad(sort(x), x, row)[0] for row in eye]
    assert_close(batched, torch.stack(one_by_one))
    functional = torch.func.jacrev(sort)(x.detach())
    assert_close(functional.reshape(-1, *x.shape), batched)


def test_group_sort_two_sort_pairs(generator):
    x = torch.randn(7, 6, generator=generator)
    assert_close(GroupSort()(x), x.unflatten(-1, (3, 2)).sort(-1).values.flatten(-2))
    with pytest.raises(errors.ShapeError):
        GroupSort(4)(x)


def small(**options):
    return create("lipschitz-vae", latent=3, image_shape=(1, 4, 4), hidden=[8, 8], **options)


def test_new_model_orthonormal_and_survives_checkpoint(tmp_path):
    vae = small().float()
    for layer in vae.modules():
        if isinstance(layer, nn.Linear):
            values = torch.linalg.svdvals(layer.weight.double())
            assert_close(values, torch.ones_like(values), atol=1e-5, rtol=0)
    again = checkpoint.load(checkpoint.save(vae, tmp_path))
    assert checkpoint.weights_sha256(again) == checkpoint.weights_sha256(vae)


def test_networks_steep_configured_no_steeper(generator):
    vae = small(encoder_lipschitz=3.0).double()
    x = torch.rand(200, 1, 4, 4, generator=generator)
    y = x + 1e-4 * torch.randn(x.shape, generator=generator)
    gain = (vae.encode(x).mean - vae.encode(y).mean).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert gain.max() <= 3.0 + 1e-9
    jacobian = torch.autograd.functional.jacobian(lambda v: vae.encode(v).mean[0], x[:1])
    assert_close(torch.linalg.matrix_norm(jacobian.reshape(3, 16), 2), torch.tensor(3.0))


def test_fixed_and_learned_spread(generator):
    x = torch.rand(5, 1, 4, 4, generator=generator)
    assert (small(stddev=0.2).encode(x).stddev == 0.2).all()
    learned = small(stddev=None).encode(x).stddev
    assert ((learned > 0) & (learned < 1)).all() and learned.std() > 0
    most = float(learned.detach().norm(dim=1).median())
    torch.random.default_generator.set_state(generator.get_state())
    vae = small(stddev=None, stddev_norm=most)
    free, clipped = vae.stddev_net(x), vae.encode(x).stddev
    assert (clipped.norm(dim=1) <= most + 1e-6).all()
    assert_close(
        clipped / free, (most / free.norm(dim=1, keepdim=True)).clamp(max=1.0).expand_as(free)
    )
    with pytest.raises(errors.ConfigError):
        small(stddev=0.1, stddev_norm=1.0)


def test_the_papers_mean_is_the_default(generator):
    p = small().decode(torch.randn(2, 3, generator=generator))
    assert isinstance(p, ContinuousBernoulli)
    assert_close(p.mean, torch.sigmoid(p.logits))


class Bjorck(nn.Module):
    """The published way: orthonormalize in every forward pass, with gradients through it."""

    def forward(self, weight):
        return bjorck(weight, steps=6)


def train(vae, x, generator, steps=200):
    """The mean loss of the last 50 steps."""
    optimizer, losses = torch.optim.Adam(vae.parameters(), lr=3e-3), []
    for _ in range(steps):
        loss = ELBO()(vae, x, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if any(parametrize.is_parametrized(module) for module in vae.modules()):
            continue
        vae.after_step()
    return sum(losses[-50:]) / len(losses[-50:])


def distance_from_orthonormal(vae):
    values = [torch.linalg.svdvals(layer.weight.detach().double()) for layer in vae._layers()]
    return float(max((1 - value).abs().max() for value in values))


def test_retraction_keeps_training_near_the_manifold(generator):
    x = torch.rand(32, 1, 4, 4, generator=generator)
    vae = small()
    train(vae, x, generator, steps=30)
    assert distance_from_orthonormal(vae) < 0.1
    vae.finalize()
    assert distance_from_orthonormal(vae) < 1e-9
    for layer in vae._layers():
        assert spectral_norm_bound(layer.weight) < 1 + 1e-8


def test_singular_values_after_finalize(generator):
    """Within 1e-5 of 1 in float32, near the manifold and far from it."""
    vae = create("lipschitz-vae", hidden=[128, 64]).float()
    assert distance_from_orthonormal(vae) < 1e-5
    for size in (1e-3, 0.1):
        with torch.no_grad():
            for layer in vae._layers():
                noise = torch.randn(layer.weight.shape, generator=generator)
                layer.weight.add_(size * noise.float())
        vae.finalize()
        assert distance_from_orthonormal(vae) < 1e-5


@pytest.mark.parametrize("order", [1, 3])
def test_a_retraction_from_afar_comes_back(order, generator):
    """Wide matrices far off in one direction: the norm of the defect says little of the others."""
    weight = torch.linalg.qr(torch.randn(600, 512, generator=generator))[0]
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    moved = left @ torch.diag(torch.linspace(1.0, 1.1, 512)) @ right
    moved += 0.9 * torch.outer(left[:, 0], right[0])
    drift = _retract(moved, order, 0.05)
    assert drift > 3
    assert_close(moved, left @ right, atol=1e-3, rtol=0)


def test_finalize_takes_the_polar_factor(generator):
    for scale in (0.01, 1.0):
        weight = torch.linalg.qr(torch.randn(9, 5, generator=generator))[0]
        weight = weight + scale * torch.randn(9, 5, generator=generator)
        left, _, right = torch.linalg.svd(weight, full_matrices=False)
        assert_close(_polar(weight), left @ right, atol=1e-13, rtol=0)
        assert_close(_polar(weight.mT), (left @ right).mT, atol=1e-13, rtol=0)


def test_gap_between_retractions_follows_the_drift(generator):
    vae = small(retract_every=8)
    gaps = []
    for _ in range(40):
        vae.after_step()
        gaps.append(vae._gap)
    assert gaps[:15] == [2, 2, 4, 4, 4, 4, *[8] * 9]
    with torch.no_grad():
        for layer in vae._layers():
            layer.weight.add_(0.5 * torch.randn(layer.weight.shape, generator=generator))
    while vae._gap == 8:
        vae.after_step()
    assert vae._gap == 3
    vae.finalize()
    assert vae._gap == 1


def test_retraction_survives_a_huge_step(generator):
    vae = small()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(5 * torch.randn(parameter.shape, generator=generator))
    for _ in range(60):
        vae.after_step()
    for layer in vae.modules():
        if isinstance(layer, nn.Linear):
            assert spectral_norm_bound(layer.weight) < 1.01


def test_training_gradients_are_tangent(generator):
    """G - W G^T W of the plain gradient G: W^T G (or G W^T) is skew, and W stays orthonormal."""
    vae, x = small(), torch.rand(8, 1, 4, 4, generator=generator)
    state = generator.get_state()
    found = {}
    for mode in (True, False):
        vae.train(mode).zero_grad()
        generator.set_state(state)
        ELBO()(vae, x, generator=generator).mean().backward()
        found[mode] = [(part.detach(), part.grad.clone()) for part in vae.parameters()]
    for (weight, tangent), (_, plain) in zip(found[True], found[False], strict=True):
        assert tangent.norm() > 0
        if weight.ndim == 1:
            assert_close(tangent, plain)
            continue
        assert_close(tangent, plain - weight @ plain.mT @ weight)
        wide = weight.shape[0] < weight.shape[1]
        inner = weight @ tangent.mT if wide else weight.mT @ tangent
        assert_close(inner, -inner.mT, atol=1e-9, rtol=0)


def test_training_mode_keeps_second_gradients(generator):
    vae, found = small(), []
    x = torch.rand(8, 1, 4, 4, generator=generator, requires_grad=True)
    for mode in (True, False):
        vae.train(mode)
        mean = vae.decode(vae.encode(x).mean).mean
        (grad,) = torch.autograd.grad(mean.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), x)
        found.append((mean.detach(), grad.detach(), second))
    assert_close(*found)


def test_training_reaches_loss_forward_variant(generator):
    """The cheap way against the published one, from the same start, on the same draws."""
    x = torch.rand(48, 1, 4, 4, generator=generator)
    cheap, oracle = small(likelihood="bernoulli"), small(likelihood="bernoulli").eval()
    for layer in oracle._layers():
        parametrize.register_parametrization(layer, "weight", Bjorck())
    state = generator.get_state()
    ours = train(cheap, x, generator)
    generator.set_state(state)
    theirs = train(oracle, x, generator)
    assert abs(ours - theirs) < 0.3


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": [7]},
        {"hidden": [0]},
        {"latent": 0},
        {"encoder_lipschitz": -1.0},
        {"decoder_lipschitz": float("nan")},
        {"stddev": 0.0},
        {"likelihood": "poisson"},
        {"activation": "relu"},
        {"order": 0},
        {"image_shape": (8, 8)},
        {"retract_every": 0},
    ],
    ids=str,
)
def test_bad_options_are_refused(options):
    with pytest.raises(errors.RobustVAEError):
        create("lipschitz-vae", **{"latent": 3, "image_shape": (1, 4, 4), **options})
