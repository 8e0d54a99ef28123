"""An input that a model raises for costs the others nothing, in whatever looks at many."""

import json
import os
import signal

import numpy as np
import pytest
import torch

import robustvae as rv
from robustvae import cli, zoo
from robustvae.attacks import attack as attacking
from robustvae.certificates import certification

WORDS = {
    "certify": [
        *("certify", "digits-vae", "--inputs", "25", "--defense", "input-noise:stddev=0.1"),
        *("--displacement", "full", "--draws", "100"),
    ],
    "attack": [
        *("attack", "digits-vae", "--inputs", "25", "--search"),
        "projected-ascent:steps=2,restarts=1",
    ],
    "evaluate": [
        *("evaluate", "digits-vae", "--inputs", "40", "--draws", "3", "--part", "weights"),
        *("--part", "likelihood", "--part", "reconstruction"),
    ],
}
PLACE = 7


@pytest.fixture(scope="module")
def digits():
    return rv.data.load("digits", split="test")


def moody(vae, bad, radius):
    """The model, which raises for inputs within a radius of one of them."""
    encode = vae.encode

    def raising(x):
        far = (x.detach() - bad).flatten(1).norm(dim=1)
        if bool((far < radius).any()):
            raise ValueError("not this one")
        return encode(x)

    vae.encode = raising
    return vae


@pytest.fixture
def bad(digits, monkeypatch):
    """The number of an input for which the model of the command line raises."""

    def choose(command):
        count = int(WORDS[command][WORDS[command].index("--inputs") + 1])
        generator = rv.generator(0)
        if command == "evaluate":
            generator = rv.seeding.shard_generator(0, 0, "images")
        number = int(digits.choose(count, stratified=True, generator=generator)[PLACE])
        load, radius = zoo.load, 0.5 if command == "evaluate" else 1.5  # noise and attacks move it
        monkeypatch.setattr(
            zoo,
            "load",
            lambda *words, **options: moody(load(*words, **options), digits[number].x, radius),
        )
        return number

    return choose


def run(words, out):
    return cli.main([*words, "--out", str(out), "-q"])


def test_certify_goes_on_without_bad_input(bad, tmp_path, capsys):
    words, whole, out = WORDS["certify"], tmp_path / "whole.json", tmp_path / "out.json"
    assert run(words, whole) == 0
    bad("certify")
    assert run(words, out) == 1
    streams = capsys.readouterr()
    assert "certify: 1 of 25 inputs failed" in streams.err
    assert f"input {PLACE + 1}: ValueError: not this one" in streams.err
    before, after = (json.loads(path.read_text()) for path in (whole, out))
    assert after["radius"][PLACE] is None
    assert after["status"][PLACE] == "failed: ValueError: not this one"
    others = [i for i in range(25) if i != PLACE]
    assert [after["radius"][i] for i in others] == pytest.approx(
        [before["radius"][i] for i in others], rel=1e-5
    )
    assert after["draws"][PLACE] == 0 and after["inputs"] == before["inputs"]


def test_attack_goes_on_without_bad_input(bad, tmp_path, capsys):
    words, out = WORDS["attack"], tmp_path / "out"
    number = bad("attack")
    assert run(words, out) == 1
    assert "undefended: 1 of 25 inputs failed" in capsys.readouterr().err
    (row,) = json.loads((out / "failures.json").read_text())["rows"]
    assert row["input"] == number and row["damage"] is None
    assert row["reason"] == "ValueError: not this one"
    arrays = np.load(out / "undefended" / "adversarials.npz")
    assert len(arrays["x"]) == 24 and np.isfinite(arrays["damage"]).all()
    assert cli.main(["rescore", str(out / "undefended")]) == 0


def test_attack_keeps_stranger_file(tmp_path, capsys):
    (tmp_path / "failures.json").write_text("mine")
    assert run(WORDS["attack"], tmp_path) == 2
    assert (tmp_path / "failures.json").read_text() == "mine"


