"""Checks of arguments, made from a function's own annotations."""

from __future__ import annotations

import collections.abc
import errno
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, Union

from robustvae.errors import (
    ArgumentError,
    DtypeError,
    ModelError,
    RangeError,
    RobustVAEError,
    UnknownNameError,
    is_out_of_memory,
    single_line,
)

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type[Any])
Accept = Callable[[Any], bool]

# What Python and torch raise on values of the right type that do not go together.
_MISFITS = (
    RuntimeError,
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    ArithmeticError,
    AttributeError,
    MemoryError,
)
_MOST = 100  # elements of a sequence that are looked at: more would cost time at every call
_SHOWN = 80  # characters of a value in a message


def checked(*, formula: bool = False) -> Callable[[F], F]:
    """A decorator that validates arguments by their annotations before a function runs.

    Tensors must be dense, real and on a device that holds values; whole numbers must fit into 64
    bits; yes and no count as no number. Annotations that say nothing of this kind are passed over.

    Args:
        formula: Whether the function computes from its arguments alone. Then what Python or torch
            raise is raised as an `ArgumentError` that shows the arguments, with the exception as
            its cause. What code of the caller's raises, such as a model of their own, passes as it
            is: it is no matter of arguments. What a wrapped model raises, in its backward pass
            too, is raised as a `ModelError` in either case.

    Examples:
        >>> from robustvae.arguments import checked
        >>> @checked()
        ... def half(x: float) -> float:
        ...     return x / 2
        >>> half("1")
        Traceback (most recent call last):
        robustvae.errors.DtypeError: half: x must be a number, got '1'
    """

    def decorate(function: F) -> F:
        plan: list[tuple[str, Accept, str]] | None = None
        names = tuple(inspect.signature(function).parameters)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal plan
            if plan is None:  # not at import: annotations name what is imported later
                plan = _plan(function)
            values = {**dict(zip(names, args, strict=False)), **kwargs}
            for name, accepts, description in plan:
                if name in values and not accepts(values[name]):
                    raise _refusal(function, name, values[name], description)
            try:
                return function(*args, **kwargs)
            except RobustVAEError:
                raise
            except OSError as error:  # a text of any length may stand where a path is wanted
                if error.errno != errno.ENAMETOOLONG or _is_from_caller(error, function):
                    raise
                words = f"{_name(function)}: a path must be shorter, got {shown(error.filename)}"
                raise ArgumentError(f"{words}: name another place") from None
            except _MISFITS as error:
                if _is_of_model(error, function, values) and not is_out_of_memory(error):
                    raise ModelError(
                        f"{_name(function)}: running the wrapped model raised "
                        f"{type(error).__name__}: {single_line(error)}; mend its code; "
                        "rv.check(vae, x) may say more"
                    ) from error
                # a text of any kind may stand where a path is wanted
                is_path = isinstance(error, ValueError) and "embedded null" in str(error)
                if not (formula or is_path) or _is_from_caller(error, function):
                    raise
                parts = ", ".join(f"{name}={shown(value)}" for name, value in values.items())
                words = single_line(error, 200)
                raise ArgumentError(
                    f"{_name(function)}: arguments must fit together, got {parts}: {words}"
                ) from error

        return typing.cast("F", call)

    return decorate


_PACKAGES = frozenset(
    ("robustvae", "torch", "numpy", "scipy", "sklearn", "PIL", "safetensors", "pydantic", "yaml")
)
"""Whose code is not the caller's, beside the standard library."""


