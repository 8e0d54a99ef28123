"""Sparse balls, decibels of a signal, and counts, inside the profiles."""

from __future__ import annotations

import pytest
import torch

import robustvae as rv
from robustvae import errors
from robustvae.audit.profiles.anomaly import Anomaly
from robustvae.audit.profiles.base import UseContext
from robustvae.audit.profiles.changes import Allowance, allowances
from robustvae.audit.profiles.representation import Representation
from robustvae.data import InputSpace
from robustvae.records.parts import UseFacts
from robustvae.report.profiles import anomaly as anomaly_section

SEARCH = "projected-ascent:steps=10,restarts=2"
FAST = {"inputs": 8, "search": SEARCH, "gradient_free": 30}


class Middle(torch.nn.Module):
    """An autoencoder that returns 0.5 for all but the first value."""

    def encode(self, x):
        return x.flatten(1)[:, :1]

    def decode(self, z):
        return torch.cat([z, torch.full((len(z), 5), 0.5).to(z)], 1)


def table():
    """Normals at the middle; anomalies with four values at the end of the range."""
    x = torch.full((24, 1, 1, 6), 0.5)
    x[12:, 0, 0, 2:] = 1.0
    return rv.data.joined({"normal": x[:12], "crack": x[12:]})


def judged(use, victims=None):
    victims = victims or {"plain": rv.Victim(rv.wrap(Middle(), image_shape=(6,)))}
    return use(UseContext(victims, table()))


def attacked(result, side):
    rows = [r for r in result.rows if r["condition"] == "attacked" and r["side"] == side]
    return {(r["norm"], r["radius"]): r["score"] for r in rows}


def test_sparse_attack_reaches_optimum():
    """k values move to their best: k halves off the normals' zero, k less of the anomalies' 4."""
    balls = (rv.Ball("l0", 1), rv.Ball("l0", 3))
    result = judged(Anomaly(balls=balls, **FAST))
    raised, lowered = attacked(result, "normal"), attacked(result, "anomalous")
    for k in (1, 3):
        assert raised["l0", float(k)] == pytest.approx((k * 0.25) ** 0.5, abs=0.02)
        assert lowered["l0", float(k)] == pytest.approx(((4 - k) * 0.25) ** 0.5, abs=0.02)
    section = anomaly_section.section(
        UseFacts(name="anomaly", rows=result.rows, facts=result.facts), ["plain"]
    )
    assert section.answer[0].startswith(("With one changed value", "With 3 changed values"))


def test_masked_features_stay_in_sparse_ball():
    use = Anomaly(balls=(rv.Ball("l0", 4),), masked=(1, 2, 3, 4, 5), **FAST)
    result = judged(use)
    # only the first value may change, which the error does not see
    assert attacked(result, "anomalous")["l0", 4.0] == pytest.approx(1.0, abs=1e-5)


def test_decibels_are_of_signal():
    generator = rv.generator(0)
    x = torch.rand(5, 2, 1, 32, generator=generator)
    ball = Allowance("snr", 20.0).ball(x)
    x_adv = ball.project(x, x + torch.randn(x.shape, generator=generator))
    signal = (x - x.mean((2, 3), keepdim=True)).flatten(1).norm(dim=1)
    ratio = 20 * (signal / (x_adv - x).flatten(1).norm(dim=1)).log10()
    # the definition, by a loop; the box may leave less than the whole radius
    assert torch.all(ratio >= 20 - 1e-4) and float(ratio.min()) == pytest.approx(20, abs=0.01)
    shifted = Allowance("snr", 20.0).ball(x / 2 + 0.25)
    assert torch.allclose(shifted.radius, ball.radius / 2)


