"""Call the command line with combinations of hostile values; count what does not end as it should.

Each line is built from the options of a command as typer has them: small values that work, hostile
ones, and files of a folder that holds damaged records, weights, plans, recipes, images and models.
It runs for real, in a forked process that a fault ends. A line counts where it has another exit
code than 0, 1, 2 or 130, prints a traceback, a raw warning or an escape sequence, is refused in
more than one line, takes more than 20 s of CPU, or more than 1.5 GB beyond what it began with.
Exits with 1 then.

    python scripts/fuzz_cli.py --lines 20000 --seed 0

Every line has a generator of its own, so `--only NUMBER` runs one of them again.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import importlib
import io
import json
import math
import os
import pickle
import random
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import yaml
from PIL import Image

from robustvae import cli, registry
from robustvae.cli import parser
from robustvae.records.text import read_json
from robustvae.training import recipe_names

LONGEST = 20
"""CPU seconds after which a line counts as hanging; or three times as many on the clock, asleep."""

MEMORY = 1536
"""Megabytes beyond those of the process that forks, after which a line counts as greedy."""

WORLD, BATCH = 500, 50
"""Lines between two worlds, where files are damaged anew; and lines of one forked process."""

TINY = {
    "base": "smoke",
    "draws": 20,
    "margins": {"steps": 2, "restarts": 1},
    "gradient_free": 2,
    "attacks": [{"search": "projected-ascent:steps=2,restarts=1", "radius": 0.5}],
}
RECIPE = {
    "name": "tiny",
    "data": {"name": "folder:images"},
    "model": {"name": "vae", "architecture": "mlp", "image_shape": [1, 8, 8], "latent": 2},
    "training": {"epochs": 1, "batch_size": 8, "lr": 0.001},
}
CAMPAIGN = {"models": ["model"], "plan": "tiny.yaml", "data": "digits"}
CODE = """
import sys
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(64, 4), nn.Linear(2, 64)
    def forward(self, x):
        mean, log_variance = self.encoder(x.flatten(1)).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return torch.sigmoid(self.decoder(z)).reshape(-1, 1, 8, 8), mean, log_variance

def build(): return Model()
def nothing(): return None
def number(): return 5
def raising(): raise KeyError("\\x1b[31mkey\\n[red]")
def leaving(): sys.exit(7)
def wants(argument): return Model()
def linear(): return nn.Linear(3, 3)
def infinite():
    model = Model()
    model.decoder.weight.data.fill_(float("nan"))
    return model
class Breaking(Model):
    def forward(self, x): raise ZeroDivisionError("in forward")
class Stopping(Model):
    def forward(self, x): raise StopIteration
class Printing(Model):
    def forward(self, x):
        raise RuntimeError("\\x1b]0;title\\x07 line\\nline " + "x" * 9000)
