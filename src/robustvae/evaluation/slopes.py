"""How steep encoder and decoder are, and how large their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustvae.arguments import checked
from robustvae.errors import check_type
from robustvae.evaluation.likelihood import check_input, judged
from robustvae.jacobians import jacobian
from robustvae.models import VAE
from robustvae.models.base import frozen
from robustvae.seeding import generator

_CHUNK = 50


@checked(formula=True)
def encoder_slopes(vae: VAE, x: Tensor) -> Tensor:
    """Frobenius norm of the Jacobian of the encoder's mean at each image.

    Args:
        vae: Any model.
        x: Images in [0, 1], (B, C, H, W).

    Returns:
        Latent units by pixel unit, (B,).

    References:
        [Camuto21] Fig. 9d.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.evaluation import encoder_slopes
        >>> x = rv.data.load("digits", split="test").x[:3]
        >>> encoder_slopes(rv.load("digits-vae"), x).shape
        torch.Size([3])
    """
    check_input(vae, x, generator(0))
    with judged(vae):
        return _frobenius(jacobian(lambda image: vae.encode(image).mean, x, chunk=_CHUNK))


@checked(formula=True)
def decoder_slopes(vae: VAE, x: Tensor) -> Tensor:
    """Frobenius norm of the Jacobian of the decoder's mean at the code of each image.

    Args:
        vae: Any model.
        x: Images in [0, 1], (B, C, H, W).

    Returns:
        Pixel units by latent unit, (B,).

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.evaluation import decoder_slopes
        >>> x = rv.data.load("digits", split="test").x[:3]
        >>> decoder_slopes(rv.load("digits-vae"), x).shape
        torch.Size([3])
    """
    check_input(vae, x, generator(0))
    with judged(vae):
        z = vae.encode(x).mean.detach()
        return _frobenius(jacobian(lambda code: vae.decode(code).mean, z, chunk=_CHUNK))


@checked(formula=True)
def weight_norms(vae: VAE) -> tuple[float, float]:
    """l2 norms of all weights that the encoder depends on, and of those the decoder depends on.

    Biases count. Weights that both depend on, such as those of an `nvae`'s top-down path, count in
    both; the networks of a hierarchy's prior in neither.

    Args:
        vae: Any model.

    References:
        [Willetts21] Table 1.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.evaluation import weight_norms
        >>> encoder, decoder = weight_norms(rv.load("digits-vae"))
        >>> encoder > 0 and decoder > 0
        True
    """
    check_type(vae, "vae", VAE)
    parameters = list(vae.parameters())
    x = torch.full((1, *vae.image_shape), 0.5, dtype=vae.dtype, device=vae.device)
    with torch.enable_grad(), frozen(vae):  # which lets go again of what is asked for here
        for parameter in parameters:
            parameter.requires_grad_(True)
        q = vae.encode(x)
        p = vae.decode(q.mean.detach())
        return _norm(q.mean.sum() + q.stddev.sum(), parameters), _norm(p.mean.sum(), parameters)


def _norm(output: Tensor, parameters: list[nn.Parameter]) -> float:
    if not output.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(output, parameters, allow_unused=True)
    layers = [
        p.detach().double() for p, g in zip(parameters, gradients, strict=True) if g is not None
    ]
    return float(sum(float(p.square().sum()) for p in layers) ** 0.5)


def _frobenius(jacobians: Tensor) -> Tensor:
    return jacobians.flatten(1).norm(dim=1)
