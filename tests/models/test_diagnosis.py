"""`check`: every planted fault is named with its remedy, and no honest model is accused."""

import functools

import pytest
import torch
from torch import nn

import robustvae as rv
from robustvae.models import Bernoulli, Gaussian


@functools.cache
def digits():
    return rv.load("digits-vae"), rv.data.load("digits", split="test").x[:8].float()


def vae():
    return digits()[0]


def wrapped(encode=None, decode=None, **options):
    return rv.wrap(
        encode=encode or (lambda x: vae().encode(x)),
        decode=decode or (lambda z: vae().decode(z)),
        latent=16,
        image_shape=(1, 8, 8),
        **options,
    )


def wrong_gradient(kind):
    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            if kind == "block-averaged":
                means = nn.functional.avg_pool2d(g, 2)
                return nn.functional.interpolate(means, scale_factor=2)
            if kind == "shuffled":
                order = torch.randperm(g[0].numel(), generator=rv.generator(0))
                return g.flatten(1)[:, order].reshape(g.shape)
            changes = {
                "flipped": -g,
                "mirrored": g.flip(-1),
                "halved": g / 2,
                "decoy": x - 0.5,
                "zero": torch.zeros_like(g),
            }
            return changes[kind]

    return Identity.apply


KINDS = ["block-averaged", "decoy", "flipped", "halved", "mirrored", "shuffled", "zero"]


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_gradients_are_named(kind):
    fake = wrong_gradient(kind)
    found = rv.check(wrapped(lambda x: vae().encode(fake(x))), digits()[1])
    assert [item.name for item in found.failed][-1] == "gradient_matches_differences"


@pytest.mark.parametrize("kind", ["block-averaged", "flipped", "shuffled", "decoy"])
def test_wrong_gradients_at_28_pixels(kind, generator):
    fake = wrong_gradient(kind)
    model = rv.models.create("vae", architecture="mlp", latent=8, hidden=[64]).float()
    x = torch.rand(4, 1, 28, 28, generator=generator, dtype=torch.float32)
    assert rv.check(model, x)["gradient_matches_differences"].passed
    fooled = rv.wrap(
        encode=lambda x: model.encode(fake(x)),
        decode=model.decode,
        latent=8,
        image_shape=(1, 28, 28),
    )
    assert rv.check(fooled, x)["gradient_matches_differences"].passed is False


def test_right_only_at_the_input():
    x = digits()[1]

    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            ctx.save_for_backward(y)
            return y.clone()

        @staticmethod
        def backward(ctx, g):
            (y,) = ctx.saved_tensors
            near = (y[:, None].float() - x[None]).flatten(2).norm(dim=2).amin(1) < 0.1
            return torch.where(near.reshape(-1, 1, 1, 1), g, g.flip(-1))

    found = rv.check(wrapped(lambda y: vae().encode(Identity.apply(y))), x)
    assert found["gradient_matches_differences"].passed is False


