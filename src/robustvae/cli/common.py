"""What commands share: the same options under the same names, models, data, progress."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, final

import typer
from typer.core import TyperGroup

from robustvae.display import Lines
from robustvae.errors import ConfigError, DtypeError, single_line, unknown

# The one model that every command takes by default: both ends of its bracket are visible.
DEFAULT_MODEL = "digits-lipschitz-vae"
_SHOWN = 5  # inputs that failed, by their reasons: the result holds all
_PAUSE = 10.0  # seconds between lines of progress in a log: news without a flood

Model = Annotated[
    str,
    typer.Argument(
        help="A name (see `robustvae zoo list`), a checkpoint folder, owner/name on the Hub, or "
        "FILE.py:FACTORY or package.module:Class for a model of your own."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Data set, or folder:PATH for images of your own; "
        "by default the set that the model was trained on."
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="State for the model of FILE.py:FACTORY: safetensors, or a .pt state dict. For the "
        "class package.module:Name: its checkpoint's folder."
    ),
]
Pixels = Annotated[
    str | None,
    typer.Option(
        help="What a model of your own reads, such as -1,1 or mean=0.5,std=0.25; images stay in "
        "[0, 1]."
    ),
]
Split = Annotated[str, typer.Option(help="Which part of the data: test or train.")]
Tolerance = Annotated[
    float | None, typer.Option("--r", help="Output distance tolerated, l2 in pixel units.")
]
Quantile = Annotated[float, typer.Option("--m", help="Probability asked for, in (0, 1).")]
Norm = Annotated[str, typer.Option(help="Norm of the perturbation: l2 or linf.")]
Displacement = Annotated[str, typer.Option(help="centered, paired or full.")]
Defense = Annotated[
    list[str] | None,
    typer.Option(
        help="How a latent is read off an input, such as robust-posterior:norm=linf,radius=0.2 "
        "(see `robustvae list defense`); may be repeated."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for the report.")]
OutFile = Annotated[Path | None, typer.Option(help="Also write the result here, as JSON.")]
Seed = Annotated[int, typer.Option(help="Decides every random number.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes that compute, each with one thread.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray", help="Compute on a Ray cluster: its address, auto, or local to start one here."
    ),
]
Executor = Annotated[
    str | None,
    typer.Option(
        help="Who computes, by its spec (see `robustvae list executor`), instead of --workers or "
        "--ray."
    ),
]
Logger = Annotated[
    str | None,
    typer.Option(
        help="Where the numbers go, too, such as jsonl:path=log.jsonl (see `robustvae list "
        "logger`)."
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on from what the run left in --out; so it does by default."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start anew, whatever lies in --out.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]


@dataclasses.dataclass(frozen=True)
class ModelAndData:
    """What most commands look at: a model and data; their own options follow these."""

    model: Model = DEFAULT_MODEL
    data: Data = None
    split: Split = "test"
    weights: Weights = None
    pixels: Pixels = None
    device: Device = "cpu"

    def load(self) -> tuple[Any, Any]:
        """The model on its device, and the images that it is to read."""
        vae = load_model(
            self.model, self.device, weights=self.weights, pixels=self.pixels, data=self.data
        )
        images = load_images(self.model, self.data, self.split, self.pixels)
        check_fit(vae, images)
        return vae, images


def check_command(group: Any, ctx: Any, words: list[str]) -> None:
    """Raise for the name of a command that a group lacks, in our words.

    What click says depends on its version, and before 8.2 it takes ":" for an option.

    Raises:
        UnknownNameError: A name that the group lacks.
    """
    if words[0] not in group.list_commands(ctx) and not words[0].startswith("-"):
        raise unknown("command", words[0], group.list_commands(ctx))


@final
class CommandGroup(TyperGroup):
    """A command that has commands of its own."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return name, command and the words after it."""
        check_command(self, ctx, args)
        return super().resolve_command(ctx, args)


