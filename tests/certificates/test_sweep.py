import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustvae import errors
from robustvae.certificates import Add
from robustvae.certificates.propagation import METHODS, Relaxation, operator_of, rows, sweep
from robustvae.certificates.propagation.operators import linear
from robustvae.models.lipschitz import Scale
from robustvae.models.orthogonal import MoveChannels
from robustvae.models.sorts import GroupSort, MaxMin

SHAPE = (1, 4, 4)


def batch_norm(kind, features):
    layer = kind(features)
    with torch.no_grad():
        layer.running_mean.normal_(generator=torch.Generator().manual_seed(1))
        layer.running_var.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
        layer.weight.uniform_(-1.0, 1.0, generator=torch.Generator().manual_seed(3))
        layer.bias.uniform_(-1.0, 1.0, generator=torch.Generator().manual_seed(4))
    return layer


def dense(*activations):
    layers = [nn.Flatten()]
    for activation in activations:
        layers += [nn.Linear(16, 16), activation]
    return [*layers, nn.Linear(16, 3)]


NETWORKS = {
    "linear": lambda: [nn.Flatten(), nn.Linear(16, 8), Scale(-1.5), nn.Linear(8, 3)],
    "relu": lambda: dense(nn.ReLU(), nn.ReLU()),
    "leaky": lambda: dense(nn.LeakyReLU(-0.3), nn.LeakyReLU(0.1)),
    "tanh": lambda: dense(nn.Tanh(), nn.Tanh()),
    "sigmoid": lambda: [
        *dense(nn.Sigmoid(), nn.Sigmoid())[:3],
        Scale(6.0),
        *dense(nn.Sigmoid())[1:],
    ],
    "softplus": lambda: dense(nn.Softplus(2.0), nn.Softplus()),
    "sorts": lambda: dense(GroupSort(), MaxMin()),
    "groups": lambda: dense(GroupSort(4), GroupSort(8)),
    "sorts of channels": lambda: [
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        *(MoveChannels(last=True), GroupSort(), MoveChannels(last=False)),
        nn.Conv2d(4, 6, 2),
        *(MoveChannels(last=True), MaxMin(), MoveChannels(last=False)),
        nn.Flatten(),
        nn.Linear(6, 3),
    ],
    "in place": lambda: dense(nn.ReLU(inplace=True), nn.LeakyReLU(0.1, inplace=True)),
    "batch norm": lambda: [
        *dense(nn.Tanh())[:2],
        batch_norm(nn.BatchNorm1d, 16),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(16, 3),
    ],
    "add": lambda: [
        nn.Flatten(),
        Add(nn.Identity(), nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))),
        Add(nn.Sequential(nn.Linear(16, 8), nn.Tanh()), nn.Sequential(nn.Linear(16, 8))),
        nn.ReLU(),
        nn.Linear(8, 3),
    ],
    "convolutions": lambda: [
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        batch_norm(nn.BatchNorm2d, 4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1),
        nn.Tanh(),
        nn.Conv2d(2, 4, 2, dilation=2, groups=2),
        nn.Unflatten(1, (2, 2)),
        nn.Flatten(),
        nn.ReLU(),
        nn.Linear(16, 3),
    ],
    "dilated": lambda: [
        nn.ConvTranspose2d(1, 2, 3, stride=1, dilation=2, output_padding=1),
        nn.LeakyReLU(),
        nn.Conv2d(2, 2, (3, 2), stride=(2, 3), padding=(1, 0)),
        nn.Flatten(),
        nn.Softplus(),
        nn.LazyLinear(3),
    ],
}


def made(name, generator):
    net = nn.Sequential(*NETWORKS[name]()).eval()
    net(torch.zeros(2, *SHAPE))
    net.requires_grad_(False)
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / 2)
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) / 2)
    return net


@pytest.fixture(params=NETWORKS)
def network(request, generator):
    return made(request.param, generator)


