"""The protocol of a logger, and what of a record is logged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from robustvae.arguments import checked
from robustvae.errors import check_type
from robustvae.records import Record
from robustvae.records.requirements import outcomes
from robustvae.registry import family_base
from robustvae.rounding import number


@family_base("logger")
@runtime_checkable
class Logger(Protocol):
    """Takes numbers and files to wherever results are tracked.

    A tracker of your own needs these two methods and nothing else; an installed package offers it
    under the entry point `logger.NAME` of the group `robustvae`.
    """

    def log(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        """Track finite numbers, at a step where there is one."""
        ...

    def log_files(self, folder: str | Path) -> None:
        """Keep the files of a folder, such as a report."""
        ...


@checked()
def log_record(
    logger: Logger,
    record: Record,
    *,
    step: int | None = None,
    folder: str | Path | None = None,
    prefix: str = "audit/",
) -> dict[str, float]:
    """Send an audit's headline numbers to a logger, and its files where a folder is given.

    Verdict and requirements go along as 1 and 0; a number that is infinite or was not measured
    is left out.

    Args:
        logger: Where to.
        record: An audit.
        step: Of a training, such as an epoch.
        folder: Where the report was written.
        prefix: Before every name.

    Returns:
        What was logged.

    Examples:
        >>> import robustvae as rv, tempfile
        >>> from robustvae.loggers import JSONLines, log_record
        >>> images = rv.data.load("digits", split="test")
        >>> record = rv.audit(rv.load("digits-vae"), images, plan="smoke", seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     values = log_record(JSONLines(f"{folder}/log.jsonl"), record, step=3)
        >>> values["audit/damage"] > 0
        True
    """
    check_type(record, "record", Record)
    check_type(logger, "logger", Logger)
    values = {f"{prefix}passed": float(record.verdict.passed)}
    for entry in record.summary:
        mean = number(entry.mean)
        if entry.headline and mean is not None and math.isfinite(mean):
            values[f"{prefix}{entry.key}"] = mean
    for text, reason in outcomes(record):
        values[f"{prefix}required: {text}"] = float(reason is None)
    logger.log(values, step=step)
    if folder is not None:
        logger.log_files(folder)
    return values
