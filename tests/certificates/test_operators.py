"""Every operator against torch, against sampling, and against slow definitions."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustvae import errors, registry
from robustvae.certificates import lipschitz_bound
from robustvae.certificates.propagation import Relaxation, operator_of
from robustvae.certificates.propagation.graph import Affine, Concatenate, Graph, Part, Sum
from robustvae.certificates.propagation.operator import OPERATORS, Curve
from robustvae.certificates.propagation.operators.clamp import Clamp
from robustvae.models.lipschitz import Scale
from robustvae.models.orthogonal import MoveChannels
from robustvae.models.sorts import GroupSort, MaxMin
from robustvae.registry.members import _members

IMAGE, LINE, VECTOR = (4, 6, 5), (4, 7), (8,)


def batch_norm(kind):
    layer = kind(4)
    for tensor, low in ((layer.running_var, 0.5), (layer.running_mean, -1.0)):
        tensor.uniform_(low, 2.0)
    return layer.eval()


CURVES = [
    nn.ReLU(),
    nn.LeakyReLU(0.2),
    nn.LeakyReLU(-0.5),
    nn.PReLU(),
    nn.Hardtanh(-0.5, 2.0),
    nn.ReLU6(),
    nn.Hardsigmoid(),
    Clamp(0.0, 1.0),
    Clamp(None, 0.5),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Softplus(),
    nn.Softplus(3.0, threshold=30.0),
    nn.GELU(),
    nn.SiLU(),
    nn.ELU(),
    nn.ELU(0.3),
    nn.ELU(2.0),
]
LAYERS = [
    (nn.Linear(8, 5), VECTOR),
    (Scale(-1.5), VECTOR),
    (Affine(2.0, -1.0), IMAGE),
    (batch_norm(nn.BatchNorm1d), LINE),
    (batch_norm(nn.BatchNorm2d), IMAGE),
    (nn.Conv1d(4, 3, 3, stride=2, padding=1, dilation=2), LINE),
    (nn.ConvTranspose1d(4, 3, 3, stride=2, padding=1, output_padding=1), LINE),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), groups=2), IMAGE),
    (nn.Conv2d(4, 2, 3, padding="same", dilation=2), IMAGE),
    (nn.ConvTranspose2d(4, 2, 3, stride=2, dilation=2, output_padding=1), IMAGE),
    (nn.Identity(), VECTOR),
    (nn.Dropout(0.5).eval(), VECTOR),
    (nn.Flatten(), IMAGE),
    (nn.Unflatten(1, (2, 4)), VECTOR),
    (MoveChannels(last=True), IMAGE),
    (nn.PixelShuffle(2), IMAGE),
    (nn.PixelUnshuffle(2), (2, 4, 6)),
    (Part(1, 3), IMAGE),
    (GroupSort(4), VECTOR),
    (MaxMin(), VECTOR),
    (nn.AvgPool1d(3, stride=2, padding=1), LINE),
    (nn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False), IMAGE),
    (nn.AvgPool2d((3, 2), ceil_mode=True), IMAGE),
    (nn.AdaptiveAvgPool1d(3), LINE),
    (nn.AdaptiveAvgPool2d((2, 3)), IMAGE),
    (nn.AdaptiveAvgPool2d((None, 1)), IMAGE),
    (nn.MaxPool1d(3, stride=2, padding=1), LINE),
    (nn.MaxPool2d(2), IMAGE),
    (nn.MaxPool2d(3, stride=2, padding=1, dilation=1, ceil_mode=True), IMAGE),
    (nn.MaxPool2d((2, 3), stride=1, dilation=(2, 1)), IMAGE),
    (nn.Upsample(scale_factor=2), IMAGE),
    (nn.Upsample(size=(9, 7), mode="bilinear"), IMAGE),
    (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), IMAGE),
    (nn.Upsample(size=10, mode="linear"), LINE),
    (nn.UpsamplingBilinear2d(scale_factor=2), IMAGE),
    (nn.UpsamplingNearest2d(scale_factor=3), IMAGE),
    (nn.ZeroPad2d((1, 0, 2, 1)), IMAGE),
    (nn.ConstantPad1d((2, 1), -0.7), LINE),
    (nn.ConstantPad2d(1, 0.5), IMAGE),
    (nn.ReflectionPad1d(2), LINE),
    (nn.ReflectionPad2d((1, 2, 0, 1)), IMAGE),
    (nn.ReplicationPad2d(2), IMAGE),
    (nn.CircularPad2d(1), IMAGE),
    (nn.GroupNorm(2, 4), IMAGE),
    (nn.GroupNorm(4, 8, eps=0.1, affine=False), VECTOR),
    (nn.LayerNorm(8), VECTOR),
    (nn.LayerNorm((6, 5), eps=1e-2, bias=False), IMAGE),
]


def names(layers):
    return [str(layer).replace("\n", "") for layer in layers]


def prepared(layer, generator):
    layer = layer.double()
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def directions(shape, radius, norm, generator):
    step = torch.randn(30, *shape, generator=generator)
    if norm == "linf":
        return radius * step.sign() * torch.rand(30, *[1] * len(shape), generator=generator) ** 0.2
    size = step.flatten(1).norm(dim=1).reshape(-1, *[1] * len(shape))
    return radius * step / size


def check(layer, shape, generator, scale=1.0):
    """Sampled movements, and each output's ascent, lie within the bounds of every method."""
    x = scale * torch.randn(2, *shape, generator=generator)
    net = Relaxation(layer, shape=shape)
    clean = layer(x).flatten(1)
    assert_close(net.value(x)[0].flatten(1), clean, rtol=1e-12, atol=1e-12 * scale)
    constant = lipschitz_bound(layer, shape)
    for norm in ("l2", "linf"):
        for radius in (0.01 * scale, scale):
            for method in ("ibp", "crown"):
                (bounds,) = net.over(x, torch.full((2,), radius), norm=norm, method=method)
                weights = 0.5 + torch.rand(clean.shape, generator=generator)
                length = bounds.length(weights)
                for b in range(2):
                    steps = directions(shape, radius, norm, generator)
                    moved = layer(x[b] + steps).flatten(1) - clean[b]
                    assert (bounds.lower[b] <= moved).all() and (moved <= bounds.upper[b]).all()
                    assert ((weights[b] * moved).norm(dim=1) <= length[b]).all()
                    size = steps.flatten(1).norm(dim=1)
                    assert (moved.norm(dim=1) <= constant * size * (1 + 1e-9) + 1e-12).all()
                    if bounds.slope is not None:
                        rest = moved - steps.flatten(1) @ bounds.slope[b].mT
                        assert (bounds.low[b] - 1e-12 * scale <= rest).all()
                        assert (rest <= bounds.high[b] + 1e-12 * scale).all()
    return net


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=names(layer for layer, _ in LAYERS))
def test_layer_within_its_bounds(layer, shape, generator):
    check(prepared(layer, generator), shape, generator)


