"""Columns of the band: what is known of an input along the tolerance and along the change.

The measures write them, a check compares them and the report draws them: none of these may import
another.
"""

from __future__ import annotations

CERTIFIED = {
    "certified_at_50": 0.5,
    "certified_at_75": 0.75,
    "certified": 1.0,
    "certified_at_150": 1.5,
    "certified_at_200": 2.0,
}
"""Columns of certified radii, and at what part or multiple of r."""

ATTACKED = {
    "tolerance_at_25": 0.25,
    "tolerance_at_50": 0.5,
    "tolerance_at_75": 0.75,
    "tolerance_attacked": 1.0,
}
"""Columns of tolerances that attacks break, and at what part of their change."""
