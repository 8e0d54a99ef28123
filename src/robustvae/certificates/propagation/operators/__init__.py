"""One class an operator; importing this folder enters them all in the tables."""

from robustvae.certificates.propagation.operators import (
    clamp,
    convolution,
    gated,
    linear,
    moves,
    normalization,
    pooling,
    relu,
    resize,
    sigmoid,
    sorts,
    sums,
)

__all__ = [
    "clamp",
    "convolution",
    "gated",
    "linear",
    "moves",
    "normalization",
    "pooling",
    "relu",
    "resize",
    "sigmoid",
    "sorts",
    "sums",
]
