"""Hostile modules: each is refused with an error of ours, or bounded and then attacked in vain.

Every network maps (B, 1, 4, 4) to (B, 4), is bounded as a traced encoder and as the trunk of a VAE,
and is attacked by random steps, corners, and ascents of every output.
"""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as f
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.overrides import TorchFunctionMode

import robustvae as rv
from robustvae import errors
from robustvae.certificates import lipschitz_bound
from robustvae.certificates.propagation import Relaxation, traced
from robustvae.models import create
from robustvae.models.sorts import GroupSort

SHAPE = (1, 4, 4)


class Net(nn.Module):
    """Two layers, and what a function makes of them."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run, self.one, self.two = run, nn.Linear(16, 8), nn.Linear(8, 4)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.scale = nn.Parameter(torch.ones(8))
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    def forward(self, x):
        return self.run(self, x)


def net(run, **layers):
    return Net(run, **layers).double().eval()


def dense(*layers):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), *layers, nn.Linear(8, 4)).double().eval()


def images(*layers, features=64):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 4)).double().eval()


def subclass(kind, *arguments, factor=1000.0, **options):
    """A layer of a class that multiplies what its base computes."""
    mine = type("Mine", (kind,), {"forward": lambda layer, x: factor * kind.forward(layer, x)})
    return mine(*arguments, **options).double()


def touched(network, touch, k=1):
    touch(network[k])
    return network


def with_weights(network, change):
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                change(layer)
    return network


def chain(*factors):
    """Sigmoids, or rectifiers, between layers whose scales nearly cancel."""
    layers = []
    for factor in factors:
        layers += [nn.Linear(8, 8), nn.Sigmoid() if abs(factor) < 1 else nn.ReLU()]
    network = dense(*layers)
    with torch.no_grad():
        for k, factor in enumerate(factors):
            network[2 + 2 * k].weight.mul_(factor)
    return network


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


def hidden_gain(layer, x):
    """Of a `Net`: the first calls are tame, the later ones are not."""
    layer.calls += 1
    return layer.two(layer.one(x.flatten(1))) * (1.0 if layer.calls < 6 else 100.0)


def counted(layer, x):
    layer.seen += 1
    return layer.two(layer.one(x.flatten(1)))


def branching(layer, x):
    h = layer.one(x.flatten(1))
    return layer.two(h) if h.sum() > 0 else 100 * layer.two(h)


def graded(layer, x):
    h = layer.two(layer.one(x.flatten(1)))
    return 100 * h if torch.is_grad_enabled() else h


def typed(layer, x):
    h = layer.two(layer.one(x.flatten(1)))
    return 100 * h if x.dtype == torch.float32 else h


def autocast(layer, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return layer.two(layer.one(x.flatten(1))).to(x.dtype)


def overwritten(layer, x):
    h = layer.one(x.flatten(1))
    g = layer.act(h)
    return layer.two(g + h)


def assigned(layer, x):
    h = layer.one(x.flatten(1))
    h[:, 0] = 0
    return layer.two(h)


def added(layer, x):
    h = layer.one(x.flatten(1))
    k = h
    h += torch.relu(h)
    return layer.two(k)


def branch(layer, x):
    h = layer.act(layer.one(x.flatten(1)))
    return layer.two(torch.cat([h[:, :4], h[:, 4:] - 2 * h[:, :4]], 1) + h)


class Called(nn.Linear):
    """Its call is its own; its forward is not."""

    def __call__(self, x):
        return 100 * super().__call__(x)


class Answering(nn.Linear):
    """Attributes that are looked up in vain are made up."""

    def __getattr__(self, name):
        return 9.0 * super().__getattr__(name) if name == "weight" else super().__getattr__(name)


class Loud(torch.Tensor):
    """A tensor of which every linear map is a hundred times what it says."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        return 100 * result if func is f.linear else result


def tied(layer, x):
    """One matrix forwards and, transposed, backwards."""
    h = torch.relu(layer.one(x.flatten(1)))
    return layer.two(f.linear(h @ layer.one.weight, layer.one.weight))