value = 3
"""

SMALLNESS = ("base", "plan", "training", "attacks", "margins", "draws", "gradient_free")

NUMBERS = (
    *("nan", "inf", "-inf", "1e999", "-1e308", "1e308", "1e-320", "-0.0", "0", "-1", "1.5"),
    *(
        str(2**62),
        str(2**63),
        str(-(2**70)),
        "9" * 400,
        "1_0",
        "0x10",
        "\u0661",
        "\u00bd",
        "",
        " ",
        "1,2",
    ),
)
WORDS = (
    *("", " ", "-", "--", "-q", "-h", "--help", "=", "x" * 5000, "é" * 300, "\udc80", "\u202e"),
    *(
        "[red]",
        "[/foo]d",
        "{}",
        "{0}",
        "%s",
        "%n",
        "a\nb",
        "a\rb",
        "\x1b[31m",
        "\x1b]0;t\x07",
        "\0",
    ),
    *("null", "true", "None", "*", "~", "$HOME", "`id`", "; id", "|", "'", '"', "\\", "../..", "/"),
    *("/dev/null", "/dev/full", "/proc/self/mem", "/proc/1/mem", "CON", "a" * 255, "a/" * 2000),
    *("os:system", "builtins:exec", "json:loads", "sys:exit", "torch.nn:Linear", "nosuch:Thing"),
    *("http://127.0.0.1:9/x", "owner/name", "file:///etc/passwd", "nosuch", "digits", "digits-vae"),
)
PATHS = (
    *("file.txt", "empty", "folder", "dangling", "fifo", "loop", "array.npz", "bad.npz"),
    *("object.npz", "nan.npz", "lying.npz", "images", "images-rgb", "images-bad", "images-mixed"),
    *("images-one", "hostile", "model", "audit", "stored", "tiny.yaml", "recipe.yaml"),
    *("campaign.yaml", "deep.json", "deep.yaml", "model.py", "state.pt", "bad.safetensors"),
    *("model.py:build", "model/config.json", "audit/record.json", "file.txt/inner", "audits"),
    *("folder:images", "folder:nowhere", "folder:file.txt", "folder:fifo", "folder:hostile"),
)
MODELS = (
    *(["digits-vae", "digits-lipschitz-vae", "model", "model.py:build"] * 2),
    *(
        f"model.py:{name}"
        for name in ("nothing", "number", "raising", "leaving", "wants", "nosuch")
    ),
    *(f"model.py:{name}" for name in ("linear", "infinite", "Breaking", "Stopping", "Printing")),
    *("model.py:value", "model.py:", "broken.py:build", "exiting.py:build", "nowhere.py:build"),
    *("", "mnist-nvae-tiny", "robustvae.models:VAE", "torch.nn:Linear", "model-*", "model-*"),
)
DATA = (
    *("digits", "digits", "images", "array.npz", "folder:images", "digits+noise:0.1"),
    *("digits+static", "digits+blur:1", "digits+blur:1e9", "folder:images+size:8"),
    *("folder:images+size:1000000", "folder:images+size:30000", "folder:images+crop:0"),
    *("images-rgb", "images-bad", "images-mixed", "images-one", "hostile", "nan.npz", "lying.npz"),
    *("object.npz", "bad.npz", "mnist", "celeba", "digits+", "+", "digits+nosuch:3", "bomb.npz"),
)
# Small values that work, by option; a line has hostile ones in their place, or beside them.
SMALL: dict[str, tuple[str, ...]] = {
    "--data": DATA,
    "--split": ("test", "train"),
    "--weights": ("model/model.safetensors", "state.pt", "bad.safetensors", "file.txt"),
    "--pixels": ("0,1", "-1,1", "1,0", "0,0", "nan,1", "0,inf", "0", "0,1,2", "a,b", "0,1e308"),
    "--device": ("cpu", "cuda", "hpu", "meta", "cpu:9", "cuda:999", "mps", "privateuseone"),
    "--inputs": ("1", "2", "3"),
    "--draws": ("1", "5"),
    "--norm": ("l2", "linf", "l0", "l1"),
    "--displacement": ("centered", "paired", "full"),
    "--radius": ("0.5", "1e-9", "50"),
    "--r": ("1.0", "0.1", "30"),
    "--m": ("0.5", "0.9", "0.999999"),
    "--center": ("own", "mean"),
    "--plan": ("tiny.yaml", "tiny-*.yaml", "tiny-*.yaml"),
    "--out": ("out", "out/deeper", "folder", "audit", "file.txt", "images", "out.json", "model"),
    "--recipe": ("out.yaml", "folder", "recipe.yaml"),
    "--run": ("out", "folder", "file.txt", "model"),
    "--seed": ("0", "1"),
    "--require": ("inside_ball", "probability>=0.1", "certified_deterministic>=0", "nosuch", ">="),
    "--minutes": ("0.01", "0.02"),
    "--format": ("text", "json", "csv", "html", "latex", "markdown", "svg", "nosuch"),
    "--failures": ("0", "2"),
    "--anomalous": ("digits", "images", "array.npz", "nowhere"),
    "--name": ("mine", "x\x1b[31m"),
    "--part": ("likelihood", "reconstruction", "latents", "weights", "slopes", "nosuch"),
    "--margin": ("0.3", "1e9"),
    "--latent": ("2", "10"),
    "--stddev": ("0.1",),
    "--ratio": ("1.0", "2"),
    "--likelihood": ("continuous_bernoulli", "bernoulli", "normal"),
    "--epochs": ("1",),
    "--similarity": ("0.5", "0.9"),
    "--price": ("1.3",),
    "--certified": ("0.1",),
    "--gradients": ("0", "100"),
    "--port": ("0",),
    "--model": MODELS,
    "--ray": ("auto", "local", "nowhere:1"),
}
FAMILIES = {
    "--goal": "goal",
    "--search": "search",
    "--defense": "defense",
    "--method": "certificate-method",
    "--profile": "profile",
    "--protocol": "protocol",
}
# What a line always has unless a hostile value replaces it, so that what works is done at once.
ALWAYS: dict[str, dict[str, str]] = {
    "audit": {"--plan": "tiny.yaml", "--out": "out"},
    "attack": {"--inputs": "2", "--search": "projected-ascent:steps=2,restarts=1"},
    "certify": {"--inputs": "2", "--draws": "20"},
    "check": {"--inputs": "2"},
    "evaluate": {"--inputs": "3", "--draws": "2", "--part": "reconstruction"},
    "verify": {"--inputs": "1"},
    "campaign": {"--out": "out"},
    "train": {"--out": "out"},
    "zoo train": {"--out": "out", "--run": "run", "--inputs": "3", "--draws": "2"},
    "board": {"--out": "out"},
    "design": {"--margin": "0.3", "--r": "8", "--data": "digits"},
}
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "folder": ("audit", "audit-*", "audit-*", "stored", "stored-*", "audits", "folder"),
    "records": ("audit", "audit-*", "audit-*", "audit/record.json", "folder", "file.txt"),
    "recipe": ("recipe.yaml", "recipe-*.yaml", "recipe-*.yaml", "deep.yaml", "file.txt"),
    "plan": ("campaign.yaml", "campaign-*.yaml", "campaign-*.yaml", "tiny.yaml"),
    "family": ("goal", "search", "nosuch"),
    "name": ("digits-vae", "mnist-conv28", "nosuch"),
    "zoo train name": ("nosuch", "digits"),  # one that is there would be trained for minutes
}
# Commands by how often they are called: what computes much when all is well is called less often.
WEIGHTS = {
    **{"doctor": 1, "app": 10, "list": 20, "zoo table": 1, "zoo list": 3, "zoo show": 20},
    **{"design": 15, "campaign": 30, "verify": 30, "board": 30},
}


@final
@dataclass(frozen=True)
class Option:
    """An option of a command: how it is spelled and whether a value follows."""

    name: str
    is_flag: bool


@final
@dataclass(frozen=True)
class Command:
    """A command: its words, options and the names of its arguments."""

    words: tuple[str, ...]
    options: tuple[Option, ...]
    arguments: tuple[str, ...]


def commands() -> list[Command]:
    """All commands, as typer reads them."""
    result = []
    for name in parser.command_names():
        command: Any = parser._Commands(name="x").get_command(None, name)
        for inner, one in (getattr(command, "commands", None) or {"": command}).items():
            options, arguments = [], []
            for parameter in one.params:
                if parameter.param_type_name == "argument":
                    arguments.append(parameter.name)
                    continue
                spelled = [word for word in parameter.opts if word.startswith("--")]
                if spelled and spelled[0] != "--help":
                    options.append(Option(spelled[0], bool(getattr(parameter, "is_flag", False))))
            words = (name, inner) if inner else (name,)
            result.append(Command(words, tuple(options), tuple(arguments)))
    return result


def spec(family: str, source: random.Random) -> str:
    """A member of a family with hostile fields, as the command line spells it."""
    names = [entry.name for entry in registry.describe(family)] or ["nosuch"]
    name = source.choice([*names, *names, "nosuch", ""])
    spelled = [f"{source.choice(fields_of(family, name))}={hostile(source)}" for _ in range(2)]
    return name + source.choice(["", "", ":" + spelled[0], ":" + ",".join(spelled), ":((", "::"])


def fields_of(family: str, name: str) -> list[str]:
    """The fields of a member, and one that it lacks."""
    names = ["nosuch"]
    try:
        kind = type(registry.build(family, name))
    except Exception:
        return names
    return [*(field.name for field in fields(kind)), *names] if is_dataclass(kind) else names


def hostile(source: random.Random) -> str:
    """One hostile value."""
    return source.choice(source.choice([NUMBERS, NUMBERS, WORDS, PATHS]))


def value(option: str, source: random.Random) -> str:
    """A value of an option: a small one that works, or a hostile one."""
    if option in FAMILIES and source.random() < 0.7:
        return spec(FAMILIES[option], source)
    if option in SMALL and source.random() < 0.5:
        return starred(source.choice(SMALL[option]), source)
    return hostile(source)


def starred(word: str, source: random.Random) -> str:
    """A word whose star stands for the number of a damaged file."""
    return word.replace("*", str(source.randrange(COPIES)), 1) if "-*" in word else word


def words_of(command: Command, source: random.Random) -> list[str]:
    """One line."""
    always = dict(ALWAYS.get(" ".join(command.words), {}))
    chosen: list[str] = []
    for option in source.sample(
        command.options, min(len(command.options), source.choice([1, 1, 2, 2, 3, 4, 5]))
    ):
        if option.is_flag:
            chosen.append(option.name)
            continue
        if option.name == "--workers" and source.random() < 0.9:
            continue  # processes take seconds to start: seldom
        text = value(option.name, source)
        always.pop(option.name, None)
        chosen += source.choice(
            [[option.name, text]] * 6 + [[f"{option.name}={text}"], [option.name]]
        )
    for name, text in always.items():
        chosen += [name, text]
    if "app" in command.words or "doctor" in command.words:
        chosen = chosen[:4]
    pools = {name: ARGUMENTS.get(name, MODELS) for name in command.arguments}
    pools = {
        name: ARGUMENTS.get(f"{' '.join(command.words)} {name}", p) for name, p in pools.items()
    }
    places = [
        starred(source.choice(pools[name]), source) if source.random() < 0.75 else hostile(source)
        for name in command.arguments
        if source.random() < 0.9
    ]
    if "records" in command.arguments:
        places += [starred(source.choice(ARGUMENTS["records"]), source)] * source.randrange(3)
    if source.random() < 0.05:
        places.append(hostile(source))
    line = [*command.words, *places, *chosen]
    if source.random() < 0.05:
        line.insert(source.randrange(len(line) + 1), hostile(source))
    if source.random() < 0.02:
        line = [hostile(source) for _ in range(source.randrange(4))]
    return line


COPIES = 8
"""Damaged copies of each kind of file in a world."""


def changed(content: Any, source: random.Random) -> Any:
    """JSON's own types with one place made hostile, or left out."""
    if isinstance(content, dict) and content and source.random() < 0.9:
        key = source.choice(list(content))
        copy = dict(content)
        act = source.random()
        if act < 0.15:
            del copy[key]
        elif act < 0.22:
            copy[str(hostile(source))] = copy.pop(key)
        else:
            copy[key] = changed(copy[key], source)
        return copy
    if isinstance(content, list) and content and source.random() < 0.8:
        place = source.randrange(len(content))
        return [*content[:place], changed(content[place], source), *content[place + 1 :]]
    return source.choice(
        [
            *(None, True, -1, 0, 1.5, 2**70, -(2**63), 1e308, float("nan"), float("inf"), "", "x"),
            *(
                "\x1b[31m",
                "[red]",
                "x" * 9000,
                [],
                {},
                [None],
                {"a": {}},
                [[[]]],
                "\udc80",
                "../..",
            ),
            *([content] * 50, {"name": content}, [content, content], str(content)),
        ]
    )


