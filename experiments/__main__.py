"""The one command of everything that makes a number."""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import re
import sys
from pathlib import Path

import torch

from experiments import ledger
from experiments.harness import Unfinished, combine, load_items
from experiments.harness.drawing import draw, drawings
from experiments.harness.item import ROOT, SIZES, Item
from experiments.harness.rows import Result
from experiments.harness.store import IDENTITY, RESULT, Store
from robustvae.display import Lines
from robustvae.errors import RobustVAEError, UnknownNameError, unknown
from robustvae.records import write_files

DONE, WRONG_USE, UNFINISHED, INTERRUPTED = 0, 2, 3, 130


def main(words: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 wrong use, 3 not finished."""
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    # argparse takes a list of words in one place only: fields behind an option are left over.
    if not hasattr(options, "field") or any(word.startswith("-") for word in rest):
        parser.parse_args(words)
    elif rest:
        options.field += rest
    torch.set_num_threads(1)  # two threads on two busy cores are slower, and not repeatable
    try:
        status: int = options.call(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # as of `| head`: parts that are finished are kept
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNFINISHED
    except RobustVAEError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        print("interrupted: the same command goes on with what is finished", file=sys.stderr)
        return INTERRUPTED
    except Unfinished as error:
        print(f"out of time before {error}: the same command goes on from here", file=sys.stderr)
        return UNFINISHED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(required=True)

    def command(name: str, call: object, about: str) -> argparse.ArgumentParser:
        part = commands.add_parser(name, help=about, description=about)
        part.set_defaults(call=call)
        return part

    listed = command("list", _list, "print every item, or those whose name matches")
    listed.add_argument("pattern", nargs="?", default="*")
    run = command("run", _run, "run items, or go on with them")
    run.add_argument("item", help="paper/item, or a pattern such as 'kuzina2022/*'")
    run.add_argument("--minutes", type=float, default=math.inf, help="begin no part after these")
    run.add_argument("--seeds", type=int, default=1, help="that many, from --seed on, and combine")
    run.add_argument("--out", type=Path, help="folder for NAME.json and NAME.md")
    run.add_argument("--name", help="of the files in --out, by default the item's own")
    table = command("table", _table, "print the table of a finished run")
    table.add_argument("item", help="paper/item")
    table.add_argument("--format", choices=("markdown", "csv", "json"), default="markdown")
    for part in (run, table):
        part.add_argument("field", nargs="*", help="field=value of the spec")
        part.add_argument("--size", choices=SIZES, default="laptop")
        part.add_argument("--seed", type=int, default=0)
    pictures = command("draw", _draw, "draw the pictures of stored rows, or those that match")
    pictures.add_argument("pattern", nargs="?", default="*", help="of their files' names")
    pictures.add_argument("--out", type=Path, default=Path("docs/img"), help="default: docs/img")
    totals = command("ledger", _ledger, "print the sums of the papers' cells beside ours")
    totals.add_argument("--write", action="store_true", help="build it anew, and its page")
    status = command("status", _status, "print which runs are finished or begun")
    for part in (run, table, status):
        part.add_argument("--store", type=Path, default=ROOT, help=f"default: {ROOT}")
    return parser


def chosen(pattern: str) -> list[Item]:
    """The items whose names match.

    Raises:
        UnknownNameError: None does.
    """
    items = load_items()
    names = [name for name in items if fnmatch.fnmatch(name, pattern)]
    if not names:
        raise unknown("item", pattern, items)
    return [items[name] for name in names]


def _list(options: argparse.Namespace) -> int:
    for found in chosen(options.pattern):
        sizes = ", ".join(found.sizes)
        print(f"{found.name:32} {found.about} {found.source} ({sizes})".replace("  (", " ("))
    return DONE


def _run(options: argparse.Namespace) -> int:
    items = chosen(options.item)
    for found in items:
        spec = found.spec(options.size, _fields(options.field))
        results = []
        for seed in range(options.seed, options.seed + options.seeds):
            results.append(
                found.run(
                    spec,
                    size=options.size,
                    seed=seed,
                    root=options.store,
                    minutes=options.minutes,
                    progress=Lines(every=0, stream=sys.stdout, task=found.name),
                )
            )
        result = combine(results)
        if options.out is not None:  # first: whoever reads the page may stop reading
            name = options.name or re.sub(r"[^a-z0-9]+", "-", found.name)
            result.write(options.out, name)
            if options.out.resolve() == ledger.RESULTS:
                path = ledger.RESULTS / f"{name}.md"
                page = ledger.with_figures(result.to_markdown(), path.name, ledger.read().figures)
                write_files({path: page.encode()})
        print(result.to_markdown())
    return DONE


def _table(options: argparse.Namespace) -> int:
    (found,) = chosen(options.item)
    spec = found.spec(options.size, _fields(options.field))
    path = found.folder(spec, options.size, options.seed, options.store) / RESULT
    if not path.is_file():
        raise UnknownNameError(
            f"no finished run of {found.name} at size {options.size}, seed {options.seed}: "
            f"`python -m experiments run {found.name} --size {options.size}` makes one"
        )
    result = Result.from_json(path.read_text("utf-8"))
    write = {"markdown": result.to_markdown, "csv": result.to_csv, "json": result.to_json}
    print(write[options.format](), end="")
    return DONE


def _draw(options: argparse.Namespace) -> int:
    every = {one.picture: one for one in drawings()}
    names = [name for name in every if fnmatch.fnmatch(name, options.pattern)]
    if not names:
        raise unknown("picture", options.pattern, every)
    for name in names:
        draw(every[name], options.out)
        print(options.out / name)
    return DONE


def _status(options: argparse.Namespace) -> int:
    for path in sorted((options.store / "parts").glob(f"*/*/*/{IDENTITY}")):
        asked = json.loads(path.read_text("utf-8"))
        state = "finished" if (path.parent / RESULT).is_file() else "begun"
        parts = Store(path.parent).done()
        print(f"{state:9} {parts:5} parts  {asked['item']} {asked['size']} seed {asked['seed']}")
    return DONE


def _ledger(options: argparse.Namespace) -> int:
    found = ledger.build() if options.write else ledger.read()
    if options.write:
        texts = {ledger.LEDGER: found.to_json(), **ledger.pages(found)}
        write_files({path: text.encode() for path, text in texts.items()})
    for name, counts in found.sums().items():
        shown = ", ".join(f"{verdict} {counts[verdict]}" for verdict in ledger.VERDICTS)
        print(f"{name:24} {sum(counts.values()):4}: {shown}")
    return DONE


def _fields(words: list[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    wrong = [key for key, sign, _ in pairs if not sign]
    if wrong:
        raise UnknownNameError(f"wanted field=value, got {wrong[0]!r}")
    return {key: value for key, _, value in pairs}


if __name__ == "__main__":
    sys.exit(main())
