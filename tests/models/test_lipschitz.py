import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from robustvae import errors
from robustvae.models import ContinuousBernoulli, checkpoint, create
from robustvae.models.lipschitz import GroupSort, MaxMin, bjorck
from robustvae.norms import spectral_norm_bound
from robustvae.objectives import ELBO


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_bjorck_finds_the_polar_factor(order, shape, generator):
    weight = torch.randn(shape, generator=generator)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    near = left @ torch.diag(values.clamp(0.6, 1.4)) @ right
    assert_close(bjorck(near, steps=40, order=order), left @ right, atol=1e-9, rtol=0)


def test_bjorck_order_is_its_order_of_convergence():
    """One step takes a singular value 1 - e to 1 - O(e^(order + 1))."""
    for order in (1, 2, 3):
        defects = []
        for e in (0.1, 0.05):
            weight = torch.eye(2) * (1 - e)
            defects.append(float((1 - bjorck(weight, order=order)[0, 0]).abs()))
        rate = torch.tensor(defects[0] / defects[1]).log2()
        assert abs(rate - (order + 1)) < 0.3


def test_bjorck_of_order_one_is_the_textbook_step(generator):
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


def test_group_sort_of_two_is_a_sort_of_pairs(generator):
    x = torch.randn(7, 6, generator=generator)
    assert_close(GroupSort()(x), x.unflatten(-1, (3, 2)).sort(-1).values.flatten(-2))
    with pytest.raises(errors.ShapeError):
        GroupSort(4)(x)


def small(**options):
    return create("lipschitz-vae", latent=3, image_shape=(1, 4, 4), hidden=[8, 8], **options)


def test_a_new_model_is_orthonormal_and_survives_its_checkpoint(tmp_path):
    vae = small().float()
    for layer in vae.modules():
        if isinstance(layer, nn.Linear):
            values = torch.linalg.svdvals(layer.weight.double())
            assert_close(values, torch.ones_like(values), atol=1e-5, rtol=0)
    again = checkpoint.load(checkpoint.save(vae, tmp_path))
    assert checkpoint.weights_sha256(again) == checkpoint.weights_sha256(vae)


def test_networks_are_as_steep_as_configured_and_no_steeper(generator):
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


def test_the_papers_mean_is_the_default(generator):
    p = small().decode(torch.randn(2, 3, generator=generator))
    assert isinstance(p, ContinuousBernoulli)
    assert_close(p.mean, torch.sigmoid(p.logits))


class Bjorck(nn.Module):
    """The published way: orthonormalise in every forward pass, with gradients through it."""

    def forward(self, weight):
        return bjorck(weight, steps=6)


def train(vae, x, generator, steps=200):
    """The mean loss of the last 50 steps."""
    optimiser, losses = torch.optim.Adam(vae.parameters(), lr=3e-3), []
    for _ in range(steps):
        loss = ELBO()(vae, x, generator=generator).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        if any(parametrize.is_parametrized(module) for module in vae.modules()):
            continue
        vae.after_step()
    return sum(losses[-50:]) / len(losses[-50:])


def test_retraction_keeps_training_near_the_manifold(generator):
    x = torch.rand(32, 1, 4, 4, generator=generator)
    vae = small()
    train(vae, x, generator, steps=30)
    layers = [layer for layer in vae.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        values = torch.linalg.svdvals(layer.weight.detach())
        assert_close(values, torch.ones_like(values), atol=1e-3, rtol=0)
    vae.finalize()
    for layer in layers:
        assert spectral_norm_bound(layer.weight) < 1 + 1e-8
        values = torch.linalg.svdvals(layer.weight.detach())
        assert_close(values, torch.ones_like(values), atol=1e-9, rtol=0)


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


def plain_gradients(vae):
    for layer in vae.modules():
        if isinstance(layer, nn.Linear):
            layer.weight._post_accumulate_grad_hooks.clear()


def test_gradients_are_tangent(generator):
    """W^T G (or W G^T) is skew: a step along it keeps W orthonormal to first order."""
    vae = small()
    ELBO()(vae, torch.rand(8, 1, 4, 4, generator=generator), generator=generator).mean().backward()
    for layer in vae.modules():
        if isinstance(layer, nn.Linear):
            weight, grad = layer.weight.detach(), layer.weight.grad
            wide = weight.shape[0] < weight.shape[1]
            inner = weight @ grad.mT if wide else weight.mT @ grad
            assert_close(inner, -inner.mT, atol=1e-9, rtol=0)
            assert grad.norm() > 0


def test_training_reaches_the_loss_of_the_in_forward_variant(generator):
    """The cheap way against the published one, from the same start, on the same draws."""
    x = torch.rand(48, 1, 4, 4, generator=generator)
    cheap, oracle = small(likelihood="bernoulli"), small(likelihood="bernoulli")
    plain_gradients(oracle)
    for layer in oracle.modules():
        if isinstance(layer, nn.Linear):
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
