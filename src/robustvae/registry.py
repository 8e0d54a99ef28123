"""One registry of everything that can be chosen by name, and one language to choose it in.

A *family* is a kind of member: goals, searches, defenses, models, measures and so on. A member is
registered in one of three ways:

- by decorator, `@register("goal", "anomaly-score")`, the library's members and a user's alike;
- by an entry point of an installed package, group `robustvae`, named `FAMILY.NAME`;
- not at all: `package.module:Name` may stand wherever a name may stand.

A *spec* says which member, with which fields: a name, a mapping `{"name": ..., field: ...}`, or on
the command line `name:field=value,field=value`, nested in parentheses. Nothing here imports torch,
and the library's own members are listed from its source, so listing imports none of them.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import importlib.metadata
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, final, get_args, get_origin, get_type_hints

from robustvae.errors import ConfigError, DtypeError, RobustVAEError, UnsupportedError, unknown

GROUP = "robustvae"
FAMILIES = {
    "adaptation": "ways to steer the step size of a sampler",
    "adapter": "ways to recognize and wrap a foreign model",
    "certificate-method": "ways to bound a margin from below",
    "check": "judgments of an audit's evidence",
    "data": "data sets and sources of images",
    "defense": "ways to read a latent off an input",
    "executor": "ways to run the tasks of a campaign",
    "goal": "what an attacker wants",
    "measure": "columns of an audit",
    "model": "autoencoders that can be made, saved and loaded",
    "objective": "losses that training minimizes",
    "operator": "layers that bound propagation knows",
    "plan": "stages and effort of an audit",
    "profile": "audits for a use",
    "protocol": "named, versioned questions that make audits comparable",
    "refinement": "transformations of an input before it is read",
    "score": "numbers that a deployed system computes for an input",
    "search": "ways to raise a goal within a ball",
    "suite": "fixed lists of attacks",
}
"""Every family with what its members are."""

FILES = {"plan": "audit/plans", "profile": "audit/profiles", "protocol": "audit/protocols"}
"""Families whose own members are YAML files in a folder of the package."""

# families whose members users know by another word
_KINDS = {"data": "data set"}

_PACKAGE = Path(__file__).parent
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")  # package.module:Name
_DECLARATION = re.compile(
    r'^@register\("(?P<family>[\w-]+)", "(?P<name>[\w.-]+)"\)\n'
    r"(?:@[^\n]*\n)*"
    r"(?:class|def) (?P<object>\w+)",
    re.MULTILINE,
)
_SUMMARY = re.compile(r'r?"""\s*(.+?)\s*(?:"""|\n\s*\n|\Z)', re.DOTALL)

Member = TypeVar("Member")

_members: dict[tuple[str, str], Any] = {}
_bases: dict[str, type] = {}


@final
@dataclasses.dataclass(frozen=True)
class Entry:
    """One member of a family, as `robustvae list` shows it.

    Attributes:
        family: Its family.
        name: Its name.
        summary: The first line of its docstring.
        origin: "robustvae", the package that an entry point belongs to, or "this process".
    """

    family: str
    name: str
    summary: str
    origin: str


def register(family: str, name: str) -> Callable[[Member], Member]:
    """Make a class or function a member of a family, under a name.

    Args:
        family: One of `FAMILIES`.
        name: Letters, digits, dots and dashes.

    Returns:
        A decorator that returns its argument as it is.

    Raises:
        UnknownNameError: No such family.
        ConfigError: A name that cannot be written in a spec, or that another member has.

    Examples:
        >>> from robustvae.registry import build, register
        >>> import dataclasses
        >>> @register("score", "brightness")
        ... @dataclasses.dataclass(frozen=True)
        ... class Brightness:
        ...     "Mean pixel of each image."
        ...     gain: float = 1.0
        >>> build("score", "brightness:gain=2")
        Brightness(gain=2)
    """
    _check_family(family)
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"a member's name is made of letters, digits, dots and dashes, got {name!r}: rename it"
        )

    def decorate(member: Member) -> Member:
        holder = _members.get((family, name))
        declared = _declared().get((family, name))
        target = _target(member)
        # a module that is imported again, as in a notebook, may replace its own members
        if holder is not None and _target(holder) != target:
            raise ConfigError(
                f"the {family} {name!r} is {_target(holder)} already, got {target}: rename one"
            )
        if declared is not None and declared[0] != target:
            raise ConfigError(
                f"the {family} {name!r} is the library's own {declared[0]}, got {target}: rename it"
            )
        _members[family, name] = member
        return member

    return decorate


def family_base(family: str) -> Callable[[type], type]:
    """Declare the protocol or base class that every member's instances of a family satisfy.

    It tells the spec language which fields of other members hold specs of this family.
    """
    _check_family(family)

    def decorate(base: type) -> type:
        _bases[family] = base
        return base

    return decorate


def names(family: str) -> list[str]:
    """Names of a family's members, sorted.

    Examples:
        >>> from robustvae.registry import names
        >>> "latent-shift" in names("goal")
        True
    """
    _check_family(family)
    own = {name for kind, name in (*_members, *_declared()) if kind == family}
    return sorted({*own, *_files(family), *_entry_points(family)})


def describe(family: str) -> list[Entry]:
    """Every member of a family with its first docstring line; imports none of the library's own.

    Examples:
        >>> from robustvae.registry import describe
        >>> next(entry.origin for entry in describe("goal") if entry.name == "latent-shift")
        'robustvae'
    """
    return [_entry(family, name) for name in names(family)]


def lookup(family: str, name: str) -> Any:
    """The class, function or file that a name stands for.

    Args:
        family: One of `FAMILIES`.
        name: A member's name, or `package.module:Name`.

    Raises:
        UnknownNameError: No such family or member; the nearest name is suggested.
        ConfigError: A package that cannot be imported, or does not hold what its entry point says.

    Examples:
        >>> from robustvae.registry import lookup
        >>> lookup("search", "projected-ascent").__name__
        'ProjectedAscent'
    """
    _check_family(family)
    if not isinstance(name, str):
        raise DtypeError(f"the name of a {family} must be text, got {name!r}: see `names`")
    if (family, name) in _members:
        return _members[family, name]
    if (family, name) in _declared():
        importlib.import_module(_declared()[family, name][0].partition(":")[0])
        return _members[family, name]
    if name in _files(family):
        return _files(family)[name]
    if name in _entry_points(family):
        return _loaded(family, name)
    if _PATH.fullmatch(name):
        return _imported(name)
    raise unknown(_KINDS.get(family, family), name, names(family))


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
        RobustVAEError: What the member itself refuses.

    Examples:
        >>> from robustvae.registry import build
        >>> build("defense", {"name": "robust-posterior", "radius": 0.1}).radius
        0.1
    """
    if isinstance(spec, str):
        spec = parse(spec)
    if not isinstance(spec, Mapping):
        base = _bases.get(family)
        if base is not None and isinstance(spec, base) and not isinstance(spec, type):
            return spec
        raise DtypeError(
            f"a {family} is a name, a mapping or an object of its kind, got {_short(spec)}: "
            f"see `robustvae list {family}`"
        )
    fields = dict(spec)
    name = fields.pop("name", None)
    if name is None:
        raise ConfigError(f"the spec of family {family} needs a name, got {_short(dict(spec))}")
    member = lookup(family, name)
    if not callable(member):
        raise ConfigError(f"the {family} {name!r} is a file, which takes no fields: name it alone")
    accepted = _parameters(member)
    fields |= {key: value for key, value in defaults.items() if key in accepted} | fields
    return _made(member, fields, f"{family} {name!r}")


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


def name_of(family: str, member: Any) -> str | None:
    """The name under which a made member's class is registered, or None where it is not.

    Examples:
        >>> from robustvae.registry import build, name_of
        >>> name_of("search", build("search", "lbfgs"))
        'lbfgs'
    """
    _check_family(family)
    held = _members.items()
    return next((name for (of, name), kind in held if of == family and kind is type(member)), None)


def parse(text: str) -> dict[str, Any]:
    """The mapping that a spec on the command line stands for.

    The form is `name:field=value,field=value`. A value is a number, true, false, none, a word,
    text in quotes, a list in square brackets, or another spec or mapping in parentheses.

    Raises:
        ConfigError: Text that is not of this form; the place is named.

    Examples:
        >>> from robustvae.registry import parse
        >>> parse("input-noise:stddev=0.25,defense=(posterior-mode:steps=20)")
        {'name': 'input-noise', 'stddev': 0.25, 'defense': {'name': 'posterior-mode', 'steps': 20}}
    """
    reader = _Reader(text)
    spec = reader.spec()
    reader.end()
    return spec


class _Reader:
    """A recursive descent over the command line's form of a spec."""

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise DtypeError(f"a spec must be text, got {_short(text)}")
        self.text, self.place = text, 0
        self.depth = 0

    def fail(self, wanted: str) -> ConfigError:
        rest = self.text[self.place : self.place + 20] or "the end"
        return ConfigError(
            f"spec {_short(self.text)}: wanted {wanted} at {rest!r}; "
            "write name:field=value,field=(name:field=value)"
        )

    def spec(self) -> dict[str, Any]:
        name = self.name()
        fields = self.fields() if self.take(":") else {}
        return {"name": name, **fields}

    def name(self) -> str:
        path = _PATH.match(self.text, self.place)
        # `module:Name`, unless what follows the colon is the first field
        if path and self.text[path.end() : path.end() + 1] != "=":
            self.place = path.end()
            return path.group()
        match = _NAME.match(self.text, self.place)
        if match is None:
            raise self.fail("a name")
        self.place = match.end()
        return match.group()

    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        while True:
            match = re.compile(r"\s*([A-Za-z_]\w*)\s*=").match(self.text, self.place)
            if match is None:
                raise self.fail("field=value")
            if match[1] in fields:
                raise self.fail(f"{match[1]} once only")
            self.place = match.end()
            fields[match[1]] = self.value()
            if not self.take(","):
                return fields

    def value(self) -> Any:
        self.depth += 1
        if self.depth > 20:  # far beyond any use; keeps hostile text from exhausting the stack
            raise self.fail("at most 20 nested values")
        try:
            return self._value()
        finally:
            self.depth -= 1

    def _value(self) -> Any:
        if self.take("("):
            mapping = re.compile(r"\s*[A-Za-z_]\w*\s*=").match(self.text, self.place)
            inner = self.fields() if mapping else self.spec()
            if not self.take(")"):
                raise self.fail("a closing parenthesis")
            return inner
        if self.take("["):
            items: list[Any] = []
            while not self.take("]"):
                items.append(self.value())
                if not self.take(",") and self.text[self.place : self.place + 1] != "]":
                    raise self.fail("a comma or a closing bracket")
            return items
        quoted = re.compile(r"\s*(?:'([^']*)'|\"([^\"]*)\")").match(self.text, self.place)
        if quoted:
            self.place = quoted.end()
            return quoted[1] if quoted[1] is not None else quoted[2]
        word = re.compile(r"[^,()\[\]]+").match(self.text, self.place)
        if word is None or not word.group().strip():
            raise self.fail("a value")
        self.place = word.end()
        return _scalar(word.group().strip())

    def take(self, sign: str) -> bool:
        if self.text[self.place : self.place + 1] != sign:
            return False
        self.place += 1
        return True

    def end(self) -> None:
        if self.place != len(self.text):
            raise self.fail("the end")


def _scalar(word: str) -> Any:
    constants = {"true": True, "false": False, "none": None, "null": None}
    if word.lower() in constants:
        return constants[word.lower()]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _check_family(family: str) -> None:
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)


