"""A model of your own, as it might lie on your disk; nothing in it knows this library."""

import torch
from torch import Tensor, nn


class VAE(nn.Module):
    """A small VAE that returns what such modules return: reconstruction, mean, log-variance."""

    def __init__(self, latent: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
        self.mean, self.log_var = nn.Linear(64, latent), nn.Linear(64, latent)
        self.decoder = nn.Sequential(
            *(nn.Linear(latent, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid()),
            nn.Unflatten(1, (1, 8, 8)),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        return self.mean(h), self.log_var(h)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.encode(x)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        return self.decode(z), mean, log_var


def build() -> VAE:
    """The factory that `robustvae audit tutorial_model.py:build` calls."""
    return VAE()


if __name__ == "__main__":  # a few seconds of training, so that there is a vae.pt
    import robustvae as rv

    torch.manual_seed(0)
    x = rv.data.load("digits", split="train").x
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(600):
        batch = x[torch.randint(len(x), (128,))]
        output, mean, log_var = model(batch)
        kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(1)
        error = 20 * (output - batch).square().flatten(1).sum(1)
        loss = (error + kl).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), "vae.pt")
    print(f"saved vae.pt, loss {loss:.1f}")
