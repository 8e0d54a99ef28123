"""Files that are written whole, and sets of them that are switched together."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from robustvae.errors import DataError, StorageError
from robustvae.records.text import read_json, read_text


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file whole or not at all: beside its place, then renamed into it.

    Args:
        path: The file; missing folders above it are made.
        content: All of it.

    Raises:
        StorageError: The disk is full, the folder cannot be written to, or the like.

    Examples:
        >>> import tempfile, pathlib
        >>> from robustvae.records import write_text
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(pathlib.Path(folder) / "a" / "b.txt", "whole").read_text()
        'whole'
    """
    write_files({path: content})
    return Path(path)


def write_files(contents: Mapping[str | Path, bytes]) -> None:
    """Write files that belong together: all beside their places, then all renamed into them.

    Permissions are as the umask says. What killed processes left in the folders is finished or
    removed first, as `finish_switch` does.

    Args:
        contents: All of each file, by path; missing folders above are made.

    Raises:
        StorageError: As of `write_bytes`; then no file has changed.
    """
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    paths = [Path(name) for name in contents]
    beside: list[tuple[Path, Path]] = []
    replacement: list[tuple[Path, Path | None]] = []
    marks: list[Path] = []
    path = Path()
    try:
        for path in paths:
            make_folder(path.parent)
            if path.is_dir():  # a rename onto it would fail only after others were done
                raise IsADirectoryError(21, "Is a directory")
        for folder in _folders(paths):
            finish_switch(folder)
        for path, content in zip(paths, contents.values(), strict=True):
            temporary = _beside(path, token, "new")
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            beside.append((temporary, path))
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
        if len(beside) > 1:  # one rename alone needs no way forward and none back
            for folder in _folders(paths):
                mark = _beside(folder / "set", token, "whole")
                marks.append(mark)
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
                _sync(folder)
        for temporary, path in beside:
            backup = None
            if marks and path.exists():
                backup = _beside(path, token, "old")
                os.link(path, backup)
            replacement.append((path, backup))
            os.replace(temporary, path)
        for folder in _folders(paths):
            _sync(folder)
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        for mark in marks:  # first: without it, what is left is taken back and not finished
            with contextlib.suppress(OSError):
                os.unlink(mark)
        for target, backup in reversed(replacement):
            with contextlib.suppress(OSError):
                if backup is not None:
                    os.replace(backup, target)
                    # two links to one file: then the rename did nothing and left both
                    backup.unlink(missing_ok=True)
                elif not any(t.exists() and p == target for t, p in beside):
                    os.unlink(target)
        for temporary, _ in beside:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise StorageError(
            f"{path} could not be written: {getattr(error, 'strerror', None) or error}"
        ) from None
    for done in (*(backup for _, backup in replacement if backup is not None), *marks):
        with contextlib.suppress(OSError):
            os.unlink(done)


def finish_switch(folder: str | Path) -> None:
    """Finish what killed processes were switching in a folder, or undo it.

    A set whose files were all written, which a mark beside them says, is renamed into place to its
    end; of others nothing stays. Waits a second, at most, for a process that is switching now.
    Readers of sets call it first, so that no kill leaves them half a set.
    """
    folder = Path(folder)
    deadline = time.monotonic() + 1
    while any(
        match["kind"] == "whole" and is_alive(int(match["pid"])) and path.exists()
        for path, match in _leftovers(folder)
    ):
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    dead = [(path, match) for path, match in _leftovers(folder) if not is_alive(int(match["pid"]))]
    whole = {match["token"] for _, match in dead if match["kind"] == "whole"}
    # marks last: a kill in here leaves the same question to the next reader
    for path, match in sorted(dead, key=lambda pair: pair[1]["kind"] == "whole"):
        with contextlib.suppress(OSError):
            if match["kind"] == ("new" if match["token"] in whole else "old"):
                os.replace(path, folder / match["name"])
            path.unlink(missing_ok=True)


def make_folder(folder: str | Path) -> None:
    """Make a folder and those above it, where they are missing, at any depth.

    `Path.mkdir` calls itself once for each of them, and gives up at about a thousand.

    Raises:
        OSError: It cannot be made.

    Examples:
        >>> import tempfile, pathlib
        >>> from robustvae.records.files import make_folder
        >>> with tempfile.TemporaryDirectory() as top:
        ...     folder = pathlib.Path(top, "a", "b", "c")
        ...     make_folder(folder)
        ...     folder.is_dir()
        True
    """
    place, missing = Path(folder), []
    while not place.exists() and place != place.parent:
        missing.append(place)
        place = place.parent
    for place in reversed(missing):
        place.mkdir(exist_ok=True)


