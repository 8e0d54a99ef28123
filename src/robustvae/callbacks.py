"""Audits at the end of a training's epochs, for Lightning, Fabric and loops of your own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from robustvae import report
from robustvae.arguments import checked
from robustvae.audit import audit, read_plan
from robustvae.errors import MissingExtraError, check_count, check_type
from robustvae.loggers import Logger, log_record
from robustvae.models import VAE, wrap
from robustvae.records import Record
from robustvae.registry import build_fields


@final
@dataclass(frozen=True)
class EpochAudit:
    """Audits a module at the end of every so many epochs, and puts it back as it was.

    The audit draws from generators of its own: a training with it and one without it take the same
    steps.

    Args:
        images: Whatever `rv.audit` takes as images.
        plan: Of the audit; keep it small.
        question: r, m, norm and so on.
        every: How many epochs lie between two audits.
        wrapping: Options of `rv.wrap`, for a module that is no `VAE`.
        logger: Where the numbers go, besides Lightning's own loggers; or its spec.
        out: A folder for reports, one for each epoch; None writes none.
        seed: Of the audit.
        records: The records so far, by epoch.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.callbacks import EpochAudit
        >>> images = rv.data.load("digits", split="test")
        >>> callback = EpochAudit(images, plan="smoke", question={"r": 0.86})
        >>> record = callback.audit(rv.load("digits-vae"), epoch=0)
        >>> callback.records[0] is record
        True
    """

    images: Any
    plan: Any = "smoke"
    question: Mapping[str, Any] | None = None
    every: int = 1
    wrapping: Mapping[str, Any] = field(default_factory=dict)
    logger: Logger | None = None
    out: str | Path | None = None
    seed: int = 0
    records: dict[int, Record] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Validate what an epoch's end would be late for, and make the logger of its spec."""
        read_plan(self.plan)
        check_count(self.every, "every")
        if self.logger is not None:
            build_fields(self, logger="logger")

    def audit(self, module: Any, epoch: int) -> Record:
        """Audit a module now.

        Args:
            module: A `VAE`, or a module that `rv.wrap` knows.
            epoch: Its number, from 0.
        """
        modes = {part: part.training for part in module.modules()}
        module.eval()
        try:
            vae = module if isinstance(module, VAE) else wrap(module, **self.wrapping)
            record = audit(vae, self.images, self.plan, question=self.question, seed=self.seed)
        finally:
            for part, mode in modes.items():
                part.training = mode
        self.records[epoch] = record
        folder = None if self.out is None else Path(self.out) / f"epoch-{epoch:04d}"
        if folder is not None:
            report.write(record, folder)
        if self.logger is not None:
            log_record(self.logger, record, step=epoch, folder=folder)
        return record

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Audit where an epoch is due; the hook that Lightning and Fabric call."""
        epoch = int(trainer.current_epoch)
        if (epoch + 1) % self.every:
            return
        record = self.audit(module, epoch)
        for logger in getattr(trainer, "loggers", ()):
            log_record(_Foreign(logger), record, step=epoch)


@checked()
def lightning_callback(epoch_audit: EpochAudit) -> Any:
    """The same as a `Callback` that Lightning's Trainer takes.

    Args:
        epoch_audit: What to do.

    Raises:
        MissingExtraError: Without lightning or pytorch_lightning.
    """
    check_type(epoch_audit, "epoch_audit", EpochAudit)
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError:
            raise MissingExtraError(
                "a callback for Lightning needs it: pip install lightning"
            ) from None
    hooks = {"on_train_epoch_end": lambda _, *arguments: epoch_audit.on_train_epoch_end(*arguments)}
    return type("AuditCallback", (Callback,), hooks)()


@final
@dataclass(frozen=True)
class _Foreign:
    """One of Lightning's loggers as one of ours."""

    logger: Any

    def log(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        self.logger.log_metrics(dict(values), step=step)

    def log_files(self, folder: str | Path) -> None:
        """Lightning's loggers have no common way to keep files: they stay where they are."""
