"""TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from robustvae.errors import MissingExtraError
from robustvae.registry import register


@register("logger", "tensorboard")
@final
@dataclass(frozen=True)
class TensorBoard:
    """Scalars in TensorBoard's event files; of files their place, as text.

    Args:
        folder: Where the event files go.

    Raises:
        MissingExtraError: On the first call, without the package tensorboard.
    """

    folder: str = "runs"
    _cache: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def _writer(self) -> Any:
        if "writer" not in self._cache:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise MissingExtraError(
                    "the logger tensorboard needs its package: pip install tensorboard"
                ) from None
            self._cache["writer"] = SummaryWriter(self.folder)
        return self._cache["writer"]

    def log(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        """Add the values as scalars, at step 0 where none is given."""
        writer = self._writer()
        for name, value in values.items():
            writer.add_scalar(name, value, step or 0)
        writer.flush()

    def log_files(self, folder: str | Path) -> None:
        """Note where the files lie."""
        writer = self._writer()
        writer.add_text("files", str(folder))
        writer.flush()
