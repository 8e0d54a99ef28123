"""Comparisons of tensors and of global state, as diagnoses make them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustvae.models.base import VAE
from robustvae.seeding import generator, randn

SCALES = (1.0, 10.0, 100.0)  # of probes far from the data, where bounded outputs show their bounds


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


def mark_of(value: Tensor) -> str:
    """What tells whether a weight was changed, also behind the back of its version counter."""
    total = value.detach().sum(dtype=torch.float64 if value.is_floating_point() else None)
    return f"{value._version} {total.item()!r}"


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


def type_of(vae: VAE) -> str:
    """The floating type of a model's first parameter, as a word."""
    first = next((p.dtype for p in vae.parameters() if p.is_floating_point()), vae.dtype)
    return str(first).removeprefix("torch.")


def probed(vae: VAE, x: Tensor, probes: int) -> Tensor | None:
    """Decoded codes of sizes from 1 to 100, or None where they cannot be decoded."""
    z = randn(probes, vae.latent, like=x, generator=generator(0, x.device))
    scales = torch.tensor(SCALES, dtype=z.dtype, device=z.device).repeat(probes)[:probes, None]
    try:
        outputs = vae.decode(scales * z).mean
    except Exception:  # codes of such a size may be refused
        return None
    return outputs if bool(outputs.isfinite().all()) else None
