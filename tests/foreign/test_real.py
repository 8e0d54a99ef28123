"""The real classes of pythae, diffusers and CompressAI, where they are installed."""

from __future__ import annotations

import importlib
import warnings

import pytest
import torch

import robustvae as rv

PYTHAE = {
    "AE": False,
    "BetaTCVAE": True,
    "HVAE": False,
    "IWAE": True,
    "PoincareVAE": False,
    "RAE_GP": False,
    "SVAE": False,
    "VAE": True,
    "VAMP": True,
    "VQVAE": False,
    "WAE_MMD": False,
}


def judged(vae):
    x = torch.rand(2, *vae.image_shape, generator=rv.generator(0), dtype=vae.dtype)
    attack = rv.Attack(
        rv.MaximumDamage(), rv.ProjectedAscent(steps=2, restarts=1), rv.Ball("l2", 0.5)
    )
    found = attack(rv.Victim(vae), x, generator=rv.generator(0))
    # an untrained codebook may hide every change of its code
    assert vae.is_straight_through or found.status == ("ok", "ok")
    assert rv.check(vae, x).passed


def optional(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.mark.parametrize("name", PYTHAE)
@pytest.mark.filterwarnings("ignore")
def test_pythae_takes_one_line(name):
    models = optional("pythae.models")
    kind = getattr(models, name)
    package = importlib.import_module(kind.__module__.rpartition(".")[0])
    config = getattr(package, f"{name}Config", None) or getattr(package, f"{name}_Config")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config(input_dim=(1, 28, 28), latent_dim=4)).float()
    vae = rv.wrap(model)
    assert vae.has_spread == PYTHAE[name]
    assert vae.is_straight_through == (name == "VQVAE")
    judged(vae)


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderTiny"])
@pytest.mark.filterwarnings("ignore")
def test_diffusers_takes_one_line(name):
    kind = getattr(optional("diffusers"), name)
    options = {
        "AutoencoderKL": {
            "block_out_channels": (8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 4,
            "layers_per_block": 1,
            "sample_size": 16,
        },
        "AutoencoderTiny": {
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(latent_channels=4, **options[name]).to(torch.get_default_dtype())
    vae = rv.wrap(model, image_shape=(3, 16, 16))
    assert vae.space.low == -1.0
    x = torch.rand(2, 3, 16, 16, generator=rv.generator(0))
    with torch.no_grad():
        code = model.eval().encode(2 * x - 1)
        mean = code.latent_dist.mean if name == "AutoencoderKL" else code.latents
        image = (model.decode(mean).sample + 1) / 2
        assert vae.encode(x).mean.shape == (2, mean[0].numel())
        torch.testing.assert_close(vae.decode(vae.encode(x).mean).mean, image, atol=1e-6, rtol=0)
    judged(vae)


@pytest.mark.filterwarnings("ignore")
def test_compressai_takes_one_line():
    models = optional("compressai.models")
    model = models.ScaleHyperprior(8, 12)
    model.update()
    vae = rv.wrap(model, image_shape=(3, 64, 64))
    assert vae.is_straight_through
    judged(vae)
