"""Every architecture with one and three channels, in chunks of every size."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import robustvae as rv
from robustvae.models.networks import ARCHITECTURES, DEFAULT_SHAPES
from robustvae.robustness import displacements


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chunks_change_no_number(architecture, channels):
    side = 8 if architecture == "mlp" else DEFAULT_SHAPES[architecture][1]
    vae = rv.models.create(
        "vae", architecture=architecture, latent=3, image_shape=(channels, side, side)
    ).eval()
    x = torch.rand(5, *vae.image_shape, generator=rv.generator(0), dtype=vae.dtype)
    victim = rv.Victim(vae)
    results = [
        displacements(victim, x, 1 - x, "paired", generator=rv.generator(1), draws=3, chunk=chunk)
        for chunk in (1, 2, 5)
    ]
    assert results[0].shape == (3, 5) and bool((results[0] > 0).all())
    for other in results[1:]:
        assert_close(other, results[0])
    scores = []
    for chunk in (1, 2, 5):
        search = rv.ProjectedAscent(steps=1, restarts=1, chunk=chunk)
        attack = rv.Attack(rv.MaximumDamage(), search, rv.Ball("l2", 0.5))
        scores.append(attack(victim, x, generator=rv.generator(2)).score)
    for other in scores[1:]:
        assert_close(other, scores[0], rtol=1e-3, atol=1e-6)
