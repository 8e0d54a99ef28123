"""The autoencoder of a latent-diffusion model: codes (B, 4, h, w), images in [-1, 1]."""

import warnings

import torch

import robustvae as rv

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the package, when it is imported
        from diffusers import AutoencoderKL
except ImportError:
    print("diffusers is not installed")
else:
    torch.manual_seed(0)
    # a trained one: rv.load("owner/name", revision="commit"), or the folder of save_pretrained
    model = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
    vae = rv.wrap(model, image_shape=(3, 16, 16))
    print(vae.recognized, vae.space.low, vae.space.high)
    x = torch.rand(2, 3, 16, 16)  # images of the library stay in [0, 1]
    search = rv.ProjectedAscent(steps=2, restarts=1)
    attack = rv.Attack(rv.LatentShift("means"), search, rv.Ball("linf", 8 / 255))
    print(attack(rv.Victim(vae), x, generator=rv.generator(0)).score)
