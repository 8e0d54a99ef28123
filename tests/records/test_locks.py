"""One run to a folder, room before work, and nobody else's files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from robustvae.errors import StorageError
from robustvae.records import Lock, check_owned, check_space, files, write_set


def test_folder_has_one_holder(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "new")
    with pytest.raises(StorageError, match=f"in use by process {os.getpid()}"):
        Lock(tmp_path / "new")
    lock.release()
    assert not list((tmp_path / "new").iterdir())
    with Lock(tmp_path / "new"):
        pass


def test_killed_holder_lets_go(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from robustvae.records import Lock; lock = Lock(sys.argv[1]); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / ".lock").exists()
    with Lock(tmp_path):
        pass


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "below", "\0"):
        with pytest.raises(StorageError):
            Lock(place)


def test_room_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage(100, 0, 100))
    check_space(tmp_path / "not" / "there", 100)
    with pytest.raises(StorageError, match="make room"):
        check_space(tmp_path / "not" / "there", 101)


def test_strangers_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    write_set(tmp_path, {"a": b"1"})
    write_set(tmp_path, {"a": b"2"})
    (tmp_path / "b").write_text("mine")
    with pytest.raises(StorageError, match="would be lost"):
        write_set(tmp_path, {"a": b"3", "b": b"3"})
    assert (tmp_path / "a").read_bytes() == b"2" and (tmp_path / "b").read_text() == "mine"
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(StorageError, match="would be lost"):
        check_owned(tmp_path, ["a"])


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """Neither what a link of the lock's name points to, nor a file of that name with other text."""
    important = tmp_path / "important.txt"
    important.write_text("keep me\n" * 50)
    linked, taken = tmp_path / "linked", tmp_path / "taken"
    for folder in (linked, taken):
        folder.mkdir()
    (linked / ".lock").symlink_to("../important.txt")
    (taken / ".lock").write_text("mine")
    for folder in (linked, taken):
        with pytest.raises(StorageError, match="cannot be written to"):
            Lock(folder)
    assert important.read_text() == "keep me\n" * 50
    assert (linked / ".lock").is_symlink() and (taken / ".lock").read_text() == "mine"
