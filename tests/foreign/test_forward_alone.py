"""Classes whose forward pass alone encodes, draws and decodes: codes are put in their place."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Bernoulli, Independent, Laplace, Normal
from torch.utils.checkpoint import checkpoint

import robustvae as rv
from robustvae.errors import ModelError, UnsupportedError
from robustvae.models.adapters.forward_alone import AfterCode
from robustvae.models.base import frozen

SHAPE = {"image_shape": (1, 8, 8)}
PLAN = {
    "inputs": 2,
    "draws": 20,
    "gradient_free": 5,
    "longer": 1,
    "probes": 1,
    "gallery": 1,
    "margins": None,
    "attacks": [{"radius": 0.5, "search": {"name": "projected-ascent", "steps": 2, "restarts": 1}}],
}


class Net(nn.Module):
    """Layers without an encoder or a decoder among them; `head` and `tail` are the reference."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(64, 16), nn.Linear(16, 4)
        self.three, self.four, self.five = nn.Linear(16, 4), nn.Linear(4, 16), nn.Linear(16, 64)

    def head(self, x):
        h = torch.tanh(self.one(x.reshape(len(x), -1)))
        return 3 * self.two(h), self.three(h) - 1

    def tail(self, z):
        return torch.sigmoid(self.five(F.relu(self.four(z)))).view(-1, 1, 8, 8)


def stddev(log_var):
    return torch.exp(0.5 * log_var)


STYLES = {}


def style(function):
    STYLES[function.__name__] = type(function.__name__, (Net,), {"forward": function})
    return function


@style
def randn_like(self, x):
    m, v = self.head(x)
    return self.tail(m + stddev(v) * torch.randn_like(m)), m, v


@style
def written_out(self, x):
    h = torch.tanh(self.one(x.view(-1, 64)))
    m, v = 3 * self.two(h), self.three(h) - 1
    z = m + stddev(v) * torch.randn(m.size(0), m.size(1), dtype=x.dtype)
    return v, torch.sigmoid(self.five(F.relu(self.four(z)))), m


@style
def old_in_place(self, x):
    m, v = self.head(x)
    s = v.mul(0.5).exp_()
    return self.tail(s.data.new(s.size()).normal_().mul(s).add_(m)), m, v


@style
def normal_function(self, x):
    m, v = self.head(x)
    return {"picture": self.tail(torch.normal(m, stddev(v))), "center": m, "other": v}


@style
def distributions(self, x):
    m, v = self.head(x)
    q = Independent(Normal(m, stddev(v)), 1)
    return Independent(Bernoulli(probs=self.tail(q.rsample())), 3), q


@style
def cut_off(self, x):
    m, v = self.head(x)
    return self.tail(Normal(m, stddev(v)).sample()), m, stddev(v)


@style
def variance_first(self, x):
    m, v = self.head(x)
    return v.exp(), m, self.tail(m + stddev(v) * torch.randn_like(v))


@style
def training_only(self, x):
    m, v = self.head(x)
    z = m + stddev(v) * torch.randn_like(m) if self.training else m
    return self.tail(z), m, v


@style
def with_code_and_loss(self, x):
    m, v = self.head(x)
    z = m + stddev(v) * torch.randn_like(m)
    loss = (m.square() + v.exp() - v - 1).sum(1) / 2
    return self.tail(z), z, m.view(-1, 2, 2), v.view(-1, 2, 2), loss


@dataclasses.dataclass
class Result:
    sample: torch.Tensor
    posterior: object


@style
def dataclass_with_posterior(self, x):
    m, v = self.head(x)
    q = Normal(m, stddev(v))
    return Result(self.tail(q.rsample()), q)


