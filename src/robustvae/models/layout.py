"""Convolutions in the memory layout in which CPUs run them fastest."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as _module

_PACKAGE = __name__.partition(".")[0]
_BATCH = 8  # images from which the ways below pay for their more and smaller calls
_NARROW = 4  # channels up to which one matrix product beats the library's convolution
_FEW = 4  # pixels up to which one matrix product for each does


_LOCK = threading.Lock()
_IN_USE: dict[int, tuple[contextlib.ExitStack, int]] = {}  # by model: how to undo, and its users


@contextlib.contextmanager
def channels_last(module: nn.Module) -> Iterator[None]:
    """Within: convolutions of our own models on a CPU run their faster way; equal to rounding.

    Weights lie with their channels last. Layers that read or write few channels, which libraries
    for wide layers are slow at, become one matrix product that keeps to that layout; layers that
    write few pixels become one for each pixel, without the taps that meet only padding. A ReLU
    that follows a convolution in a sequence works in place.
    The very tensors and methods that were there are put back when the last thread is done.
    A module that is not one of this library's classes, or holds a part that is neither ours nor
    torch's, runs as it is: its code may count on a memory layout.

    Args:
        module: A model; other layers than convolutions are left alone.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.models.layout import channels_last
        >>> vae = rv.models.create("vae", architecture="conv8", latent=2)
        >>> x = torch.rand(2, 1, 8, 8)
        >>> with torch.no_grad(), channels_last(vae):
        ...     fast = vae.encode(x).mean
        >>> torch.allclose(fast, vae.encode(x).mean, atol=1e-6)
        True
    """
    with laid_out(module) if is_ours(module) else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def laid_out(module: nn.Module) -> Iterator[None]:
    """Within: what `channels_last` does, without asking whose module it is."""
    with _LOCK:
        undo, users = _IN_USE.get(id(module), (None, 0))
        _IN_USE[id(module)] = (undo or _lay_out(module), users + 1)
    try:
        yield
    finally:
        with _LOCK:
            undo, users = _IN_USE.pop(id(module))
            if users > 1:
                _IN_USE[id(module)] = (undo, users - 1)
            else:
                undo.close()


def is_ours(module: nn.Module) -> bool:
    """Whether a model is of one of this library's classes, down to its last part.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.models.layout import is_ours
        >>> vae = rv.models.create("vae", architecture="conv8", latent=2)
        >>> is_ours(vae), is_ours(torch.nn.Conv2d(1, 2, 3))
        (True, False)
    """

    def package(part: nn.Module) -> str:
        return type(part).__module__.partition(".")[0]

    return package(module) == _PACKAGE and all(
        package(part) in (_PACKAGE, "torch") and not getattr(part, "is_foreign", False)
        for part in module.modules()
    )


def _lay_out(module: nn.Module) -> contextlib.ExitStack:
    """Lay the model out, and say how to undo it."""
    layers = [
        part
        for part in module.modules()
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d) and part.weight.device.type == "cpu"
    ]
    if layers:
        _keep_freed_memory()
    fast: dict[nn.Module, _Fast] = {layer: _Fast(layer) for layer in layers if _is_plain(layer)}
    chains = [
        part
        for part in module.modules()
        if type(part) is nn.Sequential
        and "forward" not in vars(part)
        and any(layer in fast for layer in part)
    ]
    undo = contextlib.ExitStack()
    for layer in layers:
        undo.callback(setattr, layer.weight, "data", layer.weight.data)
        layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    ways: list[tuple[nn.Module, Any]] = [(part, _Run(passes)) for part, passes in fast.items()]
    ways += [(chain, _Chain(chain, fast)) for chain in chains]
    for part, way in ways:
        part.forward = way
        undo.callback(delattr, part, "forward")
    return undo


def lay_weights(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay the weights of all convolutions on a CPU out so; their values do not change.

    Args:
        module: Anything with convolutions in it.
        memory_format: `torch.channels_last`, in which they train faster, or
            `torch.contiguous_format`, in which they are made.

    Examples:
        >>> import torch
        >>> from robustvae.models.layout import lay_weights
        >>> layer = torch.nn.Conv2d(2, 8, 3)
        >>> lay_weights(layer, torch.channels_last)
        >>> layer.weight.stride()
        (18, 1, 6, 2)
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d) and part.weight.device.type == "cpu":
            part.weight.data = part.weight.data.contiguous(memory_format=memory_format)


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


class _Chain:
    """A sequence's forward pass in which its convolutions and their ReLUs run together."""

    def __init__(self, chain: nn.Sequential, fast: dict[nn.Module, _Fast]) -> None:
        self.parts: list[nn.Module | _Run] = []
        self.layers = list(chain)
        for layer, before in zip(self.layers, [None, *self.layers[:-1]], strict=True):
            last = self.parts[-1] if self.parts else None
            if layer in fast:
                if not isinstance(last, _Run):
                    self.parts.append(last := _Run())
                last.append(fast[layer])
            elif type(layer) is nn.ReLU and isinstance(last, _Run) and before in fast:
                last.rectify()
            else:
                self.parts.append(layer)

    def __call__(self, x: Tensor) -> Tensor:
        # hooks may be set at any time, by a goal or by the user, and each must see its layer
        is_watched = not all(map(_unwatched, self.layers))
        for part in self.layers if is_watched else self.parts:
            x = part(x)
        return x


