"""What every objective promises."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustvae.models import VAE
from robustvae.objectives import Objective
from robustvae.seeding import generator
from robustvae.testing.contracts import close, member_of, require
from robustvae.testing.planted import gray_images, tiny_vae

Slow = Callable[[VAE, Tensor, torch.Generator], Tensor]


def check_objective(
    objective: Objective | str, vae: VAE | None = None, *, slow: Slow | None = None
) -> None:
    """Check an objective's contract: a finite loss a row, its own terms, and its definition.

    Args:
        objective: The objective, or its spec.
        vae: A model in float64; `tiny_vae()` by default.
        slow: The definition, written plainly: `(vae, x, generator) -> losses (B,)`, which spends
            the generator as the objective does. None leaves this part out.

    Raises:
        ContractError: A broken promise, in a sentence.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.testing import check_objective
        >>> check_objective(rv.objectives.ELBO(beta=2.0))
    """
    vae = tiny_vae() if vae is None else vae
    x = gray_images(6, vae.image_shape[-1])
    member: Objective = member_of("objective", objective)
    what = f"the objective {type(member).__name__}"
    require(isinstance(member, Objective), f"{what} lacks __call__, terms or at")
    loss = member(vae, x, generator=generator(0))
    require(
        loss.shape == (len(x),) and bool(loss.isfinite().all()),
        f"{what} returns {tuple(loss.shape)}, not one finite loss an input",
    )
    terms = member.terms(vae, x, generator=generator(0))
    require("loss" in terms, f"{what} has no term 'loss'")
    require(close(terms["loss"], loss, 1e-9), f"{what} has a term 'loss' that is not its loss")
    parameters = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss.mean(), parameters, allow_unused=True)
    require(
        any(g is not None and bool((g != 0).any()) for g in gradients),
        f"{what} gives no gradient to any weight",
    )
    at = member.at(0)
    require(isinstance(at, Objective), f"{what}.at(step) returns no objective")
    if slow is not None:
        expected = slow(vae, x, generator(0))
        require(close(loss, expected, 1e-6), f"{what} disagrees with its slow definition")
