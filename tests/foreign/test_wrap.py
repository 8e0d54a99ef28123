"""`wrap` on functions, overrides, hostile modules, and what reaches the certificates."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import robustvae as rv
from robustvae.errors import ConfigError, ModelError, RobustVAEWarning, UnsupportedError


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(64, 20), nn.Linear(20, 4), nn.Linear(20, 4)
        self.fc3 = nn.Linear(4, 64)

    def encode(self, x):
        h = torch.relu(self.fc1(x))
        return self.fc21(h), self.fc22(h)

    def decode(self, z):
        return torch.sigmoid(self.fc3(z))


MODEL = Rows().double()


class Callable:
    def __init__(self, model):
        self.parts = {"model": [model]}

    def __call__(self, x):
        return self.parts["model"][0].encode(x.flatten(1))


def closure():
    model = Rows()
    return model, lambda x: model.encode(x.flatten(1))


def method():
    model = Rows()
    return model, model.encode


def partial():
    model = Rows()
    return model, functools.partial(lambda net, x: net.encode(x.flatten(1)), model)


def callable_object():
    model = Rows()
    return model, Callable(model)


def default_argument():
    model = Rows()

    def encode(x, net=model):
        return net.encode(x.flatten(1))

    return model, encode


def of_globals():
    return MODEL, lambda x: MODEL.encode(x.flatten(1))


HIDING = [closure, method, partial, callable_object, default_argument, of_globals]


def wrapped(encode, model, **options):
    return rv.wrap(
        encode=encode,
        decode=lambda z: model.decode(z),
        latent=4,
        image_shape=(1, 8, 8),
        returns="mean_log_var",
        **options,
    )


@pytest.mark.parametrize("hide", HIDING)
def test_hidden_modules_are_found(hide):
    model, encode = hide()
    vae = wrapped(encode, model)
    assert any(part is model for part in vae.modules())
    assert not vae.unseen
    vae.eval()
    assert not model.training
    model.train()


@pytest.mark.parametrize("hide", [closure, partial, default_argument, of_globals, callable_object])
def test_copies_call_their_own_modules(hide, generator):
    model, encode = hide()
    vae = wrapped(encode, model)
    twin = copy.deepcopy(vae)
    x = torch.rand(2, 1, 8, 8, generator=generator)
    kept = vae.encode(x).mean
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(vae.encode(x).mean, kept)
    assert bool((twin.encode(x).mean == 0).all())


def test_bare_tensors_stand_in_unseen():
    weight = torch.ones(16, 2)
    vae = rv.wrap(
        encode=lambda x: x.flatten(1) @ weight,
        decode=lambda z: (z @ weight.mT).reshape(-1, 1, 4, 4),
        latent=2,
        image_shape=(1, 4, 4),
    )
    assert vae.unseen == ("the tensor weight",)


def test_deep_hiding_is_said_once():
    def nest(function, depth):
        return functools.partial(nest(function, depth - 1)) if depth else function

    class Deep:
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, x):
            return self.inner(x)

    encode = torch.flatten
    model = Rows()
    hidden = Deep(Deep(Deep(Deep(Deep(Deep(Deep(model.encode)))))))
    with pytest.warns(RobustVAEWarning, match="cannot look into"):
        wrapped(lambda x: hidden(encode(x, 1)), model)


def test_certificates_see_through_functions(generator):
    x = torch.rand(2, 1, 8, 8, generator=generator)
    radii = []
    model, encode = closure()
    for vae in (
        rv.wrap(model, image_shape=(1, 8, 8)),
        wrapped(encode, model),
        rv.wrap(model, image_shape=(1, 8, 8), pixels=(-1, 1)),
    ):
        certificate = rv.certify(
            vae,
            x,
            r=2.0,
            m=0.5,
            displacement="centered",
            methods=["neyman_pearson"],
            generator=rv.generator(0),
        )
        radii.append(certificate.radius)
    assert bool((radii[0] > 0).all())
    torch.testing.assert_close(radii[0], radii[1])
    # the same encoder on [-1, 1] moves twice as far for a step in [0, 1]
    assert bool((radii[2] < 0.7 * radii[0]).all())


def test_stated_form_of_the_design(generator):
    x = torch.rand(6, 3, 8, 8, generator=generator)
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 8), nn.Linear(8, 192), nn.Unflatten(1, (3, 8, 8))
    )
    vae = rv.wrap(
        module,
        image_shape=(3, 8, 8),
        pixels=(-1, 1),
        likelihood="gaussian",
        stddev="fit",
        fit_on=x,
    )
    with torch.no_grad():
        residual = (vae.decode(vae.encode(x).mean).mean - x).square().mean().sqrt()
    torch.testing.assert_close(vae.decode(torch.zeros(1, 8)).stddev.unique(), residual.reshape(1))
    vae = rv.wrap(module, image_shape=(3, 8, 8), likelihood="laplace", stddev=0.2)
    torch.testing.assert_close(vae.decode(torch.zeros(1, 8)).stddev.unique(), torch.tensor([0.2]))


def test_radii_in_both_units():
    space = rv.data.InputSpace((3, 2, 2), low=-1, high=1)
    assert space.scale == 2.0
    space = rv.data.InputSpace.of({"mean": (0.5, 0.4), "std": (0.25, 0.5)}, (2, 4, 4))
    x = torch.rand(2, 2, 4, 4)
    u = space.to_model(x)
    torch.testing.assert_close(u[:, 0], (x[:, 0] - 0.5) / 0.25)
    torch.testing.assert_close(u[:, 1], (x[:, 1] - 0.4) / 0.5)
    torch.testing.assert_close(space.from_model(u), x)
    torch.testing.assert_close(space.to_images(u), x)


def test_counts_are_rounded_in_their_unit():
    space = rv.data.InputSpace((5,), low=0, high=20, discrete=True)
    counts = torch.tensor([[0.0, 1.0, 3.0, 7.0, 20.0]])
    x = space.to_images(counts)
    torch.testing.assert_close(space.to_model(space.round(x + 0.01)).round(), counts)


class Odd(nn.Module):
    """A name that says nothing, and the log-variance first."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 2), nn.Linear(16, 2), nn.Linear(2, 16)

    def first(self, x):
        return {"one": self.a(x.flatten(1)), "two": self.b(x.flatten(1))}

    def forward(self, x):
        parts = self.first(x)
        return {**parts, "three": self.c(parts["two"])}


