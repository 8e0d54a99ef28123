import math

import mpmath
import pytest
import torch
from torch import nn

import robustvae as rv
from robustvae import errors
from robustvae.certificates import lipschitz_bound as slope_bound
from robustvae.norms import (
    CONTINUOUS_BERNOULLI_SLOPE,
    conv_norm_bound,
    spectral_norm_bound,
)


def exact_norm(matrix):
    """The largest singular value with 50 digits."""
    with mpmath.workdps(50):
        return mpmath.svd_r(mpmath.matrix(matrix.double().tolist()), compute_uv=False)[0]


MATRICES = {
    "gaussian": lambda g: torch.randn(7, 12, generator=g),
    "tall": lambda g: torch.randn(12, 5, generator=g),
    "orthonormal": lambda g: torch.linalg.qr(torch.randn(9, 9, generator=g))[0],
    "orthonormal float32": lambda g: torch.linalg.qr(torch.randn(9, 6, generator=g))[0].float(),
    "rank one": lambda g: torch.outer(torch.randn(6, generator=g), torch.randn(6, generator=g)),
    "near-equal top two": lambda g: torch.diag(torch.tensor([1.0, 1.0 - 1e-15, 0.5])),
    "large": lambda g: 1e150 * torch.randn(4, 4, generator=g),
    "small": lambda g: 1e-150 * torch.randn(4, 4, generator=g),
    "badly scaled": lambda g: torch.diag(torch.tensor([1.0, 1e-9, 1e-18])),
}


@pytest.mark.parametrize("name", MATRICES)
def test_bound_never_below_exact_norm_close(name, generator):
    for _ in range(5):
        matrix = MATRICES[name](generator)
        bound, exact = spectral_norm_bound(matrix), exact_norm(matrix)
        assert exact <= bound <= exact * (1 + 1e-9)


def test_norm_below_truth_is_caught(generator):
    """The oracle is sharp enough to catch a bound that is too small by one part in 10^12."""
    matrix = torch.randn(6, 8, generator=generator)
    assert float(exact_norm(matrix)) * (1 - 1e-12) < exact_norm(matrix)


def test_wide_layer_is_tight(generator):
    weight = torch.linalg.qr(torch.randn(512, 512, generator=generator))[0].float()
    assert 1.0 - 1e-6 < spectral_norm_bound(weight) < 1.0 + 1e-6


def test_zero_empty_and_nonsense():
    assert spectral_norm_bound(torch.zeros(3, 4)) == 0.0
    with pytest.raises(errors.NonFiniteError):
        spectral_norm_bound(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(errors.ShapeError):
        spectral_norm_bound(torch.zeros(3))


@pytest.mark.parametrize(
    "module", [nn.Sigmoid(), nn.Tanh(), nn.ReLU(), nn.LeakyReLU(-1.5), nn.Softplus(beta=3.0)]
)
def test_slopes_are_the_largest_and_reached(module):
    x = torch.linspace(-20, 20, 40_001, requires_grad=True)
    (slope,) = torch.autograd.grad(module(x).sum(), x)
    assert slope_bound(module) * (1 - 1e-6) <= slope.abs().max() <= slope_bound(module) + 1e-12


def test_slope_of_exact_continuous_bernoulli_mean():
    x = torch.linspace(-20, 20, 40_001, requires_grad=True)
    mean = rv.models.ContinuousBernoulli(x, rule="exact").mean
    (slope,) = torch.autograd.grad(mean.sum(), x)
    assert abs(slope.max() - CONTINUOUS_BERNOULLI_SLOPE) < 1e-9


def test_unknown_module_is_refused_by_name():
    with pytest.raises(errors.UnsupportedError, match="Mish"):
        slope_bound(nn.Mish())


CONVOLUTIONS = {
    "plain": (nn.Conv2d, {"kernel_size": 3, "padding": 1}),
    "strided": (nn.Conv2d, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "strided beyond its kernel": (nn.Conv2d, {"kernel_size": 2, "stride": 3}),
    "dilated, uneven": (
        nn.Conv2d,
        {"kernel_size": (2, 3), "dilation": (2, 1), "stride": (1, 2), "padding": (2, 1)},
    ),
    "grouped": (nn.Conv2d, {"kernel_size": 3, "groups": 2}),
    "transposed": (nn.ConvTranspose2d, {"kernel_size": 4, "stride": 2, "padding": 1}),
    "transposed, dilated": (nn.ConvTranspose2d, {"kernel_size": 3, "dilation": 2}),
    "transposed, padded output": (
        nn.ConvTranspose2d,
        {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_against_their_exact_matrix(name, generator):
    """The oracle feeds the identity through the layer."""
    kind, options = CONVOLUTIONS[name]
    layer = kind(4, 6, bias=False, **options).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        for height, width in ((4, 5), (7, 7)):
            eye = torch.eye(4 * height * width).reshape(-1, 4, height, width)
            out = layer(eye)
            exact = torch.linalg.matrix_norm(out.flatten(1), 2)
            coarse = (height, width) if kind is nn.ConvTranspose2d else tuple(out.shape[-2:])
            bound = conv_norm_bound(layer, coarse)
            assert exact <= bound <= 1.6 * exact


def test_convolution_norm_approached_on_large_features(generator):
    layer = nn.Conv2d(2, 3, 3, padding=1, stride=2, bias=False).double()
    with torch.no_grad():
        out = layer(torch.eye(2 * 20 * 20).reshape(-1, 2, 20, 20))
    exact = torch.linalg.matrix_norm(out.flatten(1), 2)
    assert exact <= conv_norm_bound(layer, (10, 10)) <= 1.05 * exact


def test_other_paddings_are_refused():
    for size, options in (
        (4, {"padding": "same"}),
        (3, {"padding": 1, "padding_mode": "circular"}),
    ):
        with pytest.raises(errors.UnsupportedError):
            conv_norm_bound(nn.Conv2d(1, 1, size, **options), (4, 4))


@pytest.mark.parametrize("change", ["in place", "behind autograd", "in memory"])
def test_changed_weight_gets_a_new_bound(change: str) -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1)
    before = conv_norm_bound(layer, (5, 5)), spectral_norm_bound(layer.weight.flatten(1))
    with torch.no_grad():
        if change == "in place":
            layer.weight.mul_(2)
        elif change == "behind autograd":
            layer.weight.data *= 2
        else:
            layer.weight.numpy()[...] *= 2
    after = conv_norm_bound(layer, (5, 5)), spectral_norm_bound(layer.weight.flatten(1))
    assert after == pytest.approx([2 * bound for bound in before], rel=1e-9)
    assert conv_norm_bound(layer, (9, 9)) != after[0]
    layer.stride = (2, 2)
    assert conv_norm_bound(layer, (5, 5)) < after[0]
