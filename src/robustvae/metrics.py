"""Numbers that judge: similarity of images, distance of Gaussians, intervals for a proportion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustvae.arguments import checked
from robustvae.errors import (
    DtypeError,
    RangeError,
    ShapeError,
    check_choice,
    check_images,
    check_probability,
)

MS_SSIM_VARIANTS = ("kuzina2022", "wang2003")

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_SIGMA = 1.5
_WANG_WINDOW = 11
_WANG_LEAST_SIDE = _WANG_WINDOW * 2 ** (len(_WEIGHTS) - 1)
_KUZINA_WINDOW = 14
# pixels up to which one product with the whole matrix is the faster; and the places of a block
_DENSE, _BLOCK = 64, 32


@checked(formula=True)
def ms_ssim(x: Tensor, y: Tensor, *, variant: str = "wang2003") -> Tensor:
    """Multi-scale structural similarity of pairs of images; 1 for equal images.

    With cs_i the contrast-structure term and ssim_i the whole similarity at scale i, each scale
    half the size of the one before, and w = (.0448, .2856, .3001, .2363, .1333):

    - `"wang2003"`: cs_1^w1 cs_2^w2 cs_3^w3 cs_4^w4 ssim_5^w5, window 11, the textbook, equal to
      torchmetrics' (which averages ssim_5, and only that, over a reflected border too). It needs
      images of at least 176 x 176 pixels; smaller ones are refused rather than measured with
      fewer scales, since such a number could not be compared with published ones.
    - `"kuzina2022"`: prod_{i<5} cs_i^wi ssim_5^w5, so the last scale enters four times, with a
      window of min(14, H, W) and no border. This is what the tables of [Kuzina22] hold, and it
      is defined for small images. An image that reaches one pixel before the fifth scale
      (anything under 16 pixels) stays there, where cs is 1.

    Both: Gaussian window of standard deviation 1.5, terms cut off below at 0.

    Warning:
        The two variants are different numbers; never compare one with the other.

    Args:
        x: Images in [0, 1], (B, C, H, W).
        y: Images in [0, 1], the same shape.
        variant: `"wang2003"` or `"kuzina2022"`.

    Returns:
        Similarity in [0, 1], (B,).

    Raises:
        ShapeError: The shapes differ, or the images are too small for `"wang2003"`.
        RangeError: A pixel outside [0, 1].
        UnknownNameError: No such variant.

    References:
        Wang, Simoncelli & Bovik, 2003, Eq. 7; [Kuzina22] section 2.2 and its published code.

    Examples:
        >>> import torch
        >>> from robustvae.metrics import ms_ssim
        >>> x = torch.rand(2, 1, 8, 8, generator=torch.Generator())
        >>> ms_ssim(x, x, variant="kuzina2022")
        tensor([1., 1.])
    """
    check_choice("MS-SSIM variant", variant, MS_SSIM_VARIANTS)
    check_images(x)
    check_images(y, name="y")
    if x.shape != y.shape:
        raise ShapeError(f"x and y must have one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    side = min(x.shape[-2:])
    if variant == "wang2003" and side < _WANG_LEAST_SIDE:
        raise ShapeError(
            f"MS-SSIM 'wang2003' needs images of at least {_WANG_LEAST_SIDE} x {_WANG_LEAST_SIDE} "
            f"pixels for its five scales, got {x.shape[-2]} x {x.shape[-1]}: "
            "use variant='kuzina2022'"
        )
    terms, weights = ms_ssim_terms(x, y, variant=variant)
    return (terms.relu() ** weights.unsqueeze(1)).prod(dim=0)


@checked(formula=True)
def default_variant(x: Tensor) -> str:
    """The MS-SSIM variant for images of this size: the textbook's where it is defined.

    Args:
        x: Images, (B, C, H, W).

    Examples:
        >>> import torch
        >>> from robustvae.metrics import default_variant
        >>> default_variant(torch.zeros(1, 1, 28, 28)), default_variant(torch.zeros(1, 3, 256, 256))
        ('kuzina2022', 'wang2003')
    """
    return "wang2003" if min(x.shape[-2:]) >= _WANG_LEAST_SIDE else "kuzina2022"


@checked(formula=True)
def ms_ssim_terms(x: Tensor, y: Tensor, *, variant: str) -> tuple[Tensor, Tensor]:
    """The terms that `ms_ssim` multiplies, before they are cut off at 0, and their exponents.

    Args:
        x: Images in [0, 1], (B, C, H, W).
        y: Images in [0, 1], the same shape.
        variant: As in `ms_ssim`.

    Returns:
        Terms at most 1, (5, B): the contrast-structure of four scales, the similarity of the fifth;
        and exponents, (5,).
    """
    terms = []
    for scale in range(len(_WEIGHTS)):
        if scale and min(x.shape[-2:]) > 1:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        similarity, contrast = _ssim(x, y, variant)
        terms.append(contrast if scale < len(_WEIGHTS) - 1 else similarity)
    weights = x.new_tensor(_WEIGHTS)
    if variant == "kuzina2022":
        weights[-1] *= len(_WEIGHTS) - 1
    return torch.stack(terms), weights


def _ssim(x: Tensor, y: Tensor, variant: str) -> tuple[Tensor, Tensor]:
    """Mean similarity and mean contrast-structure term at one scale, (B,) each."""
    if variant == "wang2003":
        size, border = _WANG_WINDOW, _WANG_WINDOW // 2
        x, y = (F.pad(image, [border] * 4, mode="reflect") for image in (x, y))
    else:
        size, border = min(_KUZINA_WINDOW, *x.shape[-2:]), 0
    rows, columns = (_blur(side, size, x) for side in x.shape[-2:])

    def blurred(image: Tensor) -> Tensor:
        """The window's mean around every pixel where it fits, by two banded products."""
        return _banded(rows, _banded(columns, image, -1), -2)

    mean_x, mean_y = blurred(x), blurred(y)
    # means of squares of both at once: only the sum of the variances is asked for
    squares, xy = blurred(x * x + y * y), blurred(x * y)
    product, levels = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    c1, c2 = 0.01**2, 0.03**2
    contrast = (2 * (xy - product) + c2) / ((squares - levels).clamp_min(0) + c2)
    luminance = (2 * product + c1) / (levels + c1)
    height, width = contrast.shape[-2:]
    inner = contrast[..., border : height - border, border : width - border]
    return (luminance * contrast).mean(dim=(1, 2, 3)), inner.mean(dim=(1, 2, 3))


