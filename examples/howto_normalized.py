"""Inputs that the model wants normalized, or other data than pictures: say what it reads."""

import torch
from torch import nn

import robustvae as rv

torch.manual_seed(0)
model = nn.Sequential(
    nn.Flatten(), nn.Linear(192, 8), nn.Linear(8, 192), nn.Unflatten(1, (3, 8, 8))
)
x = torch.rand(16, 3, 8, 8)  # images stay in [0, 1], and so do radii

normalization = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
vae = rv.wrap(
    model,
    image_shape=(3, 8, 8),
    pixels=normalization,
    likelihood="gaussian",
    stddev="fit",
    fit_on=x,
)
print(vae.decode(vae.encode(x).mean).stddev.mean())
print("a step of 1 in [0, 1] in the model's unit:", vae.space.scale)

waves = rv.data.InputSpace((1, 64), low=-1, high=1, unit="of full scale")
audio = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Linear(4, 64), nn.Unflatten(1, (1, 64)))
vae = rv.wrap(audio, pixels=waves)
images = rv.data.from_tensor(2 * torch.rand(4, 1, 64) - 1, space=waves)
print(rv.Victim(vae).reconstruct(images.x, generator=rv.generator(0)).shape)
