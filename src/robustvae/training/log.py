"""The log of a training run: a file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import final

from robustvae.arguments import checked_fields
from robustvae.errors import CheckpointError
from robustvae.records import write_text
from robustvae.records.text import read_json


@checked_fields
@final
class TrainingLog:
    """The file of JSON lines in the folder of a training run, one line an epoch.

    Args:
        path: The file; written whole at every epoch, so that no line is ever torn.
        keep: Lines of epochs up to this one, from an earlier run, stay. A last line without its
            end, which somebody else's kill left behind, does not.

    Raises:
        CheckpointError: The file there is another one.

    Examples:
        >>> import tempfile, pathlib
        >>> from robustvae.training import TrainingLog
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "log.jsonl"
        ...     TrainingLog(path).log({"loss": 103.5}, step=1)
        ...     print(path.read_text().strip())
        {"epoch": 1, "loss": 103.5}
    """

    def __init__(self, path: str | Path, keep: int = 0) -> None:
        self._path = Path(path)
        self._lines: list[str] = []
        if not self._path.exists():
            return
        try:
            complete, _, _ = self._path.read_text("utf-8").rpartition("\n")
            self._lines = [
                line for line in complete.splitlines() if read_json(line)["epoch"] <= keep
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            line = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{path} cannot be read as the log of a training run: {line}; name another folder"
            ) from None

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Add the line of an epoch, counted from 1.

        Raises:
            StorageError: The disk cannot be written.
        """
        self._lines.append(json.dumps({"epoch": step, **values}))
        write_text(self._path, "\n".join(self._lines) + "\n")
