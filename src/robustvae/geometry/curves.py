"""What happens along the eigendirections of a pullback metric as the step grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack, final

import torch
from torch import Tensor

from robustvae._options import with_defaults
from robustvae.arguments import checked
from robustvae.display import three_lines
from robustvae.errors import (
    RangeError,
    ShapeError,
    check_choice,
    check_count,
    check_images,
)
from robustvae.geometry.metric import Geometry
from robustvae.models import VAE
from robustvae.models.base import frozen

_STEPS = tuple(10.0 ** (-2 + 3 * i / 39) for i in range(40))


@final
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
class StepCurves:
    """What happens along eigendirections as the step grows; the worse of the two signs.

    Attributes:
        steps: Step sizes s, (K,).
        size: 2-norm of the perturbation in pixel units, after clipping, (B, count, K).
        error: Mean squared error per pixel between the image and the reconstruction of the
            perturbed one, (B, count, K).
        displacement: ||mu(x + delta) - mu(x)||, (B, count, K).
        box: Whether the perturbed images were clipped to [0, 1].
    """

    steps: Tensor
    size: Tensor
    error: Tensor
    displacement: Tensor
    box: bool


@final
class StepOptions(TypedDict, total=False):
    """Options of `step_curves`, which describes them."""

    box: bool
    scale: Literal["unit", "eigenvalue"]
    chunk: int


_STEP: StepOptions = {"box": False, "scale": "unit", "chunk": 250}


@checked(formula=True)
def step_curves(
    vae: VAE,
    x: Tensor,
    geometry: Geometry,
    *,
    steps: Sequence[float] = _STEPS,
    count: int = 5,
    **options: Unpack[StepOptions],
) -> StepCurves:
    """Reconstruction error and latent displacement along the top eigendirections.

    delta = +-s v_i; error and displacement are each the greater of the two signs.

    Args:
        vae: Read through its means.
        x: Images in [0, 1], (B, C, H, W).
        geometry: Of the same images.
        steps: Step sizes s; by default the paper's 40, log-spaced in [0.01, 10].
        count: How many directions.
        options: Any of box, whether the perturbed images are clipped to [0, 1], False by default;
            scale, "unit" (the default), or "eigenvalue" for +-s l_i v_i as [Khan23] prints it; and
            chunk, images at a time, 250 by default.

    Raises:
        RangeError: More directions than `geometry` holds, or a step that is not positive.
        ShapeError: A geometry of other images.

    References:
        [Khan23] section 4.1, Figs. 3, 5 and 6.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.geometry import pullback, step_curves
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x = torch.rand(3, 1, 4, 4)
        >>> step_curves(vae, x, pullback(vae, x), count=2).error.shape
        torch.Size([3, 2, 40])
    """
    settings = with_defaults(step_curves, options, _STEP)
    box, scale, chunk = settings["box"], settings["scale"], settings["chunk"]
    check_choice("scale", scale, ("eigenvalue", "unit"))
    check_count(count, "count")
    check_images(x, vae.image_shape)
    if geometry.directions.shape[0] != len(x) or geometry.directions.shape[2:] != x.shape[1:]:
        raise ShapeError(
            f"geometry must be of x, {tuple(x.shape)}, got directions "
            f"{tuple(geometry.directions.shape)}"
        )
    if count > geometry.directions.shape[1]:
        raise RangeError(
            f"count must be at most {geometry.directions.shape[1]}, the directions held, "
            f"got {count}"
        )
    if not len(steps) or not all(math.isfinite(step) and step > 0 for step in steps):
        raise RangeError(f"steps must be positive numbers, got {list(steps)}")
    moves = geometry.directions[:, :count].to(x)
    if scale == "eigenvalue":
        moves = moves * geometry.eigenvalues[:, :count, None, None, None].to(x)
    signed = torch.tensor([*steps, *(-step for step in steps)], dtype=x.dtype, device=x.device)
    shape = (len(x), count, len(signed))
    sizes, errors, shifts = [], [], []
    with frozen(vae), torch.no_grad():
        mean = vae.encode(x).mean
        for rows in torch.arange(math.prod(shape), device=x.device).split(chunk):
            image, offset = rows // (count * len(signed)), rows % (count * len(signed))
            delta = (
                moves[image, offset // len(signed)] * signed[offset % len(signed), None, None, None]
            )
            y = x[image] + delta
            y = y.clamp(0, 1) if box else y
            z = vae.encode(y).mean
            sizes.append((y - x[image]).flatten(1).norm(dim=1))
            errors.append((vae.decode(z).mean - x[image]).flatten(1).square().mean(1))
            shifts.append((z - mean[image]).norm(dim=1))
    size, error, shift = (
        torch.cat(part).reshape(*shape[:2], 2, len(steps)).amax(2)
        for part in (sizes, errors, shifts)
    )
    return StepCurves(signed[: len(steps)], size, error, shift, box)
