"""Specs to members and back: fields are read, checked and written as the member declares them."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from robustvae._options import option_hints
from robustvae.arguments import checked, wanted_instead
from robustvae.errors import ConfigError, DtypeError, RobustVAEError, UnsupportedError, unknown
from robustvae.registry.members import (
    BASES,
    FAMILIES,
    PATH,
    family_of,
    lookup,
    name_of,
    shortened,
    target_of,
)
from robustvae.registry.text import parse


@checked()
def build(family: str, spec: Any, **defaults: Any) -> Any:
    """The member that a spec describes, made.

    Args:
        family: One of `FAMILIES`.
        spec: A name, a mapping with `name` and fields, the command line's form, or an object that
            is a member already and is returned as it is.
        defaults: Fields that hold where the spec does not name them and the member has them.

    Raises:
        UnknownNameError: No such member or field; the nearest is suggested.
        ConfigError: A mapping without a name, a field that is missing, or a spec that cannot be
            read.
        DtypeError: Neither a spec nor an object of this family.
        RobustVAEError: Raised by the member itself.

    Examples:
        >>> from robustvae.registry import build
        >>> build("defense", {"name": "robust-posterior", "radius": 0.1}).radius
        0.1
    """
    if isinstance(spec, str):
        spec = parse(spec)
    if not isinstance(spec, Mapping):
        base = BASES.get(family)
        if base is not None and isinstance(spec, base) and not isinstance(spec, type):
            return spec
        raise DtypeError(
            f"a {family} is a name, a mapping or an object of its kind, got {shortened(spec)}: "
            f"see `robustvae list {family}`"
        )
    fields = dict(spec)
    name = fields.pop("name", None)
    if name is None:
        raise ConfigError(f"the spec of family {family} needs a name, got {shortened(dict(spec))}")
    member = lookup(family, name)
    if not callable(member):
        raise ConfigError(f"the {family} {name!r} is a file, which takes no fields: name it alone")
    accepted = _parameters(member)
    fields |= {key: value for key, value in defaults.items() if key in accepted} | fields
    return _made(member, fields, f"{family} {name!r}")


@checked()
def build_fields(member: Any, **families: str) -> None:
    """Make the members that the fields of a frozen dataclass name by their specs, in place.

    Args:
        member: The dataclass, in its `__post_init__`.
        families: The family of each such field, by the field's name.

    Raises:
        RobustVAEError: As `build` raises it.

    Examples:
        >>> from robustvae import InputNoise
        >>> InputNoise(0.25, "posterior-mode:steps=5").defense.steps  # its fields go through it
        5
    """
    for field, family in families.items():
        object.__setattr__(member, field, build(family, getattr(member, field)))


@checked()
def spec_of(family: str, member: Any) -> dict[str, Any]:
    """The spec of a made member: its name and all its fields, in JSON's own types.

    Raises:
        UnsupportedError: A field that no spec can say, such as a function.

    Examples:
        >>> from robustvae.registry import build, spec_of
        >>> spec_of("goal", build("goal", "latent-shift"))["name"]
        'latent-shift'
    """
    name = name_of(family, member) or _path_of(member, f"this {family}")
    return {"name": name, **_fields_of(member, f"the {family} {name!r}")}


def _wanted_member(value: Any, hint: Any) -> str | None:
    """The member that a field wants where a number or a list stands; protocols test no types."""
    options = _options(hint)
    families = [family for family, base in BASES.items() if base in options]
    is_only = bool(families) and len(families) == sum(one is not type(None) for one in options)
    return f"a {families[0]}" if is_only and isinstance(value, int | float | list) else None


def _parameters(member: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    main = {
        name: parameter
        for name, parameter in inspect.signature(member).parameters.items()
        if parameter.kind in kinds
    }
    # an option's default is the member's own affair: here it counts that there is one
    options = {
        name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in option_hints(member)
    }
    return main | options


def _made(member: Callable[..., Any], fields: Mapping[str, Any], what: str) -> Any:
    accepted = _parameters(member)
    for field in fields:
        if field not in accepted:
            raise unknown(f"field of {what}", field, accepted)
    missing = [
        name
        for name, parameter in accepted.items()
        if parameter.default is parameter.empty and name not in fields
    ]
    if missing:
        raise ConfigError(f"{what} needs {' and '.join(missing)}: say {missing[0]}=...")
    hints = _hints(member)
    arguments = {
        name: _converted(value, hints.get(name, Any), f"{name} of {what}")
        for name, value in fields.items()
    }
    _check_lone_texts(arguments, hints, what)
    try:
        result = member(**arguments)
    except RobustVAEError:
        raise
    except Exception as error:
        _check_types(arguments, hints, what)
        if getattr(member, "__module__", "").partition(".")[0] == "robustvae":
            raise
        raise ConfigError(  # somebody else's code: anything may come out of it
            f"{what} cannot be made: {type(error).__name__}: {shortened(str(error))}; "
            "give other fields, or mend its class"
        ) from error
    # afterwards: what a member says of its own fields is clearer
    _check_types(arguments, hints, what)
    return result


_WRITTEN = (str, bool, int, float, list, tuple, dict, type(None))  # what a file can hold


def _check_types(arguments: Mapping[str, Any], hints: Mapping[str, Any], what: str) -> None:
    """Raise where a written value is of another type than the member's own field."""
    for name, value in arguments.items():
        is_member = family_of(type(value)) is not None
        if not (is_member or isinstance(value, _WRITTEN)):
            continue
        hint = hints.get(name, Any)
        words = wanted_instead(value, hint) or _wanted_member(value, hint)
        if words is not None:
            raise DtypeError(f"{name} of {what} must be {words}, got {shortened(value)}")