def _banded(bands: Tensor, image: Tensor, axis: int) -> Tensor:
    """A banded matrix times one axis of the images, block by block where the matrix is large.

    A dense product of n x n spends n multiplications on each pixel where the band has eleven: a
    block of 32 places needs only the pixels under its own bands.
    """
    places, side = bands.shape
    width = side - places + 1
    if side <= _DENSE:
        return image @ bands.mT if axis == -1 else bands @ image
    parts = []
    for begin in range(0, places, _BLOCK):
        end = min(places, begin + _BLOCK)
        block = bands[begin:end, begin : end + width - 1]
        part = image.narrow(axis, begin, end - begin + width - 1)
        parts.append(part @ block.mT if axis == -1 else block @ part)
    return torch.cat(parts, axis)


def _blur(side: int, size: int, like: Tensor) -> Tensor:
    """The Gaussian window at every place where it fits, (side - size + 1, side)."""
    # The published code centers even windows on pixel size // 2, half a pixel off the middle.
    offset = torch.arange(size, dtype=like.dtype, device=like.device) - size // 2
    window = torch.exp(-(offset**2) / (2 * _SIGMA**2))
    places = side - size + 1
    bands = like.new_zeros(places, side)
    index = torch.arange(places, device=like.device)
    for k, weight in enumerate((window / window.sum()).tolist()):
        bands[index, index + k] = weight
    return bands


@checked(formula=True)
def kl(mean: Tensor, stddev: Tensor, other_mean: Tensor, other_stddev: Tensor) -> Tensor:
    """KL(N(mean, stddev^2) || N(other_mean, other_stddev^2)) of diagonal Gaussians.

    sum_j log(t_j / s_j) + (s_j^2 + (m_j - n_j)^2) / (2 t_j^2) - 1/2.

    Args:
        mean: (B, d).
        stddev: (B, d), positive.
        other_mean: (B, d), or of a shape that broadcasts to it.
        other_stddev: (B, d), positive, or of a shape that broadcasts to it.

    Returns:
        Divergence in nats, (B,).

    Examples:
        >>> import torch
        >>> from robustvae.metrics import kl
        >>> zero, one = torch.zeros(1, 2), torch.ones(1, 2)
        >>> kl(one, one, zero, one)
        tensor([1.])
    """
    ratio = stddev / other_stddev
    gap = (mean - other_mean) / other_stddev
    return (0.5 * (ratio**2 - 1 + gap**2) - ratio.log()).sum(dim=-1)


@checked(formula=True)
def symmetric_kl(mean: Tensor, stddev: Tensor, other_mean: Tensor, other_stddev: Tensor) -> Tensor:
    """Half the sum of the two KL divergences between diagonal Gaussians.

    Args:
        mean: (B, d).
        stddev: (B, d), positive.
        other_mean: (B, d), or of a shape that broadcasts to it.
        other_stddev: (B, d), positive, or of a shape that broadcasts to it.

    Returns:
        Divergence in nats, (B,).

    References:
        [Kuzina22] section 2.2, whose published code takes the half.

    Examples:
        >>> import torch
        >>> from robustvae.metrics import symmetric_kl
        >>> zero, one = torch.zeros(1, 2), torch.ones(1, 2)
        >>> symmetric_kl(one, one, zero, one)
        tensor([1.])
    """
    forward = kl(mean, stddev, other_mean, other_stddev)
    return 0.5 * (forward + kl(other_mean, other_stddev, mean, stddev))


