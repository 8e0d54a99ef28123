"""A model that is read otherwise than it was made ends the audit with the remedy."""

from __future__ import annotations

import pytest
import torch

import robustvae as rv
from robustvae.errors import ModelError


class Signed(torch.nn.Module):
    """The bundled model as one would train it on pixels in [-1, 1]."""

    def __init__(self):
        super().__init__()
        self.inner = rv.load("digits-vae")

    def encode(self, x):
        return self.inner.encode((x + 1) / 2)

    def decode(self, z):
        return 2 * self.inner.decode(z).mean - 1


def signed(**options):
    module = Signed()
    return rv.wrap(
        encode=module.encode,
        decode=module.decode,
        latent=module.inner.latent,
        image_shape=(1, 8, 8),
        outputs="mean",
        **options,
    )


def test_wrong_range_ends_audit(digits, one):
    with pytest.raises(ModelError, match=r"pixel_range.*pixels=\(-1, 1\).*diagnosis_passed"):
        rv.audit(signed(), digits, plan=one)


def test_remedy_lets_audit_run(digits, one):
    record = rv.audit(signed(pixels=(-1, 1)), digits, plan=one)
    assert record.verdict.useful


def test_look_can_be_left_out(digits, one):
    record = rv.audit(signed(), digits, plan={**one, "without": ["diagnosis_passed"]})
    assert record.rows


def test_training_mode_is_mended(digits, one):
    vae = rv.load("digits-vae").train()
    record = rv.audit(vae, digits, plan=one)
    assert any("training mode" in sentence for sentence in record.protocol)
    assert vae.training and record.rows == rv.audit(vae.eval(), digits, plan=one).rows


def test_model_that_raises_ends_audit(digits, one):
    vae = rv.load("digits-vae")

    def encode(x):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    broken = rv.wrap(encode=encode, decode=vae.decode, latent=vae.latent, image_shape=(1, 8, 8))
    with pytest.raises(ModelError, match="shapes cannot be multiplied"):
        rv.audit(broken, digits, plan=one)
