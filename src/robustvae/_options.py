"""Options of public functions: the keywords beside the main arguments, declared as a typed dict.

A function that takes `**options: Unpack[SomeOptions]` is called with plain keywords, which type
checkers and editors know by name and type; its docstring describes every one of them.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from robustvae.errors import UnknownOptionError, unknown

Options = TypeVar("Options", bound=Mapping[str, Any])


def with_defaults(function: Callable[..., Any], options: Options, defaults: Options) -> Options:
    """All options of a call: the ones that were passed, and defaults for the others.

    Args:
        function: What was called: its name and its other arguments stand in the message.
        options: The keywords that were passed.
        defaults: Every option that the function takes, with its default.

    Raises:
        UnknownOptionError: A keyword that the function does not take; the nearest is suggested.

    Examples:
        >>> from robustvae._options import with_defaults
        >>> def count(x, **options):
        ...     return with_defaults(count, options, {"draws": 10, "chunk": None})
        >>> count(0, draws=3)
        {'draws': 3, 'chunk': None}
        >>> count(0, drawn=3)
        Traceback (most recent call last):
        robustvae.errors.UnknownOptionError: unknown argument of count 'drawn': did you mean \
'draws'? (choose from chunk, draws, x)
    """
    for name in options:
        if name not in defaults:
            main = [
                parameter.name
                for parameter in inspect.signature(function).parameters.values()
                if parameter.kind is not parameter.VAR_KEYWORD
            ]
            error = unknown(f"argument of {function.__name__}", name, [*main, *defaults])
            raise UnknownOptionError(str(error))
    return cast(Options, {**defaults, **options})


def option_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The options that a function or class declares, by name, with their types.

    Examples:
        >>> from robustvae._options import option_hints
        >>> from robustvae.robustness import robustness_probability
        >>> sorted(option_hints(robustness_probability))
        ['center', 'chunk', 'confidence', 'draws']
    """
    body = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    for parameter in inspect.signature(body).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            hint = typing.get_type_hints(body).get(parameter.name)
            if typing.get_origin(hint) is typing.Unpack:
                return typing.get_type_hints(typing.get_args(hint)[0])
    return {}
