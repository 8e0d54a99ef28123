"""Numbers as text, rounded towards safety: lower bounds down, upper bounds up."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal
from typing import Any

NOT_MEASURED = "\N{EN DASH}"
INFINITE = "∞"
MINUS = "\N{MINUS SIGN}"

_NORMS = {"l0": "\N{SCRIPT SMALL L}₀", "l2": "\N{SCRIPT SMALL L}₂", "linf": "\N{SCRIPT SMALL L}∞"}


def number(value: Any) -> float | None:
    """The float behind a record's value, which writes infinity as "inf"; None where none is."""
    if value is None or isinstance(value, bool):
        return None
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(result) else result


def floor(value: Any, digits: int = 3) -> str:
    """`value` to `digits` significant digits, never rounded up: for lower bounds."""
    return _shown(value, digits, ROUND_FLOOR)


def ceil(value: Any, digits: int = 3) -> str:
    """`value` to `digits` significant digits, never rounded down: for upper bounds and errors."""
    return _shown(value, digits, ROUND_CEILING)


def near(value: Any, digits: int = 3) -> str:
    """`value` to `digits` significant digits, the nearest: for estimates."""
    return _shown(value, digits, ROUND_HALF_EVEN)


def given(value: Any) -> str:
    """A number that somebody chose, such as a radius, as they would write it."""
    parsed = number(value)
    return NOT_MEASURED if parsed is None else f"{parsed:.6g}"


def norm(name: Any) -> str:
    """The sign of a norm: ℓ₂ or ℓ∞."""
    return _NORMS.get(str(name), str(name))


def _shown(value: Any, digits: int, rounding: str) -> str:
    parsed = number(value)
    if parsed is None:
        return NOT_MEASURED
    if math.isinf(parsed):
        return INFINITE if parsed > 0 else MINUS + INFINITE
    if parsed == 0:
        return "0"
    context = Context(prec=digits, rounding=rounding)
    figure = context.create_decimal(repr(parsed))
    exponent = figure.adjusted()
    if exponent < digits:
        figure = figure.quantize(Decimal(1).scaleb(exponent - digits + 1))
    text = f"{figure:f}" if -5 <= exponent < 7 else f"{figure.scaleb(-exponent):f}e{exponent}"
    return text.replace("-", MINUS)
