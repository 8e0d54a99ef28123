"""Attacked inputs without loss: in the parts of an audit, and in the file beside its record."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from robustvae.attacks.attack import AttackResult
from robustvae.errors import DataError
from robustvae.loops import packed, unpacked
from robustvae.records import finish_switch

ADVERSARIALS = "adversarials.safetensors"


def tensor_sha256(x: Tensor) -> str:
    """SHA-256 of one input's bytes, in hexadecimal.

    Examples:
        >>> import torch
        >>> from robustvae.audit.store import tensor_sha256
        >>> len(tensor_sha256(torch.zeros(1, 4, 4)))
        64
    """
    return hashlib.sha256(x.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def packed_result(result: AttackResult) -> dict[str, Any]:
    """An attack's outcome as JSON values without loss."""
    values = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    return {
        name: packed(value) if isinstance(value, Tensor) else list(value)
        for name, value in values.items()
    }


def unpacked_result(content: Mapping[str, Any], like: Tensor) -> AttackResult:
    """An outcome from `packed_result`, on the device of `like`."""
    fields: dict[str, Any] = {}
    for entry in dataclasses.fields(AttackResult):
        value = content[entry.name]
        is_tensor = isinstance(value, Mapping)
        fields[entry.name] = unpacked(value).to(like.device) if is_tensor else tuple(value)
    return AttackResult(**fields)


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
    finish_switch(folder)
    try:
        tensors: dict[str, Tensor] = load(path.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path} holds no readable inputs: {error}") from None
    return tensors
