import os

import pytest

from robustvae import errors, records


def test_failed_write_keeps_old_file(tmp_path, monkeypatch):
    path = records.write_text(tmp_path / "a.json", "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.StorageError, match="No space left"):
        records.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_unwritable_place_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.StorageError):
        records.write_text(tmp_path / "file" / "below.txt", "x")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', "null"])
def test_what_is_no_record_is_refused(text):
    with pytest.raises(errors.DataError, match="not a record"):
        records.Record.from_json(text)


def test_infinities_and_nan_form_in_json():
    assert records.plain([float("inf"), -float("inf"), float("nan"), 1.5, True, None]) == [
        "inf",
        "-inf",
        None,
        1.5,
        True,
        None,
    ]
