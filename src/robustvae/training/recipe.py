"""Recipes: all that a training run needs, in one YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, Unpack, final

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from torch import nn

from robustvae import data, models, objectives
from robustvae._options import with_defaults
from robustvae.arguments import checked
from robustvae.errors import ConfigError, DtypeError, unknown
from robustvae.loggers import Logger
from robustvae.models import VAE, checkpoint
from robustvae.models.registry import name_of
from robustvae.records.text import read_text, reason
from robustvae.records.text import read_yaml as read_text_yaml
from robustvae.records.typed import Values
from robustvae.registry import parse
from robustvae.seeding import generator
from robustvae.training.loop import Precision, fit

TEST_BATCH = 500
RECIPES = Path(str(resources.files("robustvae") / "recipes"))


STRICT = ConfigDict(extra="forbid", frozen=True)


def _from_text(content: Any) -> Any:
    """A part that is written in the command line's form of a spec, as a mapping."""
    return parse(content) if isinstance(content, str) else content


class _Named(Values):
    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


@final
class DataPart(Values):
    """What to train on: a name of `rv.data.names()` and its split."""

    model_config = STRICT

    name: str
    split: Literal["train", "test"] = "train"


@final
class TrainingPart(Values):
    """Arguments of `rv.fit`, under their own names."""

    model_config = STRICT

    epochs: int
    batch_size: int = 128
    lr: float | list[tuple[int, float]] = 1e-3
    validation: float | None = None
    patience: int | None = None
    plateau: int | None = None
    clip: float | None = None
    precision: Precision | None = None


@final
class Recipe(Values):
    """All that decides a training run; an unknown key is an error that names it.

    Attributes:
        name: Of the model that comes out.
        about: What it is for, in a sentence.
        fidelity: What differs from the paper whose model it is, empty where it is nobody's.
        data: The spec of the data set: its name, and `split`.
        model: The spec of the model; or instead of it
        start: The trained model to go on from: its name, or its checkpoint folder.
        initialization: First weights: "default" are torch's; "xavier" draws those of convolutions
            and linear layers from N(0, 2 / (inputs + outputs)) and begins with biases of 0.
        objective: The spec of the objective.
        training: Arguments of `rv.fit`.
        seed: Decides the first weights and everything random after.

    Examples:
        >>> from robustvae.training import Recipe
        >>> Recipe.read("digits-vae").model.name
        'vae'
    """

    model_config = STRICT

    name: str
    about: str = ""
    fidelity: str = ""
    data: Annotated[DataPart, BeforeValidator(_from_text)]
    model: Annotated[_Named | None, BeforeValidator(_from_text)] = None
    start: str | None = None
    initialization: Literal["default", "xavier"] = "default"
    objective: Annotated[_Named, BeforeValidator(_from_text)] = _Named(name="elbo")
    training: TrainingPart
    seed: int = 0

    @model_validator(mode="after")
    def _one_beginning(self) -> Recipe:
        if (self.model is None) == (self.start is None):
            raise ValueError("wanted either model or start")
        if self.start is not None and self.initialization != "default":
            raise ValueError("a model to start from has its weights: leave initialization out")
        return self

    @classmethod
    def read(cls, source: str | Path) -> Recipe:
        """Read a recipe.

        Args:
            source: The name of one that comes with the library, or a YAML file.

        Raises:
            ConfigError: Not readable, not YAML, or a value of the wrong kind.
            UnknownNameError: No such recipe, or a key that recipes do not have; the nearest is
                suggested.
        """
        if not isinstance(source, str | Path):
            raise DtypeError(f"a recipe must be a name or a YAML file, got {source!r:.60}")
        path = Path(source)
        if str(source) in recipe_names():
            path = RECIPES / f"{source}.yaml"
        elif path.suffix not in (".yaml", ".yml"):
            raise unknown("recipe", str(source), recipe_names())
        try:
            content = read_text_yaml(read_text(path))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {reason(error)}") from None
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise _one_line(path, error) from None


def recipe_names() -> list[str]:
    """Recipes that come with the library, sorted.

    Examples:
        >>> from robustvae.training import recipe_names
        >>> "digits-vae" in recipe_names()
        True
    """
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


@final
class RecipeOptions(TypedDict, total=False):
    """Options of `train_recipe`, which describes them."""

    start: VAE | None
    epochs: int | None
    root: str | Path | None
    resume: bool
    progress: bool | None
    device: str | None
    precision: Precision | None
    logger: Logger | str | Mapping[str, Any] | None


_DEFAULTS: RecipeOptions = {
    "start": None,
    "epochs": None,
    "root": None,
    "resume": True,
    "progress": None,
    "device": None,
    "precision": None,
    "logger": None,
}


