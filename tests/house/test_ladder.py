"""The import ladder and the house rules that can be read off the source."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import itertools
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import robustvae

PACKAGE = Path(robustvae.__file__).parent

LADDER = [
    {"errors", "_lazy", "rounding"},
    {"display", "_options", "arguments"},
    {"registry", "seeding"},  # below the rest of their line: members and draws go through them
    {"records", "jacobians", "gate"},
    {"loops"},
    {"metrics", "bounds", "norms", "data", "perturb", "mcmc", "loggers"},
    {"models"},
    {"defenses", "geometry"},
    {"scores"},
    {"certificates"},
    {"objectives"},
    {"attacks", "training", "evaluation"},
    {"robustness", "zoo"},
    {"audit"},
    {"campaign", "report"},
    {"sharing", "zoo_table"},
    {"app", "callbacks"},
    {"__init__"},
    {"cli", "testing"},
    {"__main__"},
]
LINE = {family: line for line, families in enumerate(LADDER) for family in families}


def module_name(path: Path) -> str:
    parts = ("robustvae", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def family(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(module: str, *, for_types: bool = True) -> Iterator[str]:
    """Everything that a module imports, by full name; `for_types`: also what only checkers read."""

    def walk(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        skipped = node.body if isinstance(node, ast.If) and checked and not for_types else []
        for child in ast.iter_child_nodes(node):
            if child not in skipped:
                yield from walk(child)

    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            continue
        above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
        source = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            full = f"{source}.{alias.name}"
            yield full if full in MODULES else source


def own(names: Iterator[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "robustvae"}


def classes() -> Iterator[type]:
    for info in pkgutil.walk_packages(robustvae.__path__, "robustvae."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == info.name:
                yield value


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_from_lower_lines(module: str) -> None:
    assert family(module) in LINE, f"{module} has no line in the ladder"
    for imported in own(imports(module)):
        above, below = family(module), family(imported)
        assert above == below or LINE[below] < LINE[above], f"{module} imports {imported}"


def test_no_import_cycles() -> None:
    graph = {module: own(imports(module, for_types=False)) - {module} for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()


def test_a_folder_only_exports() -> None:
    for module, path in MODULES.items():
        if path.name == "__init__.py":
            made = [
                node.name
                for node in TREES[module].body
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                and node.name not in ("__getattr__", "__dir__")
            ]
            assert not made, f"{module} defines {made}"


def test_records_and_reports_need_no_torch() -> None:
    for module in MODULES:
        if family(module) in ("errors", "rounding", "records", "report"):
            roots = {name.split(".")[0] for name in imports(module, for_types=False)}
            assert "torch" not in roots, module
            reached = {family(name) for name in own(imports(module))}
            assert reached <= {
                "errors",
                "rounding",
                "display",
                "arguments",
                "records",
                "registry",
                family(module),
            }, module


def test_only_seeding_seeds() -> None:
    for module, tree in TREES.items():
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert "manual_seed" not in names or module == "robustvae.seeding", module


def test_nothing_is_unpickled() -> None:
    unsafe = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for module, tree in TREES.items():
        roots = {name.split(".")[0] for name in imports(module)}
        assert not roots & unsafe, module
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            called = ast.unparse(call.func)
            assert called not in ("torch.jit.load", "torch.hub.load"), module
            tensors = [word for word in call.keywords if word.arg == "weights_only"]
            if called == "torch.load":  # which then reads tensors and nothing else
                assert module == "robustvae.models.factories", module
                assert [ast.unparse(word.value) for word in tensors] == ["True"], module
            allowed = [word.value for word in call.keywords if word.arg == "allow_pickle"]
            assert all(ast.unparse(value) == "False" for value in allowed), module


def test_certificates_know_no_model_by_name() -> None:
    """What a model is made of says the model, or a trace of it."""
    from robustvae.models import VAE

    concrete = {
        cls.__name__ for cls in classes() if issubclass(cls, VAE) and not inspect.isabstract(cls)
    }
    assert {"GaussianVAE", "LipschitzVAE", "WrappedVAE", "NVAE"} <= concrete
    concrete |= {"HierarchicalVAE"}
    for module, tree in TREES.items():
        if family(module) == "certificates":
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            assert not names & concrete, f"{module} names {names & concrete}"


def test_a_class_is_abstract_or_final() -> None:
    """One with heirs has abstract methods, or nothing makes an object of it: it is a part."""
    made = {
        (family(module), ast.unparse(node.func).rpartition(".")[2])
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    for cls in classes():
        if issubclass(cls, BaseException) or getattr(cls, "_is_protocol", False):
            continue
        heirs = [heir for heir in cls.__subclasses__() if heir.__module__.startswith("robustvae")]
        if heirs:
            is_part = (family(cls.__module__), cls.__name__) not in made
            assert inspect.isabstract(cls) or is_part, f"{cls} is concrete and has heirs {heirs}"
        elif not cls.__name__.startswith("_") and not inspect.isabstract(cls):
            assert getattr(cls, "__final__", False), f"{cls} is concrete and not @final"


def test_examples_stand_under_heading_docs_render() -> None:
    for module, path in MODULES.items():
        wrong = re.search(r"^ +Example:$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert not wrong, f"{module}: write `Examples:`"


def test_the_reader_of_imports_reads() -> None:
    """The rules above are void if this walk finds nothing."""
    found = set(itertools.chain.from_iterable(map(imports, MODULES)))
    assert {"torch", "robustvae.errors", "robustvae.seeding"} <= found
