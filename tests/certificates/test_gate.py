"""The gate: three false certificates of version 0.1, and every way in which a layer may lie."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from torch.overrides import TorchFunctionMode

import robustvae as rv
from robustvae import errors, gate
from robustvae.certificates import Add, lipschitz_bound, lipschitz_constants, tangent_reach
from robustvae.certificates.movement import Encoder
from robustvae.certificates.propagation import Relaxation, traced
from robustvae.models import create, wrap
from robustvae.norms import conv_norm_bound

SHAPE = (1, 4, 4)


class Loud(nn.Conv2d):
    """A convolution times a thousand, as weight standardization would be written."""

    def forward(self, x):
        return 1000 * super().forward(x)


def test_subclassed_layer_gets_no_certificate(generator):
    """False in 0.1: 0.614 "deterministic" where P(|Delta| <= r) is 0."""
    vae = create("vae", architecture="conv8", latent=3, stddev=0.1)
    loud = Loud(1, 16, 3, stride=2, padding=1)
    loud.load_state_dict(vae.trunk[0].state_dict())
    vae.trunk[0] = loud
    x = torch.rand(2, 1, 8, 8, generator=generator)
    lower = rv.certify(vae, x, r=1.5, m=0.5, displacement="centered", generator=generator)
    assert (lower.radius == 0).all() and any("Loud" in text for text in lower.assumptions)
    with pytest.raises(errors.UnsupportedError, match="Loud"):
        lipschitz_bound(nn.Sequential(Loud(1, 1, 3)), SHAPE)
    with pytest.raises(errors.UnsupportedError, match="Loud"):
        conv_norm_bound(Loud(1, 1, 3), (4, 4))


class Saturated(nn.Module):
    """A sigmoid far below 0, brought back to size; the mean has a linear way beside it."""

    def __init__(self, bias):
        super().__init__()
        self.narrow, self.wide, self.way = nn.Linear(4, 1), nn.Linear(1, 1), nn.Linear(4, 1)
        with torch.no_grad():
            for layer in (self.narrow, self.wide, self.way):
                layer.weight.zero_()
                layer.bias.zero_()
            self.narrow.weight.fill_(0.5)
            self.narrow.bias.fill_(bias)
            self.wide.weight.fill_(torch.tensor(-bias).exp())
            self.way.weight.fill_(-0.4)
        self.curve, self.flat = nn.Sigmoid(), nn.Flatten()

    def forward(self, x):
        h = self.flat(x)
        return self.wide(self.curve(self.narrow(h))) + self.way(h), self.way(h) * 0 - 4.0


@pytest.mark.parametrize(("bias", "radius"), [(-40.0, 0.05), (-40.0, 1.0), (-36.0, 0.01)])
def test_saturated_sigmoid_is_bounded(bias, radius, generator):
    """False in 0.1: the remainder's bounds left out 0, which is its value at the center."""
    net = Saturated(bias).double()
    vae = wrap(
        encode=net,
        decode=nn.Sequential(nn.Linear(1, 4), nn.Unflatten(1, (1, 2, 2))).double(),
        latent=1,
        image_shape=(1, 2, 2),
        returns="mean_log_var",
    )
    x = torch.rand(3, 1, 2, 2, generator=generator)
    movement = Encoder(vae, spread=False).over(x, torch.full((3,), radius))
    length = movement.length(torch.ones(3, 1))
    assert (length <= 20 * radius).all()
    clean = net(x)[0]
    for sign in (1.0, -1.0):
        for part in torch.linspace(0, 1, 40):
            step = sign * part * radius / 2
            moved = (net(x + step)[0] - clean)[:, 0]
            rest = moved - movement.mean.slope[:, 0].sum(1) * step
            assert (movement.mean.low[:, 0] <= rest).all()
            assert (rest <= movement.mean.high[:, 0]).all()
            assert (moved.abs() <= length).all()
            assert (movement.mean.lower[:, 0] <= moved).all()
            assert (moved <= movement.mean.upper[:, 0]).all()


def small():
    return create("vae", architecture="mlp", image_shape=SHAPE, latent=2, hidden=[4], stddev=0.1)


