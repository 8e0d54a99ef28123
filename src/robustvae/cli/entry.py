"""The entry of the command line: exit codes, one-line errors, and what answers at once."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

from robustvae import __version__
from robustvae.errors import ConfigError, RobustVAEError, single_line

DONE, FAILED, WRONG_USE = 0, 1, 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; the console script's entry."""
    # On busy cores OpenMP's spinning threads slow small networks many times over; it is read once,
    # when torch is imported, which no command has done yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with _termination_as_interrupt(), _warnings_as_lines():
            code = _call(words)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else DONE
    except RobustVAEError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        _complain("interrupted; what is finished is stored: run it again and it goes on")
        return INTERRUPTED
    except SystemExit as error:  # the command line itself returns its codes
        return _complain(f"code that was called ended the process by sys.exit({error.code!r})")
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
    if any("\0" in word for word in words):  # no shell can pass one, a caller in Python can
        raise ConfigError("arguments hold no null character; got one: leave it out")
    # The import of typer costs 20 ms and its reading of the first option, through pydantic, 50 ms
    # more: what shall answer at once goes past it. typer knows both too, for help and other uses.
    if words == ["--version"]:
        return print_version()
    if words[:1] == ["list"] and len(words) < 3 and not "".join(words[1:]).startswith("-"):
        return importlib.import_module("robustvae.cli.listing").print_members(*words[1:])
    parse = importlib.import_module("robustvae.cli.parser").parse
    if not words:  # the help, and a code that tells a script that nothing was done
        parse(["--help"])
        return WRONG_USE
    return parse(words)


def print_version() -> None:
    """Print name and version."""
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


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Warnings of other packages are one line each, not their source as well."""
    before = warnings.showwarning
    warnings.showwarning = _note
    try:
        yield
    finally:
        warnings.showwarning = before


def _note(message: object, *_: object, **__: object) -> None:
    print(f"note: {single_line(message)}", file=sys.stderr)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
