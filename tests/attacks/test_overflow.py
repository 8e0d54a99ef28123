"""The nearest overflowing input: judged in half precision, searched in float32."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import robustvae as rv
from robustvae.attacks.goals import Overflow, nearest_overflow
from robustvae.errors import ShapeError, UnknownNameError, UnsupportedError

# weights of a code w.x, with x = 0.5 everywhere: below the range, and how far from its end
WEIGHTS = {"float16": (7e3, 65520.0, 0.01), "bfloat16": (4e37, 3.3961776e38, 0.1)}


class Steep(nn.Module):
    """One code is a large multiple of the pixels' sum."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.enc, self.dec = nn.Linear(16, 2, bias=False), nn.Linear(2, 16, bias=False)
        with torch.no_grad():
            self.enc.weight.zero_()
            self.enc.weight[0] = weight
            self.enc.weight[1, 0] = 1.0
            self.dec.weight.fill_(0.5)
            self.dec.weight[:, 0] = 0.0

    def encode(self, x):
        return self.enc(x.flatten(1))

    def decode(self, z):
        return torch.sigmoid(self.dec(z)).view(-1, 1, 4, 4)


def judged(dtype, deployed):
    weight, most, _ = WEIGHTS[dtype]
    model = Steep(weight).float()
    vae = rv.wrap(model.to(deployed), image_shape=(1, 4, 4))
    x = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float32)
    exact = (most / weight - 8) / 4
    return vae, x, exact


def test_audits_list_the_nearest_overflow():
    plan = {"base": "smoke", "inputs": 2, "probes": 0, "margins": None, "draws": 10}
    for deployed in (torch.float16, torch.float32):
        vae, x, exact = judged("float16", deployed)
        record = rv.audit(vae, rv.data.from_tensor(x), plan, question={"r": 1.0})
        sizes = {row["overflow_distance"] for row in record.rows}
        if deployed == torch.float32:
            assert sizes == {None}
            continue
        assert all(size == pytest.approx(exact, rel=0.01) for size in sizes)
        assert {row["overflow_share"] for row in record.rows} == {1.0}
        assert any(entry.key == "overflow_distance" for entry in record.summary)


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("is_half", [False, True])
def test_nearest_overflow_has_a_closed_form(dtype, is_half):
    half = getattr(torch, dtype)
    vae, x, exact = judged(dtype, half if is_half else torch.float32)
    search = rv.ProjectedAscent(steps=10, restarts=2)
    attack = rv.Attack(Overflow(dtype), search, rv.Ball("l2", 1.0))
    result = attack(rv.Victim(vae), x, generator=rv.generator(0))
    assert result.score.tolist() == [1.0, 1.0]
    assert bool((result.gradient_norm > 0).all())
    nearest, size = nearest_overflow(vae, x, result.x_adv, dtype)
    torch.testing.assert_close(size, torch.full_like(size, exact), rtol=WEIGHTS[dtype][2], atol=0)
    twin = Steep(WEIGHTS[dtype][0]).to(half)
    assert not bool(twin.encode(nearest.to(half)).isfinite().all(1).any())
    assert bool(twin.encode(x.to(half)).isfinite().all())


def test_reports_are_the_deployed_types_own():
    vae, x, exact = judged("float16", torch.float32)
    victim, rows = rv.Victim(vae), torch.arange(2)
    y = torch.stack([x[0], x[0] + 1.05 * exact / 4])
    for dtype, expected in (("float16", [False, True]), ("bfloat16", [False, False])):
        score = Overflow(dtype).report(victim, x, generator=rv.generator(0))(y, rows)
        assert (score > 0).tolist() == expected
    near = Overflow("float16").bind(victim, x, generator=rv.generator(0))(y, rows)
    torch.testing.assert_close(near[0].exp(), torch.tensor(56000 / 65504, dtype=torch.float32))


def test_what_does_not_overflow_is_said():
    vae, x, exact = judged("float16", torch.float32)
    _, size = nearest_overflow(vae, x, x + 0.5 * exact / 4)
    assert size.tolist() == [math.inf] * 2
    _, size = nearest_overflow(vae, x + 2 * exact / 4, x)
    assert size.tolist() == [0.0] * 2
    with pytest.raises(ShapeError):
        nearest_overflow(vae, x, x[:, :, 1:])
    with pytest.raises(UnknownNameError):
        Overflow("float8")
    functions = rv.wrap(
        encode=lambda u: u.flatten(1)[:, :2], decode=lambda z: z.repeat(1, 8), latent=2,
        image_shape=(1, 4, 4), returns="mean",
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="no parameters"):
        Overflow().report(rv.Victim(functions), x.double(), generator=rv.generator(0))


def test_models_keep_their_type_and_hooks():
    vae, x, _ = judged("float16", torch.float32)
    score = Overflow().report(rv.Victim(vae), x, generator=rv.generator(0))
    score(x, torch.arange(2))
    assert {p.dtype for p in vae.parameters()} == {torch.float32}
    assert not any(len(part._forward_hooks) for part in vae.modules())
