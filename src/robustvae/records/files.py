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

from robustvae.arguments import checked
from robustvae.errors import DataError, StorageError, check_type, single_line
from robustvae.records.text import read_json, read_text


@checked()
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


@checked()
def write_files(contents: Mapping[str | Path, bytes], remove: Iterable[str | Path] = ()) -> None:
    """Write files that belong together: all beside their places, then all renamed into them.

    Permissions are as the umask says. What killed processes left in the folders is finished or
    removed first, as `finish_switch` does. A kill leaves the whole change or none of it, also where
    the files lie in several folders, once `finish_switch` has looked at one of them.

    Args:
        contents: All of each file, by path; missing folders above are made.
        remove: Files whose removal belongs to the same change; they may be missing.

    Raises:
        StorageError: As of `write_bytes`; then no file has changed.
        DtypeError: Something else than bytes.
    """
    for content in contents.values():
        check_type(content, "the content of a file", bytes)
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    beside: list[Path] = []
    marks: list[Path] = []
    replacement: list[tuple[Path, str, Path | None]] = []
    path = Path()
    _UNDER_WAY.add(token)
    try:
        for path in map(Path, contents):
            make_folder(path.parent)
            if path.is_dir():  # a rename onto it would fail only after others were done
                raise IsADirectoryError(21, "Is a directory")
            if path.exists() and not path.is_file():  # /dev/null would be a file from then on
                raise OSError(22, "it must be a regular file, or not be there yet")
        for folder in _folders(map(Path, contents)):
            finish_switch(folder)
        steps = [(Path(name), "new", content) for name, content in contents.items()]
        steps += [(Path(name), "gone", b"") for name in remove if Path(name).is_file()]
        folders = _folders(path for path, _, _ in steps)
        for path, kind, content in steps:
            beside.append(_beside(path, token, kind))
            _create(beside[-1], content)
        if len(steps) > 1:  # one rename alone needs no way forward and none back
            _commit(folders, token, marks)
        for path, kind, _ in steps:
            backup = None
            if marks and path.exists():
                backup = _beside(path, token, "old")
                os.link(path, backup)
            replacement.append((path, kind, backup))
            if kind == "new":
                os.replace(_beside(path, token, kind), path)
            else:
                os.unlink(path)
        for folder in folders:
            _sync(folder)
    except BaseException as error:
        # what commits goes first: without it, what is left is taken back and not finished
        _unlink(reversed(marks))
        for target, kind, backup in reversed(replacement):
            with contextlib.suppress(OSError):
                if backup is not None:
                    os.replace(backup, target)
                    # two links to one file: then the rename did nothing and left both
                    backup.unlink(missing_ok=True)
                elif not _beside(target, token, kind).exists():
                    os.unlink(target)
        _unlink(beside)
        if not isinstance(error, OSError | ValueError):  # a path with a zero byte is a ValueError
            raise
        raise StorageError(
            f"{path} could not be written: {getattr(error, 'strerror', None) or error}"
        ) from None
    finally:
        _UNDER_WAY.discard(token)
    _unlink([*(backup for _, _, backup in replacement if backup is not None), *beside, *marks])


@checked()
def finish_switch(folder: str | Path) -> None:
    """Finish what killed processes were switching in a folder, or undo it.

    A set whose files were all written, which a mark beside them says, is renamed into place to its
    end, in whatever folders it lies; of others nothing stays. Waits a second, at most, for a
    process that is switching now. Readers of sets call it first, so that no kill leaves them half
    a set.
    """
    folder = Path(folder)
    deadline = time.monotonic() + 1
    while any(
        match["kind"] in ("whole", "part") and not _is_abandoned(match) and path.exists()
        for path, match in _leftovers(folder)
    ):
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    tokens = {match["token"] for _, match in _leftovers(folder) if _is_abandoned(match)}
    for token in sorted(tokens):
        _settle(folder, token)


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


@checked()
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
    gone = [folder / name for name in remove]
    write_files(with_manifest(folder, contents), gone)
    return folder / MANIFEST


def with_manifest(folder: str | Path, contents: Mapping[str, bytes]) -> dict[str | Path, bytes]:
    """The files of a set by path, with the manifest of their hashes; what `write_files` takes.

    Examples:
        >>> from robustvae.records.files import with_manifest
        >>> [path.name for path in with_manifest("folder", {"a.txt": b"1"})]
        ['a.txt', 'manifest.json']
    """
    folder = Path(folder)
    paths: dict[str | Path, bytes] = {folder / name: data for name, data in contents.items()}
    return {**paths, folder / MANIFEST: manifest(contents).encode()}


def manifest(contents: Mapping[str, bytes]) -> str:
    """The text of a manifest: hashes of the files of a set, by name.

    Examples:
        >>> from robustvae.records.files import manifest
        >>> '"a.txt": "6b86' in manifest({"a.txt": b"1"})
        True
    """
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return json.dumps({"files": hashes}, indent=1, sort_keys=True) + "\n"