def from_options(run: Callable[..., None]) -> Callable[..., None]:
    """A function that typer can read, of a command whose options are the fields of a dataclass.

    Args:
        run: `run(options: Options) -> None`; any other function is returned as it is.
    """
    kind = typing.get_type_hints(run).get("options")
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return run
    hints = typing.get_type_hints(kind, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty
            if field.default is dataclasses.MISSING
            else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(kind)
    ]

    def call(**values: Any) -> None:
        run(kind(**values))

    call.__doc__, call.__annotations__ = run.__doc__, hints
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def load_model(
    model: str,
    device: str = "cpu",
    *,
    weights: Path | None = None,
    pixels: str | None = None,
    data: str | None = None,
) -> Any:
    """The model of that name, folder, Hub id or FILE.py:FACTORY, on a device that computes."""
    from robustvae import zoo
    from robustvae.models.base import move

    settings = loading(model, weights=weights, pixels=pixels, data=data)
    return move(zoo.load(model, **settings), device)


def load_audited(
    folder: Path,
    model: str | None = None,
    device: str = "cpu",
    *,
    weights: Path | None = None,
    pixels: str | None = None,
) -> Any:
    """The model of a stored audit, by what the record says where nothing else is given.

    A model of FILE.py:FACTORY is shown the stored inputs.
    """
    from robustvae import report, zoo
    from robustvae.audit.store import read_adversarials
    from robustvae.errors import DataError
    from robustvae.models.base import move
    from robustvae.models.factories import is_factory
    from robustvae.registry import outside_names

    record = report.read(folder)
    name = model or record.model.source or record.model.name
    settings = loading(name, weights=weights, pixels=pixels)
    if is_factory(name):
        with contextlib.suppress(DataError):  # whoever reads the file next says what is wrong
            settings["fit_on"] = read_adversarials(folder)["x"][:8]
    # the record may be a stranger's: code that it names runs where the user names it too
    with contextlib.nullcontext() if model is not None else outside_names():
        return move(zoo.load(name, **settings), device)


def loading(
    model: str, *, weights: Path | None = None, pixels: str | None = None, data: str | None = None
) -> dict[str, Any]:
    """What `rv.load` takes beside the model, also in workers."""
    from robustvae.models.factories import is_factory

    settings: dict[str, Any] = {} if weights is None else {"weights": weights}
    if pixels is not None:
        settings["pixels"] = read_pixels(pixels)
    if is_factory(model) and data is not None:
        array = None if pixels is None else own_array(data)
        if array is None:
            settings["fit_on"] = load_images(model, data)[:8].x
        else:
            import torch

            settings["fit_on"] = torch.from_numpy(array[:8].astype("float32"))
    return settings


def own_array(data: str) -> Any:
    """The numbers of an .npy file that is in the model's own unit, mapped; None of all others."""
    import numpy as np

    path = Path(data.removeprefix("folder:")).expanduser()
    if path.suffix != ".npy" or not path.is_file():
        return None
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):  # whoever reads it as images says what is wrong
        return None
    if array.dtype.kind != "f" or array.ndim < 2 or not len(array):
        return None
    is_unit = array.ndim in (3, 4) and array.min() >= 0 and array.max() <= 1
    return None if is_unit else array


def load_images(
    model: str, data: str | None, split: str = "test", pixels: str | None = None
) -> Any:
    """The data set named, or else the one that the model's card names.

    An .npy file of numbers beyond [0, 1] is in the unit that `--pixels` states.
    """
    import robustvae.data
    from robustvae import zoo
    from robustvae.models.factories import is_factory
    from robustvae.registry import PATH

    if data is None and (is_factory(model) or PATH.fullmatch(model)):
        raise ConfigError(f"the data of {model} are not known: give --data FOLDER or a name")
    array = None if data is None or pixels is None else own_array(data)
    if array is not None:
        space = robustvae.data.InputSpace.of(read_pixels(pixels or ""), array.shape[1:])
        return robustvae.data.as_images(array, space=space, split=split, name=f"folder:{data}")
    if data is not None and Path(data).expanduser().exists():
        return robustvae.data.as_images(Path(data), split=split)
    if data is None:
        data = zoo.trained_on(model) or "digits"
    return robustvae.data.load(data, split=split)