FAULTS = {
    "standard deviation as log-variance": (
        lambda: wrapped(
            lambda x: (vae().encode(x).mean, vae().encode(x).stddev), returns="mean_log_var"
        ),
        "spread_kind",
        "mean_stddev",
    ),
    "logits as a mean": (
        lambda: wrapped(
            decode=lambda z: Gaussian(vae().decode(z).logits, torch.ones(len(z), 1, 8, 8))
        ),
        "output_kind",
        "bernoulli",
    ),
    "logits as a tensor": (
        lambda: wrapped(decode=lambda z: vae().decode(z).logits),
        "output_kind",
        "logits",
    ),
    "logits as probabilities": (
        lambda: wrapped(
            decode=lambda z: torch.distributions.Bernoulli(probs=vae().decode(z).logits)
        ),
        "output_kind",
        "logits",
    ),
    "logits as unchecked probabilities": (
        lambda: wrapped(
            decode=lambda z: torch.distributions.Bernoulli(
                probs=vae().decode(z).logits, validate_args=False
            )
        ),
        "output_kind",
        "logits",
    ),
    "probabilities as logits": (
        lambda: wrapped(decode=lambda z: Bernoulli(vae().decode(z).mean)),
        "output_kind",
        "probabilities",
    ),
    "reads and writes [-1, 1]": (
        lambda: wrapped(
            lambda x: vae().encode((x + 1) / 2), lambda z: 2 * vae().decode(z).mean - 1
        ),
        "pixel_range",
        "pixels=(-1, 1)",
    ),
    "reads [-1, 1]": (
        lambda: wrapped(lambda x: vae().encode((x + 1) / 2)),
        "pixel_range",
        "2 * x - 1",
    ),
    "writes [-1, 1]": (
        lambda: wrapped(decode=lambda z: 2 * vae().decode(z).mean - 1),
        "pixel_range",
        "+ 1) / 2",
    ),
    "untrained tanh decoder": (
        lambda: wrapped(
            decode=nn.Sequential(nn.Linear(16, 64).float(), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
        ),
        "pixel_range",
        "pixels=(-1, 1)",
    ),
    "reads [0, 255]": (
        lambda: wrapped(lambda x: vae().encode(x / 255), lambda z: 255 * vae().decode(z).mean),
        "pixel_range",
        "pixels=(0, 255)",
    ),
    "draws in encode": (
        lambda: wrapped(
            lambda x: vae().encode(x).mean + torch.randn(len(x), 16) * vae().encode(x).stddev
        ),
        "encode_repeats",
        "mean",
    ),
    "draws in decode": (
        lambda: wrapped(decode=lambda z: vae().decode(z).mean + 0.1 * torch.randn(1, 1, 8, 8)),
        "decode_repeats",
        "mean",
    ),
    "reads the batch": (
        lambda: wrapped(
            lambda x: vae().encode(x).mean - vae().encode(x).mean.mean(0, keepdim=True)
        ),
        "batch_independent",
        "model.eval()",
    ),
    "detaches": (
        lambda: wrapped(lambda x: vae().encode(x.detach())),
        "gradient_reaches_input",
        "detach",
    ),
    "rounds its input": (
        lambda: wrapped(lambda x: vae().encode((16 * x).round() / 16)),
        "gradient_reaches_input",
        "without gradients",
    ),
    "gives NaN": (
        lambda: wrapped(decode=lambda z: (vae().decode(z).mean - 0.5).sqrt()),
        "finite_outputs",
        "float32",
    ),
    "raises": (lambda: wrapped(lambda x: 1 / 0), "runs", "image_shape="),
    "returns None": (lambda: wrapped(lambda x: None), "runs", "returns="),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_named(fault):
    make, name, remedy = FAULTS[fault]
    found = rv.check(make(), digits()[1].to(make().dtype))
    assert not found.passed
    item = found[name]
    assert item.passed is False
    assert remedy in item.remedy
    assert item.message in str(found) and item.name in found._repr_html_()


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.layer = nn.Linear(64, 16).float()

    def forward(self, x):
        self.calls += 1
        return self.layer(x.flatten(1))


def test_a_changing_buffer_is_named():
    encode = Counting()
    found = rv.check(wrapped(encode), digits()[1])
    assert "calls" in found["state_unchanged"].message
    assert encode.calls == 0


def test_training_mode_is_fixed_and_said():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16)).float()
    kept = layers[2].running_mean.clone()
    found = rv.check(wrapped(layers), digits()[1])
    item = found["evaluation_mode"]
    assert item.passed is False and item.fixed
    assert "training mode" in item.message
    assert found["batch_independent"].passed
    assert layers.training and torch.equal(layers[2].running_mean, kept)


HONEST = {
    "plain": lambda: vae(),
    "lipschitz": lambda: rv.load("digits-lipschitz-vae"),
    "wrapped": lambda: wrapped(),
    "mean": lambda: rv.Victim(vae()),
    "draws": lambda: rv.Victim(vae(), rv.PosteriorSample()),
    "hmc": lambda: rv.Victim(vae(), rv.HMC(steps=2)),
}


@pytest.mark.parametrize("name", HONEST)
def test_nobody_honest_is_accused(name):
    found = rv.check(HONEST[name](), digits()[1])
    assert found.passed, str(found)


def test_an_untrained_model_is_not_accused(generator):
    for seed in range(4):
        model = rv.models.create("vae", architecture="mlp", latent=2, hidden=[32], seed=seed)
        x = torch.rand(8, 1, 28, 28, generator=generator)
        found = rv.check(model, x)
        assert found.passed, str(found)


def test_random_states_and_modes_stay():
    model, x = digits()
    before = torch.get_rng_state()
    modes = [part.training for part in model.modules()]
    rv.check(model, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert [part.training for part in model.modules()] == modes


def test_bad_subjects_are_refused():
    with pytest.raises(rv.errors.DtypeError, match=r"rv\.wrap"):
        rv.check("digits", digits()[1])
    with pytest.raises(rv.errors.ShapeError):
        rv.check(vae(), torch.rand(2, 1, 9, 9))
