"""Forward bounds on rounding: never below what float32 does, in any order of the sums."""

import math

import pytest
import torch
from torch import nn

import robustvae as rv
from robustvae import errors
from robustvae.certificates.methods.lipschitz import MEAN_UNITS
from robustvae.certificates.propagation import Add, operator_of
from robustvae.certificates.rounding import Arithmetic, forward_error, sizes_norm, unit_of
from robustvae.models.lipschitz import Scale
from robustvae.models.sorts import GroupSort
from robustvae.models.vae import likelihood_of

FLOAT32 = Arithmetic(torch.float32)
SHAPE = (2, 6, 6)


def batch_norm():
    layer = nn.BatchNorm2d(4)
    layer.running_var.uniform_(0.5, 2.0)
    layer.running_mean.uniform_(-1.0, 1.0)
    return layer.eval()


NETWORKS = {
    "dense": lambda: [nn.Flatten(), nn.Linear(72, 300), nn.ReLU(), nn.Linear(300, 5)],
    "sorts": lambda: [nn.Flatten(), nn.Linear(72, 64), Scale(3.0), GroupSort(), nn.Linear(64, 5)],
    "curves": lambda: [
        *(nn.Flatten(), nn.Linear(72, 40), nn.Tanh(), nn.Linear(40, 40), nn.SiLU()),
        *(nn.Linear(40, 40), nn.GELU(), nn.Linear(40, 40), nn.Softplus(), nn.Linear(40, 9)),
        *(nn.Sigmoid(), nn.ELU(), nn.LeakyReLU(), nn.Hardsigmoid()),
    ],
    "convolutions": lambda: [
        *(nn.Conv2d(2, 4, 3, padding=1), batch_norm(), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.ConvTranspose2d(4, 3, 4, stride=2), nn.AvgPool2d(2), nn.Upsample(scale_factor=2)),
        *(nn.ReflectionPad2d(1), nn.Conv2d(3, 2, 3), nn.Flatten()),
    ],
    "bilinear": lambda: [nn.Upsample(size=(9, 8), mode="bilinear"), nn.Conv2d(2, 2, 3)],
    "sum": lambda: [nn.Flatten(), Add(nn.Identity(), nn.Linear(72, 72)), nn.ReLU()],
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_bound_above_float32(name, scale, generator):
    """At the center and at other points of the ball, for networks of every kind of layer."""
    net = nn.Sequential(*NETWORKS[name]()).float().eval().requires_grad_(False)
    exact = nn.Sequential(*NETWORKS[name]()).eval().requires_grad_(False)
    exact.double().load_state_dict({k: v.double() for k, v in net.state_dict().items()})
    x = (scale * torch.randn(4, *SHAPE, generator=generator)).float()
    radius = torch.full((4,), 2.0 * scale)
    clean = forward_error(exact, x, torch.zeros(4), torch.zeros(4), FLOAT32).error
    bound = forward_error(exact, x, radius, torch.zeros(4), FLOAT32).error
    assert (clean <= bound).all()
    for k in range(20):
        step = torch.randn(x.shape, generator=generator)
        step = (radius[:, None, None, None] * step / step.flatten(1).norm(dim=1).max()).float()
        point = x if k == 0 else x + step * 0.9
        seen = (net(point).double() - exact(point.double())).flatten(1).norm(dim=1)
        assert (seen <= (clean if k == 0 else bound)).all()
        assert (bound < 1e-2 * (scale + 1) * 1e2).all()


def test_bound_above_the_worst_order():
    """Sums in sequence, of one sign, come nearest to the bound; far from it all the same."""
    n = 4000
    layer = nn.Linear(n, 1, bias=False).requires_grad_(False)
    layer.weight.fill_(1.0 / 3.0)
    weight = layer.weight.float()[0]
    layer.double().weight.copy_(weight.double()[None])
    x = torch.full((1, n), 1.1).float()
    total = torch.zeros((), dtype=torch.float32)
    for term in weight * x[0]:
        total = total + term
    exact = layer(x.double())[0, 0]
    bound = forward_error(layer, x, torch.zeros(1), torch.zeros(1), FLOAT32).error[0]
    lanes = forward_error(layer, x, torch.zeros(1), torch.zeros(1), Arithmetic(torch.float32, 16))
    seen = abs(float(total) - float(exact))
    assert 0.002 * float(bound) < seen <= float(bound)
    assert float(lanes.error[0]) < 0.1 * float(bound)


def test_missing_term_is_caught(generator):
    """Without the rounding of the layers the bound falls below what is seen."""
    net = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 50)).requires_grad_(False)
    single = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 50)).float()
    net.load_state_dict({k: v.double() for k, v in single.state_dict().items()})
    x = torch.randn(3, 300, generator=generator).float()
    seen = (single(x).double() - net(x.double())).norm(dim=1)
    none = torch.zeros(3)
    assert (seen <= forward_error(net, x, none, none, FLOAT32).error).all()
    assert (seen > forward_error(net, x, none, none, Arithmetic(torch.float64)).error).all()


def test_norm_of_sizes_is_upper_bound(generator):
    from robustvae.certificates.rounding import _Steps

    for layer, shape in ((nn.Linear(7, 5), (7,)), (nn.Conv2d(2, 3, 3, stride=2), SHAPE)):
        steps = _Steps([shape])
        operator_of(layer).build(steps, (0,))
        eye = torch.eye(math.prod(shape)).view(-1, *shape)
        matrix = steps.steps[0].apply(eye, "sizes").flatten(1).mT
        exact = float(torch.linalg.matrix_norm(matrix, 2))
        assert exact <= sizes_norm(steps.steps[0], shape) <= 1.2 * exact


