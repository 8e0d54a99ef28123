"""Upper bounds on the Lipschitz constant of one layer as it is stored: never below the true one.

Everything is computed in float64 on the CPU, and every rounding error is bounded and added.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustvae import gate
from robustvae.arguments import checked
from robustvae.errors import NonFiniteError, ShapeError, UnsupportedError

CONTINUOUS_BERNOULLI_SLOPE = 1 / 12
"""Largest slope of the continuous Bernoulli's exact mean in its logit: its variance at 0."""

UNIT = 2.0**-53

Convolution = nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d
gate.know(nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)


@checked(formula=True)
def spectral_norm_bound(weight: Tensor) -> float:
    """An upper bound on the largest singular value of a matrix, as it is stored.

    sqrt(max_i L_i + ||G V - V L||_F / s_min(V) + rounding), with G = W W^T (or W^T W) and V, L its
    computed eigenvectors and eigenvalues: whatever the eigensolver did wrong is in the residual,
    and what the sums of G and of the residual may have lost is added.

    Args:
        weight: Matrix, (n, k), any floating type.

    Returns:
        A bound at most about 1e-9 above the true norm, relatively; 0 for a zero matrix.

    Raises:
        ShapeError: Not a matrix.
        NonFiniteError: A NaN or an infinity in the matrix.

    References:
        docs/theory.md, "Displacement bounds"; Higham, 2002, Lemma 3.1, for the rounding of sums.

    Examples:
        >>> import torch
        >>> from robustvae.norms import spectral_norm_bound
        >>> bound = spectral_norm_bound(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> 4.0 <= bound < 4.0 + 1e-8
        True
    """
    if weight.ndim != 2:
        raise ShapeError(f"a dense layer's weight must be (n, k), got {tuple(weight.shape)}")
    weight = weight.detach()
    return _kept(weight, (), lambda: float(spectral_norm_bounds(weight[None])[0]))


def spectral_norm_bounds(matrices: Tensor) -> Tensor:
    """`spectral_norm_bound` of a batch of matrices, real or complex, (B, n, k) to (B,), float64."""
    wide = torch.complex128 if matrices.is_complex() else torch.float64
    matrices = matrices.to("cpu", wide)
    if not bool(matrices.isfinite().all()):
        raise NonFiniteError("weights must be finite, got a NaN or an infinity")
    if matrices.numel() == 0:
        return torch.zeros(len(matrices), dtype=torch.float64)
    exponent = torch.frexp(matrices.abs().amax((1, 2)))[1]
    if matrices.is_complex():
        parts = torch.view_as_real(matrices.resolve_conj())
        matrices = torch.view_as_complex(torch.ldexp(parts, -exponent[:, None, None, None]))
    else:
        matrices = torch.ldexp(matrices, -exponent[:, None, None])  # exact
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.mH
    gram = matrices @ matrices.mH
    gram = (gram + gram.mH) / 2
    mass = matrices.abs().square().sum((1, 2))
    square = _top_eigenvalue_bound(gram) + _slack(gram, matrices.shape[2] + 8) * mass
    # a zero matrix has bound 0; nothing can be lost there
    return torch.ldexp(square.clamp_min(0).sqrt() * (1 + 8 * UNIT) * (mass > 0), exponent)


@checked(formula=True)
def conv_norm_bound(layer: Convolution, size: Sequence[int], *, sizes: bool = False) -> float:
    """An upper bound on the l2 operator norm of a zero-padded convolution, as it is stored.

    The convolution is a compression of a periodic one on any torus so large that what one output
    reads lies apart from what another does not; split into its stride's phases that one is block
    diagonal in frequency, and its norm the largest of its blocks'. Opposite frequencies have
    conjugate blocks. A transposed convolution is the adjoint of a plain one.

    Args:
        layer: Any stride, padding, dilation and groups; padding with zeros; in one dimension or
            two.
        size: (H, W), or (L,), of the features on the convolution's coarse side: the output of a
            `Conv2d`, the input of a `ConvTranspose2d`.
        sizes: Of the kernel's absolute values instead.

    Returns:
        A bound that the true norm approaches as the features grow.

    Raises:
        UnsupportedError: Another padding mode, or a layer that the gate refuses.
        NonFiniteError: A NaN or an infinity in the weights.

    Examples:
        >>> import torch
        >>> from robustvae.norms import conv_norm_bound
        >>> layer = torch.nn.Conv2d(1, 1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(layer.weight, 0.5)
        >>> round(conv_norm_bound(layer, (4, 4)), 6)
        0.5
    """
    gate.admit(layer)
    shape = (conv_padding(layer), layer.dilation, layer.stride)
    facts = (*shape, layer.groups, tuple(size), sizes)
    return _kept(layer.weight.detach(), facts, lambda: _conv_norm_bound(layer, size, sizes=sizes))