@pytest.mark.parametrize("layer", CURVES, ids=names(CURVES))
def test_curve_within_its_bounds(layer, generator):
    check(layer.double().requires_grad_(False), (6,), generator, scale=3.0)


def test_prelu_of_each_channel(generator):
    check(prepared(nn.PReLU(4), generator), IMAGE, generator)


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=names(layer for layer, _ in LAYERS))
def test_linear_layers_exactly(layer, shape, generator):
    """The slope is the Jacobian at the center, and of a linear layer all there is."""
    layer = prepared(layer, generator)
    x = torch.randn(1, *shape, generator=generator)
    (bounds,) = Relaxation(layer, shape=shape).over(x, torch.tensor([1e-7]))
    jacobian = torch.func.jacrev(lambda y: layer(y[None])[0].flatten())(x[0]).flatten(1)
    assert_close(bounds.slope[0], jacobian, rtol=1e-5, atol=1e-6)
    kinds = (GroupSort, MaxMin, nn.MaxPool1d, nn.MaxPool2d, nn.GroupNorm, nn.LayerNorm)
    if not isinstance(layer, kinds):
        top = float(torch.linalg.matrix_norm(jacobian, 2))
        assert top * (1 - 1e-9) <= lipschitz_bound(layer, shape)
        (bounds,) = Relaxation(layer, shape=shape).over(x, torch.tensor([2.0]))
        assert_close(bounds.upper[0], 2 * jacobian.norm(dim=1), rtol=1e-8, atol=1e-9)
        whole = float(bounds.length(torch.ones(1, len(jacobian))))
        assert 2 * top * (1 - 1e-9) <= whole <= 2 * top * (1 + 1e-6) + 1e-9


def test_every_operator_is_tested():
    tested = {type(operator_of(layer)) for layer in [*CURVES, *(layer for layer, _ in LAYERS)]}
    tested |= {type(operator_of(layer)) for layer in (Sum(), Concatenate())}
    assert tested == {registry.lookup("operator", name) for name in registry.names("operator")}
    kinds = {type(layer) for layer in [*CURVES, *(layer for layer, _ in LAYERS)]}
    untested = set(OPERATORS) - kinds - {Sum, Concatenate}
    assert untested <= {
        nn.Dropout1d,
        nn.Dropout2d,
        nn.ZeroPad1d,
        nn.ReplicationPad1d,
        nn.CircularPad1d,
    }


