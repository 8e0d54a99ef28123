"""Rows of a published or new table, the reported number beside ours, as JSON and markdown."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, final

import torch

from robustvae import data, zoo
from robustvae.data import Images
from robustvae.models.base import VAE
from robustvae.models.checkpoint import weights_sha256
from robustvae.records import plain, write_text
from robustvae.studies.kept import Keep, Unfinished


@final
@dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        what: What was measured on, such as the defense.
        setting: Under which setting, such as the radius of the attack.
        measured: The mean over the inputs.
        stderr: Its standard error.
        n: How many inputs.
        cost: Gradient evaluations an image, 0 where there is none.
        reported: The paper's number, where it has one.
        source: Where the reported number stands.
    """

    what: str
    setting: str
    measured: float
    stderr: float
    n: int
    cost: int = 0
    reported: float | None = None
    source: str | None = None

    @property
    def agrees(self) -> bool | None:
        """Whether measured and reported lie within two standard errors; None without a report."""
        if self.reported is None:
            return None
        return abs(self.measured - self.reported) <= 2 * self.stderr


@final
@dataclass(frozen=True)
class Table:
    """A study's result: everything that its page says is a function of this.

    Attributes:
        title: What the numbers are.
        unit: Of the numbers.
        rows: The numbers.
        protocol: Sentences that say what was done.
        facts: Model, data, size, seed, versions and time.
    """

    title: str
    unit: str
    rows: tuple[Row, ...]
    protocol: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The whole table as JSON."""
        return json.dumps(plain(asdict(self)), indent=2) + "\n"

    def to_markdown(self) -> str:
        """The page of the table: one line a row of `what`, one column a `setting`."""
        settings = _unique(row.setting for row in self.rows)
        names = _unique(row.what for row in self.rows)
        cells = {(row.what, row.setting): row for row in self.rows}
        costs = {row.what: row.cost for row in self.rows}
        lines = [f"# {self.title}", "", f"In {self.unit}; mean ± standard error.", ""]
        lines += [_line(["", "gradients an image", *settings])]
        lines += [_line(["---", *["---:"] * (1 + len(settings))])]
        for name in names:
            shown = [_cell(cells.get((name, setting))) for setting in settings]
            lines.append(_line([name, f"{costs[name]:,}", *shown]))
        lines += ["", *(f"- {sentence}" for sentence in self.protocol), ""]
        lines += [f"- {key}: {value}" for key, value in self.facts.items()]
        return "\n".join(lines) + "\n"

    def write(self, folder: str | Path, name: str) -> None:
        """Write `name`.json and `name`.md."""
        write_text(Path(folder) / f"{name}.json", self.to_json())
        write_text(Path(folder) / f"{name}.md", self.to_markdown())


class Study(Protocol):
    """What every study is."""

    def __call__(
        self,
        vae: VAE,
        images: Images,
        *,
        size: str,
        seed: int,
        kept: Keep | None,
        progress: Callable[[str], None] | None,
    ) -> Table:
        """Run it."""
        ...


def facts_of(vae: VAE, images: Images, size: str, seed: int, began: float) -> dict[str, Any]:
    """The facts of a table: model, data, size, seed, versions, date, and seconds since `began`."""
    return {
        "model": vae.config,
        "weights sha256": weights_sha256(vae),
        "data": f"{images.name}, {images.split}",
        "size": size,
        "seed": seed,
        **surroundings(),
        "seconds": round(time.perf_counter() - began, 1),
    }


def surroundings() -> dict[str, Any]:
    """Version of torch, machine and date."""
    return {
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.now(UTC).date().isoformat(),
    }


def from_command_line(study: Study, name: str, about: str | None) -> None:
    """Run a study on a model and a data set named on the command line and write its table.

    Args:
        study: The study.
        name: Of its module.
        about: What the help says.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", default="digits-vae")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--size", default="laptop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", type=Path, help="file that keeps finished parts")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no part after these")
    parser.add_argument("--out", type=Path, default=Path("out"))
    given = parser.parse_args()

    def progress(line: str) -> None:
        print(line, flush=True)

    images = data.load(given.data, split="test")
    vae = zoo.load(given.model)
    kept = Keep(given.kept, given.minutes)
    try:
        table = study(vae, images, size=given.size, seed=given.seed, kept=kept, progress=progress)
    except Unfinished:
        print("the time is over: give the same command again to go on", file=sys.stderr)
        sys.exit(3)
    command = f"python -m robustvae.studies.{name} {shlex.join(sys.argv[1:])}"
    facts = table.facts | {"command": command}
    if given.kept is not None:
        facts.pop("seconds")  # those of the last of several runs would mislead
    table = replace(table, facts=facts)
    table.write(given.out, re.sub(r"[^a-z0-9]+", "-", f"{name}-{given.data}"))
    print(table.to_markdown())


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    reported = "" if row.reported is None else f" (reported {row.reported:g})"
    spread = f" ± {row.stderr:.2g}" if row.stderr else ""
    return f"{row.measured:.3g}{spread}{reported}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
