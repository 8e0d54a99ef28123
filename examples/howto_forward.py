"""A class with a forward pass only: its code is read, and decoded by the rest of the pass."""

import torch
from torch import nn

import robustvae as rv


class Alone(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 32), nn.Linear(32, 8)
        self.fc3, self.fc4 = nn.Linear(4, 32), nn.Linear(32, 64)

    def forward(self, x):
        mean, log_var = self.fc2(torch.relu(self.fc1(x.view(-1, 64)))).chunk(2, 1)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        return torch.sigmoid(self.fc4(torch.relu(self.fc3(z)))), mean, log_var


torch.manual_seed(0)
vae = rv.wrap(Alone(), image_shape=(1, 8, 8))
print(vae.recognized)

x = rv.data.load("digits", split="test").x[:4]
shift = rv.Attack(rv.LatentShift(), rv.ProjectedAscent(steps=5), rv.Ball("l2", 1.0))
print(shift(rv.Victim(vae), x, generator=rv.generator(0)).score)
