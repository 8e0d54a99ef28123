"""Names, specs and plug-ins."""

from __future__ import annotations

import compileall
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import robustvae as rv
from robustvae import registry
from robustvae.errors import ConfigError, RobustVAEError, UnknownNameError, UnsupportedError
from robustvae.registry import build, describe, lookup, members, names, parse, register, spec_of

PACKAGE = Path(rv.__file__).parent

MADE = [
    ("defense", rv.HMC(start=rv.PosteriorMean(), ball=rv.Ball("l2", 1.0))),
    ("defense", rv.RobustPosterior(norm="l2", radius=0.5)),
    ("defense", build("defense", "refined:refine=(threshold:level=0.4),defense=hmc")),
    ("goal", rv.LatentShift("means")),
    ("goal", build("goal", {"name": "maximum-damage", "through": "both"})),
    ("search", rv.ProjectedAscent(steps=3)),
    ("objective", rv.objectives.Mixup(base=rv.objectives.ELBO(beta=2.0))),
    ("model", rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))),
]


@pytest.mark.parametrize(
    ("family", "member"), MADE, ids=lambda v: getattr(v, "__name__", str(v))[:20]
)
def test_spec_round_trips(family, member):
    spec = spec_of(family, member)
    assert json.loads(json.dumps(spec)) == spec
    assert spec_of(family, build(family, spec)) == spec
    if dataclasses.is_dataclass(member):
        assert repr(build(family, spec)) == repr(member)


def test_object_passes_through():
    defense = rv.PosteriorMean()
    assert build("defense", defense) is defense


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("hmc", {"name": "hmc"}),
        ("hmc:steps=5", {"name": "hmc", "steps": 5}),
        ("a:b=1e-3,c=true,d=none", {"name": "a", "b": 1e-3, "c": True, "d": None}),
        ("a:b=word", {"name": "a", "b": "word"}),
        ("a:b='x, (y)'", {"name": "a", "b": "x, (y)"}),
        ("a:b=[1,2.5,(c:d=1)]", {"name": "a", "b": [1, 2.5, {"name": "c", "d": 1}]}),
        ("a:b=(norm=l2,radius=1)", {"name": "a", "b": {"norm": "l2", "radius": 1}}),
        ("pkg.mod:Name", {"name": "pkg.mod:Name"}),
        ("pkg.mod:Name:x=1", {"name": "pkg.mod:Name", "x": 1}),
        ("a:b=(pkg:Name:x=1),c=2", {"name": "a", "b": {"name": "pkg:Name", "x": 1}, "c": 2}),
    ],
)  # fmt: skip
def test_command_line_form(text, spec):
    assert parse(text) == spec


@pytest.mark.parametrize(
    "text", ["", ":", "a:", "a:b=", "a:b=(c", "a:b=1,b=2", "a b", "a:b=[1", "a:b=1)", "(" * 50]
)
def test_bad_text_is_one_sentence(text):
    with pytest.raises(ConfigError, match="wanted"):
        parse(text)


@given(st.text(max_size=40))
def test_any_text_parses_or_fails(text):
    with contextlib.suppress(RobustVAEError):
        parse(text)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UnknownNameError, match="latent-shift"):
        lookup("goal", "latent-shfit")
    with pytest.raises(UnknownNameError, match="did you mean 'step"):
        build("search", "projected-ascent:stepz=3")
    with pytest.raises(UnknownNameError, match="did you mean 'goal'"):
        names("goals")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"steps": 3}, "needs a name"),
        ("latent-target", "needs"),
        ("no_such_module_here:Name", "cannot be imported"),
        ("json:Nothing", "cannot be imported"),
        (3, "a name, a mapping or an object"),
    ],
)
def test_bad_specs_are_refused(spec, says):
    with pytest.raises(RobustVAEError, match=says):
        build("goal", spec)


def test_path_may_stand_for_name():
    defense = build("defense", "robustvae.defenses:PosteriorMode:steps=7")
    assert defense == rv.defenses.PosteriorMode(steps=7)


def test_taken_names_are_refused():
    with pytest.raises(ConfigError, match="rename"):

        @register("goal", "latent-shift")
        class Other:
            """Another."""

    with pytest.raises(ConfigError, match="letters"):
        register("goal", "a name:with signs")


