"""A detector of faults in two-channel signals that need no file, and its audit in decibels."""

import torch
from torch import nn

import robustvae as rv


class SignalVAE(nn.Module):
    """A convolutional VAE of signals (2, 128) in [-1, 1]."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv1d(2, 16, 8, 4, 2), nn.ELU(), nn.Conv1d(16, 16, 8, 4, 2), nn.ELU(),
            nn.Flatten(), nn.Linear(128, 16),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(8, 128), nn.ELU(), nn.Unflatten(1, (16, 8)),
            nn.ConvTranspose1d(16, 16, 8, 4, 2), nn.ELU(), nn.ConvTranspose1d(16, 2, 8, 4, 2),
        )  # fmt: skip

    def encode(self, x):
        return self.encoder(x).chunk(2, dim=1)

    def decode(self, z):
        return self.decoder(z)


def build(steps=300):
    """The VAE, trained on normal signals: `robustvae audit use_signals.py:build` loads it."""
    images = rv.data.load("drawn-signals")
    x = 2 * images.x[images.y == 0].squeeze(2) - 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SignalVAE()
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(steps):
            batch = x[torch.randint(len(x), (64,))]
            mean, log_var = model.encode(batch)
            output = model.decode(mean + (log_var / 2).exp() * torch.randn_like(mean))
            kl = (mean.square() + log_var.exp() - 1 - log_var).sum(1) / 2
            loss = ((output - batch).square().flatten(1).sum(1) / 0.01 + kl).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return rv.wrap(model.eval(), image_shape=(2, 128), pixels=(-1, 1))


if __name__ == "__main__":
    images = rv.data.load("drawn-signals", split="test")
    # changes 30 and 20 dB below the signal, and up to 4 of the 256 values anywhere
    search = "(projected-ascent:steps=20,restarts=1)"
    profile = (
        f"anomaly:inputs=20,snr=[30,20],balls=[(norm=l0,radius=4)],gradient_free=20,search={search}"
    )
    record = rv.audit(build(), images, profile=profile, seed=0)
    for sentence in rv.report.section_of(record).answer:
        print(sentence)