def test_fewer_decibels_never_weaker():
    images = rv.data.load("drawn-signals", split="test")
    vae = rv.wrap(Line(), image_shape=(2, 128), pixels=(-1, 1))
    use = Anomaly(balls=(), snr=(10, 30), inputs=6, search=SEARCH, gradient_free=0)
    result = use(UseContext({"line": rv.Victim(vae)}, images))
    rows = [r for r in result.rows if r["condition"] == "attacked"]
    by_size = {d: [r["score"] for r in rows if r["radius"] == d] for d in (10, 30)}
    signs = [1 if r["side"] == "normal" else -1 for r in rows if r["radius"] == 10]
    for weak, strong, sign in zip(by_size[30], by_size[10], signs, strict=True):
        assert sign * strong >= sign * weak - 1e-6
    section = anomaly_section.section(
        UseFacts(name="anomaly", rows=result.rows, facts=result.facts), ["line"]
    )
    assert any("an SNR of" in sentence for sentence in section.answer)


class Line(torch.nn.Module):
    """Reads signals (2, T) and returns their means: an error of everything that moves."""

    def encode(self, x):
        return x.mean(2)

    def decode(self, z):
        return z.unsqueeze(2).expand(-1, 2, 128)


def counting():
    space = InputSpace((6,), low=0, high=10, discrete=True)
    return rv.wrap(Counted(), image_shape=(6,), pixels=space)


class Counted(torch.nn.Module):
    def encode(self, x):
        return x.flatten(1)[:, :1]

    def decode(self, z):
        return torch.cat([z, torch.full((len(z), 5), 5.0).to(z)], 1)


def test_counts_move_by_whole_numbers():
    result = judged(Anomaly(**FAST), {"counts": rv.Victim(counting())})
    norms = {r["norm"] for r in result.rows if r["condition"] == "attacked"}
    assert norms == {"l0"}
    stages = [one.stage for one in result.left_out if "only l0 balls" in one.reason]
    assert "attacks in linf 0.1" in stages
    reasons = {one.stage: one.reason for one in result.left_out}
    assert "fractions of counts" in reasons["certified scores"]


def test_counts_refuse_smoothing():
    vae = counting()
    with pytest.raises(errors.UnsupportedError, match="fractions of counts"):
        rv.Victim(vae, "input-noise:stddev=0.1").reconstruct(
            table().x[:1], generator=rv.generator(0)
        )
    with pytest.raises(errors.UnsupportedError, match="fractions of counts"):
        judged(Anomaly(**FAST), {"noisy": rv.Victim(vae, "input-noise:stddev=0.1")})
    head = lambda z: torch.cat([z, -z], 1)  # noqa: E731
    use = Representation(head=head, inputs=4, search=SEARCH)
    result = judged(use, {"counts": rv.Victim(vae)})
    assert any("fractions of counts" in one.reason for one in result.left_out)


def test_smoothed_counts_are_left_out():
    """The first victim cannot read counts: a sentence says so, and the second one is audited."""
    vae = counting()
    victims = {"noisy": rv.Victim(vae, "input-noise:stddev=0.1"), "plain": rv.Victim(vae)}
    use = {"name": "anomaly", **FAST, "inputs": 4}
    record = rv.audit(
        victims=victims,
        images=table(),
        plan={"base": "smoke", "inputs": 2},
        profile={"use": use},
        question={"r": 1.0},
    )
    (reason,) = [one.reason for one in record.left_out if one.victim == "noisy"]
    assert "fractions of counts" in reason
    assert {row["victim"] for row in record.use.rows} == {"plain"}
    assert [one.name for one in record.victims] == ["plain"]
    result = judged(Anomaly(**FAST), victims)
    assert {row["victim"] for row in result.rows} == {"plain"}


def test_allowances_sort_by_size():
    vae = rv.wrap(Middle(), image_shape=(6,))
    balls = (rv.Ball("l2", 1.0), rv.Ball("l0", 2), rv.Ball("l2", 0.5))
    names = [one.words for one in allowances(balls, (10, 40), vae)[0]]
    assert names == ["l0 2", "l2 0.5", "l2 1", "SNR 40 dB", "SNR 10 dB"]
    with pytest.raises(errors.ConfigError, match="at least one ball"):
        Anomaly(balls=(), snr=())
