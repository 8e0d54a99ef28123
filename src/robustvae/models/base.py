"""The variational autoencoder as everything else sees it."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from robustvae.errors import DtypeError, NonFiniteError, ShapeError
from robustvae.models.likelihoods import Distribution, Gaussian


class VAE(nn.Module, abc.ABC):
    """A variational autoencoder with one flat latent.

    Attributes:
        latent: Dimension d of the latent.
        image_shape: (C, H, W) of the images.
    """

    latent: int
    image_shape: tuple[int, int, int]

    @abc.abstractmethod
    def encode(self, x: Tensor) -> Distribution:
        """The approximate posterior q(z | x).

        Args:
            x: Images in [0, 1], (B, C, H, W).

        Returns:
            A distribution over latents, (B, d).
        """

    @abc.abstractmethod
    def decode(self, z: Tensor) -> Distribution:
        """The likelihood p(x | z), whose mean is the reconstruction.

        Args:
            z: Latents, (B, d).

        Returns:
            A distribution over images, (B, C, H, W).
        """

    def prior(self) -> Distribution:
        """The prior p(z), of shape (d,); standard normal unless a model says otherwise."""
        zeros = torch.zeros(self.latent, dtype=self.dtype, device=self.device)
        return Gaussian(zeros, torch.ones_like(zeros))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) + log p(z) in nats, (B,).

        Args:
            x: Images in [0, 1], (B, C, H, W).
            z: Latents, (B, d).
        """
        return self.decode(z).log_prob(x).flatten(1).sum(1) + self.prior().log_prob(z).sum(1)

    def after_step(self) -> None:  # noqa: B027
        """Training calls this after every optimiser step; constrained models stay near theirs."""

    def finalize(self) -> None:  # noqa: B027
        """Training calls this after every epoch; constrained models meet theirs exactly."""

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make this model again with `models.create`; JSON values only."""
        return {}

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the parameters."""
        return next((p.dtype for p in self.parameters()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def check(self, x: Tensor, *, name: str = "x") -> None:
        """Raise unless `x` is a batch of images that this model can read.

        The range of the pixels is not looked at here: an attack without a box may leave it.

        Raises:
            DtypeError: Not a tensor of floating type, or not the model's type.
            ShapeError: Not (B, *image_shape).
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise DtypeError(f"{name} must be a tensor of floating type, got {kind}")
        if x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            channels, height, width = self.image_shape
            raise ShapeError(
                f"{name} must be (B, {channels}, {height}, {width}), got {tuple(x.shape)}"
            )
        if x.dtype != self.dtype:
            raise DtypeError(
                f"{name} is {x.dtype} and the model {self.dtype}: "
                f"convert one of them, with x.to({self.dtype}) or vae.to({x.dtype})"
            )


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within: evaluation mode and no gradients for the weights; afterwards all as it was.

    Examples:
        >>> import torch
        >>> from robustvae.models.base import frozen
        >>> layer = torch.nn.Linear(2, 2)
        >>> with frozen(layer):
        ...     layer.weight.requires_grad, layer.training
        (False, False)
        >>> layer.weight.requires_grad, layer.training
        (True, True)
    """
    modes = [(part, part.training) for part in module.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.eval()
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required in wanted:
            parameter.requires_grad_(required)
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def channels_last(module: nn.Module) -> Iterator[None]:
    """Within: weights of 2-d convolutions lie with their channels last, where CPUs read faster.

    The values are the same, and the very tensors that were there are put back afterwards.
    """
    weights = [
        part.weight
        for part in module.modules()
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d) and part.weight.device.type == "cpu"
    ]
    before = [weight.data for weight in weights]
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for weight, data in zip(weights, before, strict=True):
            weight.data = data


def check_weights(module: nn.Module) -> None:
    """Raise `NonFiniteError` if any weight or buffer is a NaN or an infinity."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise NonFiniteError(f"weights must be finite, got a NaN or an infinity in {name!r}")