def frozen_layer(change):
    network = dense(nn.ReLU())
    change(network[1])
    return network


def loud_weights(layer):
    loud = layer.weight.detach().clone().as_subclass(Loud)
    layer.weight = nn.Parameter(loud)


def tensor_in_place_of_parameter(layer, kind=torch.Tensor):
    weight = 3 * layer.weight.detach().as_subclass(kind)
    del layer.weight
    layer.weight = weight


def lazy():
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(4)).double()
    network(torch.zeros(1, *SHAPE, dtype=torch.float64))
    return network.eval()


def never_called_lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(4)).eval()


def norm_without(**options):
    norm = nn.BatchNorm1d(8, **options).double()
    for k in range(3):
        norm(torch.randn(16, 8, generator=rv.generator(k), dtype=torch.float64) * 3 + 1)
    return dense(nn.ReLU(), norm.eval())


def tiny_variance():
    norm = nn.BatchNorm1d(8, eps=1e-12).double().eval()
    norm.running_var.fill_(1e-20)
    return dense(norm)


def half_weights(kind):
    network = dense(nn.ReLU())
    network[1].to(kind)
    return network


def mixed(layer, x):
    return layer.two(layer.one(x.flatten(1)).to(torch.bfloat16).to(x.dtype))


def through_complex(layer, x):
    h = torch.fft.fft(layer.one(x.flatten(1)))
    return layer.two(h.real)


def through_numpy(layer, x):
    h = layer.one(x.flatten(1)).detach().numpy() * 3
    return layer.two(torch.from_numpy(h))


def through_eval(layer, x):
    """Only in training it is what it seems."""
    h = layer.one(x.flatten(1))
    return layer.two(h if layer.training else 50 * torch.relu(h))


def in_chunks(layer, x):
    return torch.cat([layer.two(layer.one(part.flatten(1))) for part in x.split(1)])


def by_exception(layer, x):
    try:
        return layer.two(layer.one(x))
    except RuntimeError:
        return 20 * layer.two(layer.one(x.flatten(1)))


def checkpointed(layer, x):
    from torch.utils.checkpoint import checkpoint

    return layer.two(checkpoint(lambda y: 30 * layer.one(y.flatten(1)), x, use_reentrant=False))


def exchanged_kernel():
    """A kernel of another size than the layer states, which runs all the same."""
    network = images(nn.Conv2d(1, 4, 3, padding=1))
    network[0].weight = nn.Parameter(torch.randn(4, 1, 5, 5).double())
    network[0].padding = (2, 2)
    return network


def sparse_weights(layer):
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse())


