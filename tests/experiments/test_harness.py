"""The harness: specs, the store of parts, rows and tables, the command."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
import torch

from experiments.__main__ import DONE, INTERRUPTED, UNFINISHED, WRONG_USE, main
from experiments.harness import ITEMS, Item, Result, Row, Store, Unfinished, combine, load_items
from experiments.harness.item import _spelled, item
from experiments.harness.provenance import ROOT
from experiments.harness.rows import measured
from robustvae.display import Lines
from robustvae.errors import ConfigError, DataError, RangeError, UnknownNameError

ITEM = "kuzina2022/ratio"


@dataclass(frozen=True)
class Spec:
    n: int = 3
    wide: tuple[float, ...] = (1.0,)
    name: str = "a"


def doubled(spec, run):
    """Twice some numbers."""
    values = [run.part(f"part {i}", lambda i=i: 2 * i) for i in range(spec.n)]
    return run.result("Doubled", "units", [measured("twice", "mean", values)], ("A sentence.",))


@pytest.fixture
def doubling(monkeypatch):
    found = Item("own/doubling", "", "Twice some numbers.", doubled, {"smoke": Spec()})
    monkeypatch.setitem(ITEMS, found.name, found)
    return found


def test_fields_are_read_and_refused(doubling):
    spec = doubling.spec("smoke", {"n": "5", "wide": "1,2.5", "name": "b"})
    assert spec == Spec(5, (1.0, 2.5), "b")
    with pytest.raises(UnknownNameError, match="name"):
        doubling.spec("smoke", {"nam": "x"})
    with pytest.raises(ConfigError, match="n=many"):
        doubling.spec("smoke", {"n": "many"})
    with pytest.raises(UnknownNameError, match="smoke"):
        doubling.spec("huge")


@pytest.mark.parametrize("suite", [("a:b=1,c=2", "d"), ("a", "b")])
def test_spelled_fields_are_read_again(suite):
    """A search with options of its own has commas, which do not part it."""
    found = load_items()["own/anomaly"]
    text = _spelled(suite)
    assert found.spec("laptop", {"suite": text}).suite == suite


def test_names_and_sizes_are_checked():
    load_items()
    with pytest.raises(RangeError, match="two items"):
        item(ITEM, sizes={"smoke": Spec()})(doubled)
    with pytest.raises(RangeError, match="smoke"):
        item("own/without", sizes={"laptop": Spec()})(doubled)


def test_interrupted_run_ends_the_same(doubling, tmp_path):
    whole = doubling.run(Spec(6))
    store = Store(doubling.folder(Spec(6), "smoke", 0, tmp_path))
    for i in range(3):
        store(f"part {i}", lambda i=i: 2 * i)
    with pytest.raises(Unfinished, match="part 3"):
        doubling.run(Spec(6), root=tmp_path, minutes=-1)
    assert doubling.run(Spec(6), root=tmp_path).rows == whole.rows
    assert store.done() == 6


def test_parts_belong_spec_seed_weights(doubling, tmp_path):
    folders = {doubling.folder(Spec(n), "smoke", seed, tmp_path) for n in (3, 4) for seed in (0, 1)}
    assert len(folders) == 4
    store, calls = Store(tmp_path), []
    for weights in ("one", "other", "one"):
        store("part", lambda w=weights: calls.append(w) or 1, [weights])
    assert calls == ["one", "other"]
    assert Store(tmp_path)("part", lambda: 2, ["one"]) == 1


def test_changed_part_is_refused(tmp_path):
    Store(tmp_path)("part", lambda: [1.0, math.inf])
    (path,) = tmp_path.glob("*.json")
    assert Store(tmp_path)("part", list) == [1.0, math.inf]
    path.write_text(path.read_text().replace("1.0", "2.0"))
    with pytest.raises(DataError, match="not what was written"):
        Store(tmp_path)("part", list)


def test_tensor_is_stored_to_the_bit(doubling, tmp_path):
    from experiments.harness import Run

    x = torch.rand(3, 1, 2, 2)
    for _ in range(2):
        run = Run(doubling.name, {}, "smoke", 0, Store(tmp_path))
        assert torch.equal(run.tensor("x", x, lambda: x), x)


def test_table_is_a_function_of_rows():
    row = Row("HMC", "linf 0.1", 0.87, 0.01, 50, 130, reported=0.90, reported_stderr=0.02)
    other = Row("mode", "linf 0.1", 0.5, 0.01, 50)
    said = Row("HMC", "verdict", 1.0, section="Claims", text="holds")
    result = Result("A table", "MS-SSIM", (row, other, said), ("One sentence.",), {"seed": 0})
    page = result.to_markdown()
    assert "| HMC | 130 | 0.87 ± 0.01 (reported 0.9 ± 0.02) |" in page
    assert "## Claims" in page and "| HMC | holds |" in page and "- One sentence." in page
    assert Result.from_json(result.to_json()) == result
    assert result.to_csv().splitlines()[1].startswith("HMC,linf 0.1,0.87,0.01,50,130,")
    assert row.agrees and row.z == pytest.approx(-0.03 / math.hypot(0.01, 0.02))
    assert other.agrees is None


def test_infinite_number_is_read_back():
    result = Result("T", "", (measured("a", "b", [1.0, math.inf]),))
    assert Result.from_json(result.to_json()).rows[0].measured == math.inf


def test_combined_error_sees_other_draws():
    def of(seed, value):
        return Result(
            "T", "", (Row("a", "b", value, 0.01, 50),), (), {"seed": seed, "command": "run"}
        )

    joint = combine([of(0, 0.54), of(1, 0.40), of(2, 0.41)])
    values = torch.tensor([0.54, 0.40, 0.41], dtype=torch.float64)
    assert joint.rows[0].measured == pytest.approx(float(values.mean()))
    assert joint.rows[0].stderr == pytest.approx(float(values.std() / 3**0.5))
    assert joint.rows[0].n == 150
    assert joint.facts == {"seed": "0, 1, 2", "command": "run --seeds 3"}
    steady = combine([of(0, 0.5), of(1, 0.5)])
    assert steady.rows[0].stderr == pytest.approx(0.01 / 2**0.5)


def test_command_runs_and_shows(tmp_path, capsys):
    store = ["--store", str(tmp_path / "store"), "--size", "smoke"]
    assert main(["list", "kuzina2022/*"]) == DONE
    assert ITEM in capsys.readouterr().out
    assert main(["run", ITEM, "images=4", *store, "--minutes=-1"]) == UNFINISHED
    out = ["--out", str(tmp_path), "--name", "ratio"]
    assert main(["run", ITEM, *store, *out, "images=4"]) == DONE
    with pytest.raises(SystemExit):
        main(["run", ITEM, "--sizes", "smoke"])
    assert main(["status", *store[:2]]) == DONE
    assert "finished" in capsys.readouterr().out
    assert main(["table", ITEM, "images=4", *store]) == DONE
    assert capsys.readouterr().out == (tmp_path / "ratio.md").read_text()
    facts = json.loads((tmp_path / "ratio.json").read_text())["facts"]
    assert facts["command"] == f"python -m experiments run {ITEM} images=4 --size smoke --seed 0"
    assert {"seed", "date", "versions", "device", "commit"} <= facts.keys()


def test_command_says_what_is_wrong(tmp_path, capsys):
    assert main(["run", "kuzina2022/rati"]) == WRONG_USE
    assert "did you mean 'kuzina2022/ratio'" in capsys.readouterr().err
    assert main(["run", ITEM, "images"]) == WRONG_USE
    assert main(["table", ITEM, "--store", str(tmp_path)]) == WRONG_USE
    assert "no finished run" in capsys.readouterr().err


def test_every_item_says_what_it_does():
    for name, found in load_items().items():
        assert name.count("/") == 1 and name == name.lower()
        assert found.about.endswith(".") and "smoke" in found.sizes, name


def test_commands_in_the_docs_run():
    items, found = load_items(), 0
    for path in [*(ROOT / "docs").rglob("*.md"), ROOT / "experiments" / "README.md"]:
        text = path.read_text("utf-8").replace("\\\n", " ")
        for words in re.findall(r"python -m experiments run ([^\n`#]+)", text):
            name, *rest = shlex.split(words)
            fields = [word for word in rest if re.match(r"\w+=", word)]
            if "ITEM" in name or "*" in name:
                continue
            size = rest[rest.index("--size") + 1] if "--size" in rest else "laptop"
            items[name].spec(size, dict(word.split("=", 1) for word in fields))
            found += 1
    assert found > 20


def test_progress_tells_time_to_go(tmp_path):
    """Shares of nested loops; what an earlier run had computed takes no time of this one."""
    from experiments.harness import Run

    def words(folder, names):
        seconds = iter(range(0, 1000, 10))
        stream = io.StringIO()
        lines = Lines(every=0, stream=stream, clock=lambda: next(seconds), task="item")
        run = Run("item", {}, "smoke", 0, Store(folder), tell=lines)
        for first in run.each("ab", (0, 2)):
            for second in run.each("xyz"):
                if first + second in names:
                    run.part(first + second, lambda: 1.0)
                    run.progress(first + second)
        for third in run.each([1, 2, 3], (1, 2)):
            run.part(str(third), lambda: 1.0)
            run.progress(str(third))
        return stream.getvalue().splitlines()

    lines = words(tmp_path, ("ax", "ay", "bz"))
    assert lines[:3] == [
        "item: 0 % after 10 s: begun",
        "item: 8 % after 20 s, about 4 min to go: ax",
        "item: 16 % after 30 s, about 2 min to go: ay",
    ]
    assert lines[3].startswith("item: 50 %") and lines[-1].startswith("item: 100 %")
    assert words(tmp_path, ("ax", "ay", "by", "bz"))[:2] == [
        "item: 33 % after 10 s: going on",
        "item: 41 % after 20 s, about 2 min to go: by",
    ]


def test_leaving_reader_gets_no_traceback(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert main(["list"]) == UNFINISHED

    def interrupted(pattern):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.__main__.chosen", interrupted)
    assert main(["list"]) == INTERRUPTED
    assert "goes on" in capsys.readouterr().err


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_item_goes_on(kills, tmp_path):
    """A real item, killed as soon as it has stored one more part, ends as if nothing had been."""

    def command(name):
        words = [sys.executable, "-m", "experiments", "run", "kuzina2022/strength"]
        words += ["measures=similarity", "defenses=rules", "--size", "smoke", "--store"]
        return [*words, str(tmp_path / name), "--out", str(tmp_path / name), "--name", "page"]

    def stored():
        return len([*(tmp_path / "killed").rglob("*.json")])

    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command("whole"), check=True, **quiet)
    for _ in range(kills):
        before = stored()
        run = subprocess.Popen(command("killed"), **quiet)
        while stored() == before and run.poll() is None:
            time.sleep(0.01)
        run.kill()
        run.wait()
        assert stored() > before or run.returncode == 0
    subprocess.run(command("killed"), check=True, **quiet)
    whole, killed = (
        json.loads((tmp_path / name / "page.json").read_text("utf-8"))["rows"]
        for name in ("whole", "killed")
    )
    assert whole and whole == killed
