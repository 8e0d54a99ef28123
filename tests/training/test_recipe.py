"""Recipes: read strictly, and trained to a checkpoint with its card."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import robustvae as rv
from robustvae import errors
from robustvae.models import checkpoint
from robustvae.models.checkpoint import weights_sha256
from robustvae.training import Recipe, recipe_names, train_recipe

PLAIN = """
name: mine
data: {name: digits}
model: {name: vae, architecture: mlp, image_shape: [1, 8, 8], latent: 2, hidden: [16]}
training: {epochs: 2, batch_size: 256, lr: [[0, 1e-3], [1, 2e-4]]}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(PLAIN)
    return path


def test_recipe_takes_specs_as_text() -> None:
    training = {"epochs": 1}
    texts = {"data": "digits:split=test", "model": "vae:latent=4", "objective": "elbo:beta=2"}
    mappings = {
        "data": {"name": "digits", "split": "test"},
        "model": {"name": "vae", "latent": 4},
        "objective": {"name": "elbo", "beta": 2},
    }
    one, two = (
        Recipe.model_validate({"name": "a", "training": training, **parts})
        for parts in (texts, mappings)
    )
    assert one == two
    assert one.objective.options == {"beta": 2}


@pytest.mark.parametrize("name", recipe_names())
def test_every_bundled_recipe_can_be_begun(name: str) -> None:
    recipe = Recipe.read(name)
    assert recipe.name == name
    assert recipe.about.endswith(".")
    rv.objectives.create(recipe.objective.name, **recipe.objective.options)
    assert recipe.data.name in rv.data.names()
    if recipe.model is None:
        assert recipe.start in recipe_names()
        return
    options = recipe.model.options
    if recipe.model.name == "lipschitz-vae":
        options["hidden"] = [8, 8]  # orthonormal weights of the full width take a second to make
    vae = rv.models.create(recipe.model.name, **options)
    shapes = {"cifar10": (3, 32, 32), "color_mnist": (3, 28, 28), "digits": (1, 8, 8)}
    assert tuple(vae.image_shape) == shapes.get(recipe.data.name, (1, 28, 28))


def test_trains_to_checkpoint_with_its_card(recipe: Path, tmp_path: Path) -> None:
    vae = train_recipe(recipe, tmp_path / "out")
    again = rv.load(tmp_path / "out")
    assert weights_sha256(again) == weights_sha256(vae)
    card = checkpoint.read_config(tmp_path / "out")["card"]
    assert (card["recipe"], card["data"], card["epochs"], card["seed"]) == ("mine", "digits", 2, 0)
    assert set(card["metrics"]) == {"loss", "test_loss"}
    x = rv.data.load("digits", split="test").x.to(vae.dtype)
    with torch.no_grad():
        loss = rv.objectives.ELBO()(vae, x, generator=rv.generator(5)).mean()
    assert card["metrics"]["test_loss"] == pytest.approx(float(loss), rel=0.02)


def test_dynamic_binarization_follows_seed(recipe: Path, tmp_path: Path) -> None:
    one = weights_sha256(train_recipe(recipe, tmp_path / "one"))
    config = (tmp_path / "one" / "config.json").read_bytes()
    assert weights_sha256(train_recipe(recipe, tmp_path / "one")) == one
    assert (tmp_path / "one" / "config.json").read_bytes() == config
    other = Recipe.read(recipe).model_copy(update={"seed": 1})
    assert weights_sha256(train_recipe(other, tmp_path / "other")) != one


def test_goes_on_from_a_trained_model(recipe: Path, tmp_path: Path) -> None:
    train_recipe(recipe, tmp_path / "first")
    second = tmp_path / "second.yaml"
    second.write_text(
        f"{{name: second, start: {tmp_path / 'first'}, data: {{name: digits}}, "
        "objective: {name: self-supervision}, training: {epochs: 1}}"
    )
    first, tuned = rv.load(tmp_path / "first"), train_recipe(second, tmp_path / "out")
    for (name, one), other in zip(
        first.named_parameters(), tuned.state_dict(keep_vars=True).values(), strict=True
    ):
        assert torch.equal(one, other) == name.startswith("decoder"), name
    card = checkpoint.read_config(tmp_path / "out")["card"]
    assert card["start_sha256"] == weights_sha256(first)
    with pytest.raises(errors.ConfigError, match="makes its own model"):
        train_recipe(recipe, tmp_path / "third", start=first)


def test_a_recipe_has_one_beginning(recipe: Path) -> None:
    recipe.write_text(PLAIN + "start: mine\n")
    with pytest.raises(errors.ConfigError, match="either model or start"):
        Recipe.read(recipe)


def test_few_epochs_of_bundled_model(tmp_path: Path) -> None:
    """By the tenth epoch the loss is below that of an independent Bernoulli for every pixel."""
    torch.set_default_dtype(torch.float32)
    train_recipe("digits-vae", tmp_path, epochs=10)
    x = rv.data.load("digits").x
    mean = x.mean(0).clamp(1e-6, 1 - 1e-6)
    entropy = -(mean * mean.log() + (1 - mean) * (1 - mean).log()).sum()
    card = checkpoint.read_config(tmp_path)["card"]
    assert card["epochs"] == 10
    assert card["metrics"]["test_loss"] < float(entropy)


