"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from robustvae.errors import MissingExtraError
from robustvae.registry import register


@register("logger", "wandb")
@final
@dataclass(frozen=True)
class WandB:
    """Metrics and artifacts of the current run of Weights & Biases; one is begun where none is.

    Account, project and whether anything leaves the machine are its own settings, such as the
    variable WANDB_MODE.

    Args:
        project: Of a run that is begun here.
        artifact: Name of the artifact that files go into.

    Raises:
        MissingExtraError: On the first call, without the package wandb.
    """

    project: str | None = None
    artifact: str = "audit"

    def _run(self) -> Any:
        wandb = _package()
        return wandb.run or wandb.init(project=self.project)

    def log(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        """Log the values."""
        self._run().log(dict(values), step=step)

    def log_files(self, folder: str | Path) -> None:
        """Log the files as an artifact."""
        artifact = _package().Artifact(self.artifact, type="audit")
        artifact.add_dir(str(folder))
        self._run().log_artifact(artifact)


def _package() -> Any:
    try:
        import wandb
    except ImportError:
        raise MissingExtraError("the logger wandb needs its package: pip install wandb") from None
    return wandb