def intervals(generator, count=3000):
    """Centers and intervals of all sizes and places: 1e-30 to 1e30, saturation, denormals."""
    sign = torch.randn(count, generator=generator).sign()
    exponent = 60 * torch.rand(count, generator=generator) - 30
    center = sign * 10**exponent
    center[: count // 3] = 60 * torch.randn(count // 3, generator=generator)
    center[count // 3 : count // 3 + 50] = 5e-324
    center[count // 3 + 50 : count // 3 + 60] = 0.0
    center[: count // 12] = 800 * torch.randn(count // 12, generator=generator)
    width = center.abs().clamp_min(1e-12) * 10 ** (8 * torch.rand(count, generator=generator) - 7)
    width[::5] = 10 ** (60 * torch.rand(len(width[::5]), generator=generator) - 30)
    down, up = torch.rand(2, count, generator=generator)
    return center, center - down * width, center + up * width


@pytest.mark.parametrize("layer", CURVES, ids=names(CURVES))
def test_lines_hold_at_every_magnitude(layer, generator):
    """Each activation alone; the remainder is evaluated with what the bounds grant its rounding."""
    curve = operator_of(layer.double())
    assert isinstance(curve, Curve)
    value, low, high = intervals(generator)
    chord = curve.chord(value, low, high)
    assert chord.isfinite().all() and (chord.abs() <= curve.steepest * (1 + 1e-6) + 1e-7).all()
    start = curve.value(value)
    for slope in (chord, torch.zeros_like(chord), chord * 0.7):
        least, most = curve.remainder(slope, value, low, high)
        ratio, doubt = curve.ratio(slope, value, low, high)
        assert (least <= 0).all() and (most >= 0).all()
        shares = torch.cat([torch.linspace(0, 1, 60), torch.rand(20, generator=generator)])
        for share in shares:
            point = torch.lerp(low, high, share).clamp(low, high)
            image, line = curve.value(point), slope * (point - value)
            rest = image - start - line
            lost = curve.precision * (image.abs() + start.abs() + line.abs()) + curve.doubt()
            assert (rest <= most + lost).all() and (rest >= least - lost).all()
            assert (rest.abs() <= ratio * (point - value).abs() + doubt + lost).all()
        slopes = curve.slopes(low, high)
        for share in shares[:60:7]:
            at = curve.derivative(torch.lerp(low, high, share).clamp(low, high))
            assert (slopes[0] - 1e-12 <= at).all() and (at <= slopes[1] + 1e-12).all()


@pytest.mark.parametrize("layer", CURVES, ids=names(CURVES))
def test_remainders_are_tight(layer, generator):
    """Not much wider than what a dense grid attains."""
    curve = operator_of(layer.double())
    value = 4 * torch.randn(500, generator=generator)
    width = 10 ** (3 * torch.rand(500, generator=generator) - 2)
    low, high = value - width, value + width
    slope = curve.chord(value, low, high)
    least, most = curve.remainder(slope, value, low, high)
    seen = torch.stack(
        [
            curve.value(p) - curve.value(value) - slope * (p - value)
            for p in (torch.lerp(low, high, s) for s in torch.linspace(0, 1, 801))
        ]
    )
    tight = seen.amax(0) - seen.amin(0)
    assert (most - least <= 1.03 * tight + 1e-9 + 1e-3 * width + 4 * curve.doubt()).all()


def test_saturated_sigmoid_keeps_the_center():
    """The critical point of a saturated sigmoid once fell outside: the rest excluded 0."""
    for bias, width in ((-30.0, 1e-4), (-36.0, 0.01), (-40.0, 1.0), (40.0, 1.0), (-700.0, 5.0)):
        curve, value = operator_of(nn.Sigmoid()), torch.tensor([bias])
        low, high = value - width, value + width
        slope = curve.chord(value, low, high)
        least, most = (1e300 * end for end in curve.remainder(slope, value, low, high))
        assert least <= 0 <= most
        grid = torch.lerp(low, high, torch.linspace(0, 1, 1001))
        rest = curve.value(grid) - curve.value(value) - slope * (grid - value)
        assert (1e300 * rest <= most).all() and (1e300 * rest >= least).all()


def test_residual_and_concatenation(generator):
    """A block as networks have it, against its own sampling."""
    one, two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 3, 1)
    graph = Graph(
        [one, nn.SiLU(), Sum(), Concatenate(), nn.GroupNorm(2, 8), nn.GELU(), two],
        [(0,), (1,), (0, 2), (0, 3), (4,), (5,), (6,)],
        (7,),
    )
    for layer in (one, two, graph.layers[4]):
        prepared(layer, generator)
    x = torch.randn(2, *IMAGE, generator=generator)
    net = Relaxation(graph, shape=IMAGE)
    clean = graph(x)[0].flatten(1)
    constant = lipschitz_bound(graph, IMAGE)
    for radius in (0.01, 0.5):
        (bounds,) = net.over(x, torch.full((2,), radius))
        for b in range(2):
            steps = directions(IMAGE, radius, "l2", generator)
            moved = graph(x[b] + steps)[0].flatten(1) - clean[b]
            assert (bounds.lower[b] <= moved).all() and (moved <= bounds.upper[b]).all()
            length = float(bounds.length(torch.ones(clean.shape))[b])
            assert (moved.norm(dim=1) <= min(length, constant * radius)).all()


def test_pooled_network_narrows(generator):
    """CROWN is never wider than intervals, through pooling, norms and upsampling too."""
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1),
        nn.MaxPool2d(2),
        nn.GroupNorm(2, 4),
        nn.SiLU(),
        nn.Upsample(scale_factor=2),
        nn.AvgPool2d(2),
        nn.PixelShuffle(2),
        nn.Flatten(),
        nn.Linear(24, 3),
    )
    net = prepared(net, generator)
    check(net, IMAGE, generator)
    x = torch.randn(3, *IMAGE, generator=generator)
    radius = torch.full((3,), 0.02)
    relaxation = Relaxation(net, shape=IMAGE)
    ibp, crown = (relaxation.over(x, radius, method=method)[0] for method in ("ibp", "crown"))
    assert ((crown.upper - crown.lower) <= (ibp.upper - ibp.lower) + 1e-9).all()
    assert (crown.upper - crown.lower).mean() < 0.5 * (ibp.upper - ibp.lower).mean()


def test_batch_does_not_matter(generator):
    """The rows of all inputs go back together: each as if it were alone."""
    net = prepared(
        nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.SiLU(), nn.Linear(12, 3)),
        generator,
    )
    x, radius = torch.randn(5, 8, generator=generator), torch.rand(5, generator=generator)
    relaxation = Relaxation(net, shape=VECTOR)
    (together,) = relaxation.over(x, radius)
    for i in range(5):
        (alone,) = relaxation.over(x[i : i + 1], radius[i : i + 1])
        for name in ("lower", "upper", "low", "high", "slope"):
            assert_close(getattr(alone, name)[0], getattr(together, name)[i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("layer", "shape", "says"),
    [
        (nn.GELU(approximate="tanh"), VECTOR, "approximate"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), IMAGE, "padding layer"),
        (nn.Conv2d(4, 4, 2, padding="same"), IMAGE, "even"),
        (nn.MaxPool2d(2, return_indices=True), IMAGE, "return_indices"),
        (nn.AvgPool2d(2, divisor_override=3), IMAGE, "divisor_override"),
        (nn.Upsample(scale_factor=2, mode="bicubic"), IMAGE, "bicubic"),
        (nn.Softplus(beta=-1.0), VECTOR, "beta"),
        (nn.Flatten(0), VECTOR, "batch"),
        (nn.Mish(), VECTOR, "Mish"),
        (nn.BatchNorm2d(4, track_running_stats=False).eval(), IMAGE, "running statistics"),
        (nn.LayerNorm(8, eps=0.0), VECTOR, "eps"),
    ],
)
def test_options_refused_by_name(layer, shape, says):
    with pytest.raises(errors.UnsupportedError, match=says):
        Relaxation(layer, shape=shape)


def test_plugin_operator_is_found(generator):
    """A new operator is one class: registered, it bounds, has a constant and can be traced."""

    class Half(nn.Module):
        def forward(self, x):
            return x / 2

    @registry.register("operator", "half")
    class HalfOperator(type(operator_of(Scale(1.0))).__bases__[0]):
        kinds = (Half,)

        def build(self, network, reads):
            return operator_of(Scale(0.5)).build(network, reads)

        def lipschitz(self, shape):
            return 0.5

    try:
        assert lipschitz_bound(Half()) == pytest.approx(0.5)
        check(Half(), VECTOR, generator)
    finally:
        _members.pop(("operator", "half"))
        OPERATORS.pop(Half)
    assert math.isfinite(lipschitz_bound(nn.ReLU()))
