"""The command line's form of a spec: `name:field=value,field=(name:field=value)`."""

from __future__ import annotations

import re
from typing import Any

from robustvae.arguments import checked
from robustvae.errors import ConfigError, DtypeError
from robustvae.registry.members import NAME, PATH, shortened

_WORD = re.compile(r"[^,()\[\]'\"]+")
_MOST_NESTED = 20  # far beyond any use; keeps hostile text from exhausting the stack


@checked()
def parse(text: str) -> dict[str, Any]:
    """The mapping that a spec on the command line stands for.

    The form is `name:field=value,field=value`. A value is a number, true, false, none, a word,
    text in quotes, a list in square brackets, or another spec or mapping in parentheses.

    Raises:
        ConfigError: Text that is not of this form; the place is named.

    Examples:
        >>> from robustvae.registry import parse
        >>> parse("input-noise:stddev=0.25,defense=(posterior-mode:steps=20)")
        {'name': 'input-noise', 'stddev': 0.25, 'defense': {'name': 'posterior-mode', 'steps': 20}}
    """
    reader = _Reader(text)
    spec = reader.spec()
    reader.end()
    return spec


def is_word(text: str) -> bool:
    """Whether a text stands for itself as a value; any other must be quoted.

    Examples:
        >>> from robustvae.registry import is_word
        >>> is_word("linf"), is_word("a, b"), is_word("12")
        (True, False, False)
    """
    return bool(_WORD.fullmatch(text)) and text == text.strip() and _scalar(text) == text


class _Reader:
    """A recursive descent over the command line's form of a spec."""

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise DtypeError(f"a spec must be text, got {shortened(text)}")
        self.text, self.place = text, 0
        self.depth = 0

    def fail(self, wanted: str) -> ConfigError:
        remainder = self.text[self.place : self.place + 20] or "the end"
        return ConfigError(
            f"spec {shortened(self.text)}: wanted {wanted} at {remainder!r}; "
            "write name:field=value,field=(name:field=value)"
        )

    def spec(self) -> dict[str, Any]:
        name = self.name()
        fields = self.fields() if self.take(":") else {}
        return {"name": name, **fields}

    def name(self) -> str:
        path = PATH.match(self.text, self.place)
        # `module:Name`, unless what follows the colon is the first field
        if path and self.text[path.end() : path.end() + 1] != "=":
            self.place = path.end()
            return path.group()
        match = NAME.match(self.text, self.place)
        if match is None:
            raise self.fail("a name")
        self.place = match.end()
        return match.group()

    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        while True:
            match = re.compile(r"\s*([A-Za-z_]\w*)\s*=").match(self.text, self.place)
            if match is None:
                raise self.fail("field=value")
            if match[1] in fields:
                raise self.fail(f"{match[1]} once only")
            self.place = match.end()
            fields[match[1]] = self.value()
            if not self.take(","):
                return fields

    def value(self) -> Any:
        self.depth += 1
        if self.depth > _MOST_NESTED:
            raise self.fail(f"at most {_MOST_NESTED} nested values")
        try:
            return self._value()
        finally:
            self.depth -= 1

    def _value(self) -> Any:
        if self.take("("):
            mapping = re.compile(r"\s*[A-Za-z_]\w*\s*=").match(self.text, self.place)
            inner = self.fields() if mapping else self.spec()
            if not self.take(")"):
                raise self.fail("a closing parenthesis")
            return inner
        if self.take("["):
            items: list[Any] = []
            while not self.take("]"):
                items.append(self.value())
                if not self.take(",") and self.text[self.place : self.place + 1] != "]":
                    raise self.fail("a comma or a closing bracket")
            return items
        quotation = re.compile(r"\s*(?:'([^']*)'|\"([^\"]*)\")").match(self.text, self.place)
        if quotation:
            self.place = quotation.end()
            return quotation[1] if quotation[1] is not None else quotation[2]
        word = re.compile(r"[^,()\[\]]+").match(self.text, self.place)
        if word is None or not word.group().strip():
            raise self.fail("a value")
        self.place = word.end()
        return _scalar(word.group().strip())

    def take(self, sign: str) -> bool:
        if self.text[self.place : self.place + 1] != sign:
            return False
        self.place += 1
        return True

    def end(self) -> None:
        if self.place != len(self.text):
            raise self.fail("the end")


def _scalar(word: str) -> Any:
    constants = {"true": True, "false": False, "none": None, "null": None}
    if word.lower() in constants:
        return constants[word.lower()]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word
