"""The deep latent Gaussian model: a hierarchy of which the likelihood sees the lowest layer."""

from __future__ import annotations

from typing import final

from torch import Tensor

from robustvae import gate
from robustvae.models.hierarchy import HierarchicalVAE
from robustvae.registry import register


@register("model", "dlgm")
@gate.know_model
@final
class DLGM(HierarchicalVAE):
    """A deep latent Gaussian model: p(x | z^1) p(z^1 | z^2) ... p(z^L), any number of layers.

    Under `TotalCorrelation` it is a beta-TCDLGM. The arguments are those of `HierarchicalVAE`.

    References:
        Rezende et al., 2014; [Willetts21] Eq. 5-6.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("dlgm", widths=[4, 3, 2], image_shape=(1, 8, 8), hidden=[16])
        >>> vae.encode(torch.rand(5, 1, 8, 8)).mean.shape
        torch.Size([5, 9])
    """

    def _seen(self, z: Tensor) -> Tensor:
        return z[..., : self.widths[0]]
