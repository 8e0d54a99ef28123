"""Lipschitz-VAEs: orthonormal dense layers, gradient-preserving activations, chosen constants.

Gradients are projected on the tangent space of the orthonormal matrices and the weights brought
back after each optimiser step, outside autograd, not by Björck iterations in every forward pass.
What is stored are plain dense layers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from robustvae.errors import (
    ConfigError,
    ShapeError,
    check_choice,
    check_count,
    check_positive,
    check_sizes,
)
from robustvae.models.base import VAE
from robustvae.models.likelihoods import Distribution, Gaussian
from robustvae.models.vae import LIKELIHOODS, likelihood_of


def bjorck(weight: Tensor, steps: int = 1, order: int = 1) -> Tensor:
    """Björck's iteration towards the nearest matrix with orthonormal rows or columns.

    W <- W (I + Q/2 + 3 Q^2/8 + ... + (-1)^p C(-1/2, p) Q^p), Q = I - W^T W.

    Warning:
        It converges only from full rank and a spectral norm below sqrt(3) at order 1, below 1.47
        for orders up to 7: scale first.

    Args:
        weight: Matrix, (n, k); the shorter side becomes orthonormal. Differentiable.
        steps: Iterations.
        order: p, at least 1.

    Returns:
        Matrix, (n, k).

    Raises:
        ShapeError: Not a matrix.

    References:
        Björck & Bowie, 1971; [Barrett22] appendix B.1; Anil et al., 2019.

    Examples:
        >>> import torch
        >>> from robustvae.models.lipschitz import bjorck
        >>> bjorck(torch.diag(torch.tensor([0.8, 1.2])), steps=8)
        tensor([[1., 0.],
                [0., 1.]])
    """
    if weight.ndim != 2:
        raise ShapeError(f"weight must be a matrix, got {tuple(weight.shape)}")
    check_count(steps, "steps", least=0)
    check_count(order, "order")
    if weight.shape[0] < weight.shape[1]:
        return bjorck(weight.mT, steps, order).mT
    eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    for _ in range(steps):
        defect = eye - weight.mT @ weight
        series = eye
        for k in range(order, 0, -1):  # Horner: C(2k, k) / 4^k is (2k - 1) / 2k times the last
            series = eye + (2 * k - 1) / (2 * k) * defect @ series
        weight = weight @ series
    return weight


@final
class GroupSort(nn.Module):
    """Sort neighbouring features in groups, ascending; 1-Lipschitz and gradient-preserving.

    Args:
        group: Features in a group.

    References:
        Anil et al., 2019; [Barrett22] appendix B.3.

    Examples:
        >>> import torch
        >>> from robustvae.models.lipschitz import GroupSort
        >>> GroupSort()(torch.tensor([[3.0, 1.0, 2.0, 5.0]]))
        tensor([[1., 3., 2., 5.]])
    """

    def __init__(self, group: int = 2) -> None:
        """Keep the size of a group."""
        super().__init__()
        check_count(group, "group")
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., n) with n a multiple of the group, to features of the same shape."""
        if x.shape[-1] % self.group:
            raise ShapeError(f"{x.shape[-1]} features do not divide into groups of {self.group}")
        grouped = x.unflatten(-1, (-1, self.group))
        if self.group == 2:
            one, two = grouped.unbind(-1)
            return torch.stack([torch.minimum(one, two), torch.maximum(one, two)], -1).flatten(-2)
        return grouped.sort(-1).values.flatten(-2)


@final
class MaxMin(nn.Module):
    """Maximum and minimum of feature i and feature i + n/2: group sort of two, laid out in halves.

    Examples:
        >>> import torch
        >>> from robustvae.models.lipschitz import MaxMin
        >>> MaxMin()(torch.tensor([[3.0, 1.0, 2.0, 5.0]]))
        tensor([[3., 5., 2., 1.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., n), n even, to features of the same shape."""
        if x.shape[-1] % 2:
            raise ShapeError(f"MaxMin wants an even number of features, got {x.shape[-1]}")
        one, two = x.chunk(2, -1)
        return torch.cat([torch.maximum(one, two), torch.minimum(one, two)], -1)


@final
class Scale(nn.Module):
    """Multiply by a constant.

    Args:
        factor: The constant.
    """

    def __init__(self, factor: float) -> None:
        """Keep the constant."""
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """The same features, scaled."""
        return x * self.factor

    def extra_repr(self) -> str:
        """Show the constant."""
        return f"{self.factor:g}"


SORTS: dict[str, type[nn.Module]] = {"groupsort": GroupSort, "maxmin": MaxMin}