def far_away(module, inputs, output):
    """Acts in a part of the ball only, where no probe looks."""
    if isinstance(module, nn.Linear) and output.abs().max() > 1e3:
        return output * 100
    return None


METHODS = (
    lambda vae, x, g: rv.certify(vae, x, r=1.0, m=0.5, displacement="centered", generator=g),
    lambda vae, x, g: rv.certify(
        vae,
        x,
        r=1.0,
        m=0.5,
        displacement="centered",
        methods=["neyman_pearson"],
        generator=g,
        draws=100,
    ),
)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_global_hook_stops_every_method(kind, method, generator):
    """False in 0.1: 1.056 where the mean moved by 6.2."""
    vae, x = small(), torch.rand(2, *SHAPE, generator=generator)
    assert (method(vae, x, generator).radius > 0).any()
    register = getattr(torch.nn.modules.module, f"register_module_{kind}_hook")
    handle = register(far_away if kind == "forward" else lambda *_: None)
    try:
        lower = method(vae, x, generator)
        assert (lower.radius == 0).all() and any("global" in text for text in lower.assumptions)
        with pytest.raises(errors.UnsupportedError, match="global"):
            lipschitz_constants(vae)
        with pytest.raises(errors.UnsupportedError, match="global"):
            traced(vae.trunk, SHAPE)
        with pytest.raises(errors.UnsupportedError, match="global"):
            tangent_reach(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2), 1.0)
    finally:
        handle.remove()
    assert (method(vae, x, generator).radius > 0).any()


def hooked(layer):
    layer.register_forward_hook(lambda *_: None)


def pre_hooked(layer):
    layer.register_forward_pre_hook(lambda *_: None)


def backward_hooked(layer):
    layer.register_full_backward_hook(lambda *_: None)


def backward_pre_hooked(layer):
    layer.register_full_backward_pre_hook(lambda *_: None)


def replaced(layer):
    layer.forward = lambda x: x


def replaced_inside(layer):
    layer.extra_repr = lambda: ""


def called(layer):
    layer._call_impl = lambda x: x


def spectral(layer):
    parametrizations.spectral_norm(layer)


def weight(layer):
    parametrizations.weight_norm(layer)


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


def parametrized(layer):
    parametrize.register_parametrization(layer, "weight", Twice())


def compiled(layer):
    layer._compiled_call_impl = layer._call_impl


class Odd(torch.Tensor):
    """A tensor that may do anything with functions."""


def odd(layer):
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Odd))


TOUCHED = [
    hooked,
    pre_hooked,
    backward_hooked,
    backward_pre_hooked,
    replaced,
    replaced_inside,
    called,
    spectral,
    weight,
    parametrized,
    compiled,
    odd,
]


@pytest.mark.parametrize("touch", TOUCHED)
def test_touched_layer_is_refused_everywhere(touch):
    """Norms, constants, linear bounds, tangent and trace, through one gate."""
    layer = nn.Linear(4, 4).double()
    convolution = nn.Conv2d(1, 1, 3).double()
    for part in (layer, convolution):
        touch(part)
    for ask in (
        lambda: gate.admit(layer),
        lambda: lipschitz_bound(layer),
        lambda: Relaxation(layer, shape=(4,)),
        lambda: tangent_reach(nn.Sequential(layer), torch.zeros(1, 4), 1.0),
        lambda: traced(nn.Sequential(layer), (4,)),
        lambda: conv_norm_bound(convolution, (2, 2)),
        lambda: Relaxation(convolution, shape=SHAPE),
    ):
        with pytest.raises(errors.UnsupportedError):
            ask()


@pytest.mark.parametrize("touch", [hooked, pre_hooked, replaced])
def test_touched_container_is_refused(touch):
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4))).double()
    touch(net[0])
    with pytest.raises(errors.UnsupportedError):
        lipschitz_bound(net)
    with pytest.raises(errors.UnsupportedError):
        Relaxation(net, shape=(4,))
    with pytest.raises(errors.UnsupportedError):
        traced(net, (4,))


