"""The reader of pickled batches: it reads arrays, executes nothing, and refuses all else."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustvae import data, errors
from robustvae.data import cifar10
from robustvae.data.batches import read_batch

from .conftest import FEW, pixels, write_batches


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], dict[str, Any]]:
    def from_bytes(content: bytes) -> dict[str, Any]:
        path = tmp_path / "batch"
        path.write_bytes(content)
        return read_batch(path)

    return from_bytes


def as_python_2_wrote(array: np.ndarray, labels: list[int]) -> bytes:
    """The published batches' own form: protocol 2 of Python 2, with bytes as text."""
    rows, columns = array.shape
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03"
        b"U\x06labelsq\x04]q\x05(" + numbers + b"e"
        b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08"
        b"K\x00\x85U\x01b\x87Rq\t(K\x01M"
        + struct.pack("<H", rows)
        + b"M"
        + struct.pack("<H", columns)
        + b"\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b"
        b"(K\x03U\x01|"
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", array.size)
        + array.tobytes()
        + b"tb"
        b"U\tfilenamesq\x0c](U\x05a.pngU\x05b.pngeu."
    )


def test_reads_the_published_form(read: Callable[[bytes], dict[str, Any]]) -> None:
    array = pixels(2, 12)
    content = as_python_2_wrote(array, [3, 7])
    theirs = pickle.loads(content, encoding="latin-1")  # our own bytes are what they claim to be
    assert np.array_equal(theirs["data"], array)
    found = read(content)
    assert np.array_equal(found["data"], array)
    assert found["labels"] == [3, 7] and found["filenames"] == ["a.png", "b.png"]
    assert found["batch_label"] == "training batch 1 of 5"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, ">i4", np.float64, np.bool_])
@pytest.mark.parametrize("order", ["C", "F"])
def test_reads_what_pickle_writes(
    read: Callable[[bytes], dict[str, Any]], protocol: int, dtype: Any, order: Any
) -> None:
    array = np.asarray(pixels(3, 5).astype(dtype), order=order)
    content = {
        b"data": array, "labels": [1, 255, 256, -3, 2**31 - 1, 2**40], "none": None, "yes": True,
        "text": ("a", "é", "x" * 300), "bytes": b"\xff" * 300, "real": 0.5, "empty": [(), {}, []],
        "one": [1], 7: {"inner": 1},
    }  # fmt: skip
    found = read(pickle.dumps(content, protocol=protocol))
    assert np.array_equal(found.pop("data"), array)
    assert found == {
        str(k) if isinstance(k, int) else k: v for k, v in content.items() if k != b"data"
    }


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_malicious_batch_refused_and_not_run(
    read: Callable[[bytes], dict[str, Any]], tmp_path: Path, protocol: int
) -> None:
    trace = tmp_path / "trace"
    attempts = [
        Calls(os.system, f"touch {trace}"),
        Calls(eval, f"open({str(trace)!r}, 'w')"),
        Calls(np.save, str(trace), 1),
        Calls(getattr, "text", "upper"),
    ]
    for hidden in attempts:
        for content in (hidden, {b"data": hidden}, {b"data": pixels(1, 2), b"labels": [hidden]}):
            written = pickle.dumps(content, protocol=protocol)
            with pytest.raises(errors.DataError, match="must be a batch") as caught:
                read(written)
            assert "\n" not in str(caught.value)
    assert not trace.exists()
    pickle.loads(pickle.dumps(attempts[0], protocol=protocol))
    assert trace.exists(), "the attempt itself does nothing, so the test shows nothing"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        b"\x80\x02K\x01.",  # a number
        b"\x80\x02}q\x01",  # no end
        b"\x80\x02R.",  # a call of nothing
        b"\x80\x02}(K\x01K\x02tu.",  # an odd group
        b"\x80\x02}h\x05.",  # a memory that was never made
        b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.",  # an array of objects
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n)Rs.",  # an empty promise
        b"\x80\x02(i__main__\nX\n.",
        b"\x80\x02}]}s.",  # a list as a key
        b"\x80\x02}U\x01acnumpy\ndtype\nU\x02u1\x85R(K\x03K\x07tbs.",
        pickle.dumps({"a": os.system}),  # a name that is not called
        pickle.dumps({"a": {1, 2}}),  # a set
        pickle.dumps({"a": np.array([None])}),
        pickle.dumps({"a": np.float64(1)}),
        pickle.dumps({"a": 1j}),
        pickle.dumps({"a": Path("x")}),
    ],
)
def test_refuses_what_is_no_batch(read: Callable[[bytes], dict[str, Any]], content: bytes) -> None:
    with pytest.raises(errors.DataError, match="must be a batch") as caught:
        read(content)
    assert "\n" not in str(caught.value)


