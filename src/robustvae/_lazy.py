"""Packages whose names are imported at first use, so that what is not asked for costs nothing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def attach(package: str, homes: Mapping[str, str]) -> None:
    """Let a package offer names that live in its parts, each imported when it is first asked for.

    Args:
        package: The package's full name, `__name__` in its `__init__`.
        homes: Module of each name, relative to the package, such as {"Ball": "perturb"}; the name
            of a part itself has the empty text.
    """
    module = sys.modules[package]
    module.__class__ = _Package
    module.__dict__["_homes"] = dict(homes)


class _Package(ModuleType):
    """A package that finds its names late; a function wins over a module of the same name."""

    def __getattr__(self, name: str) -> Any:
        homes = self.__dict__.get("_homes", {})
        if name not in homes:
            # a part that no public name lives in is there all the same, imported or not
            full = f"{self.__name__}.{name}"
            if (
                name.isidentifier()
                and not name.startswith("_")
                and importlib.util.find_spec(full) is not None
            ):
                return importlib.import_module(full)
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        home = homes[name]
        part = importlib.import_module(f"{self.__name__}.{home or name}")
        value = getattr(part, name) if home else part
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing `robustvae.audit` binds the module to `robustvae.audit`, where users expect the
        # function of that name: the import system's assignment is left out for such names.
        if self.__dict__.get("_homes", {}).get(name) and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self.__dict__.get("_homes", {})})
