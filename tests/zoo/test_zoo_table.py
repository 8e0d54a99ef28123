"""The page of the zoo says what the records say, beside the papers' numbers."""

from __future__ import annotations

import json

import pytest

import robustvae as rv
from robustvae import cli, zoo
from robustvae.errors import ConfigError
from robustvae.evaluation import Evaluation, Measure
from robustvae.models import checkpoint
from robustvae.records import plain
from robustvae.rounding import ceil
from robustvae.zoo_table import audit_facts, card_page, page, paired, robustness, strengths

STEPS = {"nll": 3.0, "mse": 50.0, "encoder_std": 0.1, "encoder_slope": -1.0}


def measured(level: float, more: tuple[Measure, ...] = ()) -> Evaluation:
    """Ten images; every measure moves with the level, the more so the later the image."""
    values = {key: [step * (level + i / 9) for i in range(10)] for key, step in STEPS.items()}
    measures = [Measure(key, key, sum(v) / 10, 0.3, 10, "") for key, v in values.items()]
    measures += [Measure("mse_sampled", "", 60 * level, 1.0, 10, "")]
    measures += [Measure("encoder_weights", "", 20 - level, None, 0, "")]
    measures += [Measure("decoder_weights", "", 20.0 + (level == 2), None, 0, "")]
    facts = {"inputs": 10, "available": 99, "split": "test", "seed": 0, "sha256": "0" * 64}
    per_image = {"index": list(range(10)), **values}
    return Evaluation((*measures, *more), per_image=per_image, facts=facts)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv(zoo.ENVIRONMENT, str(tmp_path))

    def store(name, record):
        vae = rv.models.create("vae", architecture="conv8", latent=2)
        card = {"epochs": 20, "seed": 0, "seconds": 9.0, "date": "2026-11-21", "metrics": {}}
        checkpoint.save(vae, tmp_path / name, card=card)
        (tmp_path / name / zoo.EVALUATION).write_text(json.dumps(plain(record)))

    return store


