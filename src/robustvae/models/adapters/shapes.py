"""What shape of input a stranger's module reads: said, given by example, or read off it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from robustvae.data.space import InputSpace
from robustvae.models.adapters.parts import reached
from robustvae.models.adapters.said import Said, tensor_of
from robustvae.models.adapters.trial import attribute, quiet

ATTRIBUTES = (
    *("image_shape", "input_shape", "img_shape", "in_shape", "input_dim", "input_size"),
    *("img_size", "image_size", "sample_size", "resolution"),
)
SIDES = (28, 32, 64, 8, 16, 128)  # of common data sets, tried on the first convolution


def dtype_of(model: Any) -> tuple[torch.dtype, torch.device]:
    """Floating type and device of what a model reads."""
    for module in reached(model).modules:
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return parameter.dtype, parameter.device
    return torch.get_default_dtype(), torch.device("cpu")


def shapes_of(model: Any, said: Said) -> Iterator[InputSpace]:
    """Spaces that the model may read, the most likely first; flattened inputs after each."""
    pixels = said.pixels
    if isinstance(pixels, Sequence) and tuple(pixels) == (0.0, 1.0) and _is_latent_diffusion(model):
        pixels = (-1.0, 1.0)  # what every published model of this kind reads
    if isinstance(pixels, InputSpace):
        yield pixels
        return
    if said.image_shape is not None:
        yield from _both(pixels, tuple(said.image_shape))
        return
    if said.fit_on is not None:
        yield from _both(pixels, tuple(tensor_of(said.fit_on).shape[1:]))
        return
    for shape in _guesses(model):
        yield from _both(pixels, shape)


def _both(pixels: Any, shape: tuple[int, ...]) -> Iterator[InputSpace]:
    """Inputs of a shape, and the same flattened, for models that read pictures as rows."""
    yield InputSpace.of(pixels, shape)
    if len(shape) > 1:
        plain = InputSpace.of(pixels, shape)
        if not isinstance(plain.low, tuple) and not isinstance(plain.high, tuple):
            yield InputSpace(
                (math.prod(shape),), plain.low, plain.high, plain.unit, image=plain.image_shape
            )


def _is_latent_diffusion(model: Any) -> bool:
    config = attribute(model, "config")
    return (
        config is not None
        and hasattr(model, "encode")
        and _entry(config, "scaling_factor") is not None
    )


def _entry(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else attribute(config, name)


def _guesses(model: Any) -> Iterator[tuple[int, ...]]:
    """Shapes that attributes, configurations and the first layer speak of."""
    modules = reached(model).modules
    holders = [
        model,
        *(attribute(model, name) for name in ("config", "model_config", "hparams")),
    ]
    first = _first_layer(modules)
    channels = getattr(first, "in_channels", None)
    statement = False
    for holder in holders:
        for name in ATTRIBUTES:
            value = None if holder is None else _entry(holder, name)
            if isinstance(value, int) and not isinstance(value, bool) and channels:
                statement = True
                yield (channels, value, value)
            if isinstance(value, tuple | list) and value and all(type(n) is int for n in value):
                statement = True
                yield (channels, *value) if channels and len(value) == 2 else tuple(value)
    if statement:
        return
    if isinstance(first, nn.Linear):
        n = first.in_features
        for depth in (1, 3):
            side = math.isqrt(n // depth)
            if n % depth == 0 and side * side * depth == n:
                yield (depth, side, side)
        yield (n,)
    if isinstance(first, nn.Conv2d):
        linear = any(isinstance(part, nn.Linear) for module in modules for part in module.modules())
        if linear:  # whose width allows one side only, unless it stands within attention
            shapes = [(first.in_channels, side, side) for side in SIDES]
            running = [shape for shape in shapes if _runs(model, shape)]
            yield from running if len(running) == 1 else ()


def _runs(model: Any, shape: tuple[int, ...]) -> bool:
    """Whether a model accepts inputs of a shape."""
    dtype, device = dtype_of(model)
    with quiet(*reached(model).modules):
        for call in (attribute(model, "encode"), model):
            if call is None:
                continue
            try:
                call(torch.full((2, *shape), 0.5, dtype=dtype, device=device))
                return True
            except (Exception, SystemExit):  # a wrong shape may fail in any way
                continue
    return False


def _first_layer(modules: list[nn.Module]) -> nn.Module | None:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return next((p for module in modules for p in module.modules() if isinstance(p, kinds)), None)
