"""Comparisons of tensors and of global state, as diagnoses make them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_states() -> tuple[Tensor, Any, Any]:
    """States of the global generators of torch, numpy and Python."""
    return torch.get_rng_state(), numpy_state(), random.getstate()


def numpy_state() -> bytes:
    """The state of numpy's global generator, as bytes."""
    state: Any = np.random.get_state()
    return bytes(state[1].tobytes())


def equal_states(one: tuple[Tensor, Any, Any], other: tuple[Tensor, Any, Any]) -> bool:
    """Whether two results of `random_states` are the same."""
    return torch.equal(one[0], other[0]) and one[1:] == other[1:]


def identical(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree to the bit, NaN for NaN."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def gap(one: Tensor, other: Tensor) -> float:
    """The greatest difference of two tensors."""
    return float((one - other).abs().max())


def close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two tensors agree to a tolerance relative to the second."""
    size = max(float(other.nan_to_num(0, 0, 0).abs().max()), 1e-3)
    difference = (one - other).abs()
    return bool((difference.nan_to_num(0) <= tolerance * size).all())


def line(error: Exception) -> str:
    """The message of an error in one line."""
    return " ".join(str(error).split())[:240]
