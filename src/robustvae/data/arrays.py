"""Arrays of pixels as a source, and the npz, npy and safetensors files they come in."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, final

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from robustvae.errors import DataError
from robustvae.records.text import read_json

BYTES = 2**29  # of a compressed array, which is read whole
LOCAL_HEADER = 30  # bytes of a zip member's own header, before its name and extra field
CHANNELS = (1, 3)
SUFFIXES = (".npz", ".npy", ".safetensors")
HEADER = 2**20  # bytes of a safetensors header: a name, a type, a shape and two places an array
STORED = {  # types of safetensors that numpy has
    "BOOL": np.bool_,
    "U8": np.uint8,
    "U16": np.uint16,
    "I32": np.int32,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}
WHITE = {"uint8": 255.0, "uint16": 65535.0}  # what stands for 1 in whole numbers


@final
@dataclass(frozen=True, eq=False)
class Pixels:
    """An array of images, turned into [0, 1] as they are read.

    Args:
        array: Bytes, or numbers in [0, 1]; (N, H, W), (N, H, W, C) or (N, C, H, W). A mapped file
            is read as it is asked for.
        last: Whether the channels are the last axis.
    """

    array: np.ndarray
    last: bool = False

    @property
    def shape(self) -> Sequence[int]:
        """(N, C, H, W)."""
        count, *sizes = self.array.shape
        if len(sizes) == 2:
            return count, 1, *sizes
        return (count, sizes[2], *sizes[:2]) if self.last else (count, *sizes)

    def read(self, rows: Tensor, epoch: int) -> Tensor:
        """Images in [0, 1], (n, C, H, W)."""
        values = np.array(self.array[rows.numpy()])
        if values.dtype == np.uint16:  # which torch does not turn around
            values = values.astype(np.float32)
        x = torch.from_numpy(values)
        x = x.movedim(-1, 1).contiguous() if self.last else x.reshape(-1, *self.shape[1:])
        return x.to(torch.float32).div_(WHITE.get(str(self.array.dtype), 1.0))


def pixels_of(array: np.ndarray, where: str | Path) -> Pixels:
    """The source of an array, with its channels where they are: last if that axis is 1 or 3.

    Raises:
        DataError: No images are stored like this.
    """
    kinds = (np.bool_, np.uint8, np.uint16, np.float16, np.float32, np.float64)
    if array.dtype not in kinds or array.ndim not in (3, 4) or 0 in array.shape:
        raise DataError(
            f"{where} holds no images: wanted bytes or numbers in [0, 1] of (N, H, W), "
            f"(N, H, W, C) or (N, C, H, W), got {array.dtype} of {array.shape}"
        )
    last = array.ndim == 4 and array.shape[3] in CHANNELS
    if array.ndim == 4 and not last and array.shape[1] not in CHANNELS:
        raise DataError(f"{where} must hold images of 1 or 3 channels, got {array.shape}")
    return Pixels(array, last)


def labels_of(values: np.ndarray, count: int, where: str | Path) -> Tensor:
    """Whole numbers as labels, (N,).

    Raises:
        DataError: Not whole numbers, or not as many as there are images.
    """
    if values.dtype.kind not in "iu" or values.shape != (count,):
        raise DataError(
            f"{where} holds no labels of its {count} images: "
            f"wanted whole numbers of ({count},), got {values.dtype} of {values.shape}"
        )
    return torch.tensor(values.astype(np.int64))


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array's numbers lie in a mapped file, as of `numpy.load(path, mmap_mode="r")`.

    Examples:
        >>> import numpy as np
        >>> from robustvae.data.arrays import is_mapped
        >>> is_mapped(np.zeros((2, 3)))
        False
    """
    part: object = array
    while isinstance(part, np.ndarray):
        if isinstance(part, np.memmap):
            return True
        part = part.base
    return False


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz, npy or safetensors file by name; that of an npy file is `images`.

    All but what an npz file has compressed is mapped: read as it is asked for.

    Raises:
        DataError: Missing, truncated or damaged, or holding objects.
    """
    if path.suffix == ".npz":
        return read_npz(path)
    try:
        if path.suffix == ".npy":
            return {"images": npy.open_memmap(path, mode="r")}
        return _read_safetensors(path)
    except (OSError, EOFError, ValueError, KeyError, TypeError, OverflowError) as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} cannot be read, it may be truncated or damaged: {line}") from None


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    total = path.stat().st_size
    with path.open("rb") as raw:
        (size,) = struct.unpack("<Q", raw.read(8).ljust(8, b"\0"))
        if not 0 < size <= min(HEADER, total - 8):
            raise ValueError(f"a header of {size} bytes in a file of {total}")
        header = read_json(raw.read(size))
    arrays: dict[str, np.ndarray] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape = np.dtype(STORED[entry["dtype"]]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        byte_count = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if not 0 <= begin <= end <= total - 8 - size or end - begin != byte_count:
            raise ValueError(f"{name} announces {byte_count} bytes, holds {end - begin}")
        if byte_count:
            arrays[name] = np.memmap(path, dtype, "r", 8 + size + begin, shape)
    return arrays


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name; pickled objects are refused.

    An array that is stored uncompressed, as `numpy.savez` does, is mapped rather than read.

    Raises:
        DataError: Missing, truncated or damaged, or holding objects.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
            return {
                member.filename.removesuffix(".npy"): _read_member(path, archive, member, raw)
                for member in archive.infolist()
                if member.filename.endswith(".npy")
            }
    except (
        *(OSError, EOFError, ValueError, KeyError, RuntimeError, MemoryError, struct.error),
        *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    ) as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} cannot be read, it may be truncated or damaged: {line}") from None


def _read_member(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, raw: BinaryIO
) -> np.ndarray:
    with archive.open(member) as content:
        version = npy.read_magic(content)
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"{member.filename} has version {version} of the format")
        shape, by_columns, dtype = readers[version](content)
        header = content.tell()
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds pickled objects, which are not read")
        byte_count = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if byte_count != member.file_size - header:
            raise ValueError(
                f"{member.filename} announces {byte_count} bytes, holds {member.file_size - header}"
            )
        if member.compress_type != zipfile.ZIP_STORED and byte_count > BYTES:
            raise ValueError(
                f"{member.filename} unfolds to {byte_count / 2**20:.0f} MB: store it uncompressed "
                "(numpy.savez), and it is read as it is asked for"
            )
        order: Literal["C", "F"] = "F" if by_columns else "C"
        if member.compress_type == zipfile.ZIP_STORED and byte_count:
            raw.seek(member.header_offset)
            name, extra = struct.unpack("<HH", raw.read(LOCAL_HEADER)[26:])
            start = member.header_offset + LOCAL_HEADER + name + extra + header
            return np.memmap(path, dtype, "r", start, shape, order)
        return np.frombuffer(content.read(), dtype).reshape(shape, order=order)
