"""Campaigns: the same parts by every executor, whatever dies, and a store that checks itself."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import robustvae as rv
from robustvae import errors, registry
from robustvae.audit import Run, read_plan
from robustvae.audit.auditor import Auditor
from robustvae.audit.job import AuditJob, open_bundle
from robustvae.audit.protocol import choose, settle
from robustvae.audit.tasks import Memory, Task
from robustvae.campaign import Calls, Processes, Serial, driver, worker
from robustvae.campaign.executors.processes import sweep_scratch, unpacked_bundle
from robustvae.campaign.worker import described, restored
from robustvae.records import SavedState, Store, forget_parts, pieces
from robustvae.testing import members_of

HERE = "tests.campaign.functions:"
QUIET = {"progress": lambda *_: None, "notice": lambda _: None}
has_ray = importlib.util.find_spec("ray") is not None
EXECUTORS = ["serial", "processes:workers=2"]


def test_every_executor_has_evidence():
    """Ray's tests are those below that want Ray installed."""
    tested = {spec.partition(":")[0] for spec in EXECUTORS}
    assert tested | {"ray"} == members_of("robustvae", "executor")


def values(outcome):
    return {key: part.get("value") for key, part in outcome.parts.items()}


@pytest.mark.parametrize("spec", EXECUTORS)
def test_calls_give_same_values(spec):
    job = Calls(f"{HERE}square", [{"x": x} for x in range(5)])
    outcome = registry.build("executor", spec).run(job, Run(**QUIET))
    assert values(outcome) == {str(x): x * x for x in range(5)}


def test_processes_are_others():
    job = Calls(f"{HERE}number_of_process", [{"i": i} for i in range(8)])
    pids = set(values(Processes(workers=2).run(job, Run(**QUIET))).values())
    assert os.getpid() not in pids and 1 <= len(pids) <= 2


@pytest.mark.parametrize("spec", EXECUTORS)
def test_failing_call_costs_no_other(spec):
    job = Calls(f"{HERE}fail_on", [{"x": x, "bad": 2} for x in range(4)])
    outcome = registry.build("executor", spec).run(job, Run(**QUIET))
    assert values(outcome) == {"0": 0, "1": 1, "2": None, "3": 3}
    assert "2 is bad" in outcome.parts["2"]["error"] and "\x1b" not in outcome.parts["2"]["error"]


def test_dead_worker_is_replaced(tmp_path):
    words = []
    job = Calls(f"{HERE}die_once", [{"folder": str(tmp_path), "x": x} for x in range(3)])
    run = Run(progress=lambda *_: None, notice=words.append)
    assert values(Processes(workers=2).run(job, run)) == {"0": 0, "1": 1, "2": 2}
    assert len(words) == 3 and all("signal 9" in line for line in words)


def test_call_that_kills_is_told(monkeypatch):
    monkeypatch.setattr(driver, "RETRIES", 1)
    job = Calls(f"{HERE}die_always", [{"x": x} for x in range(3)])
    outcome = Processes(workers=1).run(job, Run(**QUIET))
    assert values(outcome) == {"0": 0, "1": None, "2": 2}
    assert "exit code 7" in outcome.parts["1"]["error"]


def test_printing_function_disturbs_nothing(capfd):
    job = Calls(f"{HERE}speak", [{"x": 1}])
    assert values(Processes(workers=1).run(job, Run(**QUIET))) == {"0": 1}
    assert "from a model 1" in capfd.readouterr().err


def test_worker_without_driver_is_silent(tmp_path):
    """Its messages have no reader: no traceback in a terminal that shows another command by now."""
    words = ["os:getcwd", str(tmp_path), "1", "{}"]  # no loader: the first message is its fault
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "robustvae.campaign.worker", *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (worker.GONE, b"")


def test_failed_call_is_made_again(tmp_path):
    """What a full disk or an absent package made fail may succeed the next time."""
    place = tmp_path / "there"
    job = Calls("os:listdir", [{"args": [str(place)]}, {"args": [str(Path(__file__).parent)]}])
    run = Run(keep=tmp_path / "parts", **QUIET)
    first = Serial().run(job, run)
    assert "error" in first.parts["0"] and "functions.py" in first.parts["1"]["value"]
    place.mkdir()
    second = Serial().run(job, run)
    assert second.parts["0"] == {"value": []} and second.reused == 1


def test_serial_computes_with_its_threads():
    """The record says these threads, so they are what computes."""
    counts = Serial(threads=2).run(Calls("torch:get_num_threads", [{}]), Run()).parts
    assert counts["0"]["value"] == 2
    with pytest.raises(errors.RangeError):
        Serial(threads=0)


def test_damaged_state_of_worker_is_told(tmp_path):
    """A worker reads its own states, and the driver hears of those that are damaged."""
    job = Calls("math:sqrt", [{"args": [4]}])
    store = Store(tmp_path, job.key)
    store.write("0", {"step": 1}, "state")
    store.path("0", "state").write_text("{}")
    outcome = Processes(workers=1).run(job, Run(keep=tmp_path, **QUIET))
    assert outcome.damaged == (store.path("0", "state").name,)


