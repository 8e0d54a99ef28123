"""Trackers: each gets the numbers and the files; a training is not changed by its audits."""

from __future__ import annotations

import json
import math
import sys
import types

import pytest
import torch

import robustvae as rv
from robustvae import errors, registry
from robustvae.callbacks import EpochAudit, lightning_callback
from robustvae.errors import MissingExtraError, StorageError
from robustvae.loggers import JSONLines, Logger, MLflow, TensorBoard, WandB, log_record
from robustvae.training import Recipe


@pytest.fixture(scope="module")
def record() -> rv.Record:
    images = rv.data.load("digits", split="test")
    record = rv.audit(rv.load("digits-vae"), images, plan="smoke", seed=0)
    return record.model_copy(update={"requirements": ["damage>=0", "damage<=0"]})


def test_every_logger_follows_the_protocol() -> None:
    for name in registry.names("logger"):
        assert isinstance(registry.build("logger", name), Logger), name
    assert registry.build("logger", "jsonl:path=x.jsonl") == JSONLines("x.jsonl")


def test_lines_hold_headlines_and_requirements(record: rv.Record, tmp_path) -> None:
    logger = JSONLines(str(tmp_path / "deep" / "log.jsonl"))
    values = log_record(logger, record, step=4, folder=tmp_path)
    text = (tmp_path / "deep" / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines == [{**values, "step": 4}, {"files": str(tmp_path)}]
    means = {entry.key: entry.mean for entry in record.summary if entry.headline}
    assert values["audit/damage"] == means["damage"]
    assert values["audit/required: damage<=0"] == 0
    assert all(math.isfinite(value) for value in values.values())


def test_unwritable_log_says_so(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="name another path"):
        JSONLines(str(tmp_path / "file" / "log.jsonl")).log({"a": 1.0})


def test_mlflow_gets_names_that_it_takes(record, monkeypatch, tmp_path) -> None:
    calls = []
    fake = types.ModuleType("mlflow")
    fake.log_metrics = lambda values, step: calls.append((values, step))
    fake.log_artifacts = lambda folder, artifact_path: calls.append((folder, artifact_path))
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    log_record(MLflow(), record, step=2, folder=tmp_path)
    (values, step), files = calls
    assert step == 2 and files == (str(tmp_path), "audit")
    assert {"audit/required_ damage at least 0", "audit/required_ damage at most 0"} <= set(values)


def test_wandb_begins_a_run_once(record, monkeypatch, tmp_path) -> None:
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((values, step))

        def log_artifact(self, artifact):
            calls.append(artifact.folder)

    class Artifact:
        def __init__(self, name, type):
            self.name, self.type = name, type

        def add_dir(self, folder):
            self.folder = folder

    fake = types.ModuleType("wandb")
    fake.run, fake.Artifact = None, Artifact

    def init(project):
        fake.run = Run()
        return fake.run

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log_record(WandB("mine"), record, folder=tmp_path)
    assert calls[0][0]["audit/damage"] > 0 and calls[1] == str(tmp_path)


def test_tensorboard_holds_the_scalars(record, tmp_path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoard(str(tmp_path))
    values = log_record(logger, record, step=7, folder=tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    scalar = events.Scalars("audit/damage")[0]
    assert scalar.step == 7 and scalar.value == pytest.approx(values["audit/damage"], rel=1e-6)


@pytest.mark.parametrize(("kind", "package"), [(MLflow, "mlflow"), (WandB, "wandb")])
def test_missing_packages_are_named(kind, package, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=f"pip install {package}"):
        kind().log({"a": 1.0})


class Trainer:
    def __init__(self, epoch: int) -> None:
        self.current_epoch, self.logged = epoch, []
        self.loggers = [self]

    def log_metrics(self, values, step):
        self.logged.append((values, step))


@pytest.fixture
def epoch_audit(tmp_path) -> EpochAudit:
    return EpochAudit(
        rv.data.load("digits", split="test"),
        plan={"base": "smoke", "margins": None, "certificates": False, "geometry": False},
        question={"r": 0.86},
        every=2,
        logger=JSONLines(str(tmp_path / "log.jsonl")),
        out=tmp_path / "audits",
    )


def test_audit_comes_when_due(epoch_audit, tmp_path) -> None:
    vae = rv.load("digits-vae").train()
    trainers = [Trainer(epoch) for epoch in range(4)]
    for trainer in trainers:
        epoch_audit.on_train_epoch_end(trainer, vae)
    assert sorted(epoch_audit.records) == [1, 3]
    assert [len(trainer.logged) for trainer in trainers] == [0, 1, 0, 1]
    assert (tmp_path / "audits" / "epoch-0003" / "report.html").is_file()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4


def test_audit_leaves_training_as_it_was(epoch_audit) -> None:
    vae = rv.load("digits-vae").train()
    part = next(module for module in vae.modules() if module is not vae)
    part.eval()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.get_rng_state()
    epoch_audit.audit(vae, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training and not part.training
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_lightning_callback_calls_the_audit(epoch_audit, monkeypatch) -> None:
    class Callback:
        pass

    fake = types.ModuleType("lightning.pytorch")
    fake.Callback = Callback
    monkeypatch.setitem(sys.modules, "lightning", types.ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", fake)
    callback = lightning_callback(epoch_audit)
    assert isinstance(callback, Callback)
    callback.on_train_epoch_end(Trainer(1), rv.load("digits-vae"))
    assert list(epoch_audit.records) == [1]


def test_lightning_is_named_where_missing(epoch_audit, monkeypatch) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="pip install lightning"):
        lightning_callback(epoch_audit)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EpochAudit([], every=0), "every must be at least 1"),
        (lambda: EpochAudit([], plan="smok"), "did you mean 'smoke'"),
        (lambda: EpochAudit([], logger="jsonnl"), "did you mean 'jsonl'"),
        (lambda: JSONLines(3), "path must be a text or a Path"),
        (lambda: log_record(JSONLines("log.jsonl"), 3), "record must be a Record"),
        (lambda: Recipe.read(3), "a recipe must be a name or a YAML file"),
    ],
)
def test_wrong_use_told_at_once(make, words) -> None:
    """Before the epoch at whose end it would fail."""
    with pytest.raises(errors.RobustVAEError, match=words):
        make()
