"""Training for support sets: the worst explanation over a box of latents, by intervals."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustvae.errors import (
    UnsupportedError,
    check_count,
    check_number,
    check_probability,
)
from robustvae.models import VAE
from robustvae.models.composition import Composition
from robustvae.models.sorts import GroupSort
from robustvae.models.vae import likelihood_of
from robustvae.objectives.base import Objective, base_terms, cost_of
from robustvae.objectives.elbo import ELBO, warmed
from robustvae.registry import build_fields, register

_SHAPES = (nn.Flatten, nn.Unflatten, nn.Identity)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
# rising in every coordinate, so that they map ends to ends
_RISING = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU, GroupSort)


@register("objective", "support-set")
@final
@dataclass(frozen=True)
class SupportSet:
    """Another objective plus the worst explanation over a box of latents that holds the mass m.

    loss(x) = base(x) + weight max over the box of -log p(x|z)

    The box holds the mass m of q(.|x') for every |x' - x| <= size, in l-infinity; it and what the
    decoder makes of it are bounded by intervals, whose ends are differentiable. Every likelihood
    here is worst at an end of its parameter's interval. What is trained so can be certified by
    `methods=["support_set"]` and `support_set_error`.

    Args:
        size: Of the change, l-infinity, in pixel units, at least 0.
        m: Mass of the box, in (0, 1).
        weight: Of the worst explanation, at least 0.
        warmup: Optimization steps over which size and weight rise from 0, linearly.
        base: What it is added to.

    Raises:
        RangeError: A size, weight or count below 0, or m out of range.
        DtypeError: `base` is not an objective.
        UnsupportedError: When called, with a model of other layers, by name.

    References:
        Xu et al., 2025 (CIVET); Gowal et al., 2018 (training by intervals).

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.models.create("vae", architecture="conv8", latent=2)
        >>> x = rv.data.load("digits", split="test").x[:3]
        >>> objective = rv.objectives.SupportSet(size=0.02)
        >>> sorted(objective.terms(vae, x, generator=rv.generator(0)))
        ['distortion', 'kl', 'loss', 'worst']
    """

    size: float = 0.05
    m: float = 0.5
    weight: float = 0.1
    warmup: int = 0
    base: Objective = field(default_factory=ELBO)

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_number(self.size, "size", least=0)
        check_probability(self.m, "m")
        check_number(self.weight, "weight", least=0)
        check_count(self.warmup, "warmup", least=0)
        build_fields(self, base="objective")

    @property
    def cost(self) -> float:
        """Work of a training step over that of a plain ELBO: two more passes; see `cost_of`."""
        return cost_of(self.base) + 2.0

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The loss of each image, in nats, (B,).

        Args:
            vae: The model.
            x: Images in [0, 1], (B, C, H, W).
            generator: Spent by the base's draws.
        """
        return self.terms(vae, x, generator=generator)["loss"]

    def terms(
        self, vae: VAE, x: Tensor, *, generator: torch.Generator, reads: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The terms of `base`, and "worst", the worst -log p(x|z) over the box; each (B,)."""
        terms = base_terms(self.base, vae, x, generator=generator, reads=reads)
        worst = worst_explanation(vae.composition(), x, self.size, self.m)
        return {**terms, "worst": worst, "loss": terms["loss"] + self.weight * worst}

    def at(self, step: int) -> SupportSet:
        """The objective at optimization step `step`, size and weight warmed up so far."""
        share = warmed(step, self.warmup)
        return replace(
            self,
            size=self.size * share,
            weight=self.weight * share,
            warmup=0,
            base=self.base.at(step),
        )


def worst_explanation(parts: Composition, x: Tensor, size: float, m: float) -> Tensor:
    """The greatest -log p(x|z) over the box of latents, bounded by intervals, (B,), in nats.

    Args:
        parts: The model's networks.
        x: Images, (B, C, H, W).
        size: Of the change, l-infinity.
        m: Mass of the box.
    """
    if parts.decoder is None:
        raise UnsupportedError(
            "support sets want a model with one layer of latents: use a `vae`, or another objective"
        )
    low, high = ends(parts.trunk, x - size, x + size)
    first, last = ends(parts.mean_head, low, high)
    if parts.spread_head is None:
        stddev = parts.spread.stddev(last)
    else:
        stddev = parts.spread.interval(*ends(parts.spread_head, low, high))[1]
    share = torch.tensor((1 + m ** (1 / parts.width)) / 2, dtype=torch.float64)
    reach = float(torch.special.ndtri(share)) * stddev
    outputs = ends(parts.decoder, first - reach, last + reach)
    losses = [
        -likelihood_of(end, parts.likelihood, parts.scale).log_prob(x).flatten(1) for end in outputs
    ]
    return torch.maximum(*losses).sum(1)


def ends(network: nn.Module, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds on what a network makes of everything between two ends, differentiable.

    Args:
        network: Dense and convolutional layers and rising functions, in a row.
        low: Lower ends, (B, ...).
        high: Upper ends, (B, ...).

    Raises:
        UnsupportedError: Another layer, by name.

    Examples:
        >>> import torch
        >>> from robustvae.objectives.support_set import ends
        >>> [end.tolist() for end in ends(torch.nn.ReLU(), torch.tensor([-1.0]), torch.ones(1))]
        [[0.0], [1.0]]
    """
    if type(network) is nn.Sequential:
        for layer in network:
            low, high = ends(layer, low, high)
        return low, high
    if isinstance(network, (*_SHAPES, *_RISING)):
        return network(low), network(high)
    center, radius = (low + high) / 2, (high - low) / 2
    if type(network) is nn.Linear:
        middle, reach = network(center), functional.linear(radius, network.weight.abs())
    elif isinstance(network, _CONVOLUTIONS) and network.padding_mode == "zeros":
        # the layer itself with the sizes of its weights and without its bias
        sizes: dict[str, Any] = {"weight": network.weight.abs(), "bias": None}
        middle, reach = network(center), torch.func.functional_call(network, sizes, radius)
    else:
        raise UnsupportedError(
            f"training by intervals wants dense and convolutional layers and rising functions, got "
            f"{type(network).__name__}: use another objective"
        )
    return middle - reach, middle + reach
