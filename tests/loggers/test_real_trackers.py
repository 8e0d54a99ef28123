"""The adapters against MLflow, Weights & Biases and Lightning themselves, where they are installed.

pip install mlflow wandb lightning     # nothing of this leaves the machine
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import robustvae as rv
from robustvae.callbacks import EpochAudit, lightning_callback
from robustvae.loggers import JSONLines, MLflow, WandB, log_record

# Other people's packages warn as they please.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


@pytest.fixture(scope="module")
def record() -> rv.Record:
    images = rv.data.load("digits", split="test")
    record = rv.audit(rv.load("digits-vae"), images, plan="smoke", seed=0)
    return record.model_copy(update={"requirements": ["damage>=0", "damage<=0"]})


@pytest.fixture
def folder(record: rv.Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # trackers leave folders where they run
    rv.report.write(record, tmp_path / "out")
    return tmp_path / "out"


def test_mlflow_stores_metrics_and_report(record: rv.Record, folder: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    mlflow.set_tracking_uri(f"sqlite:///{folder.parent}/mlflow.db")
    values = log_record(MLflow(), record, step=3, folder=folder)
    run = mlflow.active_run().info.run_id
    mlflow.end_run()
    client = mlflow.MlflowClient()
    metrics = client.get_run(run).data.metrics
    assert len(metrics) == len(values)
    assert metrics["audit/damage"] == pytest.approx(values["audit/damage"])
    assert metrics["audit/required_ damage at most 0"] == 0
    assert client.get_metric_history(run, "audit/damage")[0].step == 3
    names = {Path(file.path).name for file in client.list_artifacts(run, "audit")}
    assert {"report.html", "record.json"} <= names


def test_wandb_keeps_numbers_and_report(
    record: rv.Record, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(folder.parent))
    values = log_record(WandB("robustvae-test"), record, step=3, folder=folder)
    run = wandb.run
    assert run is not None and run.project == "robustvae-test"
    wandb.finish()
    (stored,) = folder.parent.glob("wandb/offline-run-*/run-*.wandb")
    content = stored.read_bytes()
    assert all(name.encode() in content for name in values)
    assert repr(values["audit/damage"])[:8].encode() in content
    assert b"report.html" in content


def test_lightning_trainer_audits_after_epochs(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.vae = rv.load("digits-vae").train()

        def encode(self, x: Tensor) -> torch.distributions.Distribution:
            return self.vae.encode(x)

        def decode(self, z: Tensor) -> torch.distributions.Distribution:
            return self.vae.decode(z)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            output = self.vae.decode(self.vae.encode(batch[0]).mean).mean
            return (output - batch[0]).square().sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-4)

    images = rv.data.load("digits", split="test")
    audits = EpochAudit(
        images,
        plan={"base": "smoke", "margins": None, "certificates": False, "geometry": False},
        question={"r": 0.86},
        every=2,
        logger=JSONLines(str(tmp_path / "log.jsonl")),
        wrapping={"image_shape": (1, 8, 8)},
    )
    torch.set_default_dtype(torch.float32)  # Lightning's own; the test's float64 comes back
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[lightning_callback(audits)],
        default_root_dir=tmp_path,
    )
    module = Module()
    trainer.fit(module, DataLoader(TensorDataset(images.x[:64].float()), batch_size=32))
    assert list(audits.records) == [1]
    assert module.training and module.vae.training
    assert (tmp_path / "log.jsonl").is_file()
