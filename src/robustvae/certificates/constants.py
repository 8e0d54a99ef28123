"""Lipschitz constants of a whole model, read from its stored weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from robustvae import gate
from robustvae.certificates.propagation.graph import Add, Graph
from robustvae.certificates.propagation.operator import operator_of
from robustvae.certificates.propagation.steps import Step, SumStep
from robustvae.certificates.propagation.sweep import Relaxation
from robustvae.errors import UnsupportedError
from robustvae.models import VAE, GaussianVAE, LipschitzVAE
from robustvae.models.base import frozen
from robustvae.models.networks import log_var_to_stddev
from robustvae.models.vae import likelihood_of
from robustvae.norms import CONTINUOUS_BERNOULLI_SLOPE

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
    gate.admit_model(vae, GaussianVAE, LipschitzVAE)
    if isinstance(vae, GaussianVAE):
        b = lipschitz_bound(nn.Sequential(vae.trunk, vae.mean_head), vae.image_shape)
        log_c = 0.0
        if vae.log_var_head is not None:
            network = nn.Sequential(vae.trunk, vae.log_var_head)
            log_c = _up(lipschitz_bound(network, vae.image_shape) / 2)
        c = _up(math.exp(10.0) * log_c)  # the log variance is clamped at 20
        if vae.stddev_norm is not None:
            log_c *= 2  # the common factor of the projection can grow as well
    elif isinstance(vae, LipschitzVAE):
        b = lipschitz_bound(vae.mean_net, vae.image_shape)
        c = 0.0 if vae.stddev_net is None else lipschitz_bound(vae.stddev_net, vae.image_shape)
        log_c = 0.0 if vae.stddev_net is None else math.inf  # a greatest norm projects: c stands
    else:
        raise AssertionError("the gate admits no other class")
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
    walk = _Constants([() if shape is None else tuple(shape)], [1.0])
    with frozen(network), torch.no_grad():
        return walk.bounds[walk.take(network, 0)]


AGREEMENT = 1e-9
"""Share of 1 + |value| by which two float64 evaluations of one network may differ.

Sums of a few thousand terms err by 1e-12; what is meant to be seen is another function.
"""


@torch.no_grad()
def check_computation(vae: VAE, x: Tensor, noise: Tensor) -> None:
    """Raise on constants of another network than the one that runs.

    The layers that were read are evaluated by their own operators, from the stored weights, and
    compared with the model's `encode` and `decode` at the inputs, beside them, and at latents near
    theirs.

    Args:
        vae: A `vae` or `lipschitz-vae` in float64, on the CPU, in evaluation mode.
        x: Inputs, (B, C, H, W), float64.
        noise: Added to the inputs for further ones, as `x`.

    Raises:
        UnsupportedError: They differ, or a layer is not covered.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.certificates.constants import check_computation
        >>> vae = rv.load("digits-lipschitz-vae").double()
        >>> check_computation(vae, torch.rand(2, 1, 8, 8).double(), torch.rand(2, 1, 8, 8).double())
    """
    if isinstance(vae, GaussianVAE):
        heads = [vae.mean_head] + [head for head in (vae.log_var_head,) if head is not None]
        encoder = Relaxation(vae.trunk, *heads, shape=vae.image_shape)
        decoder = vae.decoder
    else:
        assert isinstance(vae, LipschitzVAE)
        encoder = Relaxation(vae.mean_net, shape=vae.image_shape)
        decoder = vae.decoder
    outwards = Relaxation(decoder, shape=(vae.latent,))
    for images in (x, x + noise):
        posterior = vae.encode(images)
        mean, *spread = encoder.value(images)
        _compare("encoder", posterior.mean, mean)
        if spread and isinstance(vae, GaussianVAE) and vae.stddev_norm is None:
            stddev = log_var_to_stddev(spread[0]) + vae.stddev_offset
            _compare("encoder's spread", posterior.stddev, stddev)
        elif isinstance(vae, LipschitzVAE) and vae.stddev_net and vae.stddev_norm is None:
            (stddev,) = Relaxation(vae.stddev_net, shape=vae.image_shape).value(images)
            _compare("encoder's spread", posterior.stddev, stddev)
        for z in (posterior.mean, posterior.mean + posterior.stddev):
            (logits,) = outwards.value(z)
            layers = likelihood_of(logits, vae.likelihood, vae.scale).mean
            _compare("decoder", vae.decode(z).mean, layers)


def _compare(part: str, runs: Tensor, layers: Tensor) -> None:
    gap = (runs - layers).abs() / (1 + layers.abs())
    if not bool((gap <= AGREEMENT).all()):
        raise UnsupportedError(f"the {part} does not compute what its layers, taken alone, do")


@dataclass
class _Constants:
    """A walk through a network: of each value its shape, () where it is not known, and its bound.

    It is the `Builder` that operators append steps to; of the steps only the shapes matter here.
    """

    shapes: list[tuple[int, ...]]
    bounds: list[float]

    def shape(self, node: int) -> tuple[int, ...]:
        """Of a value."""
        return self.shapes[node]

    def append(self, step: Step, shape: tuple[int, ...]) -> int:
        """A value of that shape."""
        self.shapes.append(shape)
        self.bounds.append(math.nan)
        return len(self.shapes) - 1

    def take(self, network: nn.Module, node: int) -> int:
        """The value that a network makes of another."""
        if type(network) is nn.Sequential:
            gate.admit(network)
            for layer in network:
                node = self.take(layer, node)
            return node
        if type(network) is Add:
            gate.admit(network)
            ends = [self.take(branch, node) for branch in network.branches]
            end = self.append(SumStep(tuple(ends)), self.shapes[ends[0]])
            self.bounds[end] = _up(sum(self.bounds[branch] for branch in ends))
            return end
        if type(network) is Graph:
            gate.admit(network)
            (end,) = network.walk(
                node,
                lambda layer, reads: (
                    self.take(layer, reads[0]) if len(reads) == 1 else self.meet(layer, reads)
                ),
            )
            return end
        return self.meet(network, (node,))

    def meet(self, layer: nn.Module, reads: tuple[int, ...]) -> int:
        """The value that a layer makes of those that it reads."""
        operator, shape = operator_of(layer), self.shapes[reads[0]]
        bound = _up(operator.grow(tuple(self.bounds[read] for read in reads), shape))
        if all(self.shapes[read] for read in reads):
            end = operator.build(self, reads)
        else:
            end = self.append(SumStep(reads), ())
        if end in reads:  # a layer that passes its input
            end = self.append(SumStep(reads), shape)
        self.bounds[end] = bound
        return end


def _up(value: float) -> float:
    """Slack for the rounding of a few float64 operations."""
    return value * (1 + 1e-12)
