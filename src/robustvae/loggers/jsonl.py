"""Lines of JSON in a file: the tracker that needs nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from robustvae.errors import DtypeError, StorageError
from robustvae.registry import register


@register("logger", "jsonl")
@final
@dataclass(frozen=True)
class JSONLines:
    """One line of JSON for each call, appended to a file.

    Args:
        path: The file; made where it is missing.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from robustvae.loggers import JSONLines
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = JSONLines(f"{folder}/log.jsonl")
        ...     logger.log({"loss": 2.0}, step=1)
        ...     print(Path(logger.path).read_text().strip())
        {"loss": 2.0, "step": 1}
    """

    path: str | Path = "robustvae.jsonl"

    def __post_init__(self) -> None:
        """Validate the path, and keep it as text, which a spec can say."""
        if not isinstance(self.path, str | Path):
            raise DtypeError(f"path must be a text or a Path, got {self.path!r:.60}")
        object.__setattr__(self, "path", str(self.path))

    def log(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        """Append the values as a line."""
        self._append({**values, "step": step})

    def log_files(self, folder: str | Path) -> None:
        """Append where the files lie; they stay there."""
        self._append({"files": str(folder)})

    def _append(self, content: dict[str, Any]) -> None:
        try:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(content, sort_keys=True) + "\n")
        except OSError as error:
            raise StorageError(
                f"the log {self.path} cannot be written ({error.strerror}); name another path"
            ) from None