def test_every_guess_can_be_said():
    vae = rv.wrap(
        Odd(), image_shape=(1, 4, 4), mean="two", log_var="one", reconstruction=None, latent=2
    )
    x = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(vae.encode(x).mean, vae._encode.b(x.flatten(1)))
    vae = rv.wrap(Odd(), image_shape=(1, 4, 4), mean=lambda out: out["one"], code_stddev=None)
    torch.testing.assert_close(vae.encode(x).mean, vae._encode.a(x.flatten(1)))


HOSTILE = {
    "raises": lambda x: 1 / 0,
    "none": lambda x: None,
    "text": lambda x: "mean",
    "other rows": lambda x: (x.flatten(1)[:1, :2], x.flatten(1)[:1, :2]),
    "complex": lambda x: (x.flatten(1)[:, :2] + 0j, x.flatten(1)[:, :2]),
    "one of two": lambda x: (x.flatten(1)[:, :2],),
    "wrong width": lambda x: (x.flatten(1)[:, :3], x.flatten(1)[:, :3]),
    "whole numbers": lambda x: (x.flatten(1)[:, :2].long(), x.flatten(1)[:, :2].long()),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_encoders_give_named_errors(kind):
    vae = rv.wrap(
        encode=HOSTILE[kind],
        decode=lambda z: z.repeat(1, 8).reshape(-1, 1, 4, 4),
        latent=2,
        image_shape=(1, 4, 4),
        returns="mean_log_var",
    )
    with pytest.raises(rv.errors.RobustVAEError, match="encode"):
        rv.Victim(vae).reconstruct(torch.rand(2, 1, 4, 4), generator=rv.generator(0))


def test_users_errors_are_chained():
    vae = rv.wrap(
        encode=lambda x: x.flatten(1)[:, :2],
        decode=lambda z: {}["image"],
        latent=2,
        image_shape=(1, 4, 4),
    )
    with pytest.raises(ModelError, match=r"decode of the wrapped model.*KeyError") as caught:
        vae.decode(torch.zeros(1, 2))
    assert isinstance(caught.value.__cause__, KeyError)


class Failing(nn.Module):
    def forward(self, x):
        raise ValueError("wants text")


class Nothing(nn.Module):
    def forward(self, x):
        return None


@pytest.mark.parametrize(
    ("model", "error"), [(Failing(), ModelError), (Nothing(), UnsupportedError)]
)
def test_refusals_name_what_to_say(model, error):
    with pytest.raises(error, match="encode=") as caught:
        rv.wrap(model, image_shape=(1, 4, 4))
    for word in ("mean=", "log_var=", "reconstruction=", "output_only=True"):
        assert word in str(caught.value)


def test_contradictions_are_refused():
    with pytest.raises(ConfigError, match="stddev="):
        rv.wrap(Odd(), image_shape=(1, 4, 4), likelihood="gaussian")
    with pytest.raises(ConfigError, match="fit_on"):
        rv.wrap(Odd(), image_shape=(1, 4, 4), likelihood="gaussian", stddev="fit")
    with pytest.raises(rv.errors.ShapeError, match="image_shape"):
        rv.wrap(nn.Sequential(nn.Conv2d(1, 1, 3, 1, 1)))
    with pytest.raises(ConfigError, match=r"pixels=\(-1, 1\)"):
        rv.wrap(Odd(), image_shape=(1, 4, 4), pixels="signed")


def test_half_precision_is_read_in_float32(generator):
    model = Rows().to(torch.bfloat16)
    vae = rv.wrap(model, image_shape=(1, 8, 8))
    x = torch.rand(2, 1, 8, 8, generator=generator).float()
    attack = rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(steps=2), rv.Ball("l2", 0.5))
    found = attack(rv.Victim(vae), x, generator=generator)
    assert vae.dtype == torch.float32 and found.x_adv.dtype == torch.float32
    assert next(model.parameters()).dtype == torch.bfloat16


def test_own_models_returned_as():
    vae = rv.load("digits-vae")
    assert rv.wrap(vae) is vae
    assert rv.wrap(vae, output_only=True).output_only