@checked()
def check_owned(folder: str | Path, names: Iterable[str]) -> None:
    """Raise `StorageError` where a file of such a name was written by somebody else.

    What stands in the folder's manifest is ours, and may be replaced.
    """
    folder = Path(folder)
    finish_switch(folder)
    present = [name for name in (*names, MANIFEST) if (folder / name).is_file()]
    if not present:
        return
    try:
        own_names = {*read_manifest(folder), MANIFEST}
    except DataError:
        own_names = set()
    for name in present:
        if name not in own_names:
            raise StorageError(
                f"{folder / name} was not written by an audit and would be lost: "
                "choose another folder"
            )


def check_sign(path: Path, sign: str) -> None:
    """Raise `StorageError` where a file lies that does not hold the words that ours hold.

    Examples:
        >>> import pathlib, tempfile
        >>> from robustvae.records.files import check_sign
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_sign(pathlib.Path(folder) / "README.md", "made by robustvae")
    """
    if not is_file(path):
        return
    with contextlib.suppress(OSError, ValueError):
        if sign in read_text(path):
            return
    raise StorageError(
        f"{path} was not written by this library and would be lost: choose another folder"
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


@checked()
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
            f"{folder} needs about {wanted / 2**20:.1f} MB and its disk has {free / 2**20:.1f}: "
            "make room, or choose another folder"
        )


@checked()
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
MARKS = ".set.*.whole"
"""The names of what says that a change in a folder may be finished."""
_LEFTOVER = re.compile(
    r"\.(?P<name>.+)\.(?P<token>(?P<pid>\d+)-[0-9a-f]{8})\.(?P<kind>new|gone|old|mark|part|whole)"
)
_UNDER_WAY: set[str] = set()
"""Tokens of the changes that this process makes now; of its number there may have been others."""


def _beside(path: Path, token: str, kind: str) -> Path:
    return path.parent / f".{path.name}.{token}.{kind}"


def _create(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _commit(folders: Sequence[Path], token: str, marks: list[Path]) -> None:
    """Say that a change may be finished: by one rename, in the first of its folders.

    The mark there names the other folders, and a file in each of them leads to it. What is made
    is added to `marks`, in the order in which it may be removed after the change.
    """
    first, *others = folders
    whole = _beside(first / "set", token, "whole")
    for folder in others:
        marks.append(_beside(folder / "set", token, "part"))
        _create(marks[-1], os.path.relpath(first, folder).encode())
        _sync(folder)
    temporary = _beside(first / "set", token, "mark")
    marks.append(temporary)
    names = [os.path.relpath(folder, first) for folder in others]
    _create(temporary, json.dumps(names).encode())
    marks.append(whole)
    os.replace(temporary, whole)
    _sync(first)


def _settle(folder: Path, token: str) -> None:
    """Finish or undo the change of a token, which nobody makes any more."""
    first, places = folder, [folder]
    with contextlib.suppress(OSError, ValueError):
        first = folder / read_text(_beside(folder / "set", token, "part"))
    mark = _beside(first / "set", token, "whole")
    is_whole = mark.exists()
    if is_whole:
        with contextlib.suppress(OSError, ValueError, TypeError):
            places = [first, *(first / name for name in read_json(read_text(mark)))]
    for place in places:
        for path, match in _of_token(place, token):
            if match["kind"] == "whole":
                continue
            with contextlib.suppress(OSError):
                if match["kind"] == ("new" if is_whole else "old"):
                    os.replace(path, place / match["name"])
                elif match["kind"] == "gone" and is_whole:
                    (place / match["name"]).unlink(missing_ok=True)
                path.unlink(missing_ok=True)
    # last, and not where a file could not be moved: then the next reader has the same question
    remaining = [match["kind"] for place in places for _, match in _of_token(place, token)]
    if not {"new", "gone"} & set(remaining):
        _unlink([mark])


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


def _of_token(folder: Path, token: str) -> list[tuple[Path, re.Match[str]]]:
    return [(path, match) for path, match in _leftovers(folder) if match["token"] == token]


def _is_abandoned(match: re.Match[str]) -> bool:
    """Whether nobody makes the change any more that a file beside its place belongs to."""
    pid = int(match["pid"])
    return match["token"] not in _UNDER_WAY if pid == os.getpid() else not is_alive(pid)


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


@checked()
def check_folder(folder: str | Path) -> None:
    """Raise `StorageError` unless files can be written into `folder`, made where it is missing.

    For what takes long and writes last.
    """
    write_bytes(Path(folder) / ".writable", b"").unlink()


@checked()
def check_file(path: str | Path) -> None:
    """Raise `StorageError` unless `write_bytes` could write this file, which it does at the end.

    Examples:
        >>> from robustvae.records import check_file
        >>> check_file("/dev/null")
        Traceback (most recent call last):
        robustvae.errors.StorageError: /dev/null must be a regular file, or not be there yet
    """
    path = Path(path)
    try:
        is_other = path.exists() and not path.is_file()
    except (OSError, ValueError):  # a name that is too long, a zero byte: the folder's check says
        is_other = False
    if is_other:
        raise StorageError(f"{path} must be a regular file, or not be there yet")
    check_folder(path.parent)


@checked()
def write_text(path: str | Path, content: str) -> Path:
    """`write_bytes` of UTF-8 text."""
    return write_bytes(path, content.encode("utf-8"))


@checked()
def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        StorageError: It cannot be read.
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"{single_line(str(path), 200)} cannot be read: {reason}") from None
