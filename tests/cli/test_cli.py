import json
import math
import os
import shlex
import subprocess
import sys
import warnings
from importlib import metadata

import pytest
import torch
import yaml

import robustvae as rv
from robustvae import cli, errors, zoo
from robustvae.audit import job
from robustvae.cli import parser
from robustvae.errors import single_line

TINY = {
    "inputs": 4,
    "shard": 2,
    "draws": 50,
    "margins": {"steps": 5, "restarts": 1},
    "gallery": 1,
    "probes": 2,
    "gradient_free": 5,
    "longer": 1,
    "attacks": [{"search": {"name": "projected-ascent", "steps": 5, "restarts": 2}, "radius": 0.5}],
}


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def fails(capsys, *arguments, says):
    assert cli.main(list(arguments)) == cli.WRONG_USE
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err
    assert "internal error" not in printed.err
    assert says in printed.err


def test_audit_writes_report_and_says_where(plan, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["audit", "--plan", str(plan), "--out", str(out)]) == cli.DONE
    files = {"report.html", "record.json", "adversarials.safetensors", "manifest.json"}
    assert files <= {path.name for path in out.iterdir()}
    assert not (out / ".parts").exists()
    record = rv.Record.from_json((out / "record.json").read_text())
    assert len(record.rows) == 12 and record.question.r == 0.86
    assert str(out / "report.html") in capsys.readouterr().out.replace("\n", "")


def test_nobody_elses_files_are_removed(plan, tmp_path):
    kept = tmp_path / "out" / ".parts" / "mine.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    assert cli.main(["audit", "--plan", str(plan), "--out", str(tmp_path / "out")]) == cli.DONE
    assert [path.name for path in kept.parent.iterdir()] == ["mine.json"]


def test_same_seed_gives_same_bytes(plan):
    images = rv.data.load("digits", split="test")
    records = [
        rv.audit(rv.Victim(rv.load("digits-vae")), images, plan=plan, seed=3) for _ in range(2)
    ]
    texts = [json.loads(record.to_json()) | {"timing": None} for record in records]
    assert json.dumps(texts[0]) == json.dumps(texts[1])
    other = rv.audit(rv.Victim(rv.load("digits-vae")), images, plan=plan, seed=4)
    assert other.rows != records[0].rows


