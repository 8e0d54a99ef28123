"""Draws that are not independent: seen in their order, by `certify` and by `rv.check` alike."""

import pytest
import torch

import robustvae as rv
from robustvae import errors
from robustvae.defenses.draws import check_values
from robustvae.defenses.independence import noise_of

S, WIDTH = 0.2, 8


class Own:
    """A defense that adds noise of its own to the code: a function of the draw and its calls."""

    def __init__(self, noise):
        self.noise, self.calls, self.memory = noise, 0, {}

    def __call__(self, vae, x, *, generator):
        mean = vae.encode(x).mean
        self.calls += 1
        fresh = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        return mean + 0.4 * self.noise(self, fresh, generator).to(mean.dtype)


def victim(noise, votes=1):
    def posterior(x):
        mean = x.flatten(1)
        return rv.models.Gaussian(mean, torch.full_like(mean, 1e-3))

    def output(z):
        return rv.models.Gaussian(z.view(-1, 1, 1, WIDTH), torch.ones(len(z), 1, 1, WIDTH))

    vae = rv.wrap(encode=posterior, decode=output, latent=WIDTH, image_shape=(1, 1, WIDTH))
    return rv.Victim(vae, rv.InputNoise(S, Own(noise), votes=votes))


def by_pairs(own, fresh, generator):
    return fresh[torch.arange(len(fresh)) // 2]


def antithetic(own, fresh, generator):
    half = (len(fresh) + 1) // 2
    return torch.cat([fresh[:half], -fresh[:half]])[: len(fresh)]


def mirrored(own, fresh, generator):
    half = (len(fresh) + 1) // 2
    return torch.cat([fresh[:half], fresh[:half].flip(0)])[: len(fresh)]


def every_32nd_batch(own, fresh, generator):
    """Whatever the calls are for, each 32nd large batch makes one draw for all rows."""
    own.memory["large"] = own.memory.get("large", 0) + (len(fresh) > 4)
    shared = len(fresh) > 4 and own.memory["large"] % 32 == 0
    return fresh[:1].expand_as(fresh) if shared else fresh


def again_in_each_call(own, fresh, generator):
    """Rows differ; half of what they draw is what the call before drew."""
    first = own.memory.setdefault(len(fresh), fresh)
    return 0.8 * first + 0.6 * fresh


def along_rows(own, fresh, generator):
    rows = [fresh[0]]
    for row in fresh[1:]:
        rows.append(0.6 * rows[-1] + 0.8 * row)
    return torch.stack(rows)


def counted(own, fresh, generator):
    """It counts its calls, and is noisier in every other one."""
    return fresh * (1 + own.calls % 2)


def tired(own, fresh, generator):
    """It counts its calls, and grows noisier with them."""
    return fresh * (1 + own.calls / 100)


def evened(own, fresh, generator):
    """A batch's noise is centered, as of stratified draws."""
    return fresh - fresh.mean(0) if len(fresh) > 4 else fresh


PLANTS = [
    by_pairs,
    antithetic,
    mirrored,
    every_32nd_batch,
    again_in_each_call,
    along_rows,
    counted,
    tired,
]


def plain(own, fresh, generator):
    return fresh


def coarse(own, fresh, generator):
    return fresh.round()


def rare(own, fresh, generator):
    return 5.0 * (fresh[:, :1] > 2.3).expand_as(fresh)


def wild(own, fresh, generator):
    return 1 / fresh.abs().clamp_min(1e-3)


HONEST = [plain, coarse, rare, wild]


def named(functions):
    return pytest.mark.parametrize("noise", functions, ids=lambda f: f.__name__)


@named([*PLANTS, evened])  # which moves no distance from a center
def test_check_names_dependent_draws(noise):
    item = rv.check(victim(noise), torch.full((2, 1, 1, WIDTH), 0.5))["draws_independent"]
    assert item.passed is False and item.message and item.remedy


@named(PLANTS)
def test_certify_refuses_dependent_draws(noise):
    x = torch.full((1, 1, 1, WIDTH), 0.5)
    lower = rv.certify(victim(noise), x, 3.0, draws=6000, generator=rv.generator(0))
    assert not float(lower.radius[0])
    assert any("smoothing needs" in words for words in lower.assumptions), lower.assumptions


@named(HONEST)
@pytest.mark.parametrize("votes", [1, 3])
def test_honest_draws_are_accepted(noise, votes):
    subject, x = victim(noise, votes), torch.full((2, 1, 1, WIDTH), 0.5)
    assert rv.check(subject, x)["draws_independent"].passed
    lower = rv.certify(subject, x[:1], 4000.0, draws=2000, generator=rv.generator(0))
    assert float(lower.radius[0]) > 0, lower.assumptions


@pytest.mark.parametrize("defense", ["posterior-sample", "posterior-mean", "hmc:steps=2"])
def test_stored_models_pass_behind_noise(defense):
    x = rv.data.load("digits", split="test").x[:2]
    subject = rv.Victim(rv.load("digits-vae"), rv.InputNoise(S, defense))
    assert rv.check(subject, x)["draws_independent"].passed


def test_check_asks_of_noise_only():
    x = rv.data.load("digits", split="test").x[:2]
    items = rv.check(rv.Victim(rv.load("digits-vae"), rv.PosteriorSample()), x).items
    assert "draws_independent" not in [item.name for item in items]


def test_slow_victims_are_not_judged(monkeypatch):
    monkeypatch.setattr("robustvae.models.diagnosis.PATIENCE", 0.0)
    item = rv.check(victim(by_pairs), torch.full((2, 1, 1, WIDTH), 0.5))["draws_independent"]
    assert item.passed is None and "too slow" in item.message


def test_noise_of_subclass_is_refused():
    class Quiet(rv.InputNoise):
        def noisy(self, x, *, generator):
            return x

    x = torch.full((1, 1, 1, WIDTH), 0.5)
    vae, replaced = victim(plain).vae, rv.InputNoise(S)
    object.__setattr__(replaced, "noisy", lambda x, generator: x)
    for noise in (Quiet(S), replaced):
        with pytest.raises(errors.UnsupportedError, match="may draw otherwise"):
            noise_of(rv.Victim(vae, noise))
        lower = rv.certify(rv.Victim(vae, noise), x, 3.0, draws=200, generator=rv.generator(0))
        assert not float(lower.radius[0])
        assert rv.check(rv.Victim(vae, noise), x)["draws_independent"].passed is False


@pytest.mark.parametrize("law", ["normal", "uniform", "few values", "infinite at times"])
def test_independent_numbers_pass_always(law, generator):
    for _ in range(100):
        values = torch.randn(1030, generator=generator)
        if law == "uniform":
            values = torch.special.ndtr(values)
        if law == "few values":
            values = (values > 1.5).double()
        if law == "infinite at times":
            values[values > 1] = torch.inf
        check_values(values, at_once=32)


@pytest.mark.parametrize("batch", [0, 17, 31])
def test_one_repeated_batch_is_seen(batch, generator):
    values = torch.randn(32, 32, generator=generator)
    values[batch] = values[5]
    if batch != 5:
        with pytest.raises(errors.UnsupportedError, match="go together"):
            check_values(values.flatten(), at_once=32)
    values[batch] = values[batch, :1]
    with pytest.raises(errors.UnsupportedError, match=f"batch {batch + 1} of"):
        check_values(values.flatten(), at_once=32)


def test_draws_of_one_law_only(generator):
    values = torch.randn(40, 32, generator=generator)
    values[11] += 2.5
    with pytest.raises(errors.UnsupportedError, match="smoothing needs"):
        check_values(values.flatten(), at_once=32)