HOSTILE = {
    "exchanged kernel": exchanged_kernel,
    "sparse weights": lambda: frozen_layer(sparse_weights),
    "call of its own": lambda: dense(Called(8, 8).double()),
    "attributes of its own": lambda: dense(Answering(8, 8).double()),
    "weights of a loud class": lambda: frozen_layer(loud_weights),
    "tensor in place of a parameter": lambda: frozen_layer(tensor_in_place_of_parameter),
    "loud tensor in place of a parameter": lambda: frozen_layer(
        lambda layer: tensor_in_place_of_parameter(layer, Loud)
    ),
    "tied weights": lambda: net(tied),
    "lazy, called": lazy,
    "lazy, not called": never_called_lazy,
    "batch norm, not affine": lambda: norm_without(affine=False),
    "batch norm, momentum None": lambda: norm_without(momentum=None),
    "batch norm, no variance": tiny_variance,
    "instance norm": lambda: images(nn.InstanceNorm2d(1), nn.Conv2d(1, 4, 3, padding=1)),
    "half weights": lambda: half_weights(torch.float16),
    "bfloat16 weights": lambda: half_weights(torch.bfloat16),
    "bfloat16 between": lambda: net(mixed),
    "complex between": lambda: net(through_complex),
    "numpy between": lambda: net(through_numpy),
    "other in evaluation": lambda: net(through_eval),
    "rows one by one": lambda: net(in_chunks),
    "by an exception": lambda: net(by_exception),
    "checkpointed": lambda: net(checkpointed),
    "feature dropout": lambda: dense(nn.FeatureAlphaDropout(0.5)).train(),
    "random rectifier": lambda: dense(nn.RReLU()).train(),
    "random rectifier at rest": lambda: dense(nn.RReLU()),
    "hard shrink": lambda: dense(nn.Hardshrink()),
    "threshold": lambda: dense(nn.Threshold(0.1, 20.0)),
    "log softmax": lambda: dense(nn.LogSoftmax(1)),
    "gated units": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.GLU(1), nn.Linear(4, 4)
    ).double(),
    "bilinear": lambda: net(
        lambda n, x: n.two(n.pair(n.one(x.flatten(1)), n.one(x.flatten(1)))),
        pair=nn.Bilinear(8, 8, 8),
    ),
    "recurrent": lambda: net(
        lambda n, x: n.two(n.cell(n.one(x.flatten(1)))[0]), cell=nn.LSTMCell(8, 8)
    ),
    "attention": lambda: net(
        lambda n, x: n.two(n.look(*[n.one(x.flatten(1))[:, None]] * 3)[0][:, 0]),
        look=nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    "strided and grouped transpose": lambda: images(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(4, 4, 3, stride=3, padding=2, output_padding=2, groups=2, dilation=2),
        nn.AdaptiveAvgPool2d(4),
    ),
    "adaptive pooling, uneven": lambda: images(
        nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveMaxPool2d(3), features=36
    ),
    "ceiled pooling": lambda: images(
        nn.AvgPool2d(3, stride=2, ceil_mode=True, count_include_pad=False), features=4
    ),
    "dilated pooling": lambda: images(nn.MaxPool2d(2, stride=1, dilation=2), features=4),
    "replicating padding": lambda: images(nn.Conv2d(1, 4, 3, padding=1, padding_mode="replicate")),
    "no bias, one channel each": lambda: images(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, groups=4)
    ),
    "subclassed linear": lambda: dense(subclass(nn.Linear, 8, 8)),
    "subclassed convolution": lambda: images(subclass(nn.Conv2d, 1, 4, 3, padding=1)),
    "subclassed transposed": lambda: images(subclass(nn.ConvTranspose2d, 1, 4, 1)),
    "subclassed relu": lambda: dense(subclass(nn.ReLU)),
    "subclassed sigmoid": lambda: dense(subclass(nn.Sigmoid)),
    "subclassed batch norm": lambda: dense(subclass(nn.BatchNorm1d, 8).eval()),
    "subclassed group norm": lambda: dense(subclass(nn.GroupNorm, 2, 8)),
    "subclassed sort": lambda: dense(subclass(GroupSort)),
    "subclassed pooling": lambda: images(subclass(nn.MaxPool2d, 2), features=4),
    "subclassed flatten": lambda: nn.Sequential(subclass(nn.Flatten), nn.Linear(16, 4)).double(),
    "subclassed sequential": lambda: dense(
        type("Mine", (nn.Sequential,), {"forward": lambda s, x: 100 * x})()
    ),
    "forward hook": lambda: touched(
        dense(), lambda m: m.register_forward_hook(lambda *a: 100 * a[-1])
    ),
    "forward pre-hook": lambda: touched(
        dense(), lambda m: m.register_forward_pre_hook(lambda _, a: (100 * a[0],))
    ),
    "backward hook": lambda: touched(
        dense(), lambda m: m.register_full_backward_hook(lambda *_: None)
    ),
    "hook on the whole": lambda: (lambda n: n.register_forward_hook(lambda *a: 100 * a[-1]) and n)(
        dense()
    ),
    "replaced forward": lambda: touched(dense(), lambda m: setattr(m, "forward", lambda x: 9 * x)),
    "replaced inner method": lambda: touched(
        images(nn.Conv2d(1, 4, 3, padding=1)),
        lambda m: setattr(m, "_conv_forward", lambda x, w, b: f.conv2d(9 * x, w, b, padding=1)),
        0,
    ),
    "weight norm": lambda: touched(dense(), parametrizations.weight_norm),
    "spectral norm": lambda: touched(dense(), parametrizations.spectral_norm),
    "spectral norm by a hook": lambda: touched(dense(), old_spectral_norm),
    "parametrization": lambda: touched(
        dense(), lambda m: parametrize.register_parametrization(m, "weight", Twice())
    ),
    "in place on the input": lambda: nn.Sequential(
        nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 4)
    ).double(),
    "in place on a view": lambda: nn.Sequential(
        nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(16, 4)
    ).double(),
    "in place, read again": lambda: net(overwritten, act=nn.ReLU(inplace=True)),
    "in place, read once": lambda: dense(nn.ReLU(inplace=True)),
    "item assignment": lambda: net(assigned),
    "added in place": lambda: net(added),
    "data-dependent branch": lambda: net(branching),
    "data-dependent gate": lambda: net(lambda n, x: n.two(n.one(x.flatten(1)) * (x.sum() > 0))),
    "gradient-dependent": lambda: net(graded),
    "type-dependent": lambda: net(typed),
    "state in Python": lambda: net(hidden_gain),
    "state in a buffer": lambda: net(counted),
    "batch norm in training": lambda: dense(nn.BatchNorm1d(8)).train(),
    "dropout in training": lambda: dense(nn.Dropout(0.5)).train(),
    "functional dropout": lambda: net(
        lambda n, x: n.two(f.dropout(n.one(x.flatten(1)), 0.5, training=True))
    ),
    "batch norm of the batch": lambda: dense(nn.BatchNorm1d(8, track_running_stats=False)),
    "mean over the batch": lambda: net(lambda n, x: n.two(n.one(x.flatten(1) - x.mean(0).sum()))),
    "rows exchanged": lambda: net(lambda n, x: n.two(n.one(x.flatten(1).flip(0)))),
    "batch in the features": lambda: net(lambda n, x: n.two(n.one(x.reshape(16, -1).T))),
    "drawn noise": lambda: net(
        lambda n, x: n.two(n.one(x.flatten(1)) + torch.rand(1, dtype=x.dtype))
    ),
    "autocast inside": lambda: net(autocast),
    "half precision inside": lambda: net(
        lambda n, x: n.two(n.one(x.flatten(1)).half().to(x.dtype))
    ),
    "rounding": lambda: net(lambda n, x: n.two(torch.round(n.one(x.flatten(1))))),
    "sign": lambda: net(lambda n, x: n.two(torch.sign(n.one(x.flatten(1))))),
    "product of features": lambda: net(lambda n, x: n.two(n.one(x.flatten(1)) ** 2)),
    "product with a parameter": lambda: net(lambda n, x: n.two(n.scale * n.one(x.flatten(1)))),
    "softmax": lambda: dense(nn.Softmax(1)),
    "circular padding": lambda: images(
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"),
    ),
    "reflecting padding": lambda: images(nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")),
    "even kernel, same padding": lambda: images(nn.Conv2d(1, 4, 2, padding="same")),
    "dilated and grouped": lambda: images(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2),
    ),
    "transposed, output padding": lambda: images(
        nn.ConvTranspose2d(1, 2, 3, stride=2, padding=1, output_padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        features=32,
    ),
    "padding before": lambda: images(nn.CircularPad2d(1), nn.Conv2d(1, 4, 3), nn.SiLU()),
    "NaN weights": lambda: with_weights(dense(), lambda m: m.weight.view(-1)[:1].fill_(torch.nan)),
    "infinite weights": lambda: with_weights(dense(), lambda m: m.bias.view(-1)[:1].fill_(1e400)),
    "huge weights": lambda: with_weights(dense(nn.ReLU()), lambda m: m.weight.mul_(1e150)),
    "tiny weights": lambda: with_weights(dense(nn.ReLU()), lambda m: m.weight.mul_(1e-160)),
    "denormal weights": lambda: with_weights(dense(nn.Tanh()), lambda m: m.weight.mul_(1e-310)),
    "saturated sigmoid": lambda: with_weights(
        dense(nn.Sigmoid(), nn.Linear(8, 8)), lambda m: m.bias.sub_(30)
    ),
    "saturated tanh": lambda: with_weights(dense(nn.Tanh()), lambda m: m.bias.add_(25)),
    "saturated gelu": lambda: with_weights(dense(nn.GELU()), lambda m: m.bias.sub_(12)),
    "saturated silu": lambda: with_weights(dense(nn.SiLU()), lambda m: m.bias.sub_(40)),
    "chain of 40 e-folds": lambda: chain(2.3e17, 4.2e-18, 2.3e17, 4.2e-18),
    "chain of 30 decades": lambda: chain(1e30, 1e-30, 1e30, 1e-30),
    "layer norm": lambda: dense(nn.LayerNorm(8)),
    "layer norm of little": lambda: with_weights(
        dense(nn.LayerNorm(8, eps=1e-12)), lambda m: m.weight.mul_(1e-6)
    ),
    "group norm, tiny eps": lambda: dense(nn.GroupNorm(4, 8, eps=1e-30)),
    "jumping softplus": lambda: dense(nn.Softplus(1.0, 0.1)),
    "steep leaky relu": lambda: dense(nn.LeakyReLU(-30.0)),
    "falling elu": lambda: dense(nn.ELU(-2.0)),
    "pooling with ties": lambda: images(
        nn.ReLU(), nn.MaxPool2d(3, stride=1, padding=1), nn.MaxPool2d(2), features=4
    ),
    "branches": lambda: net(branch, act=nn.SiLU()),
    "detached": lambda: net(lambda n, x: n.two(n.one(x.flatten(1)).detach())),
    "one layer twice": lambda: net(
        lambda n, x: n.two(n.act(n.act(n.one(x.flatten(1))))), act=nn.GELU()
    ),
    "bicubic": lambda: images(nn.Upsample(scale_factor=2, mode="bicubic")),
}