def test_evaluate_goes_on_without_bad_input(bad, tmp_path, capsys):
    out = tmp_path / "out.json"
    number = bad("evaluate")
    assert run(WORDS["evaluate"], out) == 1
    assert "evaluate: 1 of" in capsys.readouterr().err
    result = json.loads(out.read_text())
    assert result["facts"]["failures"] == {str(number): "ValueError: not this one"}
    assert number not in result["per_image"]["index"] and result["facts"]["inputs"] == 39
    assert result["absent"] == {} and len(result["per_image"]["nll"]) == 39


STEPS = {"certify": (certification, "answer"), "attack": (attacking.Attack, "run")}


@pytest.mark.parametrize("command", STEPS)
def test_killed_run_keeps_failures(command, bad, tmp_path, monkeypatch, capsys):
    """Killed in its second range, a run tries neither the first nor its bad input again."""
    words, out = WORDS[command], tmp_path / "out"
    bad(command)
    home, name = STEPS[command]
    step, sizes = getattr(home, name), []

    def counted(*args, **options):
        sizes.append(len(args[0].x) if command == "certify" else len(args[2]))
        return step(*args, **options)

    monkeypatch.setattr(home, name, counted)
    pid = os.fork()
    if not pid:

        def killed(*args, **options):
            if len(sizes) == 21:  # the first range, and its 20 inputs one by one
                os.kill(os.getpid(), signal.SIGKILL)
            return counted(*args, **options)

        monkeypatch.setattr(home, name, killed)
        run(words, out)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert run(words, out) == 1 and sizes == [5]
    assert "going on with 1 of 2 parts" in capsys.readouterr().err


def test_certify_in_python_names_bad_input(digits):
    vae, x = rv.load("digits-lipschitz-vae"), digits.x[:6]
    asked = {"r": 0.6, "displacement": "centered", "generator": rv.generator(0)}
    whole = rv.certify(vae, x, **asked)
    encode = vae.encode
    vae.encode = lambda images: (
        1 / 0 if bool((images == x[2]).flatten(1).all(1).any()) else encode(images)
    )
    result = rv.certify(rv.Victim(vae), x, **{**asked, "methods": ["first_order"]})
    assert result.failures == {2: "ZeroDivisionError: division by zero"}
    assert torch.isnan(result.radius[2]) and "1 failed" in repr(result)
    assert whole.failures == {}
    with pytest.raises(ZeroDivisionError):  # nothing is left that could be told apart from it
        rv.certify(rv.Victim(vae), x[2:3], **{**asked, "methods": ["first_order"]})


def test_suite_goes_on_without_bad_input(digits):
    vae, x = rv.load("digits-vae"), digits.x[:5]
    suite = rv.AttackSuite("smoke", balls=(rv.Ball("l2", 0.5),))
    whole = suite(rv.Victim(vae), x, generator=rv.generator(0))
    result = suite(rv.Victim(moody(vae, x[2], 0.6)), x, generator=rv.generator(0))
    others = [0, 1, 3, 4]
    for before, after in zip(whole.rows, result.rows, strict=True):
        assert after.status[2] == "failed: ValueError: not this one"
        assert torch.isnan(after.damage[2]) and torch.isnan(after.similarity[2])
        assert torch.allclose(after.damage[others], before.damage[others], rtol=1e-2)
    assert "nan" not in result.table() and "nan" not in repr(result)


def smooth(digits, place=2, count=5):
    """A smoothed victim that raises near one of some inputs, and the inputs."""
    x = digits.x[:count]
    vae = moody(rv.load("digits-vae"), x[place], 1.5)
    head = lambda z: torch.stack([z[:, 0], -z[:, 0]], 1)  # noqa: E731
    return rv.Victim(vae, rv.InputNoise(stddev=0.05), head), x


def near(a, b):
    return (-(a - b).flatten(1).norm(dim=1)).exp()


