"""Ways of strangers' classes that once ended in a raw error, or were judged without a word."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli

import robustvae as rv
from robustvae.errors import ModelError, ShapeError, UnsupportedError
from robustvae.jacobians import jacobian, products

SHAPE = {"image_shape": (1, 8, 8)}


class Pair(nn.Module):
    """An encoder and a decoder as methods."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(64, 8), nn.Linear(4, 64)

    def encode(self, x):
        return self.one(x.flatten(1)).chunk(2, 1)

    def decode(self, z):
        return torch.sigmoid(self.two(z)).view(-1, 1, 8, 8)

    def forward(self, x):
        mean, log_var = self.encode(x)
        return self.decode(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)), mean, log_var


def made(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


def inputs(rows=4):
    return torch.rand(rows, 1, 8, 8, generator=rv.generator(3))


def items(vae):
    return {item.name: item for item in rv.check(vae, inputs()).items}


class Squashed(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(64, 8), nn.Linear(4, 64)

    def forward(self, x: torch.Tensor):
        h = self.one(x.reshape(x.size(0), -1))
        mean, log_var = h[:, :4], h[:, 4:]
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        return torch.sigmoid(self.two(z)).view(-1, 1, 8, 8), mean, log_var


def test_scripted_squashing_is_seen():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.jit.script(made(Squashed))
    vae = rv.wrap(model, **SHAPE)
    z = torch.ones(2, 4)
    with torch.no_grad():
        expected = torch.sigmoid(model.two(z)).view(-1, 1, 8, 8)
        torch.testing.assert_close(vae.decode(z).mean, expected)
    # copies of scripted weights are leaves, which bounds by the weights freeze
    result = rv.evaluate(vae, rv.data.from_tensor(inputs()), seed=0, parts=["lipschitz"])
    assert result.absent or result["encoder_lipschitz"].value > 0


def test_weights_changed_unseen_are_named():
    class Shrinks(Pair):
        def encode(self, x):
            self.one.weight.data.mul_(0.999)
            return super().encode(x)

    changed = items(rv.wrap(made(Shrinks), **SHAPE))["state_unchanged"]
    assert changed.passed is False and "one.weight" in changed.message


def test_changing_buffers_are_no_draws():
    class Counts(Pair):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def encode(self, x):
            self.calls += 1
            mean, log_var = super().encode(x)
            return mean + self.calls, log_var

    result = items(rv.wrap(made(Counts), **SHAPE))
    assert result["encode_repeats"].passed and result["state_unchanged"].passed is False


def test_layers_of_first_calls_are_refused():
    class Late(Pair):
        def encode(self, x):
            if not hasattr(self, "late"):
                self.late = nn.Linear(64, 8)
            return self.late(x.flatten(1)).chunk(2, 1)

    with pytest.raises(ModelError, match=r"'late\.weight' made in one"):
        rv.wrap(made(Late), **SHAPE)


def test_samples_are_not_rows():
    class Five(Pair):
        def forward(self, x):
            mean, log_var = self.encode(x)
            z = mean + torch.exp(0.5 * log_var) * torch.randn(5, *mean.shape)
            return self.decode(z.flatten(0, 1)).view(5, -1, 1, 8, 8)

        encode_image = Pair.encode
        encode = property(lambda self: self.encode_image)
        decode = property(lambda self: self.decode_image)
        decode_image = Pair.decode

    with pytest.raises(UnsupportedError, match="nothing was recognized"):
        rv.wrap(made(Five), adapter="black-box", **SHAPE)


def test_keywords_are_said():
    class Keyword(Pair):
        def encode(self, *, x):
            return super().encode(x)

        def forward(self, *, x):
            return self.decode(self.encode(x=x)[0])

    with pytest.raises(ModelError, match="by the keyword x: give"):
        rv.wrap(made(Keyword), **SHAPE)


def test_distributions_beside_codes_are_images():
    class Law(Pair):
        def decode_to(self, z):
            return Bernoulli(probs=Pair.decode(self, z))

        def forward(self, x):
            mean, log_var = Pair.encode(self, x)
            z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
            return self.decode_to(z), mean, log_var

        encode = decode = None

    model = made(Law)
    vae = rv.wrap(model, **SHAPE)
    z = torch.ones(2, 4)
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(z).mean, Pair.decode(model, z))


def test_evaluation_leaves_statistics_alone():
    class Normed(Pair):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(64)

        def encode(self, x):
            return super().encode(self.norm(x.flatten(1)))

    model = made(Normed)
    vae, state = rv.wrap(model, **SHAPE), torch.get_rng_state()
    rv.evaluate(vae, rv.data.from_tensor(inputs()), seed=0, parts=["lipschitz", "weights"])
    assert int(model.norm.num_batches_tracked) == 0
    assert torch.equal(state, torch.get_rng_state())


class Raising(torch.autograd.Function):
    """A backward pass that fails."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        raise RuntimeError("no gradient here")


def test_failing_backward_passes_are_named():
    class Fails(Pair):
        def decode(self, z):
            return Raising.apply(super().decode(z))

    vae, x = rv.wrap(made(Fails), **SHAPE), inputs(2)
    with pytest.raises(ModelError, match="running the wrapped model raised RuntimeError"):
        rv.estimate_margin(rv.Victim(vae), x, 1.0, 0.5, "full", generator=rv.generator(0))
    result = rv.evaluate(vae, rv.data.from_tensor(x), seed=0, parts=["slopes", "weights"])
    assert result["decoder_slope"].value > 0  # by differences
    assert "no gradient here" in result.absent["weights"]


def test_columns_by_differences():
    """Where the backward pass has no derivative, columns of a Jacobian come from differences."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            context.save_for_backward(x)
            return x.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context, gradient):
            return gradient * context.saved_tensors[0].cos()

    matrix = torch.randn(6, 3, generator=rv.generator(0), dtype=torch.float64)
    z = torch.randn(2, 3, generator=rv.generator(1), dtype=torch.float64)
    expected = torch.cos(z @ matrix.T)[:, :, None] * matrix
    result = jacobian(lambda u: Once.apply(u @ matrix.T), z)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)
    column = products(lambda u: Once.apply(u @ matrix.T), z).jvp(torch.eye(3).double()[:2])
    torch.testing.assert_close(
        column, torch.stack([expected[0, :, 0], expected[1, :, 1]]), atol=1e-6, rtol=0
    )