def attacked_in_box(network, x, radius, norm, generator, steps):
    """Fails unless every point of the ball within [0, 1] is within the bounds for that box."""
    net = Relaxation(network, shape=SHAPE)
    radii = torch.full((len(x),), radius)
    (free,) = net.over(x, radii, norm=norm)
    (found,) = net.over(x, radii, norm=norm, box=(0.0, 1.0))
    clean = network(x)
    weights = 0.5 + torch.rand(clean.shape, generator=generator)
    length = found.length(weights)
    for step in steps:
        moved = network((x + step).clamp(0, 1)) - clean
        assert (found.lower <= moved).all()
        assert (moved <= found.upper).all()
        assert ((weights * moved).norm(dim=1) <= length).all()
    return free, found


def project(step, radius, norm):
    if norm == "linf":
        return step.clamp(-radius, radius)
    size = step.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None, None]
    return step * (radius / size).clamp(max=1.0)


def steps_of(network, x, radius, norm, generator):
    """Random points, corners among them, and the ascent of every output and of the rests."""
    for _ in range(40):
        step = torch.randn(x.shape, generator=generator)
        step = step.sign() if norm == "linf" else step
        size = torch.rand((), generator=generator) ** 0.1
        yield project(step * 1e3, radius, norm) * size
    clean = network(x)
    for output in range(clean.shape[1]):
        for sign in (1.0, -1.0):
            step = project(torch.randn(x.shape, generator=generator), radius / 3, norm)
            for _ in range(12):
                step = step.detach().requires_grad_(True)
                (grad,) = torch.autograd.grad(sign * network(x + step)[:, output].sum(), step)
                step = step + radius * (grad.sign() if norm == "linf" else grad * 1e3) / 3
                step = project(step, radius, norm).detach()
                yield step


def check_sound(network, x, radius, norm, method, generator, **options):
    """Fails unless every point of a search in the ball is within the bounds."""
    net = Relaxation(network, shape=SHAPE)
    (found,) = net.over(x, torch.full((len(x),), radius), norm=norm, method=method, **options)
    clean = network(x)
    weights = 0.5 + torch.rand(clean.shape, generator=generator)
    length = found.length(weights)
    assert_close(found.value, clean)
    for step in steps_of(network, x, radius, norm, generator):
        moved = network(x + step) - clean
        assert (found.lower <= moved).all()
        assert (moved <= found.upper).all()
        assert ((weights * moved).norm(dim=1) <= length).all()
        if found.slope is not None:
            rest = moved - (found.slope @ step.flatten(1)[:, :, None])[:, :, 0]
            assert (found.low - 1e-12 <= rest).all()
            assert (rest <= found.high + 1e-12).all()
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("radius", [0.01, 0.5])
def test_nothing_in_ball_leaves_bounds(network, radius, norm, method, generator):
    x = torch.rand(4, *SHAPE, generator=generator)
    found = check_sound(network, x, radius, norm, method, generator)
    assert found.method == method


