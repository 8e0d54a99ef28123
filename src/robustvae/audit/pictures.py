"""Inputs and outputs as pictures of a record: PNG in base64."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustvae.audit.context import Context
from robustvae.errors import UnsupportedError


def panels(context: Context, i: int) -> dict[str, Any]:
    """The pictures of one input under the context's attack, with their caption."""
    attacked = context.attacked
    assert attacked is not None, "pictures are of an attack"
    if context.x.ndim != 4:
        raise UnsupportedError("pictures: the inputs are no images")
    display = {
        "input": context.x,
        "attacked": context.x_adv,
        "reconstruction": context.output,
        "attacked reconstruction": context.attacked_output,
    }
    if context.defended:
        display["undefended reconstruction"] = context.plain_output
    pictures = {name: _picture(images[i]) for name, images in display.items()}
    difference = (context.x_adv - context.x)[i]
    scale = float(difference.abs().max())
    pictures["difference"] = _signed_picture(difference, scale)
    size = float(context.ball.size(context.x, context.x_adv)[i])
    distance_moved = float((context.attacked_output - context.output)[i].norm())
    return {
        "attack": attacked.id,
        "panels": pictures,
        "caption": f"size {size:.3g} ({context.ball.norm}); the output moved by "
        f"{distance_moved:.3g}; difference shown on a scale of ±{scale:.2g}",
    }


def _picture(image: Tensor) -> dict[str, Any]:
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return _encoded(pixels)


def _signed_picture(difference: Tensor, scale: float) -> dict[str, Any]:
    """Blue where pixels were lowered, orange where raised, white where untouched."""
    signed = (difference.mean(0) / max(scale, 1e-12)).clamp(-1, 1).cpu().double().numpy()[..., None]
    low_pixels, increase = np.array([33, 102, 172]), np.array([216, 96, 16])
    far = np.where(signed < 0, low_pixels, increase)
    pixels = 255 + np.abs(signed) * (far - 255)
    return _encoded(pixels.round().astype(np.uint8).transpose(2, 0, 1))


def _encoded(pixels: np.ndarray) -> dict[str, Any]:
    from PIL import Image

    if pixels.shape[0] not in (1, 3):
        pixels = pixels[:1]
    array = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, format="PNG", optimize=True)
    return {
        "shape": list(pixels.shape),
        "png": base64.b64encode(buffer.getvalue()).decode("ascii"),
    }
