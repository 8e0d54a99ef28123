"""Finished shards on disk, each with its own hash, and attacked inputs without loss."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from robustvae.errors import DataError
from robustvae.records import plain, write_text

ADVERSARIALS = "adversarials.safetensors"
_SHARD = re.compile(r"[0-9a-f]{16}-\d{5}\.json")
_PARTS = {"rows": list, "notes": list, "left_out": list, "adversarials": dict}


@final
class Store:
    """Finished shards, each in a file whose name tells the audit it belongs to.

    A shard that is missing, damaged or changed is computed again; `damaged` names those.
    """

    def __init__(self, folder: str | Path | None, header: Mapping[str, Any], resume: bool) -> None:
        text = json.dumps(plain(header), sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = None if folder is None else Path(folder)
        self.resume = resume
        self.damaged: list[str] = []

    def path(self, number: int) -> Path | None:
        """Where a shard lies."""
        return None if self.folder is None else self.folder / f"{self.key}-{number:05d}.json"

    def read(self, number: int) -> dict[str, Any] | None:
        """A finished shard that is whole, or None."""
        path = self.path(number)
        if not self.resume or path is None or not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            shard: dict[str, Any] = content["shard"]
            is_complete = content["sha256"] == _digest(shard) and all(
                isinstance(shard[part], kind) for part, kind in _PARTS.items()
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            is_complete = False
        if not is_complete:
            self.damaged.append(path.name)
            return None
        return shard

    def write(self, number: int, shard: dict[str, Any]) -> None:
        """Keep a finished shard."""
        path = self.path(number)
        if path is not None:
            content = {"sha256": _digest(shard), "shard": shard}
            write_text(path, json.dumps(content))


def forget_shards(folder: str | Path) -> None:
    """Remove the shards that audits kept in `folder`, and the folder if nothing else is in it."""
    folder = Path(folder)
    for path in folder.glob("*.json"):
        if _SHARD.fullmatch(path.name):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _digest(shard: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain(shard), sort_keys=True).encode()).hexdigest()


def tensor_sha256(x: Tensor) -> str:
    """SHA-256 of one input's bytes, in hexadecimal.

    Examples:
        >>> import torch
        >>> from robustvae.audit.store import tensor_sha256
        >>> len(tensor_sha256(torch.zeros(1, 4, 4)))
        64
    """
    return hashlib.sha256(x.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def packed(x: Tensor) -> dict[str, Any]:
    """Inputs as JSON values without loss."""
    array = x.detach().cpu().contiguous().numpy()
    return {
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "bytes": base64.b64encode(array.tobytes()).decode("ascii"),
    }


def unpacked(content: Mapping[str, Any]) -> Tensor:
    """Inputs from `packed`."""
    array = np.frombuffer(base64.b64decode(content["bytes"]), dtype=content["dtype"])
    return torch.from_numpy(array.reshape(content["shape"]).copy())


def adversarials_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Clean and attacked inputs as a safetensors file."""
    from safetensors.torch import save

    data: bytes = save({name: x.detach().cpu().contiguous() for name, x in tensors.items()})
    return data


def read_adversarials(folder: str | Path) -> dict[str, Tensor]:
    """Clean and attacked inputs that an audit stored.

    Raises:
        DataError: No such file, or one that cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(folder) / ADVERSARIALS
    try:
        tensors: dict[str, Tensor] = load(path.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path} holds no readable inputs: {error}") from None
    return tensors
