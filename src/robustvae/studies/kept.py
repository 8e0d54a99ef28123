"""Finished parts of a study, kept in a file, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from robustvae.data import Images
from robustvae.errors import DataError
from robustvae.models.base import VAE
from robustvae.models.checkpoint import weights_sha256

Values = dict[str, list[float]]
"""Numbers by name, one for each input or a single one."""


class Unfinished(Exception):
    """The time given is over; what was finished is kept."""


@final
class Kept:
    """Parts by their key: what the file holds is read, the rest is computed and added to it.

    Args:
        path: JSON lines; made where it is missing. None keeps nothing.
        facts: What the numbers depend on; a file that was made for others is refused.
        minutes: After these no new part is begun.

    Raises:
        DataError: The file holds parts of another study, model, size or seed.
        Unfinished: When called, a part is missing and the time is over.

    Examples:
        >>> from robustvae.studies.kept import Kept
        >>> kept = Kept(None, {"seed": 0})
        >>> kept("a part", lambda: {"score": [1.0, 2.0]})
        {'score': [1.0, 2.0]}
    """

    def __init__(self, path: Path | None, facts: dict[str, Any], minutes: float = math.inf) -> None:
        """Read what is there; a torn last line, of a run that was killed, is dropped."""
        self.path = path
        self.end = time.monotonic() + 60 * minutes
        self.parts: dict[str, Values] = {}
        head = json.dumps(facts, sort_keys=True)
        if path is None:
            return
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(head + "\n")
        text = path.read_text()
        first, *lines = text[: text.rfind("\n") + 1].splitlines()
        if first != head:
            raise DataError(f"{path} holds parts of another run: name another file, or remove it")
        for line in lines:
            part = json.loads(line)
            self.parts[part["key"]] = part["values"]
        path.write_text("\n".join([first, *lines]) + "\n")

    def __call__(self, key: str, compute: Callable[[], Values]) -> Values:
        """The part `key`, computed if it is not there yet."""
        if key not in self.parts:
            if time.monotonic() > self.end:
                raise Unfinished
            self.parts[key] = compute()
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps({"key": key, "values": self.parts[key]}) + "\n")
        return self.parts[key]


def kept_images(known: Kept, key: str, like: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """Images of the shape and type of `like`, kept as a part like any other."""
    values = known(key, lambda: {"pixels": compute().flatten().tolist()})["pixels"]
    return torch.tensor(values, dtype=like.dtype).view_as(like)


@final
@dataclass(frozen=True)
class Keep:
    """Where a study keeps its finished parts, and for how long it may begin new ones.

    Attributes:
        path: The file; None keeps nothing.
        minutes: After these no new part is begun, and the study ends by `Unfinished`.
    """

    path: Path | None = None
    minutes: float = math.inf

    def __call__(
        self, study: str, vae: VAE, images: Images, size: str, plan: object, seed: int
    ) -> Kept:
        """The finished parts of this very study, model, data, size, what it means, and seed."""
        facts = {"study": study, "weights": weights_sha256(vae), "data": images.name}
        facts |= {"size": size, "plan": str(plan)}
        return Kept(self.path, facts | {"seed": seed}, self.minutes)