def test_replaced_class_is_refused(monkeypatch):
    layer, right = nn.ReLU(), nn.ReLU.forward
    gate.admit(layer)
    monkeypatch.setattr(nn.ReLU, "forward", lambda layer, x: right(layer, 2 * x))
    with pytest.raises(errors.UnsupportedError, match="replaced"):
        gate.admit(layer)
    monkeypatch.setattr(nn.ReLU, "forward", right)
    monkeypatch.setattr(nn.Module, "__call__", lambda layer, x: 2 * layer.forward(x))
    with pytest.raises(errors.UnsupportedError, match="__call__"):
        gate.admit(layer)


def test_modes_and_autocast_are_refused():
    class Doubling(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Doubling(), pytest.raises(errors.UnsupportedError, match="Doubling"):
        gate.admit(nn.ReLU())
    with torch.autocast("cpu"), pytest.raises(errors.UnsupportedError, match="autocast"):
        gate.admit(nn.ReLU())
    with torch.device("cpu"):
        gate.admit(nn.ReLU())


@pytest.mark.parametrize("layer", [nn.Dropout(), nn.BatchNorm1d(4)])
def test_training_mode_is_refused(layer):
    with pytest.raises(errors.UnsupportedError, match="evaluation"):
        Relaxation(layer.train(), shape=(4,))
    Relaxation(layer.eval(), shape=(4,))


@pytest.mark.parametrize(
    "layer",
    [
        type("Mine", (kind,), {})(*arguments)
        for kind, *arguments in (
            (nn.Linear, 4, 4),
            (nn.ReLU,),
            (nn.Sigmoid,),
            (nn.BatchNorm1d, 4),
            (nn.Identity,),
            (nn.Flatten,),
            (nn.Sequential,),
            (nn.GroupNorm, 2, 4),
            (nn.Softplus,),
        )
    ],
    ids=lambda layer: type(layer).__bases__[0].__name__,
)
def test_subclass_of_any_layer_is_refused(layer):
    layer = layer.eval()
    with pytest.raises(errors.UnsupportedError, match="Mine"):
        lipschitz_bound(layer, (4,))
    with pytest.raises(errors.UnsupportedError, match="Mine"):
        Relaxation(layer, shape=(4,))


def test_model_of_ones_own_is_refused(generator):
    kind = type(small())
    mine = type("Mine", (kind,), {"encode": lambda vae, x: kind.encode(vae, 10 * x)})
    vae = small()
    vae.__class__ = mine
    x = torch.rand(2, *SHAPE, generator=generator)
    for method in METHODS:
        assert (method(vae, x, generator).radius == 0).all()
    vae = small()
    vae.encode = lambda x: kind.encode(vae, 10 * x)
    for method in METHODS:
        assert (method(vae, x, generator).radius == 0).all()


def test_norms_use_float64_angles(generator):
    """In 0.1, 77 of 300 random convolutions had a bound below the norm it stands for."""
    for _ in range(60):
        size = int(torch.randint(3, 9, (), generator=generator))
        layer = nn.Conv2d(2, 2, 3, padding=1, bias=False).double().requires_grad_(False)
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        spectrum = torch.fft.fft2(layer.weight, (size + 2, size + 2))
        exact = torch.linalg.matrix_norm(spectrum.permute(2, 3, 0, 1), 2).max()
        assert exact <= conv_norm_bound(layer, (size, size)) <= exact * (1 + 1e-9)


def test_long_row_convolution_norm():
    """On 60,000 features an angle in float32 lost 1e-8."""
    layer = nn.Conv1d(1, 1, 3, padding=1, bias=False).double().requires_grad_(False)
    layer.weight.copy_(torch.tensor([[[1.0, -2.0, 1.0]]]))
    wave = (torch.arange(60_000) % 2 * 2.0 - 1)[None, None]
    gain = layer(wave)[..., 1:-1].norm() / wave.norm()
    assert gain <= conv_norm_bound(layer, (60_000,)) <= 4 * (1 + 1e-9)


def beyond(right, factor=100.0):
    """The right function but for large values, where no probe looks."""
    return lambda *a, **k: (lambda y: torch.where(y.abs() > 5, factor * y, y))(right(*a, **k))


# what runs under a layer: a method of its class, or a function of torch that these name
REPLACED = {
    "inner method": (nn.Conv2d, "_conv_forward"),
    "call of the class": (nn.Linear, "__call__"),
    "attributes of the class": (nn.Linear, "__getattr__"),
    "attributes of all modules": (nn.Module, "__getattr__"),
    "layers of a sequence": (nn.Sequential, "forward"),
    "function": (functional, "linear"),
    "activation": (functional, "relu"),
    "function under a function": (torch, "relu"),
}


@pytest.mark.parametrize("name", REPLACED)
def test_replaced_under_a_layer_is_refused(name, monkeypatch):
    """False before: constants and linear bounds of what no longer ran."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).double()
    owner, attribute = REPLACED[name]
    assert lipschitz_bound(network, SHAPE) > 0
    monkeypatch.setattr(owner, attribute, beyond(getattr(owner, attribute)))
    for bound in (
        lambda: lipschitz_bound(network, SHAPE),
        lambda: Relaxation(network, shape=SHAPE),
        lambda: traced(network, SHAPE),
    ):
        with pytest.raises(
            errors.UnsupportedError, match=r"replaced|no bounds are known|cannot be traced"
        ):
            bound()
    monkeypatch.undo()
    assert lipschitz_bound(network, SHAPE) > 0


def test_unnamed_functions_may_be_replaced(monkeypatch):
    """Attention is often replaced by a faster one; nothing that is bounded calls it."""
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda *a: a[0])
    monkeypatch.setattr(nn.Linear, "a_helper", lambda layer: 1, raising=False)
    assert lipschitz_bound(nn.Linear(2, 2)) > 0


class Loaded(dict):
    """May hold more where gradients are wanted: certified before, and another network."""


@pytest.mark.parametrize("name", ["_modules", "_parameters", "_buffers", "_forward_hooks"])
def test_containers_of_other_classes_refused(name):
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    layer = network if name == "_modules" else network[0]
    setattr(layer, name, Loaded(getattr(layer, name)))
    with pytest.raises(errors.UnsupportedError, match="containers"):
        lipschitz_bound(network, (2,))


class Liar(float):
    """Two numbers: 100 where torch computes, 0.01 where it is read."""

    def __float__(self):
        return 0.01


@pytest.mark.parametrize("option", [Liar(100.0), (Liar(1.0),)])
def test_options_of_other_classes_refused(option):
    """False before: bounds of 0.005 for what moved by 40."""
    layer = nn.LeakyReLU(0.01)
    layer.negative_slope = option
    for bound in (lambda: lipschitz_bound(layer, (2,)), lambda: Relaxation(layer, shape=(2,))):
        with pytest.raises(errors.UnsupportedError, match="plain numbers"):
            bound()


class Shorter(nn.ModuleList):
    """Fewer branches where no gradients are wanted."""

    def __iter__(self):
        parts = list(super().__iter__())
        return iter(parts if torch.is_grad_enabled() else parts[:1])


def test_list_of_another_class_refused():
    """False before: 1 for what grew by 101."""
    network = Add(nn.Identity(), nn.Linear(2, 2))
    assert lipschitz_bound(network, (2,)) > 1
    network.branches = Shorter(network.branches)
    for bound in (lambda: lipschitz_bound(network, (2,)), lambda: Relaxation(network, shape=(2,))):
        with pytest.raises(errors.UnsupportedError, match="Shorter"):
            bound()


REPLACED_EARLY = """
import torch, robustvae as rv
from torch import nn
from torch.nn import functional
right = {owner}.{name}
{owner}.{name} = lambda *a, **k: right(*a, **k)
from robustvae import errors
from robustvae.certificates import lipschitz_bound
try:
    lipschitz_bound(nn.Linear(2, 2), (2,))
except errors.UnsupportedError as refusal:
    print(refusal)
"""


@pytest.mark.parametrize(("owner", "name"), [("nn.Linear", "forward"), ("functional", "linear")])
def test_replaced_before_first_bound_refused(owner, name):
    """False before: remembered as torch's own, 0.04 where nothing stayed within r."""
    code = REPLACED_EARLY.format(owner=owner, name=name)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert name in run.stdout and "replaced" in run.stdout and "restore" in run.stdout
