"""Typed records: pydantic models that, made by hand, raise this library's errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from robustvae.errors import ConfigError, single_line

_LONGEST = 300  # characters of a message


class Values(BaseModel):
    """The base of typed records, plans, recipes and campaigns.

    Raises:
        ConfigError: A field that is missing, unknown or of another type, when made by hand.

    Examples:
        >>> from robustvae.records import SummaryEntry
        >>> SummaryEntry(key=3)
        Traceback (most recent call last):
        robustvae.errors.ConfigError: SummaryEntry.key is 3: Input should be a valid string
    """

    if not TYPE_CHECKING:  # type checkers read the fields

        def __init__(self, /, **fields: Any) -> None:
            """Validate the fields."""
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise ConfigError(first_problem(error, type(self).__name__)) from None

        # else `model_validate` would come here too, which keeps pydantic's own error
        __init__.__pydantic_base_init__ = True


def first_problem(error: ValidationError, where: str) -> str:
    """The first thing wrong with a typed record, with its place, in one line."""
    first = error.errors()[0]
    for part in first["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}"
    words = " ".join(str(first["msg"]).split()).removeprefix("Value error, ")
    if first["type"] == "missing":
        text = f"{where} is missing"
    elif first["type"] == "extra_forbidden":
        text = f"{where} is unknown"
    elif first["type"] == "value_error":
        text = f"{where}{words}" if words.startswith(":") else f"{where}.{words}"
    else:
        text = f"{where} is {single_line(_shown(first.get('input')), 60)}: {words}"
    return single_line(text, _LONGEST)


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # a stranger's object
        return type(value).__name__
