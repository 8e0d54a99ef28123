"""Items: registered functions from a spec to rows, and what a function gets to run with."""

from __future__ import annotations

import base64
import dataclasses
import importlib
import inspect
import json
import math
import pkgutil
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, final, get_type_hints

import pydantic
import torch
from torch import Tensor

import robustvae as rv
from experiments.harness.provenance import provenance
from experiments.harness.rows import Result, Row
from experiments.harness.store import IDENTITY, RESULT, Store, digest
from robustvae import models
from robustvae.data import Images
from robustvae.display import Progress
from robustvae.errors import ConfigError, RangeError, check_choice
from robustvae.models import VAE
from robustvae.models.checkpoint import read_config, weights_sha256
from robustvae.objectives.base import Objective
from robustvae.records import plain, write_text
from robustvae.seeding import shard_generator
from robustvae.training import fit
from robustvae.training.loop import LOG

SIZES = ("smoke", "laptop", "full")
STEPS = 1000  # of a run, for its progress: shares of nested loops in whole numbers
ROOT = Path("runs/experiments")

Value = TypeVar("Value")


@final
@dataclass
class Run:
    """One run of an item: where its models, parts and words go.

    Attributes:
        name: Of the item.
        spec: All that was asked, values by field.
        size: Name of the size.
        seed: Of everything random.
        store: Of finished parts.
        runs: Folder of the models that items train; None stores none.
        tell: Called with steps done, steps in all and a line about what has been done.
    """

    name: str
    spec: dict[str, Any]
    size: str
    seed: int
    store: Store
    runs: Path | None = None
    tell: Progress = lambda done, total, words: None
    began: float = field(default_factory=time.perf_counter)
    weights: dict[str, str] = field(default_factory=dict)
    turns: list[tuple[int, int]] = field(default_factory=list)
    is_under_way: bool = False
    reached: int = 0

    def each(self, values: Iterable[Value], part: tuple[int, int] = (0, 1)) -> Iterator[Value]:
        """The values, one by one, as turns by which the run knows how far it is; may be nested.

        Args:
            values: What is looped over.
            part: Of several such loops after each other, which one this is, from 0, and how many.
        """
        values = list(values)
        for number, value in enumerate(values):
            self.turns += [part, (number, len(values))]
            try:
                yield value
            finally:
                del self.turns[-2:]

    def progress(self, words: str) -> None:
        """Say what has been done, at the end of a turn; not of turns that were read from disk."""
        if self.is_under_way or not self.store.reads:
            self.begin()
            self.tell(*self.steps(1), words)

    def begin(self) -> None:
        """Say once where the run is when it begins to compute: what it had took no time."""
        if not self.is_under_way:
            self.is_under_way = True
            done, total = self.steps(0)
            self.tell(done, total, "going on" if done else "begun")

    def steps(self, turns: int) -> tuple[int, int]:
        """Steps done, with so many turns of the innermost loop beside those before, and in all."""
        share, width = 0.0, 1.0
        for number, count in self.turns:
            width /= count
            share += number * width
        if self.turns:
            self.reached = max(self.reached, round(STEPS * (share + turns * width)))
        return self.reached, STEPS

    def noise(self, purpose: str, shard: int = 0) -> torch.Generator:
        """The generator of one purpose, from the run's seed."""
        return shard_generator(self.seed, shard, purpose)

    def model(self, name: str) -> VAE:
        """A model by name or folder, in evaluation mode; its hash stands in the facts."""
        vae = rv.load(name)
        self.weights[name] = _sha256(vae)
        return vae

    def images(self, name: str, split: str = "test", pool: int = 0) -> Images:
        """A data set, or its first `pool` images where the number is not 0."""
        found = rv.data.load(name, split=split)
        return found[:pool] if pool else found

    def part(self, key: str, compute: Callable[[], Any], *vaes: VAE) -> Any:
        """A part of the run, computed once for each key and the weights of `vaes`."""

        def begun() -> Any:
            self.begin()
            return compute()

        return self.store(key, begun, [_sha256(vae) for vae in vaes])

    def tensor(self, key: str, like: Tensor, compute: Callable[[], Tensor], *vaes: VAE) -> Tensor:
        """A tensor of the shape and type of `like`, stored as a part like any other, to the bit."""

        def encoded() -> str:
            content = compute().detach().cpu().contiguous().numpy().tobytes()
            return base64.b64encode(content).decode()

        content = bytearray(base64.b64decode(self.part(key, encoded, *vaes)))
        return torch.frombuffer(content, dtype=like.dtype).view_as(like)

    def train(
        self,
        name: str,
        model: Mapping[str, Any] | VAE,
        objective: Objective,
        images: Images,
        *,
        epochs: int,
        seed: int | None = None,
        **settings: Any,
    ) -> VAE:
        """A model trained by `fit` in a folder of its own; run again, it goes on there.

        Args:
            name: Of the folder, below the runs.
            model: Arguments of `models.create`, or a trained model to go on from.
            objective: What is minimized.
            images: To train on.
            epochs: Passes over them.
            seed: Of first weights and everything after; the run's own by default.
            settings: Of `fit`.

        Raises:
            ConfigError: The folder holds a run of other settings.
        """
        seed = self.seed if seed is None else seed
        vae = model if isinstance(model, VAE) else models.create(**{"seed": seed, **model})
        fitted = fit(
            vae.to(images.x.dtype),
            objective,
            images,
            epochs=epochs,
            generator=shard_generator(seed, 0, "training"),
            validation=None,
            out=None if self.runs is None else self.runs / name,
            progress=False,
            **settings,
        )
        self.weights[name] = _sha256(fitted)
        return fitted

    def losses(self, name: str) -> list[float]:
        """The mean loss of each epoch of a trained model, empty where no run is stored."""
        if self.runs is None:
            return []
        lines = (self.runs / name / LOG).read_text("utf-8").splitlines()
        return [json.loads(line)["loss"] for line in lines]

    def seconds(self, name: str) -> float:
        """Seconds that a model's training took, nan where no run is stored."""
        if self.runs is None:
            return math.nan
        return float(read_config(self.runs / name)["card"]["seconds"])

    def result(
        self,
        title: str,
        unit: str,
        rows: list[Row],
        protocol: tuple[str, ...] = (),
        values: dict[str, Any] | None = None,
        **facts: Any,
    ) -> Result:
        """The item's result with its provenance."""
        base = self.base()
        asked = [f"{k}={_spelled(v)}" for k, v in self.spec.items() if v != base.get(k)]
        command = shlex.join(["python", "-m", "experiments", "run", self.name, *asked])
        command += f" --size {self.size} --seed {self.seed}"
        weights = {f"weights of {name}": sha for name, sha in self.weights.items()}
        return Result(
            title,
            unit,
            tuple(rows),
            protocol,
            facts
            | weights
            | {"size": self.size, **provenance(command, self.seed)}
            | {"seconds": round(time.perf_counter() - self.began, 1)},
            plain(values or {}),
        )

    def base(self) -> dict[str, Any]:
        """The spec of this size as registered."""
        return dataclasses.asdict(ITEMS[self.name].sizes[self.size])


