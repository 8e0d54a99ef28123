"""Codes of several scales, posteriors without a mean, spreads of other shapes: read as they are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributions import AffineTransform, Normal, TanhTransform, TransformedDistribution

import robustvae as rv
from robustvae.errors import UnsupportedError
from robustvae.models.base import frozen

SHAPE = {"image_shape": (1, 8, 8)}


def drawn(mean, log_var):
    return mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)


class Ladder(nn.Module):
    """Two scales, of 6 and 2 numbers."""

    def __init__(self):
        super().__init__()
        self.low = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh())
        self.high = nn.Sequential(nn.Linear(16, 8), nn.Tanh())
        self.head1, self.head2 = nn.Linear(16, 12), nn.Linear(8, 4)
        self.up, self.out = nn.Linear(2, 8), nn.Linear(14, 64)

    def scales(self, x):
        h = self.low(x)
        (m1, v1), (m2, v2) = self.head1(h).chunk(2, 1), self.head2(self.high(h)).chunk(2, 1)
        return [(m1, v1 - 3), (2 * m2, v2 - 2)]

    def image(self, z1, z2):
        h = torch.cat([z1, torch.tanh(self.up(z2))], 1)
        return torch.sigmoid(self.out(h)).view(-1, 1, 8, 8)


class Pairs(Ladder):
    def encode(self, x):
        return self.scales(x)

    def decode(self, codes):
        return self.image(*codes)

    def forward(self, x):
        return self.decode([drawn(*scale) for scale in self.encode(x)])


class LastFirst(Ladder):
    """A list for the log-variances before that of the means, and a decoder from the top."""

    def encode(self, x):
        (m1, v1), (m2, v2) = self.scales(x)
        return [v1, v2], [m1, m2]

    def decode(self, top, bottom):
        return self.image(bottom, top)

    def forward(self, x):
        spreads, means = self.encode(x)
        codes = [drawn(m, v) for m, v in zip(means, spreads, strict=True)]
        return self.decode(codes[1], codes[0])


class Named(Ladder):
    """Standard deviations by name, and a decoder that wants one mapping."""

    def encode(self, x):
        return {
            name: {"mu": mean, "std": torch.exp(0.5 * log_var)}
            for name, (mean, log_var) in zip(("low", "high"), self.scales(x), strict=True)
        }

    def decode(self, codes):
        return self.image(codes["low"], codes["high"])

    def forward(self, x):
        q = self.encode(x)
        return self.decode(
            {name: p["mu"] + torch.randn_like(p["mu"]) * p["std"] for name, p in q.items()}
        )


class Normals(Pairs):
    def encode(self, x):
        return [Normal(mean, torch.exp(0.5 * log_var)) for mean, log_var in self.scales(x)]

    def forward(self, x):
        return self.decode([q.rsample() for q in self.encode(x)])


class Codes(Pairs):
    """No spread at all."""

    def encode(self, x):
        return [mean for mean, _ in self.scales(x)]

    def forward(self, x):
        return self.decode(self.encode(x))


def built(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


def images(rows=4):
    return torch.rand(rows, 1, 8, 8, generator=rv.generator(3))


@pytest.mark.parametrize("kind", [Pairs, LastFirst, Named, Normals, Codes])
def test_scales_equal_the_reference(kind):
    model, x = built(kind), images()
    vae = rv.wrap(model, **SHAPE)
    assert vae.latent == 8 and not vae.output_only and "2 scales" in vae.recognized
    with torch.no_grad(), frozen(vae):
        means, log_vars = (torch.cat(parts, 1) for parts in zip(*model.scales(x), strict=True))
        code = vae.encode(x)
        torch.testing.assert_close(code.mean, means, atol=1e-6, rtol=1e-6)
        expected = model.image(means[:, :6], means[:, 6:])
        torch.testing.assert_close(vae.decode(means).mean, expected, atol=1e-6, rtol=1e-6)
    if kind is Codes:
        assert not vae.has_spread
        return
    torch.testing.assert_close(code.stddev, torch.exp(0.5 * log_vars), atol=1e-6, rtol=1e-6)
    # the scales' prior is not made up
    with pytest.raises(UnsupportedError, match="prior of a scale"):
        vae.prior().log_prob(means)
    attack = rv.Attack(rv.LatentShift("means"), rv.ProjectedAscent(steps=2), rv.Ball("l2", 0.5))
    assert attack(rv.Victim(vae), x, generator=rv.generator(0)).status == ("ok",) * 4


class Conditioned(Pairs):
    """The decoder changes the codes of one scale by those of another, which forward does not."""

    def decode(self, codes):
        return self.image(codes[0] + 3, codes[1])

    def forward(self, x):
        return self.image(*(drawn(*scale) for scale in self.encode(x)))


class Drawing(Pairs):
    """The lower scale's mean depends on a draw of the upper one, within encode."""

    def encode(self, x):
        (m1, v1), (m2, v2) = self.scales(x)
        return [(m1 + drawn(m2, v2).sum(1, keepdim=True), v1), (m2, v2)]


