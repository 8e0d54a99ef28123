"""Call every public function with combinations of hostile values; count what is not our error.

The rows of tests/house/test_nonsense.py call each public name with arguments that work, and a
second list is made from the signatures of the public modules. One to three arguments of a row, or
some more given by name, are replaced by hostile values. A call may succeed or raise a
`RobustVAEError`; anything else counts, and so does a call of more than 20 s. Exits with 1 then.

    python scripts/fuzz.py --calls 50000 --seed 0
    python scripts/fuzz.py --each

Every call has a generator of its own, so `--only NUMBER` makes one of them again. `--each` gives
every argument of every public name, of all modules, each of some hostile values, one at a time.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import importlib.util
import inspect
import io
import itertools
import math
import operator
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import robustvae as rv
from robustvae.errors import RobustVAEError

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 20.0
"""Seconds after which a call counts as hanging."""

MODULES = ("metrics", "data", "perturb", "models", "objectives", "geometry", "certificates")
OTHERS = ("attacks", "defenses", "robustness", "evaluation", "seeding")
# Looked at by `--each` besides: what writes, serves, or is asked once.
MORE = (
    *("audit", "bounds", "callbacks", "campaign", "gate", "jacobians", "loggers", "mcmc", "norms"),
    *("records", "registry", "report", "rounding", "scores", "sharing", "training", "zoo"),
    *("zoo_table", "models.adapters", "certificates.methods"),
)


class Hang(BaseException):
    """A call that took too long."""


def load_file(path: Path) -> Any:
    """The module in a file, by its path."""
    spec = importlib.util.spec_from_file_location(path.stem + "_by_path", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tensors(source: random.Random) -> torch.Tensor:
    """A tensor that is wrong in shape, type, layout, device or values."""
    shape = source.choice(
        [
            *((), (0,), (1,), (2,), (2, 2), (2, 64), (1, 8, 8), (0, 1, 8, 8), (2, 1, 8, 8)),
            *((3, 1, 8, 8), (2, 3, 7, 5), (1, 1, 1, 1, 1), (2, 1, 8, 0)),
        ]
    )
    value = source.choice([0.5, 0.0, -1.0, 2.0, 1e30, float("nan"), float("inf")])
    kind = source.choice([torch.float64] * 3 + [torch.float32, torch.float16, torch.bfloat16])
    plain = torch.full(shape, value, dtype=torch.float64).to(kind)
    return source.choice(
        [
            lambda: plain,
            lambda: plain,
            lambda: torch.ones(shape, dtype=torch.int64),
            lambda: torch.ones(shape, dtype=torch.uint8),
            lambda: torch.ones(shape, dtype=torch.bool),
            lambda: torch.ones(shape, dtype=torch.complex64),
            lambda: torch.empty(shape, device="meta"),
            lambda: torch.ones(shape).to_sparse() if shape else plain,
            lambda: torch.quantize_per_tensor(torch.ones(shape).float(), 0.1, 0, torch.quint8),
            lambda: torch.ones(1, 1, 1, 1).expand(2, 1, 8, 8),
            lambda: plain.clone().requires_grad_(),
        ]
    )()


HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, -(2**70), 2**70, 2**62, 0.0, -0.0, -0.5, 1.5, 1e-320, 1e308),
    *(float("nan"), float("inf"), -float("inf"), 1 + 1j, "", " ", "nosuch", "l2", "linf", "full"),
    *("a\nb", "\x1b[31m", "\0", "[red]", "x" * 5000, "\udc80", "1", "nan", "..", b"", b"\xff"),
    *((), [], {}, set(), (1,), (0.5, -1), [None], ["a", 1], {"name": "nosuch"}, {"a": {}}, {1: 2}),
    *(range(3), slice(None), object(), dict, int, torch.float16, torch.device("meta"), Ellipsis),
    *(np.zeros(3), np.float64("nan"), np.zeros((2, 1, 8, 8), dtype=object), Path("nowhere")),
)


def hostile(source: random.Random) -> Any:
    """One hostile value."""
    if source.random() < 0.35:
        return tensors(source)
    return source.choice(HOSTILE)


Row = tuple[Callable[..., Any], Callable[[], dict[str, Any]], tuple[str, ...]]


def sensible(base: Any) -> dict[str, Callable[[], Any]]:
    """Values that work, by the names that arguments have."""
    x, z = base.x, torch.zeros(2, 2, dtype=torch.float64)
    return {
        **dict.fromkeys(("x", "inputs", "images", "like", "start", "values"), lambda: x),
        **dict.fromkeys(("y", "x_adv", "target", "x_hat"), lambda: base.x_adv),
        **dict.fromkeys(("mean", "other_mean", "logits", "z"), lambda: z),
        **dict.fromkeys(("stddev", "other_stddev", "scale"), lambda: z + 1),
        "vae": lambda: base.vae,
        "victim": lambda: base.victim,
        "model": lambda: base.vae,
        "ball": lambda: base.ball,
        "attack": lambda: base.attack,
        "goal": lambda: rv.MaximumDamage(),
        "search": lambda: base.search,
        "norm": lambda: "l2",
        "radius": lambda: 0.5,
        "successes": lambda: 3,
        "trials": lambda: 5,
        "confidence": lambda: 0.9,
        "variant": lambda: "kuzina2022",
        "generator": lambda: rv.generator(0),
        "name": lambda: "digits",
        "split": lambda: "test",
        "rows": lambda: torch.arange(2),
        "labels": lambda: torch.arange(2),
        "n": lambda: 2,
        "seed": lambda: 0,
        "steps": lambda: 2,
        "index": lambda: torch.arange(2),
        "r": lambda: 1.0,
        "m": lambda: 0.5,
        "sizes": lambda: [0.1],
        "scales": lambda: [0.1],
        "radii": lambda: [0.1],
        "sets": lambda: {"a": base.images},
    }


# What the rows of the test do not give but may be given.
LEFT_OUT = {"folder", "path", "out", "progress", "logger", "callback", "keep"}
# The caller's own code: what it raises is the caller's.
CODE = {"change", "classifier", "decode", "defense", "encode", "objective", "search", "f"}
CODE |= {"operator", "functions", "walk", "base", "refine", "score", "model", "distribution"}
# Values that are only slow, not hostile: a million steps.
LARGE = (2**62, 2**70, 1e308)


def rows(modules: Iterable[str] = (*MODULES, *OTHERS)) -> dict[str, Row]:
    """What is called: by name, the call, arguments that work, and further arguments."""
    test = load_file(ROOT / "tests" / "house" / "test_nonsense.py")
    base = test.base()
    table: dict[str, Row] = {}
    for name, (call, arguments) in test.ROWS.items():
        target = call or operator.attrgetter(name)(rv)
        extra: tuple[str, ...] = ()
        with contextlib.suppress(TypeError, ValueError):
            parameters = inspect.signature(target).parameters.values()
            extra = tuple(p.name for p in parameters if p.kind not in (p.VAR_KEYWORD,))
        table[name] = (target, arguments, extra)
    values = sensible(base)
    callables: dict[str, Any] = {}
    for module in modules:
        home = importlib.import_module(f"robustvae.{module}")
        names = getattr(home, "__all__", None) or [
            name
            for name, value in vars(home).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == home.__name__
        ]
        for name in names:
            value = getattr(home, name)
            is_protocol = getattr(value, "_is_protocol", False) or inspect.isabstract(value)
            if callable(value) and not is_protocol and f"{module}.{name}" not in RESULTS:
                callables[f"{module}.{name}"] = value
    for owner, thing in (("Ball", base.ball), ("Images", base.images), ("Victim", base.victim)):
        for name in dir(type(thing)):
            method = getattr(type(thing), name)
            if not name.startswith("_") and inspect.isfunction(method):
                callables[f"{owner}.{name}"] = getattr(thing, name)
    callables["Images.__getitem__"] = lambda index: base.images[index]
    for name, value in callables.items():
        if name in table:
            continue
        try:
            parameters = list(inspect.signature(value).parameters.values())
        except (TypeError, ValueError):
            continue
        parameters = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        needed = [p.name for p in parameters if p.default is p.empty]

        def arguments(needed: list[str] = needed) -> dict[str, Any]:
            return {key: values[key]() if key in values else None for key in needed}

        table[name] = (value, arguments, tuple(p.name for p in parameters))
    return table


# Results of ours, plain holders of what was computed, that nobody builds by hand.
RESULTS = {
    *("attacks.AttackResult", "attacks.Rescored", "attacks.SuiteResult", "attacks.SuiteRow"),
    *("attacks.SweepResult", "perturb.Minimum", "perturb.SearchResult", "perturb.Score"),
    *("models.Diagnosis", "models.LayeredGaussian", "models.VAE", "defenses.RadiusEstimate"),
    *("defenses.RobustTarget", "defenses.Cost", "robustness.Displacement"),
}


def pick(name: str, row: Row, source: random.Random) -> dict[str, Any]:
    """The arguments of one call."""
    _, arguments, extra = row
    chosen = arguments()
    keys = [key for key in dict.fromkeys((*chosen, *extra)) if key not in LEFT_OUT]
    for key in source.sample(keys, min(len(keys), source.choice([1, 1, 2, 3]))):
        value = hostile(source)
        while key in CODE and callable(value):
            value = hostile(source)
        if isinstance(value, int | float) and value in LARGE and source.random() < 0.5:
            value = -value
        chosen[key] = value
    return chosen


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise `Hang` where the body takes too long."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(number: int, seed: int, table: dict[str, Row], names: list[str]) -> tuple[str, str]:
    """The name of the call and what was wrong; empty where nothing was."""
    source = random.Random(f"{seed}-{number}")
    name = source.choice(names)
    torch.manual_seed(0)
    return name, fault_of(table[name][0], pick(name, table[name], source))


def fault_of(call: Callable[..., Any], chosen: dict[str, Any]) -> str:
    """What is wrong with how a call ends; empty where it succeeds or raises our error."""
    out = io.StringIO()
    try:
        with limited(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            call(**chosen)
    except RobustVAEError as error:
        text = str(error)
        if "\x1b" in text:
            return "message with an escape sequence"
        return "" if len(text) < 2000 else f"message of {len(text)} characters"
    except Hang:
        return f"hang {sorted(chosen)}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in where if "robustvae" in f.filename]
        words = " ".join(str(error).split())[:90]
        return f"{type(error).__name__} at {ours[-1] if ours else '?'}: {words}"
    return ""


# What a public name is given in the place of each argument by `--each`.
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 2**70, 0.5, math.nan, -math.inf, 1 + 1j, "", "no\x1b[31m\nsuch", "\0"),
    *("x" * 5000, b"\xff", [], {}, [None], {"name": "nosuch"}, object(), Path("nowhere")),
    torch.full((2, 1, 8, 8), math.nan, dtype=torch.float64),
    *(torch.ones(3, dtype=torch.int64), torch.empty((2, 1, 8, 8), device="meta")),
    *(torch.ones(2, 2).to_sparse(), torch.zeros(0, 1, 8, 8)),
)
# Called at every import or for each of many values by the library alone, which checks before.
INNER = {
    *("bounds.double", "bounds.slack", "mcmc.Kernel", "norms.spectral_norm_bounds"),
    *(
        "gate.know_draws",
        "gate.know_model",
        "records.plain",
        "registry.family_base",
        "registry.is_word",
    ),
    *("registry.register", "sharing.push", "sharing.pull"),
}
PATIENCE = 25.0  # seconds for all values of one name: an audit that is given a good one is long


def call_each() -> collections.Counter[str]:
    """Every public name x argument x hostile value; what was wrong, counted."""
    warnings.simplefilter("ignore")
    table = {key: row for key, row in rows((*MODULES, *OTHERS, *MORE)).items() if key not in INNER}
    wrong, count, begin, folder = collections.Counter[str](), 0, time.monotonic(), os.getcwd()
    with tempfile.TemporaryDirectory() as place:
        inner = Path(place) / "a" / "b"
        inner.mkdir(parents=True)
        os.chdir(inner)
        try:
            for name in sorted(table):
                call, arguments, others = table[name]
                end = time.monotonic() + PATIENCE
                keys = [k for k in dict.fromkeys((*arguments(), *others)) if k not in VARIADIC]
                for key, (i, value) in itertools.product(keys, enumerate(VALUES)):
                    if time.monotonic() > end:
                        break
                    if (name, key, value) == ("audit", "plan", None):
                        continue  # not hostile: the default plan, which takes minutes
                    count += 1
                    fault = fault_of(call, {**arguments(), key: value})
                    if fault:
                        wrong[name] += 1
                        print(f"{name}({key}=VALUES[{i}]): {fault}", flush=True)
        finally:
            os.chdir(folder)
    seconds = time.monotonic() - begin
    print(f"{count} calls of {len(table)} names, {sum(wrong.values())} not ours, {seconds:.0f} s")
    return wrong


VARIADIC = ("args", "kwargs", "self")


def call_many(count: int, seed: int, only: int | None = None) -> collections.Counter[str]:
    """Make calls; what was wrong, counted."""
    warnings.simplefilter("ignore")
    table = rows()
    names, wrong = sorted(table), collections.Counter[str]()
    numbers = range(count) if only is None else [only]
    begin, folder = time.monotonic(), os.getcwd()
    with tempfile.TemporaryDirectory() as place:
        inner = Path(place) / "a" / "b"
        inner.mkdir(parents=True)
        os.chdir(inner)
        try:
            for number in numbers:
                name, fault = attempt(number, seed, table, names)
                if fault:
                    wrong[f"{name}: {fault}"] += 1
                    print(f"{number} {name}: {fault}", flush=True)
        finally:
            os.chdir(folder)
    total, seconds = sum(wrong.values()), time.monotonic() - begin
    print(f"{len(numbers)} calls of {len(names)} names, {total} not ours, {seconds:.0f} s")
    return wrong


def main() -> int:
    """Make the calls that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, default=None, help="the one call of this number")
    parser.add_argument("--each", action="store_true", help="every argument, value by value")
    options = parser.parse_args()
    if options.each:
        return 1 if call_each() else 0
    return 1 if call_many(options.calls, options.seed, options.only) else 0


if __name__ == "__main__":
    sys.exit(main())
