"""`wrap` makes a `VAE` of anybody's encoder and decoder."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from robustvae.errors import (
    DtypeError,
    RangeError,
    ShapeError,
    check_choice,
    check_count,
    check_sizes,
)
from robustvae.models.base import VAE
from robustvae.models.likelihoods import Bernoulli, Distribution, Gaussian
from robustvae.models.networks import log_var_to_stddev

Returns = Literal["distribution", "mean_log_var"]


def wrap(
    *,
    encode: Callable[[Tensor], Any],
    decode: Callable[[Tensor], Any],
    latent: int,
    image_shape: Sequence[int],
    returns: Returns = "distribution",
    prior: Any = None,
) -> VAE:
    """Make a `VAE` of any two PyTorch functions or modules, differentiable in their input.

    Args:
        encode: Images (B, C, H, W) to a distribution over latents (B, d).
        decode: Latents (B, d) to a distribution over images (B, C, H, W).
        latent: Dimension d of the latent.
        image_shape: (C, H, W).
        returns: What the two return: "distribution" (any of `torch.distributions`, or an object
            with `.mean`, `.stddev` and `.log_prob`), or "mean_log_var", a pair of tensors of the
            same shape that stands for a Gaussian; `decode` may return a distribution even then.
        prior: A distribution of shape (d,), or None for the standard normal.

    Returns:
        A `VAE`; modules passed in are its submodules, so `.to()` and `.eval()` reach them.

    Raises:
        DtypeError: `encode` or `decode` cannot be called, or returns something else than said.
        ShapeError: A bad `image_shape`, or an output of another shape than (B, d), (B, C, H, W).
        UnknownNameError: Any other `returns`.

    Examples:
        >>> import robustvae as rv, torch
        >>> from torch.distributions import Bernoulli, Normal
        >>> mine = rv.wrap(
        ...     encode=lambda x: Normal(x.flatten(1)[:, :2], 0.1),
        ...     decode=lambda z: Bernoulli(logits=z.repeat(1, 8).view(-1, 1, 4, 4)),
        ...     latent=2,
        ...     image_shape=(1, 4, 4),
        ... )
        >>> mine.decode(mine.encode(torch.rand(3, 1, 4, 4)).mean).mean.shape
        torch.Size([3, 1, 4, 4])
    """
    for name, part in (("encode", encode), ("decode", decode)):
        if not callable(part):
            raise DtypeError(f"{name} must be a function or module, got {type(part).__name__}")
    check_count(latent, "latent")
    check_choice("returns", returns, ("distribution", "mean_log_var"))
    check_sizes(image_shape, "image_shape", axes=3)
    channels, height, width = image_shape
    return WrappedVAE(encode, decode, latent, (channels, height, width), returns, prior)


@final
class WrappedVAE(VAE):
    """A `VAE` around a user's functions; made by `wrap`."""

    def __init__(
        self,
        encode: Callable[[Tensor], Any],
        decode: Callable[[Tensor], Any],
        latent: int,
        image_shape: tuple[int, int, int],
        returns: Returns,
        prior: Any,
    ) -> None:
        """Keep the functions; `wrap` has checked the arguments."""
        super().__init__()
        self.latent = latent
        self.image_shape = image_shape
        self._returns = returns
        self._prior = prior
        self._encode = encode
        self._decode = decode
        # a bound method hides its module; the module must still follow .to() and .eval()
        owners = [getattr(f, "__self__", None) for f in (encode, decode)]
        self._owners = nn.ModuleList(o for o in owners if isinstance(o, nn.Module))

    @property
    def encoder(self) -> Callable[[Tensor], Any]:
        """What was given to `wrap` for `encode`."""
        return self._encode

    @property
    def returns(self) -> Returns:
        """What it returns."""
        return self._returns

    def _check_dtype(self, value: Tensor, name: str) -> None:
        # functions without parameters have no type of their own to hold a tensor to
        if next(self.parameters(), None) is not None:
            super()._check_dtype(value, name)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters; of functions that show none, the type of images that they read."""
        if next(self.parameters(), None) is None:
            return self._readable
        return super().dtype

    @functools.cached_property
    def _readable(self) -> torch.dtype:
        default = torch.get_default_dtype()
        for dtype in (default, torch.float64, torch.float32):
            with contextlib.suppress(RuntimeError), torch.no_grad():
                self._encode(torch.full((1, *self.image_shape), 0.5, dtype=dtype))
                return dtype
        return default

    def encode(self, x: Tensor) -> Distribution:
        """q(z | x), (B, d)."""
        self.check(x)
        return self._adapted("encode", self._encode(x), (x.shape[0], self.latent), x)

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z), (B, C, H, W)."""
        return self._adapted("decode", self._decode(z), (z.shape[0], *self.image_shape), z)

    def prior(self) -> Distribution:
        """The prior given to `wrap`, or the standard normal."""
        if self._prior is None:
            return super().prior()
        return as_distribution(self._prior, (self.latent,), "prior")

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) + log p(z) in nats, (B,)."""
        if self._prior is not None:
            return super().log_joint(x, z)
        self.check(x)
        self.check_latent(z, len(x))
        likelihood = self.decode(z).log_prob(x).flatten(1).sum(1)
        return likelihood - 0.5 * (z.square() + _LOG_2PI).sum(1)

    def _adapted(self, name: str, made: Any, shape: tuple[int, ...], like: Tensor) -> Distribution:
        if self._returns == "mean_log_var" and isinstance(made, tuple | list):
            if len(made) != 2 or not all(isinstance(part, Tensor) for part in made):
                raise DtypeError(f"{name} must return (mean, log_var), two tensors")
            mean, log_var = made
            made = Gaussian(mean, log_var_to_stddev(log_var).expand_as(mean))
        elif isinstance(made, tuple | list):
            raise DtypeError(
                f"{name} must return a distribution, got {type(made).__name__}: "
                "if it is (mean, log_var), say returns='mean_log_var'"
            )
        return as_distribution(made, shape, name)


def as_distribution(made: Any, shape: tuple[int, ...], name: str) -> Distribution:
    """The library's form of a user's distribution, after a look at its shape.

    Normal and Bernoulli of torch become the library's (which take gray pixels and a constant
    spread), wrapped or not in `Independent`; anything else with `.mean`, `.stddev` and an
    elementwise `.log_prob` stays as it is.

    Raises:
        DtypeError: Not a distribution.
        RangeError: A Gaussian with a negative standard deviation.
        ShapeError: Another shape than `shape`.
    """
    while isinstance(made, torch.distributions.Independent):
        made = made.base_dist
    if isinstance(made, torch.distributions.Normal):
        made = Gaussian(made.loc, made.scale)
    elif isinstance(made, torch.distributions.Bernoulli):
        made = Bernoulli(made.logits)
    if not all(hasattr(made, part) for part in ("mean", "stddev", "log_prob")):
        raise DtypeError(
            f"{name} must return a distribution with mean, stddev and log_prob, "
            f"got {type(made).__name__}"
        )
    got = tuple((made.logits if isinstance(made, Bernoulli) else made.mean).shape)
    if got != shape:
        raise ShapeError(f"{name} must return a distribution of shape {shape}, got {got}")
    if isinstance(made, Gaussian):
        if bool((made.stddev < 0).any()):
            raise RangeError(f"{name} must return standard deviations of at least 0")
        if made.stddev.shape != made.mean.shape:
            made = Gaussian(made.mean, made.stddev.expand_as(made.mean))
    distribution: Distribution = made
    return distribution


_LOG_2PI = 1.8378770664093453