def damaged(data: bytes, source: random.Random) -> bytes:
    """Bytes cut short, with flipped bits, or something else altogether."""
    act = source.randrange(5)
    if act == 0:
        return data[: source.randrange(len(data) + 1)]
    if act == 1:
        return b""
    if act == 2:
        return bytes(source.randrange(256) for _ in range(200))
    flipped = bytearray(data)
    for _ in range(source.choice([1, 3, 50])):
        place = source.randrange(min(len(flipped), 2000) if act == 3 else len(flipped))
        flipped[place] = source.randrange(256)
    return bytes(flipped)


def text_of(content: Any) -> str:
    """JSON, with what is no text of ours escaped."""
    return json.dumps(content)


def alter_folder(base: Path, copy: Path, source: random.Random) -> None:
    """A copy of a folder with one of its files damaged, replaced or gone."""
    shutil.copytree(base, copy)
    paths = sorted(path for path in copy.rglob("*") if path.is_file())
    path = source.choice([*paths, *(p for p in paths if p.suffix == ".json")])
    act = source.random()
    if path.suffix == ".json" and act < 0.7:
        content = read_json(path.read_text("utf-8"))
        for _ in range(source.choice([1, 1, 2, 4])):
            content = changed(content, source)
        path.write_text(text_of(content))
    elif act < 0.8:
        path.write_bytes(damaged(path.read_bytes(), source))
    elif act < 0.9:
        path.unlink()
        path.mkdir()
    else:
        path.unlink()


