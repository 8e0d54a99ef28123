"""How far two latent codes are apart: what latent goals raise or lower."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustvae import metrics
from robustvae.attacks.goals.base import Readings
from robustvae.defenses import Victim, reads_encoder_mean
from robustvae.errors import RangeError, UnsupportedError, check_count, check_type
from robustvae.models.base import VAE
from robustvae.models.hierarchy import check_gaussian
from robustvae.models.likelihoods import Distribution
from robustvae.perturb import Score
from robustvae.seeding import by_row, randn

Divergence = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _means(mean: Tensor, stddev: Tensor, other_mean: Tensor, other_stddev: Tensor) -> Tensor:
    return (mean - other_mean).square().sum(1)


def _reverse_kl(mean: Tensor, stddev: Tensor, other_mean: Tensor, other_stddev: Tensor) -> Tensor:
    return metrics.kl(other_mean, other_stddev, mean, stddev)


_DIVERGENCES: dict[str, Divergence] = {
    "kl": metrics.kl,
    "means": _means,
    "reverse_kl": _reverse_kl,
    "symmetric_kl": metrics.symmetric_kl,
    "wasserstein2": metrics.wasserstein2,
}
DIVERGENCES = (*_DIVERGENCES, "latent", "samples")
"""How far two latent codes are apart; see `LatentShift`."""


def apart(
    victim: Victim,
    x: Tensor,
    other: Tensor,
    *,
    divergence: str,
    layers: tuple[int, ...] | None,
    draws: int,
    generator: torch.Generator,
) -> Score:
    """How far the code of a candidate is from that of its row in `other`; see `LatentShift`."""
    vae, coordinate_index = victim.vae, coordinates(victim.vae, layers)
    if divergence == "latent" or not reads_encoder_mean(victim.defense):
        read = Readings(victim.latent, victim, x, draws, generator)
        everyone = torch.arange(len(x), device=x.device)
        with torch.no_grad():
            code = read(other, everyone).mean(0)[:, coordinate_index]
        return lambda y, rows: (
            (read(y, rows)[..., coordinate_index] - code[rows]).square().sum(2).mean(0)
        )
    with torch.no_grad():
        q = vae.encode(other)
        if divergence != "means":
            check_gaussian(q, f"divergence={divergence!r}")
        mean, stddev = q.mean[:, coordinate_index], q.stddev[:, coordinate_index]
    if divergence == "samples":
        streams = by_row(generator, "samples", x)
        one, two = randn(2, draws, *mean.shape, like=mean, generator=streams, axis=2)

        def drawn(y: Tensor, rows: Tensor) -> Tensor:
            p = _part(vae.encode(y), coordinate_index)
            gap = p[0] + one[:, rows] * p[1] - mean[rows] - two[:, rows] * stddev[rows]
            return gap.square().sum(2).mean(0)

        return drawn
    measure = _DIVERGENCES[divergence]
    return lambda y, rows: measure(
        *_part(vae.encode(y), coordinate_index), mean[rows], stddev[rows]
    )


def _part(q: Distribution, picked: slice | Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(picked, slice):
        return q.mean, q.stddev
    return q.mean[:, picked], q.stddev[:, picked]


def check_layers(layers: tuple[int, ...] | None) -> None:
    """Validate the layers that a latent goal names: at least one, each once."""
    if layers is None:
        return
    check_type(layers, "layers", tuple)
    for layer in layers:
        check_count(layer, "each of layers", least=0)
    if not layers or len(set(layers)) < len(layers):
        raise RangeError(f"layers must name at least one layer, each once, got {layers}")


def coordinates(vae: VAE, layers: tuple[int, ...] | None) -> slice | Tensor:
    """The coordinates of the flat latent that belong to some layers of a hierarchy."""
    if layers is None:
        return slice(None)
    widths = getattr(vae, "widths", None)
    if widths is None:
        raise UnsupportedError(f"{type(vae).__name__} has one layer: leave layers=None")
    parts = torch.arange(vae.latent, device=vae.device).split(list(widths))
    if max(layers) >= len(parts):
        raise RangeError(f"layers must lie in 0..{len(parts) - 1}, got {layers}")
    return torch.cat([parts[layer] for layer in layers])