def test_interrupted_audit_resumes_to_same_record(plan, tmp_path, capsys, monkeypatch):
    arguments = ["audit", "--plan", str(plan), "--out"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli.main([*arguments, str(whole)]) == cli.DONE
    compute, calls = job.AuditJob.compute, []

    def interrupted(self, task, *rest):
        calls.append(task.key)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(self, task, *rest)

    monkeypatch.setattr(job.AuditJob, "compute", interrupted)
    assert cli.main([*arguments, str(cut)]) == cli.INTERRUPTED == 130
    assert "goes on" in capsys.readouterr().err
    assert cli.main([*arguments, str(cut)]) == cli.DONE
    assert "going on with 2 of" in capsys.readouterr().err
    assert calls[2] == calls[3] and len(set(calls)) == len(calls) - 1
    first, second = (
        rv.Record.from_json((folder / "record.json").read_text()) for folder in (whole, cut)
    )
    assert first.rows == second.rows
    assert first.gallery == second.gallery


def test_requirements_decide_the_exit_code(plan, tmp_path, capsys):
    arguments = ["audit", "--plan", str(plan), "--out", str(tmp_path / "out"), "--quiet"]
    assert cli.main([*arguments, "--require", "inside_ball", "--require", "size>=0"]) == cli.DONE
    assert cli.main([*arguments, "--require", "size>=9"]) == cli.FAILED
    assert "size >= 9, it is 0." in capsys.readouterr().err


def test_hopeless_run_stops_before_training(plan, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(job.AuditJob, "compute", lambda *_, **__: pytest.fail("it ran"))
    arguments = ["audit", "--plan", str(plan), "--quiet", "--out"]
    out = str(tmp_path / "out")
    fails(capsys, *arguments, out, "--require", "inside_bal", says="did you mean 'inside_ball'")
    fails(capsys, *arguments, out, "--require", "damege>=0.1", says="did you mean 'damage'")
    (tmp_path / "file").write_text("in the way")
    fails(capsys, *arguments, str(tmp_path / "file"), says="could not be written")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["audti"], "audti"),
        (["audit", "--plna", "quick"], "--plna"),
        (["audit", "digit-vae"], "did you mean 'digits-vae'"),
        (["audit", "no/such/folder"], "checkpoint"),
        (["audit", "--plan", "quik"], "did you mean 'quick'"),
        (["audit", "--data", "minst"], "did you mean 'mnist'"),
        (["audit", "--split", "half"], "half"),
        (["audit", "--seed", "-1"], "seed"),
        (["audit", "--seed", "x"], "--seed"),
        (["audit", "--device", "abacus"], "abacus"),
        (["train", "no-such-recipe"], "recipe"),
        (["certify", "--m", "1.5"], "m must"),
        (["certify", "--r", "nan"], "r must"),
        (["certify", "--inputs", "0"], "--inputs"),
        (["certify", "--displacement", "centred"], "did you mean 'centered'"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_use_is_one_line(capsys, arguments, says):
    fails(capsys, *arguments, says=says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"atacks": []}, "did you mean 'attacks'"),
        ({"attacks": [{"radius": 1, "goall": "x"}]}, "did you mean 'attacks.0.goal'"),
        ({"attacks": [{"radius": -1}]}, "attacks.0.radius"),
        ({"attacks": [{"radius": 1, "stpes": 3}]}, "attacks.0.stpes"),
        ({"inputs": 10**6}, "has 355"),
        ({"m": 1}, "m"),
        ({"r": 0}, "r: Input should be greater than 0"),
    ],
)
def test_bad_plans_are_one_line(tmp_path, capsys, change, says):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({**TINY, **change}))
    fails(capsys, "audit", "--plan", str(path), "--out", str(tmp_path / "out"), says=says)
    assert not (tmp_path / "out" / "report.html").exists()


def test_no_arguments_print_help(capsys):
    assert cli.main([]) == cli.WRONG_USE
    printed = capsys.readouterr()
    assert "audit" in printed.out
    assert printed.err == ""


def test_missing_data_says_where_it_looked(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTVAE_DATA", str(tmp_path))
    fails(capsys, "audit", "--data", "mnist", says=str(tmp_path))


def test_images_of_another_shape_are_refused(capsys, data_root):
    fails(capsys, "audit", "--data", "mnist", says="(1, 8, 8)")


def test_certify_floors_what_it_prints(tmp_path, capsys):
    out = tmp_path / "radii.json"
    assert cli.main(["certify", "--inputs", "10", "--out", str(out)]) == cli.DONE
    content = json.loads(out.read_text())
    assert len(content["radius"]) == 10
    assert content["kind"] == "deterministic"
    assert f"{math.floor(min(content['radius']) * 1e4) / 1e4:.4f}" in capsys.readouterr().out


def test_rescore_agrees_and_notices_what_altered(tmp_path, capsys):
    from robustvae.attacks import store

    vae, ball = rv.load("digits-vae"), rv.Ball("l2", 0.5)
    x, _ = rv.data.load("digits", split="test").sample(3, generator=rv.generator(0))
    attack = rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(steps=3, restarts=1), ball)
    found = attack(rv.Victim(vae), x, generator=rv.generator(0))
    store(tmp_path, rv.Victim(vae), x, found, ball, attack="damage")
    assert cli.main(["rescore", str(tmp_path)]) == cli.DONE
    assert "3 of 3" in capsys.readouterr().out
    rv.models.checkpoint.save(
        rv.models.create("vae", architecture="conv8", latent=2).float(), tmp_path / "model"
    )
    assert cli.main(["rescore", str(tmp_path)]) == cli.FAILED
    (tmp_path / "adversarials.npz").write_bytes(b"no")
    fails(capsys, "rescore", str(tmp_path), says="damaged")


