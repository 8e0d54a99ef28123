"""Files that belong together are written together, or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from robustvae.errors import StorageError
from robustvae.records import finish_switch, read_manifest, write_files, write_set
from robustvae.records.files import make_folder


def test_all_are_written(tmp_path: Path) -> None:
    write_files({tmp_path / "new" / "a": b"1", tmp_path / "b": b"2"})
    assert (tmp_path / "new" / "a").read_bytes() == b"1"
    assert (tmp_path / "b").read_bytes() == b"2"


@pytest.mark.parametrize("fails_at", [1, 2])
def test_one_failure_writes_nothing(
    tmp_path: Path, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    write_files(dict.fromkeys(paths, b"old"))
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=f"{paths[fails_at - 1]} could not be written: No space"):
        write_files(dict.fromkeys(paths, b"new"))
    assert [path.read_bytes() for path in paths] == [b"old", b"old"]
    assert sorted(tmp_path.iterdir()) == paths


def test_set_has_a_manifest(tmp_path: Path) -> None:
    write_set(tmp_path, {"a": b"1", "b": b"2"})
    assert read_manifest(tmp_path) == {"a": True, "b": True}
    (tmp_path / "b").write_bytes(b"3")
    (tmp_path / "a").unlink()
    assert read_manifest(tmp_path) == {"a": False, "b": False}


def test_folder_in_the_way_changes_nothing(tmp_path: Path) -> None:
    write_set(tmp_path, {"a": b"1", "b": b"1"})
    (tmp_path / "b").unlink()
    (tmp_path / "b").mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        write_set(tmp_path, {"a": b"2", "b": b"2"})
    assert (tmp_path / "a").read_bytes() == b"1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "manifest.json"]


def test_what_is_no_file_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(StorageError, match="must be a regular file"):
            write_files({tmp_path / "a": b"1", tmp_path / name: b"1"})
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("fails_at", [1, 2])
def test_failed_rename_is_taken_back(
    tmp_path: Path, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    write_files(dict.fromkeys(paths, b"old"))
    real, calls = os.replace, []

    def failing(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(StorageError, match="No space"):
        write_files(dict.fromkeys(paths, b"new"))
    assert [path.read_bytes() for path in paths] == [b"old", b"old"]
    assert sorted(tmp_path.iterdir()) == paths


def test_umask_decides_permissions(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_files({tmp_path / "private": b"1"})
    finally:
        os.umask(before)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


def test_leftovers_of_the_dead_go(tmp_path: Path) -> None:
    dead = tmp_path / ".a.999999999-0123abcd.new"
    mine = tmp_path / f".a.{os.getppid()}-0123abcd.new"
    for path in (dead, mine):
        path.write_bytes(b"half")
    write_files({tmp_path / "a": b"1"})
    assert not dead.exists() and mine.exists()


def test_folders_are_made_deep(tmp_path):
    folder = tmp_path.joinpath(*["a"] * 1200)
    make_folder(folder)
    assert folder.is_dir()
    for path in (folder, *folder.parents):  # Python's own removal calls itself as often
        if path == tmp_path:
            break
        path.rmdir()


def write_two(folder: Path, content: bytes) -> None:
    write_set(folder, {"a": content, "b": content}, remove=["c"])


def write_apart(folder: Path, content: bytes) -> None:
    files = {folder / name: content for name in ("a", "b/a", "c/d/a")}
    write_files(files, [folder / "c/d/b"])


def killed_in_call(
    name: str, number: int, folder: Path, content: bytes, write: Callable[[Path, bytes], None]
) -> bool:
    """Whether a process died in a call of `os` while it wrote a set of two files."""
    process = os.fork()
    if process == 0:
        real, calls = getattr(os, name), []

        def deadly(*arguments: object) -> object:
            calls.append(arguments)
            if len(calls) == number:
                os._exit(9)
            return real(*arguments)

        setattr(os, name, deadly)
        write(folder, content)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("name", ["fsync", "link", "replace", "unlink"])
def test_kill_leaves_whole_sets(tmp_path: Path, name: str, is_first: bool) -> None:
    for number in range(1, 40):
        folder = tmp_path / str(number)
        if not is_first:
            write_set(folder, {"a": b"old", "b": b"old", "c": b"old"})
        died = killed_in_call(name, number, folder, b"new", write_two)
        finish_switch(folder)
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        if is_first and not found:
            continue
        content = found["a"]
        names = {"a", "b", "manifest.json"} | ({"c"} if content == b"old" else set())
        assert set(found) == names, (name, number)
        assert set(read_manifest(folder).values()) == {True}, (name, number)
        if not died:
            assert content == b"new"
            return
    raise AssertionError(f"{name} was called 40 times")


@pytest.mark.parametrize("reader", ["", "c/d"])
@pytest.mark.parametrize("name", ["fsync", "link", "replace", "unlink"])
def test_kill_leaves_folders_together(tmp_path: Path, name: str, reader: str) -> None:
    for number in range(1, 40):
        folder = tmp_path / str(number)
        write_files({folder / place: b"old" for place in ("a", "b/a", "c/d/a", "c/d/b")})
        died = killed_in_call(name, number, folder, b"new", write_apart)
        finish_switch(folder / reader)  # a reader of one folder settles all, or there is nothing
        content = (folder / reader / "a").read_bytes()
        for place in ("", "b", "c/d"):
            finish_switch(folder / place)
        found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
        names = {"a", "b/a", "c/d/a"} | ({"c/d/b"} if content == b"old" else set())
        assert set(found) == names, (name, number)
        assert {path.read_bytes() for path in found.values()} == {content}, (name, number)
        if not died:
            assert content == b"new"
            return
    raise AssertionError(f"{name} was called 40 times")


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, {"a": b"old", "b": b"old"})
    real = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if Path(target).name == "b" and str(source).endswith(".new"):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_set(tmp_path, {"a": b"new", "b": b"new"})
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "manifest.json"}
    assert set(read_manifest(tmp_path).values()) == {True}
    assert (tmp_path / "a").read_bytes() == b"old"


def test_own_number_is_no_writer(tmp_path: Path) -> None:
    """What an earlier process of this one's number left, such as in a container, is finished."""
    token = f"{os.getpid()}-0123abcd"
    (tmp_path / f".set.{token}.whole").write_text("[]")
    (tmp_path / f".a.{token}.new").write_bytes(b"2")
    finish_switch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_reader_waits_for_a_writer(tmp_path: Path) -> None:
    write_set(tmp_path, {"a": b"1"})
    token = f"{os.getppid()}-0123abcd"
    (tmp_path / f".set.{token}.whole").touch()
    (tmp_path / f".a.{token}.new").write_bytes(b"2")
    begin = time.monotonic()
    finish_switch(tmp_path)
    assert time.monotonic() - begin >= 0.9
    assert (tmp_path / "a").read_bytes() == b"1"
    assert (tmp_path / f".a.{token}.new").exists()
