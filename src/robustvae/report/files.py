"""A record as files: the page for people, the record for programs, the rows for tables."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from robustvae.errors import StorageError, check_type
from robustvae.records import Record, plain, write_files
from robustvae.report import reading
from robustvae.report.page import render


def write(record: Record, folder: str | Path) -> Path:
    """Write a record as `report.html`, `record.json` and `rows.parquet` into a folder.

    Without pyarrow the rows become `rows.jsonl`. All files are written or none, so that no report
    stands beside another audit's record; equal records give equal bytes.

    Args:
        record: An audit.
        folder: Where to; made if it is missing.

    Returns:
        The path of `report.html`.

    Raises:
        DtypeError: `record` is no `Record`.
        StorageError: The folder cannot be written to.

    Examples:
        >>> import robustvae as rv, tempfile
        >>> images = rv.data.load("digits", split="test")
        >>> plan = {"inputs": 2, "attacks": [{"radius": 0.5, "steps": 2, "restarts": 1}]}
        >>> record = rv.audit(rv.Victim(rv.load("digits-vae")), images, plan=plan, seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rv.report.write(record, folder).name
        'report.html'
    """
    check_type(record, "record", Record)
    folder = Path(folder)
    report = folder / "report.html"
    kept, stale = folder / "rows.parquet", folder / "rows.jsonl"
    rows = _parquet(record.rows)
    if rows is None:
        kept, stale = stale, kept
        lines = (json.dumps(plain(row), sort_keys=True) + "\n" for row in record.rows)
        rows = "".join(lines).encode()
    write_files(
        {
            folder / "record.json": record.to_json().encode(),
            kept: rows,
            report: render(record).encode(),
        }
    )
    try:
        stale.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{stale} is of another audit and cannot be removed: {error}") from None
    return report


def _parquet(rows: list[dict[str, Any]]) -> bytes | None:
    """The rows as Parquet; None where nothing is installed that writes it."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return None
    columns = {key: _column([row.get(key) for row in rows]) for key in reading.columns(rows)}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _column(values: list[Any]) -> list[Any]:
    """One column of one type: floats as soon as one is a float, "inf" among them as infinity."""
    kinds = {type(value) for value in values if value is not None and value not in ("inf", "-inf")}
    infinite = any(value in ("inf", "-inf") for value in values)
    if kinds <= {int, float} and (float in kinds or infinite):
        return [None if value is None else float(value) for value in values]
    if len(kinds) > 1:
        return [None if value is None else str(value) for value in values]
    return values