def _unwatched(layer: nn.Module) -> bool:
    return not (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    )


class _Run:
    """Convolutions one after the other, each perhaps with a ReLU on its output."""

    def __init__(self, *layers: _Fast) -> None:
        self.layers = list(layers)
        self.rectified = [False] * len(layers)

    def append(self, layer: _Fast) -> None:
        self.layers.append(layer)
        self.rectified.append(False)

    def rectify(self) -> None:
        self.rectified[-1] = True

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim == 4 and len(x) >= _BATCH and not any(fast.learns for fast in self.layers):
            return cast(Tensor, _Constant.apply(x, self))
        for fast, rectified in zip(self.layers, self.rectified, strict=True):
            x = fast.plain(x)
            x = functional.relu(x) if rectified else x
        return x


class _Constant(torch.autograd.Function):
    """A run with constant weights; differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: _Run) -> Tensor:
        ctx.run, ctx.sizes, selection = run, [], []
        for fast, rectified in zip(run.layers, run.rectified, strict=True):
            ctx.sizes.append(tuple(x.shape[2:]))
            x = fast.forward(x)
            if rectified:
                selection.append(x.relu_())
        ctx.save_for_backward(*selection)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        y, selection, ours = gradients[0], list(ctx.saved_tensors), False
        layers = zip(ctx.run.layers, ctx.run.rectified, ctx.sizes, strict=True)
        for fast, rectified, size in reversed(list(layers)):
            if rectified:
                y = _passed(y, selection.pop(), ours)
            y, ours = fast.transpose(y, size), True
        return y, None


def _passed(y: Tensor, kept: Tensor, ours: bool) -> Tensor:
    """The gradient before a ReLU of its output's; in the same memory where that is `ours`."""
    if torch.is_grad_enabled():
        return torch.where(kept > 0, y, 0.0)
    return torch.ops.aten.threshold_backward.grad_input(
        y, kept, 0, grad_input=y if ours else torch.empty_like(y)
    )