@functools.cache
def _declared() -> dict[tuple[str, str], tuple[str, str]]:
    """The library's own members, read off its source: (family, name) to (target, summary)."""
    members: dict[tuple[str, str], tuple[str, str]] = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "\n@register(" not in text:
            continue
        module = ".".join(("robustvae", *path.relative_to(_PACKAGE).with_suffix("").parts))
        module = module.removesuffix(".__init__")
        for match in _DECLARATION.finditer(text):
            key = match["family"], match["name"]
            target = f"{module}:{match['object']}"
            if key in members:
                raise ConfigError(f"{members[key][0]} and {target} are both {' '.join(key)}")
            summary = _SUMMARY.search(text, match.end())
            members[key] = target, " ".join(summary[1].split()) if summary else ""
    return members


@functools.cache
def _files(family: str) -> dict[str, Path]:
    folder = _PACKAGE / FILES[family] if family in FILES else None
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


@functools.cache
def _all_entry_points() -> dict[str, dict[str, importlib.metadata.EntryPoint]]:
    points: dict[str, dict[str, importlib.metadata.EntryPoint]] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        family, dot, name = point.name.partition(".")
        if dot and name:
            points.setdefault(family, {})[name] = point
    return points


def _entry_points(family: str) -> dict[str, importlib.metadata.EntryPoint]:
    return _all_entry_points().get(family, {})