def test_attacked_images_can_be_scored_again(tmp_path, capsys):
    search = "projected-ascent:steps=3,restarts=1"
    options = ["--inputs", "10", "--radius", "0.5", "--search", search, "--out", str(tmp_path)]
    assert cli.main(["attack", *options, "--defense", "posterior-mode:steps=2"]) == cli.DONE
    printed = capsys.readouterr().out
    assert "undefended" in printed and "posterior-mode:steps=2" in printed
    assert cli.main(["rescore", str(tmp_path / "undefended")]) == cli.DONE
    assert cli.main(["rescore", str(tmp_path / "defense-1")]) == cli.DONE
    assert "10 of 10" in capsys.readouterr().out


def test_attack_beats_noise_of_its_size(capsys):
    assert cli.main(["attack", "--inputs", "10", "--radius", "0.5"]) == cli.DONE
    cells = capsys.readouterr().out.split("undefended")[1].split("│")
    damage, noise = float(cells[3]), float(cells[4])
    assert damage > 1.5 * noise > 0


def test_defense_is_audited_as_named(plan, tmp_path):
    arguments = ["audit", "--plan", str(plan), "--out", str(tmp_path), "--quiet", "--defense"]
    log = tmp_path / "numbers.jsonl"
    names = ["--executor", "serial", "--logger", f"jsonl:path='{log}'"]
    assert cli.main([*arguments, "posterior-sample", *names]) == cli.DONE
    numbers, files = map(json.loads, log.read_text().splitlines())
    assert numbers["audit/passed"] == 1
    assert files["files"] == str(tmp_path)
    record = rv.Record.from_json((tmp_path / "record.json").read_text())
    assert "PosteriorSample" in record.to_json()


def test_executor_and_logger_refused_early(capsys, tmp_path):
    words = ["audit", "--plan", "smoke", "--out", str(tmp_path / "out")]
    fails(capsys, *words, "--executor", "seriall", says="did you mean 'serial'")
    fails(capsys, *words, "--executor", "serial", "--workers", "2", says="give one of them")
    fails(capsys, *words, "--logger", "json", says="did you mean 'jsonl'")
    assert not (tmp_path / "out").exists()


def test_design_prints_constants_that_hold(capsys):
    assert cli.main(["design", "--margin", "0.3", "--r", "8"]) == cli.DONE
    assert "10.2" in capsys.readouterr().out
    fails(capsys, "design", "--margin", "1e9", "--r", "1", says="no constants guarantee")
    fails(capsys, "design", "--margin", "-1", "--r", "1", says="margin must be positive")


def test_designed_recipe_trains_and_certifies(tmp_path, capsys):
    """From a wanted margin to a recipe, a trained model and a certificate for every input."""
    path, run, out = tmp_path / "mine.yaml", tmp_path / "run", tmp_path / "certificate.json"
    ask = ["--r", "1.5", "--m", "0.6"]
    wanted = ["--margin", "0.35", *ask, "--latent", "4", "--data", "digits", "--epochs", "1"]
    assert cli.main(["design", *wanted, "--recipe", str(path)]) == cli.DONE
    log = tmp_path / "numbers.jsonl"
    kept = ["--logger", f"jsonl:path='{log}'", "--quiet"]
    assert cli.main(["train", str(path), "--out", str(run), *kept]) == cli.DONE
    assert json.loads(log.read_text())["step"] == 1
    told = ["--data", "digits", "--inputs", "20", "--out", str(out), "--quiet"]
    assert cli.main(["certify", str(run), *ask, *told]) == cli.DONE
    assert min(json.loads(out.read_text())["radius"]) >= 0.35
    capsys.readouterr()


def test_zoo_list_names_every_bundled_model(capsys):
    assert cli.main(["zoo", "list"]) == cli.DONE
    printed = capsys.readouterr().out
    assert all(name in printed for name in zoo.bundled())


def test_group_alone_is_wrong_use(capsys):
    assert cli.main(["zoo"]) == cli.WRONG_USE
    assert "Usage" in capsys.readouterr().out


def test_null_character_refused(capsys):
    assert cli.main(["board", "\0"]) == cli.WRONG_USE
    assert "null character" in capsys.readouterr().err