@final
@dataclass(frozen=True)
class Item:
    """A registered function from a spec to rows.

    Attributes:
        name: paper/item.
        source: Where the paper has it, or empty.
        about: What it does, in a line.
        function: Called with a spec and a `Run`.
        sizes: A spec by the name of its size.
    """

    name: str
    source: str
    about: str
    function: Callable[[Any, Run], Result]
    sizes: dict[str, Any]

    def spec(self, size: str, given: Mapping[str, str] | None = None) -> Any:
        """The spec of a size, with fields replaced by what the command line gave.

        Raises:
            UnknownNameError: No such size or field.
            ConfigError: A value of the wrong type.
        """
        check_choice(f"size of {self.name}", size, self.sizes)
        base = self.sizes[size]
        hints, changes = get_type_hints(type(base)), {}
        for key, text in (given or {}).items():
            check_choice(f"field of {self.name}", key, hints)
            value: Any = text
            if is_nested := text.startswith("["):  # JSON, for tuples of tuples
                value = text
            elif str(hints[key]).startswith("tuple"):
                value = [part for part in text.split(",") if part]
            adapter: Any = pydantic.TypeAdapter(hints[key])
            read = adapter.validate_json if is_nested else adapter.validate_python
            try:
                changes[key] = read(value)
            except pydantic.ValidationError as error:
                problem = error.errors()[0]["msg"]
                raise ConfigError(f"{self.name}: {key}={text}: {problem}") from None
        return dataclasses.replace(base, **changes)

    def folder(self, spec: Any, size: str, seed: int, root: Path = ROOT) -> Path:
        """Where the parts of one run lie: named by everything that was asked."""
        asked = digest([self.name, plain(spec), seed])
        return root / "parts" / self.name / f"{size}-seed-{seed}-{asked[:12]}"

    def run(
        self,
        spec: Any = None,
        *,
        size: str = "smoke",
        seed: int = 0,
        root: Path | None = None,
        minutes: float = math.inf,
        progress: Progress = lambda done, total, words: None,
    ) -> Result:
        """Run it, or go on with it.

        Args:
            spec: Of the size, by default as registered.
            size: Names the spec.
            seed: Of everything random.
            root: Of parts and trained models; None stores nothing.
            minutes: After these no new part is begun.
            progress: Called with steps done, steps in all and a line about what has been done.

        Raises:
            Unfinished: The time is over.
        """
        spec = self.spec(size) if spec is None else spec
        folder = None if root is None else self.folder(spec, size, seed, root)
        asked = dataclasses.asdict(spec)
        if folder is not None:
            identity = {"item": self.name, "size": size, "seed": seed, "spec": asked}
            write_text(folder / IDENTITY, json.dumps(plain(identity)) + "\n")
        runs = None if root is None else root / "models"
        store = Store(folder, minutes)
        result = self.function(spec, Run(self.name, asked, size, seed, store, runs, progress))
        if folder is not None:
            write_text(folder / RESULT, result.to_json())
        return result


