"""One registry of everything that can be chosen by name.

A *family* is a kind of member: goals, searches, defenses, models, measures and so on. A member is
registered in one of three ways:

- by decorator, `@register("goal", "anomaly-score")`, the library's members and a user's alike;
- by an entry point of an installed package, group `robustvae`, named `FAMILY.NAME`;
- not at all: `package.module:Name` may stand wherever a name may stand.

A *spec* says which member, with which fields: a name, a mapping `{"name": ..., field: ...}`, or on
the command line `name:field=value,field=value`, nested in parentheses. Nothing here imports torch,
and the library's own members are listed from its source, so listing imports none of them; where
there is no source, only compiled files, listing imports every module once.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, final

from robustvae.arguments import checked, shown
from robustvae.errors import ConfigError, DtypeError, RobustVAEError, unknown

if TYPE_CHECKING:  # slow to import, and seldom needed
    from importlib.metadata import EntryPoint

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
    "logger": "where the numbers of audits and trainings go",
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
    "use": "what a profile measures beyond its plan, for people who decide by a model",
}
"""Every family with what its members are."""

FILES = {"plan": "audit/plans", "profile": "audit/profiles", "protocol": "audit/protocols"}
"""Families whose own members are YAML files in a folder of the package."""

# families whose members users know by another word
_KINDS = {"data": "data set"}

_PACKAGE = Path(__file__).parents[1]
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")  # package.module:Name
_DECLARATION = re.compile(
    r'^@register\("(?P<family>[\w-]+)", "(?P<name>[\w.-]+)"\)\n'
    r"(?:@[^\n]*\n)*"
    r"(?:class|def) (?P<object>\w+)",
    re.MULTILINE,
)
_SUMMARY = re.compile(r'r?"""\s*(.+?)\s*(?:"""|\n\s*\n|\Z)', re.DOTALL)

Member = TypeVar("Member")

_members: dict[tuple[str, str], Any] = {}
_is_imported = False  # whether a package without source has been imported as a whole
BASES: dict[str, type] = {}


@final
class Entry(NamedTuple):
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
    check_family(family)
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"a member's name is made of letters, digits, dots and dashes, got {name!r}: rename it"
        )

    def decorate(member: Member) -> Member:
        holder = _members.get((family, name))
        declaration = _declared().get((family, name))
        target = target_of(member)
        # a module that is imported again, as in a notebook, may replace its own members
        if holder is not None and target_of(holder) != target:
            raise ConfigError(
                f"the {family} {name!r} is {target_of(holder)} already, got {target}: rename one"
            )
        if declaration is not None and declaration[0] != target:
            raise ConfigError(
                f"the {family} {name!r} is the library's own {declaration[0]}, got {target}: "
                "rename it"
            )
        _members[family, name] = member
        return member

    return decorate


def family_base(family: str) -> Callable[[type], type]:
    """Declare the protocol or base class that every member's instances of a family satisfy.

    It tells the spec language which fields of other members hold specs of this family.
    """
    check_family(family)

    def decorate(base: type) -> type:
        BASES[family] = base
        return base

    return decorate


@checked()
def names(family: str) -> list[str]:
    """Names of a family's members, sorted.

    Examples:
        >>> from robustvae.registry import names
        >>> "latent-shift" in names("goal")
        True
    """
    check_family(family)
    _import_compiled()
    members = {name for kind, name in (*_members, *_declared()) if kind == family}
    return sorted({*members, *_files(family), *_entry_points(family)})


@checked()
def describe(family: str) -> list[Entry]:
    """Every member of a family with its first docstring line; imports none of the library's own.

    Examples:
        >>> from robustvae.registry import describe
        >>> next(entry.origin for entry in describe("goal") if entry.name == "latent-shift")
        'robustvae'
    """
    return [_entry(family, name) for name in names(family)]


_ARE_OUTSIDE = ContextVar("names come from a file of somebody's", default=False)


@contextlib.contextmanager
def outside_names() -> Iterator[None]:
    """Within: names come from a file, such as a stranger's record, and run no code of their own.

    Members that the library or an installed package registers are found as always, and so is what
    is imported already; a file or a module that only the name points to is refused.

    Examples:
        >>> from robustvae.registry import lookup, outside_names
        >>> with outside_names():
        ...     lookup("search", "lbfgs").__name__
        'LBFGS'
    """
    token = _ARE_OUTSIDE.set(True)
    try:
        yield
    finally:
        _ARE_OUTSIDE.reset(token)


@checked()
def check_code(name: str) -> None:
    """Raise where a name that comes from a file would run code.

    Raises:
        ConfigError: Within `outside_names`.
    """
    if _ARE_OUTSIDE.get():
        raise ConfigError(
            f"{shown(name)} names code, which runs only where you name it yourself: a model with "
            "--model, in Python with victim=; anything else by importing its module first"
        )


@checked()
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
    check_family(family)
    if not isinstance(name, str):
        raise DtypeError(f"the name of a {family} must be text, got {name!r}: see `names`")
    if (family, name) not in _members:
        _import_compiled()
    if (family, name) in _members:
        return _members[family, name]
    if (family, name) in _declared():
        importlib.import_module(_declared()[family, name][0].partition(":")[0])
        return _members[family, name]
    if name in _files(family):
        return _files(family)[name]
    if name in _entry_points(family):
        return _loaded(family, name)
    if PATH.fullmatch(name):
        if name.partition(":")[0] not in sys.modules:
            check_code(name)
        return _imported(name)
    raise unknown(_KINDS.get(family, family), name, names(family))


@checked()
def name_of(family: str, member: Any) -> str | None:
    """The name under which a made member's class is registered, or None where it is not.

    Examples:
        >>> from robustvae.registry import build, name_of
        >>> name_of("search", build("search", "lbfgs"))
        'lbfgs'
    """
    check_family(family)
    kind = type(member)
    for (of, name), entry in _members.items():
        if of == family and entry is kind:
            return name
    path = target_of(kind)  # its package's entry point may not have been needed so far
    return next((n for n, point in _entry_points(family).items() if point.value == path), None)


@checked()
def family_of(kind: type) -> str | None:
    """The family that a class belongs to: as a member of it, as its base, or as a base's heir.

    Examples:
        >>> from robustvae.perturb import LBFGS
        >>> from robustvae.registry.members import family_of
        >>> family_of(LBFGS), family_of(int)
        ('search', None)
    """
    for family, base in BASES.items():
        # heirs of a protocol are seen by their methods alone, which other families may share
        is_protocol = getattr(base, "_is_protocol", False)
        if kind is base or (not is_protocol and issubclass(kind, base)):
            return family
    for (family, _), member in _members.items():
        if member is kind:
            return family
    path = target_of(kind)
    points = _all_entry_points().items()
    return next((f for f, of in points if any(point.value == path for point in of.values())), None)


@checked()
def modules_of(content: Any) -> set[str]:
    """Modules whose decorators registered members that a plan names; other processes need them.

    Args:
        content: The plan or spec as JSON has it: lists and mappings at any depth.
    """
    if isinstance(content, Mapping):
        name = content.get("name")
        members = [entry for (_, of), entry in _members.items() if of == name]
        own = {getattr(entry, "__module__", "robustvae") for entry in members}
        parts = set().union(*map(modules_of, content.values()))
        return parts | {module for module in own if module.partition(".")[0] != "robustvae"}
    if isinstance(content, list | tuple):
        return set().union(*map(modules_of, content))
    return set()


def check_family(family: str) -> None:
    """Raise `UnknownNameError` unless there is such a family."""
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)


@functools.cache
def _declared() -> dict[tuple[str, str], tuple[str, str]]:
    """The library's own members, read off its source: (family, name) to (target, summary)."""
    members: dict[tuple[str, str], tuple[str, str]] = {}
    for module, text in _sources():
        for match in _DECLARATION.finditer(text):
            key = match["family"], match["name"]
            target = f"{module}:{match['object']}"
            if key in members:
                raise ConfigError(
                    f"{members[key][0]} and {target} are both {' '.join(key)}: rename one"
                )
            summary = _SUMMARY.search(text, match.end())
            members[key] = target, " ".join(summary[1].split()) if summary else ""
    return members


def _sources() -> Iterator[tuple[str, str]]:
    """The modules that register members, with their text, from a folder or a zip archive."""
    if _PACKAGE.is_dir():
        paths: Any = sorted(_PACKAGE.rglob("*.py"))
        parts = [path.relative_to(_PACKAGE).with_suffix("").parts for path in paths]
    else:
        from importlib import resources

        paths, parts = [], []
        folders: list[tuple[Any, tuple[str, ...]]] = [(resources.files("robustvae"), ())]
        for folder, above in folders:  # grows as folders are found
            for part in folder.iterdir():
                if part.is_dir():
                    folders.append((part, (*above, part.name)))
                elif part.name.endswith(".py"):
                    paths.append(part)
                    parts.append((*above, part.name.removesuffix(".py")))
    for path, names in zip(paths, parts, strict=True):
        module = ".".join(("robustvae", *names)).removesuffix(".__init__")
        content = path.read_bytes()
        if b"@register(" in content:  # most modules declare nothing: they need no decoding
            yield module, content.decode("utf-8").replace("\r\n", "\n")


def _import_compiled() -> None:
    """Import every module, once, where the package has no source to read: decorators then run."""
    global _is_imported
    if _is_imported or _declared():
        return
    _is_imported = True  # first, since modules look members up while they are imported
    import pkgutil

    for info in pkgutil.walk_packages([str(_PACKAGE)], "robustvae."):
        if not info.name.endswith("__main__"):
            importlib.import_module(info.name)


@functools.cache
def _files(family: str) -> dict[str, Path]:
    folder = _PACKAGE / FILES[family] if family in FILES else None
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


@functools.cache
def _all_entry_points() -> dict[str, dict[str, EntryPoint]]:
    points: dict[str, dict[str, EntryPoint]] = {}
    if not _may_have_plugins():
        return points
    from importlib import metadata

    for point in metadata.entry_points(group=GROUP):
        family, dot, name = point.name.partition(".")
        if dot and name:
            points.setdefault(family, {})[name] = point
    return points


def _may_have_plugins() -> bool:
    """Whether an installed package may offer members: False is certain, True is not.

    `importlib.metadata` takes a third of the time of `robustvae list` to import. Most
    installations have no plug-in, which the text of their packages' entry points shows.
    """
    # archives, and finders of other people, hold packages where only they know
    if any(
        hasattr(finder, "find_distributions") and not _is_standard(finder)
        for finder in sys.meta_path
    ):
        return True
    heading = f"[{GROUP}]".encode()
    try:
        for folder in map(Path, dict.fromkeys(sys.path)):
            if any(place.is_file() for place in (folder, *folder.parents)):
                return True
            for pattern in ("*.dist-info", "*.egg-info", "EGG-INFO"):
                for path in folder.glob(f"{pattern}/entry_points.txt"):
                    if heading in path.read_bytes().replace(b" ", b""):
                        return True
    except OSError:  # a folder that cannot be read: Python's own search deals with it
        return True
    return False


def _is_standard(finder: object) -> bool:
    return getattr(finder, "__module__", "").startswith("_frozen_importlib")


def _entry_points(family: str) -> dict[str, EntryPoint]:
    return _all_entry_points().get(family, {})


def _loaded(family: str, name: str) -> Any:
    point = _entry_points(family)[name]
    package = point.dist.name if point.dist else point.value
    try:
        member = point.load()
    except (Exception, SystemExit) as error:  # somebody else's code: anything may come out of it
        raise ConfigError(
            f"the {family} {name!r} of the package {package} cannot be loaded: "
            f"{type(error).__name__}: {shortened(str(error))}; mend or remove that package"
        ) from error
    _members[family, name] = member
    return member


def _imported(path: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        member = _module(module)
        for part in attribute.split("."):
            member = getattr(member, part)
    except RobustVAEError:
        raise
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise ConfigError(
            f"{path} cannot be imported: {type(error).__name__}: {shortened(str(error))}; "
            "a name of this form is package.module:Name"
        ) from error
    return member


def _module(name: str) -> Any:
    """The module of that name, from where Python looks or else from the working folder.

    An installed command does not look there, as `python -m` does. Whoever writes a module's name
    means the one that lies beside; what is installed goes first, so that nothing is shadowed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        top = name.partition(".")[0]
        if error.name != top or not (Path(f"{top}.py").is_file() or Path(top).is_dir()):
            raise
    sys.path.append(str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(Path.cwd()))


def _entry(family: str, name: str) -> Entry:
    if (family, name) in _declared():
        return Entry(family, name, _declared()[family, name][1], "robustvae")
    if name in _files(family):
        return Entry(family, name, _about(_files(family)[name]), "robustvae")
    if name in _entry_points(family):
        point = _entry_points(family)[name]
        package = point.dist.name if point.dist else point.value
        summary = _written(point.value)
        if summary is not None:
            return Entry(family, name, summary, package)
        try:
            return Entry(family, name, _first_line(_loaded(family, name)), package)
        except ConfigError as error:
            return Entry(family, name, str(error), package)
    return Entry(family, name, _first_line(_members[family, name]), "this process")


def _written(target: str) -> str | None:
    """The first docstring line at `package.module:Name`, from its source: nothing is imported.

    A plug-in imports this library, and so torch, which takes seconds; None where no source says.
    """
    import ast  # needed for plug-ins only
    from importlib.machinery import PathFinder

    module, _, attribute = target.partition(":")
    locations: Any = None
    spec = None
    try:
        for depth in range(1, module.count(".") + 2):
            spec = PathFinder.find_spec(".".join(module.split(".")[:depth]), locations)
            if spec is None:
                return None
            locations = spec.submodule_search_locations
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            return None
        body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError, ImportError):
        return None
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
            text = ast.get_docstring(node)
            return None if text is None else " ".join(text.partition("\n\n")[0].split())
    return None


def _first_line(member: Any) -> str:
    import inspect  # slow to import, and needed for plug-ins only

    return " ".join((inspect.getdoc(member) or "").partition("\n\n")[0].split())


def _about(path: Path) -> str:
    """The `about:` line of a YAML file, without reading it as YAML."""
    match = re.search(r"^about:\s*(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1].strip().strip("\"'") if match else ""


@checked()
def target_of(member: Any) -> str:
    """Where a class or function is defined, as `package.module:Name`."""
    module = getattr(member, "__module__", "?")
    return f"{module}:{getattr(member, '__qualname__', type(member).__name__)}"


def shortened(value: object) -> str:
    """The repr of a value in one line of at most 60 characters, for messages."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