def with_anomalies(images: Any, anomalous: str, split: str = "test") -> Any:
    """Normal inputs and anomalies as one set; classes of the anomalies stay apart."""
    import robustvae.data

    other = load_images("", anomalous, split)
    sets = {"normal": images}
    for label in other.y.unique().tolist() if other.classes else [None]:
        name = "anomalous" if label is None else other.class_name(label)
        sets[name if name != "normal" else "anomalous"] = (
            other if label is None else other[other.y == label]
        )
    return robustvae.data.joined(sets, name=f"{images.name} and {other.name}")


def read_pixels(text: str) -> Any:
    """What `--pixels` stands for: LOW,HIGH, or mean=M,std=S with one number for each channel."""
    try:
        if text.startswith("mean="):
            mean, std = text.removeprefix("mean=").split(",std=")
            return {
                key: [float(part) for part in numbers.split("/")]
                for key, numbers in (("mean", mean), ("std", std))
            }
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            "--pixels must be LOW,HIGH, such as -1,1, or a normalization, such as "
            f"mean=0.5,std=0.25 or mean=0.49/0.48/0.45,std=0.2/0.2/0.2, got {text!r}"
        ) from None
    return low, high


def build_victims(vae: Any, defenses: list[str] | None) -> dict[str, Any]:
    """The undefended model, and the model behind each of the defenses, by the defense's spec."""
    from robustvae.defenses import Victim
    from robustvae.registry import build

    victims = {"undefended": Victim(vae)}
    for spec in defenses or []:
        victims[spec] = Victim(vae, build("defense", spec))
    return victims


PARTS = ".parts"
"""Folder within --out that holds what is finished while a run is under way."""


def executor(workers: int | None, ray: str | None, spec: str | None = None) -> Any:
    """The spec of who computes."""
    if spec is not None:
        from robustvae.registry import build

        build("executor", spec)  # a spec that names none is refused now
        if not (workers is ray is None):
            raise ConfigError(
                "--executor says who computes, and so do --workers and --ray: give one of them; "
                "an executor takes its number as in --executor processes:workers=4"
            )
        return spec
    if ray is not None:
        address = None if ray == "local" else ray
        return {"name": "ray", "address": address, "workers": workers or 2}
    return "serial" if workers is None else {"name": "processes", "workers": workers}


@contextlib.contextmanager
def kept(folder: Path | None, vae: Any, facts: Any, *, fresh: bool) -> Iterator[Any]:
    """Within: the store of what a command has finished, in a folder that it has for itself.

    What was stored is removed at the end, unless the command fails or is stopped: then it goes on
    from there when it is called again.

    Args:
        folder: Where parts lie; None keeps none.
        vae: The model; of one without weights none are kept either.
        facts: All else that decides the parts.
        fresh: Whether what lies there is left unread.
    """
    import hashlib
    import json

    from robustvae.models.checkpoint import environment, weights_sha256
    from robustvae.records import Lock, Store, forget_parts, plain

    weights = weights_sha256(vae)
    if folder is None or weights is None:
        yield Store(None, "")
        return
    text = json.dumps([environment(vae), weights, plain(facts)], sort_keys=True)
    with Lock(folder):
        if fresh:
            forget_parts(folder)
        yield Store(folder, hashlib.sha256(text.encode()).hexdigest())
        forget_parts(folder)
    with contextlib.suppress(OSError):  # somebody else's files are in it
        folder.rmdir()


def check_room(out: Path | None, inputs: int, values: int = 0, vae: Any = None) -> None:
    """Raise where a disk has no room for a result and its parts, before anything is computed.

    Args:
        out: The file or folder of the result; None for none.
        inputs: How many there are, each with some numbers.
        values: Of one input, of which images are stored; 0 where none are.
        vae: A model that is stored beside them; None for none.
    """
    from robustvae.records import check_space

    if out is None:
        return
    # as JSON a third longer than they are; of the parts and the result, each beside the old one
    bytes_each = 2 * (1000 + 4 * values * 4)
    tensors = () if vae is None else vae.state_dict().values()
    model = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    check_space(out.parent, 2**16 + inputs * bytes_each + 2 * model)


def parts_beside(out: Path | None) -> Path | None:
    """The folder for the parts of a result that is one file."""
    return None if out is None else out.parent / f".{out.name}{PARTS}"


