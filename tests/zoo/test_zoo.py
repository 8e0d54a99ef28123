"""The zoo: trained by a recipe, stored small, measured on what is stored, and found by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import robustvae as rv
from robustvae import cli, errors, zoo
from robustvae.models import checkpoint
from robustvae.models.checkpoint import weights_sha256
from robustvae.training import Recipe, recipe_names, train_recipe

ZOO = Path(__file__).parents[2] / "zoo"
MOST = 25_000_000


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A zoo of two: a plain model that was trained before, and a Lipschitz one that was not."""
    top = tmp_path_factory.mktemp("zoo")
    patch = pytest.MonkeyPatch()
    patch.setenv(zoo.ENVIRONMENT, str(top / "zoo"))
    read = Recipe.read

    def short(source):
        recipe = read(source)
        small = {"hidden": [16]} if recipe.model.name == "lipschitz-vae" else {}
        model = type(recipe.model)(name=recipe.model.name, **{**recipe.model.options, **small})
        training = recipe.training.model_copy(update={"epochs": 1})
        return recipe.model_copy(update={"model": model, "training": training})

    patch.setattr(Recipe, "read", staticmethod(short))
    torch.set_default_dtype(torch.float32)  # what a user has; the next test sets its own
    train_recipe("digits-vae", top / "before")
    said = []
    options = {"inputs": 20, "draws": 5}
    zoo.train("digits-vae", run=top / "before", progress=lambda *told: said.append(told), **options)
    zoo.train("digits-lipschitz-vae", run=top / "runs", continuous=True, **options)
    patch.undo()
    return top, said


def test_complete_run_stored_in_half_precision(built):
    top, said = built
    assert said[0][2] == "likelihood" and all(0 <= done < total for done, total, _ in said)
    trained = checkpoint.load(top / "before")
    stored = checkpoint.load(top / "zoo" / "digits-vae")
    assert stored.dtype == torch.float32
    halved = {key: t.half().float() for key, t in trained.state_dict().items()}
    assert_close(stored.state_dict(), halved, rtol=0, atol=0)
    assert checkpoint.read_config(top / "zoo" / "digits-vae")["dtype"] == "float16"


def test_card_speaks_of_what_is_stored(built, monkeypatch):
    top, _ = built
    place = top / "zoo" / "digits-vae"
    config = checkpoint.read_config(place)
    record = json.loads((place / zoo.EVALUATION).read_text())
    stored = checkpoint.load(place)
    assert record["facts"]["sha256"] == config["sha256"] == weights_sha256(stored)
    card = config["card"]
    assert {"data", "epochs", "seed", "recipe", "seconds", "date", "objective"} <= set(card)
    test, train = (rv.data.load("digits", split) for split in ("test", "train"))
    again = rv.evaluate(stored, test, train=train, seed=0, inputs=20, draws=5)
    assert card["metrics"]["nll"] == pytest.approx(again["nll"].value)
    text = (place / zoo.CARD).read_text()
    assert config["sha256"] in text
    assert f"| {again['nll'].value:.5g} |" in text
    assert "20 of 355 test images" in text


def test_certified_models_stored_as(built):
    top, _ = built
    place = top / "zoo" / "digits-lipschitz-vae"
    assert checkpoint.read_config(place)["dtype"] == "float32"
    assert weights_sha256(checkpoint.load(place)) == weights_sha256(checkpoint.load(top / "runs"))
    x = rv.data.load("digits", split="test").x[:3]
    found = rv.certify(
        checkpoint.load(place), x, r=4.0, m=0.5, displacement="centered", generator=rv.generator(0)
    )
    assert found.kind == "deterministic"
    assert "nll_continuous" in checkpoint.read_config(place)["card"]["metrics"]


def test_trained_models_are_found_by_name(built, monkeypatch, capsys):
    top, _ = built
    (top / "zoo" / "digits-vae").rename(top / "zoo" / "mnist-conv28")
    try:
        monkeypatch.setenv(zoo.ENVIRONMENT, str(top / "zoo"))
        assert zoo.trained() == ["digits-lipschitz-vae", "mnist-conv28"]
        assert rv.load("mnist-conv28").image_shape == (1, 8, 8)
        assert zoo.trained_on("mnist-conv28") == "digits"
        assert zoo.card("mnist-conv28")["status"] == "trained"
        found = zoo.evaluation("mnist-conv28")
        assert found["nll"].n == 20
        assert cli.main(["zoo", "show", "mnist-conv28"]) == cli.DONE
        printed = capsys.readouterr().out
        assert "importance" in printed
        assert f"{found['nll'].value:.5g}" in printed
        assert cli.main(["zoo", "list"]) == cli.DONE
        printed = capsys.readouterr().out
        assert all(word in printed for word in ("mnist-conv28-tau", "package", "Not yet trained"))
        monkeypatch.setenv(zoo.ENVIRONMENT, str(top / "nothing"))
        with pytest.raises(errors.UnknownNameError, match="robustvae zoo train mnist-conv28"):
            rv.load("mnist-conv28")
        assert zoo.card("mnist-conv28")["status"] == zoo.NOT_TRAINED
        assert cli.main(["zoo", "show", "mnist-conv28"]) == cli.DONE
    finally:
        (top / "zoo" / "mnist-conv28").rename(top / "zoo" / "digits-vae")


