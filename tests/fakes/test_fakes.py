"""Every planted fake is named by the verdict's first sentence, and no honest victim accused."""

from __future__ import annotations

import pytest
import torch

import robustvae as rv
from tests.fakes.kinds import LARGE_FAKES, LARGE_HONEST
from tests.fakes.planted import FAKES, HONEST

PLAN = {
    "inputs": 8,
    "shard": 8,
    "draws": 60,
    "margins": None,
    "certificates": False,
    "geometry": False,
    "gallery": 0,
    "probes": 4,
    "gradient_free": 150,
    "longer": 1,
    # what no check reads
    "without": [
        "survival",
        "similarity",
        "first-order",
        "damage-curve",
        "band-attacked",
        "resubmission",
    ],
    "attacks": [
        {"search": {"name": "projected-ascent", "steps": 20, "restarts": 3}, "radius": 1.0}
    ],
}

# behind a search of many steps every gradient costs as many: less effort, the same checks
COSTLY = {
    "posterior_mode",
    "robust_mode",
    "robust_mode_l2",
    "hmc",
    "hmc_tiny_steps",
    "posterior_sample",
    "noise_with_votes",
    "random_resizing",
}
SMALL = {
    **PLAN,
    "inputs": 4,
    "probes": 2,
    "draws": 30,
    "gradient_free": 20,
    "attacks": [{"search": {"name": "projected-ascent", "steps": 6, "restarts": 2}, "radius": 1.0}],
}


# near copies of others, and long searches: judged outside the gate
SLOW = {
    "quantizer_8_bit",
    "quantizer_4_bit",
    "detached_sampler",
    "sigma_million",
    # at 28 x 28, or in a test of its own, in the gate
    "sigma_30",
    "random_shift",
    "memory_of_inputs",
    "quantizer_2_bit",
    "gradient_thinned",
    "soft_staircase",
    "ripples",
    "random_rotation",
    "random_pixels_dropped",
    "hmc_tiny_steps",
    "robust_mode_l2",
    "noise_with_votes",
    "random_resizing",
}


def mostly_fast(names):
    return [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in names]


@pytest.fixture(scope="module")
def digits():
    return rv.data.load("digits", split="test")


@pytest.fixture(scope="module")
def honest_vae():
    return rv.load("digits-vae")


def judged(make, vae, images, plan=PLAN):
    x = images.x.to(vae.dtype)
    return rv.audit(make(vae, x), images, plan=plan, seed=0)


@pytest.mark.parametrize("name", mostly_fast(FAKES))
def test_fake_is_named(name, digits, honest_vae):
    record = judged(FAKES[name].make, honest_vae, digits)
    named = [check for check in FAKES[name].caught_by if check in record.verdict.failed]
    assert named, record.verdict.first
    assert named[0] in record.verdict.first and not record.verdict.passed


@pytest.mark.parametrize("name", mostly_fast(HONEST))
def test_honest_victim_is_not_accused(name, digits, honest_vae):
    record = judged(HONEST[name], honest_vae, digits, SMALL if name in COSTLY else PLAN)
    assert not record.verdict.failed, record.verdict.first
    assert record.verdict.useful and record.verdict.sound


@pytest.mark.parametrize("name", LARGE_FAKES)
def test_fake_is_named_on_large_images(name, large):
    images, vae = large
    record = judged(FAKES[name].make, vae, images)
    named = [check for check in FAKES[name].caught_by if check in record.verdict.failed]
    assert named, record.verdict.first
    assert named[0] in record.verdict.first


@pytest.mark.parametrize("name", LARGE_HONEST)
def test_honest_victim_on_large_images(name, large):
    images, vae = large
    record = judged(HONEST[name], vae, images, SMALL if name in COSTLY else PLAN)
    assert not record.verdict.failed, record.verdict.first
    assert record.verdict.useful and record.verdict.sound


@pytest.fixture(scope="module")
def large():
    """Images of 28 x 28 with a few degrees of freedom, and a small model trained on them."""
    g = torch.Generator().manual_seed(3)
    across = torch.linspace(0, 6.0, 28)
    phase, wave, tilt = (torch.rand(256, 1, 1, generator=g) for _ in range(3))
    x = torch.sin(
        (1 + 2 * wave) * across[None, None, :] + 3 * tilt * across[None, :, None] + 6 * phase
    )
    images = rv.data.Images((0.5 + 0.45 * x).unsqueeze(1).float(), torch.arange(256) % 4, "stripes")
    vae = rv.models.create(
        "vae", architecture="mlp", latent=6, hidden=[64], image_shape=(1, 28, 28)
    ).float()
    rv.fit(vae, rv.objectives.ELBO(), images, epochs=40, batch_size=64, generator=rv.generator(0))
    return images, vae


def test_memory_is_found_beside_inputs(digits, honest_vae):
    """Shifted, noised and unseen inputs are easier to attack than those known by heart."""
    record = judged(FAKES["memory_of_inputs"].make, honest_vae, digits)
    assert "same_beside_inputs" in record.verdict.failed
    probe = record.victims[0].probes["beside"]
    assert set(probe["damage_beside"]) == {"shifted", "noised", "unseen"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("gradient_flipped", marks=pytest.mark.slow),
        pytest.param("gradient_block_means", marks=pytest.mark.slow),
        "quantizer_2_bit",
    ],
)
def test_differences_find_what_was_hidden(name, digits, honest_vae):
    """Where the gradient lies the audit climbs differences, and its rows show the damage."""
    record = judged(FAKES[name].make, honest_vae, digits)
    damage = {}
    for row in record.rows:
        damage.setdefault(row["role"], []).append(row["damage"])
    mean = {role: sum(values) / len(values) for role, values in damage.items()}
    honest = judged(HONEST["plain"], honest_vae, digits)
    plain = [row["damage"] for row in honest.rows if row["role"] == "plan"]
    assert not any(row["role"] == "differences" for row in honest.rows)
    assert mean["differences"] > 0.9 * sum(plain) / len(plain) > mean["plan"]


def test_exact_model_is_no_memory(generator):
    """One that takes all noise away misses noised inputs by the noise, and knows none by heart."""
    waves = torch.stack([torch.ones(64), torch.linspace(-1, 1, 64)]) / 8
    basis = torch.linalg.qr(waves.mT)[0].float()
    codes = torch.rand(200, 2, generator=generator).float()
    images = (0.5 + 0.3 * (codes - 0.5) @ basis.mT * 8).clamp(0, 1).view(-1, 1, 8, 8)
    exact = rv.wrap(
        encode=lambda x: rv.models.PointMass((x.flatten(1) - 0.5) @ basis),
        decode=lambda z: rv.models.PointMass((0.5 + z @ basis.mT).view(-1, 1, 8, 8)),
        latent=2,
        image_shape=(1, 8, 8),
    )
    data = rv.data.Images(images, torch.arange(200) % 4, "planes")
    plan = {"base": "smoke", "margins": None, "certificates": False, "geometry": False}
    record = rv.audit(exact, data, plan, question={"r": 1.0})
    assert "same_beside_inputs" not in record.verdict.failed
