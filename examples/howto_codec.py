"""A learned codec with g_a, g_s and an entropy model: codes are rounded, gradients go through."""

import torch
from torch import nn

import robustvae as rv


class Codec(nn.Module):  # a model of compressai in your code
    def __init__(self):
        super().__init__()
        self.g_a, self.g_s = nn.Conv2d(3, 4, 4, 2, 1), nn.ConvTranspose2d(4, 3, 4, 2, 1)

    def entropy_bottleneck(self, y):
        rounded = y.round()
        return rounded, torch.exp(-rounded.abs())

    def forward(self, x):
        y_hat, likelihoods = self.entropy_bottleneck(self.g_a(x))
        return {"x_hat": self.g_s(y_hat), "likelihoods": {"y": likelihoods}}


torch.manual_seed(0)
vae = rv.wrap(Codec(), image_shape=(3, 16, 16))
print(vae.recognized)
x = torch.rand(2, 3, 16, 16)
print(vae.decisions(vae.encode(x).mean).unique())
print(rv.check(vae, x)["gradient_matches_differences"])
