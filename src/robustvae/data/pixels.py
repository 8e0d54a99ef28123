"""One reader of image files: every depth by its own scale, and nothing that it does not know."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from robustvae.data.space import within_unit
from robustvae.errors import DataError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
PIXELS = 2**25  # of one file: 5,800 pixels square; decoding takes about ten bytes for each
BYTES = 2**28  # of one file, before it is decoded
SAMPLE_BITS, SAMPLE_FORMAT = 258, 339  # tags of TIFF

GRAY = {"1": 1.0, "L": 255.0, "I;16": 65535.0, "I;16L": 65535.0, "I;16B": 65535.0, "F": 1.0}
"""Modes of one channel and what stands for white; float files hold numbers in [0, 1]."""
COLOR = {"RGB", "CMYK", "YCbCr"}
ALPHA = {"LA": "L", "PA": "RGB", "RGBA": "RGB", "La": "L", "RGBa": "RGB"}
"""Modes with transparency, and what they are without; they are laid on white."""


def read_pixels(path: Path, channels: int | None, *, guessed: bool = False) -> Tensor:
    """One image in [0, 1], (1, C, H, W), float32, turned as its camera was.

    Args:
        path: The file.
        channels: 1 or 3; None takes what the file has.
        guessed: Whether `channels` was taken from another file: then no color is thrown away.

    Raises:
        DataError: Missing, damaged, too large, an animation, or of a kind that is not known.
    """
    try:
        if path.stat().st_size > BYTES:
            raise DataError(f"{path} is larger than {BYTES // 2**20} MB: give a smaller file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower
            with Image.open(path, formats=FORMATS) as image:
                return _pixels(image, path, channels, guessed)
    except DataError:
        raise
    except (
        *(OSError, ValueError, SyntaxError, EOFError, MemoryError, OverflowError, KeyError),
        *(TypeError, Image.DecompressionBombError),
    ) as error:
        line = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{path} cannot be read as an image: {line}") from None


def _pixels(image: Image.Image, path: Path, channels: int | None, guessed: bool) -> Tensor:
    width, height = image.size
    if width * height > PIXELS:
        raise DataError(
            f"{path} has {width} x {height} pixels, more than the {PIXELS:,} that are read: "
            "scale it down first"
        )
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{path} is an animation or has several pages: save one of them")
    kind = image.mode
    if kind not in {*GRAY, *COLOR, *ALPHA, "I", "P"}:
        raise DataError(
            f"{path} has pixels of mode {kind!r}, which is not read: save it as gray or RGB"
        )
    white = _white(image, path)
    image = ImageOps.exif_transpose(image)
    if kind == "P":
        transparent = "transparency" in image.info
        image = image.convert("RGBA" if transparent else "RGB")
        kind = image.mode
    if kind in ALPHA:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image).convert(ALPHA[kind])
    elif kind in COLOR:
        image = image.convert("RGB")
    array = np.array(image)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    planes = array.shape[2] if array.ndim == 3 else 1
    if guessed and channels == 1 and planes == 3:
        raise DataError(
            f"{path} is in color where the first image is gray: say channels=1 or channels=3"
        )
    x = torch.from_numpy(array.reshape(*array.shape[:2], planes).astype(np.float32))
    x = x.movedim(2, 0).unsqueeze(0).div_(white).contiguous()
    if kind == "F":
        if not bool(x.isfinite().all()) or not within_unit(x):
            raise DataError(
                f"{path} holds numbers from {float(x.min()):g} to {float(x.max()):g}: "
                "files of floating type must lie in [0, 1]"
            )
        x = x.clamp_(0, 1)
    if channels == 3 and planes == 1:
        return x.expand(1, 3, -1, -1).contiguous()
    if channels == 1 and planes == 3:  # luma of ITU-R 601-2, as Pillow converts
        weights = torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
        return (x * weights).sum(1, keepdim=True)
    return x


def _white(image: Image.Image, path: Path) -> float:
    """What stands for 1 in a file."""
    if image.mode != "I":
        return GRAY.get(image.mode, 255.0)
    tags = getattr(image, "tag_v2", None)
    if tags is None:  # 16 bits of PNG and PGM, which Pillow holds in 32
        return 65535.0
    bits = int(np.max(tags.get(SAMPLE_BITS, 32)))
    is_signed = int(np.max(tags.get(SAMPLE_FORMAT, 1))) == 2
    if is_signed:
        raise DataError(f"{path} holds signed whole numbers: save it with a range from 0")
    # Pillow reads 32 bits as signed, in which the upper half would come out negative
    if bits == 32 and float(np.min(np.array(image))) < 0:
        raise DataError(f"{path} holds whole numbers of 32 bits beyond 2^31: save it in 16 bits")
    return float(2**bits - 1)
