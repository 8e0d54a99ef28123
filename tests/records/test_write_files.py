"""Files that belong together are written together, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from robustvae.errors import StorageError
from robustvae.records import write_files


def test_all_are_written(tmp_path: Path) -> None:
    write_files({tmp_path / "new" / "a": b"1", tmp_path / "b": b"2"})
    assert (tmp_path / "new" / "a").read_bytes() == b"1"
    assert (tmp_path / "b").read_bytes() == b"2"


@pytest.mark.parametrize("fails_at", [1, 2])
def test_none_is_written_where_one_fails(
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
