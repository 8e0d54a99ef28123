"""Inputs of any kind where a function wants a tensor of images, or a set of them."""

from __future__ import annotations

import functools
import inspect
import math
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from robustvae.data.coercion import BYTES, DEPTHS, as_images
from robustvae.data.dataset import Dataset
from robustvae.data.images import Images
from robustvae.errors import DataError

F = TypeVar("F", bound=Callable[..., Any])


def reads_inputs(*names: str, of: str | None = None, whole: bool = False) -> Callable[[F], F]:
    """A decorator: arguments of these names may be whatever `as_images` reads.

    Tensors of floating type pass as they are. Everything else becomes a tensor of images in [0, 1]
    of the model's type, on its device and through its space, or `Images` where `whole` says so.

    Args:
        names: Of the arguments.
        of: Which argument is the model or the victim; None for the first.
        whole: Give `Images`, which are read as they are asked for, instead of a tensor.

    Examples:
        >>> import numpy as np, robustvae as rv
        >>> vae = rv.load("digits-vae")
        >>> rv.pullback(vae, np.zeros((2, 8, 8), dtype=np.uint8)).spectral_radius.shape
        torch.Size([2])
    """

    def decorate(function: F) -> F:
        parameters = tuple(inspect.signature(function).parameters)
        holder = parameters[0] if of is None else of

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            values = {**dict(zip(parameters, args, strict=False)), **kwargs}
            changes = {
                name: _images(values[name], values.get(holder), whole)
                for name in names
                if name in values and _is_other(values[name], whole)
            }
            if not changes:
                return function(*args, **kwargs)
            args = (
                tuple(
                    changes.pop(name, value) for name, value in zip(parameters, args, strict=False)
                )
                + args[len(parameters) :]
            )
            return function(*args, **{**kwargs, **changes})

        return typing.cast("F", call)

    return decorate


def _is_other(value: Any, whole: bool) -> bool:
    """Whether a value holds inputs in another way than the function wants them."""
    if isinstance(value, Images):
        return not whole
    if isinstance(value, Tensor):
        return whole or value.dtype in DEPTHS
    if value is None or isinstance(value, bytes | dict | type):
        return False
    return isinstance(value, np.ndarray | str | Path | DataLoader | IterableDataset | Dataset)


def _images(value: Any, model: Any, whole: bool) -> Any:
    """The inputs as `Images`, or as a tensor of a model's type."""
    vae = getattr(model, "vae", model)
    images = as_images(value, space=getattr(vae, "space", None))
    if whole:
        return images
    byte_count = 4 * math.prod(images.shape)
    if byte_count > BYTES:
        raise DataError(
            f"{images.name} holds {byte_count / 2**30:.1f} GB of pixels, more than "
            f"{BYTES / 2**30:g} GB at once: give some of them, such as images[:100]"
        )
    dtype = getattr(vae, "dtype", None)
    device = getattr(vae, "device", None)
    return images.x.to(
        dtype=dtype if isinstance(dtype, torch.dtype) else None,
        device=device if isinstance(device, torch.device) else None,
    )
