"""What `import robustvae as rv` offers: sorted, documented, and never confused with a module."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import subprocess
import sys
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
    assert set(rv.__all__) == set(rv._homes)
    assert set(rv.__all__) <= set(dir(rv))


def test_type_checkers_see_the_same_names() -> None:
    """The table is for Python, the imports under TYPE_CHECKING for type checkers and editors."""
    checked: dict[str, str] = {}
    for node in ast.walk(ast.parse(inspect.getsource(rv))):
        if isinstance(node, ast.ImportFrom) and node.module != "typing":
            home = (node.module or "").removeprefix("robustvae").lstrip(".")
            checked |= {alias.name: home for alias in node.names}
    del checked["attach"]
    assert checked == rv._homes


def test_parts_are_there_unimported() -> None:
    """`rv.robustness.Budget` works in a process that has imported nothing else."""
    code = """
import robustvae as rv
assert rv.robustness.Budget(steps=3).steps == 3 and rv.attacks.DirectedAscent
assert callable(rv.audit) and not hasattr(rv, "no_such_part")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_function_wins_over_module_of_name() -> None:
    code = """
import importlib, sys, types, robustvae
from robustvae import _lazy
package = types.ModuleType("package")
sys.modules["package"] = package
_lazy.attach("package", {"audit": "parts"})
package.audit = types.ModuleType("package.audit")  # as `import package.audit` does
assert "audit" not in vars(package)
package.other = other = types.ModuleType("package.other")
assert package.other is other
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_namespaces_are_ours_and_sorted() -> None:
    for name, module in families().items():
        assert module.__name__ == f"robustvae.{name}"
        names = list(getattr(module, "__all__", ()))
        assert names == sorted(names, key=str.casefold), name


def test_no_function_shares_name_with_module() -> None:
    """Within a family; a function of `rv` wins over a module of its name (see the test above)."""
    modules = {info.name for info in pkgutil.walk_packages(rv.__path__, f"{rv.__name__}.")}
    for name in (name for name, value in PUBLIC.items() if is_function(value)):
        full = name.replace("rv", rv.__name__, 1)
        assert full not in modules or full.count(".") == 1, name


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