def test_finished_calls_are_not_repeated(tmp_path):
    words = []
    job = Calls(f"{HERE}square", [{"x": x} for x in range(3)])
    first = Serial().run(job, Run(keep=tmp_path, **QUIET))
    run = Run(keep=tmp_path, progress=lambda *_: None, notice=words.append)
    job.function = "no.such:function"  # it would fail if it were called
    assert Serial().run(job, run).parts == first.parts
    assert words == [f"going on with 3 of 3 parts that this run left in {tmp_path}"]
    fresh = Serial().run(job, Run(keep=tmp_path, resume=False, **QUIET))
    assert "error" in fresh.parts["0"]


def test_damaged_part_is_computed_again(tmp_path):
    job = Calls(f"{HERE}square", [{"x": 3}])
    store = Store(tmp_path, job.key)
    (task,) = job.tasks()
    good = {"value": 9}
    for spoil in (
        lambda file: file["content"].update(value=10),
        lambda file: file.update(schema=0),
        lambda file: file.update(job="another"),
        lambda file: file.clear(),
    ):
        store.write(task.key, good)
        file = json.loads(store.path(task.key).read_text())
        spoil(file)
        store.path(task.key).write_text(json.dumps(file))
        outcome = Serial().run(job, Run(keep=tmp_path, **QUIET))
        assert outcome.parts == {"0": good} and outcome.damaged == (store.path(task.key).name,)
    for text in ("", "[]", "[" * 100_000, "\0"):
        store.path(task.key).write_text(text)
        assert Serial().run(job, Run(keep=tmp_path, **QUIET)).parts == {"0": good}


def test_form_of_part_is_checked(tmp_path):
    job = Calls(f"{HERE}square", [{"x": 3}])
    Store(tmp_path, job.key).write(job.tasks()[0].key, {"something": "else"})
    outcome = Serial().run(job, Run(keep=tmp_path, **QUIET))
    assert outcome.parts == {"0": {"value": 9}} and len(outcome.damaged) == 1


def test_state_is_saved_by_time(tmp_path):
    now, store, task = [0.0], Store(tmp_path, "key"), Task("a")
    state = SavedState(store, task.key, every=60, clock=lambda: now[0])
    state.put("one", 1)
    assert not list(tmp_path.iterdir())
    now[0] = 61.0
    state.put("two", 2)
    assert SavedState(store, task.key).get("one") == 1
    store.write(task.key, {"value": 3})
    assert [path.name.endswith(".part.json") for path in tmp_path.iterdir()] == [True]
    forget_parts(tmp_path)
    assert not tmp_path.exists()


def test_full_disk_costs_a_warning(tmp_path, monkeypatch):
    def refuse(*_):
        raise errors.StorageError("no space left")

    monkeypatch.setattr(Store, "write", refuse)
    words = []
    run = Run(keep=tmp_path, progress=lambda *_: None, notice=words.append)
    assert values(Serial().run(Calls("math:sqrt", [{"args": [4.0]}]), run)) == {"0": 2.0}
    assert words == ["parts are no longer kept: no space left"]


def test_batches_are_halved_when_memory_ends():
    words, sizes = [], []

    def measure(rows):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return [row * 10 for row in rows]

    results = pieces(7, measure, words.append)
    assert [value for _, part in results for value in part] == [0, 10, 20, 30, 40, 50, 60]
    assert sizes[:2] == [7, 4] and words == [
        "memory ran out on 7 inputs at once; computed 2 at a time"
    ]


def test_bad_row_is_told_apart():
    def measure(rows):
        if 1 in rows:
            raise ValueError("bad")
        return list(rows)

    results = dict(pieces(3, measure, print))
    assert results[0,] == [0] and results[2,] == [2] and isinstance(results[1,], ValueError)
    with pytest.raises(ZeroDivisionError):
        pieces(3, lambda rows: 1 / 0, print)


def test_errors_cross_processes():
    for error in (errors.ShapeError("wrong shape"), ValueError("a\nb")):
        again = restored(described(error))
        assert isinstance(again, errors.RobustVAEError)
    assert isinstance(restored(described(errors.ShapeError("x"))), errors.ShapeError)


def test_audit_survives_one_bad_input(digits, one):
    """An encoder that raises on one input: its row is empty and told of, the others are whole."""
    vae = rv.load("digits-vae")
    plan = {**one, "inputs": 4, "shard": 4, "certificates": False, "without": ["diagnosis_passed"]}
    clean = rv.audit(vae, digits, plan=plan, question={"r": 1.0})
    bad = clean.rows[1]["input"]
    target = digits.read(__import__("torch").tensor([bad]))
    encode = vae.encode

    def moody(x):
        if any(bool((row - target[0]).abs().max() < 1e-6) for row in x.detach()):
            raise ValueError("not this one")
        return encode(x)

    vae.encode = moody
    record = rv.audit(vae, digits, plan=plan, question={"r": 1.0})
    rows = {row["input"]: row for row in record.rows}
    assert rows[bad]["damage"] is None and rows[bad]["status"] == "inconclusive"
    assert any(
        f"input {bad}: ValueError: not this one" in entry.reason for entry in record.left_out
    )
    others = [row["input"] for row in clean.rows if row["input"] != bad]
    assert all(rows[number]["damage"] is not None for number in others)


