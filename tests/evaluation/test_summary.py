"""Slopes and weights of known maps, and the record of all measures."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import robustvae as rv
from robustvae import errors, seeding
from robustvae.certificates import lipschitz_constants
from robustvae.evaluation import (
    PARTS,
    Measure,
    decoder_slopes,
    encoder_slopes,
    negative_log_likelihood,
    summary,
    weight_norms,
)
from robustvae.models import Gaussian
from robustvae.models.checkpoint import weights_sha256


@pytest.fixture(scope="module")
def digits():
    return rv.data.load("digits"), rv.data.load("digits", split="test")


@pytest.fixture
def linear():
    encoder, decoder = nn.Linear(4, 2), nn.Linear(2, 4)
    return (
        encoder,
        decoder,
        rv.wrap(
            encode=nn.Sequential(nn.Flatten(), encoder, _Around()),
            decode=nn.Sequential(decoder, nn.Unflatten(1, (1, 2, 2)), _Around()),
            latent=2,
            image_shape=(1, 2, 2),
        ),
    )


class _Around(nn.Module):
    def forward(self, mean):
        return Gaussian(mean, torch.ones_like(mean))


def test_slopes_and_norms_of_linear_maps(linear, generator):
    encoder, decoder, vae = linear
    x = torch.rand(3, 1, 2, 2, generator=generator)
    assert_close(encoder_slopes(vae, x), encoder.weight.detach().norm().expand(3))
    assert_close(decoder_slopes(vae, x), decoder.weight.detach().norm().expand(3))
    by_hand = [
        float(sum(p.detach().square().sum() for p in part.parameters()) ** 0.5)
        for part in (encoder, decoder)
    ]
    assert weight_norms(vae) == pytest.approx(by_hand)
    assert all(p.requires_grad for p in vae.parameters())


def test_weight_norms_of_parts_of_model():
    vae = rv.models.create("vae", architecture="conv8", latent=2)
    encoder = [p for name, p in vae.named_parameters() if not name.startswith("decoder")]
    norm = sum(float(p.detach().square().sum()) for p in encoder) ** 0.5
    decoder = sum(float(p.detach().square().sum()) for p in vae.decoder.parameters()) ** 0.5
    assert weight_norms(vae) == pytest.approx((norm, decoder))


def test_no_slope_exceeds_verified_constant(digits):
    vae = rv.load("digits-lipschitz-vae")
    found = rv.evaluate(vae, digits[1], parts=["slopes", "lipschitz"], seed=0, inputs=50)
    constants = lipschitz_constants(vae)
    assert found["encoder_lipschitz"].value == constants.b
    assert found["decoder_lipschitz"].value == constants.a
    # the Frobenius norm is at most sqrt(rank) times the spectral norm
    assert max(found.per_image["encoder_slope"]) <= 4 * constants.b + 1e-4
    assert max(found.per_image["decoder_slope"]) <= 4 * constants.a + 1e-4


def test_call_measures_everything_standard_errors(digits):
    train, test = digits
    vae = rv.load("digits-vae")
    found = rv.evaluate(vae, test, train=train, inputs=60, draws=40, parts=list(PARTS), seed=2)
    keys = [measure.key for measure in found.measures]
    assert len(keys) == len(set(keys)) == 22
    assert not found.absent
    without = {"active_units", "encoder_lipschitz", "decoder_lipschitz", "encoder_weights"}
    for measure in found.measures:
        alone = measure.key in without | {"decoder_weights"}
        assert (measure.stderr is None) == (measure.interval is None) == alone, measure.key
    assert found.facts["sha256"] == weights_sha256(vae)
    assert found["nll"].value < found["negative_elbo"].value
    assert found["distortion"].value + found["kl"].value == pytest.approx(
        found["negative_elbo"].value
    )
    assert found["probe_accuracy"].value > 0.7
    again = rv.evaluate(vae, test, train=train, inputs=60, draws=40, parts=["likelihood"], seed=2)
    assert again["nll"] == found["nll"]
    chosen = test.choose(60, stratified=True, generator=seeding.shard_generator(2, 0, "images"))
    draws = seeding.shard_generator(2, 0, "likelihood")
    by_hand = negative_log_likelihood(vae, test.x[chosen], draws=40, generator=draws)
    assert found["nll"].value == pytest.approx(float(by_hand.mean()))
    assert found["nll"].stderr == pytest.approx(float(by_hand.std()) / 60**0.5)


def test_layers_kl_not_covered_told(digits):
    vae = rv.models.create("dlgm", widths=[4, 2], image_shape=(1, 8, 8), hidden=[16])
    parts = ["reconstruction", "lipschitz", "probe"]
    found = rv.evaluate(vae, digits[1], inputs=30, parts=parts, seed=0)
    layers = found["kl_1"].value + found["kl_2"].value
    assert layers == pytest.approx(found["kl"].value)
    assert set(found.absent) == {"lipschitz", "probe"}
    with pytest.raises(errors.UnknownNameError):
        found["nll"]


def test_few_images_estimate_whole_set(digits):
    vae, images = rv.load("digits-vae"), digits[1]
    options = {"draws": 20, "seed": 0, "parts": ["likelihood"]}
    whole = rv.evaluate(vae, images, inputs=len(images), **options)
    few = rv.evaluate(vae, images, inputs=40, **options)
    assert "nll_all" not in [measure.key for measure in whole.measures]
    assert few["nll_all"].stderr < 0.8 * few["nll"].stderr
    apart = few["nll_all"].value - whole["nll"].value
    assert abs(apart) < 4 * few["nll_all"].stderr


def test_upper_bounds_are_shown_rounded_up():
    assert Measure("encoder_lipschitz", "", 10.00001, None, 0, "").shown == "10.0001"
    assert Measure("nll", "", 90.123449, 1.0, 9, "nats").shown == "90.123"


def test_intervals_are_of_95_percent():
    assert Measure("k", "", 1.0, 0.5, 9, "nats").interval == pytest.approx((0.02, 1.98))


@pytest.mark.parametrize(
    "wrong", [{"parts": ["everything"]}, {"inputs": 1}, {"draws": 0}, {"train": 3}, {"seed": -1}]
)
def test_bad_evaluation_arguments_are_errors(digits, wrong):
    with pytest.raises(errors.RobustVAEError):
        rv.evaluate(rv.load("digits-vae"), digits[1], **{"seed": 0} | wrong)


def test_stopped_evaluation_goes_same_numbers(digits, tmp_path, monkeypatch):
    vae, calls = rv.load("digits-vae"), []
    options = {"inputs": 250, "draws": 7, "parts": ["likelihood"], "seed": 0}
    whole = rv.evaluate(vae, digits[1], **options)

    def counted(vae, x, **given):
        calls.append(len(x))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return negative_log_likelihood(vae, x, **given)

    monkeypatch.setattr(summary, "negative_log_likelihood", counted)
    with pytest.raises(KeyboardInterrupt):
        rv.evaluate(vae, digits[1], keep=tmp_path, **options)
    again = rv.evaluate(vae, digits[1], keep=tmp_path, **options)
    assert calls == [100, 100, 100, 50]
    assert again.measures == whole.measures
    rv.evaluate(vae, digits[1], keep=tmp_path, **options | {"seed": 1})
    assert len(calls) == 7


def test_part_without_memory_costs_no_other(tmp_path, monkeypatch):
    images, vae = rv.data.load("digits", split="test"), rv.load("digits-vae")

    def short(bench):
        raise MemoryError

    monkeypatch.setitem(summary.PARTS, "slopes", short)
    ask = {"parts": ["slopes", "weights"], "inputs": 20, "seed": 0, "keep": tmp_path}
    result = rv.evaluate(vae, images, **ask)
    assert "memory ran out" in result.absent["slopes"] and result["decoder_weights"].value > 0
    monkeypatch.undo()
    told = []
    again = rv.evaluate(vae, images, **ask, progress=lambda *words: told.append(words))
    assert again["encoder_slope"].n == 20 and not again.absent
    assert told == [(0, 2, "slopes")]
    assert again.facts["environment"]["device"] == "cpu"