ITEMS: dict[str, Item] = {}


def item(
    name: str, source: str = "", *, sizes: Mapping[str, Any]
) -> Callable[[Callable[[Any, Run], Result]], Callable[[Any, Run], Result]]:
    """Register a function as the item `name`.

    Args:
        name: paper/item, in lower case.
        source: Where the paper has it.
        sizes: A frozen dataclass of plain fields by size; "smoke" is required.

    Raises:
        RangeError: The name is taken, or there is no smoke size.
    """

    def register(function: Callable[[Any, Run], Result]) -> Callable[[Any, Run], Result]:
        if name in ITEMS and ITEMS[name].function.__module__ != function.__module__:
            raise RangeError(f"two items are called {name}: name one of them differently")
        if "smoke" not in sizes or not set(sizes) <= set(SIZES):
            raise RangeError(f"{name}: sizes are smoke and perhaps laptop and full")
        about = (inspect.getdoc(function) or "").split("\n", 1)[0]
        ITEMS[name] = Item(name, source, about, function, dict(sizes))
        return function

    return register


def load_items() -> dict[str, Item]:
    """Import every file below `papers` and `bench`, and return all items by name."""
    for family in ("papers", "bench"):
        package = importlib.import_module(f"experiments.{family}")
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(info.name)
    return dict(sorted(ITEMS.items()))


def _sha256(vae: VAE) -> str:
    return weights_sha256(vae) or "no weights"


def _spelled(value: Any) -> str:
    if not isinstance(value, tuple | list):
        return str(value)
    if any(isinstance(part, tuple | list) or "," in str(part) for part in value):
        return json.dumps(plain(value))
    return ",".join(map(str, value))
