"""The commands as typer sees them: a file each, imported when its command is called."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from robustvae.cli.common import check_command, from_options
from robustvae.cli.entry import DONE, WRONG_USE, print_version

# Files of this folder that hold no command.
_HELPERS = ("__init__", "common", "entry", "listing", "parser", "printing")


def parse(words: list[str]) -> Any:
    """Call the command that the words name; returns its exit code, or None."""
    try:
        command = typer.main.get_command(app)
        if len(words) == 1 and words[0] in command_names() and _has_commands(words[0]):
            # The help, and a code that says that nothing was done; click before 8.2 returns 0.
            command.main(args=[*words, "--help"], prog_name="robustvae", standalone_mode=False)
            return WRONG_USE
        return command.main(args=words, prog_name="robustvae", standalone_mode=False)
    except typer.Abort:  # typer's word for Ctrl-C while it asked something
        raise KeyboardInterrupt from None


def command_names() -> list[str]:
    """Names of all commands: the files of this folder, sorted."""
    return sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _HELPERS
    )


def _has_commands(command: str) -> bool:
    return hasattr(importlib.import_module(f"robustvae.cli.{command}"), "app")


def summary(command: str) -> str:
    """What a command does: the first line of its file, read without importing it."""
    with open(Path(__file__).with_name(f"{command}.py"), encoding="utf-8") as file:
        return file.readline().strip().strip('"').strip()


class _Commands(TyperGroup):
    """The commands, each imported when it is called and listed by its file's first line."""

    def list_commands(self, ctx: Any) -> list[str]:
        return command_names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in command_names():
            return None
        module = importlib.import_module(f"robustvae.cli.{cmd_name}")
        several = getattr(module, "app", None)  # a command that has commands of its own
        if several is None:
            several = typer.Typer(add_completion=False, rich_markup_mode=None)
            several.command(cmd_name)(from_options(module.run))
        return typer.main.get_command(several)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary(name)) for name in command_names()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        check_command(self, ctx, args)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="robustvae",
    cls=_Commands,
    help="Train, attack, defend, certify and audit variational autoencoders.\n\n"
    "Start with `robustvae audit`: it needs no arguments, no data and no network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich would double the time of --help
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print_version()
        raise typer.Exit(DONE)
