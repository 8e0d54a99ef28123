"""`advise`: what it prints is what the records hold, filtered and ordered as asked."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

from robustvae import cli, errors
from robustvae.objectives import ELBO, create
from robustvae.registry import build
from robustvae.training import Recipe, advise, recipe_names
from robustvae.training.choices import RADII, measured_choices, prices

ROOT = Path(__file__).parents[2]
DATA = ("fashion_mnist", "mnist")


def test_choices_match_the_records() -> None:
    path = ROOT / "scripts" / "measured_choices.py"
    spec = importlib.util.spec_from_file_location("collect_choices", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    stored = json.loads(script.TARGET.read_text("utf-8"))
    assert stored == script.collected(), "run: python scripts/measured_choices.py"


def test_choices_can_be_made() -> None:
    for choice in measured_choices():
        build("defense", choice.defense)
        assert Recipe.read(choice.model).data.name == choice.data
        assert (ROOT / choice.source).is_file()
        assert len(choice.similarity) == len(choice.similarity_stderr) == len(RADII)


@pytest.mark.parametrize("data", DATA)
def test_wishes_are_met(data: str) -> None:
    everything = advise(data)
    least = prices(measured_choices())[data]
    similarities = [choice.similarity[1] for choice in everything]
    assert similarities == sorted(similarities, reverse=True)
    wish = similarities[1]
    chosen = advise(data, similarity=wish, price=1.4, gradients=0)
    expected = [
        choice
        for choice in everything
        if choice.similarity[1] >= wish and choice.error <= 1.4 * least and not choice.gradients
    ]
    assert list(chosen) == expected
    assert advise(data, certified=1e6) == ()
    at_smaller = [choice.similarity[0] for choice in advise(data, radius=0.1)]
    assert at_smaller == sorted(at_smaller, reverse=True)


@pytest.mark.parametrize("data", DATA)
def test_front_is_not_beaten(data: str) -> None:
    choices = advise(data)
    for choice in choices:
        beaten = any(
            other.error < choice.error
            and other.similarity[0] > choice.similarity[0]
            and other.similarity[1] > choice.similarity[1]
            for other in choices
        )
        assert choice.front is not beaten
    assert any(choice.front for choice in choices)


def test_page_shows_recipes_that_work() -> None:
    page = (ROOT / "docs" / "how-to" / "choose.md").read_text("utf-8")
    whole, part = (yaml.safe_load(b) for b in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    recipe = Recipe.model_validate(whole)
    assert create(recipe.objective.name, **recipe.objective.options) == ELBO(input_noise=0.25)
    assert recipe.start in recipe_names()
    adversarial = create(**part["objective"])
    assert adversarial.base == ELBO(input_noise=0.25) and adversarial.cost > 3


def test_impossible_wishes_are_refused() -> None:
    with pytest.raises(errors.UnknownNameError, match="fashion_mnist"):
        advise("fashion_mnits")
    with pytest.raises(errors.ConfigError, match="take one"):
        advise("mnist", radius=0.3)
    with pytest.raises(errors.RangeError):
        advise("mnist", price=0.0)
    with pytest.raises(errors.RangeError):
        advise("mnist", similarity=-1.0)


def test_command_prints_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "choices.json"
    words = ["advise", "--data", "mnist", "--gradients", "0", "--out", str(out)]
    assert cli.main(words) == cli.DONE
    printed = capsys.readouterr().out
    assert "mnist-conv28-noise-0.25" in printed and "robust-training-mnist.json" in printed
    assert "robust-posterior" not in printed
    stored = json.loads(out.read_text())
    assert [row["model"] for row in stored] == [c.model for c in advise("mnist", gradients=0)]
    assert cli.main(["advise", "--similarity", "1.5"]) == cli.DONE
    assert "No measured choice" in capsys.readouterr().out
    assert cli.main(["advise", "--data", "imagenet"]) == cli.WRONG_USE
