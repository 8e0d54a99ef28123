"""JSON and YAML from outside: read to a limited depth, and without shorthands that unfold."""

from __future__ import annotations

import errno
import json
import re
import stat
from pathlib import Path
from typing import Any

DEPTH = 100
"""Levels of nesting; our own files have fewer than ten."""

_TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def read_json(text: str | bytes) -> Any:
    """The content of a JSON text.

    Raises:
        ValueError: Not JSON, or nested too deep.

    Examples:
        >>> from robustvae.records.text import read_json
        >>> read_json('{"a": [1, 2]}')
        {'a': [1, 2]}
        >>> read_json("[" * 100_000)
        Traceback (most recent call last):
        ValueError: nested more than 100 levels deep
    """
    words = text.decode("utf-8") if isinstance(text, bytes) else text
    depth = 0
    # brackets alone say the depth, unless there are few of them anyway
    for match in _TOKENS.finditer(words) if _may_be_deep(words) else ():
        sign = match[0]
        if sign in "[{":
            depth += 1
            if depth > DEPTH:
                raise ValueError(f"nested more than {DEPTH} levels deep")
        elif sign in "]}":
            depth -= 1
    return json.loads(words)


def _may_be_deep(text: str) -> bool:
    return "[" * 3 in text or "{" * 2 in text or text.count("[") + text.count("{") > DEPTH


def read_text(path: Path) -> str:
    """The text of a regular file, UTF-8.

    Raises:
        OSError: Missing, or something else: a pipe that nobody writes into never ends.
        ValueError: Not UTF-8.

    Examples:
        >>> from pathlib import Path
        >>> from robustvae.records.text import read_text
        >>> read_text(Path("/dev/null"))
        Traceback (most recent call last):
        OSError: [Errno 22] it must be a regular file: '/dev/null'
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it must be a regular file", str(path))
    return path.read_text(encoding="utf-8")


def reason(error: Exception) -> str:
    """Why a file could not be read, in a few words and without its place.

    Examples:
        >>> from robustvae.records.text import reason
        >>> reason(FileNotFoundError(2, "No such file or directory", "/a"))
        'No such file or directory'
    """
    words = error.strerror if isinstance(error, OSError) else None
    return words or " ".join(str(error).split())


def read_yaml(text: str) -> Any:
    """The content of a YAML text, of plain values only.

    Raises:
        ValueError: Not YAML, nested too deep, or with aliases, of which few unfold to many.

    Examples:
        >>> from robustvae.records.text import read_yaml
        >>> read_yaml("a: [1, 2]")
        {'a': [1, 2]}
    """
    import yaml  # a package that records without plans do not need

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("an alias (*name) is not read: write the value out")
            self.depth += 1
            if self.depth > DEPTH:
                raise ValueError(f"nested more than {DEPTH} levels deep")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("nested too deep") from None