@final
class LipschitzVAE(VAE):
    """A VAE whose encoder and decoder have chosen Lipschitz constants.

    Each network has k dense layers with orthonormal weights, each output times K^(1/k), and a sort
    between. The encoder's mean has no last nonlinearity; its standard deviation is a constant, or a
    network of its own with a sigmoid; the decoder's logits pass through the likelihood's mean.

    Warning:
        `certify` reads its constants from the stored weights, not from these arguments. With a
        sigmoid at the end the decoder's mean is (K/4)-Lipschitz, and so is a sigmoid std head.

    Args:
        latent: Dimension d of the latent.
        image_shape: (C, H, W).
        hidden: Even widths of each network, from the pixels inwards.
        encoder_lipschitz: K of the encoder's mean, and of the std head before its sigmoid.
        decoder_lipschitz: K of the decoder's logits.
        stddev: The constant sigma of every coordinate, or None for a learned one.
        likelihood: As of `vae`.
        scale: Standard deviation of the Gaussian likelihood, in pixel units.
        activation: "groupsort" or "maxmin".
        order: Order of the Björck iteration in `after_step`.
        retract_every: Optimiser steps between retractions.

    Raises:
        UnknownNameError: An unknown likelihood or activation.
        RangeError: A constant, width or scale that is not positive.
        ConfigError: An odd width.
        ShapeError: `image_shape` is not (C, H, W).

    References:
        [Barrett22] section 4, Algorithm 1, appendices B and F.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("lipschitz-vae", latent=4, image_shape=(1, 4, 4), hidden=[16])
        >>> q = vae.encode(torch.rand(3, 1, 4, 4))
        >>> q.mean.shape, float(q.stddev[0, 0])
        (torch.Size([3, 4]), 0.10000000149011612)
    """

    def __init__(
        self,
        latent: int = 10,
        image_shape: Sequence[int] = (1, 28, 28),
        hidden: Sequence[int] = (512, 512),
        encoder_lipschitz: float = 5.0,
        decoder_lipschitz: float = 5.0,
        stddev: float | None = 0.1,
        likelihood: str = "continuous_bernoulli",
        scale: float = 1.0,
        activation: str = "groupsort",
        order: int = 1,
        retract_every: int = 1,
    ) -> None:
        """Build orthonormal networks; torch's global generator makes the first weights."""
        super().__init__()
        check_count(latent, "latent")
        check_count(order, "order")
        check_count(retract_every, "retract_every")
        check_choice("likelihood", likelihood, LIKELIHOODS)
        check_choice("activation", activation, SORTS)
        for value, name in (
            (encoder_lipschitz, "encoder_lipschitz"),
            (decoder_lipschitz, "decoder_lipschitz"),
            (0.1 if stddev is None else stddev, "stddev"),
            (scale, "scale"),
        ):
            check_positive(value, name)
        check_sizes(image_shape, "image_shape", axes=3)
        check_sizes(hidden, "hidden")
        channels, height, width = image_shape
        if any(width % 2 for width in hidden):
            raise ConfigError(f"widths in hidden must be even, got {list(hidden)}")
        self.latent = latent
        self.image_shape = (channels, height, width)
        self.likelihood = likelihood
        self.scale = float(scale)
        self.stddev = None if stddev is None else float(stddev)
        self.order = order
        self.retract_every = retract_every
        self._config = {
            "latent": latent,
            "image_shape": list(image_shape),
            "hidden": list(hidden),
            "encoder_lipschitz": float(encoder_lipschitz),
            "decoder_lipschitz": float(decoder_lipschitz),
            "stddev": self.stddev,
            "likelihood": likelihood,
            "scale": self.scale,
            "activation": activation,
            "order": order,
            "retract_every": retract_every,
        }
        widths = [math.prod(image_shape), *hidden, latent]
        sort = SORTS[activation]
        self.mean_net = nn.Sequential(nn.Flatten(), *_dense(widths, encoder_lipschitz, sort))
        self.stddev_net = (
            nn.Sequential(nn.Flatten(), *_dense(widths, encoder_lipschitz, sort), nn.Sigmoid())
            if stddev is None
            else None
        )
        self.decoder = nn.Sequential(
            *_dense(widths[::-1], decoder_lipschitz, sort), nn.Unflatten(1, self.image_shape)
        )
        self.finalize()
        for layer in self._layers():
            layer.weight.register_post_accumulate_grad_hook(_to_tangent)

    def encode(self, x: Tensor) -> Gaussian:
        """q(z | x), Gaussian with diagonal covariance, (B, d)."""
        self.check(x)
        mean = self.mean_net(x)
        if self.stddev is not None:
            return Gaussian(mean, torch.full_like(mean, self.stddev))
        assert self.stddev_net is not None
        return Gaussian(mean, self.stddev_net(x))

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z), (B, C, H, W)."""
        return likelihood_of(self.decoder(z), self.likelihood, self.scale)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, complete."""
        return dict(self._config)

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring the weights back towards orthonormality; training calls it after each step."""
        self._steps += 1
        if self._steps % self.retract_every:
            return
        for layer in self._layers():
            weight = layer.weight
            gram = weight.mT @ weight if weight.shape[0] > weight.shape[1] else weight @ weight.mT
            ceiling = gram.abs().sum(0).amax().sqrt()  # never below the spectral norm
            weight.div_((ceiling / 1.4).clamp_min(1.0))
            weight.copy_(bjorck(weight, order=self.order))

    @torch.no_grad()
    def finalize(self) -> None:
        """Make every weight orthonormal to the last digit: the polar factor, in float64."""
        self._steps = 0
        for layer in self._layers():
            left, _, right = torch.linalg.svd(layer.weight.double(), full_matrices=False)
            layer.weight.copy_(left @ right)

    def _layers(self) -> Iterator[nn.Linear]:
        return (module for module in self.modules() if isinstance(module, nn.Linear))


@torch.no_grad()
def _to_tangent(parameter: Tensor) -> None:
    """G <- G - W sym(W^T G): what is left is the part that keeps W orthonormal to first order."""
    weight, grad = parameter.detach(), parameter.grad
    assert grad is not None
    if weight.shape[0] < weight.shape[1]:
        weight, grad = weight.mT, grad.mT
    inner = weight.mT @ grad
    grad.sub_(weight @ (inner + inner.mT) / 2)


def _dense(widths: Sequence[int], lipschitz: float, sort: type[nn.Module]) -> list[nn.Module]:
    factor = lipschitz ** (1 / (len(widths) - 1))
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), Scale(factor), sort()]
    return layers[:-1]
