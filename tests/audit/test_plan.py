"""Plans, protocols and questions: what is accepted, and who goes first."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import robustvae as rv
from robustvae import errors, registry
from robustvae.audit import Plan, read_plan, read_protocol
from robustvae.audit.plan import normalized, text
from robustvae.audit.protocol import settle

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    "plan",
    [
        "nope",
        3,
        [],
        {"inputs": "many", "attacks": [{"radius": 1}]},
        {},
        {"attacks": [{"radius": 1}, {"radius": 1}]},
        {"attacks": [{"radius": 1, "goal": "nothing"}]},
        {"attacks": [{"radius": 1, "search": {"name": "lbfgs", "stepz": 3}}]},
        {"attacks": [{"radius": 1}], "measures": ["nothing"]},
    ],
)
def test_bad_plans_are_refused(plan):
    with pytest.raises(errors.RobustVAEError):
        read_plan(plan)


def test_named_plans_are_valid():
    plans = {name: read_plan(name) for name in registry.names("plan")}
    assert {"smoke", "quick", "standard", "thorough"} <= set(plans)
    sizes = [plans[name].inputs for name in ("smoke", "quick", "standard", "thorough")]
    assert sizes == sorted(sizes)
    assert all(plan.about for plan in plans.values())


def test_ids_tell_every_difference():
    attacks = [
        {"radius": 1},
        {"radius": 1, "search": "projected-ascent:steps=51"},
        {"radius": 1, "search": "projected-ascent:steps=51,rule=sign"},
        {"radius": 1, "goal": "latent-shift"},
        {"radius": 1, "goal": "latent-shift:divergence=kl"},
        {"radius": 1, "norm": "linf"},
        {"radius": 2},
    ]
    ids = [attack.id for attack in Plan(attacks=attacks).attacks]
    assert len(set(ids)) == len(ids)


def test_equal_specs_have_equal_ids():
    one = Plan(attacks=[{"radius": 1, "search": {"name": "projected-ascent", "steps": 50}}])
    other = Plan(attacks=[{"radius": 1.0}])
    assert one.attacks[0].id == other.attacks[0].id


@pytest.mark.parametrize(
    ("family", "written"),
    [
        ("search", "square-search:steps=7"),
        ("search", "lbfgs"),
        ("search", "through:search=(one-shot:count=2,steps=3),gradient=straight-through"),
        ("defense", "input-noise:stddev=0.123456789,defense=(robust-posterior:norm=l2,radius=0.1)"),
        ("defense", "refined:refine=(median:size=5),defense=(hmc:steps=3,n_leapfrog=2)"),
        ("defense", "hmc:ball=(norm=l2,radius=1)"),
        ("goal", "weighted-sum:goals=[maximum-damage,(latent-shift:draws=2)],weights=[1,0.5]"),
        ("logger", "jsonl:path='a, (b).jsonl'"),
    ],
)
def test_text_reads_back(family, written):
    spec = normalized(family, written)
    assert normalized(family, text(spec)) == spec
    assert registry.build(family, text(spec)) == registry.build(family, written)


def test_nested_members_show_what_differs():
    spec = normalized("defense", "refined:refine=median,defense=(hmc:steps=3)")
    assert text(spec) == "refined:refine=median,defense=(hmc:steps=3)"


def test_any_member_may_be_named():
    plan = Plan(attacks=[{"radius": 1, "goal": "robustvae.attacks.goals:MaximumDamage"}])
    assert plan.attacks[0].build().goal == rv.MaximumDamage()


def test_protocol_refuses_options(digits):
    plan, protocol = read_plan("quick"), read_protocol("digits-l2-v1")
    settled, question = settle(plan, protocol, {}, digits)
    assert question.r == protocol.question.r and question.name == "digits-l2-v1"
    assert settled.attacks == protocol.attacks
    for options in ({"r": 1.0}, {"m": 0.9}, {"norm": "linf"}):
        with pytest.raises(errors.ConfigError, match="fixes"):
            settle(plan, protocol, options, digits)
    with pytest.raises(errors.ConfigError, match="fixes r"):
        settle(read_plan({"base": "quick", "r": 2.0}), protocol, {}, digits)


def test_fewer_inputs_shorten_a_protocol(digits, one):
    record = rv.audit(
        rv.load("digits-vae"), digits, protocol="digits-l2-v1",
        plan={**one, "attacks": [{"radius": 3}], "certificates": False, "draws": 10},
    )  # fmt: skip
    assert record.question.name == "digits-l2-v1, shortened"
    assert record.verdict.rank is None
    assert record.plan["attacks"][0]["radius"] != 3


def test_protocol_inputs_are_its_own(digits):
    with pytest.raises(errors.ConfigError, match="other inputs"):
        rv.audit(rv.load("digits-vae"), digits[:200], protocol="digits-l2-v1")


def test_options_go_before_plan(digits):
    _, question = settle(read_plan({"base": "smoke", "r": 2.0}), None, {"r": 3.0}, digits)
    assert question.r == 3.0 and question.rule == "given"
    _, question = settle(read_plan({"base": "smoke", "r": 2.0}), None, {"m": 0.9}, digits)
    assert (question.r, question.m) == (2.0, 0.9)


def test_protocols_are_complete():
    for name in registry.names("protocol"):
        protocol = read_protocol(name)
        assert protocol.name == name and protocol.about
        assert {attack.norm for attack in protocol.attacks} >= {protocol.question.norm}


def test_profile_adds_and_yields(digits):
    from robustvae.audit.protocol import read_profile, with_profile

    profile = read_profile({"plan": "smoke", "measures": ["damage"], "checks": ["inside_ball"]})
    assert with_profile(None, profile).inputs == read_plan("smoke").inputs
    assert with_profile("quick", profile).measures == ({"name": "damage"},)
    with pytest.raises(errors.UnknownNameError, match="key of a profile"):
        read_profile({"plam": "smoke"})


def test_rank_counts_a_model_once():
    from robustvae.audit.protocol import rank

    protocol = read_protocol("digits-l2-v1")
    names = [reference.name for reference in protocol.references]
    assert names == ["digits-vae", "digits-lipschitz-vae", "digits-vae-noise"]
    assert rank(protocol, 0.259, "digits-vae") == (3, 3)
    assert rank(protocol, 9.0, "another") == (1, 4)
    assert rank(read_protocol("digits-linf-v1"), 1.0, "another") == (None, None)


def test_suite_adds_its_attacks():
    plan = Plan(attacks=[{"radius": 7}], suite="smoke")
    assert len(plan.attacks) == 7 and plan.attacks[0].radius == 7
    assert Plan.model_validate(plan.model_dump()) == plan
    assert len(Plan(suite="smoke").attacks) == 6
    with pytest.raises(errors.ConfigError, match="unknown suite"):
        read_plan({"suite": "smok", "attacks": [{"radius": 1}]})


def test_example_plans_run():
    """The plans of the documentation, of which one holds the attacks of the suite `wide`."""
    digits = rv.data.load("digits", split="test")
    plan = yaml.safe_load((EXAMPLES / "plan_wide.yaml").read_text())
    record = rv.audit(rv.load("digits-vae"), digits, plan=plan, question={"r": 0.86})
    assert not [entry for entry in record.left_out if entry.stage.startswith("attack")]
    assert len({row["attack"] for row in record.rows if row["role"] == "plan"}) == 5
    assert read_plan(yaml.safe_load((EXAMPLES / "plan.yaml").read_text())).defenses
