"""Traces of users' modules: the graph is the module, and what is not known is refused by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional as f
from torch.testing import assert_close

import robustvae as rv
from robustvae import errors, gate
from robustvae.certificates import Add, Relaxation, lipschitz_bound
from robustvae.certificates.constants import check_computation
from robustvae.certificates.movement import Encoder
from robustvae.certificates.propagation import traced
from robustvae.certificates.propagation.graph import Affine, Graph, Part, Sum
from robustvae.models import Gaussian

SHAPE = (2, 4, 4)


class Module(nn.Module):
    """Two convolutions and a dense layer, put together by a function."""

    def __init__(self, run):
        super().__init__()
        self.run = run
        self.one = nn.Conv2d(2, 4, 3, padding=1)
        self.two = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Softplus())
        self.relu = nn.ReLU(inplace=True)
        self.act = nn.Mish()
        self.head = nn.Linear(64, 6)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.run(self, x)


def residual(net, x):
    h = net.relu(net.one((x - 0.5) / 0.25))
    h = h + 0.5 * net.two(h)
    return net.head(torch.flatten(h, 1)).chunk(2, dim=1)


def slices(net, x):
    h = net.head(f.leaky_relu(net.one(2 * x - 1), 0.2).view(x.size(0), -1))
    return h[:, :4], h[:, 4:]


def differences(net, x):
    h = f.softplus(net.one(x), beta=2.0)
    h -= 1 - torch.tanh(net.two(h))
    h = h.reshape(x.shape[0], 4, 4, 4).contiguous().sigmoid()
    return net.head(h.flatten(start_dim=1)).split([2, 4], dim=-1)


@pytest.mark.parametrize("run", [residual, slices, differences])
def test_graph_is_module_and_is_bounded(run, generator):
    net = Module(run).requires_grad_(False)
    graph = traced(net, SHAPE)
    x = torch.rand(3, *SHAPE, generator=generator)
    clean = net(x)
    for made, right in zip(graph(x), clean, strict=True):
        assert_close(made, right)
    radius = torch.tensor([0.0, 0.1, 1.0])
    found = Relaxation(graph, shape=SHAPE).over(x, radius)
    slopes = [lipschitz_bound(graph.only(end), SHAPE) for end in (0, 1)]
    for _ in range(60):
        step = torch.randn(x.shape, generator=generator)
        step = step * (radius / step.flatten(1).norm(dim=1))[:, None, None, None]
        for bound, slope, right, moved in zip(found, slopes, clean, net(x + step), strict=True):
            change = moved - right
            assert (bound.lower <= change).all() and (change <= bound.upper).all()
            assert (change.norm(dim=1) <= slope * radius * (1 + 1e-12)).all()


def test_a_method_of_a_module():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 3)

        def encode(self, x):
            return self.net(x).relu()

    model = Model()
    x = torch.randn(5, 2)
    assert_close(traced(model.encode, (2,))(x)[0], model.encode(x))


def branching(net, x):
    return net.one(x) if x.sum() > 0 else net.one(-x)


def in_place(net, x):
    h = net.one(x)
    return net.relu(h) + h


REFUSED = {
    "Mish": lambda net, x: net.act(x),
    "softmax": lambda net, x: torch.softmax(x, 1),
    "scale": lambda net, x: x * net.scale,
    "mul": lambda net, x: x * net.one(x)[:, :2],
    "control flow": branching,
    "read elsewhere": in_place,
    "other|must return": lambda net, x: (net.one(x), None),
    "one shape": lambda net, x: x + net.one(x)[:, :1],
    "several|getitem": lambda net, x: x[:, :, 1:],
    "randn_like": lambda net, x: x + torch.randn_like(x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_not_known_refused_by_name(name):
    with pytest.raises(errors.UnsupportedError, match=name):
        Relaxation(traced(Module(REFUSED[name]), SHAPE), shape=SHAPE)


def test_no_module_and_hooks_are_refused():
    with pytest.raises(errors.UnsupportedError, match="must be a module"):
        traced(lambda x: x, SHAPE)
    net = Module(residual)
    net.register_forward_hook(lambda *_: None)
    with pytest.raises(errors.UnsupportedError, match="hook"):
        traced(net, SHAPE)
    net = Module(residual)
    net.one.register_forward_hook(lambda *_: None)
    with pytest.raises(errors.UnsupportedError, match="hook"):
        Relaxation(traced(net, SHAPE), shape=SHAPE)


def test_constants_of_sums_add_up():
    three = Affine(3.0, 1.0)
    assert lipschitz_bound(Add(nn.Identity(), three)) == pytest.approx(4.0, rel=1e-9)
    assert lipschitz_bound(nn.Sequential(three, Add(three, three))) == pytest.approx(18.0, rel=1e-9)
    graph = Graph([three, Sum(), Part(0, 1)], [(0,), (0, 1), (2,)], (3,))
    assert lipschitz_bound(graph) == pytest.approx(4.0, rel=1e-9)


class Net(nn.Module):
    """A linear layer, then what a test makes of it."""

    def __init__(self, then, *layers):
        super().__init__()
        self.then, self.l, self.layers = then, nn.Linear(3, 3), nn.ModuleList(layers)

    def forward(self, x):
        return self.then(self, x)


def aliased(net, x):
    h = net.l(x)
    y = net.layers[0](h)
    return h + y


def viewed(net, x):
    h = net.l(x)
    return net.layers[0](h.view(-1, 3)) + net.l(x)


def iadd(net, x):
    k = h = net.l(x)
    h += torch.relu(x)
    return k + h


@pytest.mark.parametrize(
    "net",
    [
        lambda: Net(aliased, nn.ReLU(inplace=True)),
        lambda: Net(viewed, nn.LeakyReLU(inplace=True)),
        lambda: Net(iadd),
        lambda: Net(lambda net, x: f.relu(net.l(x), inplace=True)),
        lambda: Net(lambda net, x: f.relu(net.l(x), True)),
        lambda: Net(lambda net, x: net.l(x) * x.size(0)),
    ],
)
def test_what_may_overwrite_features_is_refused(net):
    """Even where the probe does not tell: its features are positive."""
    net = net().double()
    with torch.no_grad():
        net.l.weight.fill_(0.1)
        net.l.bias.fill_(1.0)
    with pytest.raises(errors.UnsupportedError):
        traced(net, (3,))


def test_forward_of_its_own_is_refused():
    net = nn.Sequential(nn.Linear(3, 3)).double()
    net[0].forward = lambda x: 100 * x.relu()
    with pytest.raises(errors.UnsupportedError, match="of its own"):
        traced(net, (3,))
    with pytest.raises(errors.UnsupportedError, match="of its own"):
        Relaxation(net, shape=(3,))
    with pytest.raises(errors.UnsupportedError, match="of its own"):
        lipschitz_bound(net, (3,))


def test_branches_sum_not_disturb_other():
    x = torch.tensor([-1.0, 2.0])
    total = Add(nn.Identity(), nn.ReLU(inplace=True))(x)
    assert total.tolist() == [-1.0, 4.0] and x.tolist() == [-1.0, 2.0]


def test_softplus_that_jumps_has_no_constant():
    assert lipschitz_bound(nn.Sequential(nn.Softplus())) <= 1 + 1e-9
    with pytest.raises(errors.UnsupportedError, match="jumps"):
        lipschitz_bound(nn.Sequential(nn.Softplus(1.0, 0.0)))


@pytest.mark.parametrize(("shift", "factor"), [(1.0, 1.0), (0.0, 2.0)])
def test_encoder_of_other_layers_raises(shift, factor, generator, monkeypatch):
    vae = rv.models.create("vae", latent=2, hidden=[4], image_shape=(1, 2, 2)).double()
    x, radius = torch.rand(2, 1, 2, 2, generator=generator), torch.full((2,), 0.01)
    Encoder(vae).over(x, radius)
    right = type(vae).encode
    wrong = lambda vae, x: Gaussian(right(vae, x).mean + shift, right(vae, x).stddev * factor)  # noqa: E731
    monkeypatch.setattr(type(vae), "encode", wrong)
    monkeypatch.setattr(gate, "is_known_model", lambda vae: True)
    with pytest.raises(errors.UnsupportedError, match="taken alone"):
        Encoder(vae).over(x, radius)
    with pytest.raises(errors.UnsupportedError, match="taken alone"):
        check_computation(vae, x, x)
