"""Models that come with the library or were trained by its recipes; the way to load any model.

Trained models are checkpoint folders `NAME/` under one folder: the one that the environment
variable ROBUSTVAE_ZOO names, else `zoo/` of the source checkout that the library runs from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, TypedDict, Unpack, final

from robustvae import data
from robustvae._options import with_defaults
from robustvae.arguments import checked
from robustvae.display import Progress
from robustvae.errors import (
    CheckpointError,
    ConfigError,
    DtypeError,
    StorageError,
    UnknownNameError,
    unknown,
)
from robustvae.evaluation import PARTS, Evaluation, Measure, evaluate
from robustvae.models import VAE, checkpoint, factories, hub
from robustvae.records import finish_switch, plain, write_files
from robustvae.records.files import MARKS, check_sign
from robustvae.records.text import read_json, read_text
from robustvae.registry import PATH, lookup
from robustvae.training import Recipe, recipe_names, train_recipe

_BUNDLED = Path(str(resources.files("robustvae") / "zoo_files"))
_SOURCE = Path(__file__).parents[2]

ENVIRONMENT = "ROBUSTVAE_ZOO"
EVALUATION = "evaluation.json"
CARD = "README.md"
AUDIT = "audit.json"  # beside the card: what an audit by a protocol says of the stored weights
RECORD = "card.json"  # the card of a model that was measured and whose weights are not kept
NOT_TRAINED = "not yet trained"
NOT_KEPT = "measured, its weights are not kept here"


def folder() -> Path | None:
    """Where trained models lie, or None where there is no such place.

    Examples:
        >>> from robustvae import zoo
        >>> zoo.folder() is None or zoo.folder().name != ""
        True
    """
    path = os.environ.get(ENVIRONMENT)
    if path:
        return Path(path).expanduser()
    return _SOURCE / "zoo" if (_SOURCE / "pyproject.toml").is_file() else None


def bundled() -> list[str]:
    """Names of the models in the package, sorted.

    Examples:
        >>> from robustvae import zoo
        >>> "digits-vae" in zoo.bundled()
        True
    """
    return sorted(_models_in(_BUNDLED))


def trained() -> list[str]:
    """Names of the models in `folder()`, sorted.

    Examples:
        >>> from robustvae import zoo
        >>> zoo.trained() == sorted(zoo.trained())
        True
    """
    return sorted(_models_in(folder()))


def names() -> list[str]:
    """Names of all models that are bundled, trained, or have a recipe, sorted.

    Examples:
        >>> from robustvae import zoo
        >>> {"digits-vae", "mnist-conv28"} <= set(zoo.names())
        True
    """
    return sorted({*stored(), *recipe_names()})


@checked()
def card(name: str) -> dict[str, Any]:
    """The card of a model: data, epochs, seed, metrics, recipe, "status".

    Of a recipe that has no checkpoint the status is "not yet trained", and the rest what it plans.

    Raises:
        UnknownNameError: No model and no recipe of that name.
        CheckpointError: The card is damaged.

    Examples:
        >>> from robustvae import zoo
        >>> zoo.card("digits-vae")["data"]
        'digits'
    """
    if name in stored():
        return {"status": "trained", **checkpoint.read_config(stored()[name])["card"]}
    if name in measured():
        content: dict[str, Any] = _read(measured()[name] / RECORD)
        return {"status": NOT_KEPT, **content}
    if name not in recipe_names():
        raise unknown("model", name, names())
    recipe = Recipe.read(name)
    return {
        "status": NOT_TRAINED,
        "about": recipe.about,
        "data": recipe.data.name,
        "epochs": recipe.training.epochs,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "metrics": {},
    }


@checked()
def card_text(
    name: str, facts: dict[str, Any], evaluation: Evaluation, robustness: Sequence[str]
) -> str:
    """The card beside a model, in markdown.

    Args:
        name: Of the model.
        facts: Its card, with "dtype" where the weights are stored.
        evaluation: What was measured on it.
        robustness: Lines on its robustness; `robustvae.zoo_table.card_page` has the stored ones.
    """
    run = evaluation.facts
    lines = [f"# {name}", ""]
    if "about" in facts:
        lines += [str(facts["about"]), ""]
    verb = "is"
    if facts.get("status") == NOT_KEPT:
        verb = "was"
        lines += [
            "**The weights are not kept here.** No command loads this model by its name. "
            f"`robustvae zoo train {name}` trains one by the recipe. What stands below was "
            "measured while the weights were there.",
            "",
        ]
    if "data" in facts:  # written by a training of this library
        lines += [
            f"- trained on {facts['data']} (training images), {facts['epochs']} epochs, seed "
            f"{facts['seed']}, {facts['seconds']:.0f} s of training, {facts['date']}"
        ]
    if "start" in facts:
        start = f"- trained on from `{facts['start']}`, sha256 of its weights "
        lines += [f"{start}{facts['start_sha256']}"]
    if "objective" in facts:
        lines += [f"- objective: {facts['objective']}; recipe: `robustvae zoo train {name}`"]
    if "note" in facts:
        lines += [f"- {facts['note']}"]
    storage = f"stored as {facts['dtype']}; " if "dtype" in facts else ""
    lines += [
        f"- {storage}sha256 of the weights as they load{'ed' * (verb == 'was')}: {run['sha256']}",
        f"- measured on what {verb} stored: {run['inputs']:,} of {run['available']:,} "
        f"{run['split']} images, seed {run['seed']}",
        "",
        "## Robustness",
        "",
        *robustness,
        "",
        "## Measures",
        "",
        "| | value | standard error | images | unit |",
        "|---|---:|---:|---:|---|",
    ]
    for measure in evaluation.measures:
        stderr = "" if measure.stderr is None else f"{measure.stderr:.2g}"
        count = f"{measure.n:,}" if measure.n else ""
        label = measure.label.replace("|", r"\|")
        cells = (label, measure.shown, stderr, count, measure.unit)
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\nNot measured: {what}: {why}." for what, why in evaluation.absent.items()]
    return "\n".join(lines) + "\n"


def stored() -> dict[str, Path]:
    """Folders of the models that `load` takes by name.

    Examples:
        >>> from robustvae import zoo
        >>> zoo.bundled() == [name for name in sorted(zoo.stored()) if name in zoo.bundled()]
        True
    """
    return _models_in(folder()) | _models_in(_BUNDLED)


def measured() -> dict[str, Path]:
    """Folders of the models in `folder()` with a record of what was measured, kept or not.

    Examples:
        >>> from robustvae import zoo
        >>> all((place / zoo.EVALUATION).is_file() for place in zoo.measured().values())
        True
    """
    place = folder()
    if place is None or not place.is_dir():
        return {}
    _finish(place)
    return {
        part.name: part
        for part in sorted(place.iterdir())
        if (part / EVALUATION).is_file()
        and any((part / one).is_file() for one in (checkpoint.CONFIG, RECORD))
    }


@checked()
def evaluation(name: str) -> Evaluation | None:
    """What was measured on a model; None where nothing was.

    Raises:
        UnknownNameError: No model of that name.
        CheckpointError: The record beside the model is damaged.
    """
    places = measured() | stored()
    if name not in places:
        raise unknown("model", name, places)
    path = places[name] / EVALUATION
    if not path.is_file():
        return None
    content = _read(path)
    try:
        measures = tuple(Measure(**measure) for measure in content.pop("measures"))
        return Evaluation(measures, **content)
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(read_text(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} cannot be read: it holds no object")
    return content


@final
class TrainOptions(TypedDict, total=False):
    """Options of `train`, which describes them."""

    inputs: int
    draws: int
    continuous: bool
    device: str | None
    root: str | Path | None
    progress: Progress | None


_DEFAULTS: TrainOptions = {
    "inputs": 2000,
    "draws": 1000,
    "continuous": False,
    "device": None,
    "root": None,
    "progress": None,
}


@checked()
def train(
    name: str,
    *,
    run: str | Path | None = None,
    out: str | Path | None = None,
    **options: Unpack[TrainOptions],
) -> Path:
    """Train a model by its recipe, store it in the zoo and measure what is stored.

    A run or an evaluation that was stopped goes on; a run that is complete is only measured and
    stored. Weights are stored in float16, those of a `lipschitz-vae` in float32: a certificate
    speaks of the weights as they are stored.

    Args:
        name: Of a bundled recipe.
        run: Folder of the training run; runs/NAME if None.
        out: Folder of the model; NAME in `folder()` if None.
        options: Any of

            - inputs: Test images for the measures, 2000 by default; see `evaluate`;
            - draws: Latents for each image's likelihood, 1000 by default;
            - continuous: Whether to score the logits as a continuous Bernoulli's too;
            - device: Where to train and measure; None is the CPU;
            - root: Folder of the data sets; see `rv.data.load`;
            - progress: Called with (steps done, steps in all, what is under way) while it measures;
              a training tells by itself how far it is.

    Returns:
        The folder: a checkpoint, its card as README.md, and the measures as evaluation.json.

    Raises:
        UnknownNameError: No such recipe or option.
        ConfigError: Another run in `run`.
        DataError: The data set is missing or damaged.
        StorageError: The disk cannot be written, or there is no zoo: set ROBUSTVAE_ZOO.
    """
    settings = with_defaults(train, options, _DEFAULTS)
    device, root, progress = settings["device"], settings["root"], settings["progress"]
    recipe = Recipe.read(name)
    place = Path(out) if out is not None else _place(recipe.name)
    checkpoint.check_place(place)  # before hours of work
    if not (place / checkpoint.CONFIG).is_file():
        check_sign(place / CARD, f"# {recipe.name}")
    run_folder = Path(run) if run is not None else Path("runs") / recipe.name
    if not _complete(recipe, run_folder):
        train_recipe(
            recipe,
            run_folder,
            start=None if recipe.start is None else load(recipe.start),
            device=device,
            root=root,
            progress=None if progress else False,
        )
    config = checkpoint.read_config(run_folder)
    dtype = "float32" if config["model"] == "lipschitz-vae" else "float16"
    checkpoint.save(checkpoint.load(run_folder), run_folder / "stored", dtype=dtype)
    vae = checkpoint.load(run_folder / "stored")
    splits = [data.load(recipe.data.name, split, root) for split in ("test", "train")]
    evaluation = evaluate(
        vae if device is None else vae.to(device),
        splits[0],
        train=splits[1],
        seed=recipe.seed,
        inputs=settings["inputs"],
        draws=settings["draws"],
        parts=[part for part in PARTS if settings["continuous"] or part != "continuous"],
        keep=run_folder / "evaluation",
        progress=progress,
    )
    card = {
        **config["card"],
        "about": recipe.about,
        "date": datetime.now(UTC).date().isoformat(),
        "metrics": {
            "training_loss": config["card"]["metrics"]["loss"],
            **{measure.key: measure.value for measure in evaluation.measures},
        },
    }
    files = checkpoint.contents(vae.cpu(), card=card, dtype=dtype)
    record = json.dumps(plain(evaluation), separators=(",", ":"), sort_keys=True) + "\n"
    text = card_text(recipe.name, {**card, "dtype": dtype}, evaluation, ["Not audited."])
    files |= {EVALUATION: record.encode(), CARD: text.encode()}
    # an audit beside an earlier model speaks of the weights that are replaced now
    stale = [place / AUDIT] if (place / checkpoint.CONFIG).is_file() else []
    write_files({place / key: content for key, content in files.items()}, stale)
    return place


@checked()
def load(
    model: str | Path,
    weights: str | Path | None = None,
    *,
    revision: str | None = None,
    **options: Any,
) -> VAE:
    """Load a model, in evaluation mode, on the CPU; never unpickles.

    Args:
        model: The name of a bundled or trained model (see `names`), a checkpoint folder, the id
            "owner/name" of a model on the Hub (needs the extra `hub`), "FILE.py:FACTORY", a
            function without arguments in a file of yours, which is run and whose result is
            wrapped, or "package.module:Name", a `VAE` class of yours, which is imported; looked up
            in this order, but for the last two, which their form shows.
        weights: State for the module that the factory makes: safetensors, or a state dict of
            torch, of which nothing but tensors is read. For a class, its checkpoint's folder.
        revision: Commit, tag or branch on the Hub; give a commit for results that can be repeated,
            and to load what is in the cache without a network.
        options: Of `wrap`, for what a factory or the Hub gives.

    Raises:
        UnknownNameError: Neither a name nor a path; the nearest name is suggested. Also a recipe
            that nobody has trained here.
        CheckpointError: A path without a checkpoint of this library, or weights that do not fit.
        ModelError: The factory raised, or made no model.
        MissingExtraError: A Hub id without the extra.

    Examples:
        >>> import robustvae as rv
        >>> rv.load("digits-vae").image_shape
        (1, 8, 8)
    """
    if not isinstance(model, str | Path) or not str(model).strip("\0 "):
        raise DtypeError(f"model must be a name, a path or an id, got {model!r}")
    text = str(model)
    if factories.is_factory(text):
        return factories.load_factory(text, weights, **options)
    if PATH.fullmatch(text) and not Path(text).exists():
        return _of_class(text, weights, options)
    if weights is not None:
        raise ConfigError(f"weights= belongs to a factory, FILE.py:FACTORY, got the model {text!r}")
    if text in stored():
        return checkpoint.load(stored()[text])
    try:
        exists = Path(text).exists()
    except (OSError, ValueError):
        raise unknown("model", text, stored()) from None
    if exists:
        return _of_folder(Path(text), options)
    if isinstance(model, str) and hub.is_hub_id(text):
        return _of_folder(hub.hub_folder(text, revision), options)
    if isinstance(model, Path) or "/" in text or "\\" in text:
        return checkpoint.load(text)
    if text in recipe_names():
        raise UnknownNameError(f"{text} is {card(text)['status']}: robustvae zoo train {text}")
    raise unknown("model", text, stored())


def _of_class(path: str, weights: str | Path | None, options: dict[str, Any]) -> VAE:
    """The model of a class in an importable module, with the weights of a checkpoint folder."""
    kind = lookup("model", path)  # imported because the user named it
    if weights is None:
        raise ConfigError(f"the class {path} needs a checkpoint's folder: give it as the weights")
    vae = _of_folder(Path(weights), options)
    if type(vae) is not kind:
        raise CheckpointError(f"{weights} must hold a {path}, got a {type(vae).__name__}")
    return vae


def _of_folder(folder: Path, options: dict[str, Any]) -> VAE:
    """Our own checkpoint, or what diffusers or pythae saved there."""
    if factories.is_foreign_folder(folder):
        return factories.load_foreign(folder, **options)
    return checkpoint.load(folder)


@checked()
def trained_on(model: str | Path) -> str | None:
    """The data set that a model's card names, or None where it names none."""
    path = stored().get(str(model), Path(model))
    if not (path / checkpoint.CONFIG).is_file():
        return None
    data_name = checkpoint.read_config(path)["card"].get("data")
    return data_name if isinstance(data_name, str) else None


def _models_in(place: Path | None) -> dict[str, Path]:
    if place is None or not place.is_dir():
        return {}
    _finish(place)
    return {part.name: part for part in place.iterdir() if (part / checkpoint.CONFIG).is_file()}


def _finish(place: Path) -> None:
    """Finish what killed processes were writing into the folders of a zoo."""
    for mark in list(place.glob(f"*/{MARKS}")):
        finish_switch(mark.parent)


def _place(name: str) -> Path:
    place = folder()
    if place is None:
        raise StorageError(f"no folder for trained models: set {ENVIRONMENT}, or name one to write")
    return place / name


def _complete(recipe: Recipe, run: Path) -> bool:
    """Whether a run folder holds what the recipe makes, to its last epoch."""
    if not (run / checkpoint.CONFIG).is_file():
        return False
    config = checkpoint.read_config(run)
    expected = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "data": recipe.data.name,
        "epochs": recipe.training.epochs,
    }
    options = {} if recipe.model is None else recipe.model.options
    return all(config["card"].get(key) == value for key, value in expected.items()) and all(
        config["options"].get(key) == value for key, value in options.items()
    )
