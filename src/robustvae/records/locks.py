"""A folder that one run has for itself."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, final

from robustvae.arguments import checked_fields
from robustvae.errors import StorageError
from robustvae.records.files import make_folder

try:
    import fcntl
except ImportError:  # not on Windows, where two runs in one folder are not kept apart
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_LONGEST = 64  # characters read of a lock, which holds the number of a process


@checked_fields
@final
class Lock:
    """A folder held by one run; the system lets go of it when the process ends, however it ends.

    Args:
        folder: Made if it is missing.

    Raises:
        StorageError: Another process holds it, or it cannot be written to.

    Examples:
        >>> import tempfile
        >>> from robustvae.records import Lock
        >>> with tempfile.TemporaryDirectory() as folder, Lock(folder):
        ...     Lock(folder)
        Traceback (most recent call last):
        robustvae.errors.StorageError: ... is in use by process ...
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LOCK
        self._file: Any = None
        if fcntl is None:
            return
        try:
            make_folder(self.path.parent)
            while self._file is None:
                self._file = self._taken()
        except BlockingIOError:
            with contextlib.suppress(OSError, ValueError):
                holder = self.path.read_text(encoding="utf-8").strip()
                raise StorageError(
                    f"{folder} is in use by process {holder[:20]}: wait for it, or choose another "
                    "folder"
                ) from None
            raise StorageError(f"{folder} is in use by another process") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StorageError(f"{folder} cannot be written to: {reason}") from None

    def _taken(self) -> Any:
        """The locked file; None where the last holder removed it in between."""
        # never through a link, and no waiting for whoever else reads a pipe of that name
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.fdopen(os.open(self.path, flags, 0o666), "r+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.exists(self.path) or not os.path.sameopenfile(
                file.fileno(), (other := os.open(self.path, os.O_RDONLY))
            ):
                file.close()
                return None
            os.close(other)
            text = file.read(_LONGEST)
            if text.strip() and not text.strip().isdigit():
                raise ValueError(f"{self.path} is a file of someone else's: move it away")
        except BaseException:
            file.close()
            raise
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        return file

    def release(self) -> None:
        """Let go of the folder."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # removed before it is unlocked: no one else's file
                self.path.unlink()
            self._file.close()
            self._file = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
