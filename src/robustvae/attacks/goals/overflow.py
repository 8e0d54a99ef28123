"""Find the nearest input whose output is not finite in the type that is deployed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from robustvae.arguments import checked
from robustvae.defenses import Victim
from robustvae.errors import UnsupportedError, check_choice, check_images
from robustvae.models import VAE
from robustvae.models.base import copied, frozen, widened
from robustvae.perturb import Ball, Score
from robustvae.registry import register

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_ROUNDS = 12  # halvings towards the clean input: the distance to a part in 4,096


@register("goal", "overflow")
@final
@dataclass(frozen=True)
class Overflow:
    """Raise the largest value inside the model until it overflows in the type that is deployed.

    The search climbs log(max |h| / greatest finite value) over all layers' outputs h, by the model
    in float32; from 0 on a layer overflows. What is reported is the deployed model's own word: +1
    where its output is not finite, else the same logarithm, at most 0. A reported score is never
    above 0 without an overflow of the type itself.

    Of finite outputs it says how near the layers come: -2.3 is a tenth of the range.

    Args:
        dtype: "float16" or "bfloat16": the type that is deployed.

    Raises:
        UnknownNameError: Any other type.
        UnsupportedError: A victim without layers, or whose layers do not run in the type (when
            bound).

    References:
        IEEE 754: float16 is finite up to 65,504.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.attacks.goals import Overflow
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(2, 1, 4, 4), rv.generator(0)
        >>> goal = Overflow("float16")
        >>> bool((goal.bind(rv.Victim(vae), x, generator=g)(x, torch.arange(2)) < 0).all())
        True
    """

    dtype: str = "float16"

    def __post_init__(self) -> None:
        """Validate the type."""
        check_choice("dtype", self.dtype, tuple(DTYPES))

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The largest value of the layers against the type's range; see `Goal.bind`."""
        check_parameters(victim.vae)
        wide = widened(victim.vae)
        limit = torch.finfo(DTYPES[self.dtype]).max

        def score(y: Tensor, rows: Tensor) -> Tensor:
            with frozen(wide), peaks(wide) as values:
                wide.decode(wide.encode(y).mean).mean  # noqa: B018
            return largest(values, len(y)).log() - math.log(limit)

        return score

    def report(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """Whether the output overflows in the type itself, in the form of `Goal.bind`."""
        search = self.bind(victim, x, generator=generator)
        deployed = in_type(victim.vae, DTYPES[self.dtype])

        def score(y: Tensor, rows: Tensor) -> Tensor:
            finite = outputs_are_finite(deployed, y)
            with torch.no_grad():
                near = search(y, rows).nan_to_num(0.0, 0.0, -math.inf).clamp_max(0.0)
            return torch.where(finite, near, torch.ones_like(near))

        return score


@torch.no_grad()
@checked()
def nearest_overflow(
    vae: VAE, x: Tensor, x_adv: Tensor, dtype: str = "float16", norm: str = "l2"
) -> tuple[Tensor, Tensor]:
    """The nearest overflowing input on the way from each input to one that overflows.

    By bisection, judged by the deployed type at every step: the returned inputs overflow.

    Args:
        vae: The model.
        x: Clean inputs, (B, C, H, W).
        x_adv: Inputs that an attack with the goal `Overflow` found, (B, C, H, W).
        dtype: "float16" or "bfloat16".
        norm: Of the distance.

    Returns:
        Inputs, (B, C, H, W), and their distances in pixel units, (B,): infinite, and the input
        `x_adv`, where that does not overflow; 0 where `x` does.

    Raises:
        UnknownNameError: Any other type or norm.
        UnsupportedError: Layers that do not run in the type.
    """
    check_choice("dtype", dtype, tuple(DTYPES))
    check_images(x_adv, vae.image_shape, name="x_adv", low=None, high=None)
    ball = Ball(norm, 1.0)
    deployed = in_type(vae, DTYPES[dtype])
    shape = (-1, *(1,) * (x.ndim - 1))
    low, high = x.new_zeros(len(x)), x.new_ones(len(x))
    at_end, at_start = outputs_are_finite(deployed, x_adv), outputs_are_finite(deployed, x)
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        finite = outputs_are_finite(deployed, x + middle.view(shape) * (x_adv - x))
        low, high = torch.where(finite, middle, low), torch.where(finite, high, middle)
    high = torch.where(at_start, high, torch.zeros_like(high))
    nearest = torch.where(high.view(shape) == 1, x_adv, x + high.view(shape) * (x_adv - x))
    size = ball.size(x, nearest)
    return nearest, torch.where(at_end & at_start, torch.full_like(size, math.inf), size)


def in_type(vae: VAE, dtype: torch.dtype) -> VAE:
    """A copy of the model in the deployed type; itself where it is that."""
    if {p.dtype for p in check_parameters(vae) if p.is_floating_point()} <= {dtype}:
        return vae
    return copied(vae).to(dtype)


def check_parameters(vae: VAE) -> list[nn.Parameter]:
    """The model's parameters.

    Raises:
        UnsupportedError: It has none.
    """
    parameters = list(vae.parameters())
    if not parameters:
        raise UnsupportedError(
            "an overflow is one of the model's layers, and no parameters were found: wrap the "
            "module itself"
        )
    return parameters


@torch.no_grad()
def outputs_are_finite(deployed: VAE, y: Tensor) -> Tensor:
    """Whether code and output of each input are finite in a model's own type, (n,).

    Raises:
        UnsupportedError: A layer that does not run in the type.
    """
    y = y.to(deployed.dtype)  # a wrapped model in half precision reads float32 by itself
    with frozen(deployed):
        try:
            code = deployed.encode(y).mean
            image = deployed.decode(code.nan_to_num(0.0, 0.0, 0.0)).mean
        except RuntimeError as error:
            raise UnsupportedError(
                f"a layer does not run in {deployed.dtype} on {y.device}: judge it elsewhere"
            ) from error
    return code.flatten(1).isfinite().all(1) & image.flatten(1).isfinite().all(1)


@contextmanager
def peaks(vae: nn.Module) -> Iterator[list[Tensor]]:
    """Within: outputs of the model's innermost layers are collected."""
    values: list[Tensor] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        values.extend(one for one in _tensors(output) if one.is_floating_point())

    hooks = [
        part.register_forward_hook(note)
        for part in vae.modules()
        if next(part.children(), None) is None
    ]
    try:
        yield values
    finally:
        for hook in hooks:
            hook.remove()


def largest(values: list[Tensor], rows: int) -> Tensor:
    """The greatest absolute value of each row of some tensors, (rows,).

    Raises:
        UnsupportedError: No layer gave a tensor with a row for each input.
    """
    parts = [one.flatten(1).abs().amax(1) for one in values if one.ndim > 1 and len(one) == rows]
    if not parts:
        raise UnsupportedError(
            "no layer gave one row for each input: an overflow needs a module with layers"
        )
    top = torch.stack(parts).amax(0)
    # a NaN is made of infinities: 0 times one, in a later layer
    top = torch.where(top.isnan(), torch.full_like(top, math.inf), top)
    return top.clamp_min(torch.finfo(top.dtype).tiny)


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return [one for one in output if isinstance(one, Tensor)] if isinstance(output, tuple) else []
