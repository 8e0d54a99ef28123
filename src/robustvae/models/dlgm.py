"""The deep latent Gaussian model: a hierarchy of which the likelihood sees the lowest layer."""

from __future__ import annotations

from typing import final

from torch import Tensor

from robustvae.models.hierarchy import HierarchicalVAE


@final
class DLGM(HierarchicalVAE):
    """A deep latent Gaussian model: p(x | z^1) p(z^1 | z^2) ... p(z^L), any number of layers.

    Under `TotalCorrelation` it is a beta-TCDLGM. The arguments are those of `HierarchicalVAE`.

    Args:
        architecture: As of `vae`: reads images, and makes them.
        widths: Widths of z^1, ..., z^L, from the data upwards.
        image_shape: As of `vae`.
        likelihood: As of `vae`.
        scale: As of `vae`.
        hidden: As of `vae`.
        activation: "relu" or "tanh", of an `mlp` and of the networks between layers.
        batch_norm: As of `vae`.
        between: Hidden widths of the network from each layer to the next, both ways.

    Raises:
        UnknownNameError: An unknown architecture, likelihood or activation.
        RangeError: A width or scale that is not positive.
        ShapeError: No layer, or images that the architecture cannot read.

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