class _Fast:
    """A layer's pass and its transpose by whatever way is fastest for its shapes."""

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
        self.layer = layer
        self.taps: dict[tuple[int, ...], Tensor] = {}

    @property
    def learns(self) -> bool:
        """Whether the layer's own gradient may be wanted."""
        return any(value.requires_grad for value in self.layer.parameters())

    @functools.cached_property
    def weight(self) -> Tensor:
        """One column for each tap of a narrow side."""
        return self.layer.weight.detach().flatten(1)

    @functools.cached_property
    def with_bias(self) -> Tensor:
        """The transpose, and a row for the bias where there is one."""
        if self.layer.bias is None:
            return self.weight.mT
        return torch.cat([self.weight.mT, self.layer.bias.detach()[None]])

    def plain(self, x: Tensor) -> Tensor:
        """What the layer's class does."""
        return cast(Tensor, getattr(type(self.layer), "forward")(self.layer, x))  # noqa: B009

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, in memory of its own."""
        layer = self.layer
        if isinstance(layer, nn.ConvTranspose2d):
            if layer.out_channels > _NARROW:
                return self.plain(x)
            image = _spread(x, self, _grown(layer, (x.shape[2], x.shape[3])))
            return image if layer.bias is None else image.add_(layer.bias.detach()[:, None, None])
        size = _size(layer, (x.shape[2], x.shape[3]))
        if self.collects(size):
            return _collected(x, self, size)
        if layer.in_channels <= _NARROW:
            return _gathered(x, self, size, self.with_bias)
        return self.plain(x)

    def transpose(self, y: Tensor, size: tuple[int, int]) -> Tensor:
        """The transposed map without bias, to images of `size`; in memory of its own."""
        layer = self.layer
        if isinstance(layer, nn.ConvTranspose2d):
            if layer.out_channels <= _NARROW:
                return _gathered(y, self, size, self.weight.mT)
        elif self.collects(_size(layer, size)):
            return _returned(y, self, size)
        elif layer.in_channels <= _NARROW:
            return _spread(y, self, size)
        weight, options = layer.weight.detach(), (layer.groups, layer.dilation)
        if isinstance(layer, nn.ConvTranspose2d):
            groups, dilation = options
            return functional.conv2d(y, weight, None, layer.stride, layer.padding, dilation, groups)
        least = _grown(layer, (y.shape[2], y.shape[3]))
        more = (size[0] - least[0], size[1] - least[1])
        return functional.conv_transpose2d(
            y, weight, None, layer.stride, _padding(layer), more, *options
        )

    def collects(self, size: tuple[int, int]) -> bool:
        """Whether an output of `size` is so small that its pixels are computed one by one."""
        return self.layer.dilation == (1, 1) and 0 < size[0] * size[1] <= _FEW

    def seen(self, size: tuple[int, int]) -> Iterator[tuple[int, int, slice, slice, Tensor]]:
        """Where each output pixel looks.

        Its place; the rows and columns of an image of `size` that it sees; and their taps as a
        matrix, (rows x columns x in, out), the channels last.
        """
        layer = self.layer
        (sh, sw), (ph, pw), (kh, kw) = layer.stride, _padding(layer), layer.kernel_size
        for i in range((size[0] + 2 * ph - kh) // sh + 1):
            for j in range((size[1] + 2 * pw - kw) // sw + 1):
                top, left = i * sh - ph, j * sw - pw
                rows, columns = _within(top, kh, size[0]), _within(left, kw, size[1])
                taps = (
                    rows.start - top,
                    rows.stop - top,
                    columns.start - left,
                    columns.stop - left,
                )
                if taps not in self.taps:
                    part = layer.weight.detach()[:, :, taps[0] : taps[1], taps[2] : taps[3]]
                    self.taps[taps] = part.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
                yield i, j, rows, columns, self.taps[taps]


def _size(layer: nn.Conv2d, seen: tuple[int, int]) -> tuple[int, int]:
    sides = zip(seen, layer.kernel_size, layer.stride, _padding(layer), layer.dilation, strict=True)
    rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
    return rows, columns


def _grown(layer: nn.Conv2d | nn.ConvTranspose2d, seen: tuple[int, int]) -> tuple[int, int]:
    """The least size that the layer's transpose, or a transposed layer, makes of one."""
    more = layer.output_padding if isinstance(layer, nn.ConvTranspose2d) else (0, 0)
    sides = zip(
        seen, layer.kernel_size, layer.stride, _padding(layer), layer.dilation, more, strict=True
    )
    rows, columns = ((n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in sides)
    return rows, columns


def _within(first: int, length: int, size: int) -> slice:
    start = min(max(first, 0), size)
    return slice(start, max(start, min(first + length, size)))


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
    taps = x.shape[1] * kh * kw
    columns = x.new_empty(len(weight), len(x) * size[0] * size[1])
    columns[:taps].view(windows.shape).copy_(windows)
    columns[taps:] = 1  # for the bias: a row costs less than one more pass over the output
    columns = columns.mT
    if torch.is_grad_enabled():
        return (columns @ weight).unflatten(0, (len(x), *size)).permute(0, 3, 1, 2)
    # no view may leave a function's forward pass, or activations could not work in place
    shape = (len(x), weight.shape[1], *size)
    result = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    torch.mm(columns, weight, out=result.permute(0, 2, 3, 1).flatten(0, 2))
    return result


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


def _collected(x: Tensor, fast: _Fast, size: tuple[int, int]) -> Tensor:
    """A convolution to few pixels: one product for each of them."""
    images, bias = x.permute(0, 2, 3, 1), fast.layer.bias
    result = x.new_empty(len(x), *size, fast.layer.out_channels)
    for i, j, rows, columns, taps in fast.seen((x.shape[2], x.shape[3])):
        window, pixel = images[:, rows, columns].flatten(1), result[:, i, j]
        if bias is None:
            torch.mm(window, taps, out=pixel)
        else:
            torch.addmm(bias.detach(), window, taps, out=pixel)
    return result.permute(0, 3, 1, 2)


def _returned(y: Tensor, fast: _Fast, size: tuple[int, int]) -> Tensor:
    """The transpose of `_collected` without its bias, to images of `size`."""
    pixels = y.permute(0, 2, 3, 1)
    shape = (len(y), *size, fast.layer.in_channels)
    if pixels.shape[1:3] == (1, 1):
        (_, _, rows, columns, taps), *_ = fast.seen(size)
        if (rows.stop - rows.start, columns.stop - columns.start) == size:
            return (pixels[:, 0, 0] @ taps.mT).view(shape).permute(0, 3, 1, 2)
    images = y.new_zeros(shape)
    for i, j, rows, columns, taps in fast.seen(size):
        sides = (rows.stop - rows.start, columns.stop - columns.start, shape[3])
        images[:, rows, columns] += (pixels[:, i, j] @ taps.mT).unflatten(1, sides)
    return images.permute(0, 3, 1, 2)
