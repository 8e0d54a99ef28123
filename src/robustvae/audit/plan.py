"""Plans: the stages of an audit and the effort of each, validated, as YAML or in code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from robustvae import registry
from robustvae.arguments import checked
from robustvae.attacks import Attack
from robustvae.errors import ConfigError, RobustVAEError, unknown
from robustvae.perturb import Ball
from robustvae.records.files import is_file
from robustvae.records.text import read_text
from robustvae.records.text import read_yaml as read_text_yaml
from robustvae.records.typed import Values

STRICT = ConfigDict(extra="forbid", frozen=True)


def normalized(family: str, spec: Any) -> dict[str, Any]:
    """A spec as a mapping of its name and the fields that are not the member's defaults.

    Two specs of equal members are equal, so that names made of them tell members apart.

    Examples:
        >>> from robustvae.audit.plan import normalized
        >>> normalized("search", "projected-ascent:steps=50,restarts=3")
        {'name': 'projected-ascent', 'restarts': 3}
    """
    member = registry.build(family, spec)
    total: dict[str, Any] = registry.spec_of(family, member)
    try:
        plain = registry.spec_of(family, registry.build(family, total["name"]))
    except RobustVAEError:  # a member with fields that have no default: those that have one
        plain = {
            field.name: total[field.name]
            for field in dataclasses.fields(member)
            if field.name in total and _is_default(field, getattr(member, field.name))
        }
    different = {
        key: _short(getattr(member, key, value), value)
        for key, value in total.items()
        if plain.get(key, _NO) != value
    }
    return {"name": total["name"], **different}


def _short(value: Any, spec: Any) -> Any:
    """A field's spec; members within it without the fields that are their defaults."""
    if isinstance(value, tuple | list):
        return [_short(part, spec) for part, spec in zip(value, spec, strict=True)]
    family = registry.family_of(type(value))
    is_spec = isinstance(spec, Mapping) and "name" in spec
    return normalized(family, value) if family and is_spec else spec


_NO = object()


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return bool(value == field.default)


def text(spec: Any) -> str:
    """A spec in the command line's form.

    Examples:
        >>> from robustvae.audit.plan import text
        >>> text({"name": "projected-ascent", "steps": 30})
        'projected-ascent:steps=30'
        >>> text({"name": "through", "search": {"name": "lbfgs", "steps": 9}})
        'through:search=(lbfgs:steps=9)'
    """
    if isinstance(spec, Mapping) and "name" in spec:
        fields = ",".join(f"{key}={_value_text(spec[key])}" for key in spec if key != "name")
        return str(spec["name"]) + (f":{fields}" if fields else "")
    return _value_text(spec)


def _value_text(value: Any) -> str:
    """A field's value in the command line's form: what has fields of its own in parentheses."""
    if isinstance(value, Mapping) and "name" in value:
        return f"({text(value)})" if len(value) > 1 else str(value["name"])
    if isinstance(value, Mapping):
        return "(" + ",".join(f"{key}={_value_text(part)}" for key, part in value.items()) + ")"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_value_text, value)) + "]"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return value if isinstance(value, str) and registry.is_word(value) else repr(value)


def _spec_text(spec: Any) -> Any:
    return text(spec) if isinstance(spec, Mapping) else spec


def _spec(family: str) -> Any:
    """A field that holds a spec of one family, checked and normalized when it is read."""

    def read(value: Any) -> dict[str, Any]:
        try:
            return normalized(family, value)
        except RobustVAEError as error:
            raise ValueError(str(error)) from None

    return Annotated[dict[str, Any], BeforeValidator(read)]


