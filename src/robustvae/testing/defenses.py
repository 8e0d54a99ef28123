"""What every defense promises."""

from __future__ import annotations

import torch
from torch import Tensor

from robustvae.defenses import Cost, Defense, Victim
from robustvae.models import VAE
from robustvae.seeding import generator
from robustvae.testing.contracts import check_gradient, close, member_of, require, unchanged
from robustvae.testing.planted import gray_images, tiny_vae


def check_defense(
    defense: Defense | str,
    vae: VAE | None = None,
    x: Tensor | None = None,
    *,
    differentiable: bool = True,
) -> None:
    """Check a defense's contract: finite latents, row by row, that the generator decides.

    Args:
        defense: The defense, or its spec.
        vae: A model in float64; `tiny_vae()` by default.
        x: Inputs of that model, (B, C, H, W), B at least 2.
        differentiable: Whether it passes an honest gradient on; one that does not must say so.

    Raises:
        ContractError: A broken promise, in a sentence.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.testing import check_defense
        >>> check_defense(rv.PosteriorMode(steps=5))
    """
    vae = tiny_vae() if vae is None else vae
    x = gray_images(3, vae.image_shape[-1]) if x is None else x
    member: Defense = member_of("defense", defense)
    what = f"the defense {type(member).__name__}"
    require(isinstance(member, Defense), f"{what} is not called as (vae, x, *, generator)")
    price = getattr(member, "cost", None)  # a mistyped one would pass for unknown
    require(price is None or isinstance(price, Cost), f"{what} has the cost {price!r}, not a Cost")
    # a victim calls it with frozen weights, as every attack and audit does
    read = Victim(vae, member).latent
    with unchanged(vae, what):
        z = read(x, generator=generator(1))
    require(
        z.shape == (len(x), vae.latent) and z.dtype == x.dtype and bool(z.isfinite().all()),
        f"{what} returns {tuple(z.shape)} {z.dtype}, not finite latents ({len(x)}, {vae.latent})",
    )
    require(not z.requires_grad, f"{what} keeps a graph where the input asks for none")
    require(
        torch.equal(z, read(x, generator=generator(1))),
        f"{what} gives other latents for the same generator",
    )
    is_moved = not torch.equal(z, read(x, generator=generator(2)))
    random = getattr(member, "is_random", None)
    require(
        random is None or random or not is_moved,
        f"{what} says that it is not random and depends on its generator",
    )
    if not is_moved:
        alone = torch.cat([read(row, generator=generator(1)) for row in x.split(1)])
        require(close(alone, z, 1e-6), f"{what} lets a row's latent depend on the other rows")
    if differentiable:
        leaf = x.clone().requires_grad_()
        check_gradient(read(leaf, generator=generator(1)), leaf, what)
