"""What a diagnosis is made of."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Item:
    """One thing that was looked at.

    Attributes:
        name: Its snake_case id.
        passed: Whether it is as it should be; None where it could not be judged.
        message: What was seen, in a sentence.
        remedy: What to do about it; empty where nothing is to be done.
        fixed: Whether the library takes care of it by itself.
    """

    name: str
    passed: bool | None
    message: str
    remedy: str = ""
    fixed: bool = False

    def __str__(self) -> str:
        sign = {True: "passed", False: "FIXED" if self.fixed else "FAILED", None: "not judged"}
        remedy = f" -> {self.remedy}" if self.remedy and self.passed is not True else ""
        return f"{sign[self.passed]:10} {self.name}: {self.message}{remedy}"


@final
@dataclass(frozen=True)
class Diagnosis:
    """What `check` saw.

    Attributes:
        items: In the order in which they were looked at.
        subject: What was looked at, in words.

    Examples:
        >>> from robustvae.models.items import Diagnosis, Item
        >>> print(Diagnosis((Item("finite_outputs", True, "all outputs are finite"),), "a model"))
        diagnosis of a model: passed (1 item)
        passed     finite_outputs: all outputs are finite
    """

    items: tuple[Item, ...]
    subject: str = "the model"

    @property
    def passed(self) -> bool:
        """Whether nothing failed that the library does not take care of."""
        return all(item.passed is not False or item.fixed for item in self.items)

    @property
    def failed(self) -> tuple[Item, ...]:
        """What failed and is not taken care of."""
        return tuple(item for item in self.items if item.passed is False and not item.fixed)

    def __getitem__(self, name: str) -> Item:
        """The item of a name.

        Raises:
            KeyError: There is none.
        """
        for item in self.items:
            if item.name == name:
                return item
        raise KeyError(name)

    def __str__(self) -> str:
        verdict = "passed" if self.passed else f"{len(self.failed)} FAILED"
        count = f"{len(self.items)} item{'s' if len(self.items) != 1 else ''}"
        order = {False: 0, None: 1, True: 2}
        items = sorted(self.items, key=lambda item: order[item.passed])
        return "\n".join([f"diagnosis of {self.subject}: {verdict} ({count})", *map(str, items)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """The same as a table."""
        words = {True: "passed", False: "failed", None: "not judged"}
        rows = "".join(
            f"<tr><td>{html.escape(item.name)}</td>"
            f"<td>{'fixed' if item.fixed else words[item.passed]}</td>"
            f"<td>{html.escape(item.message)}</td><td>{html.escape(item.remedy)}</td></tr>"
            for item in self.items
        )
        head = "<tr><th>check</th><th></th><th>seen</th><th>remedy</th></tr>"
        verdict = "passed" if self.passed else f"{len(self.failed)} failed"
        return f"<p>{html.escape(self.subject)}: {verdict}</p><table>{head}{rows}</table>"