BOUNDED = {
    "lazy, called",
    "batch norm, not affine",
    "batch norm, momentum None",
    "batch norm, no variance",
    "other in evaluation",
    "strided and grouped transpose",
    "ceiled pooling",
    "dilated pooling",
    "no bias, one channel each",
    "in place, read once",
    "dilated and grouped",
    "transposed, output padding",
    "padding before",
    "tiny weights",
    "denormal weights",
    "saturated sigmoid",
    "saturated tanh",
    "saturated gelu",
    "saturated silu",
    "chain of 40 e-folds",
    "chain of 30 decades",
    "layer norm",
    "layer norm of little",
    "group norm, tiny eps",
    "steep leaky relu",
    "falling elu",
    "pooling with ties",
    "branches",
    "one layer twice",
}
"""Those that must not be refused: they are what they seem."""


def attack(network, x, radius, bounds, constant, generator):
    """Fails if a step within the ball leaves the bounds, or exceeds the constant."""
    with torch.no_grad():
        clean = network(x.clone())
    length = bounds.length(torch.ones_like(clean))
    # what two float64 evaluations may differ by, far below anything that an attack is after
    lost = 1e-9 * (1 + clean.abs()) * (1 + bounds.value.abs())

    def judge(step):
        with torch.no_grad():
            moved = network((x + step).clone()) - clean
        assert (bounds.lower - lost <= moved).all() and (moved <= bounds.upper + lost).all()
        assert (moved.norm(dim=1) <= length + lost.norm(dim=1)).all()
        size = step.flatten(1).norm(dim=1)
        assert (moved.norm(dim=1) <= constant * size * (1 + 1e-9) + lost.norm(dim=1)).all()

    def project(step):
        return radius * step / step.flatten(1).norm(dim=1).clamp_min(1e-300)[:, None, None, None]

    for _ in range(20):
        judge(project(torch.randn(x.shape, generator=generator)))
    for output in range(clean.shape[1]):
        for sign in (1.0, -1.0):
            step = project(torch.randn(x.shape, generator=generator))
            for _ in range(4):
                step = step.detach().requires_grad_(True)
                value = sign * network((x + step).clone())[:, output].sum()
                if not value.requires_grad:
                    break
                (grad,) = torch.autograd.grad(value, step, allow_unused=True)
                grad = torch.zeros_like(step) if grad is None else grad.nan_to_num()
                step = project(step.detach() + 3 * project(grad + 1e-30))
                judge(step)


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_or_bounded(name, generator):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = HOSTILE[name]()
    x = torch.rand(2, *SHAPE, generator=generator)
    try:
        graph = traced(network, SHAPE)
        relaxation = Relaxation(graph, shape=SHAPE)
        constant = lipschitz_bound(graph, SHAPE)
    except errors.RobustVAEError as refusal:
        assert name not in BOUNDED, refusal
        return
    # these may go either way: a trace sees a subclass's forward; detached values keep their slopes
    either = {"detached", "huge weights", "subclassed sequential", "checkpointed"}
    assert name in BOUNDED | either
    for radius in (1e-3, 0.5):
        (bounds,) = relaxation.over(x, torch.full((2,), radius))
        attack(network, x, radius, bounds, constant, generator)
    # the same without a trace
    if type(network) is nn.Sequential and name in BOUNDED:
        (bounds,) = Relaxation(network, shape=SHAPE).over(x, torch.full((2,), 0.5))
        attack(network, x, 0.5, bounds, lipschitz_bound(network, SHAPE), generator)


