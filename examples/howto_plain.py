"""A plain autoencoder, and a module of which only the output is known."""

import torch
from torch import nn

import robustvae as rv

torch.manual_seed(0)
plain = nn.Sequential(
    nn.Flatten(), nn.Linear(64, 4), nn.Linear(4, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8))
)
x = rv.data.load("digits", split="test").x[:4]
search, ball = rv.ProjectedAscent(steps=5, restarts=2), rv.Ball("l2", 1.0)

vae = rv.wrap(plain, image_shape=(1, 8, 8))
print(vae.recognized)
shift = rv.Attack(rv.LatentShift("means"), search, ball)  # codes have no spread, so no KL
print(shift(rv.Victim(vae), x, generator=rv.generator(0)).score)

black_box = rv.wrap(plain, image_shape=(1, 8, 8), output_only=True)
print(black_box.recognized)
damage = rv.Attack(rv.MaximumDamage(), search, ball)
print(damage(rv.Victim(black_box), x, generator=rv.generator(0)).score)
