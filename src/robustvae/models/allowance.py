"""How much a model may allocate: asked before memory is taken, not after."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from robustvae.errors import CheckpointError, RangeError

MODEL_BYTES = 2**35
"""Of any new model: 32 GB, beyond what training on one machine bears."""

ROOM = 2**26
"""Bytes that a model may allocate beside its weights: buffers, and what it needs to be made."""

TIMES = 8
"""Times its stored weights that it may allocate: float16 is read as float32, and layers work."""

TENSORS = 2000
"""Tensors that it may make beside a hundred for each that is stored: each takes a millisecond."""

HEADER_BYTES = 2**26
"""Of the header of a weights file; 100,000 tensors have one of 10 MB."""


@final
class Allowance(TorchDispatchMode):
    """Refuses to make tensors beyond a number of bytes in all, before they are made.

    Args:
        limit: Bytes.
        tensors: How many tensors of any size.

    Examples:
        >>> import torch
        >>> from robustvae.models.allowance import Allowance
        >>> with Allowance(10**6):
        ...     x = torch.empty(10**9)
        Traceback (most recent call last):
        robustvae.errors.RangeError: a model of at most 1 MB is wanted, got one of 4000 MB
    """

    def __init__(self, limit: int, tensors: int = 2**20) -> None:
        super().__init__()
        self.limit, self.tensors = limit, tensors
        self.spent = self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count what an operation would make from sizes alone."""
        sizes = args[0] if args else None
        if isinstance(sizes, list | tuple) and all(type(size) is int for size in sizes):
            item = (kwargs or {}).get("dtype") or torch.get_default_dtype()
            self.spent += math.prod(sizes) * item.itemsize
            self.count += 1
            if self.spent > self.limit:
                raise RangeError(
                    f"a model of at most {self.limit / 2**20:.0f} MB is wanted, got one of "
                    f"{self.spent / 1e6:.0f} MB"
                )
            if self.count > self.tensors:
                raise RangeError(f"a model of at most {self.tensors} tensors is wanted")
        return func(*args, **(kwargs or {}))


def allowance_of(path: Path) -> Allowance:
    """What the model of a weights file may allocate, by the file's header alone.

    Raises:
        CheckpointError: No such header, or one that announces more than the file holds.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(HEADER_BYTES, size):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        names = [name for name in header if name != "__metadata__"]
        end = max((header[name]["data_offsets"][1] for name in names), default=0)
        if end + 8 + length != size:
            raise ValueError(f"it announces {end + 8 + length} bytes, holds {size}")
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        line = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} cannot be read: {line}") from None
    return Allowance(TIMES * end + ROOM, 100 * len(names) + TENSORS)