def sampled(vae, x, step, r, centered, generator):
    """P(|Delta| <= r) at x + step by 400 draws, (B,); a certificate speaks of evaluation mode."""
    vae.eval()
    with torch.no_grad():
        center = vae.decode(vae.encode(x.clone()).mean).mean
        q, clean = vae.encode((x + step).clone()), vae.encode(x.clone())
        stddev = clean.stddev if centered else q.stddev
        noise = torch.randn(400, *q.mean.shape, generator=generator, dtype=x.dtype)
        z = q.mean + stddev * noise
        outputs = vae.decode(z.flatten(0, 1)).mean.unflatten(0, (400, len(x)))
        return ((outputs - center).flatten(2).norm(dim=2) <= r).double().mean(0)


@pytest.mark.parametrize("name", HOSTILE)
def test_certified_model_withstands(name, generator):
    """As the trunk of a VAE: no certificate, or none that an attack at 0.999 of it refutes."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        trunk = HOSTILE[name]()
        vae = create("vae", architecture="mlp", image_shape=SHAPE, latent=2, hidden=[4], stddev=0.2)
        vae = vae.double()
        vae.trunk = trunk
    x = torch.rand(2, *SHAPE, generator=generator).double()
    for methods in (["noncentral", "envelope", "trace_markov"], ["neyman_pearson"]):
        try:
            lower = rv.certify(
                vae,
                x,
                r=1.0,
                m=0.5,
                displacement="centered",
                methods=methods,
                draws=60,
                generator=rv.generator(0),
            )
        except errors.RobustVAEError:
            continue
        radius = lower.radius.clamp(max=1e6)
        for row in (radius > 0).nonzero()[:, 0].tolist():
            for _ in range(3):
                step = torch.randn(1, *SHAPE, generator=generator)
                step = 0.999 * radius[row] * step / step.norm()
                chance = sampled(vae, x[row : row + 1], step, 1.0, True, generator)
                # 400 draws have a standard deviation of at most 0.025
                assert (chance >= 0.5 - 0.1).all(), (name, methods)


class Doubling(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return 2 * result if func is f.linear else result


@pytest.mark.parametrize(
    "context",
    [lambda: torch.autocast("cpu"), Doubling],
    ids=["autocast", "function mode"],
)
def test_hostile_process_is_refused(context, generator):
    vae = create("vae", architecture="mlp", image_shape=SHAPE, latent=2, hidden=[4], stddev=0.2)
    x = torch.rand(1, *SHAPE, generator=generator)
    with context(), contextlib.suppress(errors.RobustVAEError):
        lower = rv.certify(vae, x, r=1.0, m=0.5, displacement="centered", generator=generator)
        assert (lower.radius == 0).all()


def test_set_is_large():
    assert len(HOSTILE) >= 112 and len(BOUNDED) >= 29
