"""Lipschitz constants of a whole model, read from its stored weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from robustvae.certificates.graphs import Add, Affine, Graph, Part, Sum
from robustvae.certificates.layers import batch_norm_factor, layers_of
from robustvae.errors import UnsupportedError
from robustvae.models import VAE, GaussianVAE, LipschitzVAE
from robustvae.models.base import frozen
from robustvae.models.lipschitz import GroupSort, MaxMin, Scale
from robustvae.models.orthogonal import MoveChannels
from robustvae.norms import (
    CONTINUOUS_BERNOULLI_SLOPE,
    conv_norm_bound,
    slope_bound,
    spectral_norm_bound,
)

OUTPUT_SLOPES = {
    "bernoulli": 1 / 4,
    "continuous_bernoulli": 1 / 4,
    "continuous_bernoulli_exact": CONTINUOUS_BERNOULLI_SLOPE,
    "gaussian": 1.0,
}
"""Largest slope of the likelihood's mean in the decoder's last layer."""


@final
@dataclass(frozen=True)
class Constants:
    """Upper bounds on the Lipschitz constants (l2 to l2) of a VAE's parts, for its stored weights.

    Attributes:
        a: Of the decoder's mean, as `decode(z).mean` is configured.
        a_logits: Of the decoder before the likelihood's mean.
        sigmoid: Whether that mean is an elementwise sigmoid.
        b: Of the encoder's mean.
        c: Of the encoder's standard deviation.
        log_c: Of the logarithm of any one coordinate of the standard deviation; infinite where
            that is not bounded.
        fixed_stddev: Whether the standard deviation is the same for every input.
    """

    a: float
    a_logits: float
    sigmoid: bool
    b: float
    c: float
    log_c: float
    fixed_stddev: bool


def lipschitz_constants(vae: VAE) -> Constants:
    """Verified constants of a `vae` or `lipschitz-vae` of any architecture, in evaluation mode.

    Without constraints on the weights they are sound, and far too large to be of use.

    Args:
        vae: A model of `models.create`.

    Raises:
        UnsupportedError: A model, layer or option that is not covered; the message names it.
        NonFiniteError: A NaN or an infinity in the weights.

    References:
        docs/theory.md, "Lipschitz networks"; [Barrett22] appendix B.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.certificates import lipschitz_constants
        >>> vae = rv.models.create(
        ...     "lipschitz-vae", image_shape=(1, 4, 4), hidden=[8], encoder_lipschitz=3.0
        ... )
        >>> 3.0 - 1e-5 < lipschitz_constants(vae).b < 3.0 + 1e-5
        True
    """
    if isinstance(vae, GaussianVAE):
        b = lipschitz_bound(nn.Sequential(vae.trunk, vae.mean_head), vae.image_shape)
        log_c = 0.0
        if vae.log_var_head is not None:
            whole = nn.Sequential(vae.trunk, vae.log_var_head)
            log_c = _up(lipschitz_bound(whole, vae.image_shape) / 2)
        c = _up(math.exp(10.0) * log_c)  # the log variance is clamped at 20
        if vae.stddev_norm is not None:
            log_c *= 2  # the common factor of the projection can grow as well
    elif isinstance(vae, LipschitzVAE):
        b = lipschitz_bound(vae.mean_net, vae.image_shape)
        c = 0.0 if vae.stddev_net is None else lipschitz_bound(vae.stddev_net, vae.image_shape)
        log_c = 0.0 if vae.stddev_net is None else math.inf  # a greatest norm projects: c stands
    else:
        raise UnsupportedError(f"no Lipschitz constants are known for {type(vae).__name__}")
    logits = lipschitz_bound(vae.decoder, (vae.latent,))
    return Constants(
        a=_up(OUTPUT_SLOPES[vae.likelihood] * logits),
        a_logits=logits,
        sigmoid=vae.likelihood in ("bernoulli", "continuous_bernoulli"),
        b=b,
        c=c,
        log_c=log_c,
        fixed_stddev=fixed_stddev(vae),
    )


def fixed_stddev(vae: VAE) -> bool:
    """Whether the encoder's standard deviation is known to be the same for every input."""
    if isinstance(vae, GaussianVAE):
        return vae.log_var_head is None
    return isinstance(vae, LipschitzVAE) and vae.stddev_net is None


def lipschitz_bound(network: nn.Module, shape: Sequence[int] | None = None) -> float:
    """An upper bound on the Lipschitz constant (l2 to l2) of a feed-forward network.

    The product over its layers, the sum over the branches of an `Add`; for a dense or
    convolutional layer of the verified spectral norm of what is stored.

    Args:
        network: An `nn.Sequential`, nested or not, an `Add`, a `Graph` with one output, or one
            layer; taken in evaluation mode.
        shape: Of one input's features; convolutions need it.

    Raises:
        UnsupportedError: A layer that is not covered, by name; a convolution without `shape`.

    Examples:
        >>> from torch import nn
        >>> from robustvae.certificates import Add, lipschitz_bound
        >>> lipschitz_bound(nn.Sequential(nn.ReLU(), nn.Sigmoid())) <= 0.25 * (1 + 1e-9)
        True
        >>> round(lipschitz_bound(Add(nn.Identity(), nn.Sigmoid())), 6)
        1.25
    """
    weights = next(network.parameters(), torch.zeros(()))
    x = None if shape is None else weights.new_zeros(1, *shape)
    with frozen(network), torch.no_grad():
        return _network_bound(network, x)[0]


_Reached = tuple[float, Tensor | None]
"""A bound, and features of one input there, where their shape is known."""


def _network_bound(network: nn.Module, x: Tensor | None) -> _Reached:
    if type(network) is Graph:

        def step(layer: nn.Module, given: tuple[_Reached, ...]) -> _Reached:
            if type(layer) is Sum:
                return _up(sum(bound for bound, _ in given)), given[0][1]
            ((before, features),) = given
            bound, made = _network_bound(layer, features)
            return _up(before * bound), made

        (end,) = network.walk((1.0, x), step)
        return end
    bound = 1.0
    for layer in layers_of(network):
        if type(layer) is Add:
            branches = [_network_bound(branch, x) for branch in layer.branches]
            own, y = _up(sum(branch for branch, _ in branches)), branches[0][1]
        else:
            y = None if x is None else layer(x)
            own = _layer_bound(layer, x, y)
        bound, x = _up(bound * own), y
    return bound, x


def _layer_bound(layer: nn.Module, x: Tensor | None, y: Tensor | None) -> float:
    """The layer's bound; x and y are features of one input before and after it."""
    if type(layer) is nn.Linear:
        return spectral_norm_bound(layer.weight)
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        coarse = x if isinstance(layer, nn.ConvTranspose2d) else y
        if coarse is None:
            raise UnsupportedError(f"{type(layer).__name__} on features of unknown shape")
        return conv_norm_bound(layer, (coarse.shape[-2], coarse.shape[-1]))
    if type(layer) is Scale:
        return abs(layer.factor)
    if type(layer) is Affine:
        return abs(layer.factor)
    if type(layer) in (GroupSort, MaxMin, MoveChannels, Part):
        return 1.0
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        return _up(float(batch_norm_factor(layer).abs().max()))
    return slope_bound(layer)


def _up(value: float) -> float:
    """Slack for the rounding of a few float64 operations."""
    return value * (1 + 1e-12)
