"""Encoders with the interface of diffusers, and whether a change of their codes lasts."""

from types import SimpleNamespace

import torch
from torch import nn

import robustvae as rv


class SmallKL(nn.Module):
    """A KL autoencoder as latent-diffusion models have: four channels at a quarter of the side."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(scaling_factor=1.0, shift_factor=None)
        self.down = nn.Sequential(
            nn.Conv2d(3, 16, 4, 2, 1), nn.SiLU(), nn.Conv2d(16, 24, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(24, 8, 3, 1, 1),
        )  # fmt: skip
        self.up = nn.Sequential(
            nn.Conv2d(4, 24, 3, 1, 1), nn.SiLU(), nn.ConvTranspose2d(24, 16, 4, 2, 1), nn.SiLU(),
            nn.ConvTranspose2d(16, 3, 4, 2, 1),
        )  # fmt: skip

    def encode(self, x):
        mean, log_var = self.down(x).chunk(2, dim=1)
        return SimpleNamespace(
            latent_dist=torch.distributions.Normal(mean, (log_var.clamp(-20, 2) / 2).exp())
        )

    def decode(self, z):
        return SimpleNamespace(sample=self.up(z))


def trained(seed, steps=60):
    x = 2 * rv.data.load("drawn-shapes").x - 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SmallKL()
        optimizer = torch.optim.Adam(model.parameters(), 4e-3)
        for step in range(steps):
            batch = x[(32 * step) % 1152 :][:32]
            code = model.encode(batch).latent_dist
            error = (model.decode(code.rsample()).sample - batch).square().mean()
            kl = torch.distributions.kl_divergence(code, torch.distributions.Normal(0, 1)).mean()
            optimizer.zero_grad()
            (error + 1e-3 * kl).backward()
            optimizer.step()
    return model.eval()


def build():
    """The encoder: what `robustvae audit use_latent_diffusion.py:build` loads."""
    return rv.wrap(trained(0), image_shape=(3, 32, 32), pixels=(-1, 1))


def build_other():
    """A second one of another seed, which reads the changes made for the first."""
    return rv.wrap(trained(1), image_shape=(3, 32, 32), pixels=(-1, 1))


if __name__ == "__main__":
    images = rv.data.load("drawn-shapes", split="test")
    profile = "latent-diffusion:inputs=4,search=(projected-ascent:steps=10,restarts=1)"
    victims = {"one encoder": build(), "another": build_other()}
    record = rv.audit(victims, images, profile=profile, seed=0)
    for sentence in rv.report.section_of(record).answer:
        print(sentence)