def save_images(folder: Path, mode: str = "L", count: int = 12, side: int = 8) -> None:
    """A few images of noise."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    shape = (side, side) if mode == "L" else (side, side, 3)
    for number in range(count):
        array = noise.integers(0, 256, shape).astype("uint8")
        Image.fromarray(array).save(folder / f"{number}.png")


def make_base(top: Path) -> None:
    """What is damaged later: a model, an audit of it, stored attacks; made by the commands."""
    top.mkdir()
    bundled = Path(importlib.import_module("robustvae.zoo").__file__).parent / "zoo_files"
    shutil.copytree(bundled / "digits-vae", top / "model")
    (top / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    here = os.getcwd()
    os.chdir(top)
    try:
        with open(os.devnull, "w") as null:
            before, sys.stdout = sys.stdout, null
            try:
                audit = ["audit", "model", "--data", "digits", "--plan", "tiny.yaml", "-q"]
                assert cli.main([*audit, "--out", "audit"]) in (0, 1)
                attack = ["attack", "model", "--data", "digits", "--inputs", "2", "-q"]
                search = ["--search", "projected-ascent:steps=2,restarts=1"]
                assert cli.main([*attack, *search, "--out", "stored"]) == 0
            finally:
                sys.stdout = before
    finally:
        os.chdir(here)


def make_world(base: Path, top: Path, seed: str) -> None:
    """A folder of files that work and files that do not."""
    source = random.Random(seed)
    top.mkdir()
    for name in ("model", "audit"):
        shutil.copytree(base / name, top / name)
    shutil.copytree(base / "stored" / "undefended", top / "stored")
    (top / "audits").mkdir()
    shutil.copytree(base / "audit", top / "audits" / "[red]\x1b[31m")
    plain: tuple[tuple[str, Any], ...] = (
        *(("tiny", TINY), ("recipe", RECIPE), ("campaign", CAMPAIGN)),
    )
    for name, content in plain:
        (top / f"{name}.yaml").write_text(yaml.safe_dump(content))
    for number in range(COPIES):
        for name in ("model", "audit", "stored"):
            alter_folder(top / name, top / f"{name}-{number}", source)
        for name, content in plain:
            other = changed(content, source)
            if isinstance(other, dict):  # what says that the work is small stays
                other = {**{key: content[key] for key in SMALLNESS if key in content}, **other}
            path, text = top / f"{name}-{number}.yaml", text_of(other)
            path.write_bytes(damaged(text.encode(), source) if number % 4 == 3 else text.encode())
    (top / "file.txt").write_text("hello\n")
    (top / "empty").write_bytes(b"")
    (top / "folder").mkdir()
    (top / "dangling").symlink_to("nowhere")
    (top / "loop").symlink_to("loop")
    os.mkfifo(top / "fifo")
    (top / "deep.json").write_text("[" * 100_000)
    (top / "deep.yaml").write_text("[" * 100_000)
    (top / "model.py").write_text(CODE)
    (top / "broken.py").write_text("def build(:\n")
    (top / "exiting.py").write_text("import sys\nsys.exit(3)\n")
    (top / "state.pt").write_bytes(pickle.dumps({"a": os.system}))
    (top / "bad.safetensors").write_bytes(b"\xff" * 100)
    save_images(top / "images")
    save_images(top / "images-rgb", "RGB", 4)
    save_images(top / "images-one", count=1)
    save_images(top / "images-mixed", count=3)
    save_images(top / "images-mixed" / "more", side=9)
    save_images(top / "images-bad", count=4)
    for path in sorted((top / "images-bad").iterdir()):
        path.write_bytes(damaged(path.read_bytes(), source))
    save_images(top / "hostile" / "[red]\x1b[31m\n", count=4)
    save_images(top / "hostile" / "[/foo]d", count=4)
    array = np.random.default_rng(0).random((12, 8, 8), dtype="float32")
    np.savez(top / "array.npz", images=array, labels=np.arange(12) % 3)
    np.savez(top / "nan.npz", images=array * math.nan)
    np.savez(top / "object.npz", images=np.array([{}], dtype=object))
    (top / "bad.npz").write_bytes(damaged((top / "array.npz").read_bytes(), source))
    with zipfile.ZipFile(top / "lying.npz", "w") as archive:
        head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999, 8, 8), }"
        head += b" " * (118 - 1 - len(head)) + b"\n"
        archive.writestr(
            "images.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head
        )
    with zipfile.ZipFile(top / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + bytes(2**27))


def snapshot(top: Path) -> tuple[Any, ...]:
    """What tells whether a folder has changed; at any depth, where `os.walk` gives up."""
    facts, places = [], [str(top)]
    while places:
        place = places.pop()
        try:
            with os.scandir(place) as entries:
                members = sorted(
                    (entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries
                )
            facts.append((place, os.stat(place).st_mtime_ns, *members))
        except OSError:  # longer than a path may be
            continue
        places += [os.path.join(place, name) for name, is_folder in members if is_folder]
    return tuple(facts)


@final
@dataclass(frozen=True)
class Ending:
    """How a line ended.

    Attributes:
        code: The exit code; 98 where it left by `sys.exit`, 99 by a foreign exception.
        seconds: CPU time of the process.
        megabytes: What its greatest memory grew by.
        out: What it printed.
        err: And on standard error.
        fault: Why it was stopped, if it was.
    """

    code: int = 99
    seconds: float = 0.0
    megabytes: float = 0.0
    out: str = ""
    err: str = ""
    fault: str = ""


class Hang(BaseException):
    """A line that computes too long."""


@final
class Child:
    """A forked process that runs lines one after the other, until one must be stopped."""

    def __init__(self, lines: list[list[str]], fresh: Path, outputs: Path) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(reading)
            try:
                os.setpgid(0, 0)
                _run_lines(lines, fresh, outputs, writing)
            finally:
                os._exit(0)
        os.close(writing)
        self.stream = os.fdopen(reading, "rb")
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.stream, selectors.EVENT_READ)

    def ending(self) -> Ending:
        """How its next line ended."""
        last, moved = 0.0, time.monotonic()
        begin = seconds_of(self.pid)
        while not self.selector.select(timeout=1.0):
            now = seconds_of(self.pid)
            if now - last > 0.05:
                last, moved = now, time.monotonic()
            if now - begin > 2 * LONGEST or time.monotonic() - moved > 3 * LONGEST:
                self.end()
                return Ending(fault="hang")
        message = self.stream.readline()
        if not message:
            _, status = os.waitpid(self.pid, 0)
            return Ending(fault=f"the process ended with {os.waitstatus_to_exitcode(status)}")
        return Ending(**json.loads(message))

    def end(self) -> None:
        """Stop it and what it has started."""
        self.selector.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self.stream.close()


def seconds_of(pid: int) -> float:
    """What a process has computed; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _run_lines(lines: list[list[str]], fresh: Path, outputs: Path, writing: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**29, 2**29))
    resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))  # the machine is not ours alone
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = io.FileIO(number, "w", closefd=False)
        setattr(sys, name, io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True))
    signal.signal(signal.SIGPROF, _stop)
    world, mark = outputs / "a" / "b", None
    world.parent.mkdir(exist_ok=True)
    for words in lines:
        if mark is None or snapshot(world) != mark:
            os.chdir(outputs)
            # Python's own removal gives up on folders a thousand levels deep
            subprocess.run(["rm", "-rf", str(world)], check=True)
            subprocess.run(["cp", "-al", str(fresh), str(world)], check=True)
            mark = snapshot(world)
        os.chdir(world)
        for number, name in ((1, "out"), (2, "err")):
            flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND
            descriptor = os.open(outputs / name, flags, 0o600)
            os.dup2(descriptor, number)
            os.close(descriptor)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.process_time()
        code = _code_of(words)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
        ending = {"code": code, "seconds": time.process_time() - begin, "megabytes": grown / 1024}
        for name in ("out", "err"):
            ending[name] = (outputs / name).read_text("utf-8", errors="backslashreplace")[:20_000]
        os.write(writing, json.dumps(ending).encode() + b"\n")


