"""The error of a broken contract, and the ways in which all of them are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from robustvae import registry
from robustvae.errors import RobustVAEError
from robustvae.models import VAE
from robustvae.seeding import generator, randn


class ContractError(RobustVAEError, AssertionError):
    """A member of a family breaks a promise that the rest of the library relies on."""


def members_of(package: str, family: str) -> set[str]:
    """Names of the members of a family that a package brings; "robustvae" is the library itself.

    A package's tests compare it with the cases that they have, so that no member goes untested.

    Examples:
        >>> from robustvae.testing import members_of
        >>> "latent-shift" in members_of("robustvae", "goal")
        True
    """
    return {entry.name for entry in registry.describe(family) if entry.origin == package}


def member_of(family: str, member: Any) -> Any:
    """The member that a spec describes; an object is returned as it is, whatever it is.

    Examples:
        >>> from robustvae.testing.contracts import member_of
        >>> member_of("search", "lbfgs:steps=9").steps, member_of("search", 3)
        (9, 3)
    """
    return registry.build(family, member) if isinstance(member, str | Mapping) else member


def require(holds: bool, sentence: str) -> None:
    """Raise `ContractError` with the sentence unless `holds`."""
    if not holds:
        raise ContractError(sentence)


def close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two tensors agree to `tolerance`, relative to the larger of 1 and the second."""
    if one.shape != other.shape:
        return False
    return bool(((one - other).abs() <= tolerance * other.abs().clamp_min(1)).all())


@contextmanager
def unchanged(vae: VAE, what: str) -> Iterator[None]:
    """Raise where the block changes the model's weights, buffers, mode or gradients."""
    state = {key: value.clone() for key, value in vae.state_dict().items()}
    modes = [part.training for part in vae.modules()]
    trainable = [parameter.requires_grad for parameter in vae.parameters()]
    world = torch.random.get_rng_state()
    yield
    after = vae.state_dict()
    same = all(torch.equal(value, after[key]) for key, value in state.items())
    require(same, f"{what} changes the model's weights or buffers")
    require(
        modes == [part.training for part in vae.modules()]
        and trainable == [parameter.requires_grad for parameter in vae.parameters()],
        f"{what} leaves the model in another mode, or its weights frozen",
    )
    require(
        all(parameter.grad is None for parameter in vae.parameters()),
        f"{what} leaves gradients on the model's weights",
    )
    require(
        torch.equal(world, torch.random.get_rng_state()),
        f"{what} spends torch's global generator: draw through the generator it is given",
    )


def check_gradient(output: Tensor, leaf: Tensor, what: str) -> None:
    """Raise unless an output hands each row of `leaf` an honest gradient: finite, and not 0."""
    require(output.requires_grad, f"{what} hands the attacker no gradient: say that it has none")
    weight = randn(*output.shape, like=output, generator=generator(6))
    (gradient,) = torch.autograd.grad((output * weight).sum(), leaf)
    require(
        bool(gradient.isfinite().all()) and bool((gradient.flatten(1).norm(dim=1) > 0).all()),
        f"{what} hands the attacker a gradient of 0, or one that is not finite",
    )
