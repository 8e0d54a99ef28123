from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import robustvae as rv
from robustvae.models import Gaussian
from robustvae.seeding import randn


@dataclass(frozen=True)
class Linear:
    """p(x | z) = N(Wz + b, s^2), whose posterior is N(M(x - b), S) with S^-1 = I + W'W / s^2."""

    weight: Tensor
    bias: Tensor
    stddev: float

    @property
    def covariance(self) -> Tensor:
        precision = torch.eye(self.weight.shape[1]) + self.weight.mT @ self.weight / self.stddev**2
        return torch.linalg.inv(precision)

    @property
    def gain(self) -> Tensor:
        return self.covariance @ self.weight.mT / self.stddev**2

    def posterior_mean(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - self.bias) @ self.gain.mT

    def log_evidence(self, x: Tensor) -> Tensor:
        covariance = self.weight @ self.weight.mT
        covariance = covariance + self.stddev**2 * torch.eye(len(self.bias))
        return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(x.flatten(1))

    @property
    def vae(self) -> rv.VAE:
        spread = self.covariance.diagonal().sqrt()
        return rv.wrap(
            encode=lambda x: Gaussian(self.posterior_mean(x), spread.expand(len(x), -1)),
            decode=lambda z: Gaussian(
                (z @ self.weight.mT + self.bias).view(-1, 1, 2, 3),
                torch.full((len(z), 1, 2, 3), self.stddev),
            ),
            latent=self.weight.shape[1],
            image_shape=(1, 2, 3),
        )


@pytest.fixture
def linear(generator: torch.Generator) -> Linear:
    weight = 0.3 * randn(6, 2, like=torch.zeros(()), generator=generator)
    return Linear(weight, torch.full((6,), 0.5), 0.2)