def black_and_white(generator, count):
    x = 3 * torch.rand(count, *SHAPE, generator=generator) - 1
    return x.clamp(0, 1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", ["relu", "tanh", "convolutions", "sorts of channels"])
def test_box_bounds_are_tighter(name, norm, generator):
    network, x = made(name, generator), black_and_white(generator, 4)
    for radius in (0.05, 0.5):
        steps = list(steps_of(network, x, radius, norm, generator))
        free, found = attacked_in_box(network, x, radius, norm, generator, steps)
        assert (found.upper - found.lower).mean() < (free.upper - free.lower).mean()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_greatest_linear_value_in_box(norm, generator):
    """A row over a ball and a box: a bisection on the multiplier of the ball."""
    network, x = made("linear", generator), black_and_white(generator, 6)
    radius = torch.tensor([0.05, 0.3, 1.0, 1.5, 2.0, 5.0])
    (found,) = Relaxation(network, shape=SHAPE).over(x, radius, norm=norm, box=(0.0, 1.0))
    rows = network[3].weight @ network[1].weight * -1.5
    low, high = -x.flatten(1), 1 - x.flatten(1)
    for sign, ends in ((1.0, found.upper), (-1.0, -found.lower)):
        for b, (size, down, up) in enumerate(zip(radius, low, high, strict=True)):
            for k, row in enumerate(sign * rows):
                if norm == "linf":
                    step = torch.where(row > 0, up.clamp(max=size), down.clamp(min=-size))
                else:
                    least, most = 0.0, 1e9
                    for _ in range(200):
                        price = (least + most) / 2
                        step = (row / max(price, 1e-30)).clamp(down, up)
                        least, most = (price, most) if step.norm() > size else (least, price)
                assert (row @ step) * (1 - 1e-9) <= ends[b, k] <= (row @ step) * 1.01


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_box_turned_round_is_caught(norm, generator, monkeypatch):
    network, x = made("linear", generator), black_and_white(generator, 4)
    steps = list(steps_of(network, x, 0.5, norm, generator))
    right = sweep._Sweep._most
    monkeypatch.setattr(sweep._Sweep, "_most", lambda own, slope, b: right(own, -slope, b))
    with pytest.raises(AssertionError):
        attacked_in_box(network, x, 0.5, norm, generator, steps)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_linear_networks_exactly(norm, generator):
    network = made("linear", generator)
    x = torch.rand(3, *SHAPE, generator=generator)
    radius = torch.tensor([0.1, 1.0, 3.0])
    (found,) = Relaxation(network, shape=SHAPE).over(x, radius, norm=norm)
    matrix = network[3].weight @ network[1].weight * -1.5
    assert_close(found.slope, matrix.expand(3, 3, 16))
    size = matrix.norm(dim=1) if norm == "l2" else matrix.abs().sum(1)
    assert_close(found.upper, radius[:, None] * size, rtol=1e-9, atol=1e-9)
    assert_close(found.lower, -found.upper)
    if norm == "l2":
        top = torch.linalg.matrix_norm(matrix, 2)
        assert_close(found.length(torch.ones(3, 3)), radius * top, rtol=1e-8, atol=1e-9)
    else:
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 16)
        most = (signs @ matrix.mT).norm(dim=1).max() * radius
        assert (found.length(torch.ones(3, 3)) >= most * (1 - 1e-12)).all()
        assert (found.length(torch.ones(3, 3)) <= most * 1.5).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("radius", [0.05, 0.5])
def test_never_wider_than_intervals(network, radius, norm, generator):
    """By construction: whatever a backward row gives is intersected with the interval."""
    x = torch.rand(5, *SHAPE, generator=generator)
    net = Relaxation(network, shape=SHAPE)
    ibp, both, crown = (
        net.over(x, torch.full((5,), radius), norm=norm, method=method)[0] for method in METHODS
    )
    for one, other in ((ibp, both), (ibp, crown)):
        assert (other.lower >= one.lower - 1e-9).all()
        assert (other.upper <= one.upper + 1e-9).all()


def test_crown_narrows_what_intervals_cannot(generator):
    network = made("relu", generator)
    x = torch.rand(5, *SHAPE, generator=generator)
    net = Relaxation(network, shape=SHAPE)
    widths = []
    for method in METHODS:
        (found,) = net.over(x, torch.full((5,), 0.1), method=method)
        widths.append(float((found.upper - found.lower).mean()))
    assert widths[2] < widths[1] < 0.7 * widths[0]


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_chunks_do_not_change_results(network, norm, generator):
    x = torch.rand(3, *SHAPE, generator=generator)
    net = Relaxation(network, shape=SHAPE)
    radius = torch.tensor([0.01, 0.2, 1.0])
    (whole,) = net.over(x, radius, norm=norm)
    (parts,) = net.over(x, radius, norm=norm, memory=8 * 4 * 40 * 2)
    for name in ("slope", "low", "high", "lower", "upper"):
        assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
    assert parts.method == whole.method == "crown"


