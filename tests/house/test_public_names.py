"""What `import robustvae as rv` offers: sorted, documented, and never confused with a module."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

import robustvae as rv


def is_function(value: object) -> bool:
    return inspect.isfunction(value) or inspect.isbuiltin(value)


def speaks_for_itself(value: object) -> bool:
    return inspect.isclass(value) and (
        issubclass(value, BaseException) or getattr(value, "_is_protocol", False)
    )


def families() -> dict[str, ModuleType]:
    """The folders and files that `rv` offers as namespaces, such as `rv.data`."""
    return {name: getattr(rv, name) for name in rv.__all__ if inspect.ismodule(getattr(rv, name))}


def exported(module: ModuleType) -> dict[str, object]:
    return {name: getattr(module, name) for name in getattr(module, "__all__", ())}


def public() -> Iterator[tuple[str, object]]:
    for name, value in exported(rv).items():
        if not inspect.ismodule(value) and not name.startswith("__"):
            yield f"rv.{name}", value
    for family, module in families().items():
        for name, value in exported(module).items():
            if not inspect.ismodule(value):
                yield f"rv.{family}.{name}", value


PUBLIC = dict(public())


def test_all_is_sorted_and_complete() -> None:
    assert rv.__all__ == sorted(rv.__all__, key=str.casefold)
    offered = {
        name
        for name, value in vars(rv).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert {name for name in rv.__all__ if name in offered} == offered
    assert {name for name in rv.__all__ if not name.startswith("__")} == offered | set(families())


def test_namespaces_are_ours_and_sorted() -> None:
    for name, module in families().items():
        assert module.__name__ == f"robustvae.{name}"
        names = list(getattr(module, "__all__", ()))
        assert names == sorted(names, key=str.casefold), name


def test_no_function_shares_its_name_with_a_module() -> None:
    """Among all modules for a name of `rv`, within its own folder for one of a family."""
    modules = [info.name for info in pkgutil.walk_packages(rv.__path__, f"{rv.__name__}.")]
    for name in (name for name, value in PUBLIC.items() if is_function(value)):
        prefix, _, function = name.replace("rv", rv.__name__, 1).rpartition(".")
        shared = [m for m in modules if m.startswith(prefix) and m.endswith(f".{function}")]
        assert not shared, f"{name} and {shared}"


@pytest.mark.parametrize("name", PUBLIC)
def test_is_documented_with_an_example(name: str) -> None:
    value = PUBLIC[name]
    if is_function(value) or inspect.isclass(value):
        doc = inspect.getdoc(value) or ""
        own_doc = "__doc__" in vars(value) if inspect.isclass(value) else True
        assert doc and own_doc, f"{name} has no docstring"
        assert not doc.startswith(f"{getattr(value, '__name__', '')}("), f"{name}: dataclass text"
        if not speaks_for_itself(value):
            assert ">>>" in doc, f"{name} has no example"
