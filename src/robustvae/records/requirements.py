"""What may be required of an audit: a check, or a bound on a headline number."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from robustvae.errors import ConfigError

if TYPE_CHECKING:
    from robustvae.records.audit import Record

_FORM = re.compile(r"^\s*(?P<key>.+?)\s*(?P<sign>>=|<=)\s*(?P<bound>[-+0-9.eE]+)\s*$")

Requirement = tuple[str, str | None, float]
"""A key, ">=", "<=" or None for a check, and a bound."""


def parse_requirement(text: str) -> Requirement:
    """The key, the sign and the bound that a requirement's text stands for.

    Raises:
        ConfigError: A sign without a number after it.

    Examples:
        >>> from robustvae.records.requirements import parse_requirement
        >>> parse_requirement("certified>=0.1")
        ('certified', '>=', 0.1)
        >>> parse_requirement("inside_ball")[:2]
        ('inside_ball', None)
    """
    match = _FORM.match(text)
    if match is None:
        return text.strip(), None, float("nan")
    try:
        return match["key"], match["sign"], float(match["bound"])
    except ValueError:
        raise ConfigError(
            f"requirement {text!r} needs a number after {match['sign']}, got {match['bound']!r}; "
            "write for instance certified>=0.1"
        ) from None


def unmet(
    record: Record, key: str, sign: str | None = None, bound: float = float("nan")
) -> str | None:
    """Why a requirement is not met, or None where it is.

    Args:
        record: An audit.
        key: Id of a check, or key of the summary.
        sign: ">=" or "<=" for a key of the summary; None for a check.
        bound: On its mean.
    """
    if sign is None:
        for check in record.checks:
            if check.id == key and not check.passed:
                return f"{key} ({check.victim}): {check.value}"
        return None if any(c.id == key for c in record.checks) else f"{key}: it was not judged"
    means = {entry.key: entry.mean for entry in record.summary}
    mean = means.get(key)
    if mean is None:
        return f"{key} {sign} {bound:g}, it was not measured"
    value = float(mean)
    is_met = value >= bound if sign == ">=" else value <= bound
    if not is_met:
        return f"{key} {sign} {bound:g}, it is {value:.4g}"
    if not record.verdict.passed:
        return f"{key} {sign} {bound:g} holds, but not on sound evidence: {record.verdict.first}"
    return None


def outcomes(record: Record) -> list[tuple[str, str | None]]:
    """The record's requirements, each with why it is not met, or None where it is.

    They are judged from the record's numbers each time, so a stored outcome cannot be wrong.
    """
    return [(text, unmet(record, *parse_requirement(text))) for text in record.requirements]