def test_dear_falls_back_says(generator):
    network = made("relu", generator)
    x = torch.rand(4, *SHAPE, generator=generator)
    net = Relaxation(network, shape=SHAPE)
    radius = torch.full((4,), 0.5)
    row = 8 * 16 * 5
    (found,) = net.over(x, radius, work=row * 4 * 3 * 2)
    assert found.method == "crown-ibp"
    crown, both = (net.over(x, radius, method=method)[0] for method in ("crown", "crown-ibp"))
    assert (found.upper <= both.upper + 1e-9).all()
    assert (found.upper > crown.upper + 1e-3).any()
    (found,) = net.over(x, radius, work=0)
    assert found.method == "ibp"
    assert found.slope is None
    assert_close(found.upper, net.over(x, radius, method="ibp")[0].upper)


def test_two_heads_share_a_trunk(generator):
    network = made("tanh", generator)
    other = nn.Linear(16, 5)
    x = torch.rand(4, *SHAPE, generator=generator)
    radius = torch.full((4,), 0.3)
    both = Relaxation(network[:-1], network[-1], other, shape=SHAPE).over(x, radius)
    (alone,) = Relaxation(network, shape=SHAPE).over(x, radius)
    assert_close(both[0].upper, alone.upper)
    assert both[1].value.shape == (4, 5)


def wrong_tangent(curve, slope, value, low, high):
    """Between the ends only: a tangent's touching point is forgotten."""
    gaps = [curve.value(h) - curve.value(value) - slope * (h - value) for h in (low, high)]
    return torch.minimum(*gaps), torch.maximum(*gaps)


def half_remainder(curve, slope, value, low, high):
    least, most = RIGHT[type(curve)](curve, slope, value, low, high)
    return least / 2, most / 2


CURVES = {
    name: type(operator_of(layer))
    for name, layer in {"tanh": nn.Tanh(), "relu": nn.ReLU(), "softplus": nn.Softplus()}.items()
}
RIGHT = {kind: kind.remainder for kind in CURVES.values()}


@pytest.mark.parametrize(
    ("name", "broken"),
    [("tanh", wrong_tangent), ("relu", wrong_tangent), ("softplus", half_remainder)],
)
def test_broken_line_is_caught(name, broken, generator, monkeypatch):
    network = made(name, generator)
    x = torch.rand(4, *SHAPE, generator=generator)
    check_sound(network, x, 0.5, "l2", "crown", generator)
    monkeypatch.setattr(CURVES[name], "remainder", broken)
    with pytest.raises(AssertionError):
        check_sound(network, x, 0.5, "l2", "crown", generator)


def test_forgotten_bias_is_caught(generator, monkeypatch):
    network = made("relu", generator)
    x = torch.rand(4, *SHAPE, generator=generator)
    right = linear.dense_step
    monkeypatch.setattr(
        linear, "dense_step", lambda weight, bias, *rest: right(weight, None, *rest)
    )
    with pytest.raises(AssertionError):
        check_sound(network, x, 0.5, "l2", "crown", generator)


def test_what_is_not_covered_is_named():
    with pytest.raises(errors.UnsupportedError, match="Mish"):
        Relaxation(nn.Flatten(), nn.Mish(), shape=SHAPE)
    with pytest.raises(errors.UnsupportedError, match="running statistics"):
        Relaxation(
            nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16, track_running_stats=False)).eval(),
            shape=SHAPE,
        )
    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(errors.UnsupportedError, match="hook"):
        Relaxation(hooked, shape=(4,))
    with pytest.raises(errors.UnsupportedError, match="circular"):
        Relaxation(nn.Conv2d(1, 1, 3, padding_mode="circular"), shape=SHAPE)


def test_bad_input_is_refused():
    net = Relaxation(nn.Flatten(), shape=SHAPE)
    with pytest.raises(errors.ShapeError):
        net.over(torch.zeros(2, 16), torch.ones(2))
    with pytest.raises(errors.UnknownNameError):
        net.over(torch.zeros(2, *SHAPE), torch.ones(2), norm="l1")
    with pytest.raises(errors.UnknownNameError):
        net.over(torch.zeros(2, *SHAPE), torch.ones(2), method="zonotope")
    with pytest.raises(errors.RangeError, match="box"):
        net.over(torch.full((2, *SHAPE), 1.5), torch.ones(2), box=(0.0, 1.0))


