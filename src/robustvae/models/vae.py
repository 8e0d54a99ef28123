"""The plain VAE: a Gaussian encoder and one likelihood, over any architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack, final

import torch
from torch import Tensor

from robustvae import gate
from robustvae._options import with_defaults
from robustvae.errors import ConfigError, check_choice, check_number, check_positive
from robustvae.models.base import VAE
from robustvae.models.composition import Composition, Spread
from robustvae.models.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    Distribution,
    Gaussian,
    MeanRule,
)
from robustvae.models.networks import build, log_var_to_stddev
from robustvae.registry import register

LIKELIHOODS = ("bernoulli", "continuous_bernoulli", "continuous_bernoulli_exact", "gaussian")


@final
class GaussianOptions(TypedDict, total=False):
    """Options of `GaussianVAE`, which describes them."""

    hidden: Sequence[int] | None
    activation: str | None
    batch_norm: bool | None
    stddev: float | None
    stddev_offset: float
    stddev_norm: float | None


_DEFAULTS: GaussianOptions = {
    "hidden": None,
    "activation": None,
    "batch_norm": None,
    "stddev": None,
    "stddev_offset": 0.0,
    "stddev_norm": None,
}


@register("model", "vae")
@gate.know_model
@final
class GaussianVAE(VAE):
    """A VAE with diagonal Gaussian posterior and standard normal prior.

    The posterior's standard deviation is s(x) = exp(log_var(x) / 2) of the encoder, then s + tau,
    then scaled down to a norm of at most `stddev_norm`; or it is one constant.

    Args:
        architecture: "mlp"; or, for images of one size, "conv8", "conv28" ([Kuzina22] Table 6),
            "conv32", "conv64" ([Chen18]) or "conv64_tanh" ([Khan23], with batch norm).
        latent: Dimension d of the latent.
        image_shape: (C, H, W); by default one that the architecture is made for.
        likelihood: "bernoulli", "continuous_bernoulli" (reconstruction as in the papers),
            "continuous_bernoulli_exact" (its true mean), or "gaussian" (identity output).
        scale: Standard deviation of the Gaussian likelihood, in pixel units.
        options: Any of

            - hidden: Widths of the `mlp`, from the pixels inwards;
            - activation: "relu" or "tanh", of the `mlp`;
            - batch_norm: Batch norm before the activations of the `mlp`; [Khan23]'s has it, with
              hidden [256, 256, 512], activation "tanh" and d = 32;
            - stddev: One standard deviation for all coordinates and inputs; None to learn it;
            - stddev_offset: tau, added to the learned standard deviation, 0 by default;
            - stddev_norm: Greatest norm |s(x) + tau| of the learned standard deviation; None for
              any. The projection on that ball raises no Lipschitz constant.

    Raises:
        UnknownNameError: An unknown architecture, likelihood, activation or option.
        ConfigError: Options of the `mlp` for another architecture, or of a learned standard
            deviation beside a constant one.
        RangeError: A width, scale or standard deviation that is not positive.
        ShapeError: Images that the architecture cannot read.

    References:
        Kingma & Welling, 2014, Eq. 10; [Kuzina22] Table 6; [Camuto21] section 4.2 (tau);
        [Barrett22] Theorem 3 (constant or bounded standard deviations); [Khan23] appendix A.

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
        **options: Unpack[GaussianOptions],
    ) -> None:
        """Build the networks; torch's global generator makes the first weights."""
        super().__init__()
        settings = with_defaults(GaussianVAE, options, _DEFAULTS)
        stddev, stddev_offset = settings["stddev"], settings["stddev_offset"]
        stddev_norm = settings["stddev_norm"]
        check_likelihood(likelihood, scale)
        check_number(stddev_offset, "stddev_offset", least=0)
        for name, value in (("stddev", stddev), ("stddev_norm", stddev_norm)):
            if value is not None:
                check_positive(value, name)
        if stddev is not None and (stddev_offset or stddev_norm is not None):
            raise ConfigError(
                "stddev_offset and stddev_norm need a learned standard deviation, "
                f"got the constant stddev={stddev:g}: leave one out"
            )
        networks, layout = build(
            architecture,
            latent,
            latent,
            image_shape,
            hidden=settings["hidden"],
            activation=settings["activation"],
            batch_norm=settings["batch_norm"],
        )
        self.latent = latent
        channels, height, width = layout["image_shape"]
        self.image_shape = (channels, height, width)
        self.likelihood = likelihood
        self.scale = float(scale)
        self.stddev = None if stddev is None else float(stddev)
        self.stddev_offset = float(stddev_offset)
        self.stddev_norm = None if stddev_norm is None else float(stddev_norm)
        self._config = {
            **layout,
            "latent": latent,
            "likelihood": likelihood,
            "scale": self.scale,
            "stddev": self.stddev,
            "stddev_offset": self.stddev_offset,
            "stddev_norm": self.stddev_norm,
        }
        self.trunk = networks.trunk
        self.mean_head = networks.head()
        self.log_var_head = networks.head() if stddev is None else None
        self.decoder = networks.decoder

    def encode(self, x: Tensor) -> Gaussian:
        """q(z | x), Gaussian with diagonal covariance, (B, d)."""
        self.check(x)
        features = self.trunk(x)
        mean = self.mean_head(features).to(x.dtype)  # networks may compute in less
        if self.stddev is not None:
            return Gaussian(mean, torch.full_like(mean, self.stddev))
        assert self.log_var_head is not None
        stddev = log_var_to_stddev(self.log_var_head(features).to(x.dtype)) + self.stddev_offset
        if self.stddev_norm is not None:
            stddev = shortened(stddev, self.stddev_norm)
        return Gaussian(mean, stddev)

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z), (B, C, H, W)."""
        return likelihood_of(self.decoder(z).to(z.dtype), self.likelihood, self.scale)

    def composition(self) -> Composition:
        """The trunk, its heads and the decoder."""
        if self.log_var_head is None:
            spread = Spread("constant", constant=self.stddev)
        else:
            spread = Spread("log_var", offset=self.stddev_offset, norm=self.stddev_norm)
        return Composition(
            trunk=self.trunk,
            mean_head=self.mean_head,
            spread=spread,
            spread_head=self.log_var_head,
            width=self.latent,
            decoder=self.decoder,
            likelihood=self.likelihood,
            scale=self.scale,
        )

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, complete."""
        return dict(self._config)


def check_likelihood(likelihood: str, scale: float) -> None:
    """Raise unless `likelihood_of` knows this likelihood and scale."""
    check_choice("likelihood", likelihood, LIKELIHOODS)
    check_positive(scale, "scale")


def shortened(stddev: Tensor, most: float) -> Tensor:
    """Standard deviations, (B, d), scaled down to a norm of at most `most`: a projection."""
    norm = torch.linalg.vector_norm(stddev, dim=1, keepdim=True)
    return stddev * (most / norm).clamp(max=1.0)


def likelihood_of(parameters: Tensor, likelihood: str, scale: float = 1.0) -> Distribution:
    """The distribution over images that a decoder's last layer parameterizes.

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