def _code_of(words: list[str]) -> int:
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        return cli.main(words)
    except Hang:
        os.write(2, b"\nHANG\n")
        return 97
    except SystemExit as error:
        os.write(2, f"\nSystemExit({error.code!r})\n".encode())
        return 98
    except BaseException as error:
        os.write(2, "".join(traceback.format_exception(error)).encode("utf-8", "replace"))
        return 99
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()


def _stop(*_: object) -> None:
    raise Hang


def fault_of(ending: Ending) -> str:
    """What is wrong with how a line ended; empty where nothing is."""
    err, code = ending.err, ending.code
    if ending.fault:
        return ending.fault
    last = err.strip().splitlines()[-1] if err.strip() else ""
    if code == 97:
        return "hang"
    if code not in (0, 1, 2, 130):
        return f"exit code {code}: {last[:200]}"
    for sign in ("internal error", "Traceback", "Warning:", "warnings.warn"):
        if sign in err + ending.out:
            line = next(line for line in (err + ending.out).splitlines() if sign in line)
            return f"{sign}: {line[:300]}"
    for sign in ("\x1b", "\x07", "\r", "\x00", "\u202e", "\udc80"):
        if sign in err + ending.out:
            return f"control character {sign!r}"
    if code == 2 and "error: " in err:
        complaint = err[err.index("error: ") :]
        if complaint.count("\n") != 1 or len(complaint) > 1000:
            return f"message of {complaint.count(chr(10))} lines, {len(complaint)} characters"
    elif code == 2 and not ending.out:
        return f"exit code 2 without a message: {last[:200]}"
    if ending.megabytes > MEMORY:
        return f"{ending.megabytes:.0f} MB: {last[:100]}"
    return ""


