"""Lists of a million files in little memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import final, overload

import numpy as np

from robustvae.data.pixels import SUFFIXES
from robustvae.errors import DataError


@final
class FileList(Sequence[Path]):
    """Paths of files in some folders, kept as the bytes of their names.

    A `Path` takes half a kilobyte, a name here about twenty bytes.

    Args:
        groups: Folders, and names of files in them, in their order; empty ones are passed over.

    Examples:
        >>> from pathlib import Path
        >>> from robustvae.data.listing import FileList
        >>> files = FileList([(Path("a"), ["0.png", "1.png"]), (Path("b"), ["0.png"])])
        >>> len(files), str(files[2])
        (3, 'b/0.png')
    """

    def __init__(self, groups: Iterable[tuple[Path, Sequence[str]]]) -> None:
        self._folders: list[Path] = []
        blobs, counts, lengths = [], [0], [np.zeros(1, dtype=np.int64)]
        for folder, names in groups:
            parts = [os.fsencode(name) for name in names]
            if not parts:
                continue
            self._folders.append(folder)
            counts.append(len(parts))
            lengths.append(np.fromiter(map(len, parts), dtype=np.int64, count=len(parts)))
            blobs.append(b"".join(parts))
        self._names = b"".join(blobs)
        self._places = np.concatenate(lengths).cumsum()
        self._firsts = np.cumsum(counts)

    def groups(self) -> list[tuple[Path, int]]:
        """Each folder that has files, and how many."""
        return list(zip(self._folders, np.diff(self._firsts).tolist(), strict=True))

    def __len__(self) -> int:
        """How many files."""
        return len(self._places) - 1

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | Sequence[Path]:
        """One path, or a list of some."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # raises as a list does
        group = int(np.searchsorted(self._firsts, place, side="right")) - 1
        begin, end = self._places[place], self._places[place + 1]
        return self._folders[group] / os.fsdecode(self._names[begin:end])


def image_names(folder: Path) -> list[str]:
    """Names of the images in a folder, sorted: regular files with the suffix of an image.

    Files whose name begins with a dot are none. No file is opened or asked for its size.

    Raises:
        DataError: The folder cannot be read.
    """
    return sorted(
        entry.name
        for entry in _entries(folder)
        if os.path.splitext(entry.name)[1].lower() in SUFFIXES
        and not entry.name.startswith(".")
        and _is_file(entry)
    )


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, in the order of their names.

    Raises:
        DataError: The folder cannot be read.
    """
    return sorted(Path(entry.path) for entry in _entries(folder) if entry.is_dir())


def _entries(folder: Path) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from None


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False