def test_damaged_record_and_unknown_names_refused(built, monkeypatch):
    top, _ = built
    monkeypatch.setenv(zoo.ENVIRONMENT, str(top / "zoo"))
    for ask in (zoo.card, zoo.evaluation, zoo.train):
        with pytest.raises(errors.UnknownNameError):
            ask("mnist-conv29")
    broken = top / "zoo" / "broken"
    checkpoint.save(checkpoint.load(top / "before"), broken)
    assert zoo.evaluation("broken") is None
    for text in ("{", "[]", '{"measures": [1]}', '{"measures": [], "more": 1}'):
        (broken / zoo.EVALUATION).write_text(text)
        with pytest.raises(errors.CheckpointError):
            zoo.evaluation("broken")


def test_another_runs_folder_is_rejected(built, monkeypatch, tmp_path):
    top, _ = built
    monkeypatch.setenv(zoo.ENVIRONMENT, str(tmp_path / "zoo"))
    with pytest.raises(errors.ConfigError, match="another run"):
        zoo.train("digits-lipschitz-vae", run=top / "before", inputs=2, draws=1)
    assert not (tmp_path / "zoo").exists()


def test_training_needs_a_folder_first(monkeypatch, tmp_path):
    monkeypatch.delenv(zoo.ENVIRONMENT, raising=False)
    monkeypatch.setattr(zoo, "_SOURCE", tmp_path)
    assert zoo.folder() is None
    assert zoo.trained() == []
    with pytest.raises(errors.StorageError, match=zoo.ENVIRONMENT):
        zoo.train("digits-vae", run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluate_prints_a_table(capsys, tmp_path):
    out = tmp_path / "found.json"
    arguments = ["evaluate", "--inputs", "20", "--part", "reconstruction", "--out", str(out)]
    assert cli.main(arguments) == cli.DONE
    assert "squared error" in capsys.readouterr().out
    assert [m["key"] for m in json.loads(out.read_text())["measures"]][:2] == ["mse", "mse_sampled"]
    assert cli.main(["evaluate", "--part", "nothing"]) == cli.WRONG_USE


@pytest.mark.skipif(not ZOO.is_dir(), reason="no models are stored beside this checkout")
def test_stored_zoo_is_complete():
    files = [path for path in ZOO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST
    for place in sorted(path for path in ZOO.iterdir() if path.is_dir()):
        assert place.name in recipe_names()
        if (place / zoo.RECORD).is_file():
            continue
        config = checkpoint.read_config(place)
        wanted = "float32" if config["model"] == "lipschitz-vae" else "float16"
        assert config["dtype"] == wanted
        vae = checkpoint.load(place)
        record = json.loads((place / zoo.EVALUATION).read_text())
        assert record["facts"]["sha256"] == config["sha256"] == weights_sha256(vae)
        # trained on from a stored model: a few epochs, and the card says from which weights
        trained_on = config["card"].get("start")
        assert config["card"]["epochs"] >= (20 if trained_on is None else 2)
        if trained_on is not None:
            assert config["card"]["start_sha256"] == weights_sha256(zoo.load(trained_on))
        assert config["sha256"] in (place / zoo.CARD).read_text()


def test_model_without_weights_has_record():
    name = "mnist-lipschitz-5"
    assert zoo.card(name)["status"] == zoo.NOT_KEPT
    found, text = zoo.evaluation(name), (ZOO / name / zoo.CARD).read_text()
    assert found.facts["sha256"] in text and f"{found['nll'].value:.5g}" in text
    assert name not in zoo.trained()
    with pytest.raises(errors.UnknownNameError, match="zoo train mnist-lipschitz-5"):
        rv.load(name)


def test_a_damaged_record_is_one_sentence(tmp_path, monkeypatch):
    place = tmp_path / "mnist-mlp-10"
    place.mkdir()
    for one in (zoo.EVALUATION, zoo.CARD, zoo.RECORD):
        (place / one).write_text("[1]")
    monkeypatch.setenv(zoo.ENVIRONMENT, str(tmp_path))
    for read in (zoo.card, zoo.evaluation):
        with pytest.raises(errors.CheckpointError, match="cannot be read"):
            read("mnist-mlp-10")