def _conv_norm_bound(layer: Convolution, size: Sequence[int], *, sizes: bool) -> float:
    padding, dilation, strides = conv_padding(layer), layer.dilation, layer.stride
    weight = layer.weight.detach().to("cpu", torch.float64)
    if sizes:
        weight = weight.abs()
    if weight.ndim == 3:  # as an image of one row
        weight, size = weight[:, :, None], (1, *size)
        padding, dilation, strides = (0, *padding), (1, *dilation), (1, *strides)
    axes = []
    for axis in range(2):
        taps, stride = weight.shape[2 + axis], strides[axis]
        offset = torch.arange(taps) * dilation[axis] - padding[axis]
        cell, phase = offset.div(stride, rounding_mode="floor"), offset.remainder(stride)
        period = size[axis] + int(cell.max() - cell.min())
        frequency = torch.arange(period if axis else period // 2 + 1)
        # whole turns are taken off before anything is rounded, and the product is in float64
        turns = torch.outer(frequency, cell).remainder(period).to(torch.float64)
        angle = 2 * math.pi / period * turns
        wave = torch.polar(torch.ones_like(angle), angle)
        select = torch.nn.functional.one_hot(phase, stride).to(torch.complex128)
        axes.append(torch.einsum("ft,tp->ftp", wave, select))
    worst = 0.0
    for group in weight.chunk(layer.groups):
        symbol = torch.einsum("oiuv,fup,gvq->fgoipq", group.to(torch.complex128), *axes)
        symbol = symbol.flatten(4).flatten(3).flatten(0, 1)
        # an angle below 2 pi errs by 2e-15, a wave by as much: 1e-13 of what it multiplies is ample
        slack = 1e-13 * float(group.abs().sum((2, 3)).norm())
        worst = max(worst, float(spectral_norm_bounds(symbol).max()) + slack)
    return worst


_KEPT = 256  # bounds; a deep model has some tens of layers
_recent: OrderedDict[tuple[object, ...], float] = OrderedDict()
_lock = threading.Lock()


def _kept(weight: Tensor, facts: tuple[object, ...], bound: Callable[[], float]) -> float:
    """A bound that was computed before for the same content, or is computed now.

    An audit asks for every layer's bound again for each few inputs. The key is a hash of the
    weight's bytes, not the tensor: whoever changes a weight, in whatever way, gets a new bound.
    """
    content = weight.to("cpu").resolve_conj().contiguous()
    raw = content.reshape(-1).view(torch.uint8).numpy()
    key = (hashlib.sha256(raw.data).digest(), content.dtype, tuple(content.shape), *facts)
    with _lock:
        if key in _recent:
            _recent.move_to_end(key)
            return _recent[key]
    value = bound()
    with _lock:
        _recent[key] = value
        while len(_recent) > _KEPT:
            _recent.popitem(last=False)
    return value


@checked(formula=True)
def conv_padding(layer: Convolution) -> tuple[int, ...]:
    """Zeros on either side of each axis.

    Raises:
        UnsupportedError: Padding with something else, or "same" where one side gets more.

    Examples:
        >>> from torch import nn
        >>> from robustvae.norms import conv_padding
        >>> conv_padding(nn.Conv2d(1, 1, 3, padding="same"))
        (1, 1)
    """
    name = type(layer).__name__
    if layer.padding_mode != "zeros":
        raise UnsupportedError(
            f"bounds want a {name} with padding_mode='zeros', got {layer.padding_mode!r}; put a "
            "padding layer before it"
        )
    if not isinstance(layer.padding, str):
        return tuple(layer.padding)
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    both = [d * (taps - 1) for d, taps in zip(layer.dilation, layer.kernel_size, strict=True)]
    if any(total % 2 for total in both):
        raise UnsupportedError(
            f"bounds want a {name} that pads both sides alike, got padding='same' with an even "
            "kernel; use an odd one"
        )
    return tuple(total // 2 for total in both)


def _top_eigenvalue_bound(gram: Tensor) -> Tensor:
    """Upper bounds on the largest eigenvalues of Hermitian matrices as given, (B, k, k) to (B,).

    If G V = V L + R and G y = l y with y = V u then V (l - L) u = R u, hence
    l - max L <= ||R|| / s_min(V), and s_min(V)^2 >= 1 - ||V^T V - I||.
    """
    size = gram.shape[-1]
    values, vectors = torch.linalg.eigh(gram)
    residual = _norm(gram @ vectors - vectors * values[..., None, :])
    skew = _norm(vectors.mH @ vectors - torch.eye(size, dtype=gram.dtype))
    slack = _slack(gram, 2 * size + 8)
    residual = residual + slack * (_norm(gram) + values.norm(dim=-1)) * _norm(vectors)
    skew = skew + slack * _norm(vectors).square()
    if not bool((skew < 0.5).all()):
        raise UnsupportedError("the eigensolver failed: no norm can be verified")
    return (values[..., -1] + residual / (1 - skew).sqrt() * (1 + slack)) * (1 + 8 * UNIT)


def _norm(matrix: Tensor) -> Tensor:
    size = matrix.shape[-1] * matrix.shape[-2]
    return torch.linalg.matrix_norm(matrix) * (1 + _slack(matrix, size))


def _slack(matrix: Tensor, terms: int) -> float:
    """`gamma`; a complex product is four real ones."""
    return gamma(4 * terms if matrix.is_complex() else terms)


@checked(formula=True)
def gamma(terms: int) -> float:
    """Relative error of a float64 sum of products of that many terms, in any order."""
    return terms * UNIT / (1 - terms * UNIT)
