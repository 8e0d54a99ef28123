"""Upper bounds on the Lipschitz constant of one layer as it is stored: never below the true one.

Everything is computed in float64 on the CPU, and every rounding error is bounded and added.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustvae.errors import NonFiniteError, ShapeError, UnsupportedError

SLOPES: dict[type[nn.Module], float] = {
    nn.Identity: 1.0,
    nn.Flatten: 1.0,
    nn.Unflatten: 1.0,
    nn.Dropout: 1.0,
    nn.ReLU: 1.0,
    nn.Tanh: 1.0,
    nn.Softplus: 1.0,
    nn.Sigmoid: 0.25,
}
"""Largest slope of the parameterless modules covered, in evaluation mode."""

CONTINUOUS_BERNOULLI_SLOPE = 1 / 12
"""Largest slope of the continuous Bernoulli's exact mean in its logit: its variance at 0."""

UNIT = 2.0**-53


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
        THEORY section 4, displacement bounds (1); Higham, 2002, Lemma 3.1 for the rounding of sums.

    Examples:
        >>> import torch
        >>> from robustvae.norms import spectral_norm_bound
        >>> bound = spectral_norm_bound(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> 4.0 <= bound < 4.0 + 1e-8
        True
    """
    if weight.ndim != 2:
        raise ShapeError(f"a dense layer's weight must be (n, k), got {tuple(weight.shape)}")
    matrix = weight.detach().to("cpu", torch.float64)
    if not bool(matrix.isfinite().all()):
        raise NonFiniteError("weights must be finite, got a NaN or an infinity")
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    if largest == 0.0:
        return 0.0
    exponent = math.frexp(largest)[1]
    matrix = torch.ldexp(matrix, torch.tensor(-exponent))  # exact
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.mT
    gram = matrix @ matrix.mT
    gram = (gram + gram.mT) / 2
    rounding = _gamma(matrix.shape[1] + 8) * float(matrix.square().sum())
    bound = math.sqrt(_top_eigenvalue_bound(gram) + rounding) * (1 + 8 * UNIT)
    return math.ldexp(bound, exponent)


def slope_bound(module: nn.Module) -> float:
    """The largest slope of a parameterless module: 1/4 for a sigmoid, 1 for a ReLU.

    Raises:
        UnsupportedError: A module whose slope is not known here.

    Examples:
        >>> from torch import nn
        >>> from robustvae.norms import slope_bound
        >>> slope_bound(nn.Sigmoid())
        0.25
    """
    if type(module) is nn.LeakyReLU:
        return max(1.0, abs(module.negative_slope))
    slope = SLOPES.get(type(module))
    if slope is None:
        raise UnsupportedError(f"no Lipschitz constant is known for {type(module).__name__}")
    return slope


def _top_eigenvalue_bound(gram: Tensor) -> float:
    """Upper bound on the largest eigenvalue of symmetric matrices, exactly as given, (..., k, k).

    If G V = V L + R and G y = l y with y = V u then V (l - L) u = R u, hence
    l - max L <= ||R|| / s_min(V), and s_min(V)^2 >= 1 - ||V^T V - I||.
    """
    size = gram.shape[-1]
    values, vectors = torch.linalg.eigh(gram)
    residual = _norm(gram @ vectors - vectors * values[..., None, :])
    skew = _norm(vectors.mH @ vectors - torch.eye(size, dtype=gram.dtype))
    slack = _gamma(2 * size + 8)
    residual = residual + slack * (_norm(gram) + values.norm(dim=-1)) * _norm(vectors)
    skew = skew + slack * _norm(vectors).square()
    if not bool((skew < 0.5).all()):
        raise UnsupportedError("the eigensolver failed: no norm can be verified")
    bound = values[..., -1] + residual / (1 - skew).sqrt() * (1 + slack)
    return float(bound.max()) * (1 + 8 * UNIT)


def _norm(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix) * (1 + _gamma(matrix.shape[-1] * matrix.shape[-2]))


def _gamma(terms: int) -> float:
    """Relative error of a float64 sum of products of that many terms, in any order."""
    return terms * UNIT / (1 - terms * UNIT)