@pytest.fixture(scope="module")
def digits():
    return rv.data.load("digits", split="test")


@pytest.fixture
def one():
    from tests.audit.conftest import ONE

    return ONE


def comparable(record):
    return {**json.loads(record.to_json()), "timing": None}


def test_record_is_equal_by_processes(digits, one):
    vae = rv.load("digits-vae")
    plan = {**one, "inputs": 3, "shard": 2, "probes": 1}
    victims = {"defended": "robust-posterior:norm=linf,radius=0.1,steps=2"}
    records = [
        rv.audit(
            vae,
            digits,
            plan=plan,
            question={"r": 1.0},
            victims=victims,
            run=Run(executor=executor, **QUIET),
        )
        for executor in ("serial", "processes:workers=2")
    ]
    assert records[0].environment["threads"] == records[1].environment["threads"] == "1"
    assert comparable(records[0]) == comparable(records[1])
    assert records[0].adversarials == records[1].adversarials


def test_bundle_keeps_weights_and_pixels(digits, one, tmp_path):
    """A worker has the model that the driver has, not the one that its factory makes alone."""
    source = f"{Path(__file__).parents[2] / 'examples' / 'tutorial_model.py'}:build"
    state = runpy.run_path(source.rpartition(":")[0])["build"]().state_dict()
    torch.save(state, tmp_path / "w.pt")
    loading = {"weights": tmp_path / "w.pt", "pixels": (-1.0, 1.0), "fit_on": digits[:8].x}
    vae = rv.load(source, **loading)
    plan, question = settle(read_plan({**one, "r": 1.0}), None, {}, digits)
    inputs = choose(digits, plan, None, 0)
    auditor = Auditor({"mine": rv.Victim(vae)}, inputs, plan, question, 0)
    with unpacked_bundle(AuditJob(auditor, {}, source, loading).bundle()) as folder:
        (tmp_path / "w.pt").unlink()  # on another machine it never was
        again = open_bundle(folder).auditor.named["mine"].vae
    x = digits[:4].x.to(vae.dtype)
    assert torch.equal(again.encode(x).mean, vae.encode(x).mean)
    assert again.space == vae.space and again.space.low == -1.0


def test_lambda_is_refused_with_remedy(digits, one):
    vae = rv.load("digits-vae")
    wrapped = rv.wrap(
        encode=lambda x: vae.encode(x).mean,
        decode=lambda z: vae.decode(z).mean,
        latent=vae.latent,
        image_shape=(1, 8, 8),
        returns="mean",
    )
    with pytest.raises(errors.UnsupportedError, match="FACTORY"):
        rv.audit(wrapped, digits, plan=one, run=Run(executor="processes:workers=2", **QUIET))


def test_memory_state_keeps_steps():
    state = Memory()
    state.put("a", 1)
    assert state.get("a") == 1 and state.get("b") is None


@pytest.mark.slow
@pytest.mark.skipif(not has_ray, reason="Ray is not installed")
@pytest.mark.parametrize("workers", [1, 2])
def test_record_is_equal_by_ray(digits, one, workers):
    vae = rv.load("digits-vae")
    records = [
        rv.audit(vae, digits, plan=one, question={"r": 1.0}, run=Run(executor=executor, **QUIET))
        for executor in ("serial", f"ray:workers={workers}")
    ]
    assert comparable(records[0]) == comparable(records[1])


def test_ray_without_ray_names_extra(digits, one):
    if has_ray:
        pytest.skip("Ray is installed")
    with pytest.raises(errors.MissingExtraError, match="ray"):
        rv.audit(rv.load("digits-vae"), digits, plan=one, run=Run(executor="ray", **QUIET))


def test_bundles_of_dead_drivers_swept(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = tmp_path / f"robustvae-{child.pid}-abcdefgh"
    alive = tmp_path / f"robustvae-{os.getpid()}-abcdefgh"
    other = tmp_path / "robustvae-notes"
    for folder in (dead, alive, other):
        folder.mkdir()
        (folder / "weights").write_bytes(b"1")
    assert sweep_scratch(tmp_path) == 1
    assert not dead.exists() and alive.exists() and other.exists()


def test_full_disk_known_before_computing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    run = Run(keep=tmp_path / "parts", announce=lambda _: None)
    images = rv.data.load("digits", split="test")
    with pytest.raises(errors.StorageError, match="needs about"):
        rv.audit(rv.load("digits-vae"), images, plan={"base": "smoke", "inputs": 3}, run=run)
    assert not (tmp_path / "parts").exists()


def test_too_many_workers_are_refused():
    with pytest.raises(errors.RangeError, match="workers must be at most"):
        Processes(workers=10**9)
