"""The plain VAE: a Gaussian encoder and one likelihood, over any architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from robustvae.errors import (
    ConfigError,
    check_choice,
    check_count,
    check_positive,
    check_sizes,
)
from robustvae.models.base import VAE
from robustvae.models.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    Distribution,
    Gaussian,
    MeanRule,
)
from robustvae.models.networks import ARCHITECTURES, DEFAULT_SHAPES, log_var_to_stddev

LIKELIHOODS = ("bernoulli", "continuous_bernoulli", "continuous_bernoulli_exact", "gaussian")


@final
class GaussianVAE(VAE):
    """A VAE with diagonal Gaussian posterior and standard normal prior.

    Args:
        architecture: "mlp", "conv8" (8 x 8 images) or "conv28" (28 x 28, [Kuzina22] Table 6).
        latent: Dimension d of the latent.
        image_shape: (C, H, W); by default one channel of the size the architecture is made for.
        likelihood: "bernoulli", "continuous_bernoulli" (reconstruction as in the papers),
            "continuous_bernoulli_exact" (its true mean), or "gaussian" (identity output).
        scale: Standard deviation of the Gaussian likelihood, in pixel units.
        hidden: Widths of the `mlp`, from the pixels inwards.
        activation: "relu" or "tanh", of the `mlp`.

    Raises:
        UnknownNameError: An unknown architecture, likelihood or activation.
        RangeError: A width or scale that is not positive.
        ShapeError: Images that the architecture cannot read.

    References:
        Kingma & Welling, 2014, Eq. 10; [Kuzina22] Table 6.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 8, 8))
        >>> vae.decode(vae.encode(torch.rand(3, 1, 8, 8)).mean).mean.shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        architecture: str = "mlp",
        latent: int = 64,
        image_shape: Sequence[int] | None = None,
        likelihood: str = "bernoulli",
        scale: float = 1.0,
        hidden: Sequence[int] | None = None,
        activation: str | None = None,
    ) -> None:
        """Build the networks; torch's global generator makes the first weights."""
        super().__init__()
        check_choice("architecture", architecture, ARCHITECTURES)
        check_choice("likelihood", likelihood, LIKELIHOODS)
        check_count(latent, "latent")
        check_positive(scale, "scale")
        shape = DEFAULT_SHAPES[architecture] if image_shape is None else image_shape
        check_sizes(shape, "image_shape", axes=3)
        options: dict[str, Any] = {}
        if architecture == "mlp":
            hidden = [512, 512] if hidden is None else hidden
            check_sizes(hidden, "hidden")
            options["hidden"] = list(hidden)
            options["activation"] = "relu" if activation is None else activation
        elif hidden is not None or activation is not None:
            raise ConfigError(f"hidden and activation belong to 'mlp', not to {architecture!r}")
        self.latent = latent
        self.image_shape = (shape[0], shape[1], shape[2])
        self.likelihood = likelihood
        self.scale = float(scale)
        self._config = {
            "architecture": architecture,
            "latent": latent,
            "image_shape": list(shape),
            "likelihood": likelihood,
            "scale": self.scale,
            **options,
        }
        networks = ARCHITECTURES[architecture](self.image_shape, latent, **options)
        self.trunk = networks.trunk
        self.mean_head = networks.head()
        self.log_var_head = networks.head()
        self.decoder = networks.decoder

    def encode(self, x: Tensor) -> Gaussian:
        """q(z | x), Gaussian with diagonal covariance, (B, d)."""
        self.check(x)
        features = self.trunk(x)
        return Gaussian(self.mean_head(features), log_var_to_stddev(self.log_var_head(features)))

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z), (B, C, H, W)."""
        return likelihood_of(self.decoder(z), self.likelihood, self.scale)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, complete."""
        return dict(self._config)


def likelihood_of(parameters: Tensor, likelihood: str, scale: float = 1.0) -> Distribution:
    """The distribution over images that a decoder's last layer parameterises.

    Args:
        parameters: Logits, or means for "gaussian", (B, C, H, W).
        likelihood: One of `LIKELIHOODS`.
        scale: Standard deviation of "gaussian", in pixel units.
    """
    if likelihood == "bernoulli":
        return Bernoulli(parameters)
    if likelihood == "gaussian":
        return Gaussian(parameters, torch.full_like(parameters, scale))
    rule: MeanRule = "exact" if likelihood == "continuous_bernoulli_exact" else "papers"
    return ContinuousBernoulli(parameters, rule)
