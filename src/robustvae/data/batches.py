"""Reads pickled arrays without unpickling: no name in the file is ever looked up or called.

A pickle is a program for a small stack machine. What is read here is that program, and of its
instructions only those that plain containers, text, numbers and numpy arrays are made of; every
other one, and every name but those of numpy's own array makers, ends the reading with an error.
"""

from __future__ import annotations

import itertools
import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from robustvae.errors import DataError

ARRAY = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
BUFFER = {"numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer"}
NAMES = ARRAY | BUFFER | {"numpy ndarray", "numpy dtype", "_codecs encode"}
VALUES = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG1", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
OPERATIONS = 2**18  # of one file; a batch of 50,000 named images with two labels has 200,000
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@final
@dataclass(frozen=True)
class _Name:
    text: str


@final
@dataclass(eq=False)
class _Dtype:
    value: np.dtype


@final
@dataclass(eq=False)
class _Array:
    value: np.ndarray | None = None


class _Mark:
    """Where a group of values on the stack begins."""


def read_batch(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle file of text, numbers, containers and numpy arrays.

    Args:
        path: The file, such as one of CIFAR-10's batches.

    Returns:
        Values by name; bytes of keys are read as text, arrays are as they were stored.

    Raises:
        DataError: Missing, truncated, or asking for anything but the above; nothing is executed.
    """
    try:
        content = _run(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"wanted a dictionary, got {type(content).__name__}")
        return {_text(key): _plain(value) for key, value in content.items()}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, LookupError, AttributeError, MemoryError) as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} must be a batch of plain arrays: {line}") from None


def _run(content: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any

    def group() -> list[Any]:
        start = max(i for i, value in enumerate(stack) if value is _Mark)
        values = stack[start + 1 :]
        del stack[start:]
        return values

    for opcode, argument in _operations(content):
        name = opcode.name
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            stack.append(_Mark)
        elif name in TUPLES:
            values = [stack.pop() for _ in range(TUPLES[name])]
            stack.append(tuple(reversed(values)))
        elif name == "TUPLE":
            stack.append(tuple(group()))
        elif name in ("APPEND", "APPENDS"):
            values = [stack.pop()] if name == "APPEND" else group()
            _expect(stack[-1], list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = [stack.pop(-2), stack.pop()] if name == "SETITEM" else group()
            keys = [_expect(key, str | bytes | int) for key in values[::2]]
            _expect(stack[-1], dict).update(zip(keys, values[1::2], strict=True))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_name(argument))
        elif name == "STACK_GLOBAL":
            last = stack.pop()
            stack.append(_name(f"{stack.pop()} {last}"))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_made(_expect(stack.pop(), _Name).text, _expect(arguments, tuple)))
        elif name == "BUILD":
            state = _expect(stack.pop(), tuple)
            _fill(stack[-1], state)
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"it has the instruction {name}")
    raise ValueError("it has no end")


def _name(text: str) -> _Name:
    if text not in NAMES:
        raise ValueError(f"it asks for {text.replace(' ', '.')}")
    return _Name(text)


def _made(name: str, arguments: tuple[Any, ...]) -> Any:
    """What a call would have made, of the few calls that arrays are written with."""
    if name in ARRAY:
        return _Array()
    if name in BUFFER:
        buffer, dtype, shape, order = arguments
        return _Array(_array(buffer, _expect(dtype, _Dtype).value, shape, order))
    if name == "numpy dtype":
        dtype = np.dtype(_expect(arguments[0], str))
        if dtype.kind not in "biuf":
            raise ValueError(f"it has numbers of type {dtype}")
        return _Dtype(dtype)
    if name == "_codecs encode":
        text, encoding = arguments
        if encoding not in ("latin1", "latin-1"):
            raise ValueError(f"it has text in {encoding!r}")
        return _expect(text, str).encode("latin-1")
    raise ValueError(f"it calls {name.replace(' ', '.')}")


def _fill(target: Any, state: tuple[Any, ...]) -> None:
    if isinstance(target, _Dtype):
        target.value = target.value.newbyteorder(_expect(state[1], str))
        return
    _, shape, dtype, by_columns, buffer = state
    order = "F" if by_columns else "C"
    _expect(target, _Array).value = _array(buffer, _expect(dtype, _Dtype).value, shape, order)


def _array(buffer: Any, dtype: np.dtype, shape: Any, order: Any) -> np.ndarray:
    content = buffer.encode("latin-1") if isinstance(buffer, str) else buffer
    flat = np.frombuffer(_expect(content, bytes | bytearray), dtype)
    return flat.reshape(_expect(shape, tuple), order=order)


def _text(key: Any) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("it has an array without content")
        return value.value
    return value


def _expect(value: Any, wanted: Any) -> Any:
    if not isinstance(value, wanted):
        raise ValueError(f"it has a {type(value).__name__} where none belongs")
    return value


def _operations(content: bytes) -> list[tuple[pickletools.OpcodeInfo, Any]]:
    """Every operation with its argument; damaged text must not warn of its escapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operations = [
            (opcode, argument)
            for opcode, argument, _ in itertools.islice(pickletools.genops(content), OPERATIONS + 1)
        ]
    if len(operations) > OPERATIONS:
        raise ValueError(f"it has more than {OPERATIONS} operations")
    return operations
