"""A Lightning module, or anything that holds its model in an attribute."""

import torch
from torch import nn

import robustvae as rv


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(64, 8), nn.Linear(4, 64)

    def forward(self, x):
        mean, log_var = self.down(x.flatten(1)).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        return {"x_hat": torch.sigmoid(self.up(z)).view_as(x), "mu": mean, "logvar": log_var}


class Trainer(nn.Module):  # a LightningModule in your code
    def __init__(self):
        super().__init__()
        self.model = Net()

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.model(batch)["x_hat"], batch)


torch.manual_seed(0)
vae = rv.wrap(Trainer(), image_shape=(1, 8, 8))
print(vae.recognized)
print(rv.check(vae, torch.rand(4, 1, 8, 8)).passed)