def write_set(
    folder: str | Path, contents: Mapping[str, bytes], remove: Sequence[str] = ()
) -> Path:
    """Write the files of one result into a folder, with a manifest of their hashes.

    Args:
        folder: Where to; made if it is missing.
        contents: All of each file, by its name within the folder.
        remove: Names that an earlier result may have left and that do not belong to this one.

    Returns:
        The path of `manifest.json`.

    Raises:
        StorageError: As of `write_files`; or a file there that no set of ours has written.

    Examples:
        >>> import tempfile
        >>> from robustvae.records import read_manifest, write_set
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_set(folder, {"a.txt": b"1"})
        ...     read_manifest(folder)
        {'a.txt': True}
    """
    folder = Path(folder)
    check_owned(folder, contents)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    manifest = json.dumps({"files": hashes}, indent=1, sort_keys=True) + "\n"
    paths: dict[str | Path, bytes] = {folder / name: data for name, data in contents.items()}
    write_files({**paths, folder / MANIFEST: manifest.encode()})
    for name in remove:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{folder / name} is of another result and cannot be removed: {error.strerror}"
            ) from None
    return folder / MANIFEST


def check_owned(folder: str | Path, names: Iterable[str]) -> None:
    """Raise `StorageError` where a file of such a name was written by somebody else.

    What stands in the folder's manifest is ours, and may be replaced.
    """
    folder = Path(folder)
    present = [name for name in (*names, MANIFEST) if (folder / name).is_file()]
    if not present:
        return
    try:
        owned = {*read_manifest(folder), MANIFEST}
    except DataError:
        owned = set()
    for name in present:
        if name not in owned:
            raise StorageError(
                f"{folder / name} was not written by an audit and would be lost: "
                "choose another folder"
            )


def is_file(path: Path) -> bool:
    """Whether a path leads to a regular file; not where no system allows the path.

    Examples:
        >>> from pathlib import Path
        >>> from robustvae.records.files import is_file
        >>> is_file(Path("x" * 5000))
        False
    """
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, a zero byte
        return False


def check_space(folder: str | Path, wanted: int) -> None:
    """Raise `StorageError` unless the disk of a folder has room for so many bytes.

    For what takes long and writes last. The folder itself need not be there yet.

    Examples:
        >>> from robustvae.records import check_space
        >>> check_space(".", 1000)
    """
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError:  # a file system that does not say
        return
    if free < wanted:
        raise StorageError(
            f"{folder} needs about {wanted / 2**20:.0f} MB and its disk has {free / 2**20:.0f}: "
            "make room, or choose another folder"
        )


def read_manifest(folder: str | Path) -> dict[str, bool]:
    """Whether each file of a set is the one that was written with it.

    Raises:
        DataError: No manifest, or one that cannot be read.
    """
    path = Path(folder) / MANIFEST
    finish_switch(folder)
    try:
        hashes = read_json(read_text(path))["files"]
        names = sorted(hashes)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read as a manifest: {error}; write the folder again"
        ) from None
    intact = {}
    for name in names:
        file = path.parent / Path(name).name
        intact[name] = file.is_file() and file_sha256(file) == hashes[name]
    return intact


MANIFEST = "manifest.json"
_LEFTOVER = re.compile(
    r"\.(?P<name>.+)\.(?P<token>(?P<pid>\d+)-[0-9a-f]{8})\.(?P<kind>new|old|whole)"
)


def _beside(path: Path, token: str, kind: str) -> Path:
    return path.parent / f".{path.name}.{token}.{kind}"


def _folders(paths: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(path.parent for path in paths))


def _leftovers(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    """What writers, dead or alive, have beside the files of a folder."""
    try:
        names = [name for name in os.listdir(folder) if name.startswith(".")]
    except OSError:
        return []
    matches = [(folder / name, _LEFTOVER.fullmatch(name)) for name in names]
    return [(path, match) for path, match in matches if match]


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs, whoever started it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs as somebody else
        return True
    return True


def _sync(folder: Path) -> None:
    """Make renames in a folder last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_folder(folder: str | Path) -> None:
    """Raise `StorageError` unless files can be written into `folder`, made where it is missing.

    For what takes long and writes last.
    """
    write_bytes(Path(folder) / ".writable", b"").unlink()


def write_text(path: str | Path, content: str) -> Path:
    """`write_bytes` of UTF-8 text."""
    return write_bytes(path, content.encode("utf-8"))


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