@pytest.mark.parametrize("name", ["cifar10-conv32", "color-mnist-conv28"])
def test_a_recipe_in_color_trains(
    name: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One epoch of a few images that are read, not held; the loss falls below the first."""
    if Recipe.read(name).training.precision != "32":
        pytest.importorskip("lightning_fabric", reason="the extra `train` mixes precisions")
    torch.set_default_dtype(torch.float32)
    few = rv.data.load(Recipe.read(name).data.name, "test", data_root)[:400]
    monkeypatch.setattr(rv.data, "load", lambda name, split, root: few)
    assert not few.in_memory
    untrained = train_recipe(name, tmp_path / "untrained", epochs=0)
    trained = train_recipe(name, tmp_path / "trained", epochs=1)
    assert weights_sha256(trained) != weights_sha256(untrained)
    losses = [
        checkpoint.read_config(tmp_path / out)["card"]["metrics"]["test_loss"]
        for out in ("untrained", "trained")
    ]
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs:", "epoch:", "unknown key 'training.epoch': did you mean 'training.epochs'"),
        ("name: mine", "name: mine\nsed: 3", "unknown key 'sed': did you mean 'seed'"),
        ("{name: digits}", "{name: digits, splt: test}", "did you mean 'data.split'"),
        ("latent: 2", "latnt: 2", "did you mean 'latent'"),
        ("name: vae", "name: vea", "did you mean 'vae'"),
        ("{name: digits}", "{name: digist}", "did you mean 'digits'"),
        ("epochs: 2", "epochs: two", "training.epochs: Input should be a valid integer"),
        ("name: mine", "", "name: Field required"),
        ("name: vae,", "", "model.name: Field required"),
        ("data: {name: digits}", "data: [digits]", "data"),
        ("name: mine", "name: mine\nobjective: {name: elbo, betta: 2}", "did you mean 'beta'"),
        ("epochs: 2", "epochs: -2", "epochs must be at least 0"),
        ("name: mine", "name: [", "cannot be read"),
    ],
)
def test_refuses_nonsense_by_name(
    recipe: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    recipe.write_text(PLAIN.replace(old, new))
    with pytest.raises(errors.RobustVAEError) as caught:
        train_recipe(recipe, tmp_path / "out")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "\x00", "just words"])
def test_refuses_what_is_no_recipe(recipe: Path, content: str) -> None:
    recipe.write_text(content)
    with pytest.raises(errors.ConfigError, match=r"mine\.yaml"):
        Recipe.read(recipe)


def test_xavier_start_has_its_spread(recipe: Path, tmp_path: Path) -> None:
    wide = PLAIN.replace("hidden: [16]", "hidden: [200]")
    recipe.write_text(wide + "\ninitialization: xavier\n")
    layer = next(
        m for m in train_recipe(recipe, tmp_path, epochs=0).modules() if type(m) is torch.nn.Linear
    )
    expected = (2 / sum(layer.weight.shape)) ** 0.5
    count = layer.weight.numel()
    # the standard error of a standard deviation is sigma / sqrt(2 n)
    assert abs(float(layer.weight.detach().std()) - expected) < 4 * expected / (2 * count) ** 0.5
    assert not layer.bias.any()


def test_start_keeps_its_weights(recipe: Path) -> None:
    text = re.sub(r"model: .*", "start: digits-vae", PLAIN)
    recipe.write_text(text + "\ninitialization: xavier\n")
    with pytest.raises(errors.ConfigError, match="leave initialization out"):
        Recipe.read(recipe)


COLORED = [
    name.removeprefix("color-mnist-conv28-")
    for name in recipe_names()
    if re.match("color-mnist-conv28-(beta|tc|se|avae)", name)
]


@pytest.mark.parametrize("kind", COLORED)
def test_colored_models_are_fashion_ones(kind: str) -> None:
    """Each row of [Kuzina22] has the same objective on both sets, and the plain network of its."""
    colored, fashion = (Recipe.read(f"{data}-conv28-{kind}") for data in ("color-mnist", "fashion"))
    options = colored.objective.options
    if "size" in options:
        assert options["size"] == 7 * fashion.objective.options["size"]
        options["size"] //= 7
    assert (colored.objective.name, options) == (fashion.objective.name, fashion.objective.options)
    assert (colored.start is None) == (fashion.start is None)
    if colored.model is not None:
        assert colored.model == Recipe.read("color-mnist-conv28").model


def test_every_row_has_its_colored_recipe() -> None:
    rows = [f"{kind}-{n}" for kind in ("beta", "tc") for n in (2, 5, 10)]
    rows += ["se-0.1", "se-0.2", "avae", "se-avae-0.1", "se-avae-0.2", "avae-ss"]
    assert sorted(rows) == sorted(COLORED)


def test_recipes_of_papers_say_differences() -> None:
    for name in recipe_names():
        found = Recipe.read(name)
        if "[" in found.about:
            assert found.fidelity, f"{name}: what differs from the paper?"


def test_refuses_unknown_and_missing_recipes(tmp_path: Path) -> None:
    with pytest.raises(errors.UnknownNameError, match="did you mean 'digits-vae'"):
        Recipe.read("digit-vae")
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        Recipe.read(tmp_path / "none.yaml")
