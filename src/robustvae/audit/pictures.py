"""Inputs and outputs to look at: pictures as PNG in base64, signals and tables as numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustvae.audit.context import Context

MOST_VALUES = 256  # of a channel: as many as a drawing has pixels
_PLACES = ("worst", "median", "best")
_LEAST_SCALE = 1e-12  # of a difference: an attack that changed nothing is drawn as nothing


def chosen(rows: Sequence[dict[str, Any]], count: int) -> list[tuple[str, dict[str, Any]]]:
    """The worst, the median and the best inputs by damage, as (place, row).

    Args:
        rows: One row for each input.
        count: How many at most; a third of each place; what is left over is worst, then best.

    Examples:
        >>> from robustvae.audit.pictures import chosen
        >>> rows = [{"input": i, "damage": float(i)} for i in range(9)]
        >>> [(place, row["input"]) for place, row in chosen(rows, 4)]
        [('worst', 8), ('worst', 7), ('median', 4), ('best', 0)]
    """
    order = sorted(rows, key=lambda row: (-float(row["damage"]), row["input"]))
    count = min(count, len(order))
    each, extra = divmod(count, 3)
    worst = each + (extra > 0)
    best = each + (extra > 1)
    median = count - worst - best
    # the middle of all, moved where it would meet the worst or the best
    begin = min(max((len(order) - median) // 2, worst), len(order) - best - median)
    parts = (order[:worst], order[begin : begin + median], order[len(order) - best :])
    return [(place, row) for place, part in zip(_PLACES, parts, strict=True) for row in part]


def gallery(
    contexts: Sequence[Context], rows: Sequence[tuple[str, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Items of a record's gallery, all on one scale.

    Args:
        contexts: Each of one input under one attack.
        rows: Place and row of each, as `chosen` gives them.
    """
    displays = [_display(context) for context in contexts]
    differences = [(context.x_adv - context.x)[0] for context in contexts]
    scale = max(float(difference.abs().max()) for difference in differences)
    tensors = [tensor for display in displays for tensor in display.values()]
    low = min(float(tensor.min()) for tensor in tensors)
    high = max(float(tensor.max()) for tensor in tensors)
    items = []
    parts = zip(contexts, rows, displays, differences, strict=True)
    for context, (place, row), display, difference in parts:
        if context.x.shape[-2] > 1:  # a signal or a table's row is an image of height 1
            panels = {name: picture(tensor) for name, tensor in display.items()}
            panels["difference"] = signed_picture(difference, scale)
        else:
            panels = {name: _values(tensor, low, high) for name, tensor in display.items()}
            panels["difference"] = _values(difference, -scale, scale)
        size = float(context.ball.size(context.x, context.x_adv)[0])
        items.append(
            {
                "input": row["input"],
                "label": row.get("label"),
                "attack": row["attack"],
                "place": place,
                "panels": panels,
                "caption": f"size {size:.3g} ({context.ball.norm}); the output moved by "
                f"{float(row['damage']):.3g}; all differences on one scale of ±{scale:.2g}",
            }
        )
    return items


def _display(context: Context) -> dict[str, Tensor]:
    """What is shown of a context of one input, by name."""
    display = {
        "input": context.x,
        "attacked": context.x_adv,
        "reconstruction": context.output,
        "attacked reconstruction": context.attacked_output,
    }
    if context.defended:
        display["undefended reconstruction"] = context.plain_output
    return {name: tensor[0] for name, tensor in display.items()}


def _values(signal: Tensor, low: float, high: float) -> dict[str, Any]:
    """A signal (C, 1, N) or a row of a table (1, 1, N), thinned to what can be drawn."""
    channels = signal.detach().squeeze(-2).cpu().double()
    stride = -(-channels.shape[1] // MOST_VALUES)
    return {
        "shape": list(channels.shape),
        "values": [[round(float(v), 6) for v in channel[::stride]] for channel in channels[:4]],
        "low": low,
        "high": high,
    }


def picture(image: Tensor) -> dict[str, Any]:
    """An image (C, H, W) in [0, 1] as its shape and its PNG in base64."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return _encoded(pixels)


def signed_picture(difference: Tensor, scale: float) -> dict[str, Any]:
    """A difference as a picture: gray for color images, two colors for one channel.

    One channel: blue where pixels were lowered, orange where raised, white where untouched. Three
    channels: gray where untouched, each channel brighter or darker as it was raised or lowered.
    """
    share = (difference / max(scale, _LEAST_SCALE)).clamp(-1, 1).cpu().double().numpy()
    if share.shape[0] == 3:
        return _encoded((127.5 * (1 + share)).round().astype(np.uint8))
    signed = share.mean(0)[..., None]
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
