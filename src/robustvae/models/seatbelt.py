"""The Seatbelt-VAE: a hierarchy of which the likelihood sees every layer."""

from __future__ import annotations

from typing import final

from torch import Tensor

from robustvae import gate
from robustvae.models.hierarchy import HierarchicalVAE
from robustvae.registry import register


@register("model", "seatbelt")
@gate.know_model
@final
class SeatbeltVAE(HierarchicalVAE):
    """A Seatbelt-VAE: p(x | z^1, ..., z^L) p(z^1 | z^2) ... p(z^L), any number of layers.

    It is the paper's under `TotalCorrelation`, which weighs the top layer's total correlation; with
    one layer that is a beta-TCVAE. The arguments are those of `HierarchicalVAE`.

    References:
        [Willetts21] Eq. 7-8.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("seatbelt", widths=[4, 2], image_shape=(1, 8, 8), hidden=[16])
        >>> x = torch.rand(5, 1, 8, 8)
        >>> vae.log_joint(x, vae.encode(x).mean).shape
        torch.Size([5])
    """

    def _seen(self, z: Tensor) -> Tensor:
        return z
