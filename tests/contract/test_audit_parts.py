"""Every measure and check of the library keeps the contract that plug-ins are held to."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest

import robustvae as rv
from robustvae import registry
from robustvae.records import Case, Column, Outcome
from robustvae.testing import (
    ContractError,
    audit_context,
    check_check,
    check_measure,
    members_of,
)

QUESTION = {"r": 1.0, "m": 0.5, "norm": "l2"}
BALL = {"norm": "l2", "radius": 1.0}
POINT = {"trusted": True, "agreement": 0.99}


def rows(*each, **common):
    """Rows of one input after the other, with the same values beside."""
    return [{"input": number, **common, **row} for number, row in enumerate(each)]


def attacks(**scores):
    """One attack by each role on one input, in one ball, with a score."""
    common = {"input": 0, "goal": "damage", "attack": "a", **BALL}
    return [
        {**common, "role": role.replace("_", "-"), "score": score, "damage": score}
        for role, score in scores.items()
    ]


# Of each check: evidence that it passes, and evidence that it fails; rows, or what was probed.
CASES = {
    "adaptive_at_least_transfer": (attacks(plan=2.0, transfer=1.0), attacks(plan=1, transfer=2)),
    "attacks_ran": (attacks(plan=1.0), attacks(plan=None)),
    "band_certified_below_attacked": (
        rows({"certified": 0.5, "size": 1.0, "tolerance_at_75": 1.5}, **BALL),
        rows({"certified": 0.9, "size": 1.0, "tolerance_at_75": 1.5}, **BALL),
    ),
    "beats_random_noise": (
        rows({"damage": 2.0, "damage_noise": 1.0}, **BALL),
        rows({"damage": 1.0, "damage_noise": 2.0}, **BALL),
    ),
    "certified_below_attacked": (
        rows({"certified": 0.1, "margin_upper_box": 0.2}),
        rows({"certified": 0.3, "margin_upper_box": 0.2}),
    ),
    "certified_scores_hold": (
        {"use": {"compared": 100, "attacked_outside_certified": 0}},
        {"use": {"compared": 100, "attacked_outside_certified": 50}},
    ),
    "clean_error_below_tolerance": (rows({"error_clean": 0.5}), rows({"error_clean": 1.5})),
    "defense_worth_its_price": (
        {"three": {"undefended": 2.0, "effect": 1.0, "price": 0.5}},
        {"three": {"undefended": 2.0, "effect": 1.0, "price": 1.5}},
    ),
    "diagnosis_passed": (
        {"diagnosis": [{"name": "a", "passed": True, "message": "b", "remedy": ""}]},
        {"diagnosis": [{"name": "a", "passed": False, "message": "b", "remedy": "c"}]},
    ),
    "exchange_exceeds_tolerance": (rows({"exchange": 2.0}), rows({"exchange": 0.5})),
    "finite_everywhere": (
        {"finite": {"finite": 4, "count": 4}},
        {"finite": {"finite": 3, "count": 4}},
    ),
    "gradient_beats_gradient_free": (
        attacks(plan=2.0, gradient_free=1.0),
        attacks(plan=1.0, gradient_free=2.0),
    ),
    "gradient_matches_function": (
        {"gradient": [POINT]},
        {"gradient": [{**POINT, "agreement": 0.1}]},
    ),
    "gradient_seen": (
        rows({"role": "plan", "zero_gradients": 0.0, "status": "ok"}),
        rows({"role": "plan", "zero_gradients": 1.0, "status": "ok"}),
    ),
    "input_matters": (
        rows({"error_sampled": 1.0, "error_other": 2.0}),
        rows({"error_sampled": 1.0, "error_other": 1.0}),
    ),
    "inside_ball": (
        rows({"inside": True, "size": 1.0}, **BALL),
        rows({"inside": True, "size": 1.1}, **BALL),
    ),
    "larger_radius_stronger": (
        {"larger": {"base": 1.0, "double": 2.0}},
        {"larger": {"base": 2.0, "double": 1.0}},
    ),
    "longer_search_same": (attacks(plan=1.0, longer=1.05), attacks(plan=1.0, longer=2.0)),
    "near_inputs_near_outputs": (
        {"near": {"tiny": 1e-6, "step": 1.0}},
        {"near": {"tiny": 0.9, "step": 1.0}},
    ),
    "robust_without_attack": (
        rows({"probability_clean_high": 0.9}),
        rows({"probability_clean_high": 0.4}),
    ),
    "same_beside_inputs": (
        {"beside": {"damage": 1.0, "damage_beside": {"unseen": 1.2}}},
        {"beside": {"damage": 1.0, "damage_beside": {"unseen": 9.0}}},
    ),
    "same_output_in_any_batch": ({"batch": 1e-6}, {"batch": 0.5}),
    "same_output_twice": ({"repeat": 0.0}, {"repeat": 0.5}),
    "samples_beat_constant": (
        rows({"error_sampled": 1.0}, {"error_sampled": 1.0}, error_constant=2.0),
        rows({"error_sampled": 1.0}, {"error_sampled": 3.0}, error_constant=2.0),
    ),
    "score_recomputed": ({"again": 0.0}, {"again": 0.5}),
    "unbounded_attack_succeeds": (
        {"unbounded": {"whole": 1.0, "swapped": 1.0}},
        {"unbounded": {"whole": 0.1, "swapped": 1.0}},
    ),
}


def case(evidence, name):
    """What was probed is a mapping, rows are a list."""
    judged, probes = ([], evidence) if isinstance(evidence, dict) else (evidence, {})
    return Case("one", judged, probes, QUESTION, defended=name == "defense_worth_its_price")


def test_every_check_has_evidence():
    assert set(CASES) == members_of("robustvae", "check")


@pytest.mark.parametrize("name", sorted(CASES))
def test_check_keeps_its_contract(name):
    passing, failing = CASES[name]
    check_check(name, case(passing, name), case(failing, name))


def test_deciding_scores_excuse_outputs():
    """A detector may give all normal inputs one output: then an exchange judges nothing."""
    same = rows({"exchange": 0.5})
    check = registry.build("check", "exchange_exceeds_tolerance")
    assert check(Case("one", same, {}, QUESTION)).passed is False
    outcome = check(Case("one", same, {"decides_by": "the score"}, QUESTION))
    assert outcome.passed is None and "the score decides" in outcome.value


@pytest.fixture(scope="module")
def contexts():
    vae = rv.load("digits-lipschitz-vae")
    return [audit_context(), audit_context(rv.Victim(vae, rv.InputNoise(0.1)))]


@pytest.mark.parametrize("name", sorted(members_of("robustvae", "measure")))
def test_measure_keeps_its_contract(name, contexts):
    unsuited = {"first-order"}  # what it linearizes is the undefended model
    for context in contexts[: 1 if name in unsuited else 2]:
        check_measure(name, context)


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of every attacked input, in one of several broken ways."""

    fault: str = ""
    columns: ClassVar[tuple[Column, ...]] = (Column(id="how_far", label="size"),)

    def __call__(self, context):
        sizes = context.x_adv.flatten(1).norm(dim=1)
        if self.fault == "inputs":
            context.x.mul_(0.5)
        if self.fault == "rows":
            sizes = sizes - sizes.mean()
        if self.fault == "text":
            sizes = ["far"] * len(sizes)
        if self.fault == "short":
            sizes = sizes[:-1]
        return {"size_of_it" if self.fault == "name" else "how_far": sizes}


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("inputs", "changes the inputs"),
        ("rows", "depend on the other rows"),
        ("text", "'far' in how_far"),
        ("short", "one value for each"),
        ("name", "declared columns"),
    ],
)
def test_broken_measure_is_named(fault, sentence):
    check_measure(Size())
    with pytest.raises(ContractError, match=sentence):
        check_measure(Size(fault))


@dataclasses.dataclass(frozen=True)
class Small:
    """Every change is small."""

    subject: ClassVar[str] = "note"
    meaning: ClassVar[str] = "If not, some change is large."
    fault: str = ""

    def __call__(self, case):
        if self.fault == "edits":
            case.rows[0].pop("size")
            return Outcome(True, "nothing left")
        if self.fault == "silent" or not case.rows:
            return Outcome(True if self.fault == "nothing" else None, "")
        return Outcome(max(case.numbers("size")) < 1, "largest")


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [("edits", "edits the evidence"), ("silent", "that it must pass"), ("nothing", "was measured")],
)
def test_broken_check_is_named(fault, sentence):
    small, large = (Case("a", rows({"size": size}), {}, QUESTION) for size in (0.5, 1.5))
    check_check(Small(), small, large)
    with pytest.raises(ContractError, match="must pass"):
        check_check(Small(), large, small)
    with pytest.raises(ContractError, match=sentence):
        check_check(Small(fault), small, large)