@checked(formula=True)
def wasserstein2(mean: Tensor, stddev: Tensor, other_mean: Tensor, other_stddev: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance between diagonal Gaussians: |m - n|^2 + |s - t|^2.

    Args:
        mean: (B, d).
        stddev: (B, d), positive.
        other_mean: (B, d), or of a shape that broadcasts to it.
        other_stddev: (B, d), positive, or of a shape that broadcasts to it.

    Returns:
        Squared distance in squared latent units, (B,).

    Examples:
        >>> import torch
        >>> from robustvae.metrics import wasserstein2
        >>> zero, one = torch.zeros(1, 2), torch.ones(1, 2)
        >>> wasserstein2(one, one, zero, one)
        tensor([2.])
    """
    return ((mean - other_mean) ** 2 + (stddev - other_stddev) ** 2).sum(dim=-1)


@checked(formula=True)
def kl_to_standard_normal(mean: Tensor, stddev: Tensor) -> Tensor:
    """KL(N(mean, stddev^2) || N(0, I)) of diagonal Gaussians.

    Args:
        mean: (B, d).
        stddev: (B, d), positive.

    Returns:
        Divergence in nats, (B,).

    References:
        Kingma & Welling, 2014, Eq. 10.

    Examples:
        >>> import torch
        >>> from robustvae.metrics import kl_to_standard_normal
        >>> kl_to_standard_normal(torch.ones(1, 2), torch.ones(1, 2))
        tensor([1.])
    """
    return (0.5 * (stddev**2 - 1 + mean**2) - stddev.log()).sum(dim=-1)


@checked(formula=True)
def clopper_pearson(
    successes: Any, trials: Any, confidence: float, *, sides: int = 2
) -> tuple[Any, Any]:
    """Exact interval for a proportion; it holds for every true value, however few the trials.

    low = BetaInv(a; k, n - k + 1) and high = BetaInv(1 - a; k + 1, n - k), with a = 1 - confidence
    for one side and half of that for two.

    Warning:
        With `sides=1` each bound holds with `confidence` alone, both together only with
        2 * confidence - 1: use one of them.

    Args:
        successes: Number of successes k, whole, 0 <= k <= n; a number, array or tensor.
        trials: Number of trials n, whole, at least 1; broadcasts with `successes`.
        confidence: Probability in (0, 1) with which the statement holds.
        sides: 2 for an interval, 1 for a bound.

    Returns:
        (low, high) in [0, 1], float64: two floats for two numbers, else two numpy arrays.

    Raises:
        RangeError: A count or the confidence is out of range.

    References:
        Clopper & Pearson, 1934.

    Examples:
        >>> from robustvae.metrics import clopper_pearson
        >>> low, high = clopper_pearson(0, 100, 0.95, sides=1)
        >>> low, round(high, 4)
        (0.0, 0.0295)
    """
    from scipy.special import betaincinv

    check_probability(confidence, "confidence")
    if sides not in (1, 2):
        raise RangeError(f"sides must be 1 or 2, got {sides!r}")
    k, n = np.broadcast_arrays(_counts(successes, "successes"), _counts(trials, "trials"))
    if (n < 1).any():
        raise RangeError(f"trials must be at least 1, got {n.min():g}")
    if (k < 0).any() or (k > n).any():
        raise RangeError("successes must lie between 0 and trials")
    tail = (1 - confidence) / sides
    low = np.where(k == 0, 0.0, betaincinv(np.maximum(k, 1), n - k + 1, tail))
    high = np.where(k == n, 1.0, betaincinv(k + 1, np.maximum(n - k, 1), 1 - tail))
    return (float(low), float(high)) if low.ndim == 0 else (low, high)


def _counts(value: Any, name: str) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    try:
        counts = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DtypeError(f"{name} must be whole numbers, got {value!r}") from None
    if not np.isfinite(counts).all() or (counts != np.round(counts)).any():
        raise RangeError(f"{name} must be whole numbers, got {value}")
    return counts


@checked(formula=True)
def mean_stderr(values: Any) -> tuple[float, float]:
    """Mean and its standard error, s / sqrt(n) with the n - 1 standard deviation.

    Args:
        values: Finite numbers, (n,), n at least 1; an array, tensor or sequence.

    Returns:
        (mean, standard error) in the unit of `values`; the error of a single number is infinite.

    Raises:
        ShapeError: Not one axis, or empty.

    Examples:
        >>> from robustvae.metrics import mean_stderr
        >>> mean_stderr([1.0, 2.0, 3.0])
        (2.0, 0.5773502691896258)
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ShapeError(f"values must be (n,) with n >= 1, got {array.shape}")
    stderr = math.inf if array.size == 1 else float(array.std(ddof=1)) / math.sqrt(array.size)
    return float(array.mean()), stderr
