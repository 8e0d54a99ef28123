"""The command line: `robustvae audit`, `train`, `evaluate`, `certify`, `design`, `zoo` and others.

Every user error is one line on standard error and exit code 2; a requirement that failed is 1.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import platform
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from robustvae import __version__
from robustvae.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DtypeError,
    RobustVAEError,
    check_choice,
)

DONE, FAILED, WRONG_USE = 0, 1, 2
INTERRUPTED = 130  # what typer makes of Ctrl-C
REQUIREMENT = re.compile(r"^\s*(?P<key>.+?)\s*(?P<sign>>=|<=)\s*(?P<bound>[-+0-9.eE]+)\s*$")

app = typer.Typer(
    name="robustvae",
    help="Train, attack, defend, certify and audit variational autoencoders.\n\n"
    "Start with `robustvae audit`: it needs no arguments, no data and no network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
zoo_app = typer.Typer(help="Bundled models, and those of the recipes.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")

Model = Annotated[
    str,
    typer.Argument(
        help="A name (see `robustvae zoo list`), a checkpoint folder, or owner/name on the Hub."
    ),
]
Data = Annotated[
    str | None,
    typer.Option(help="Data set; by default the one that the model was trained on."),
]
Split = Annotated[str, typer.Option(help="Which part of the data: test or train.")]
Seed = Annotated[int, typer.Option(help="Decides every random number.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; the console script's entry."""
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="robustvae", standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else DONE
    except RobustVAEError as error:
        return _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return _complain(
            "interrupted; what was finished is kept: run it again, an audit with --resume"
        )
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if hasattr(error, "format_message"):  # the command line itself did not parse
            if not error.format_message():  # no arguments: the help was printed
                return WRONG_USE
            return _complain(f"{error.format_message()} (see robustvae --help)")
        if os.environ.get("ROBUSTVAE_DEBUG"):
            traceback.print_exc()
        return _complain(
            f"internal error, please report it: {type(error).__name__}: {error} "
            "(ROBUSTVAE_DEBUG=1 shows where)"
        )


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"robustvae {__version__}")
        raise typer.Exit(DONE)


