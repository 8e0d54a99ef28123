"""The entry of the command line: which command is called, its exit code, its one-line errors.

Imports typer and nothing else that costs: a command's own file is read when it is called.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from robustvae import __version__
from robustvae.errors import RobustVAEError, single_line

DONE, FAILED, WRONG_USE = 0, 1, 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

# Files of this folder that are no commands.
_HELPERS = ("__init__", "common", "entry", "printing")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; the console script's entry."""
    # On busy cores OpenMP's spinning threads slow small networks many times over; it is read once,
    # when torch is imported, which no command has done yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with _termination_as_interrupt():
            code = _call(words)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else DONE
    except RobustVAEError as error:
        return _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted; what is finished is stored: run it again, an audit with --resume")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has left, as `head` does. What is still buffered goes nowhere, so
        # that Python's own flush at exit does not fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        return _complain(f"{error.strerror or error}: {error.filename or 'standard output'}")
    except Exception as error:
        if hasattr(error, "format_message"):  # the command line itself did not parse
            if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
                print(error.format_message())
                return WRONG_USE
            return _complain(f"{error.format_message()} (see robustvae --help)")
        if os.environ.get("ROBUSTVAE_DEBUG"):
            traceback.print_exc()
        return _complain(
            f"internal error, please report it: {type(error).__name__}: {error} "
            "(ROBUSTVAE_DEBUG=1 shows where)"
        )


def _call(words: list[str]) -> Any:
    # typer reads the value of every option through pydantic, 50 ms: what shall answer at once goes
    # past it. The option and the command exist in typer too, for help and for every other use.
    if words == ["--version"]:
        return _print_version()
    if words[:1] == ["list"] and len(words) < 3 and not "".join(words[1:]).startswith("-"):
        return importlib.import_module("robustvae.cli.list").run(*words[1:])
    command = typer.main.get_command(app)
    return command.main(args=words, prog_name="robustvae", standalone_mode=False)


def command_names() -> list[str]:
    """Names of all commands: the files of this folder, sorted."""
    return sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _HELPERS
    )


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
            several.command(cmd_name)(module.run)
        return typer.main.get_command(several)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary(name)) for name in command_names()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # Suggestions for a mistyped name are made from this mapping, which nothing else fills.
        self.commands = dict.fromkeys(command_names())  # type: ignore[assignment]
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
        _print_version()
        raise typer.Exit(DONE)


def _print_version() -> None:
    print(f"robustvae {__version__}")


def _complain(text: str) -> int:
    print(f"error: {single_line(text)}", file=sys.stderr)
    return WRONG_USE


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM, which batch queues and containers send, ends a command as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
