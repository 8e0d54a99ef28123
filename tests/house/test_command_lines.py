"""Random command lines, 500 of them: parsing and checking are real, what computes is a stub.

Every line is built from a command's own options with hostile values. It ends with an exit code of
ours and, where it is refused, with one line of ours.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import robustvae as rv
from robustvae import cli
from robustvae.cli import parser
from robustvae.errors import RobustVAEError

LINES = settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# `doctor` takes no arguments and looks at the whole machine each time.
COMMANDS = [name for name in parser.command_names() if name not in ("doctor", "app")]
HOSTILE = [
    *("", " ", "nan", "inf", "-inf", "-1", "0", "1", "2", "0.5", "1e999", "9" * 400, "x" * 5000),
    *("[red]", "[/foo]d", "{}", "%s", "a\nb", "\x1b[31m", "\x1b]0;t\x07", "\0", "\u2603", "\udc80"),
    *("..", ".", "nothing/here", "digits", "digits-vae", "folder:.", "folder:nowhere"),
    *("mnist+size:1e9", "csv", "quick", "l2", "linf", "centered", "test", "cpu", "hpu", "cuda:99"),
    *("privateuseone", "cuda", "damage", "inside>=", ">=1", "certified>=0.1", "--", "-q", "-h"),
    *("maximum-damage", "maximum-damage:through=5", "latent-target", "hmc:steps=-1", "a:b=c"),
    *("robust-posterior:norm=linf,radius=0.2", "robust-posterior:" + "a=(" * 50, "os:system"),
    *("builtins:exec", "json:loads"),
]
WORDS = st.sampled_from(HOSTILE) | st.text(max_size=6)


def options(name: str) -> tuple[list[str], list[list[str]]]:
    """Names of its commands, and the options of each."""
    command = parser._Commands(name="x").get_command(None, name)
    several = getattr(command, "commands", None)
    commands = several or {"": command}
    return list(commands), [
        [option for parameter in one.params for option in getattr(parameter, "opts", [])]
        for one in commands.values()
    ]


OPTIONS = {name: options(name) for name in COMMANDS}


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    name = draw(st.sampled_from(COMMANDS))
    parts, names = OPTIONS[name]
    place = draw(st.integers(0, len(parts) - 1))
    words = [name, *([parts[place]] if parts[place] else [])]
    long = [option for option in names[place] if option.startswith("--")] or ["--help"]
    pair = st.tuples(st.sampled_from(long), WORDS).map(list)
    for part in draw(st.lists(pair | WORDS.map(lambda word: [word]), max_size=4)):
        words += part
    return words


def refuse(*_: object, **__: object) -> None:
    raise RobustVAEError("a stub: nothing is computed here")


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """Nothing computes, nothing is written outside a folder of its own."""
    import robustvae.training
    import robustvae.zoo
    from robustvae.attacks import Attack

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("lines") / "inner"
        folder.mkdir()
        patch.chdir(folder)
        for name in ("certify", "evaluate", "audit", "check", "verify"):
            patch.setitem(vars(rv), name, refuse)
        audits = importlib.import_module("robustvae.audit")
        for name in ("audit", "verify"):
            patch.setattr(audits, name, refuse)
        patch.setattr(Attack, "run", refuse)
        patch.setattr(robustvae.training, "train_recipe", refuse)
        patch.setattr(robustvae.zoo, "train", refuse)
        yield


def run(words: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    return code, out.getvalue(), err.getvalue()


@given(words=lines())
@LINES
def test_any_line_ends_in_our_words(stubs: None, words: list[str]) -> None:
    before = os.getcwd()
    code, out, err = run(words)
    assert os.getcwd() == before
    assert code in (cli.DONE, cli.FAILED, cli.WRONG_USE), words
    assert "internal error" not in err and "Traceback" not in err, (words, err)
    assert "\x1b" not in out + err and "\x07" not in out + err, words
    if code == cli.WRONG_USE and err:
        assert err.count("\n") == 1 and len(err) < 1000, (words, err)