def facts_of(options: Any, x: Any) -> dict[str, Any]:
    """What decides the numbers of a command that looks at some inputs, for the key of its parts."""
    from robustvae.audit.store import tensor_sha256

    left_out = ("out", "fresh", "quiet")
    fields = {key: value for key, value in vars(options).items() if key not in left_out}
    return {**fields, "command": type(options).__module__, "x": tensor_sha256(x)}


def check_failures(failures: Mapping[str, Mapping[int, str]], count: int) -> None:
    """Say on standard error which inputs failed and why, and exit with 1 where any did.

    Args:
        failures: By the name of the victim, or of what was done, why inputs failed by their place.
        count: How many inputs there are.

    Raises:
        Exit: An input failed.
    """
    for name, reasons in failures.items():
        if reasons:
            say(f"{name}: {len(reasons)} of {count} inputs failed, and have no numbers")
        for place, reason in itertools.islice(reasons.items(), _SHOWN):
            say(f"  input {place + 1}: {reason}")
        if len(reasons) > _SHOWN:
            say(f"  and {len(reasons) - _SHOWN} more")
    from robustvae.cli.entry import FAILED

    if any(failures.values()):
        raise typer.Exit(FAILED)


def say(words: str) -> None:
    """Print a sentence on standard error."""
    from robustvae.cli.printing import show

    show(words, stderr=True)


def resumption(resume: bool, fresh: bool) -> bool | None:
    """Whether to go on: True and False where it was said, None where it was not."""
    if resume and fresh:
        raise ConfigError("--resume and --fresh say the opposite: give one of them")
    return True if resume else False if fresh else None


def check_fit(vae: Any, images: Any) -> None:
    """Raise unless the model reads images of this shape."""
    if images.image_shape != tuple(vae.image_shape):
        raise DtypeError(
            f"the model reads images of {tuple(vae.image_shape)}, "
            f"{images.name} has {images.image_shape}: name another set with --data"
        )


@contextlib.contextmanager
def progress(task: str, quiet: bool) -> Iterator[Any]:
    """A function of (number done, total, description); None if quiet.

    On a terminal it draws a bar; elsewhere, as in the log of a batch job, it prints a line from
    time to time, with the time that is left at the pace so far.
    """
    from robustvae.cli.printing import console

    screen = console(stderr=True)
    if quiet:
        yield None
    elif screen.is_terminal:
        with _bar(task, screen) as report:
            yield report
    else:
        yield Lines(every=_PAUSE, task=task)


@contextlib.contextmanager
def _bar(task: str, screen: Any) -> Iterator[Any]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, transient=True) as bar:
        task_id = bar.add_task(task)
        yield lambda done, total, what: bar.update(
            task_id, completed=done, total=total, description=single_line(what, 60)
        )


def show_evaluation(evaluation: Any) -> None:
    """Print what `rv.evaluate` measured."""
    from robustvae.cli.printing import show_table

    facts = evaluation.facts
    rows = [
        (
            measure.label,
            measure.shown,
            "" if measure.stderr is None else f"{measure.stderr:.2g}",
            str(measure.n) if measure.n else "",
            measure.unit,
        )
        for measure in evaluation.measures
    ]
    rows += [(f"not measured: {part}", "", "", "", why) for part, why in evaluation.absent.items()]
    show_table(
        rows,
        title=f"{facts['data']} ({facts['split']}), {facts['inputs']} images, seed {facts['seed']}",
        headings=("", "value", "stderr", "n", "unit"),
        numbers=(1, 2, 3),
    )


def show_comparison(table: Any) -> None:
    """Print audits side by side; of many rows the main numbers only."""
    from robustvae.cli.printing import show, show_table
    from robustvae.report.tables import MOST_COLUMNS

    is_short = len(table.rows) > MOST_COLUMNS
    headings, *lines = table.short_lines() if is_short else table.lines()
    numbers = range(len(table.names()) if is_short else 1, len(headings))
    show_table(lines, title=table.title, headings=headings, numbers=numbers)
    if is_short:
        show("Main numbers only: --out FILE and --json of `robustvae compare` hold all.")