def test_unsayable_fields_are_refused():
    with pytest.raises(UnsupportedError, match="no spec can say"):
        spec_of("goal", rv.OutputTarget(torch.zeros(1, 1, 4, 4)))


def test_every_declared_member_loads():
    for family in registry.FAMILIES:
        for entry in describe(family):
            assert entry.summary, entry
            assert lookup(family, entry.name) is not None


def test_listing_imports_no_torch():
    code = (
        "import sys, robustvae.registry as r; [r.describe(f) for f in r.FAMILIES]; "
        "sys.exit('torch' in sys.modules)"
    )
    # the registry alone: what the package's own import costs is another test's matter
    bare = (
        "import sys, types; package = types.ModuleType('robustvae'); "
        f"package.__path__ = {[str(members._PACKAGE)]!r}; sys.modules['robustvae'] = package; "
    )
    assert subprocess.run([sys.executable, "-c", bare + code], check=False).returncode == 0


@register("model", "tiny-test-model")
class TinyVAE(rv.VAE):
    """A user's own model."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.latent, self.image_shape = 2, (1, 4, 4)
        self.width = width
        self.inner = torch.nn.Linear(16, 2 * width)
        self.outer = torch.nn.Linear(2, 16)

    def encode(self, x):
        features = self.inner(x.flatten(1))
        return rv.models.Gaussian(features[:, :2], 0.1 + features[:, 2:4].sigmoid())

    def decode(self, z):
        return rv.models.Bernoulli(self.outer(z).reshape(-1, 1, 4, 4))

    @property
    def config(self):
        return {"width": self.width}


def test_own_model_is_saved_and_loaded(tmp_path):
    from robustvae.models import checkpoint

    vae = rv.models.create("tiny-test-model", width=2)
    again = checkpoint.load(checkpoint.save(vae, tmp_path / "mine"))
    assert type(again) is TinyVAE and again.width == 2
    assert checkpoint.weights_sha256(again) == checkpoint.weights_sha256(vae)


LISTING = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from robustvae import registry\n"
    "assert registry.__file__.startswith(sys.argv[1]), registry.__file__\n"
    "print(*(f'{family}.{name}' for family in ('goal', 'search', 'check')\n"
    "        for name in registry.names(family)))\n"
    "print(registry.lookup('search', 'one-shot').__name__)\n"
)


def listing(place):
    environment = {**os.environ, "PYTHONPATH": ""}
    command = [sys.executable, "-c", LISTING, str(place)]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stdout


def test_zip_archive_lists_every_member(tmp_path):
    archive = tmp_path / "robustvae.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in PACKAGE.rglob("*.py"):
            file.write(path, Path("robustvae") / path.relative_to(PACKAGE))
    names, member = listing(archive).splitlines()
    assert names.split() == [
        f"{family}.{name}"
        for family in ("goal", "search", "check")
        for name in registry.names(family)
    ]
    assert member == "OneShot"


@pytest.mark.slow
def test_compiled_package_lists_every_member(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "robustvae", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(tmp_path / "robustvae", quiet=1, legacy=True)
    for path in (tmp_path / "robustvae").rglob("*.py"):
        path.unlink()
    names = listing(tmp_path).splitlines()[0].split()
    assert {"goal.latent-shift", "search.one-shot", "check.inside_ball"} <= set(names)


@pytest.mark.parametrize("folder", ["kit-1.0.dist-info", "kit.egg-info", "EGG-INFO"])
def test_installed_plugins_are_noticed(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not members._may_have_plugins()
    (tmp_path / folder).mkdir()
    points = tmp_path / folder / "entry_points.txt"
    points.write_text("[console_scripts]\nrobustvae-kit = kit:main\n")
    assert not members._may_have_plugins()
    points.write_text("[console_scripts]\nkit = kit:main\n[ robustvae ]\ngoal.dark = kit:Dark\n")
    assert members._may_have_plugins()


def test_archives_are_searched_by_python(tmp_path, monkeypatch):
    archive = tmp_path / "kit.zip"
    archive.write_bytes(b"")
    monkeypatch.setattr(sys, "path", [str(archive / "inner")])
    assert members._may_have_plugins()


def test_listing_imports_no_slow_module():
    code = (
        "import sys; from robustvae.cli import main; main(['list']);"
        "print(sorted({'importlib.metadata', 'typer', 'torch', 'pydantic'} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
