"""The networks of any model: as stated by a model of this library, or read from a trace."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from robustvae import gate
from robustvae.certificates.propagation import traced
from robustvae.certificates.propagation.graph import Affine, Constant, Exponential, Graph
from robustvae.certificates.propagation.trace import check_alike
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
    gate.admit_draws(posterior)
    while type(posterior) is torch.distributions.Independent:
        posterior = posterior.base_dist
        gate.admit_draws(posterior)
    if type(posterior) not in (Gaussian, torch.distributions.Normal):
        raise UnsupportedError(
            f"bounds by the weights want a Gaussian posterior, got {type(posterior).__name__}: "
            "let encode return rv.models.Gaussian(mean, stddev), or use method='smoothing'"
        )


def exact_copy(vae: VAE) -> VAE:
    """The model in float64 on the CPU, a copy of its own.

    Raises:
        UnsupportedError: A module that may not be what its copy is: one with a hook, with a way of
            its own to be copied or with tensors that are not plain; or a copy that differs.
    """
    originals = _parts(vae)
    for module in originals:
        gate.admit_copying(module)
    twin = copy.deepcopy(vae).to("cpu", torch.float64)
    copies = _parts(twin)
    if len(copies) != len(originals):
        raise UnsupportedError(
            f"bounds want a model whose copy is what it is, got a {type(vae).__name__} of "
            f"{len(originals)} modules with a copy of {len(copies)}; keep modules as attributes"
        )
    for one, other in zip(originals, copies, strict=True):
        _check_same(one, other)
    _check_alike(vae, twin)
    return twin


def _check_alike(vae: VAE, twin: VAE) -> None:
    """Raise where the calls of a model that is traced are others in its own type."""
    is_known = gate.is_known_model(vae)
    if is_known and type(vae).composition is not VAE.composition:
        return
    try:
        mine, its = ((one.paths() if is_known else paths_of(one)) for one in (vae, twin))
    except UnsupportedError:  # no networks to bound; `composition_of` says so
        return
    with frozen(vae), frozen(twin):
        for one, other, shape in (
            (mine.encoder, its.encoder, vae.image_shape),
            (mine.decoder, its.decoder, (vae.latent,)),
        ):
            check_alike(one, other, shape, vae.dtype, vae.device)


def _parts(module: nn.Module) -> list[nn.Module]:
    """A module and all below it, each once, whatever a class makes of `modules()`."""
    found, waiting = dict[int, nn.Module](), [module]
    while waiting:
        part = waiting.pop()
        if id(part) not in found:
            found[id(part)] = part
            waiting += [child for child in vars(part)["_modules"].values() if child is not None]
    return list(found.values())


# what is compared as it stands; of other attributes a copy may hold copies
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype)


def _check_same(one: nn.Module, other: nn.Module) -> None:
    """Raise unless a copy is of one class with the original and holds the same numbers."""
    difference = None
    if type(other) is not type(one):
        difference = f"of the class {type(other).__name__}"
    for kept in ("_modules", "_parameters", "_buffers"):
        mine, its = vars(one)[kept], vars(other)[kept]
        if list(mine) != list(its):
            difference = f"whose {kept} are {', '.join(its) or 'none'}"
        elif kept != "_modules" and not all(map(_is_same, mine.values(), its.values())):
            difference = f"whose {kept} hold other numbers"
    for key, value in vars(one).items():
        if type(value) in _PLAIN:
            its = vars(other).get(key)
            if type(its) is not type(value) or repr(its) != repr(value):
                difference = f"whose {key} is {its!r}, not {value!r}"
    if difference:
        raise UnsupportedError(
            f"bounds want a model whose copy is what it is, got a {type(one).__name__} with a copy "
            f"{difference}; let copy.deepcopy keep what it finds"
        )


def _is_same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether a tensor holds what another does, in the latter's floating type."""
    if one is None or other is None:
        return one is other
    if one.is_meta or other.is_meta or one.shape != other.shape:
        return False
    one = one.detach().to(other.device, other.dtype)
    return bool(((one == other) | ((one != one) & (other != other))).all())


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
