"""Your own module, in one line: wrapped as it is, diagnosed, attacked."""

import torch
from torch import nn

import robustvae as rv


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 4, 2, 1)
        self.mean, self.log_var = nn.Linear(128, 4), nn.Linear(128, 4)
        self.up = nn.Linear(4, 64)

    def encode(self, x):
        h = torch.relu(self.conv(x)).view(len(x), -1)
        return self.mean(h), self.log_var(h)

    def decode(self, z):
        return torch.sigmoid(self.up(z)).view(-1, 1, 8, 8)


torch.manual_seed(0)
vae = rv.wrap(Mine(), image_shape=(1, 8, 8), likelihood="bernoulli")
print(vae.recognized)

x = rv.data.load("digits", split="test").x[:8]
print(rv.check(vae, x))

attack = rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(steps=10), rv.Ball("l2", 1.0))
print(attack(rv.Victim(vae), x, generator=rv.generator(0)).score)
