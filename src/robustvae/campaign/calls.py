"""Calls of one function as a job: an experiment cut into tasks."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from robustvae.audit.tasks import Bundle, Part, State, Task, Words
from robustvae.errors import ConfigError, DtypeError, check_type
from robustvae.records import plain
from robustvae.registry.members import PATH

_SPEC = "calls.json"


@final
class Calls:
    """Calls of a function with given arguments, each a task of its own.

    Args:
        function: "package.module:function"; it takes and returns JSON's own types, and draws from
            generators that its arguments decide.
        arguments: Of each call, by name.

    Raises:
        ConfigError: Not of that form.
        DtypeError: Arguments other than mappings.

    Examples:
        >>> from robustvae.audit import Run
        >>> from robustvae.campaign import Calls, Serial
        >>> job = Calls("math:hypot", [{"args": [3, 4]}, {"args": [6, 8]}])
        >>> Serial().run(job, Run()).parts["1"]["value"]
        10.0
    """

    bears_failure = True

    def __init__(self, function: str, arguments: Sequence[Mapping[str, Any]]) -> None:
        if not isinstance(function, str) or not PATH.fullmatch(function):
            raise ConfigError(f"function must be package.module:function, got {function!r}")
        check_type(arguments, "arguments", Sequence)
        for one in arguments:
            if not isinstance(one, Mapping):
                raise DtypeError(f"each of arguments must be a mapping, got {type(one).__name__}")
        self.function = function
        self.arguments = [plain(dict(one)) for one in arguments]
        text = json.dumps([function, self.arguments], sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()

    def tasks(self) -> list[Task]:
        """A task for each call, named by its number."""
        return [Task(str(i), {"arguments": one}) for i, one in enumerate(self.arguments)]

    def compute(self, task: Task, parts: Mapping[str, Part], state: State, say: Words) -> Part:
        """Call the function; a list under `args` stands for arguments without a name."""
        module, _, name = self.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        arguments = dict(task.fields["arguments"])
        say(f"{self.function} {task.key}")
        return {"value": plain(function(*arguments.pop("args", ()), **arguments))}

    def is_valid(self, task: Task, part: Any) -> bool:
        """Whether a stored part is one of a call."""
        return isinstance(part, dict) and "value" in part

    def needed(self, task: Task, parts: Mapping[str, Part]) -> dict[str, Part]:
        """Nothing: calls do not read each other's results."""
        return {}

    def singles(self, task: Task) -> list[Task]:
        """A call that fails is tried once more, by itself."""
        return [Task(f"{task.key}/again", task.fields)]

    def joined(self, task: Task, parts: Sequence[Part]) -> Part:
        """The result of the call that was made again."""
        return parts[0]

    def blank(self, task: Task, parts: Mapping[str, Part], reason: str) -> Part | None:
        """The reason in place of a value: the other calls go on."""
        return {"error": reason}

    def bundle(self) -> Bundle:
        """The function's name and the arguments."""
        content = {"function": self.function, "arguments": self.arguments}
        return Bundle("robustvae.campaign.calls:open_bundle", {_SPEC: json.dumps(content).encode()})


def open_bundle(folder: Path) -> Calls:
    """The job that a bundle holds."""
    return Calls(**json.loads((folder / _SPEC).read_text(encoding="utf-8")))
