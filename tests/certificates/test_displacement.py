import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustvae import errors
from robustvae.certificates.displacement import Chain, mahalanobis_shift
from robustvae.models.lipschitz import GroupSort, MaxMin, Scale


def batch_norm(kind, features):
    layer = kind(features)
    with torch.no_grad():
        layer.running_mean.normal_(generator=torch.Generator().manual_seed(1))
        layer.running_var.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
        layer.weight.uniform_(-1.0, 1.0, generator=torch.Generator().manual_seed(3))
    return layer


NETWORKS = {
    "relu": lambda: [nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5)],
    "tanh, deep": lambda: [
        nn.Flatten(),
        *(part for _ in range(3) for part in (nn.Linear(16, 16), nn.Tanh())),
    ],
    "sigmoid": lambda: [nn.Flatten(), nn.Linear(16, 8), nn.Sigmoid(), nn.Linear(8, 4)],
    "softplus": lambda: [nn.Flatten(), nn.Linear(16, 8), nn.Softplus(2.0), nn.Linear(8, 4)],
    "leaky": lambda: [nn.Flatten(), nn.Linear(16, 8), nn.LeakyReLU(-0.3), nn.Linear(8, 4)],
    "sorts": lambda: [
        nn.Flatten(),
        nn.Linear(16, 8),
        Scale(1.7),
        GroupSort(),
        nn.Linear(8, 8),
        MaxMin(),
        nn.Linear(8, 4),
    ],
    "batch norm": lambda: [
        nn.Flatten(),
        nn.Linear(16, 8),
        batch_norm(nn.BatchNorm1d, 8),
        nn.ReLU(),
        nn.Linear(8, 4),
    ],
    "convolutions": lambda: [
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        batch_norm(nn.BatchNorm2d, 4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(32, 5),
    ],
}


@pytest.fixture(params=NETWORKS)
def network(request, generator):
    net = nn.Sequential(*NETWORKS[request.param]()).eval().requires_grad_(False)
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / 2)
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) / 2)
    return net


def sphere(x, radius, generator):
    step = torch.randn(x.shape, generator=generator)
    return radius * step / step.flatten(1).norm(dim=1)[:, None, None, None]


@pytest.mark.parametrize("radius", [1e-3, 0.1, 1.0])
def test_nothing_in_the_ball_leaves_the_enclosure(network, radius, generator):
    """Random and gradient-driven points: their movement and their Jacobians are enclosed."""
    x = torch.rand(6, 1, 4, 4, generator=generator)
    found = Chain(network).enclose(x, torch.full((6,), radius))
    clean = network(x)
    assert_close(found.value, clean)
    width = found.widths(torch.full((6,), radius))
    for _ in range(5):
        step = sphere(x, radius, generator)
        for _ in range(8):
            step = step.detach().requires_grad_(True)
            moved = network(x + step) - clean
            assert (moved.norm(dim=1) <= found.most * radius * (1 + 1e-9)).all()
            assert (moved.abs() <= width * (1 + 1e-9)).all()
            (grad,) = torch.autograd.grad(moved.square().sum(), step)
            size = grad.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None, None]
            step = step + 0.5 * radius * grad / size
            step = radius * step / step.flatten(1).norm(dim=1)[:, None, None, None]
        inside = (x + torch.rand(()) * step).detach()
        for i in range(6):
            j = torch.autograd.functional.jacobian(lambda v: network(v)[0], inside[i : i + 1])
            j = j.reshape(-1, 16).mT
            off = (j - found.centre[i]).abs() - found.spread[i]
            assert (off <= 1e-9).all()
            assert torch.linalg.matrix_norm(j - found.centre[i], 2) <= found.slip[i] + 1e-9
            assert torch.linalg.matrix_norm(j, 2) <= found.most[i] + 1e-9


def test_at_radius_zero_it_is_the_jacobian(network, generator):
    x = torch.rand(3, 1, 4, 4, generator=generator)
    found = Chain(network).enclose(x, torch.zeros(3))
    for i in range(3):
        j = torch.autograd.functional.jacobian(lambda v: network(v)[0], x[i : i + 1])
        assert_close(found.centre[i], j.reshape(-1, 16).mT)
        assert_close(
            found.most[i], torch.linalg.matrix_norm(j.reshape(-1, 16), 2), rtol=1e-6, atol=0
        )


def test_never_above_the_product_of_the_norms(network, generator):
    from robustvae.certificates import lipschitz_bound

    if any(isinstance(layer, nn.Conv2d) for layer in network):
        pytest.skip("the product of the norms does not cover convolutions")
    x = torch.rand(3, 1, 4, 4, generator=generator)
    found = Chain(network).enclose(x, torch.full((3,), 100.0))
    assert (found.most <= lipschitz_bound(network) * (1 + 1e-9)).all()


def test_a_narrower_ball_is_never_worse(network, generator):
    x = torch.rand(4, 1, 4, 4, generator=generator)
    chain = Chain(network)
    bounds = [chain.enclose(x, torch.full((4,), r)).most for r in (0.0, 0.01, 0.1, 1.0)]
    for near, far in itertools.pairwise(bounds):
        assert (near <= far * (1 + 1e-6)).all()


def test_mahalanobis_shift_bounds_the_scaled_movement(network, generator):
    x = torch.rand(5, 1, 4, 4, generator=generator)
    clean = network(x)
    stddev = 0.1 + torch.rand(clean.shape, generator=generator)
    bound = mahalanobis_shift(Chain(network), x, torch.full((5,), 0.2), stddev)
    for _ in range(200):
        moved = network(x + sphere(x, 0.2, generator)) - clean
        assert ((moved / stddev).norm(dim=1) <= bound).all()


def test_what_is_not_covered_is_named(generator):
    x = torch.rand(1, 1, 4, 4, generator=generator)
    for layer, name in ((nn.GELU(), "GELU"), (GroupSort(4), "GroupSort")):
        with pytest.raises(errors.UnsupportedError, match=name):
            Chain(layer).enclose(x, torch.ones(1))
    with pytest.raises(errors.UnsupportedError, match="running statistics"):
        Chain(nn.Flatten(), nn.BatchNorm1d(16, track_running_stats=False)).enclose(x, torch.ones(1))
