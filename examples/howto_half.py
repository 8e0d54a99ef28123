"""A model in half precision: searched from float32 images, judged in its own type."""

import torch
from torch import nn

import robustvae as rv

torch.manual_seed(0)
model = nn.Sequential(
    nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8))
)
vae = rv.wrap(model.to(torch.bfloat16), image_shape=(1, 8, 8))
x = rv.data.load("digits", split="test").x[:4]
print(rv.check(vae, x)["finite_outputs"])

attack = rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(steps=5), rv.Ball("l2", 1.0))
print(attack(rv.Victim(vae), x, generator=rv.generator(0)).score)
