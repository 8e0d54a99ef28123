"""Convolutions in the memory layout in which CPUs run them fastest."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

_NARROW = 4  # channels up to which one matrix product beats the library's convolution


@contextlib.contextmanager
def channels_last(module: nn.Module) -> Iterator[None]:
    """Within: convolutions on a CPU run their faster way; values agree to rounding.

    Weights lie with their channels last, and layers that read or write few channels, which
    libraries for wide layers are slow at, become one matrix product that keeps to that layout, as
    do layers whose output is one pixel.
    The very tensors and methods that were there are put back afterwards.

    Args:
        module: Anything with convolutions in it; other layers are left alone.

    Examples:
        >>> import torch
        >>> from robustvae.models.layout import channels_last
        >>> layer, x = torch.nn.Conv2d(1, 8, 3), torch.rand(2, 1, 6, 6)
        >>> with torch.no_grad(), channels_last(layer):
        ...     fast = layer(x)
        >>> torch.allclose(fast, layer(x), atol=1e-6)
        True
    """
    layers = [
        part
        for part in module.modules()
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d) and part.weight.device.type == "cpu"
    ]
    _keep_freed_memory()
    before = [layer.weight.data for layer in layers]
    plain = [layer for layer in layers if _is_plain(layer)]
    for layer in layers:
        layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    for layer in plain:
        layer.forward = _Fast(layer)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer in plain:
            del layer.forward
        for layer, data in zip(layers, before, strict=True):
            layer.weight.data = data


@functools.cache
def _keep_freed_memory() -> None:
    """Once: let the allocator keep what loops free, instead of asking the system for it again.

    glibc raises the sizes at which it gives memory back after the largest block that it has seen
    freed, up to 32 MB; without one, a loop pays a page fault for every 4 KB of every activation.
    """
    torch.empty(30 * 2**20, dtype=torch.uint8)


def _is_plain(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    return (
        type(layer) in (nn.Conv2d, nn.ConvTranspose2d)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and "forward" not in vars(layer)
    )


class _Fast:
    """A layer's forward pass by whatever way is fastest for its shapes; weights as matrices."""

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
        self.layer = layer
        self.weight = layer.weight.detach().flatten(1)
        self.taps: dict[tuple[int, ...], Tensor] = {}
        self.with_bias = self.weight.mT
        if layer.bias is not None and isinstance(layer, nn.Conv2d):
            self.with_bias = torch.cat([self.with_bias, layer.bias.detach()[None]])

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        if x.ndim == 4 and not layer.weight.requires_grad:
            if isinstance(layer, nn.Conv2d):
                if layer.dilation == (1, 1) and _size(layer, x) == (1, 1):
                    return self.dense(x)
                if layer.in_channels <= _NARROW:
                    return cast(Tensor, _Gather.apply(x, self))
            elif layer.out_channels <= _NARROW:
                return cast(Tensor, _Spread.apply(x, self))
        return cast(Tensor, getattr(type(layer), "forward")(layer, x))  # noqa: B009

    def dense(self, x: Tensor) -> Tensor:
        """Of an output of one pixel: a product with the taps that meet the image."""
        (ph, pw), (kh, kw) = _padding(self.layer), self.layer.kernel_size
        seen = x[:, :, : max(0, kh - ph), : max(0, kw - pw)]
        height, width = seen.shape[2:]
        if (height, width) not in self.taps:
            taps = self.layer.weight.detach()[:, :, ph : ph + height, pw : pw + width]
            self.taps[height, width] = taps.flatten(1)
        taps = self.taps[height, width]
        return functional.linear(seen.flatten(1), taps, self.layer.bias)[:, :, None, None]


def _size(layer: nn.Conv2d, x: Tensor) -> tuple[int, int]:
    sides = zip(
        x.shape[2:], layer.kernel_size, layer.stride, _padding(layer), layer.dilation, strict=True
    )
    rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
    return rows, columns


def _padding(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, int]:
    return int(layer.padding[0]), int(layer.padding[1])


def _gathered(x: Tensor, fast: _Fast, size: tuple[int, int], weight: Tensor) -> Tensor:
    """A convolution of narrow images with a weight that may hold a bias, channels last."""
    layer = fast.layer
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    ph, pw = _padding(layer)
    padded = functional.pad(x, (pw, pw, ph, ph)) if ph or pw else x.contiguous()
    batch, channel, row, column = padded.stride()
    windows = padded.as_strided(
        (x.shape[1], kh, kw, len(x), *size),
        (channel, row * dh, column * dw, batch, row * sh, column * sw),
    )
    columns = windows.flatten(0, 2).flatten(1)
    if len(weight) > len(columns):  # a row for the bias costs less than one more pass
        columns = torch.cat([columns, torch.ones_like(columns[:1])])
    columns = columns.mT
    if torch.is_grad_enabled():
        return (columns @ weight).unflatten(0, (len(x), *size)).permute(0, 3, 1, 2)
    # no view may leave a function's forward pass, or activations could not work in place
    shape = (len(x), weight.shape[1], *size)
    made = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    torch.mm(columns, weight, out=made.permute(0, 2, 3, 1).flatten(0, 2))
    return made


def _spread(x: Tensor, fast: _Fast, size: tuple[int, int]) -> Tensor:
    """The transpose of `_gathered`, to narrow images of `size`."""
    layer = fast.layer
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    ph, pw = _padding(layer)
    height, width = x.shape[2:]
    wide = x.permute(0, 2, 3, 1).flatten(0, 2)
    taps = (fast.weight.mT @ wide.mT).unflatten(1, (len(x), height, width))
    taps = taps.unflatten(0, (-1, kh, kw))
    canvas = x.new_zeros(len(x), taps.shape[0], size[0] + 2 * ph, size[1] + 2 * pw)
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dh, i * dh + (height - 1) * sh + 1, sh)
            columns = slice(j * dw, j * dw + (width - 1) * sw + 1, sw)
            canvas[:, :, rows, columns] += taps[:, i, j].transpose(0, 1)
    return canvas[:, :, ph : ph + size[0], pw : pw + size[1]].clone()


class _Gather(torch.autograd.Function):
    """A convolution of narrow images with constant weights; differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fast: _Fast) -> Tensor:
        ctx.fast, ctx.size = fast, tuple(x.shape[2:])
        assert isinstance(fast.layer, nn.Conv2d)
        return _gathered(x, fast, _size(fast.layer, x), fast.with_bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _spread(gradients[0], ctx.fast, ctx.size), None


class _Spread(torch.autograd.Function):
    """A transposed convolution to narrow images with constant weights; likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fast: _Fast) -> Tensor:
        layer = fast.layer
        assert isinstance(layer, nn.ConvTranspose2d)
        ctx.fast, ctx.size = fast, tuple(x.shape[2:])
        sides = zip(
            ctx.size,
            layer.kernel_size,
            layer.stride,
            _padding(layer),
            layer.dilation,
            layer.output_padding,
            strict=True,
        )
        size = [(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in sides]
        made = _spread(x, fast, (size[0], size[1]))
        return made if layer.bias is None else made + layer.bias[:, None, None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _gathered(gradients[0], ctx.fast, ctx.size, ctx.fast.weight.mT), None
