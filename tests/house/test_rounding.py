"""Numbers in print never claim more than was shown."""

from __future__ import annotations

import math

import pytest
from hypothesis import given as over
from hypothesis import strategies as st

from robustvae import rounding as numbers

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)


def read(text: str) -> float:
    return float(text.replace(numbers.MINUS, "-"))


@over(FINITE)
def test_floor_and_ceil_enclose(value):
    low, high = read(numbers.floor(value)), read(numbers.ceil(value))
    assert low <= value <= high
    assert high - low <= 0.0101 * abs(value)
    assert low <= read(numbers.near(value)) <= high


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (numbers.floor, 0.3789, "0.378"),
        (numbers.ceil, 0.3781, "0.379"),
        (numbers.near, 0.3789, "0.379"),
        (numbers.floor, 0.99999, "0.999"),
        (numbers.ceil, 0.99991, "1.00"),
        (numbers.floor, 0.3, "0.300"),
        (numbers.floor, 0.00012345, "0.000123"),
        (numbers.floor, 123456.0, "123000"),
        (numbers.ceil, 3.21e-9, "3.21e\N{MINUS SIGN}9"),
        (numbers.floor, -0.5, "\N{MINUS SIGN}0.500"),
        (numbers.ceil, "inf", "∞"),
        (numbers.floor, math.inf, "∞"),
        (numbers.near, None, numbers.NOT_MEASURED),
        (numbers.near, math.nan, numbers.NOT_MEASURED),
        (numbers.near, "<script>", numbers.NOT_MEASURED),
        (numbers.near, 0, "0"),
        (numbers.given, 0.1, "0.1"),
        (numbers.given, 8 / 255, "0.0313725"),
    ],
)
def test_numbers_as_text(form, value, text):
    assert form(value) == text
