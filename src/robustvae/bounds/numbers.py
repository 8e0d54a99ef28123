"""What rounding is granted in the formulas, in one place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CDF_SLACK = 1e-9
"""Taken off every noncentral chi-square probability; the routine's own error is near 1e-14."""

SLACK = 1e-12
"""Relative slack for a few float64 operations, far above their rounding."""


def slack(terms: int) -> float:
    """Relative slack for a sum of so many positive terms in any order; `SLACK` at the least.

    Beyond 9,000 terms the worst order loses more than `SLACK`.

    Examples:
        >>> from robustvae.bounds import slack
        >>> slack(10), slack(100_000) > 1e-11
        (1e-12, True)
    """
    return max(SLACK, 1.01 * (terms + 8) * 2.0**-53)


def double(value: Any) -> Tensor:
    """A number or tensor in float64."""
    if isinstance(value, Tensor):
        return value.to(torch.float64)
    return torch.as_tensor(value, dtype=torch.float64)
