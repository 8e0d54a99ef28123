"""What an audit measures, and what it makes of what it is given."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import robustvae as rv
from robustvae import errors
from robustvae.audit import Run, check_names, read_plan, summary_keys

R = {"r": 1.0}


@pytest.fixture(scope="module")
def lipschitz(digits):
    from tests.audit.conftest import TINY

    vae = rv.load("digits-lipschitz-vae")
    return rv.audit(vae, digits, plan=TINY, question=R, seed=0, run=Run(name="lipschitz"))


def test_rows_cover_inputs_and_attacks(lipschitz):
    attacks = list(dict.fromkeys(row["attack"] for row in lipschitz.rows))
    assert len(attacks) == 7 and len(lipschitz.rows) == 42
    assert attacks[1] == "latent-shift by projected-ascent:steps=5,restarts=1, linf 0.1"
    assert {row["role"] for row in lipschitz.rows} == {
        "plan",
        "explored",
        "longer",
        "gradient-free",
    }
    assert len({row["input"] for row in lipschitz.rows}) == 6
    assert all(row["size"] <= row["radius"] + 1e-6 for row in lipschitz.rows)
    assert len(lipschitz.gallery) == 2


def test_bracket_holds_on_every_row(lipschitz):
    for row in lipschitz.rows:
        assert 0 < row["certified"] <= row["margin_upper_unconstrained"] <= row["margin_upper_box"]
        assert row["certified_kind"] == "deterministic"
        assert row["certified_probabilistic"] is None
    assert lipschitz.verdict.useful and lipschitz.verdict.sound
    assert lipschitz.verdict.first.startswith("Useful; evidence sound; the change")


def test_requirements_are_known_beforehand(lipschitz, tiny):
    plan = read_plan(tiny)
    assert [check.id for check in lipschitz.checks] == check_names(plan)
    keys = {entry.key for entry in lipschitz.summary}
    plain = {key for key in keys if " / " not in key}
    assert plain <= set(summary_keys(plan))
    assert {"damage / linf 0.1", "damage", "certified_deterministic"} <= keys


def test_only_input_has_no_other(digits, one):
    vae, plan = rv.load("digits-vae"), {**one, "inputs": 1, "shard": 1}
    record = rv.audit(vae, digits[:1], plan=plan, question=R, seed=0)
    assert all(row["exchange"] is None and row["error_other"] is None for row in record.rows)
    outcomes = {check.id: check.passed for check in record.checks}
    assert outcomes["input_matters"] is None and outcomes["exchange_exceeds_tolerance"] is None
    assert "not useful" not in record.verdict.first.lower()


def test_headline_is_the_worst_attack(lipschitz):
    worst = {}
    for row in lipschitz.rows:
        if row["norm"] == "l2":
            worst[row["input"]] = max(worst.get(row["input"], 0.0), row["damage"])
    (entry,) = [entry for entry in lipschitz.summary if entry.key == "damage"]
    assert entry.mean == pytest.approx(sum(worst.values()) / len(worst))
    assert entry.n == 6


def test_same_attack_other_steps(digits, one):
    attacks = [
        {"search": {"name": "projected-ascent", "steps": steps, "restarts": 1}, "radius": 1.0}
        for steps in (3, 30)
    ]
    plan = {**one, "inputs": 4, "attacks": attacks}
    record = rv.audit(rv.load("digits-vae"), digits, plan=plan, question=R)
    assert len(record.rows) == 8
    assert len({row["attack"] for row in record.rows}) == 2
    by_attack = [entry for entry in record.summary if entry.key.startswith("damage / maximum")]
    assert [entry.n for entry in by_attack] == [4, 4]
    assert by_attack[1].mean > by_attack[0].mean
    (worst,) = [entry for entry in record.summary if entry.key == "damage"]
    assert worst.n == 4


def test_certificates_keep_kinds_apart(digits, one, monkeypatch):
    from robustvae.audit.measures import certificate as measure

    real = measure.certify

    def certify(victim, x, *, methods, rows, **options):
        answer = real(victim, x, methods=methods, rows=rows, **options)
        if "neyman_pearson" in methods:
            return answer
        odd = torch.tensor([0.05 * (row % 2) for row in rows]).to(answer.radius)
        return dataclasses.replace(answer, radius=odd, method=("tangent",) * len(rows))

    monkeypatch.setattr(measure, "certify", certify)
    plan = {**one, "inputs": 12, "shard": 12, "draws": 20}
    record = rv.audit(rv.load("digits-vae"), digits, plan=plan, question=R, seed=0)
    rows = [row for row in record.rows if row["role"] == "plan"]
    assert {row["certified_kind"] for row in rows} == {"deterministic", "probabilistic"}
    for row in rows:
        assert row["certified"] > 0
        asked = row["certified_probabilistic"] is not None
        assert asked == (row["certified_deterministic"] == 0) == (row["input"] % 2 == 0)
    keys = {entry.key: entry for entry in record.summary}
    assert "certified" not in keys
    asked = [row for row in rows if row["certified_probabilistic"] is not None]
    assert keys["certified_probabilistic"].n == len(asked)
    assert keys["certified_deterministic"].n == 12


def test_plain_model_is_certified_probabilistically(digits, one):
    record = rv.audit(rv.load("digits-vae"), digits, plan=one, question=R)
    assert {row["certified_kind"] for row in record.rows} == {"probabilistic"}
    assert "probabilistic" in record.proved[0]


def test_convolutions_need_not_wait(digits, one):
    vae = rv.models.create("vae", architecture="conv8", latent=2).float()
    record = rv.audit(vae, digits, plan=one)
    assert all(row["certified_status"] == "abstain" for row in record.rows)
    assert any("Neyman-Pearson" in sentence for sentence in record.not_tried)


def columns(record, *names):
    return {
        (row["input"], row["attack"]): {name: row[name] for name in names} for row in record.rows
    }


DRAWN = ("certified", "first_order", "probability_clean", "error_sampled", "spectral_radius")
ATTACKED = ("score", "damage", "damage_noise", "ms_ssim_attacked")


@pytest.mark.parametrize(
    "name", ["digits-vae", pytest.param("digits-lipschitz-vae", marks=pytest.mark.slow)]
)
def test_rows_do_not_depend_on_shards(digits, one, name):
    vae = rv.load(name)
    plan = {**one, "inputs": 20, "draws": 100}
    whole = rv.audit(vae, digits, plan={**plan, "shard": 20}, question=R)
    reference = columns(whole, *DRAWN, *ATTACKED)
    numbers = list(dict.fromkeys(row["input"] for row in whole.rows))
    others = [rv.audit(vae, digits, plan={**plan, "shard": size}, question=R) for size in (1, 5)]
    turned = reordered(vae, digits, {**plan, "shard": 20}, numbers[::-1])
    alone = reordered(vae, digits, {**plan, "shard": 20}, numbers[3:4])
    again = reordered(vae, digits, {**plan, "shard": 20}, numbers)
    assert again == whole.rows, "equal batches: the same to the last bit"
    for rows in (*(record.rows for record in others), turned, alone):
        for row in rows:
            wanted = reference[row["input"], row["attack"]]
            for column in DRAWN:
                assert row[column] == pytest.approx(wanted[column], rel=1e-6, abs=1e-6), column
            for column in ATTACKED:
                assert row[column] == pytest.approx(wanted[column], rel=0.01), column


def reordered(vae, images, plan, numbers):
    """Rows of the same inputs in another order, or of some of them only."""
    from robustvae.audit.auditor import Auditor
    from robustvae.audit.protocol import Inputs, settle
    from robustvae.audit.tasks import Memory

    plan = read_plan({**plan, "inputs": len(numbers)})
    plan, question = settle(plan, None, R, images)
    rows = torch.tensor(numbers)
    x = images.read(rows)
    everything = images.x
    inputs = Inputs(x, images.y[rows], tuple(numbers), x[:0], everything.mean(0, keepdim=True))
    auditor = Auditor({"victim": rv.Victim(vae)}, inputs, plan, question, 0)
    places, quiet = range(len(numbers)), lambda words: None
    attacks = auditor.attacked("victim", places, Memory(), quiet)
    return auditor.measured_rows("victim", places, attacks, Memory(), quiet)["rows"]


def test_unknown_weights_cannot_resume(digits, one, monkeypatch):
    from robustvae.audit import arguments

    monkeypatch.setattr(arguments.checkpoint, "weights_sha256", lambda vae: None)
    vae = rv.load("digits-vae")
    record = rv.audit(vae, digits, plan=one, question=R)
    assert record.model.sha256 is None
    with pytest.raises(errors.ConfigError, match="cannot resume"):
        rv.audit(vae, digits, plan=one, question=R, run=Run(resume=True))


def test_tolerance_ignores_the_model(digits, one):
    plan = {**one, "inputs": 2}
    questions = [
        rv.audit(rv.load(name), digits, plan=plan).question
        for name in ("digits-vae", "digits-lipschitz-vae")
    ]
    assert [question.r for question in questions] == [0.86, 0.86]
    assert "0.4 times" in questions[0].rule
    with pytest.raises(errors.ConfigError, match="say r"):
        rv.audit(rv.load("digits-vae"), digits[:5], plan=plan)


def test_defense_is_row_with_three_numbers(digits, one):
    vae = rv.load("digits-vae")
    defense = {"name": "robust-posterior", "norm": "l2", "radius": 1.0, "steps": 4}
    plan = {**one, "draws": 20, "certificates": False}
    record = rv.audit(vae, digits, plan=plan, question=R, victims={"defended": defense})
    assert [victim.name for victim in record.victims] == ["victim", "defended"]
    plain, defended = record.victims
    assert plain.price == 0 and not plain.defended
    assert defended.price > 0 and defended.effect > 0 and defended.distance > 0
    roles = {row["role"] for row in record.rows if row["victim"] == "defended"}
    assert roles == {"plan", "transfer"}
    judged = {(check.id, check.victim): check for check in record.checks}
    assert judged["defense_worth_its_price", "defended"].passed is not None
    assert judged["defense_worth_its_price", "victim"].passed is None
    assert any(entry.key == "damage / defended" for entry in record.summary)


def test_victims_alone_are_enough(digits, one):
    vae = rv.load("digits-vae")
    victims = {"plain": vae, "defended": rv.Victim(vae, rv.PosteriorMode(steps=3))}
    record = rv.audit(victims=victims, images=digits, plan={**one, "inputs": 1}, question=R)
    assert {row["victim"] for row in record.rows} == {"plain", "defended"}
    with pytest.raises(rv.errors.ConfigError, match="needs a victim"):
        rv.audit(images=digits)
    with pytest.raises(rv.errors.RobustVAEError, match="NoneType"):
        rv.audit(vae)


def test_images_come_as_tensors(digits, one):
    record = rv.audit(rv.load("digits-vae"), digits.x[:9], plan=one, question=R)
    assert record.data.available == 9


def test_victims_come_as_mapping(digits, one):
    vae = rv.load("digits-vae")
    record = rv.audit({"a": vae, "b": rv.Victim(vae)}, digits, plan=one, question=R)
    assert [victim.name for victim in record.victims] == ["a", "b"]
    with pytest.raises(errors.DtypeError, match=r"rv\.wrap"):
        rv.audit(torch.nn.Linear(2, 2), digits, plan=one)
    with pytest.raises(errors.ConfigError, match="needs a victim"):
        rv.audit({}, digits, plan=one)


def test_other_shapes_are_refused(digits, one):
    vae = rv.models.create("vae", architecture="conv28", latent=2)
    with pytest.raises(errors.ShapeError, match=r"\(1, 28, 28\)"):
        rv.audit(vae, digits, plan=one)


def test_nan_weights_are_refused(digits, one):
    vae = rv.load("digits-vae")
    with torch.no_grad():
        next(vae.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(errors.NonFiniteError):
        rv.audit(vae, digits, plan=one)


def test_minutes_shorten_the_plan(digits, tiny):
    plan = {**tiny, "inputs": 300, "probes": 0, "margins": None, "draws": 2000, "longer": 20}
    record = rv.audit(rv.load("digits-vae"), digits, plan=plan, question=R, minutes=0.02)
    assert record.plan["inputs"] < 300
    assert any("cut to 0.02 minutes" in omission.reason for omission in record.left_out)


def test_failing_stage_is_left_out(digits, one):
    class Broken:
        def __call__(self, vae, x, *, generator):
            z = vae.encode(x).mean
            if torch.is_grad_enabled() and x.requires_grad:
                raise RuntimeError("vmap: no randomness here")
            return z

    victim = rv.Victim(rv.load("digits-vae"), Broken())
    record = rv.audit(victim, digits, plan=one, question=R)
    assert any("vmap" in omission.reason for omission in record.left_out)
    assert "attacks_ran" in record.verdict.first and not record.verdict.passed