def made(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


def inputs(rows=4):
    return torch.rand(rows, 1, 8, 8, generator=rv.generator(3))


@pytest.mark.parametrize("name", STYLES)
def test_code_and_decoder_equal_reference(name):
    model = made(STYLES[name])
    state = torch.get_rng_state()
    parts = [sorted(vars(part)) for part in model.modules()]
    vae, x = rv.wrap(model, **SHAPE), inputs()
    assert "forward after its code" in vae.recognized and vae.kind == name
    z = 2 * torch.randn(4, 4, generator=rv.generator(1))
    with torch.no_grad(), frozen(vae):
        m, v = model.head(x)
        q = vae.encode(x)
        torch.testing.assert_close(q.mean, m, atol=1e-6, rtol=0)
        torch.testing.assert_close(q.stddev, stddev(v), atol=1e-6, rtol=0)
        torch.testing.assert_close(vae.decode(z).mean, model.tail(z), atol=1e-6, rtol=0)
        torch.testing.assert_close(vae.decode(z[:1]).mean, model.tail(z[:1]), atol=1e-6, rtol=0)
    with frozen(vae):
        pulls = [
            torch.autograd.grad(decode(z).square().sum(), z)[0]
            for decode in (lambda u: vae.decode(u).mean, model.tail)
            if z.requires_grad_() is not None
        ]
    torch.testing.assert_close(*pulls)
    assert torch.equal(state, torch.get_rng_state())
    assert all(part.training for part in model.modules())
    assert parts == [sorted(vars(part)) for part in model.modules()]


@pytest.mark.parametrize("name", ["randn_like", "distributions", "training_only"])
def test_audits_end_with_a_verdict(name):
    vae = rv.wrap(made(STYLES[name]), **SHAPE)
    state = torch.get_rng_state()
    assert next(i for i in rv.check(vae, inputs()).items if i.name == "forward_agrees").passed
    record = rv.audit(rv.Victim(vae), inputs(8), plan=PLAN, question={"r": 1.0})
    assert record.verdict.first and len(record.rows) >= 2
    with pytest.raises(UnsupportedError, match="one forward pass for both"):
        vae.paths()
    assert torch.equal(state, torch.get_rng_state())


def hands_on(self, x):
    m, v = self.head(x)
    return self.tail(m + stddev(v) * torch.randn_like(m)) + 0.01 * x, m, v


def half_temperature(self, x):
    m, v = self.head(x)
    return self.tail(m + 0.5 * stddev(v) * torch.randn_like(m)), m, v


def noisy_output(self, x):
    m, v = self.head(x)
    image = self.tail(m + stddev(v) * torch.randn_like(m))
    return image + 0.01 * torch.randn_like(image), m, v


def two_draws(self, x):
    m, v = self.head(x)
    z = m + stddev(v) * torch.randn_like(m)
    return self.tail(z + 0.1 * torch.randn_like(z)), m, v


def another_law(self, x):
    m, v = self.head(x)
    return self.tail(Laplace(m, v.exp()).rsample()), m, v


def computed_again(self, x):
    def whole(x):
        return randn_like(self, x)

    return checkpoint(whole, x, use_reentrant=False)


def no_code(self, x):
    return randn_like(self, x)[0], torch.zeros(len(x))


@pytest.mark.parametrize(
    "forward",
    [hands_on, half_temperature, noisy_output, two_draws, another_law, computed_again, no_code],
)
def test_more_than_codes_is_black_box(forward):
    vae = rv.wrap(made(type("More", (Net,), {"forward": forward})), **SHAPE)
    assert vae.output_only and "black box" in vae.recognized


def test_second_code_is_no_spread():
    """Two codes of one shape and no draw: nothing says that the second is a spread."""

    def forward(self, x):
        code = self.head(x)[0]
        rounded = code.round()
        return self.tail(code + (rounded - code).detach()), code, rounded

    vae = rv.wrap(made(type("Rounded", (Net,), {"forward": forward})), **SHAPE)
    assert not vae.output_only and not vae.has_spread


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_read(dtype):
    vae = rv.wrap(made(STYLES["randn_like"]).to(dtype), **SHAPE)
    assert vae.latent == 4 and vae.has_spread
    assert vae.decode(vae.encode(inputs().to(vae.dtype)).mean).mean.shape == (4, 1, 8, 8)


def test_statements_are_held_to_forward():
    model = made(STYLES["variance_first"])
    vae = rv.wrap(model, mean=1, log_var=lambda output: output[0].log(), reconstruction=2, **SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(vae.encode(inputs()).mean, model.head(inputs())[0])
        z = torch.ones(2, 4)
        torch.testing.assert_close(vae.decode(z).mean, model.tail(z))
    with pytest.raises(UnsupportedError, match="read as was said, do not give"):
        rv.wrap(model, mean=1, log_var=0, **SHAPE)


def test_codes_as_wide_as_inputs():
    class Wide(Net):
        forward = STYLES["randn_like"].forward

        def __init__(self):
            super().__init__()
            self.two, self.three, self.four = (
                nn.Linear(16, 64),
                nn.Linear(16, 64),
                nn.Linear(64, 16),
            )

    model = made(Wide)
    vae, z = rv.wrap(model, **SHAPE), torch.ones(2, 64)
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(z).mean, model.tail(z))


def test_copies_and_training_mode():
    class Normed(Net):
        forward = STYLES["randn_like"].forward

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(64)

        def head(self, x):
            return super().head(self.norm(x.flatten(1)))

    model = made(Normed)
    vae = rv.wrap(model, **SHAPE)
    twin, z = copy.deepcopy(vae), torch.ones(2, 4)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert float(twin.eval().decode(z).mean.detach().std()) > 0.01
    with pytest.raises(UnsupportedError, match="evaluation mode"):
        vae.train().decode(z)


def test_other_calls_are_named():
    class Branches(Net):
        def forward(self, x):
            h = torch.tanh(self.one(x.flatten(1)))
            m = 3 * self.two(h) if len(x) < 20 else self.two(h).add(self.two(h), alpha=2)
            v = self.three(h)
            return self.tail(m + stddev(v) * torch.randn_like(m)), m, v

    vae = rv.wrap(made(Branches), **SHAPE)
    assert vae.decode(torch.ones(3, 4)).mean.shape == (3, 1, 8, 8)
    with pytest.raises(ModelError, match="by other calls"):
        vae.decode(torch.ones(30, 4))


def test_constants_of_the_shape_of_codes():
    """A table with as many rows as there are inputs is not taken for their codes."""

    class Tables(Net):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.eye(4))

        def head(self, x):
            turn = torch.matrix_exp(self.table - self.table.T)
            m, v = super().head(x)
            return m @ turn, v

        forward = STYLES["randn_like"].forward

    model = made(Tables)
    vae = rv.wrap(model, **SHAPE)
    for rows in (1, 3, 4, 5):
        z = torch.randn(rows, 4, generator=rv.generator(rows))
        with torch.no_grad():
            torch.testing.assert_close(vae.decode(z).mean, model.tail(z))


def test_forward_is_compared_on_real_inputs():
    """What a trial on noise does not show, the diagnosis of the user's inputs does."""

    class Dark(Net):
        def forward(self, x):
            image, m, v = STYLES["randn_like"].forward(self, x)
            dark = (x.flatten(1).mean(1) < 0.1) & (x.flatten(1).amax(1) > 0)
            return torch.where(dark.view(-1, 1, 1, 1), x, image), m, v

    vae = rv.wrap(made(Dark), **SHAPE)
    assert not vae.output_only
    items = {item.name: item for item in rv.check(vae, 0.1 * inputs()).items}
    assert items["forward_agrees"].passed is False
    assert isinstance(vae._match.decode, AfterCode)
