"""MLflow's tracking."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from robustvae.errors import MissingExtraError
from robustvae.registry import register

# MLflow refuses other characters in the name of a metric.
_REFUSED = re.compile(r"[^\w/. -]")


@register("logger", "mlflow")
@final
@dataclass(frozen=True)
class MLflow:
    """Metrics and artifacts of MLflow's active run; one is begun where there is none.

    Where it tracks to is MLflow's own setting, such as the variable MLFLOW_TRACKING_URI.

    Args:
        artifact_path: Folder for files within the run.

    Raises:
        MissingExtraError: On the first call, without the package mlflow.
    """

    artifact_path: str = "audit"

    def log(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        """Log the values as metrics."""
        metrics = {_name(name): value for name, value in values.items()}
        _package().log_metrics(metrics, step=step)

    def log_files(self, folder: str | Path) -> None:
        """Log the files as artifacts."""
        _package().log_artifacts(str(folder), artifact_path=self.artifact_path)


def _name(name: str) -> str:
    """A name that MLflow takes; two bounds on one number stay apart."""
    return _REFUSED.sub("_", name.replace(">=", " at least ").replace("<=", " at most "))


def _package() -> Any:
    try:
        import mlflow
    except ImportError:
        raise MissingExtraError("the logger mlflow needs its package: pip install mlflow") from None
    return mlflow
