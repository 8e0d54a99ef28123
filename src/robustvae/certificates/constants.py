"""Lipschitz constants of a whole model, read from its stored weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from robustvae import gate
from robustvae.arguments import checked
from robustvae.certificates.networks import composition_of
from robustvae.certificates.propagation.graph import Add, Graph
from robustvae.certificates.propagation.operator import operator_of
from robustvae.certificates.propagation.steps import Step, SumStep
from robustvae.certificates.propagation.sweep import Relaxation
from robustvae.display import three_lines
from robustvae.errors import UnsupportedError
from robustvae.models import VAE
from robustvae.models.base import frozen
from robustvae.models.composition import Composition
from robustvae.models.vae import likelihood_of
from robustvae.norms import CONTINUOUS_BERNOULLI_SLOPE

OUTPUT_SLOPES = {
    "bernoulli": 1 / 4,
    "continuous_bernoulli": 1 / 4,
    "continuous_bernoulli_exact": CONTINUOUS_BERNOULLI_SLOPE,
    "gaussian": 1.0,
}
"""Largest slope of the likelihood's mean in the decoder's last layer."""


Norms = dict[tuple[int, tuple[int, ...]], float]
"""Constants of layers met before, by identity and the shape of what they read."""


@final
@three_lines()
@dataclass(frozen=True, repr=False)
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


@checked(formula=True)
def lipschitz_constants(vae: VAE) -> Constants:
    """Verified constants of a model of known layers, in evaluation mode.

    Without constraints on the weights they are sound, and far too large to be of use.

    Args:
        vae: A `vae` or `lipschitz-vae`, or anybody's model whose calls can be traced.

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
    return constants_of(composition_of(vae), vae.image_shape, vae.latent)


def constants_of(parts: Composition, image_shape: Sequence[int], latent: int) -> Constants:
    """Verified constants of a model made of these networks.

    Args:
        parts: The networks, with a decoder.
        image_shape: (C, H, W).
        latent: d.

    Raises:
        UnsupportedError: A layer or option that is not covered; the message names it.
    """
    assert parts.decoder is not None
    norms: Norms = {}
    b = lipschitz_bound(parts.mean, image_shape, norms)
    c = log_c = 0.0
    if parts.spread_network is not None:
        c, log_c = parts.spread.growth(lipschitz_bound(parts.spread_network, image_shape, norms))
    logits = lipschitz_bound(parts.decoder, (latent,), norms)
    return Constants(
        a=_up(OUTPUT_SLOPES[parts.likelihood] * logits),
        a_logits=logits,
        sigmoid=parts.likelihood in ("bernoulli", "continuous_bernoulli"),
        b=b,
        c=_up(c),
        log_c=_up(log_c),
        fixed_stddev=parts.spread.is_constant,
    )


@checked(formula=True)
def lipschitz_bound(
    network: nn.Module, shape: Sequence[int] | None = None, norms: Norms | None = None
) -> float:
    """An upper bound on the Lipschitz constant (l2 to l2) of a feed-forward network.

    The product over its layers, the sum over the branches of an `Add`; for a dense or
    convolutional layer of the verified spectral norm of what is stored.

    Args:
        network: An `nn.Sequential`, nested or not, an `Add`, a `Graph` with one output, or one
            layer; taken in evaluation mode.
        shape: Of one input's features; convolutions need it.
        norms: Filled with the layers' constants, which are taken from there where they are met
            again: for several networks that share layers, while nobody changes these.

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
    walk = _Constants(
        [() if shape is None else tuple(shape)], [1.0], {} if norms is None else norms
    )
    with frozen(network), torch.no_grad():
        return walk.bounds[walk.take(network, 0)]


AGREEMENT = 1e-9
"""Share of 1 + |value| by which two float64 evaluations of one network may differ.

Sums of a few thousand terms err by 1e-12; what is meant to be seen is another function.
"""


@torch.no_grad()
def check_computation(vae: VAE, x: Tensor, noise: Tensor, parts: Composition | None = None) -> None:
    """Raise on constants of another network than the one that runs.

    The layers that were read are evaluated by their own operators, from the stored weights, and
    compared with the model's `encode` and `decode` at the inputs, beside them, and at latents near
    theirs.

    Args:
        vae: A model in float64, on the CPU, in evaluation mode.
        x: Inputs, (B, C, H, W), float64.
        noise: Added to the inputs for further ones, as `x`.
        parts: Its networks, where they are known already.

    Raises:
        UnsupportedError: They differ, or a layer is not covered.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.certificates.constants import check_computation
        >>> vae = rv.load("digits-lipschitz-vae").double()
        >>> check_computation(vae, torch.rand(2, 1, 8, 8).double(), torch.rand(2, 1, 8, 8).double())
    """
    parts = composition_of(vae) if parts is None else parts
    assert parts.decoder is not None
    encoder = Relaxation(*encoder_networks(parts), shape=vae.image_shape)
    outwards = Relaxation(parts.decoder, shape=(vae.latent,))
    # beside the inputs as well: a branch on the input's content would pass at the input itself
    for images in (x, x + noise):
        posterior = vae.encode(images)
        mean, *head = encoder.value(images)
        _compare("encoder", posterior.mean, mean)
        stddev = parts.spread.stddev(head[0] if head else mean)
        _compare("encoder's spread", posterior.stddev, stddev)
        for z in (posterior.mean, posterior.mean + posterior.stddev):
            (logits,) = outwards.value(z)
            layers = likelihood_of(logits, parts.likelihood, parts.scale).mean
            _compare("decoder", vae.decode(z).mean.reshape(layers.shape), layers, parts.precision)


def encoder_networks(parts: Composition, *, spread: bool = True) -> tuple[nn.Module, ...]:
    """A trunk and the heads on it, as `Relaxation` takes them; the mean's first.

    Args:
        parts: The networks.
        spread: Whether the spread's head is wanted too, where there is one.
    """
    if spread and parts.joint is not None:
        return (parts.joint,)
    heads = [parts.spread_head] if spread and parts.spread_head is not None else []
    return (parts.trunk, parts.mean_head, *heads)


def _compare(part: str, runs: Tensor, layers: Tensor, precision: float = 0.0) -> None:
    gap = (runs - layers).abs() / (1 + layers.abs())
    if not bool((gap <= AGREEMENT + precision).all()):
        raise UnsupportedError(f"the {part} does not compute what its layers, taken alone, do")


@dataclass
class _Constants:
    """A walk through a network: of each value its shape, () where it is not known, and its bound.

    It is the `Builder` that operators append steps to; of the steps only the shapes matter here.
    """

    shapes: list[tuple[int, ...]]
    bounds: list[float]
    norms: Norms

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
        if len(reads) == 1:
            key = (id(layer), shape)
            if key not in self.norms:
                self.norms[key] = operator.grow((1.0,), shape)
            bound = _up(self.bounds[reads[0]] * self.norms[key])
        else:
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
