"""What models with several layers of latents share: joint distributions, walked layer by layer."""

from __future__ import annotations

import abc
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack, final

import torch
from torch import Tensor, nn

from robustvae._options import with_defaults
from robustvae.arguments import checked
from robustvae.errors import ShapeError, UnsupportedError, check_sizes
from robustvae.models.base import VAE
from robustvae.models.composition import Composition, Spread
from robustvae.models.likelihoods import Distribution, Gaussian, PointMass, kind_of
from robustvae.models.networks import ACTIVATIONS, build, log_var_to_stddev
from robustvae.models.vae import check_likelihood, likelihood_of
from robustvae.seeding import draw

Choose = Callable[[Gaussian], Tensor]
"""Gives a layer, (..., w), its value, of the same shape or with more leading axes."""


@final
@dataclass(frozen=True, eq=False)
class LayeredGaussian:
    """A joint distribution of layers, each Gaussian given the layers before it.

    Warning:
        `.mean` and `.stddev` are those of the conditionals along the mean path, where every layer
        is given the means of those before; the joint's own moments have no closed form.

    Args:
        walk: Goes through the layers: calls its argument on each layer's Gaussian once, in order,
            takes what that returns for the layer's value, and returns the Gaussians.
        widths: Widths of the layers as they lie in the flat latent, from the data upwards.
        upwards: Whether the walk begins next to the data (some posteriors) or at the top (priors).

    Examples:
        >>> import torch
        >>> from robustvae.models import Gaussian, LayeredGaussian
        >>> def walk(choose):
        ...     first = Gaussian(torch.ones(3, 2), torch.ones(3, 2))
        ...     second = Gaussian(2 * choose(first), torch.ones(3, 2))
        ...     choose(second)
        ...     return [first, second]
        >>> LayeredGaussian(walk, widths=(2, 2), upwards=True).mean[0]
        tensor([1., 1., 2., 2.])
    """

    walk: Callable[[Choose], list[Gaussian]]
    widths: tuple[int, ...]
    upwards: bool

    @property
    def mean(self) -> Tensor:
        """The mean path, (..., d)."""
        return self._mean_path.mean

    @property
    def stddev(self) -> Tensor:
        """Standard deviations of the conditionals along the mean path, (..., d)."""
        return self._mean_path.stddev

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each element given the layers before it in `value`, in nats, (..., d)."""
        return self.at(value).log_prob(value)

    def draw(self, shape: tuple[int, ...] = (), *, generator: torch.Generator) -> Tensor:
        """Reparameterized draws, `shape` + the mean's shape, layer after layer."""
        return self.draw_at(shape, generator=generator)[0]

    def draw_at(
        self, shape: tuple[int, ...] = (), *, generator: torch.Generator
    ) -> tuple[Tensor, Gaussian]:
        """Draws, and what `at` says of them, in one walk."""
        draws: list[Tensor] = []

        def choose(layer: Gaussian) -> Tensor:
            draws.append(layer.draw(() if draws else shape, generator=generator))
            return draws[-1]

        layers = self.walk(choose)
        z = self._flat(draws)
        return z, self._side_by_side(layers, z)

    def at(self, z: Tensor) -> Gaussian:
        """Every layer's Gaussian given the layers before it in `z`, side by side, (..., d)."""
        values = iter(self._in_order(z.split(self.widths, dim=-1)))
        return self._side_by_side(self.walk(lambda _: next(values)), z)

    @functools.cached_property
    def _mean_path(self) -> Gaussian:
        return self._side_by_side(self.walk(lambda layer: layer.mean))

    def _side_by_side(self, layers: list[Gaussian], like: Tensor | None = None) -> Gaussian:
        shape = layers[-1].mean.shape[:-1] if like is None else like.shape[:-1]

        def flat(parts: list[Tensor]) -> Tensor:
            return self._flat([part.expand(*shape, part.shape[-1]) for part in parts])

        return Gaussian(flat([q.mean for q in layers]), flat([q.stddev for q in layers]))

    def _flat(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(self._in_order(parts), dim=-1)

    def _in_order(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return list(parts if self.upwards else reversed(parts))


def chain(
    first: Gaussian, links: Sequence[Callable[[Tensor], Gaussian]]
) -> Callable[[Choose], list[Gaussian]]:
    """The walk through layers that depend on the one before each, and on no other.

    Args:
        first: The layer that depends on none, (..., w).
        links: Value of a layer, (..., w), to the Gaussian of the next.
    """

    def walk(choose: Choose) -> list[Gaussian]:
        layers = [first]
        for link in links:
            layers.append(link(choose(layers[-1])))
        choose(layers[-1])
        return layers

    return walk


@checked()
def conditionals(distribution: Distribution, z: Tensor) -> Distribution:
    """The distribution of every layer given the layers of `z` it depends on; (B, d).

    Of a distribution with one layer that is the distribution itself.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("dlgm", widths=[4, 2], image_shape=(1, 8, 8), hidden=[16])
        >>> q = vae.encode(torch.rand(5, 1, 8, 8))
        >>> rv.models.conditionals(q, rv.draw(q, generator=rv.generator(0))).mean.shape
        torch.Size([5, 6])
    """
    return distribution.at(z) if isinstance(distribution, LayeredGaussian) else distribution


def draw_at(
    distribution: Distribution, *, generator: torch.Generator
) -> tuple[Tensor, Distribution]:
    """A draw, (B, d), and its `conditionals`: of layers, in one walk.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.models.hierarchy import draw_at
        >>> vae = rv.models.create("dlgm", widths=[4, 2], image_shape=(1, 8, 8), hidden=[16])
        >>> z, q = draw_at(vae.encode(torch.rand(5, 1, 8, 8)), generator=rv.generator(0))
        >>> z.shape, q.mean.shape
        (torch.Size([5, 6]), torch.Size([5, 6]))
    """
    if isinstance(distribution, LayeredGaussian):
        return distribution.draw_at(generator=generator)
    return draw(distribution, generator=generator), distribution


def check_gaussian(distribution: Distribution, what: str) -> None:
    """Raise unless `distribution` is Gaussian: for formulas that know its mean and spread only.

    Raises:
        UnsupportedError: Any other distribution, by the name of its class; layers that are
            Gaussian given one another, and torch's own normal, will do.
    """
    base = distribution
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if not isinstance(base, Gaussian | LayeredGaussian | torch.distributions.Normal):
        hint = f": {base.missing}" if isinstance(base, PointMass) else ""
        raise UnsupportedError(f"{what} needs a Gaussian posterior, got {kind_of(base)}{hint}")


@final
class HierarchyOptions(TypedDict, total=False):
    """Options of `HierarchicalVAE`, which describes them."""

    hidden: Sequence[int] | None
    activation: str | None
    batch_norm: bool | None
    between: Sequence[int]


_DEFAULTS: HierarchyOptions = {
    "hidden": None,
    "activation": None,
    "batch_norm": None,
    "between": (256,),
}


class HierarchicalVAE(VAE, abc.ABC):
    """A VAE with latents z = (z^1, ..., z^L), flat side by side: p(x|z) p(z^1|z^2) ... p(z^L).

    The posterior climbs from the data, q(z^1|x) q(z^2|z^1) ... q(z^L|z^(L-1)). What the likelihood
    reads of z is what its heirs differ in.

    Args:
        architecture: As of `vae`: reads images, and makes them.
        widths: Widths of z^1, ..., z^L, from the data upwards.
        image_shape: As of `vae`.
        likelihood: As of `vae`.
        scale: As of `vae`.
        options: Any of hidden and batch_norm, as of `vae`; activation, "relu" or "tanh", of an
            `mlp` and of the networks between layers; and between, hidden widths of the network
            from each layer to the next, both ways, (256,) by default.

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.models.create("seatbelt", widths=[4, 2], image_shape=(1, 8, 8), hidden=[16])
        >>> isinstance(vae, rv.models.HierarchicalVAE), vae.latent
        (True, 6)
    """

    widths: tuple[int, ...]

    def __init__(
        self,
        architecture: str = "mlp",
        widths: Sequence[int] = (32, 16),
        image_shape: Sequence[int] | None = None,
        likelihood: str = "bernoulli",
        scale: float = 1.0,
        **options: Unpack[HierarchyOptions],
    ) -> None:
        """Build the networks; torch's global generator makes the first weights."""
        super().__init__()
        settings = with_defaults(type(self), options, _DEFAULTS)
        between = settings["between"]
        check_sizes(widths, "widths")
        if not widths:
            raise ShapeError("widths must name at least one layer, got none")
        check_sizes(between, "between")
        check_likelihood(likelihood, scale)
        self.widths = tuple(widths)
        self.latent = sum(widths)
        self.likelihood = likelihood
        self.scale = float(scale)
        context_width = self._seen(torch.zeros(1, self.latent)).shape[1]
        networks, layout = build(
            architecture,
            widths[0],
            context_width,
            image_shape,
            hidden=settings["hidden"],
            activation=settings["activation"],
            batch_norm=settings["batch_norm"],
        )
        channels, height, width = layout["image_shape"]
        self.image_shape = (channels, height, width)
        self._config = {
            **layout,
            "widths": list(widths),
            "likelihood": likelihood,
            "scale": self.scale,
            "between": list(between),
        }
        self.trunk = networks.trunk
        self.mean_head = networks.head()
        self.log_var_head = networks.head()
        self.decoder = networks.decoder
        act = ACTIVATIONS[layout.get("activation", "relu")]
        steps = list(itertools.pairwise(widths))
        self.up = nn.ModuleList(_Link(low, between, high, act) for low, high in steps)
        self.down = nn.ModuleList(_Link(high, between, low, act) for low, high in steps)

    @abc.abstractmethod
    def _seen(self, z: Tensor) -> Tensor:
        """What the likelihood reads of the flat latents (B, d)."""

    def composition(self) -> Composition:
        """The lowest layer's networks, and the links of those layers that the likelihood reads."""
        context_width = self._seen(torch.zeros(1, self.latent)).shape[1]
        layers = 1 + list(itertools.accumulate(self.widths)).index(context_width)
        parts = [(link.get_submodule("trunk"), link.get_submodule("mean_head")) for link in self.up]
        return Composition(
            trunk=self.trunk,
            mean_head=self.mean_head,
            spread=Spread("log_var"),
            spread_head=self.log_var_head,
            width=self.widths[0],
            links=tuple(nn.Sequential(*pair) for pair in parts[: layers - 1]),
            widths=self.widths[:layers],
        )

    def encode(self, x: Tensor) -> LayeredGaussian:
        """q(z | x), layer by layer upwards, (B, d)."""
        self.check(x)
        features = self.trunk(x)
        stddev = log_var_to_stddev(self.log_var_head(features))
        first = Gaussian(self.mean_head(features), stddev)
        return LayeredGaussian(chain(first, list(self.up)), self.widths, upwards=True)

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z), (B, C, H, W)."""
        return likelihood_of(self.decoder(self._seen(z)), self.likelihood, self.scale)

    def prior(self) -> LayeredGaussian:
        """p(z), layer by layer downwards from a standard normal, (d,)."""
        zeros = torch.zeros(self.widths[-1], dtype=self.dtype, device=self.device)
        top = Gaussian(zeros, torch.ones_like(zeros))
        return LayeredGaussian(chain(top, list(self.down)[::-1]), self.widths, upwards=False)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, complete."""
        return dict(self._config)


@final
class _Link(nn.Module):
    """The Gaussian of one layer given another."""

    def __init__(
        self, fan_in: int, hidden: Sequence[int], fan_out: int, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for low, high in itertools.pairwise([fan_in, *hidden]):
            layers += [nn.Linear(low, high), activation()]
        last = hidden[-1] if hidden else fan_in
        self.trunk = nn.Sequential(*layers)
        self.mean_head = nn.Linear(last, fan_out)
        self.log_var_head = nn.Linear(last, fan_out)

    def forward(self, z: Tensor) -> Gaussian:
        features = self.trunk(z)
        return Gaussian(self.mean_head(features), log_var_to_stddev(self.log_var_head(features)))