@checked()
def train_recipe(
    recipe: str | Path | Recipe, out: str | Path, **options: Unpack[RecipeOptions]
) -> VAE:
    """Train a model by a recipe; run again, it goes on where it was stopped.

    The checkpoint's card names data, recipe, seed and epochs, with the losses in nats an image:
    "loss" on the training images during the last epoch, "test_loss" on the test images after it.

    Args:
        recipe: A recipe, the name of a bundled one, or a YAML file.
        out: Folder of the run; see `fit`.
        options: Any of

            - start: The model that the recipe goes on from, trained in place; None reads its
              `start` as a checkpoint folder;
            - epochs: Instead of the recipe's;
            - root: Folder of the data sets; see `rv.data.load`;
            - resume: Whether to go on from the state in `out` if there is one, as by default;
            - progress: Whether to show a bar; None as of `fit`;
            - device: Where to train; None is the CPU;
            - precision: Instead of the recipe's; see `fit`;
            - logger: Where the numbers of every epoch go, besides the file; see `fit`.

    Returns:
        The trained model.

    Raises:
        UnknownOptionError: An option of another name.
        UnknownNameError: An unknown recipe, key, model, data set, objective or option.
        ConfigError: A value of the wrong kind, or another run in `out`.
        DataError: The data set is missing or damaged.
        TrainingError: See `fit`.
        StorageError: The disk cannot be written.

    Examples:
        >>> import tempfile
        >>> from robustvae.training import train_recipe
        >>> with tempfile.TemporaryDirectory() as out:
        ...     train_recipe("digits-vae", out, epochs=1, progress=False).image_shape
        (1, 8, 8)
    """
    selection = with_defaults(train_recipe, options, _DEFAULTS)
    start, root = selection["start"], selection["root"]
    if not isinstance(recipe, Recipe):
        recipe = Recipe.read(recipe)
    if recipe.model is not None:
        if start is not None:
            raise ConfigError(f"the recipe {recipe.name} makes its own model: leave start= out")
        vae = models.create(recipe.model.name, **{"seed": recipe.seed} | recipe.model.options)
        if recipe.initialization == "xavier":
            draw_xavier(vae, generator(recipe.seed))
    else:
        vae = checkpoint.load(str(recipe.start)) if start is None else start
    name_of(vae)  # a model that cannot be saved is refused before it is trained
    start_sha256 = checkpoint.weights_sha256(vae)
    objective = objectives.create(recipe.objective.name, **recipe.objective.options)
    images = data.load(recipe.data.name, recipe.data.split, root)
    instead = {"epochs": selection["epochs"], "precision": selection["precision"]}
    settings = recipe.training.model_dump()
    settings |= {key: value for key, value in instead.items() if value is not None}
    draws = generator(recipe.seed)
    fit(
        vae,
        objective,
        images,
        generator=draws,
        out=out,
        resume=selection["resume"],
        progress=selection["progress"],
        device=selection["device"],
        logger=selection["logger"],
        **settings,
    )
    tests = data.load(recipe.data.name, "test", root)
    with torch.no_grad():
        losses = [
            objective(vae, tests.read(rows).to(vae.device, vae.dtype), generator=draws)
            for rows in torch.arange(len(tests)).split(TEST_BATCH)
        ]
    card = checkpoint.read_config(out)["card"]
    card["metrics"]["test_loss"] = float(torch.cat(losses).mean())
    card |= {"recipe": recipe.name, "seed": recipe.seed, "objective": str(objective)}
    if recipe.start is not None:
        card |= {"start": recipe.start, "start_sha256": start_sha256}
    checkpoint.save(vae, out, card=card)
    return vae


@torch.no_grad()
def draw_xavier(model: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of convolutions and linear layers anew, with biases of 0, in place.

    w ~ N(0, 2 / (inputs + outputs)), both times the receptive field [Glorot & Bengio, 2010, Eq. 16]

    Args:
        model: Changed in place; other layers keep what they have.
        generator: Spent by the draws.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.training.recipe import draw_xavier
        >>> layer = torch.nn.Linear(3, 4)
        >>> draw_xavier(layer, rv.generator(0))
        >>> bool(layer.bias.any())
        False
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            nn.init.xavier_normal_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _one_line(path: Path, error: ValidationError) -> Exception:
    problems = error.errors()
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    place = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        parts: dict[str, type[BaseModel]] = {"data": DataPart, "training": TrainingPart}
        keys = parts[place[0]].model_fields if len(place) > 1 else Recipe.model_fields
        return unknown("key", ".".join(place), [".".join([*place[:-1], key]) for key in keys])
    return ConfigError(f"{path}: {'.'.join(place) or 'a recipe'}: {first['msg']}")