def is_long_work(words: list[str]) -> bool:
    """Whether a line asks for a training of minutes, by the name of a bundled recipe."""
    command = words[1:3] if words[:1] == ["zoo"] else words[:2]
    return command[:1] == ["train"] and command[1:] != [] and command[1] in recipe_names()


def warm_up() -> None:
    """Import what commands import, once, before the forks."""
    warnings.simplefilter("default")
    torch.set_num_threads(1)
    for name in parser.command_names():
        importlib.import_module(f"robustvae.cli.{name}")
    serve = importlib.import_module("robustvae.app.page")
    serve.serve = lambda *_: None  # type: ignore[attr-defined]  # it would wait for a browser
    import robustvae as rv

    rv.data.load("digits", split="test")
    for family in registry.FAMILIES:
        registry.describe(family)
    gc.freeze()  # no page of what is imported is copied because its counters move


def line_of(
    number: int, seed: int, every: list[Command], weights: list[int]
) -> tuple[str, list[str]]:
    """The command and the words of a line."""
    source = random.Random(f"{seed}-{number}")
    (command,) = source.choices(every, weights)
    return " ".join(command.words), words_of(command, source)


def run_many(
    count: int, seed: int, only: int | None = None, verbose: bool = False
) -> collections.Counter[str]:
    """Run lines; what was wrong, counted."""
    warm_up()
    every = [command for command in commands() if command.words[0] != "doctor"] or []
    every += [command for command in commands() if command.words[0] == "doctor"]
    weights = [WEIGHTS.get(" ".join(command.words), 60) for command in every]
    wrong, codes = collections.Counter[str](), collections.Counter[int]()
    begin, spent, slowest = time.monotonic(), collections.Counter[str](), (0.0, "")
    numbers = list(range(count)) if only is None else [only]
    with tempfile.TemporaryDirectory() as place:
        base, outputs = Path(place) / "base", Path(place) / "outputs"
        outputs.mkdir()
        make_base(base)
        while numbers:
            current = numbers[0] // WORLD
            batch = [number for number in numbers[:BATCH] if number // WORLD == current]
            fresh = Path(place) / f"world-{current}"
            if not fresh.exists():
                make_world(base, fresh, f"{seed}-{current}")
            lines = [line_of(number, seed, every, weights) for number in batch]
            child = Child([words for _, words in lines], fresh, outputs)
            for number, (name, words) in zip(batch, lines, strict=True):
                ending = child.ending()
                numbers.remove(number)
                fault = fault_of(ending)
                if fault == "hang" and is_long_work(words):
                    fault = ""
                spent[name] += ending.seconds  # type: ignore[assignment]
                codes[ending.code] += 1
                if number % 1000 == 999:
                    print(f"{number + 1} lines", flush=True)
                slowest = max(slowest, (ending.seconds, f"{number} {words}"[:300]))
                if verbose:
                    print(number, words, ending, flush=True)
                if fault:
                    wrong[f"{name}: {fault}"] += 1
                    print(f"{number} {words!r:.400}\n    {fault}", flush=True)
                if ending.fault or ending.megabytes > MEMORY:
                    break  # the next lines get a new process
            child.end()
        subprocess.run(["rm", "-rf", str(outputs)], check=True)
    total, seconds = sum(wrong.values()), time.monotonic() - begin
    print(f"slowest: {slowest[0]:.1f} CPU s, {slowest[1]}")
    print("CPU s: " + ", ".join(f"{name} {value:.0f}" for name, value in spent.most_common(8)))
    print(
        f"{sum(codes.values())} lines of {len(every)} commands, {total} wrong; exit codes "
        f"{dict(sorted(codes.items()))}; {seconds:.0f} s, {sum(spent.values()):.0f} CPU s in lines"
    )
    return wrong


def main() -> int:
    """Run the lines that are asked for."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--lines", type=int, default=200)
    reader.add_argument("--seed", type=int, default=0)
    reader.add_argument("--only", type=int, default=None, help="the one line of this number")
    reader.add_argument("--verbose", action="store_true", help="print every line and its output")
    options = reader.parse_args()
    return 1 if run_many(options.lines, options.seed, options.only, options.verbose) else 0


if __name__ == "__main__":
    sys.exit(main())
