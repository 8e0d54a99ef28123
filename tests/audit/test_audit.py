import pytest
import torch

import robustvae as rv
from robustvae import auditing, errors

PLAN = {
    "inputs": 6,
    "shard": 3,
    "draws": 100,
    "margin_steps": 10,
    "margin_restarts": 1,
    "gallery": 2,
    "defense_steps": 3,
    "evidence": 2,
    "attacks": [
        {"radius": 0.5, "steps": 10, "restarts": 2},
        {"goal": "latent_shift", "norm": "linf", "radius": 0.1, "steps": 5, "restarts": 1},
    ],
}


@pytest.fixture(scope="module")
def images():
    return rv.data.load("digits", split="test")


@pytest.fixture(scope="module")
def lipschitz(images):
    victim = rv.Victim(rv.load("digits-lipschitz-vae"))
    return rv.audit(victim, images, plan=PLAN | {"r": 1.0}, seed=0, name="lipschitz")


def test_rows_are_one_for_each_input_and_attack(lipschitz):
    assert len(lipschitz.rows) == 12
    assert len({row["input"] for row in lipschitz.rows}) == 6
    assert [row["attack"] for row in lipschitz.rows[:2]] == [
        "maximum damage, l2 0.5",
        "latent shift, linf 0.1",
    ]
    assert all(row["size"] <= row["radius"] + 1e-6 for row in lipschitz.rows)
    assert len(lipschitz.gallery) == 2


def test_the_bracket_holds_on_every_row(lipschitz):
    for row in lipschitz.rows:
        assert 0 < row["certified"] <= row["margin_upper_unconstrained"] <= row["margin_upper_box"]
        assert row["certified_kind"] == "deterministic"
    passed = {check["name"]: check["passed"] for check in lipschitz.checks}
    assert passed["sandwich"]
    assert passed["inside"]
    assert passed["robust at rest"]
    assert "larger radius never weaker" in passed


def test_what_can_be_required_is_known_before_the_run(lipschitz):
    plan = auditing.read_plan(PLAN)
    assert [check["name"] for check in lipschitz.checks] == auditing.check_names(plan)
    assert {entry["key"] for entry in lipschitz.summary} <= set(auditing.summary_keys(plan))


def test_a_plain_model_gets_a_certificate_that_says_it_is_probabilistic(images):
    record = rv.audit(rv.Victim(rv.load("digits-vae")), images, plan=PLAN | {"r": 1.0}, seed=0)
    kinds = {row["certified_kind"] for row in record.rows if row["certified"] > 0}
    assert kinds == {"probabilistic"}
    assert "probabilistic" in record.proved[0]
    assert all(row["certified"] <= row["margin_upper_unconstrained"] for row in record.rows)


def test_a_convolutional_model_is_not_kept_waiting_for_neyman_pearson(images):
    vae = rv.models.create("vae", architecture="conv8", latent=2).float()
    record = rv.audit(rv.Victim(vae), images, plan=PLAN | {"inputs": 2}, seed=0)
    assert all(row["certified_status"] == "abstain" for row in record.rows)
    assert any("Neyman-Pearson" in sentence for sentence in record.not_tried)


def test_record_round_trips_through_json(lipschitz):
    again = rv.Record.from_json(lipschitz.to_json())
    assert again == lipschitz
    assert again.to_json() == lipschitz.to_json()


def test_a_wrapped_model_is_audited_and_nothing_is_claimed_for_it(images):
    inner = rv.load("digits-vae")
    mine = rv.wrap(
        encode=inner.encode, decode=inner.decode, latent=inner.latent, image_shape=inner.image_shape
    )
    record = rv.audit(rv.Victim(mine), images, plan=PLAN, seed=0)
    assert all(
        row["certified"] == 0 and row["certified_status"] == "abstain" for row in record.rows
    )
    assert "Nothing is proved" in record.proved[0]


def test_a_model_in_float64_whose_weights_are_out_of_sight(images, tmp_path):
    inner = rv.load("digits-vae").double()
    mine = rv.wrap(
        encode=lambda x: inner.encode(x),
        decode=lambda z: inner.decode(z),
        latent=inner.latent,
        image_shape=inner.image_shape,
    )
    assert mine.dtype == torch.float64
    plan = PLAN | {"inputs": 2, "attacks": PLAN["attacks"][:1], "evidence": 0}
    record = rv.audit(rv.Victim(mine), images, plan=plan, seed=0, keep=tmp_path)
    assert any("out of sight" in sentence for sentence in record.protocol)
    with pytest.raises(errors.ConfigError, match="cannot resume"):
        rv.audit(rv.Victim(mine), images, plan=plan, seed=0, keep=tmp_path, resume=True)


def test_other_images_are_not_taken_for_the_same(images, tmp_path):
    plan = PLAN | {"inputs": 2, "r": 1.0, "attacks": PLAN["attacks"][:1], "evidence": 0}
    victim = rv.Victim(rv.load("digits-vae"))
    first = rv.audit(victim, images, plan=plan, seed=0, keep=tmp_path)
    darker = rv.data.Images(images.x / 2, images.y, images.name, images.split)
    second = rv.audit(victim, darker, plan=plan, seed=0, keep=tmp_path, resume=True)
    assert first.rows != second.rows


def test_an_output_that_does_not_move_needs_its_own_r(images):
    victim = rv.Victim(rv.load("digits-vae"), rv.PosteriorMode(steps=2))
    with pytest.raises(errors.ConfigError, match="does not move at rest"):
        rv.audit(victim, images, plan=PLAN | {"displacement": "paired"}, seed=0)


def test_assumptions_keep_the_greatest_of_their_numbers():
    merged = auditing._merged([["a", "at most 8e-05 here"], ["a", "at most 9.7e-05 here"]])
    assert merged == ["a", "at most 9.7e-05 here"]


def test_a_defended_victim_is_attacked_through_its_defense(images):
    victim = rv.Victim(rv.load("digits-vae"), rv.RobustPosterior(norm="linf", radius=0.1, steps=2))
    plan = PLAN | {"inputs": 2, "draws": 20, "attacks": PLAN["attacks"][:1]}
    record = rv.audit(victim, images, plan=plan, seed=0)
    assert record.rows[0]["damage"] > 0
    assert record.rows[0]["certified"] is None
    assert "RobustPosterior" in record.defense


def test_images_of_another_shape_are_refused(images):
    vae = rv.models.create("vae", architecture="conv28", latent=2)
    with pytest.raises(errors.ShapeError, match=r"\(1, 28, 28\)"):
        rv.audit(rv.Victim(vae), images, plan=PLAN)


def test_nan_weights_are_refused_before_anything_runs(images):
    vae = rv.load("digits-vae")
    with torch.no_grad():
        next(vae.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(errors.NonFiniteError):
        rv.audit(rv.Victim(vae), images, plan=PLAN)


@pytest.mark.parametrize(
    "plan", ["nope", 3, [], {"inputs": "many", "attacks": [{"radius": 1}]}, {}]
)
def test_bad_plans_are_refused(plan):
    with pytest.raises(errors.RobustVAEError):
        auditing.read_plan(plan)


def test_named_plans_are_valid_and_ordered_by_effort():
    quick, standard, thorough = (auditing.PLANS[n] for n in ("quick", "standard", "thorough"))
    assert quick.inputs < standard.inputs < thorough.inputs
    assert set(auditing.PLANS) == {"quick", "standard", "thorough"}