@final
class AttackPlan(Values):
    """One attack of an audit: specs of its goal and search, and its ball.

    Examples:
        >>> from robustvae.audit import AttackPlan
        >>> AttackPlan(goal="latent-shift", norm="linf", radius=0.1).id
        'latent-shift, linf 0.1'
        >>> AttackPlan(search="projected-ascent:steps=30", radius=1).id
        'maximum-damage by projected-ascent:steps=30, l2 1'
    """

    model_config = STRICT

    goal: _spec("goal") = Field(default={"name": "maximum-damage"})  # type: ignore[valid-type]
    search: _spec("search") = Field(default={"name": "projected-ascent"})  # type: ignore[valid-type]
    norm: Literal["l0", "l2", "linf"] = "l2"
    radius: float = Field(gt=0, allow_inf_nan=False)

    def build(self) -> Attack:
        """The attack itself, kept to the input range."""
        goal = registry.build("goal", self.goal)
        return Attack(goal, registry.build("search", self.search), Ball(self.norm, self.radius))

    @property
    def id(self) -> str:
        """The whole attack in words: two attacks with any difference have different ids."""
        search = text(self.search)
        by = "" if search == "projected-ascent" else f" by {search}"
        return f"{text(self.goal)}{by}, {self.norm} {self.radius:g}"

    @property
    def ball(self) -> tuple[str, float]:
        """Norm and radius."""
        return self.norm, self.radius


EXPLORED = 2
"""Starts of a margin's walk that square searches find, beside the random ones of a plan."""


@final
class MarginPlan(Values):
    """How margins are looked for.

    Attributes:
        steps: Gradients of each search.
        restarts: Starts of each search: one more is close to the input, and `EXPLORED` are found by
            square searches.
        choosing: Draws, common to all changes of an input, that place the boundary on the best one.
        gradients: The most decoder gradients an input that a search may take; beyond it the
            margin is left out. A defense of many steps costs that many times.
    """

    model_config = STRICT

    steps: int = Field(default=30, ge=1)
    restarts: int = Field(default=3, ge=1)
    choosing: int = Field(default=128, ge=16)
    gradients: float = Field(default=20000, gt=0)


@final
class Plan(Values):
    """What an audit does: validated, complete, and part of its record.

    An unknown key is an error that names it. Radii and r are in pixel units of the input range
    [0, 1].

    Examples:
        >>> from robustvae.audit import Plan
        >>> Plan(inputs=8, attacks=[{"radius": 1.0}]).attacks[0].id
        'maximum-damage, l2 1'
    """

    model_config = STRICT

    name: str = "custom"
    about: str = ""
    inputs: int = Field(default=32, ge=1, description="inputs, balanced over the classes")
    shard: int = Field(default=16, ge=1, description="inputs computed and stored at once")
    protocol: str | None = Field(default=None, description="the question, and the inputs")
    r: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="tolerance")
    m: float | None = Field(default=None, gt=0, lt=1, description="probability asked for")
    norm: Literal["l2", "linf"] | None = None
    displacement: Literal["centered", "full", "paired"] | None = None
    center: Literal["mean", "own"] | None = None
    suite: Annotated[str | None, BeforeValidator(_spec_text)] = Field(
        default=None, description="a suite's spec; its attacks stand beside the plan's own"
    )
    attacks: tuple[AttackPlan, ...] = Field(min_length=1)
    defenses: tuple[_spec("defense"), ...] = ()  # type: ignore[valid-type]
    gradient_free: int = Field(
        default=200, ge=0, description="queries of the gradient-free search in each ball; 0: none"
    )
    transfer: bool = Field(default=True, description="attacks made for the undefended model too")
    longer: int = Field(
        default=3, ge=1, description="times the steps of the first attack's longer run; 1: none"
    )
    draws: int = Field(default=1000, ge=10, description="draws to a probability")
    confidence: float = Field(default=0.95, gt=0, lt=1)
    smoothing: int = Field(default=10_000, ge=100, description="draws of smoothing's certificate")
    products: int = Field(
        default=120, ge=1, description="products with a large model's Jacobian, for its geometry"
    )
    margins: MarginPlan | None = MarginPlan()
    certificates: bool = True
    geometry: bool = True
    probabilistic: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="the probabilistic certificate for inputs where the deterministic ones prove "
        "nothing; auto leaves it out for convolutions, where it takes seconds for each input",
    )
    probes: int = Field(default=6, ge=0, description="inputs for the checks beside the rows")
    measures: tuple[_spec("measure"), ...] = ()  # type: ignore[valid-type]
    checks: tuple[_spec("check"), ...] = ()  # type: ignore[valid-type]
    without: tuple[str, ...] = Field(default=(), description="measures and checks left out")
    gallery: int = Field(default=6, ge=0)
    minutes: float | None = Field(default=None, gt=0, description="budget the plan is cut to")

    @model_validator(mode="before")
    @classmethod
    def _expand_suite(cls, content: Any) -> Any:
        """A suite's attacks stand after the plan's own, each under its own id."""
        if not isinstance(content, Mapping) or content.get("suite") is None:
            return content
        try:
            attacks = attacks_of(content["suite"])
        except RobustVAEError as error:
            raise ValueError(str(error)) from None
        local = [AttackPlan.model_validate(attack) for attack in content.get("attacks", ())]
        options = {attack.id for attack in local}
        return {**content, "attacks": [*local, *(a for a in attacks if a.id not in options)]}

    @model_validator(mode="after")
    def _check_attacks(self) -> Plan:
        ids = [attack.id for attack in self.attacks]
        twice = next((name for name in ids if ids.count(name) > 1), None)
        if twice:
            raise ValueError(f"the attack {twice!r} stands twice; give it once")
        return self

    @property
    def balls(self) -> list[tuple[str, float]]:
        """Norm and radius of every ball of the attacks, in their order."""
        return list(dict.fromkeys(attack.ball for attack in self.attacks))


