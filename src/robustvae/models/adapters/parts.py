"""Modules and weights that a user's function reaches: in closures, methods, partials, globals."""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

DEPTH = 6  # of containers and calls; a function that hides its module deeper is hiding it
OPAQUE = "what"
ITEMS = 1000  # of one container: a longer one holds data, not layers
_PLAIN = (str, bytes, int, float, complex, bool, type(None), types.ModuleType, torch.dtype)


@final
@dataclass
class Reach:
    """What a function reaches.

    Attributes:
        modules: Modules, without those that are parts of another one in the list.
        unseen: What may hold weights besides modules, in words.
    """

    modules: list[nn.Module] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)


def reached(*functions: Any) -> Reach:
    """The modules that functions reach, and what else they reach.

    Looked through are modules, bound methods, `functools.partial`, closures, default arguments,
    globals that the code names, attributes of callable objects, and lists, tuples and dictionaries
    of all these.

    Args:
        functions: Callables.

    Examples:
        >>> import torch
        >>> from robustvae.models.adapters.parts import reached
        >>> layer = torch.nn.Linear(2, 2)
        >>> reached(lambda x: layer(x)).modules == [layer]
        True
    """
    search = _Search()
    for function in functions:
        search.visit(function, getattr(function, "__name__", type(function).__name__), 0)
    parts = {id(part) for one in search.modules for part in one.modules() if part is not one}
    modules = [module for module in search.modules if id(module) not in parts]
    return Reach(modules, search.unseen)


class _Search:
    def __init__(self) -> None:
        self.modules: list[nn.Module] = []
        self.unseen: list[str] = []
        self._visited: dict[int, Any] = {}  # the objects too, so that no id is used twice

    def visit(self, value: Any, name: str, depth: int) -> None:
        if isinstance(value, _PLAIN) or id(value) in self._visited:
            return
        self._visited[id(value)] = value
        if isinstance(value, nn.Module):
            self.modules.append(value)
        elif isinstance(value, Tensor):
            if value.is_floating_point() and value.numel() > 1:
                self.unseen.append(f"the tensor {name}")
        elif depth >= DEPTH:
            if callable(value) and not isinstance(value, type) and not _is_library(value):
                self.unseen.append(f"{OPAQUE} {name} calls")
        else:
            for part, word in _inside(value):
                self.visit(part, word or name, depth + 1)


def _inside(value: Any) -> Iterator[tuple[Any, str]]:
    """What hangs on a value, and its name where it has one."""
    if isinstance(value, functools.partial):
        yield value.func, ""
        yield from ((argument, "") for argument in value.args)
        yield from ((argument, key) for key, argument in value.keywords.items())
    elif isinstance(value, types.MethodType):
        yield value.__self__, ""
        yield value.__func__, ""
    elif isinstance(value, types.FunctionType):
        if not _is_library(value):
            yield from _of_function(value)
    elif isinstance(value, dict):
        if len(value) <= ITEMS:
            yield from ((part, str(key)) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        if len(value) <= ITEMS:
            yield from ((part, "") for part in value)
    elif not isinstance(value, type) and not _is_library(value):
        yield from ((part, key) for key, part in getattr(value, "__dict__", {}).items())
        for kind in type(value).__mro__:
            for slot in _slots(kind):
                if hasattr(value, slot):
                    yield getattr(value, slot), slot
        for name in ("__call__", "encode", "decode", "forward"):
            call = inspect.getattr_static(type(value), name, None)
            if isinstance(call, types.FunctionType):
                yield call, ""


def _of_function(function: types.FunctionType) -> Iterator[tuple[Any, str]]:
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        try:
            yield cell.cell_contents, name
        except ValueError:  # a name that is assigned later
            continue
    yield from ((part, "") for part in function.__defaults__ or ())
    yield from ((part, key) for key, part in (function.__kwdefaults__ or {}).items())
    if hasattr(function, "__wrapped__"):
        yield function.__wrapped__, ""
    for name in sorted(_global_names(function.__code__)):
        if name in function.__globals__:
            yield function.__globals__[name], name


def _global_names(code: types.CodeType) -> set[str]:
    """Names that code looks up among the globals; those of attributes are none of them."""
    names = {
        str(line.argval)
        for line in dis.get_instructions(code)
        if line.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _is_library(value: Any) -> bool:
    """Whether a function or object is torch's, Python's or ours, which hide no weights."""
    module = getattr(value, "__module__", None) or type(value).__module__
    return module.partition(".")[0] in _LIBRARIES


_LIBRARIES = frozenset(
    ["builtins", "functools", "itertools", "math", "numpy", "operator", "torch", "typing"]
)


def rebound(function: Callable[..., Any], memo: dict[int, Any]) -> Callable[..., Any]:
    """A copy of a function that calls the copies of the modules that it reaches.

    `copy.deepcopy` takes a function as it is: a copy of a model would go on calling the layers of
    the original.

    Args:
        function: What to copy.
        memo: Copies by the id of the original, as in `copy.deepcopy`; all modules are in it.
    """
    if id(function) in memo:
        duplicate: Callable[..., Any] = memo[id(function)]
        return duplicate
    if isinstance(function, functools.partial):
        return functools.partial(
            _copied(function.func, memo),
            *(_copied(argument, memo) for argument in function.args),
            **{key: _copied(argument, memo) for key, argument in function.keywords.items()},
        )
    if isinstance(function, types.MethodType):
        return types.MethodType(_copied(function.__func__, memo), _copied(function.__self__, memo))
    if isinstance(function, types.FunctionType) and not _is_library(function):
        return _of_copies(function, memo)
    twin: Callable[..., Any] = _copied(function, memo)
    return twin


def _of_copies(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    names = {
        name: function.__globals__[name]
        for name in _global_names(function.__code__)
        if name in function.__globals__
    }
    changes = {
        name: duplicate
        for name, value in names.items()
        if (duplicate := _copied(value, memo)) is not value
    }
    cells = tuple(
        types.CellType(_copied(cell.cell_contents, memo)) if _is_full(cell) else cell
        for cell in function.__closure__ or ()
    )
    scope = {**function.__globals__, **changes} if changes else function.__globals__
    defaults = _copied(function.__defaults__, memo)
    duplicate = types.FunctionType(
        function.__code__, scope, function.__name__, defaults, cells or None
    )
    duplicate.__kwdefaults__ = _copied(function.__kwdefaults__, memo)
    duplicate.__module__ = function.__module__
    return duplicate


def _is_full(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, functools.partial | types.MethodType | types.FunctionType):
        if not reached(value).modules:
            return value
        return rebound(value, memo)
    if isinstance(value, list | tuple) and type(value) in (list, tuple) and len(value) <= ITEMS:
        return type(value)(_copied(part, memo) for part in value)
    if type(value) is dict and len(value) <= ITEMS:
        return {key: _copied(part, memo) for key, part in value.items()}
    if not isinstance(value, nn.Module) and reached(value).modules and hasattr(value, "__dict__"):
        twin = memo[id(value)] = object.__new__(type(value))
        vars(twin).update({key: _copied(part, memo) for key, part in vars(value).items()})
        return twin
    return value
