"""The networks of any model: as stated by a model of this library, or read from a trace."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from robustvae import gate
from robustvae.certificates.propagation import traced
from robustvae.certificates.propagation.graph import Affine, Constant, Exponential, Graph
from robustvae.errors import UnsupportedError
from robustvae.models import VAE, Gaussian
from robustvae.models.base import frozen
from robustvae.models.composition import Composition, Spread, paths_of

# these only give features another shape, so that an elementwise function may come before or after
_MOVES = (nn.Flatten, nn.Unflatten, nn.Identity)

EXTRA_UNITS = 24
"""Units in the last place of 1 that a probability loses on its way to log odds and back.

8 of the logarithm and of 1 - p, up to 14 of log odds between -14 and 14, times a slope of 1/4.
"""


def composition_of(vae: VAE, *, decoder: bool = True) -> Composition:
    """The networks that a model is made of; what they compute is what runs.

    A model of this library, exactly, is asked. Of any other the calls `encode` and `decode` are
    traced: straight code of layers and operations that are known.

    Args:
        vae: The model.
        decoder: Whether the decoder is wanted, too; of a traced model only then.

    Returns:
        Its composition; of a traced model one in float64 on the CPU.

    Raises:
        UnsupportedError: A model whose calls cannot be traced, or an operation that is not known,
            by name; or a process or model that the gate refuses.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.certificates.networks import composition_of
        >>> composition_of(rv.load("digits-lipschitz-vae")).spread
        Spread(rule='constant', constant=0.1, offset=0.0, norm=None)
    """
    is_known = gate.is_known_model(vae)
    if is_known and type(vae).composition is not VAE.composition:
        parts = vae.composition()
        if decoder and parts.decoder is None:
            raise UnsupportedError(
                "bounds by the weights of a decoder speak of models with one layer of latents, "
                f"not of {type(vae).__name__}; use methods=['neyman_pearson'] or ['smoothing']"
            )
        return parts
    # a stranger's own `paths` would be a statement, too
    paths = vae.paths() if is_known else paths_of(vae)
    if vae.dtype != torch.float64 or vae.device.type != "cpu":
        return composition_of(exact_copy(vae), decoder=decoder)
    if not is_known:
        _check_posterior(vae)
    with frozen(vae):
        encoder = traced(paths.encoder, vae.image_shape)
        outputs = traced(paths.decoder, (vae.latent,)) if decoder else None
    spread, end = _spread(encoder, encoder.ends[1])
    if paths.rule != "stddev":
        spread, end = Spread(paths.rule), encoder.ends[1]
    before_sigmoid = None if outputs is None else _without_sigmoid(outputs)
    if outputs is not None and before_sigmoid is None and paths.is_probability:
        raise UnsupportedError(
            "bounds by the weights want probabilities from a decoder that ends in a sigmoid; "
            "use outputs='logits', or methods=['smoothing']"
        )
    if outputs is not None:
        outputs = before_sigmoid or outputs
    joint = None
    if not spread.is_constant:
        joint = encoder.leading_to(encoder.ends[0], end)
    return Composition(
        trunk=nn.Identity(),
        mean_head=_chained(encoder.only(0)),
        spread=spread,
        spread_head=None if joint is None else _chained(joint.only(1)),
        width=vae.latent,
        decoder=None if outputs is None else _chained(outputs),
        likelihood="gaussian" if before_sigmoid is None else "bernoulli",
        joint=joint,
        precision=paths.precision,
    )


@torch.no_grad()
def _check_posterior(vae: VAE) -> None:
    """Raise unless draws of a stranger's posterior are Gaussian: a trace sees two of its numbers.

    Raises:
        UnsupportedError: An object of another class, or a subclass, which may draw as it likes.
    """
    posterior: object = vae.encode(torch.zeros(1, *vae.image_shape, dtype=torch.float64))
    while type(posterior) is torch.distributions.Independent:
        posterior = posterior.base_dist
    if type(posterior) not in (Gaussian, torch.distributions.Normal):
        raise UnsupportedError(
            f"bounds by the weights want a Gaussian posterior, got {type(posterior).__name__}: "
            "let encode return rv.models.Gaussian(mean, stddev), or use method='smoothing'"
        )


def exact_copy(vae: VAE) -> VAE:
    """The model in float64 on the CPU, a copy of its own.

    Raises:
        UnsupportedError: Tensors that are not plain, which a copy may not carry over.
    """
    for module in vae.modules():
        gate.admit_tensors(module)
    return copy.deepcopy(vae).to("cpu", torch.float64)


def output_of(network: nn.Module, x: Tensor) -> Tensor:
    """What a network of one output makes of its input."""
    output = network(x)
    result: Tensor = output[0] if type(network) is Graph else output
    return result


def _spread(graph: Graph, end: int) -> tuple[Spread, int]:
    """How the value at `end` is made, and the value that it is made of."""
    scale, shift, node = 1.0, 0.0, end
    while node > 0:
        layer = graph.layers[node - 1]
        if type(layer) is Constant:
            return Spread("constant", constant=layer.value * scale + shift), node
        if type(layer) is Exponential and scale == 1.0 and shift >= 0.0:
            return Spread("log_stddev", offset=shift), graph.reads[node - 1][0]
        if type(layer) is not Affine:
            break
        scale, shift = scale * layer.factor, scale * layer.shift + shift
        (node,) = graph.reads[node - 1]
    return Spread("stddev"), end


def _without_sigmoid(graph: Graph) -> Graph | None:
    """The graph without the sigmoid that it ends in; None where it ends otherwise."""
    node = graph.ends[0]
    while node > 0 and type(graph.layers[node - 1]) in _MOVES:
        (node,) = graph.reads[node - 1]
    if node == 0 or type(graph.layers[node - 1]) is not nn.Sigmoid:
        return None
    if sum(reads.count(node) for reads in graph.reads) + graph.ends.count(node) != 1:
        return None
    layers = list(graph.layers)
    layers[node - 1] = nn.Identity()
    return Graph(layers, graph.reads, graph.ends)


def _chained(graph: Graph) -> nn.Module:
    """The layers in a row, where each reads the one before it and nothing else; else the graph."""
    node, layers = graph.ends[0], list[nn.Module]()
    while node > 0:
        if len(graph.reads[node - 1]) != 1:
            return graph
        layers.append(graph.layers[node - 1])
        (node,) = graph.reads[node - 1]
    return nn.Sequential(*reversed(layers)).eval()