PYTHON = {
    "curve": (
        lambda victim, x, g: rv.certified_curve(victim, x, [0.1], draws=200, generator=g),
        ("tolerance", "centers"),
    ),
    "score": (
        lambda victim, x, g: rv.certify_score(victim, x, sizes=[0.1], draws=200, generator=g),
        ("lower", "upper"),
    ),
    "expectation": (
        lambda victim, x, g: rv.certificates.certify_expectation(
            victim, x, near, [0.1], draws=200, generator=g
        ),
        ("lower", "mean"),
    ),
    "decision": (
        lambda victim, x, g: rv.certificates.certify_decision(victim, x, draws=200, generator=g),
        ("radius",),
    ),
    "attack": (
        lambda victim, x, g: rv.Attack(
            rv.MaximumDamage(), rv.ProjectedAscent(5, 2), rv.Ball("l2", 0.1)
        )(victim, x, generator=g),
        ("score",),
    ),
}


@pytest.mark.parametrize("name", PYTHON)
def test_python_call_names_bad_input(digits, name):
    call, columns = PYTHON[name]
    victim, x = smooth(digits)
    result = call(victim, x, rv.generator(0))
    assert result.failures == {2: "ValueError: not this one"}
    healthy = rv.Victim(rv.load("digits-vae"), victim.defense, victim.classifier)
    whole = call(healthy, x, rv.generator(0))
    assert whole.failures == {}
    others = [0, 1, 3, 4]
    for column in columns:
        values = getattr(result, column)
        assert bool(values[2].isnan().all())
        torch.testing.assert_close(
            values[others], getattr(whole, column)[others], rtol=1e-4, atol=1e-5
        )
    with pytest.raises(ValueError, match="not this one"):  # every input raises: the call's fault
        call(victim, x[2:3], rv.generator(0))


def test_attack_of_some_keeps_radii(digits):
    victim, x = smooth(digits)
    radius = torch.tensor([0.05, 0.1, 0.15, 0.2, 0.25], dtype=x.dtype)
    attack = rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(5, 2), rv.Ball("l2", radius))
    result = attack(victim, x, generator=rv.generator(0))
    torch.testing.assert_close(
        result.size, torch.tensor([0.05, 0.1, 0.0, 0.2, 0.25], dtype=x.dtype), rtol=1e-3, atol=0
    )
    assert torch.equal(result.x_adv[2], x[2]) and result.status[2].startswith("failed: ")


def test_common_change_without_bad_input(digits):
    victim, x = smooth(digits)
    attack = rv.Attack(rv.MaximumDamage(), rv.Universal(steps=5, restarts=1), rv.Ball("l2", 0.1))
    result = attack(victim, x, generator=rv.generator(0))
    assert list(result.failures) == [2]
    rest = attack(victim, x[[0, 1, 3, 4]], generator=rv.generator(0))
    assert torch.equal(result.x_adv[[0, 1, 3, 4]], rest.x_adv)


def test_refused_victim_is_not_retried(digits):
    """Where draws depend on one another, single inputs may not show it."""
    vae, x = rv.load("digits-vae"), digits.x[:4]
    decode = vae.decode

    def shifted(z):
        mean = z.mean(0, keepdim=True)  # of the batch
        return decode(z + mean)

    vae.decode = shifted
    with pytest.raises(rv.errors.UnsupportedError):
        rv.certified_curve(
            rv.Victim(vae, rv.InputNoise(0.05)), x, [0.1], draws=200, generator=rv.generator(0)
        )


def test_failed_score_counts_against_auroc(digits):
    victim, x = smooth(digits)
    bounds = rv.certify_score(victim, x, sizes=[0.01], draws=300, generator=rv.generator(0))
    low = torch.full_like(bounds.lower, 1e3)
    other = rv.certificates.ScoreBounds(
        bounds.sizes, low, low + 1, torch.stack([low[:, 0], low[:, 0] + 1]), 0.999, 0.999, 0.5
    )
    assert float(rv.certificates.certified_auroc(bounds, other)[0]) == pytest.approx(0.8)
    with pytest.raises(rv.errors.ModelError, match="input 2 of 5 raised ValueError"):
        bounds.check_complete()