def row(text: str, start: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    line = max(lines, key=lambda line: line.count("|"))  # the table of robustness is narrower
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_without_models_the_page_says_so(place):
    assert row(page(), "mnist-conv28-beta-5")[1] == "not yet trained"
    assert page().count("Nothing to compare yet.") == 2


def test_numbers_stand_beside_the_papers(place):
    continuous = Measure("nll_continuous", "", -900.0, 2.0, 10, "nats")
    place("mnist-conv28", measured(1, (continuous,)))
    place("mnist-conv28-beta-5", measured(2))
    place("mnist-conv28-tc-5", measured(0.5))
    bounds = tuple(
        Measure(f"{part}_lipschitz", "", 10.00001, None, 0, "") for part in ("encoder", "decoder")
    )
    place("mnist-lipschitz-10", measured(-300, bounds))
    text = page()
    cells = row(text, "mnist-conv28-beta-5")
    assert cells[3] == "7.5 ± 0.3"
    assert cells[4] == "6.9 to 8.1"
    assert cells[6] == "100.6"
    assert cells[9] == "1485.1"
    differences = row(text, "MNIST, beta")
    assert differences[1:3] == ["mnist-conv28", "mnist-conv28-beta-5"]
    assert differences[3].startswith("+3 ±")
    assert differences[4] == "+12.3"
    assert "- MNIST, beta (2 of 4 not yet trained): as in the paper." in text
    assert "- MNIST, tc (2 of 4 not yet trained): not all rise by two standard errors." in text
    plain_vae, lipschitz = (
        [line for line in text.splitlines() if line.startswith(f"| {name} | 20 | 10 |")][-1]
        for name in ("mnist-conv28", "mnist-lipschitz-10")
    )
    assert "| 900 ± 2 | 896.08 to 903.92 | not covered | not covered |" in text
    assert "| 898.5 ± 0.3 |" in lipschitz and lipschitz.count("10.0001") == 2
    assert plain_vae != lipschitz


def test_trends_are_told_as_found(place):
    place("mnist-conv28", measured(1))
    place("mnist-conv28-beta-2", measured(2))
    place("mnist-conv28-beta-10", measured(3))
    text = page()
    found = {key: row(text, key)[-2:] for key in [*list(STEPS)[2:], "encoder_weights"]}
    assert found["encoder_std"] == ["rises ([Camuto21] Fig. 9c)", "rises"]
    assert found["encoder_slope"][1] == "falls"
    assert found["encoder_weights"] == ["rises ([Willetts21] Table 1)", "falls"]
    assert row(text, "decoder_weights")[-1] == "neither, step by step"


def test_differences_are_paired_by_image():
    one, other = measured(1), measured(2)
    assert paired(one, other, "nll") == pytest.approx((3.0, 0.0), abs=1e-9)
    fewer = Evaluation((), per_image={"index": [9, 0], "nll": [100.0, 100.0]})
    assert paired(one, fewer, "nll")[0] == pytest.approx(100 - 3 * (1 + 0.5))


def test_kept_audit_stands_in_the_card(place):
    """What is kept of an audit by a protocol; one that was cut says by how many inputs."""
    place("mnist-seatbelt-2", measured(1))
    images = rv.data.load("digits", split="test")
    record = rv.audit(rv.load("digits-vae"), images, plan="smoke", protocol="digits-l2-v1", seed=0)
    facts = audit_facts(record)
    assert facts["is_shortened"] and facts["inputs"] == 2
    path = zoo.measured()["mnist-seatbelt-2"] / zoo.AUDIT
    path.write_text(json.dumps(facts))
    margin = next(entry.mean for entry in record.summary if entry.key == "margin_upper_box")
    values = robustness("mnist-seatbelt-2")
    assert values["attacked l2 margin (digits-l2-v1, 2 inputs)"] == ceil(margin)
    path.write_text(json.dumps({**facts, "is_shortened": False}))
    assert "attacked l2 margin (digits-l2-v1)" in robustness("mnist-seatbelt-2")


def test_audit_without_protocol_is_refused():
    images = rv.data.load("digits", split="test")
    record = rv.audit(rv.load("digits-vae"), images, plan="smoke", seed=0)
    with pytest.raises(ConfigError, match="audit with --protocol"):
        audit_facts(record)


def test_the_command_writes_the_page(place, tmp_path, capsys):
    out = tmp_path / "page" / "zoo.md"
    assert cli.main(["zoo", "table", "--out", str(out)]) == cli.DONE
    assert out.read_text() == capsys.readouterr().out == page()


def test_unbroken_inputs_are_counted(place, tmp_path):
    images = rv.data.load("digits", split="test")
    plan = {"base": "smoke", "inputs": 3}
    record = rv.audit(rv.load("digits-vae"), images, plan=plan, protocol="digits-l2-v1")
    numbers = sorted({row["input"] for row in record.rows})
    margins = dict(zip(numbers, [0.2, "inf", 0.30001], strict=True))
    rows = [{**row, "margin_upper_box": margins[row["input"]]} for row in record.rows]
    place("digits-vae", measured(1))
    facts = audit_facts(record.model_copy(update={"rows": rows}))
    assert facts["unbroken"] == 1 and facts["median_margin"] == 0.30001
    facts["means"]["margin_upper_box"]["mean"] = "inf"
    (tmp_path / "digits-vae" / zoo.AUDIT).write_text(json.dumps(facts))
    words = [text for name, text in robustness("digits-vae").items() if "inputs)" in name]
    assert words == ["∞ (median 0.301; no attack broke 1 of 3)"]


@pytest.mark.parametrize("name", sorted(zoo.measured()))
def test_stored_cards_are_generated(name):
    """`python scripts/store_audits.py` writes them; none differs from what is stored beside it."""
    place = zoo.measured()[name]
    text = (place / zoo.CARD).read_text(encoding="utf-8")
    assert text == card_page(name)
    is_kept = (place / checkpoint.CONFIG).is_file()
    assert ("**The weights are not kept here.**" in text) != is_kept
    if is_kept or (place / zoo.AUDIT).is_file():
        section = text.partition("## Robustness")[2].partition("## Measures")[0]
        assert all(f"| {row.name} | {row.value} |" in section for row in strengths(name))
        assert "attacked l2 margin" in section
    else:
        assert "Not audited: its weights are not kept." in text


def test_card_shows_intervals_and_commands(place, tmp_path):
    place("mnist-seatbelt-2", measured(1))
    assert "## Robustness\n\nNot audited.\n" in card_page("mnist-seatbelt-2")
    means = {
        "margin_upper_box": {"mean": 0.30001, "low": 0.2009, "high": 0.39991},
        "certified_deterministic": {"mean": 0.0129, "low": None, "high": None},
        "error_clean": {"mean": 1.5, "low": 1.0, "high": 2.0},
    }
    facts = {"protocol": "mnist-l2-v1", "norm": "l2", "inputs": 7, "is_shortened": True}
    facts |= {"command": "robustvae audit mnist-seatbelt-2", "means": means}
    (tmp_path / "mnist-seatbelt-2" / zoo.AUDIT).write_text(json.dumps(facts))
    text = card_page("mnist-seatbelt-2")
    command = "`robustvae audit mnist-seatbelt-2`"
    where = "(mnist-l2-v1, 7 inputs)"
    assert f"| attacked l2 margin {where} | 0.301 | 0.200 to 0.400 | 7 | {command} |" in text
    assert f"| certified l2 radius {where} | 0.0129 |  | 7 | {command} |" in text
    assert f"| error on clean inputs, l2 {where} | 1.50 | 1.00 to 2.00 | 7 | {command} |" in text