def test_doctor_and_version(capsys):
    assert cli.main(["doctor"]) == cli.DONE
    assert cli.main(["--version"]) == cli.DONE
    assert rv.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [[], *([name] for name in parser.command_names()), ["zoo", "train"]]
)
def test_help_is_there(command, capsys):
    assert cli.main([*command, "--help"]) == cli.DONE
    assert "Usage" in capsys.readouterr().out


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == cli.DONE
    printed = " ".join(capsys.readouterr().out.split())
    for name in parser.command_names():
        assert f"{name} {parser.summary(name)}" in printed
        assert cli.main([name, "--help"]) == cli.DONE
        assert name == "zoo" or parser.summary(name) in " ".join(capsys.readouterr().out.split())


def modules_after(code: str) -> set[str]:
    code += "; import sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["list"], ["list", "goal"]], ids=" ".join
)
def test_light_commands_import_little(words):
    heavy = {"torch", "numpy", "scipy", "rich", "pydantic", "jinja2", "yaml"}
    heavy |= set() if "--help" in words else {"typer"}
    if metadata.version("typer") < "0.2":  # it imported rich itself
        heavy -= {"rich"}
    assert not modules_after(f"from robustvae.cli import main; main({words})") & heavy


def test_importing_the_library_is_lazy():
    assert "torch" not in modules_after("import robustvae")
    code = "import robustvae as rv; rv.load, rv.audit, rv.report, rv.certify"
    heavy = {"pyarrow", "matplotlib", "lightning_fabric", "torchmetrics", "huggingface_hub"}
    heavy |= {"sympy"}  # of torch's compiler: a second of every command that loads it
    assert not modules_after(code) & (heavy - modules_after("import torch"))


def test_list_shows_members_with_first_line(capsys):
    assert cli.main(["list", "goal"]) == cli.DONE
    goals = capsys.readouterr().out
    assert "latent-shift" in goals and "Move the latent code away" in goals
    assert cli.main(["list"]) == cli.DONE
    assert goals.strip() in capsys.readouterr().out
    fails(capsys, "list", "gaol", says="did you mean 'goal'")


