"""Wrap a VAE of your own and attack it: encode and decode are all that is needed."""

import torch
from torch.distributions import Bernoulli, Normal

import robustvae as rv

g = rv.generator(0)
encoder = torch.nn.Linear(64, 8)
decoder = torch.nn.Linear(8, 64)


def encode(x):
    mean = encoder(x.flatten(1))
    return Normal(mean, torch.full_like(mean, 0.1))


def decode(z):
    return Bernoulli(logits=decoder(z).unflatten(1, (1, 8, 8)))


vae = rv.wrap(encode=encode, decode=decode, latent=8, image_shape=(1, 8, 8))
x, y = rv.data.load("digits", split="test").sample(4, generator=g)
attack = rv.Attack(rv.LatentShift(), rv.ProjectedAscent(steps=10, restarts=2), rv.Ball("l2", 1.0))
print(attack(rv.Victim(vae), x, generator=g).size)