def _loaded(family: str, name: str) -> Any:
    point = _entry_points(family)[name]
    package = point.dist.name if point.dist else point.value
    try:
        member = point.load()
    except Exception as error:  # somebody else's code: anything may come out of it
        raise ConfigError(
            f"the {family} {name!r} of the package {package} cannot be loaded: "
            f"{type(error).__name__}: {_short(str(error))}; mend or remove that package"
        ) from error
    _members[family, name] = member
    return member


def _imported(path: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        member = importlib.import_module(module)
        for part in attribute.split("."):
            member = getattr(member, part)
    except RobustVAEError:
        raise
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(
            f"{path} cannot be imported: {type(error).__name__}: {_short(str(error))}; "
            "a name of this form is package.module:Name"
        ) from error
    return member


def _entry(family: str, name: str) -> Entry:
    if (family, name) in _declared():
        return Entry(family, name, _declared()[family, name][1], "robustvae")
    if name in _files(family):
        return Entry(family, name, _about(_files(family)[name]), "robustvae")
    if name in _entry_points(family):
        point = _entry_points(family)[name]
        package = point.dist.name if point.dist else point.value
        try:
            return Entry(family, name, _first_line(_loaded(family, name)), package)
        except ConfigError as error:
            return Entry(family, name, str(error), package)
    return Entry(family, name, _first_line(_members[family, name]), "this process")


def _first_line(member: Any) -> str:
    return " ".join((inspect.getdoc(member) or "").partition("\n\n")[0].split())


def _about(path: Path) -> str:
    """The `about:` line of a YAML file, without reading it as YAML."""
    match = re.search(r"^about:\s*(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1].strip().strip("\"'") if match else ""


def _target(member: Any) -> str:
    module = getattr(member, "__module__", "?")
    return f"{module}:{getattr(member, '__qualname__', type(member).__name__)}"


def _parameters(member: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter
        for name, parameter in inspect.signature(member).parameters.items()
        if parameter.kind in kinds
    }


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
    converted = {
        name: _converted(value, hints.get(name, Any), f"{name} of {what}")
        for name, value in fields.items()
    }
    return member(**converted)


def _hints(member: Any) -> dict[str, Any]:
    function = member
    if isinstance(member, type) and not dataclasses.is_dataclass(member):
        function = member.__init__  # type: ignore[misc]
    try:
        return get_type_hints(function)
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
    families = [family for family, base in _bases.items() if base in options]
    if isinstance(value, Mapping):
        if families:
            return build(families[0], value)
        for option in options:
            if dataclasses.is_dataclass(option) and isinstance(option, type):
                return _made(option, value, what)
        return value
    if isinstance(value, str):
        words = any(option is str or get_origin(option) is typing.Literal for option in options)
        return build(families[0], value) if families and not words else value
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
    path = _target(type(member))
    if not _PATH.fullmatch(path):  # a class made inside a function
        raise UnsupportedError(
            f"{what} is {_short(member)}, whose class no name leads to: register it, "
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
    if isinstance(value, tuple(_bases.values())) and not isinstance(value, type):
        return {"name": _path_of(value, what), **_fields_of(value, what)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields_of(value, what)
    raise UnsupportedError(
        f"{what} is {_short(value)}, which no spec can say: use a registered member or plain values"
    )


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
