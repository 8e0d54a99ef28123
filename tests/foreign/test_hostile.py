"""Models that their readers take for something else: right, or one sentence that says what to say.

Each was once wrapped without a word and judged as another model, or ended in a raw error.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import MultivariateNormal, OneHotCategorical
from torch.utils.checkpoint import checkpoint

import robustvae as rv
from robustvae.errors import ModelError, ShapeError, UnsupportedError
from robustvae.models.adapters.reading import as_distribution
from robustvae.seeding import generator

SHAPE = {"image_shape": (1, 8, 8)}


def drawn(mean, log_var):
    return mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)


class Base(nn.Module):
    """Layers with names that tell nothing."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh())
        self.one, self.two = nn.Linear(16, 4), nn.Linear(16, 4)
        self.last = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 64), nn.Sigmoid())

    def code(self, x):
        h = self.trunk(x)
        return 3 * self.one(h), self.two(h) - 3

    def image(self, z):
        return self.last(z).view(-1, 1, 8, 8)


class Pair(Base):
    def encode(self, x):
        return self.code(x)

    def decode(self, z):
        return self.image(z)

    def forward(self, x):
        mean, log_var = self.encode(x)
        return self.decode(drawn(mean, log_var)), mean, log_var


class SkipOptional(Pair):
    """Forward hands features past the code, which the decoder can do without."""

    def decode(self, z, features=None):
        image = self.image(z)
        return image if features is None else image + features.mean(1).view(-1, 1, 1, 1)

    def forward(self, x):
        mean, log_var = self.encode(x)
        return self.decode(drawn(mean, log_var), self.trunk(x)), mean, log_var


class ResidualOutput(Pair):
    def forward(self, x):
        return x + self.decode(self.encode(x)[0]) - 0.5


class Flows(Pair):
    """Steps in a list between encoder and decoder, which no name gives away."""

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x):
        mean, log_var = self.encode(x)
        z = drawn(mean, log_var)
        for step in self.steps:
            z = z + torch.tanh(step(z)) + 1
        return self.decode(z), mean, log_var


class Gumbel(Pair):
    def encode(self, x):
        return self.code(x)[0]

    def forward(self, x):
        return self.decode(F.gumbel_softmax(self.encode(x), hard=True))


class Choice(Pair):
    def encode(self, x):
        return OneHotCategorical(logits=self.code(x)[0])

    def forward(self, x):
        return self.decode(self.encode(x).sample())


