"""A linear head on the codes of digits that come with scikit-learn, attacked and certified."""

import torch
from torch import nn

import robustvae as rv


class DigitEncoder(nn.Module):
    """A small VAE of digits of 8 x 8 pixels, whose codes a head reads."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ELU(), nn.Linear(128, 32))
        self.decoder = nn.Sequential(nn.Linear(16, 128), nn.ELU(), nn.Linear(128, 64))

    def encode(self, x):
        return self.encoder(x.flatten(1)).chunk(2, dim=1)

    def decode(self, z):
        return self.decoder(z).sigmoid().view(-1, 1, 8, 8)


def build(steps=600):
    """The encoder, trained under noise: `robustvae audit use_representation.py:build` loads it."""
    x = rv.data.load("digits").x
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DigitEncoder()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(steps):
            batch = x[torch.randint(len(x), (64,))]
            # a defense by noise needs an encoder that has seen noise
            mean, log_var = model.encode(batch + 0.25 * torch.randn_like(batch))
            output = model.decode(mean + (log_var / 2).exp() * torch.randn_like(mean))
            kl = (mean.square() + log_var.exp() - 1 - log_var).sum(1) / 2
            loss = ((output - batch).square().flatten(1).sum(1) / 0.05 + kl).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return rv.wrap(model.eval(), image_shape=(1, 8, 8))


if __name__ == "__main__":
    images = rv.data.load("digits", split="test")
    vae = build()
    noise = rv.InputNoise(stddev=0.25, defense=rv.PosteriorMean())
    search = "(projected-ascent:steps=10,restarts=1)"
    # trained and stored the first time; read again after that
    head = "head='digits-head.safetensors'"
    balls = "balls=[(norm=l2,radius=0.5)]"
    profile = f"representation:{head},inputs=20,draws=500,{balls},search={search}"
    victims = {"as it is": rv.Victim(vae), "under noise": rv.Victim(vae, noise)}
    record = rv.audit(victims, images, profile=profile, seed=0)
    for sentence in rv.report.section_of(record).answer:
        print(sentence)