@app.command()
def audit(
    model: Model = "digits-vae",
    data: Data = None,
    split: Split = "test",
    plan: Annotated[
        str, typer.Option(help="quick, standard, thorough, or a YAML file of your own.")
    ] = "quick",
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("out"),
    seed: Seed = 0,
    device: Device = "cpu",
    workers: Annotated[int, typer.Option(help="Processes; 1 until campaigns exist.")] = 1,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the shards an interrupted run left in --out."),
    ] = False,
    require: Annotated[
        list[str] | None,
        typer.Option(
            help="Exit with 1 unless this holds: a check's name, or a key of the summary with a "
            "bound on its mean, such as 'certified>=0.1'. May be repeated."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Attack, defend, estimate and certify a model, and write the report.

    Writes report.html, record.json and rows.parquet (or rows.jsonl) into --out.

    Examples:

        robustvae audit

        robustvae audit digits-lipschitz-vae --plan standard --out audits/lipschitz

        robustvae audit runs/mine --data mnist --require sandwich --require 'probability>=0.9'
    """
    if workers != 1:
        raise ConfigError(f"--workers takes 1 only until campaigns exist, got {workers}")
    from robustvae import auditing, report
    from robustvae.defenses import Victim
    from robustvae.records import check_folder
    from robustvae.report.terminal import table

    chosen = auditing.read_plan(plan)
    wanted = [_requirement(text, chosen) for text in require or []]
    vae = _model(model, device)
    images = _images(model, data, split)
    check_folder(out)
    with _progress(quiet) as progress:
        record = auditing.audit(
            Victim(vae),
            images,
            chosen,
            seed=seed,
            name=Path(model).name,
            keep=out / ".shards",
            resume=resume,
            progress=progress,
        )
    report.write(record, out)
    auditing.forget_shards(out / ".shards")
    console = Console(stderr=False)
    console.print(table(record))
    for sentence in record.proved:
        console.print(sentence, highlight=False, markup=False)
    console.print(f"report: {out / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
    failures = [reason for need in wanted if (reason := _unmet(need, record)) is not None]
    for reason in failures:
        print(f"required, and not so: {reason}", file=sys.stderr)
    if failures:
        raise typer.Exit(FAILED)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A bundled recipe's name, or a YAML file.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run; runs/RECIPE by default.")
    ] = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Train a model by a recipe; run again, it goes on where it was stopped.

    A recipe names the model, the data, the objective and the schedule; unknown keys are refused.

    Examples:

        robustvae train digits-vae

        robustvae train my-recipe.yaml --out runs/mine
    """
    from robustvae import zoo
    from robustvae.training import Recipe, train_recipe

    folder, read = out or Path("runs") / Path(recipe).stem, Recipe.read(recipe)
    start = None if read.start is None else zoo.load(read.start)
    train_recipe(read, folder, start=start, device=device, progress=False if quiet else None)
    print(f"checkpoint: {folder}")


@app.command()
def certify(
    model: Model = "digits-lipschitz-vae",
    data: Data = None,
    split: Split = "test",
    inputs: Annotated[int, typer.Option(min=1, help="Images, balanced over the classes.")] = 100,
    r: Annotated[float, typer.Option(help="Output distance tolerated, l2 in pixel units.")] = 1.0,
    m: Annotated[float, typer.Option(help="Probability asked for, in (0, 1).")] = 0.5,
    displacement: Annotated[str, typer.Option(help="centered, paired or full.")] = "centered",
    norm: Annotated[str, typer.Option(help="l2 or linf.")] = "l2",
    method: Annotated[
        list[str] | None,
        typer.Option(help="A bound to take instead of the guaranteed ones; may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the certificates as JSON.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Certify how far inputs may be pushed: radii that no attack can beat.

    A certificate of radius R says: no perturbation of norm below R brings the probability that the
    output stays within r down to m or below. Radius 0 means that nothing could be proved. Models
    that nothing constrains, and hierarchies, have certificates by the method neyman_pearson.

    Examples:

        robustvae certify

        robustvae certify digits-vae --method neyman_pearson --inputs 10

        robustvae certify digits-lipschitz-vae --r 1.5 --m 0.9 --displacement paired --out
        radii.json
    """
    import json

    import robustvae as rv
    from robustvae.records import check_folder, plain, write_text

    if out is not None:
        check_folder(out.parent)
    vae = _model(model, device)
    images = _images(model, data, split)
    chosen = images.choose(inputs, stratified=True, generator=rv.generator(seed))
    x = images.read(chosen).to(device=vae.device, dtype=vae.dtype)
    _fits(vae, images)
    generator = rv.generator(seed)
    certificate = rv.certify(
        vae,
        x,
        r=r,
        m=m,
        displacement=displacement,
        norm=norm,
        methods=method or None,
        generator=generator,
    )
    radii = sorted(certificate.radius.tolist())
    if out is not None:
        content = {
            "model": model,
            "data": images.name,
            "r": r,
            "m": m,
            "inputs": chosen.tolist(),
            **plain(certificate),
        }
        write_text(out, json.dumps(content, indent=1, sort_keys=True) + "\n")
    table = Table(title=f"{Path(model).name} on {images.name} ({images.split}), {inputs} inputs")
    for heading in ("share certified", "least", "median", "mean", "greatest"):
        table.add_column(heading, justify="right")
    share = sum(radius > 0 for radius in radii) / len(radii)
    values = (radii[0], radii[(len(radii) - 1) // 2], sum(radii) / len(radii), radii[-1])
    table.add_row(f"{math.floor(share * 100)} %", *(_floored(value) for value in values))
    console = Console()
    console.print(table)
    if not quiet:
        kind = f"{certificate.kind}, {displacement}, {norm}, r = {r:g}, m = {m:g}"
        console.print(f"kind: {kind}", highlight=False, markup=False)
        for name, found in certificate.by_method.items():
            mean = _floored(float(found.mean()))
            console.print(f"mean by {name}: {mean}", highlight=False, markup=False)
        for assumption in certificate.assumptions:
            console.print(f"rests on: {assumption}", highlight=False, markup=False)
    if out is not None:
        console.print(f"written: {out}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def design(
    margin: Annotated[float, typer.Option(help="Certified margin wanted, l2 in pixel units.")],
    r: Annotated[float, typer.Option(help="Output distance tolerated, l2 in pixel units.")],
    m: Annotated[float, typer.Option(help="Probability asked for, in (0, 1).")] = 0.5,
    displacement: Annotated[str, typer.Option(help="centered, paired or full.")] = "centered",
    latent: Annotated[int, typer.Option(min=1, help="Dimension of the latent.")] = 10,
    stddev: Annotated[float, typer.Option(help="The fixed sigma of the encoder.")] = 0.1,
    ratio: Annotated[float, typer.Option(help="Encoder's constant over the decoder's.")] = 1.0,
    likelihood: Annotated[str, typer.Option(help="As of lipschitz-vae.")] = "continuous_bernoulli",
    recipe: Annotated[Path | None, typer.Option(help="Write a recipe for it here, YAML.")] = None,
    data: Annotated[str, typer.Option(help="Data set of the recipe.")] = "mnist",
    epochs: Annotated[int, typer.Option(min=1, help="Of the recipe.")] = 30,
) -> None:
    """Which Lipschitz constants guarantee a margin for every input, before any training.

    Examples:

        robustvae design --margin 0.3 --r 8

        robustvae design --margin 0.3 --r 8 --recipe mine.yaml

        robustvae train mine.yaml --out runs/mine

        robustvae certify runs/mine --r 8 --data mnist
    """
    from robustvae.certificates import design as designed

    found = designed(
        margin,
        r=r,
        m=m,
        displacement=displacement,
        latent=latent,
        stddev=stddev,
        ratio=ratio,
        likelihood=likelihood,
    )
    table = Table(title=f"margin {margin:g} at r = {r:g}, m = {m:g}, {displacement}, l2")
    table.add_column("option of lipschitz-vae")
    table.add_column("at most", justify="right")
    table.add_row("encoder_lipschitz", _floored(found.encoder_lipschitz))
    table.add_row("decoder_lipschitz", _floored(found.decoder_lipschitz))
    table.add_row("stddev", f"{found.stddev:g}")
    table.add_row("latent", str(found.latent))
    table.add_row("certified for every input", _floored(found.margin))
    console = Console()
    console.print(table)
    if recipe is None:
        return
    import robustvae as rv
    from robustvae.records import write_text
    from robustvae.training import Recipe

    options = {
        "image_shape": list(rv.data.load(data, split="train").image_shape),
        "latent": found.latent,
        "encoder_lipschitz": math.floor(found.encoder_lipschitz * 1e6) / 1e6,
        "decoder_lipschitz": math.floor(found.decoder_lipschitz * 1e6) / 1e6,
        "stddev": found.stddev,
        "likelihood": found.likelihood,
    }
    content = {
        "name": recipe.stem,
        "about": f"Every input has a {displacement} margin of {margin:g} at r = {r:g}, m = {m:g}.",
        "data": {"name": data},
        "model": {"name": "lipschitz-vae", **options},
        "training": {"epochs": epochs, "batch_size": 128, "lr": 1e-3},
    }
    Recipe.model_validate(content)
    write_text(recipe, yaml.safe_dump(content, sort_keys=False))
    console.print(f"written: {recipe}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def rescore(
    folder: Annotated[Path, typer.Argument(help="Folder of stored adversarials.")],
    model: Annotated[
        str | None,
        typer.Option(help="Score with this model instead of the one stored beside them."),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Score stored adversarials again, from the images and the model alone.

    Exits with 1 where an image lies outside its ball, or the stored numbers are not what comes out.
    """
    from robustvae.attacks import rescore as score_again

    found = score_again(folder, None if model is None else _model(model, device))
    table = Table(title=f"{folder}: {found.manifest['attack']}")
    table.add_column("")
    table.add_column("recomputed", justify="right")
    inside = int(found.inside.sum())
    table.add_row("inside the ball and the box", f"{inside} of {len(found.inside)}")
    table.add_row("mean size", f"{float(found.size.mean()):.4g}")
    table.add_row("mean damage, l2 of the reconstructions", f"{float(found.damage.mean()):.4g}")
    table.add_row("mean symmetric KL, nats", f"{float(found.divergence.mean()):.4g}")
    table.add_row("weights are those of the manifest", "yes" if found.same_model else "no")
    table.add_row("size and damage are the stored ones", "yes" if found.agrees else "no")
    Console().print(table)
    if inside < len(found.inside) or (model is None and not (found.agrees and found.same_model)):
        raise typer.Exit(FAILED)


@zoo_app.command("list")
def zoo_list() -> None:
    """All models: bundled ones, and those of the recipes, trained or not yet."""
    from robustvae import zoo

    table = Table(title="models that rv.load takes by name")
    table.add_column("name", no_wrap=True)
    for heading in ("data", "epochs", "from", "-log p(x), nats"):
        table.add_column(heading)
    cards = {name: zoo.card(name) for name in zoo.names()}
    waiting = [name for name, card in cards.items() if card["status"] == zoo.NOT_TRAINED]
    for name, card in cards.items():
        if name not in waiting:
            place = "the package" if name in zoo.bundled() else str(zoo.folder())
            place = "no weights kept" if card["status"] == zoo.NOT_KEPT else place
            likelihood = _short(card["metrics"].get("nll", ""))
            table.add_row(name, card["data"], str(card["epochs"]), place, likelihood)
    console = Console()
    console.print(table)
    console.print("All that was measured on one: robustvae zoo show NAME")
    if waiting:
        console.print(f"Not yet trained (robustvae zoo train NAME): {', '.join(waiting)}")


@zoo_app.command("show")
def zoo_show(name: Annotated[str, typer.Argument(help="Of a model; see `zoo list`.")]) -> None:
    """The card of one model, with all that was measured on what is stored."""
    from robustvae import zoo

    card = zoo.card(name)
    facts = Table(show_header=False, title=name)
    for key, value in card.items():
        if key != "metrics":
            facts.add_row(key, _short(value))
    Console().print(facts)
    found = None if card["status"] == zoo.NOT_TRAINED else zoo.evaluation(name)
    if found is not None:
        Console().print(_measures(found))
        return
    metrics = Table(show_header=False)
    for key, value in card["metrics"].items():
        metrics.add_row(key, _short(value))
    Console().print(metrics)


@zoo_app.command("train")
def zoo_train(
    name: Annotated[str, typer.Argument(help="Of a recipe; see `zoo list`.")],
    run: Annotated[
        Path | None, typer.Option(help="Folder of the training run; runs/NAME by default.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the model; NAME in the zoo by default.")
    ] = None,
    inputs: Annotated[int, typer.Option(min=2, help="Test images for the measures.")] = 2000,
    draws: Annotated[int, typer.Option(min=1, help="Latents for each likelihood.")] = 1000,
    continuous: Annotated[
        bool, typer.Option("--continuous", help="Score logits as continuous Bernoulli's, too.")
    ] = False,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Train a model by its recipe, measure what is stored, and store it in the zoo.

    A run that was stopped goes on; one that is complete is measured and stored.

    Examples:

        robustvae zoo train mnist-conv28

        robustvae zoo train mnist-conv28 --run runs/elsewhere --inputs 500
    """
    from robustvae import zoo

    def say(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    place = zoo.train(
        name,
        run=run,
        out=out,
        inputs=inputs,
        draws=draws,
        continuous=continuous,
        device=None if device == "cpu" else device,
        progress=None if quiet else say,
    )
    print(f"model: {place}")


@zoo_app.command("table")
def zoo_table(
    out: Annotated[Path | None, typer.Option(help="Write the page here, too.")] = None,
) -> None:
    """What was measured on the stored models, beside the papers' numbers, in markdown."""
    from robustvae.records import write_text
    from robustvae.studies.zoo_table import page

    text = page()
    if out is not None:
        write_text(out, text)
    print(text, end="")


@app.command()
def evaluate(
    model: Model = "digits-vae",
    data: Data = None,
    inputs: Annotated[int, typer.Option(min=2, help="Test images, balanced.")] = 1000,
    draws: Annotated[int, typer.Option(min=1, help="Latents for each likelihood.")] = 100,
    part: Annotated[
        list[str] | None, typer.Option(help="Measure this part only; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the measures as JSON.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Measure a model: likelihood, reconstruction, latents, probe, samples, slopes, weights.

    Examples:

        robustvae evaluate

        robustvae evaluate runs/mine --part likelihood --draws 1000
    """
    import json

    import robustvae as rv
    from robustvae.records import check_folder, plain, write_text

    if out is not None:
        check_folder(out.parent)
    vae = _model(model, device)
    found = rv.evaluate(
        vae,
        _images(model, data, "test"),
        train=_images(model, data, "train"),
        inputs=inputs,
        draws=draws,
        parts=part,
        seed=seed,
        progress=None if quiet else lambda what: print(what, file=sys.stderr, flush=True),
    )
    Console().print(_measures(found))
    if out is not None:
        write_text(out, json.dumps(plain(found), indent=1, sort_keys=True) + "\n")


@app.command()
def doctor() -> None:
    """Look at this installation: versions, devices, extras, data sets, bundled models."""
    import numpy
    import torch

    from robustvae import data, zoo

    table = Table(show_header=False, title=f"robustvae {__version__}")
    table.add_row("python", f"{platform.python_version()} on {platform.system()}")
    table.add_row("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    table.add_row("numpy", numpy.__version__)
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    table.add_row("devices", ", ".join(devices))
    for extra, module in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        table.add_row(
            f"extra {extra}", "installed" if there else f"missing: pip install 'robustvae[{extra}]'"
        )
    seen: set[str] = set()
    for name in data.names():
        if name in seen:
            continue
        try:
            images = data.load(name, split="test")
            seen.add(images.name)
            table.add_row(f"data {images.name}", f"{len(images)} test images")
        except DataError as error:
            table.add_row(f"data {name}", str(error))
    broken = False
    for name in zoo.bundled():
        try:
            zoo.load(name)
            table.add_row(f"model {name}", "loads")
        except CheckpointError as error:
            broken = True
            table.add_row(f"model {name}", str(error))
    Console().print(table)
    if broken:
        raise typer.Exit(FAILED)


EXTRAS = {
    "train": "lightning_fabric",
    "hub": "huggingface_hub",
    "metrics": "torchmetrics",
    "results": "pyarrow",
    "plots": "matplotlib",
}


def _measures(found: Any) -> Table:
    facts = found.facts
    title = f"{facts['data']} ({facts['split']}), {facts['inputs']} images, seed {facts['seed']}"
    table = Table(title=title)
    for heading in ("", "value", "stderr", "n", "unit"):
        table.add_column(heading, justify="left" if heading in ("", "unit") else "right")
    for measure in found.measures:
        stderr = "" if measure.stderr is None else f"{measure.stderr:.2g}"
        count = str(measure.n) if measure.n else ""
        table.add_row(escape(measure.label), measure.shown, stderr, count, measure.unit)
    for what, why in found.absent.items():
        table.add_row(f"not measured: {what}", "", "", "", why)
    return table


def _complain(text: str) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return WRONG_USE


def _model(model: str, device: str) -> Any:
    import torch

    from robustvae import zoo

    vae = zoo.load(model)
    try:
        torch.ones(1, device=device).item()
        return vae.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        line = " ".join(str(error).split())[:120]
        raise ConfigError(f"device {device!r} cannot be used here: {line}") from None


def _images(model: str, data: str | None, split: str) -> Any:
    import robustvae.data
    from robustvae import zoo

    if data is None:
        data = zoo.trained_on(model) or "digits"
    return robustvae.data.load(data, split=split)


def _fits(vae: Any, images: Any) -> None:
    if images.image_shape != tuple(vae.image_shape):
        raise DtypeError(
            f"the model reads images of {tuple(vae.image_shape)}, "
            f"{images.name} has {images.image_shape}: name another set with --data"
        )


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("audit")
        yield lambda done, total, what: bar.update(
            task, completed=done, total=total, description=what
        )


def _requirement(text: str, plan: Any) -> tuple[str, str | None, float]:
    from robustvae.auditing import check_names, summary_keys

    found = REQUIREMENT.match(text)
    if found is None:
        check_choice("check", text, check_names(plan))
        return text, None, math.nan
    check_choice("key of the summary", found["key"], summary_keys(plan))
    try:
        return found["key"], found["sign"], float(found["bound"])
    except ValueError:
        raise ConfigError(f"--require {text!r} has no number after {found['sign']}") from None


def _unmet(need: tuple[str, str | None, float], record: Any) -> str | None:
    key, sign, bound = need
    if sign is None:
        check = next(check for check in record.checks if check["name"] == key)
        return None if check["passed"] else f"{key}: {check['value']}"
    means = {entry["key"]: float(entry["mean"]) for entry in record.summary}
    if key not in means:
        return f"{key} {sign} {bound:g}, it was not measured"
    met = means[key] >= bound if sign == ">=" else means[key] <= bound
    return None if met else f"{key} {sign} {bound:g}, it is {means[key]:.4g}"


def _floored(radius: float) -> str:
    return f"{math.floor(radius * 1e4) / 1e4:.4f}"


def _short(value: Any) -> str:
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


if __name__ == "__main__":
    sys.exit(main())
