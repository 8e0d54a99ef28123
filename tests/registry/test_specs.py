"""Specs of members that are not the library's own: types of fields, names, where modules lie."""

from __future__ import annotations

import dataclasses
import enum
import importlib.metadata
import sys
import types

import pytest

import robustvae as rv
from robustvae import registry
from robustvae.attacks import DirectedAscent, Through, WeightedSum
from robustvae.audit.job import _modules
from robustvae.audit.plan import read_plan
from robustvae.defenses import Defense
from robustvae.errors import (
    ConfigError,
    DtypeError,
    RobustVAEError,
    UnknownNameError,
    UnsupportedError,
)
from robustvae.registry import members, specs


class Side(enum.Enum):
    LEFT, RIGHT = "left", "right"


@dataclasses.dataclass(frozen=True)
class Mirrored:
    """A stranger's defense, which validates nothing itself."""

    count: int = 2
    weight: float = 1.0
    sizes: tuple[int, ...] = (1,)
    side: Side = Side.LEFT
    inner: rv.PosteriorMean | rv.PosteriorSample = dataclasses.field(
        default_factory=rv.PosteriorMean
    )
    other: Defense | None = None

    def __post_init__(self):
        if self.count < 1:
            raise ValueError("too few")

    def __call__(self, vae, x, *, generator):
        return self.inner(vae, x, generator=generator)


PATH = f"{__name__}:Mirrored"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Tests are imported by file: the module must be found under its name too."""
    module = types.ModuleType(__name__)
    vars(module).update(globals())
    monkeypatch.setitem(sys.modules, __name__, module)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"count": "abc"}, "count .* whole number"),
        ({"count": 1.5}, "count .* whole number"),
        ({"count": True}, "count .* whole number"),
        ({"weight": "heavy"}, "weight .* a number"),
        ({"sizes": 3}, "sizes .* a sequence"),
        ({"sizes": ["a"]}, "sizes .* whole number"),
        ({"side": "up"}, "side .* Side"),
        ({"inner": "hmc"}, "inner .* PosteriorMean or a PosteriorSample"),
        ({"other": 5}, "other .* a defense"),
    ],
)
def test_fields_have_their_own_types(fields, wanted):
    with pytest.raises(DtypeError, match=wanted):
        registry.build("defense", {"name": PATH, **fields})


def test_fields_become_their_own_types():
    spec = {"name": PATH, "count": 3, "weight": "inf", "sizes": [1, 2], "side": "right"}
    defense = registry.build(
        "defense", {**spec, "inner": "posterior-sample:draws=4", "other": PATH}
    )
    assert defense == Mirrored(
        3, float("inf"), (1, 2), Side.RIGHT, rv.PosteriorSample(4), Mirrored()
    )
    again = registry.build("defense", registry.spec_of("defense", defense))
    assert again == defense


def test_broken_member_is_one_sentence():
    with pytest.raises(ConfigError, match="cannot be made: ValueError"):
        registry.build("defense", {"name": PATH, "count": 0})


def test_working_folder_is_looked_at_last(tmp_path, monkeypatch):
    (tmp_path / "beside_the_plan.py").write_text("class Goal:\n    pass\n")
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert registry.lookup("goal", "beside_the_plan:Goal").__name__ == "Goal"
    assert registry.lookup("goal", "json:dumps")({}) == "{}"
    assert sys.path == before
    with pytest.raises(ConfigError, match="cannot be imported"):
        registry.lookup("goal", "not_beside_the_plan:Goal")


def test_installed_member_keeps_its_name(monkeypatch):
    """Before and after its entry point was loaded, so that ids in records are the same."""
    assert registry.name_of("defense", Mirrored()) is None
    point = importlib.metadata.EntryPoint("defense.mirrored", PATH, registry.GROUP)
    monkeypatch.setattr(members, "_all_entry_points", lambda: {"defense": {"mirrored": point}})
    assert registry.name_of("defense", Mirrored()) == "mirrored"
    assert registry.family_of(Mirrored) == "defense"


# what members cannot be made without, beside the field that is tried
_NEEDED = {"input-noise": {"stddev": 0.1}, "refined": {"refine": "jpeg"}}
_EXAMPLES = {"score": "negative-elbo", "refinement": "jpeg", "search": "lbfgs"}


def member_fields():
    """Fields of the library's members that hold other members, by the class's annotations."""
    for family, name in sorted(members._declared()):
        kind = registry.lookup(family, name)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            continue
        hints = specs._hints(kind)
        for field in dataclasses.fields(kind):
            options = specs._options(hints[field.name])
            families = [f for f, base in members.BASES.items() if base in options]
            if field.init and families and str not in options:
                yield family, name, field.name, families[0]


FIELDS = list(member_fields())


def test_fields_of_members_are_found():
    assert {("defense", "hmc", "start"), ("objective", "mixup", "base")} <= {f[:3] for f in FIELDS}


@pytest.mark.parametrize(("family", "name", "field", "inner"), FIELDS)
def test_member_fields_take_specs(family, name, field, inner):
    """In Python as in a plan: whatever is a member may be named, and nothing else passes."""
    kind, needed = registry.lookup(family, name), _NEEDED.get(name, {})
    example = _EXAMPLES.get(inner, registry.names(inner)[-1])
    made = getattr(kind(**needed | {field: example}), field)
    assert isinstance(made, members.BASES[inner])
    assert type(made) is registry.lookup(inner, example)
    for wrong in (3, "no-such-name"):
        with pytest.raises(RobustVAEError):
            kind(**needed | {field: wrong})


def test_attack_takes_specs():
    ball = rv.Ball("l2", 0.5)
    attack = rv.Attack("latent-shift", {"name": "lbfgs", "steps": 3}, ball)
    assert attack == rv.Attack(rv.LatentShift(), rv.LBFGS(steps=3), ball)
    both = WeightedSum(("latent-shift", rv.MaximumDamage()), (1.0, 1.0))
    assert both.goals == (rv.LatentShift(), rv.MaximumDamage())


@pytest.mark.parametrize(
    "make",
    [
        lambda: rv.AnomalyScore("negative-elbow"),
        lambda: rv.AnomalyScore(search="negative-elbow"),
        lambda: rv.EncoderTarget(after="jpg"),
        lambda: Through("lbgfs"),
        lambda: DirectedAscent("projected-acsent"),
        lambda: rv.Attack("latent-shif", "lbfgs", rv.Ball("l2", 0.5)),
    ],
)
def test_wrong_names_refused_when_made(make):
    with pytest.raises(UnknownNameError, match="did you mean"):
        make()


def test_suite_takes_every_form():
    plans = [
        read_plan({"base": "smoke", "inputs": 1, "suite": suite})
        for suite in ("smoke", {"name": "smoke"})
    ]
    assert plans[0] == plans[1]


def test_workers_import_what_registers(monkeypatch):
    monkeypatch.setitem(members._members, ("defense", "mirrored"), Mirrored)
    plan = {"defenses": [{"name": "refined", "defense": {"name": "mirrored"}}], "name": "mirrored?"}
    assert _modules([plan]) == [__name__]
    monkeypatch.setattr(Mirrored, "__module__", "__main__")
    with pytest.raises(UnsupportedError, match="put goals, defenses"):
        _modules([plan])