@pytest.mark.parametrize("shape", [(3, 500), (400, 350), (350, 900)])
def test_the_operator_bound_is_never_below(shape, generator):
    matrix = (
        torch.randn(shape, generator=generator) * torch.rand(shape[1], generator=generator) ** 4
    )
    true = float(torch.linalg.matrix_norm(matrix, 2))
    assert true <= rows.operator_bound(matrix) <= (1.0 if 3 in shape else 2.0) * true * 1.0001


def slow_crown(layers, x, radius, norm):
    """Backward CROWN with chords as published, one input and one dense matrix at a time.

    Args:
        layers: (weight, bias) pairs with a ReLU between.
        x: Center, (D,).
        radius: Of the ball.
        norm: "l2" or "linf".

    Returns:
        Lower and upper bounds on f(p) - f(x), and the slope.
    """
    dual = 2 if norm == "l2" else 1
    values, lines = [x], []
    for k, (weight, bias) in enumerate(layers):
        # rows of this layer, taken back through every activation before it
        matrix, low, high = weight, torch.zeros(len(weight)), torch.zeros(len(weight))
        for (slope, least, most), (before, _) in zip(lines[::-1], layers[:k][::-1], strict=True):
            plus, minus = matrix.clamp_min(0), matrix.clamp_max(0)
            low = low + plus @ least + minus @ most
            high = high + plus @ most + minus @ least
            matrix = (matrix * slope) @ before
        reach = radius * matrix.norm(p=dual, dim=1)
        low, high = low - reach, high + reach
        if k == len(layers) - 1:
            return low, high, matrix
        center = weight @ values[-1] + bias
        down, up = center + low, center + high
        slope = torch.where(up <= 0, 0.0, torch.where(down >= 0, 1.0, up / (up - down)))
        ends = [h.clamp_min(0) - center.clamp_min(0) - slope * (h - center) for h in (down, up)]
        kink = -center.clamp_min(0) + slope * center
        crossed = (down < 0) & (up > 0)
        ends.append(torch.where(crossed, kink, ends[0]))
        bounds = torch.stack(ends)
        lines.append((slope, bounds.amin(0), bounds.amax(0)))
        values.append(center.clamp_min(0))
    raise AssertionError("a network without layers")


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_crown_matches_the_slow_definition(norm, generator):
    """Hardly ever wider; the same slope and intervals where no whole-vector bound is sharper."""
    widths, layers = (9, 14, 12, 10, 4), []
    for n, k in itertools.pairwise(widths):
        layers.append(
            (torch.randn(k, n, generator=generator) / 2, torch.randn(k, generator=generator))
        )
    net = nn.Sequential()
    for weight, bias in layers:
        linear_layer = nn.Linear(weight.shape[1], len(weight)).requires_grad_(False)
        linear_layer.weight.copy_(weight)
        linear_layer.bias.copy_(bias)
        net.extend([linear_layer, nn.ReLU()])
    net = net[:-1]
    x = torch.randn(6, 9, generator=generator)
    for radius in (0.01, 0.1, 0.5):
        (bounds,) = Relaxation(net, shape=(9,)).over(x, torch.full((6,), radius), norm=norm)
        for b in range(6):
            low, high, slope = slow_crown(layers, x[b], radius, norm)
            # other intervals before an activation mean other chords, which may cost a little
            spare = 0.01 * (high - low)
            assert (bounds.upper[b] <= high + spare).all()
            assert (bounds.lower[b] >= low - spare).all()
            if radius == 0.01:
                assert_close(bounds.slope[b], slope, rtol=1e-2, atol=1e-2)
                assert (bounds.upper[b] - bounds.lower[b] >= 0.8 * (high - low)).all()