def _check_lone_texts(arguments: Mapping[str, Any], hints: Mapping[str, Any], what: str) -> None:
    """Raise on a text where several values are wanted, which a member would read by its letters."""
    for name, value in arguments.items():
        kinds = {get_origin(one) or one for one in _options(hints.get(name, Any))} - {type(None)}
        if isinstance(value, str) and kinds and kinds <= {tuple, list, collections.abc.Sequence}:
            raise DtypeError(
                f"{name} of {what} must be a sequence, got {shortened(value)}: write "
                f"{name}=[{shortened(value)}]"
            )


def _hints(member: Any) -> dict[str, Any]:
    function = member
    if isinstance(member, type) and not dataclasses.is_dataclass(member):
        function = member.__init__  # type: ignore[misc]
    try:
        return get_type_hints(function) | option_hints(member)
    except Exception:  # names that only a type checker can see; the member checks its values itself
        module = sys.modules.get(getattr(member, "__module__", ""), None)
        raw = getattr(function, "__annotations__", {})
        scope = vars(module) if module else {}
        hints = {}
        for name, hint in raw.items():
            try:
                hints[name] = eval(hint, dict(scope)) if isinstance(hint, str) else hint
            except Exception:
                hints[name] = Any
        return hints


def _options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the one type."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(option for part in get_args(hint) for option in _options(part))
    if get_origin(hint) is typing.Annotated:
        return _options(get_args(hint)[0])
    return (hint,)


def _converted(value: Any, hint: Any, what: str) -> Any:
    """A field's value from the types of JSON: nested specs made, mappings to value objects."""
    options = _options(hint)
    kinds = [option for option in options if isinstance(option, type)]
    families = [family for family in map(family_of, kinds) if family is not None]
    if isinstance(value, Mapping):
        if families:
            return build(families[0], value)
        for option in options:
            if dataclasses.is_dataclass(option) and isinstance(option, type):
                return _made(option, value, what)
        return value
    if isinstance(value, str):
        words = any(option is str or get_origin(option) is typing.Literal for option in options)
        if families and not words:
            return build(families[0], value)
        if float in options and value in ("inf", "-inf", "nan"):  # as JSON writes them
            return float(value)
        for option in kinds:
            if issubclass(option, enum.Enum) and value in {member.value for member in option}:
                return option(value)
        return value
    if isinstance(value, list):
        for option in options:
            if get_origin(option) is tuple:
                inner = [part for part in get_args(option) if part is not Ellipsis] or [Any]
                item = inner[0] if len(inner) == 1 else Any
                return tuple(_converted(part, item, what) for part in value)
            if get_origin(option) is list:
                return [_converted(part, (get_args(option) or (Any,))[0], what) for part in value]
    return value


def _path_of(member: Any, what: str) -> str:
    path = target_of(type(member))
    if not PATH.fullmatch(path):  # a class made inside a function
        raise UnsupportedError(
            f"{what} is {shortened(member)}, whose class no name leads to: register it, "
            "or define it at the top of a module"
        )
    return path


def _fields_of(member: Any, what: str) -> dict[str, Any]:
    if dataclasses.is_dataclass(member):
        fields = {f.name: getattr(member, f.name) for f in dataclasses.fields(member) if f.init}
    elif isinstance(getattr(member, "config", None), Mapping):
        fields = dict(member.config)
    else:
        parameters = _parameters(type(member))
        hidden = [name for name in parameters if not hasattr(member, name)]
        if hidden:
            raise UnsupportedError(
                f"{what} has no attribute {hidden[0]!r} to write down: make it a dataclass"
            )
        fields = {name: getattr(member, name) for name in parameters}
    return {name: _plain(value, f"{name} of {what}") for name, value in fields.items()}


def _plain(value: Any, what: str) -> Any:
    """A field's value in JSON's own types."""
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, tuple | list):
        return [_plain(part, what) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(part, what) for key, part in value.items()}
    for family in FAMILIES:
        if name_of(family, value) is not None:
            return spec_of(family, value)
    if isinstance(value, tuple(BASES.values())) and not isinstance(value, type):
        return {"name": _path_of(value, what), **_fields_of(value, what)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields_of(value, what)
    raise UnsupportedError(
        f"{what} is {shortened(value)}, which no spec can say: use a registered member"
    )
