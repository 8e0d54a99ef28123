"""What rounding is granted, in one place."""

ROUNDING = 1e-14
"""Relative error granted to one elementwise function, its derivative or one value in float64.

Torch's functions err by a few units in the last place, 2.2e-16 each; the tests look for more.
"""

UP = 1 + 1e-11
"""Over the rounding of a few operations and of sums of up to 40,000 positive terms."""

TINY = 1e-150
"""Absolute error granted where results may be denormal, or where their squares may be: there
relative errors are unbounded."""

NEAR = 1e-12
"""Distances below this share of 1 + |v| are not divided by: their secants are all rounding."""
