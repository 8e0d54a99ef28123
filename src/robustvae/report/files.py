"""A record as files: the page for people, the record for programs, the rows for tables."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from robustvae.arguments import checked
from robustvae.errors import DataError, check_type
from robustvae.records import Record, finish_switch, plain, write_set
from robustvae.records.text import read_text, reason
from robustvae.report.page import render

FILES = ("record.json", "report.html", "rows.parquet", "rows.jsonl", "adversarials.safetensors")
"""Names that `write` uses."""


@checked()
def write(record: Record, folder: str | Path) -> Path:
    """Write a record as `report.html`, `record.json` and `rows.parquet` into a folder.

    Page and rows name the record that they belong to by its `id`. Without pyarrow the rows become
    `rows.jsonl`. The attacked inputs are stored without loss in `adversarials.safetensors`, and
    `manifest.json` holds the hash of every file. All files are written or none, so that no report
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
        >>> record = rv.audit(rv.load("digits-vae"), images, plan="smoke", seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rv.report.write(record, folder).name
        'report.html'
    """
    contents, stale_names = contents_of(record)
    write_set(folder, contents, remove=stale_names)
    return Path(folder) / "report.html"


def contents_of(record: Record) -> tuple[dict[str, bytes], list[str]]:
    """The files that `write` writes, by name, and names that another record may have left there.

    Raises:
        DtypeError: `record` is no `Record`.
    """
    check_type(record, "record", Record)
    names = [column.id for column in record.columns]
    rows, stale = _parquet(record.rows, names, record.id), "rows.jsonl"
    table = "rows.parquet"
    if rows is None:
        table, stale = stale, table
        lines = (
            json.dumps({**plain(row), "record": record.id}, sort_keys=True) + "\n"
            for row in record.rows
        )
        rows = "".join(lines).encode()
    contents = {
        "record.json": record.to_json().encode(),
        table: rows,
        "report.html": render(record).encode(),
    }
    stale_names = [stale]
    if record.adversarials is not None:
        contents["adversarials.safetensors"] = record.adversarials
    else:  # those of another audit must not stand beside this record
        stale_names.append("adversarials.safetensors")
    return contents, stale_names


@checked()
def read(folder: str | Path) -> Record:
    """The record that a folder or a file holds, its checks and verdict made again from its rows.

    Args:
        folder: A folder that `write` wrote, or the path of a record.

    Raises:
        DataError: No record there, or one that cannot be read.

    Examples:
        >>> import robustvae as rv, tempfile
        >>> images = rv.data.load("digits", split="test")
        >>> record = rv.audit(rv.load("digits-vae"), images, plan="smoke", seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = rv.report.write(record, folder)
        ...     rv.report.read(folder) == record
        True
    """
    path = Path(folder)
    path = path / "record.json" if path.is_dir() else path
    finish_switch(path.parent)
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} holds no record: {reason(error)}; name a folder that `robustvae audit` wrote"
        ) from None
    return Record.from_json(text)


def _parquet(rows: list[dict[str, Any]], names: list[str], name: str) -> bytes | None:
    """The rows as Parquet; None where nothing is installed that writes it."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return None
    columns = {key: _column([row.get(key) for row in rows]) for key in names}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata({"record": name}), buffer)
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
