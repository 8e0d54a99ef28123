"""A model of pythae: prior, flow and loss are taken from the model and its configuration."""

import warnings

import torch

import robustvae as rv

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the package, when it is imported
        from pythae.models import VAE, VAEConfig
except ImportError:
    print("pythae is not installed")
else:
    torch.manual_seed(0)
    # a trained one: rv.load("my_model_folder"); no pickle in it is read
    vae = rv.wrap(VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=8)))
    print(vae.recognized, vae.likelihood)
    x = torch.rand(2, 1, 28, 28)
    hmc = rv.Victim(vae, rv.HMC(steps=2))
    print(hmc.reconstruct(x, generator=rv.generator(0)).shape)