def _is_from_caller(error: BaseException, function: Any) -> bool:
    """Whether code of the caller's, called by a function, raised an error or called what did."""
    names = {*_PACKAGES, *sys.stdlib_module_names, function.__module__.partition(".")[0]}
    place = error.__traceback__
    while place is not None:
        package = str(place.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in names:
            return True
        place = place.tb_next
    return False


def _is_of_model(error: BaseException, function: Any, values: dict[str, Any]) -> bool:
    """Whether a stranger's model raised an error, in a backward pass too, where torch calls it."""
    models = [getattr(value, "vae", value) for value in values.values()]
    if not any(getattr(model, "is_foreign", False) for model in models):
        return False
    place = error.__traceback__
    while place is not None:
        if str(place.tb_frame.f_globals.get("__name__", "")).startswith("torch.autograd"):
            return True
        place = place.tb_next
    return _is_from_caller(error, function)


def checked_fields(kind: C) -> C:
    """A class decorator that validates what is given at construction; above `dataclass`.

    Args:
        kind: The class; its `__init__` is replaced.

    Examples:
        >>> from dataclasses import dataclass
        >>> from robustvae.arguments import checked_fields
        >>> @checked_fields
        ... @dataclass
        ... class Size:
        ...     value: int
        >>> Size(0.5)
        Traceback (most recent call last):
        robustvae.errors.DtypeError: Size: value must be a whole number, got 0.5
    """
    setattr(kind, "__init__", checked(formula=True)(kind.__init__))  # noqa: B010
    return kind


def shown(value: object) -> str:
    """A value in a few words: the type, shape and layout of a tensor, the start of a text."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        try:
            layout = str(getattr(value, "layout", "")).removeprefix("torch.")
            extra = "" if layout in ("", "strided") else f" {layout}"
            place = " on meta" if str(getattr(value, "device", "")) == "meta" else ""
            return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}{extra}{place}"
        except (RuntimeError, TypeError):  # a nested tensor has no shape
            return type(value).__name__
    try:
        return single_line(repr(value), _SHOWN)
    except Exception:  # a stranger's object whose text cannot be made
        return type(value).__name__


def wanted_instead(value: Any, annotation: Any) -> str | None:
    """What an annotation wants, in words, where a value is something else; None where it fits.

    Examples:
        >>> from robustvae.arguments import wanted_instead
        >>> wanted_instead("abc", int), wanted_instead(3, int)
        ('a whole number', None)
    """
    rule = _rule(annotation)
    return None if rule is None or rule[0](value) else rule[1]


def _refusal(function: Any, name: str, value: Any, wanted: str) -> RobustVAEError:
    is_large = isinstance(value, int) and abs(value) >= 2**63
    kind: type[RobustVAEError] = RangeError if is_large else DtypeError
    if isinstance(value, str) and wanted.startswith("one of"):
        kind = UnknownNameError
    remedy = ": wrap a module of your own with rv.wrap" if hasattr(value, "state_dict") else ""
    return kind(f"{_name(function)}: {name} must be {wanted}, got {shown(value)}{remedy}")


def _name(function: Any) -> str:
    words = str(function.__qualname__).split(".<locals>.")[-1].removesuffix(".__init__")
    return words.removesuffix(".__call__")


def _plan(function: Any) -> list[tuple[str, Accept, str]]:
    """What is validated: name, test, and what was wanted, in words."""
    plan = []
    parameters = inspect.signature(function).parameters
    for name, annotation in inspect.get_annotations(function).items():
        parameter = parameters.get(name)
        if parameter is None or parameter.kind in (
            inspect.Parameter.VAR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
        ):
            continue
        rule = _rule(_evaluated(annotation, function.__globals__))
        if rule is not None:
            plan.append((name, *rule))
    return plan


def _evaluated(annotation: Any, space: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    torch = sys.modules.get("torch")  # whoever has none has no tensors either, and starts faster
    names = {} if torch is None else {"torch": torch, "Tensor": torch.Tensor}
    try:
        return eval(annotation, {**names, **space})
    except Exception:  # names that only type checkers see say nothing at run time
        return Any


def _rule(kind: Any) -> tuple[Accept, str] | None:
    """The test of an annotation and its words; None where it says nothing that can be tested."""
    torch = sys.modules.get("torch")
    if hasattr(kind, "__value__"):  # type X = ...
        kind = kind.__value__
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _rule(parts[0])
    if origin is Literal:
        return (lambda value: _among(value, parts)), f"one of {', '.join(map(repr, parts))}"
    if origin in (Union, types.UnionType):
        rules = [_rule(part) for part in parts]
        tests = [rule for rule in rules if rule is not None]
        if len(tests) < len(rules):
            return None
        return (lambda value: any(test(value) for test, _ in tests)), " or ".join(
            w for _, w in tests
        )
    if kind is Any:
        return None
    if kind in (None, type(None)):
        return (lambda value: value is None), "None"
    if torch is not None and kind is torch.Tensor:
        return is_dense, "a dense real tensor"
    if torch is not None and kind is torch.Generator:
        return _is_generator, "a torch.Generator"
    if kind is float:
        return _is_number, "a number"
    if kind is int:
        return _is_whole, "a whole number"
    if kind in (bool, str):
        return (lambda value: isinstance(value, kind)), {bool: "True or False", str: "a text"}[kind]
    if origin in (collections.abc.Sequence, list, tuple) or kind in (list, tuple):
        return _sequence(parts)
    if origin is collections.abc.Iterable:
        return _is_iterable, "values one after the other"
    if origin in (collections.abc.Mapping, dict):
        return (lambda value: isinstance(value, collections.abc.Mapping)), "a mapping"
    if origin is collections.abc.Callable or kind is collections.abc.Callable:
        return callable, "a function"
    if inspect.isclass(kind) and kind is not object and not getattr(kind, "_is_protocol", False):
        article = "an" if kind.__name__[:1] in "AEIOU" else "a"
        return (lambda value: isinstance(value, kind)), f"{article} {kind.__name__}"
    return None


def _sequence(parts: tuple[Any, ...]) -> tuple[Accept, str]:
    inner = _rule(parts[0]) if len({part for part in parts if part is not ...}) == 1 else None

    def accepts(value: Any) -> bool:
        if isinstance(value, str | bytes) or not isinstance(value, collections.abc.Sequence):
            return False
        return inner is None or all(inner[0](part) for part in value[:_MOST])

    return accepts, "a sequence" + ("" if inner is None else f", each of it {inner[1]}")


def _is_iterable(value: Any) -> bool:
    return isinstance(value, collections.abc.Iterable) and not isinstance(value, str | bytes)


def _among(value: Any, options: tuple[Any, ...]) -> bool:
    try:
        return any(type(value) is type(option) and value == option for option in options)
    except Exception:  # a stranger's object that cannot be compared
        return False


def is_dense(value: Any) -> bool:
    """Whether a value is a tensor that holds its values, one real number beside the other."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and not value.is_nested
        and value.layout == torch.strided
        and value.device.type != "meta"
        and not value.is_quantized
        and not value.is_complex()
    )


def _is_generator(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Generator)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**63


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
