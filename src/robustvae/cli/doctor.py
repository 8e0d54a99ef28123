"""Look at this installation: versions, devices, extras, data sets, bundled models."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterator

import typer

from robustvae.cli.entry import DONE, FAILED
from robustvae.errors import install_command, requirements


def run() -> None:
    """Look at this installation: versions, devices, extras, data sets, bundled models.

    Exits with 1 where a bundled model does not load.
    """
    import numpy
    import torch

    from robustvae import __version__
    from robustvae.cli.printing import show_table

    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    rows = [
        ("python", f"{platform.python_version()} on {platform.system()}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("numpy", numpy.__version__),
        ("devices", ", ".join(devices)),
        *_extras(),
        *_data_sets(),
    ]
    models = list(_models())
    rows += [(f"model {name}", fault or "loads") for name, fault in models]
    show_table(rows, title=f"robustvae {__version__}")
    raise typer.Exit(FAILED if any(fault for _, fault in models) else DONE)


def _extras() -> Iterator[tuple[str, str]]:
    """Each extra that a user may want, and how to get it where it is missing."""
    try:
        extras = importlib.metadata.metadata("robustvae").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        yield "extras", "unknown: run from the sources, not installed"
        return
    for extra in extras:
        if extra in ("dev", "docs", "benchmarks"):
            continue
        missing = [name for name in requirements(extra) if not _is_installed(name)]
        yield f"extra {extra}", f"missing: {install_command(extra)}" if missing else "installed"


def _is_installed(requirement: str) -> bool:
    name = re.split(r"[^A-Za-z0-9._-]", requirement)[0]
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _data_sets() -> Iterator[tuple[str, str]]:
    from robustvae import data
    from robustvae.errors import DataError

    titles: set[str] = set()
    for name in data.names():
        if name in titles:
            continue
        try:
            images = data.load(name, split="test")
            titles.add(images.name)
            yield f"data {images.name}", f"{len(images)} test images"
        except DataError as error:
            yield f"data {name}", str(error)


def _models() -> Iterator[tuple[str, str]]:
    from robustvae import zoo
    from robustvae.errors import CheckpointError

    for name in zoo.bundled():
        try:
            zoo.load(name)
            yield name, ""
        except CheckpointError as error:
            yield name, str(error)