def test_own_shapes_are_told_how():
    class Sound(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv1d(1, 2, 8, 8), nn.ConvTranspose1d(2, 1, 8, 8)

        def encode(self, x):
            return self.down(x)

        def decode(self, z):
            return self.up(z)

    vae = rv.wrap(made(Sound), image_shape=(1, 64))
    x = torch.rand(3, 1, 64, generator=rv.generator(0))
    with pytest.raises(ShapeError, match=r"x\.reshape\(-1, 1, 1, 64\) has the same numbers"):
        rv.Victim(vae).reconstruct(x, generator=rv.generator(0))


def test_decoders_of_left_features_are_refused():
    """The decoder reads what the encoder left on the module: a code alone decodes to nothing."""

    class Left(Pair):
        def encode(self, x):
            self.features = 0.1 * x
            return super().encode(x)

        def decode(self, z):
            return super().decode(z) + self.features

    assert rv.wrap(made(Left), **SHAPE).output_only


def test_copies_reach_closures_of_methods():
    model = made(Pair).float()

    class Hidden:
        def encode(self, x):
            return model.encode(x)

        def decode(self, z):
            return model.decode(z)

    vae = rv.wrap(Hidden(), **SHAPE)
    twin, x = copy.deepcopy(vae).double(), inputs().double()
    with torch.no_grad():
        mean, _ = copy.deepcopy(model).double().encode(x)
        torch.testing.assert_close(twin.encode(x).mean, mean)
    assert model.one.weight.dtype == torch.float32


def test_layers_within_vmap_are_watched():
    class Rowwise(Pair):
        def encode(self, x):
            return Pair.encode(self, x)

        def decode(self, z):
            return torch.vmap(lambda row: super(Rowwise, self).decode(row[None])[0])(z)

    assert rv.wrap(made(Rowwise), **SHAPE).latent == 4


def test_unlabeled_inputs_leave_the_probe_out():
    vae, images = rv.wrap(made(Pair), **SHAPE), rv.data.from_tensor(inputs())
    result = rv.evaluate(vae, images, train=images, seed=0, parts=["probe"])
    assert "at least two classes" in result.absent["probe"]
