"""certify, evaluate and attack go on where they were killed, to the same bytes."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from robustvae import cli, errors
from robustvae.attacks import attack as attacking
from robustvae.certificates import certification
from robustvae.evaluation import summary

SMALL = {
    "certify": [
        *("certify", "digits-vae", "--inputs", "45", "--defense", "input-noise:stddev=0.1"),
        *("--displacement", "full", "--draws", "100"),
    ],
    "evaluate": [
        *("evaluate", "digits-vae", "--inputs", "250", "--draws", "3", "--part", "weights"),
        *("--part", "likelihood", "--part", "reconstruction"),
    ],
    "attack": [
        *("attack", "digits-vae", "--inputs", "45", "--search"),
        "projected-ascent:steps=2,restarts=1",
    ],
}
# What makes one part, by command; the process is killed when it is called once more.
STEPS = {
    "certify": (certification, "answer"),
    "evaluate": (summary, "negative_log_likelihood"),
    "attack": (attacking.Attack, "run"),
}


def content(command: str, out: Path) -> object:
    """All numbers of a result; not the time that it took."""
    if command == "attack":
        arrays = np.load(out / "undefended" / "adversarials.npz")
        return {name: arrays[name].tobytes() for name in arrays.files}
    result = json.loads(out.read_text())
    return {key: value for key, value in result.items() if key != "facts"}


def killed(command: str, out: Path, calls: int) -> None:
    """Run a command in a child that gets SIGKILL after some parts."""
    pid = os.fork()
    if not pid:
        home, name = STEPS[command]
        step, count = getattr(home, name), 0

        def counted(*args, **kwargs):
            nonlocal count
            count += 1
            if count > calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args, **kwargs)

        setattr(home, name, counted)
        cli.main([*SMALL[command], "--out", str(out), "-q"])
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize("command", SMALL)
def test_killed_command_goes_on(command, tmp_path, capsys):
    words = SMALL[command]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli.main([*words, "--out", str(whole), "-q"]) == 0
    killed(command, cut, 2)
    assert not cut.is_file()
    capsys.readouterr()
    assert cli.main([*words, "--out", str(cut), "-q"]) == 0
    said = capsys.readouterr().err
    assert ("going on with" in said) and str(tmp_path) in said
    assert content(command, cut) == content(command, whole)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"whole", "cut"}  # no part and no lock is left
    assert not list(tmp_path.rglob("*.part.json"))


def test_fresh_starts_over(tmp_path, capsys):
    out = tmp_path / "radii.json"
    killed("certify", out, 1)
    assert list(tmp_path.rglob("*.part.json"))
    assert cli.main([*SMALL["certify"], "--out", str(out), "-q", "--fresh"]) == 0
    assert "going on" not in capsys.readouterr().err


def test_other_question_reads_no_part(tmp_path, capsys):
    out = tmp_path / "radii.json"
    killed("certify", out, 1)
    assert cli.main([*SMALL["certify"], "--out", str(out), "-q", "--r", "2"]) == 0
    assert "going on" not in capsys.readouterr().err


def test_damaged_part_is_made_again(tmp_path, capsys):
    out = tmp_path / "radii.json"
    killed("certify", out, 2)
    first, _ = sorted(tmp_path.rglob("*.part.json"))
    first.write_text(first.read_text().replace("0.", "1.", 1))
    assert cli.main([*SMALL["certify"], "--out", str(out), "-q"]) == 0
    said = capsys.readouterr().err
    assert "damaged" in said and "going on with 1 of 3 parts" in said
    other = tmp_path / "other.json"
    assert cli.main([*SMALL["certify"], "--out", str(other), "-q"]) == 0
    assert out.read_bytes() == other.read_bytes()


def test_certify_halves_ranges_when_memory_ends(tmp_path, capsys, monkeypatch):
    """The same radii in smaller ranges, the halves kept like whole ones."""
    words = SMALL["certify"]
    whole, halved = tmp_path / "whole.json", tmp_path / "halved.json"
    assert cli.main([*words, "--out", str(whole), "-q"]) == 0
    answer, sizes = certification.answer, []

    def short_of_memory(task, *others):
        sizes.append(len(task.x))
        if len(task.x) > 10:
            raise RuntimeError("out of memory")
        return answer(task, *others)

    monkeypatch.setattr(certification, "answer", short_of_memory)
    assert cli.main([*words, "--out", str(halved), "-q"]) == 0
    assert sizes == [20, 10, 10, 20, 10, 10, 5]
    assert "memory ran out on 20 inputs at once; computed 10 at a time" in capsys.readouterr().err
    before, after = (json.loads(path.read_text()) for path in (whole, halved))
    assert after["radius"] == pytest.approx(before["radius"], rel=1e-6)
    assert after["environment"]["threads"] == "1" and after["environment"]["dtype"] == "float32"


@pytest.mark.parametrize("command", SMALL)
def test_result_is_shown_unwritten(command, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise errors.StorageError("no space left")

    out, words = tmp_path / "out", [*SMALL[command], "-q"]
    with monkeypatch.context() as patch:
        patch.setattr("robustvae.records.write_text", refuse)
        patch.setattr("robustvae.attacks.stored.write_files", refuse)
        assert cli.main([*words, "--out", str(out)]) == cli.WRONG_USE
    first = capsys.readouterr()
    assert ("no space left" in first.err and "inputs" in first.out) or "images" in first.out
    assert cli.main([*words, "--out", str(out)]) == cli.DONE  # and its parts are there
    assert "going on with" in capsys.readouterr().err


@pytest.mark.parametrize("command", SMALL)
def test_full_disk_is_told_beforehand(command, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise AssertionError("computed")

    home, name = STEPS[command]
    monkeypatch.setattr(home, name, refuse)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**15))
    assert cli.main([*SMALL[command], "--out", str(tmp_path / "out"), "-q"]) == cli.WRONG_USE
    assert "its disk has 0.0: make room" in " ".join(capsys.readouterr().err.split())