def attacks_of(suite: Any) -> list[AttackPlan]:
    """The attacks of a suite, in each of its balls.

    Args:
        suite: Its spec.

    Examples:
        >>> from robustvae.audit.plan import attacks_of
        >>> len(attacks_of("smoke"))
        6
    """
    members = registry.build("suite", suite)
    return [
        AttackPlan(
            goal=registry.spec_of("goal", goal),
            search=registry.spec_of("search", search),
            norm=ball.norm,
            radius=float(ball.radius),
        )
        for ball in members.balls
        for _, goal, search in members.members
    ]


@checked()
def read_plan(plan: str | Path | Mapping[str, Any] | Plan) -> Plan:
    """The plan of a name, a YAML file, a mapping, or itself.

    A mapping may name another plan as its `base`, whose values hold where it has none.

    Raises:
        UnknownNameError: Neither a known name nor a file, or an unknown key.
        ConfigError: The file or mapping is not a valid plan; the first fault is named.

    Examples:
        >>> from robustvae.audit import read_plan
        >>> read_plan({"base": "quick", "inputs": 3}).inputs
        3
    """
    if isinstance(plan, Plan):
        return plan
    content: Any = plan
    if isinstance(plan, str | Path):
        name = str(plan)
        plans = registry.names("plan")
        path = Path(registry.lookup("plan", name)) if name in plans else Path(plan)
        if not is_file(path):
            raise unknown("plan", name, [*plans, "FILE.yaml"])
        content = read_yaml(path, "plan")
        content = {"name": path.stem, **content}
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"a plan is a name, a YAML file or a mapping, got {type(content).__name__}: "
            "see `robustvae list plan`"
        )
    content = dict(content)
    base = content.pop("base", None)
    if base is not None:
        under = read_plan(base).model_dump(exclude_unset=True)
        content = {**under, "name": "custom", **content}
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        raise _explained(error) from None


def read_yaml(path: Path, kind: str) -> dict[str, Any]:
    """The mapping that a YAML file holds."""
    try:
        content = read_text_yaml(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path} cannot be read as YAML: {reason[:300]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"a {kind} must be a mapping, {path} holds {type(content).__name__}")
    return content


def _explained(error: ValidationError) -> RobustVAEError:
    """The first thing wrong with a plan; a mistyped key often shows as a missing one too."""
    first = min(error.errors(), key=lambda part: part["type"] != "extra_forbidden")
    place = [str(part) for part in first["loc"]]
    where = ".".join(place) or "plan"
    if first["type"] == "extra_forbidden":
        kinds: dict[str, type[BaseModel]] = {"attacks": AttackPlan, "margins": MarginPlan}
        kind = kinds.get(place[0], Plan)
        inside = where.rpartition(".")[0]
        fields = [f"{inside}.{name}".lstrip(".") for name in kind.model_fields]
        return unknown("key of a plan", where, fields)
    words = str(first["msg"]).removeprefix("Value error, ")
    value_text = "" if first["type"] in ("value_error", "missing") else f", got {first['input']!r}"
    return ConfigError(f"plan: {where}: {words}{value_text}")