CURVES = [nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.GELU(), nn.SiLU(), nn.ELU()]


@pytest.mark.parametrize("layer", CURVES, ids=str)
def test_curves_err_by_few_units(layer):
    """Torch's float32 functions against float64, relatively to the larger of x and phi(x)."""
    x = torch.cat([torch.linspace(-110, 110, 200_001), torch.logspace(-30, 2, 5_000)]).float()
    exact, seen = layer(x.double()), layer(x).double()
    units = (seen - exact).abs() / (2.0**-24 * (x.double().abs() + exact.abs()) + 2.0**-140)
    assert units.max() <= operator_of(layer).roundings((1,)) / 2


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli_exact"])
def test_means_err_by_few_units(likelihood):
    y = torch.cat([torch.linspace(-60, 60, 100_001), torch.logspace(-9, 0, 5_000)]).float()
    seen = likelihood_of(y, likelihood).mean.double()
    exact = likelihood_of(y.double(), likelihood).mean
    assert (seen - exact).abs().max() <= MEAN_UNITS[likelihood] * 2.0**-24


def test_other_arithmetic_is_refused():
    with pytest.raises(errors.UnsupportedError, match="bfloat16"):
        unit_of(torch.bfloat16, torch.device("cpu"))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(errors.UnsupportedError, match="TF32 or bfloat16"):
            unit_of(torch.float32, torch.device("cpu"))
    finally:
        torch.set_float32_matmul_precision(before)
    with pytest.raises(errors.UnsupportedError, match="double"):
        forward_error(nn.LayerNorm(4), torch.zeros(1, 4), torch.zeros(1), torch.zeros(1), FLOAT32)


def test_certificate_pays_for_rounding():
    """float32 in any order costs a little of what float64 gives, and says so."""
    vae, x = rv.load("digits-lipschitz-vae"), rv.data.load("digits", split="test").x[:4]
    options = {"r": 1.0, "m": 0.5, "displacement": "centered", "methods": ["envelope"]}
    single = rv.certify(vae, x.float(), generator=rv.generator(0), **options)
    double = rv.certify(vae.double(), x.double(), generator=rv.generator(0), **options)
    assert (0.98 * double.radius <= single.radius).all() and (single.radius < double.radius).all()
    assert any("any order" in text for text in single.assumptions)


@pytest.mark.parametrize("part", ["matmul", "conv"])
def test_newer_settings_are_read(part):
    """These ended in an error of torch, or were not seen."""
    settings = getattr(torch.backends.mkldnn, part, None)
    if not hasattr(settings, "fp32_precision"):
        pytest.skip("this torch has the older settings only")
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        with pytest.raises(errors.UnsupportedError, match="TF32 or bfloat16"):
            unit_of(torch.float32, torch.device("cpu"))
    finally:
        settings.fp32_precision = before
    assert unit_of(torch.float32, torch.device("cpu")) == 2.0**-24


def test_environment_setting_is_read(monkeypatch):
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    with pytest.raises(errors.UnsupportedError, match="TF32 or bfloat16"):
        unit_of(torch.float32, torch.device("cpu"))


class Large(rv.VAE):
    """Its first layer's sums come near the largest float32; what is decoded is small."""

    latent, image_shape = 1, (1, 4, 4)

    def __init__(self, weights):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(16, 1), nn.Linear(1, 1), nn.Linear(1, 16)
        with torch.no_grad():
            for layer in (self.first, self.second, self.out):
                layer.weight.fill_(0.25), layer.bias.zero_()
            self.first.weight[0] = torch.tensor(weights)
            self.second.weight /= self.first.weight.abs().max()

    def encode(self, x):
        mean = self.second(self.first(x.flatten(1)))
        return rv.models.Gaussian(mean, torch.full_like(mean, 0.01))

    def decode(self, z):
        y = self.out(z).view(-1, 1, 4, 4)
        return rv.models.Gaussian(y, torch.ones_like(y))


DETERMINISTIC = ["noncentral", "support_set", "trace_markov"]


@pytest.mark.parametrize(
    "weights",
    [[2e37] * 16, [2.2e38, 2.2e38, -2.2e38, -2.2e38] + [0.0] * 12],
    ids=["sum", "partial"],
)
def test_sums_that_may_overflow_certify_nothing(weights):
    """A step of 0.4 makes the latent infinite; the small one below is certified as ever."""
    x = torch.full((1, 1, 4, 4), 0.99, dtype=torch.float32)
    for factor, certified in ((1.0, False), (1e-6, True)):
        vae = Large([factor * weight for weight in weights]).float().eval()
        for method in DETERMINISTIC:
            lower = rv.certify(vae, x, 1.0, methods=[method], generator=rv.generator(0))
            assert bool(lower.radius[0] > 0) == certified, (method, factor)


def test_numbers_flushed_to_zero_are_refused():
    assert unit_of(torch.float32, torch.device("cpu"))
    torch.set_flush_denormal(True)
    try:
        with pytest.raises(errors.UnsupportedError, match="set_flush_denormal"):
            unit_of(torch.float32, torch.device("cpu"))
    finally:
        torch.set_flush_denormal(False)