def made(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


def images(rows=4, dtype=None):
    return torch.rand(rows, 1, 8, 8, generator=rv.generator(3), dtype=dtype)


def test_flows_are_part_of_the_decoder():
    """The code is what is drawn, before the steps; their prior is not that of the code."""
    model = made(Flows)
    vae = rv.wrap(model, **SHAPE)
    z = expected = torch.randn(3, 4, generator=rv.generator(1))
    with torch.no_grad():
        for step in model.steps:
            expected = expected + torch.tanh(step(expected)) + 1
        torch.testing.assert_close(vae.decode(z).mean, model.image(expected))
    with pytest.raises(UnsupportedError, match="prior of the code is not known"):
        vae.prior().log_prob(z)


@pytest.mark.parametrize("kind", [SkipOptional, ResidualOutput, Gumbel, Choice])
def test_what_forward_adds_is_kept(kind):
    vae = rv.wrap(made(kind), **SHAPE)
    assert vae.output_only and "black box" in vae.recognized


class Inverse(Pair):
    """Forward reads what is not the input; the parts alone would be another model."""

    def forward(self, x):
        return super().forward(1 - x)


class LossFirst(Base):
    """A loss, and mean and log-variance as a pair inside the output."""

    def forward(self, x):
        mean, log_var = self.code(x)
        image = self.image(drawn(mean, log_var))
        return (image - 0.5).square().mean(), image, (mean, log_var)


class TwoModels(nn.Module):
    """The first of two equal models is idle."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Pair(), Pair()

    def code(self, x):
        return self.second.code(x)

    def image(self, z):
        return self.second.image(z)

    def forward(self, x):
        return self.second(x)


class Mixed(Base):
    """An encoder under autocast and a decoder that is not."""

    def encode(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.code(x)

    def decode(self, z):
        return self.image(z)


@pytest.mark.parametrize("kind", [Pair, Inverse, LossFirst, TwoModels, Mixed])
def test_parts_of_the_model_are_found(kind):
    model = made(kind).float()
    vae, x = rv.wrap(model, **SHAPE), images(dtype=torch.float32)
    mean, log_var = (
        model.encode(x) if kind is Mixed else model.code(1 - x if kind is Inverse else x)
    )
    code = vae.encode(x)
    torch.testing.assert_close(code.mean, mean.float())
    torch.testing.assert_close(code.stddev, torch.exp(0.5 * log_var.float()), rtol=0.3, atol=0.02)
    torch.testing.assert_close(vae.decode(code.mean).mean, model.image(mean.float()))


class Counter(Pair):
    """Changes with every call, by no random state."""

    calls = 0

    def encode(self, x):
        self.calls += 1
        mean, log_var = self.code(x)
        return mean + 0.01 * self.calls, log_var


class BatchStatistics(Pair):
    def __init__(self):
        super().__init__()
        self.trunk.append(nn.BatchNorm1d(16, track_running_stats=False))


class Reentrant(Pair):
    def encode(self, x):
        h = checkpoint(self.trunk, x, use_reentrant=True)
        return 3 * self.one(h), self.two(h) - 3


FAULTS = {
    Counter: ("encode_repeats", "two calls differ"),
    BatchStatistics: ("batch_independent", "one alone raises"),
    Reentrant: ("gradient_matches_differences", "use_reentrant"),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("kind", FAULTS)
def test_diagnosis_names_the_fault(kind):
    vae = rv.wrap(made(kind), **SHAPE)
    assert not vae.output_only
    diagnosis = rv.check(vae, images())
    name, words = FAULTS[kind]
    (item,) = [item for item in diagnosis.items if item.name == name]
    assert item.passed is False and words in f"{item.message} {item.remedy}"
    assert not diagnosis.passed


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_backward_errors_are_named():
    attack = rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(steps=1), rv.Ball("l2", 0.5))
    with pytest.raises(ModelError, match="gradient of the wrapped model raised") as caught:
        attack(rv.Victim(rv.wrap(made(Reentrant), **SHAPE)), images(), generator=generator(0))
    assert isinstance(caught.value.__cause__, RuntimeError)


class LastChannels(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(192, 4), nn.Linear(4, 192)

    def encode(self, x):
        if x.shape[-1] != 3:
            raise ValueError("three channels wanted")
        return self.encoder(x.flatten(1))

    def decode(self, z):
        return torch.sigmoid(self.decoder(z)).view(-1, 8, 8, 3)

    def forward(self, x):
        return self.decode(self.encode(x))


class Bytes(Base):
    def forward(self, x):
        if x.dtype != torch.uint8:
            raise TypeError("bytes wanted")
        return self.image(self.code(x / 255.0)[0])


class Labels(Base):
    def forward(self, x, y):
        return self.image(self.code(x)[0] + y)


class BatchSecond(Base):
    def encode(self, x):
        return tuple(part[None] for part in self.code(x))

    def decode(self, z):
        return self.image(z[0])


def lazy():
    return nn.Sequential(
        nn.Flatten(), nn.LazyLinear(4), nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8))
    )


REFUSALS = {
    LastChannels: "channels last: give wrap",
    Bytes: "output_only=True",
    Labels: "reads y beside the input: fix them, and give wrap",
    BatchSecond: r"encode returns tuple of \(\(1, 5, 4\)",
    lazy: "lazy layer.*load the trained weights",
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals_say_what_to_say(kind):
    shape = (3, 8, 8) if kind is LastChannels else (1, 8, 8)
    with pytest.raises((ModelError, UnsupportedError), match=REFUSALS[kind]):
        rv.wrap(made(kind), image_shape=shape)
    if kind is lazy:
        return
    model, x = made(kind), images()
    if kind is Bytes:
        vae = rv.wrap(lambda x: model((255 * x).round().to(torch.uint8)), output_only=True, **SHAPE)
        assert vae.decode(vae.encode(x).mean).mean.shape == x.shape
    if kind is LastChannels:
        vae = rv.wrap(
            encode=lambda x: model.encode(x.movedim(1, -1)),
            decode=lambda z: model.decode(z).movedim(-1, 1),
            image_shape=shape,
            returns="mean",
        )
        x = x.repeat(1, 3, 1, 1)
        expected = model(x.movedim(1, -1)).movedim(-1, 1)
        torch.testing.assert_close(vae.decode(vae.encode(x).mean).mean, expected)


def test_weights_without_values_are_refused():
    with torch.device("meta"):
        model = Pair()
    with pytest.raises(ModelError, match="on the device meta"):
        rv.wrap(model, **SHAPE)
    with torch.inference_mode():
        model = Pair()
    with pytest.raises(ModelError, match=r"inside torch\.inference_mode"):
        rv.wrap(model, **SHAPE)


def test_single_logits_are_refused():
    victim = rv.Victim(rv.wrap(made(Pair), **SHAPE), classifier=lambda z: z.sum(1))
    attack = rv.Attack(rv.ClassifierFlip(), rv.ProjectedAscent(steps=1), rv.Ball("l2", 0.5))
    with pytest.raises(ShapeError, match=r"logits of shape \(4, K\), got \(4,\)"):
        attack(victim, images(), generator=generator(0))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripted_modules_are_wrapped():
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = nn.Linear(64, 8), nn.Linear(4, 64)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            code = self.enc(x.flatten(1))[:, :4]
            return torch.sigmoid(self.dec(code)).view(-1, 1, 8, 8), code

    model, x = torch.jit.script(Scripted()), images()
    vae = rv.wrap(model, **SHAPE)
    torch.testing.assert_close(vae.decode(vae.encode(x).mean).mean, model(x)[0])


def test_joint_densities_are_divided_evenly():
    mean = torch.zeros(3, 4)
    scale = torch.eye(4) + torch.tril(torch.full((4, 4), 0.3), -1)
    joint = MultivariateNormal(mean, scale_tril=scale)
    q, z = as_distribution(joint, (3, 4), "encode"), torch.randn(2, 3, 4)
    torch.testing.assert_close(q.log_prob(z).sum(-1), joint.log_prob(z))
    with pytest.raises(UnsupportedError, match="whose mean is never chosen"):
        as_distribution(OneHotCategorical(torch.ones(3, 4)), (3, 4), "encode")


class Two(Pair):
    """A rough image and a finer one."""

    def decode(self, z):
        image = self.image(z)
        return image, image.square()

    def forward(self, x):
        return self.decode(self.encode(x)[0])


def test_one_of_several_images_is_said():
    vae = rv.wrap(made(Two), **SHAPE)
    assert "others at 1; say reconstruction=" in vae.assumptions[0]
    x, other = images(), rv.wrap(made(Two), reconstruction=1, **SHAPE)
    one, two = (each.decode(each.encode(x).mean).mean for each in (vae, other))
    torch.testing.assert_close(one.square(), two)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_black_box", [False, True])
@pytest.mark.parametrize("goal", [rv.MaximumDamage(), rv.OutputTarget(images(2, torch.float32))])
def test_half_precision_is_searched_in_float32(dtype, is_black_box, goal):
    model = made(Two).to(dtype)
    before = copy.deepcopy(model.state_dict())
    vae, x = rv.wrap(model, output_only=is_black_box, **SHAPE), images(2, torch.float32)
    attack = rv.Attack(goal, rv.ProjectedAscent(steps=4, restarts=1), rv.Ball("l2", 0.02))
    result = attack(rv.Victim(vae), x, generator=generator(0))
    # steps of such a search in half precision are lost in its rounding
    assert result.status == ("ok", "ok") and result.x_adv.dtype == torch.float32
    # and the score is the deployed model's own
    again = attack.score(rv.Victim(vae), x, result.x_adv, generator=generator(0))
    torch.testing.assert_close(result.score, again, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
