"""Every model of the library has distributions of the right shapes, and survives a checkpoint."""

from __future__ import annotations

import pytest
import torch

import robustvae as rv
from robustvae.testing import ContractError, check_model, members_of

SMALL = {
    "dlgm": {"architecture": "conv8", "widths": [4, 2]},
    "lipschitz-vae": {"latent": 2, "image_shape": (1, 8, 8), "hidden": [16]},
    "nvae": {"image_shape": (1, 8, 8), "channels": 8},
    "seatbelt": {"architecture": "conv8", "widths": [4, 2]},
    "vae": {"architecture": "conv8", "latent": 2},
}


def test_every_model_has_evidence():
    assert set(SMALL) == members_of("robustvae", "model")


@pytest.mark.parametrize("name", sorted(SMALL))
def test_model_keeps_its_contract(name):
    check_model(rv.models.create(name, **SMALL[name]))


def test_crowded_model_is_named():
    vae = rv.models.create("vae", architecture="conv8", latent=2)
    shifted = rv.wrap(
        encode=lambda x: rv.models.Gaussian(
            vae.encode(x).mean - vae.encode(x).mean.mean(0), torch.ones(len(x), 2)
        ),
        decode=vae.decode,
        latent=2,
        image_shape=(1, 8, 8),
    )
    with pytest.raises(ContractError, match="other rows"):
        check_model(shifted)
