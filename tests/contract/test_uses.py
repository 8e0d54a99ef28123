"""Scores, refinements, suites and loggers keep their contracts; broken ones are named."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import robustvae as rv
from robustvae import errors, registry
from robustvae.data.changes import blur
from robustvae.defenses import JPEG, BitDepth, Median, Redraw, Threshold
from robustvae.loggers import JSONLines
from robustvae.perturb import SearchResult
from robustvae.scores import (
    ContrastError,
    DetectorScore,
    ImportanceWeighted,
    LatentDistance,
    NegativeELBO,
    NoisyDistance,
    ReconstructionError,
)
from robustvae.testing import (
    ContractError,
    check_defense,
    check_logger,
    check_objective,
    check_refinement,
    check_score,
    check_search,
    check_suite,
    members_of,
    tiny_vae,
)
from robustvae.testing.planted import gray_images

NORMALS = gray_images(40)


class Far:
    """pyod's interface."""

    def decision_function(self, rows):
        return abs(rows - 0.5).sum(1)


SCORES = {
    "anomaly-score": ReconstructionError,
    "contrast-error": ContrastError,
    "negative-elbo": NegativeELBO,
    "importance-weighted": ImportanceWeighted,
    "latent-distance": lambda: LatentDistance.fit(tiny_vae(), NORMALS),
    "noisy-distance": lambda: NoisyDistance.fit(
        rv.Victim(tiny_vae()), NORMALS, generator=rv.generator(0)
    ),
    "detector": None,  # has a test of its own
}
REFINEMENTS = {
    "bit-depth": BitDepth(),
    "jpeg": JPEG(),
    "median": Median(),
    "redraw": Redraw(),
    "threshold": Threshold(),
}


def test_all_have_evidence():
    assert set(SCORES) == members_of("robustvae", "score")
    assert set(REFINEMENTS) == members_of("robustvae", "refinement")


@pytest.mark.parametrize("name", [name for name, make in SCORES.items() if make is not None])
def test_score_keeps_its_contract(name):
    check_score(SCORES[name](), anomalies=(NORMALS[:5] * 3).clamp(0, 1))


def test_detector_keeps_its_contract():
    victim = rv.Victim(rv.wrap(Far(), image_shape=(4,)))
    x = 0.5 + 0.1 * torch.rand(3, 1, 1, 4)
    check_score(DetectorScore(), victim, x, anomalies=0 * x, differentiable=False)


@pytest.mark.parametrize("name", REFINEMENTS)
def test_refinement_keeps_its_contract(name):
    check_refinement(REFINEMENTS[name])


def test_the_smoke_suite_keeps_its_contract():
    check_suite("smoke")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(members_of("robustvae", "suite") - {"smoke"}))
def test_suite_keeps_its_contract(name):
    check_suite(name)


def test_a_log_keeps_its_contract(tmp_path):
    check_logger(JSONLines(str(tmp_path / "log.jsonl")))
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4


@dataclasses.dataclass(frozen=True)
class BrokenScore:
    """A score with one planted fault."""

    fault: str

    def __call__(self, victim, x, *, generator):
        value = ReconstructionError()(victim, x, generator=generator)
        if self.fault == "shape":
            return value.sum()
        if self.fault == "ranked":
            return value.argsort().to(value)
        if self.fault == "detached":
            return value.detach()
        return -value if self.fault == "sign" else value + torch.rand(len(x)).to(value)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("shape", "not 3 finite"),
        ("ranked", "other rows"),
        ("detached", "no gradient"),
        ("sign", "less normal"),
        ("global", "global generator"),
    ],
)
def test_broken_scores_are_named(fault, says):
    with pytest.raises(ContractError, match=says):
        check_score(BrokenScore(fault), anomalies=(NORMALS[:5] * 3).clamp(0, 1))


@dataclasses.dataclass(frozen=True)
class BrokenRefinement:
    """A refinement with one planted fault."""

    fault: str
    is_random = False

    def __call__(self, vae, x, *, generator):
        if self.fault == "range":
            return x + 1
        if self.fault == "rows":
            return x.mean(0, keepdim=True).expand_as(x)
        if self.fault == "random":
            noise = torch.rand(x.shape, generator=generator, dtype=x.dtype)
            return (x + 0.01 * noise).clamp(0, 1)
        return (x > 0.5).to(x) if self.fault == "blind" else blur(x)[:, :, 1:]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("range", "clamp last"),
        ("rows", "other rows"),
        ("random", "not random"),
        ("blind", "no gradient"),
        ("shape", "not images"),
    ],
)
def test_broken_refinements_are_named(fault, says):
    with pytest.raises(ContractError, match=says):
        check_refinement(BrokenRefinement(fault))


@dataclasses.dataclass(frozen=True)
class Still:
    """A search that stays where it is."""

    def __call__(self, score, x, ball, *, generator):
        value = score(x, torch.arange(len(x)))
        ones = torch.ones(len(x), dtype=torch.long)
        return SearchResult(x.clone(), value, value, 0 * ones, ones)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([], "holds no attack"),
        ([("a", Still()), ("a", Still())], "one name"),
        ([("a", Still())], "less damage than noise"),
    ],
)
def test_broken_suites_are_named(members, says, monkeypatch):
    goal = rv.MaximumDamage()
    attacks = tuple((name, goal, search) for name, search in members)
    smoke = registry.lookup("suite", "smoke")
    monkeypatch.setitem(smoke.__globals__, "_SMOKE", attacks)
    with pytest.raises(ContractError, match=says):
        check_suite("smoke")


class Mute:
    """A logger that takes no step."""

    def log(self, values):
        del values

    def log_files(self, folder):
        del folder


def test_contracts_take_specs(tmp_path):
    """As every function does: whoever tests a plug-in may name its members."""
    check_score("negative-elbo")
    check_refinement("median:size=3")
    check_defense("posterior-mode:steps=2")
    check_objective("elbo:beta=2")
    check_search("projected-ascent:steps=30,restarts=2")
    check_logger({"name": "jsonl", "path": str(tmp_path / "log.jsonl")})
    for check in (check_score, check_refinement, check_defense, check_objective, check_search):
        with pytest.raises(errors.UnknownNameError, match="choose from"):
            check("no-such-member")


def test_broken_loggers_are_named():
    with pytest.raises(ContractError, match="has no log"):
        check_logger(object())
    with pytest.raises(ContractError, match="raises TypeError"):
        check_logger(Mute())