@pytest.mark.parametrize("kind", [Conditioned, Drawing])
def test_other_codes_are_not_taken(kind):
    vae = rv.wrap(built(kind), **SHAPE)
    assert vae.output_only
    assert "encode returns list" in vae.assumptions[0]
    assert "say where they are with mean=" in vae.assumptions[0]


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.dec = nn.Linear(64, 8), nn.Linear(4, 64)

    def code(self, x):
        mean, log_var = self.enc(x.flatten(1)).chunk(2, 1)
        return 3 * mean, log_var - 3

    def decode(self, z):
        return torch.sigmoid(self.dec(z)).view(-1, 1, 8, 8)

    def forward(self, x):
        return self.decode(self.encode(x).sample())


class Sampled(Flat):
    """An object with sample() and mode() alone."""

    def encode(self, x):
        mean, log_var = self.code(x)
        return SimpleNamespace(sample=lambda: drawn(mean, log_var), mode=lambda: mean)


class Squashed(Flat):
    """A torch distribution that knows no mean."""

    def encode(self, x):
        mean, log_var = self.code(x)
        base = Normal(torch.zeros_like(mean), torch.ones_like(mean))
        pushes = [AffineTransform(mean, torch.exp(0.5 * log_var)), TanhTransform()]
        return TransformedDistribution(base, pushes)


@pytest.mark.parametrize("kind", [Sampled, Squashed])
def test_center_stands_for_the_mean(kind):
    model, x = built(kind), images()
    vae = rv.wrap(model, **SHAPE)
    assert not vae.output_only
    mean, log_var = (part.detach() for part in model.code(x))
    push = torch.tanh if kind is Squashed else torch.nn.Identity()
    with torch.no_grad():
        q = vae.encode(x)
    torch.testing.assert_close(q.mean, push(mean))
    state = torch.get_rng_state()
    draws = q.draw((400,), generator=rv.generator(0))
    torch.testing.assert_close(draws, q.draw((400,), generator=rv.generator(0)))
    assert torch.equal(state, torch.get_rng_state())
    if kind is Squashed:
        draws = torch.atanh(draws)
    error = (draws.mean(0) - mean) / torch.exp(0.5 * log_var)
    assert float(error.abs().max()) < 5 / 20
    with pytest.raises(UnsupportedError, match="not known in closed form"):
        q.stddev  # noqa: B018
    victim = rv.Victim(vae, rv.PosteriorSample())
    assert victim.reconstruct(x, generator=rv.generator(0)).shape == x.shape


class OneSpread(Flat):
    """One log-variance for all numbers of a row."""

    def encode(self, x):
        mean, log_var = self.code(x)
        return mean, log_var[:, :1]

    def forward(self, x):
        mean, log_var = self.encode(x)
        return self.decode(drawn(mean, log_var.expand_as(mean)))


class SpreadOfAll(OneSpread):
    """One log-variance for all rows."""

    def __init__(self):
        super().__init__()
        self.log_var = nn.Parameter(torch.linspace(-4, -2, 4))

    def encode(self, x):
        return self.code(x)[0], self.log_var


class Matrix(Flat):
    """A Cholesky factor, which is not read: that is said."""

    def encode(self, x):
        mean, log_var = self.code(x)
        return mean, torch.diag_embed(torch.exp(0.5 * log_var))

    def forward(self, x):
        mean, factor = self.encode(x)
        return self.decode(mean + (factor @ torch.randn(*mean.shape, 1))[..., 0])


class RowLoss(Flat):
    """A number for each row that is no spread."""

    def encode(self, x):
        mean, _ = self.code(x)
        return mean, 3 + mean.square().sum(1, keepdim=True)

    def forward(self, x):
        return self.decode(drawn(self.code(x)[0], self.code(x)[1]))


@pytest.mark.parametrize("kind", [OneSpread, SpreadOfAll, Matrix, RowLoss])
def test_spreads_of_other_shapes(kind):
    model, x = built(kind), images()
    vae = rv.wrap(model, **SHAPE)
    assert not vae.output_only
    if kind in (Matrix, RowLoss):
        assert not vae.has_spread and "no spread was found" in vae.assumptions[0]
        record = rv.check(vae, x)
        assert any("say log_var=" in item.message for item in record.items)
        return
    mean, log_var = model.encode(x)
    for rows in (4, 1):
        q = vae.encode(x[:rows])
        expected = torch.exp(0.5 * log_var.expand_as(mean))[:rows]
        torch.testing.assert_close(q.stddev, expected)
    assert rv.check(vae, x).passed
    # bounds take the norm of the spread, which one number for several does not have
    lower = rv.certify(vae, x[:1], r=1.0, m=0.5, displacement="full", generator=rv.generator(0))
    assert lower.status == ("abstain",)
