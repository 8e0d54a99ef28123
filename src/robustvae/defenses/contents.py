"""What an object holds, in one digest: equal digests mean that nothing has been switched."""

from __future__ import annotations

import enum
import functools
import hashlib
import types
from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

_MOST = 100_000  # parts of one object: beyond, it counts as new at every look
_PLAIN: tuple[type, ...] = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    range,
    slice,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)
_LIBRARIES = ("torch", "numpy", "scipy", "builtins", "collections", "functools", "math")
_NAMELESS: tuple[str, ...] = (
    "__dict__",
    "__weakref__",
    "__abstractmethods__",
    "_abc_impl",
    "__annotations__",
    "__annotations_cache__",
    "__annotate_func__",
    "__doc__",
)


def contents(*values: Any) -> bytes | None:
    """A digest of all that the values hold; None where some of it cannot be read.

    Attributes are followed through modules, objects, containers and functions with what they close
    over and the globals that they name, tensors and arrays to their numbers.

    Args:
        values: Whatever makes up a victim.

    Examples:
        >>> from robustvae.defenses.contents import contents
        >>> contents([1, "a"]) == contents([1, "a"]), contents([1]) == contents([2])
        (True, False)
    """
    walk = _Walk()
    for value in values:
        walk.add(value)
    return walk.digest.digest() if walk.is_readable else None


@final
class _Walk:
    """One way through all that is held."""

    def __init__(self) -> None:
        """Begin."""
        self.digest, self.is_readable = hashlib.blake2b(), True
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # no address is used twice meanwhile

    def add(self, value: Any) -> None:
        """Read a value and all it holds, depth first."""
        waiting = [value]
        while waiting and self.is_readable:
            one = waiting.pop()
            if isinstance(one, _PLAIN) and type(one) in _PLAIN:
                self._say(type(one).__name__, repr(one))
                continue
            if id(one) in self._seen:
                self._say("again", self._seen[id(one)])
                continue
            self._seen[id(one)] = len(self._seen)
            self._kept.append(one)
            self.is_readable = len(self._seen) <= _MOST
            try:
                parts = list(self._parts(one))
            except Exception:  # a stranger's attribute may raise whatever it likes
                self.is_readable = False
                return
            self._say(type(one).__qualname__, id(type(one)), len(parts))
            waiting += reversed(parts)

    def _say(self, *words: object) -> None:
        self.digest.update(repr(words).encode())

    def _parts(self, one: Any) -> Iterator[Any]:
        """What a value consists of; its own text and numbers are said at once."""
        kind = type(one)
        if isinstance(one, Tensor):
            self._numbers(one)
            if one.layout == torch.strided:
                yield from vars(one).items()
        elif isinstance(one, np.ndarray) and one.dtype != object:
            self._say(one.shape, str(one.dtype), np.ascontiguousarray(one).tobytes())
        elif isinstance(one, np.generic):
            self._say(repr(one))
        elif isinstance(one, torch.Generator):
            self._say(one.get_state().numpy().tobytes())
        elif isinstance(one, enum.Enum):
            self._say(one.name)
        elif isinstance(one, dict):
            for key, value in one.items():
                yield from (key, value)
            yield from self._attributes(one)
        elif isinstance(one, list | tuple):
            yield from one
            yield from self._attributes(one)
        elif kind in (set, frozenset):
            # sorted by what they print: their order is not their own
            yield from sorted(one, key=repr)
        elif isinstance(one, type):
            yield from self._of_class(one)
        elif isinstance(one, types.ModuleType | types.BuiltinFunctionType | np.ufunc):
            self._say(id(one))
        elif isinstance(one, types.FunctionType):
            yield from self._of_function(one)
        elif isinstance(one, types.MethodType):
            yield from (one.__func__, one.__self__)
        elif isinstance(one, functools.partial):
            yield from (one.func, one.args, one.keywords)
        elif isinstance(one, property):
            yield from (one.fget, one.fset)
        elif isinstance(one, staticmethod | classmethod):
            yield one.__func__
        elif isinstance(one, types.CellType):
            yield one.cell_contents
        elif isinstance(one, types.CodeType):
            self._say(one.co_code, one.co_names, id(one))
        elif isinstance(one, types.MappingProxyType):
            yield dict(one)
        elif hasattr(one, "__dict__") or _slots(kind):
            yield kind
            yield from self._attributes(one)
        else:
            self.is_readable = False

    def _numbers(self, one: Tensor) -> None:
        self._say(id(one), str(one.dtype), str(one.device), tuple(one.shape))
        if (
            one.layout != torch.strided
            or one.is_meta
            or type(one)
            not in (
                Tensor,
                torch.nn.Parameter,
                torch.nn.Buffer,
            )
        ):
            self.is_readable = False
            return
        numbers = one.detach().resolve_conj().resolve_neg().cpu().contiguous()
        self.digest.update(numbers.flatten().view(torch.uint8).numpy().tobytes())

    def _attributes(self, one: Any) -> Iterator[Any]:
        for key, value in getattr(one, "__dict__", {}).items():
            yield from (key, value)
        for name in _slots(type(one)):
            if hasattr(one, name):
                yield from (name, getattr(one, name))

    def _of_class(self, one: type) -> Iterator[Any]:
        self._say(id(one))
        if _is_known(one):
            return
        yield from one.__bases__
        for key, value in vars(one).items():
            if key not in _NAMELESS and not isinstance(
                value, types.MemberDescriptorType | types.GetSetDescriptorType
            ):
                yield from (key, value)

    def _of_function(self, one: types.FunctionType) -> Iterator[Any]:
        self._say(id(one))
        if _is_known(one):
            return
        yield from (one.__code__, one.__defaults__, one.__kwdefaults__, vars(one))
        yield from one.__closure__ or ()
        for name in sorted(_names(one.__code__)):
            if name in one.__globals__:
                yield from (name, one.__globals__[name])


def _names(code: types.CodeType) -> set[str]:
    """What a function and those written inside it may read of their globals."""
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _is_known(one: Any) -> bool:
    """Whether it is a library's own, which no user switches."""
    return (getattr(one, "__module__", None) or "").partition(".")[0] in (*_LIBRARIES, "robustvae")


def _slots(kind: type) -> list[str]:
    names: list[str] = []
    for part in kind.__mro__:
        slots = part.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]