WHOLE = as_python_2_wrote(pixels(2, 12), [3, 7])


@pytest.mark.parametrize("keep", range(0, len(WHOLE), 7))
def test_a_truncated_batch(read: Callable[[bytes], dict[str, Any]], keep: int) -> None:
    with pytest.raises(errors.DataError):
        read(WHOLE[:keep])


@settings(max_examples=300, deadline=None)
@given(
    at=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6),
    whole=st.sampled_from([WHOLE, pickle.dumps({"data": pixels(2, 3), "labels": [1]}, 4)]),
)
def test_damaged_batch_reads_or_raises(
    at: list[tuple[int, int]], whole: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(whole)
    for place, value in at:
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(bytes(content))
    try:
        found = read_batch(path)
    except errors.DataError:
        return
    assert isinstance(found, dict)


def test_reads_cifar10_batches(tmp_path: Path, few_of_each: None) -> None:
    folder = write_batches(tmp_path)
    train, test = (data.load("cifar10", split, tmp_path) for split in ("train", "test"))
    assert (train.name, test.name) == ("cifar10", "cifar10")
    assert train.y.bincount().tolist() == [FEW["train"]] * 10
    first = pickle.loads((folder / "data_batch_2").read_bytes())[b"data"][3]
    second = train[len(train) // 5 + 3]
    wanted = first.reshape(3, 32, 32) / 255  # planes of red, green and blue
    np.testing.assert_allclose(second.x[0].numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({b"data": pixels(2, 3072).astype(float)}, "an array of bytes"),
        ({b"data": pixels(2, 30)}, "bytes, got 30"),
        ({b"data": [1, 2]}, "an array of bytes"),
        ({b"labels": [1]}, "one label for each"),
        ({b"labels": [10] * 40}, "one label for each|from 0 to 9"),
        ({b"labels": None}, "one label for each"),
    ],
)
def test_other_batches_are_refused(
    tmp_path: Path, few_of_each: None, content: dict[str, Any], message: str
) -> None:
    write_batches(tmp_path, content)
    with pytest.raises(errors.DataError, match=message):
        data.load("cifar10", "train", tmp_path)


def test_cifar10_of_other_counts(tmp_path: Path) -> None:
    write_batches(tmp_path)
    with pytest.raises(errors.DataError, match="wanted 5,000 images of each class, got"):
        data.load("cifar10", "train", tmp_path)
    with pytest.raises(errors.DataError, match="wanted 1,000 images of each class, got"):
        data.load("cifar10", "test", tmp_path)


def test_missing_says_where_it_looked(tmp_path: Path) -> None:
    for name in ("cifar10", "cifar10_jpeg", "celeba", "color_mnist"):
        with pytest.raises(errors.DataError, match="missing") as caught:
            data.load(name, root=tmp_path)
        assert str(tmp_path) in str(caught.value) and "ROBUSTVAE_DATA" in str(caught.value)
    with pytest.raises(errors.DataError, match="download=True"):
        data.load("cifar10", root=tmp_path)


def test_download_of_cifar10(
    tmp_path: Path, few_of_each: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib
    import tarfile

    folder = write_batches(tmp_path / "published")
    (folder / "readme.html").write_text("more than is wanted")
    archive = tmp_path / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as made:
        made.add(folder, cifar10.FOLDER)
    monkeypatch.setattr(cifar10, "URL", archive.as_uri())
    with pytest.raises(errors.DataError, match="MD5"):
        data.load("cifar10", "train", tmp_path / "new", download=True)
    md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(cifar10, "MD5", md5)
    assert len(data.load("cifar10", "train", tmp_path / "new", download=True)) == 50
    assert not (tmp_path / "new" / cifar10.FOLDER / "readme.html").exists()
    with tarfile.open(archive, "w:gz"):
        pass
    md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(cifar10, "MD5", md5)
    with pytest.raises(errors.DataError, match="must give the archive"):
        data.load("cifar10", "train", tmp_path / "newer", download=True)