def test_python_m_runs_the_command_line():
    command = [sys.executable, "-m", "robustvae", "--version"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == f"robustvae {rv.__version__}\n"


def test_termination_ends_like_an_interrupt(tmp_path):
    code = (
        "import os, signal, sys; from robustvae import cli; from robustvae.cli import common;"
        "common.load_model = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM);"
        "sys.exit(cli.main(['certify']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == cli.INTERRUPTED
    line = run.stderr.strip()  # older versions of click print an empty line of their own
    assert line.startswith("error: interrupted") and "\n" not in line


@pytest.mark.parametrize("name", ["[/foo]d", "a[red]b", "x\x1b[31my", "\x1b]0;title\x07"])
def test_outside_text_printed_as(name, capsys):
    from robustvae.cli.printing import show, show_table

    show(name)
    show_table([(name, 1.0)], title=name, headings=(name, "b"), numbers=[1])
    printed = capsys.readouterr().out
    assert printed.count(single_line(name)) >= 3
    assert "\x1b" not in printed and "\x07" not in printed


def test_long_arguments_are_shortened(capsys):
    fails(capsys, "audit", "m" * 5000, says="m...")
    fails(capsys, "audit", "--plan", "no-" * 2000, says="no-no...")


def test_install_commands_name_real_packages():
    from robustvae.errors import install_command, requirements

    assert install_command("hub").startswith("pip install 'huggingface-hub>=")
    assert requirements("nothing") == []


def test_peers_leave_torch_alone():
    """torchattacks asks for a torchvision that brings another torch: it is installed alone."""
    from robustvae.errors import install_command

    alone, used = install_command("peers").split(" && ")
    assert alone.startswith("pip install --no-deps ") and "torchattacks" in alone
    assert {"eagerpy", "packaging", "requests"} <= set(used.split())


@pytest.mark.slow
def test_install_commands_resolve():
    """Each command that doctor prints, as pip resolves it; nothing is installed."""
    from robustvae.errors import install_command

    def resolve(line):
        words = shlex.split(line)
        dry = [sys.executable, "-m", *words[:2], "--dry-run", "--quiet", *words[2:]]
        return subprocess.run(dry, capture_output=True, text=True, check=False)

    if resolve("pip install --no-deps --ignore-installed safetensors").returncode:
        pytest.skip("no package index can be reached")
    for extra in metadata.metadata("robustvae").get_all("Provides-Extra"):
        for line in install_command(extra).split(" && "):
            done = resolve(line)
            assert done.returncode == 0, (line, done.stderr)


def test_every_command_has_same_option_names():
    """One name for one thing: what a command calls r, m, norm, seed, out, quiet, another does."""
    names = {"seed": "--seed", "quiet": "--quiet", "out": "--out", "r": "--r", "m": "--m"}
    for name in parser.command_names():
        for command in commands_of(name):
            for param in command.params:
                wanted = names.get(param.name)
                assert wanted is None or wanted in param.opts, (name, param.name)


def commands_of(name):
    command = parser._Commands(name="x").get_command(None, name)
    return list(getattr(command, "commands", {"": command}).values())


def test_warnings_are_one_line(capsys, monkeypatch):
    def warn(*_):
        warnings.warn("of another\npackage", UserWarning, stacklevel=1)
        return cli.DONE

    monkeypatch.setattr("robustvae.cli.entry._call", warn)
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["list"]) == cli.DONE
    assert capsys.readouterr().err == "note: of another package\n"
    assert warnings.showwarning is before


def test_file_that_exits_is_refused(tmp_path, capsys):
    path = tmp_path / "leaving.py"
    path.write_text("import sys\ndef build(): sys.exit(7)\n")
    fails(capsys, "check", f"{path}:build", "--data", "digits", says="SystemExit")


def test_quiet_check_names_remedies_only(capsys):
    assert cli.main(["check", "digits-vae", "--inputs", "2"]) == cli.DONE
    whole = capsys.readouterr().out.splitlines()
    assert cli.main(["check", "digits-vae", "--inputs", "2", "--quiet"]) == cli.DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == whole[0] and any(line.startswith("passed") for line in whole)
    assert lines == [line for line in whole if not line.startswith("passed")]


def test_unknown_displacement_is_refused(plan, tmp_path, capsys):
    words = ["audit", "--plan", str(plan), "--out", str(tmp_path / "out")]
    fails(capsys, *words, "--displacement", "1e308", "-q", says="unknown displacement")


def test_pipe_is_no_plan(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")  # nobody writes into it: reading would never end
    words = ("campaign", str(tmp_path / "pipe"), "--out", str(tmp_path / "out"))
    fails(capsys, *words, says="must be a regular file")


FACTORY = """
import torch

def build():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4), torch.nn.Linear(4, 16))
    return model.float()

def empty():
    pass
"""


def test_arrays_come_in_the_stated_unit(tmp_path):
    import numpy as np

    from robustvae.cli import common

    (tmp_path / "model.py").write_text(FACTORY)
    values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 1, 16)
    np.save(tmp_path / "audio.npy", values)
    np.save(tmp_path / "pictures.npy", (values.reshape(4, 1, 4, 4) + 1) / 2)
    factory = f"{tmp_path}/model.py:build"
    for name, pixels in (("audio", "-1,1"), ("pictures", "-1,1"), ("pictures", "mean=0.5,std=0.5")):
        options = common.ModelAndData(factory, f"{tmp_path}/{name}.npy", pixels=pixels)
        vae, images = options.load()
        assert vae.space.low == -1 and vae.space.high == 1
        expected = (torch.from_numpy(values).reshape(images.x.shape) + 1) / 2
        torch.testing.assert_close(images.x, expected.to(images.x))
    with pytest.raises(errors.ModelError, match="returned None: end it with return model"):
        common.load_model(f"{tmp_path}/model.py:empty", data="digits")
    for wrong in ("1", "mean=0.5", "mean=a,std=1"):
        with pytest.raises(errors.ConfigError, match="or a normalization, such as"):
            common.read_pixels(wrong)
