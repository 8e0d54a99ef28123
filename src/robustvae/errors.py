"""One error tree, and the checks that raise it: each message says what was wanted and what came.

Nothing here imports torch, so every other module may use it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


_MOST_COUNTED = 10**12  # draws, steps or pixels: no machine comes to an end with more
_LARGEST = 1e150  # of a positive number: its square is still one
_LONGEST_MESSAGE = 1600  # characters: twenty lines, more than any message of ours


class RobustVAEError(Exception):
    """Any error that the library raises on purpose; of a long message the middle is left out.

    Control characters are spelled out, since a traceback prints the message as it is.
    """

    def __init__(self, *parts: object) -> None:
        """Keep the message, shortened: what came may be a text of any length."""
        if len(parts) == 1 and isinstance(parts[0], str):
            text = parts[0]
            if len(text) > _LONGEST_MESSAGE:
                half = _LONGEST_MESSAGE // 2
                text = f"{text[:half]} ... {text[-half:]}"
            if not text.isprintable():
                text = "".join(one if one in "\n\t" else _spelled_out(one) for one in text)
            parts = (text,)
        super().__init__(*parts)


def _spelled_out(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


class ShapeError(RobustVAEError, ValueError):
    """A tensor has the wrong shape."""


class RangeError(RobustVAEError, ValueError):
    """A number or a pixel lies outside the range that makes sense."""


class PlaceError(RangeError, IndexError):
    """A number of an input beyond the last; an `IndexError` too, which ends Python's iteration."""


class DtypeError(RobustVAEError, TypeError):
    """A tensor or an argument has the wrong type."""


class NonFiniteError(RobustVAEError, ValueError):
    """A NaN or an infinity where a number was wanted."""


class UnknownNameError(RobustVAEError, ValueError):
    """A name that is not in the list it was looked up in."""


class UnknownOptionError(UnknownNameError, TypeError):
    """A keyword that a function does not take."""


class ConfigError(RobustVAEError, ValueError):
    """A recipe, plan or configuration that does not hold together."""


class ArgumentError(RobustVAEError, ValueError):
    """Arguments that are each of the right type and do not fit together; shows all of them."""


class DataError(RobustVAEError):
    """A data set that is missing, truncated or not what it claims to be."""


class CheckpointError(RobustVAEError):
    """A checkpoint that is missing, truncated or of another kind."""


class TrainingError(RobustVAEError):
    """Training cannot go on; the last good state is on disk where a folder was given."""


class StorageError(RobustVAEError):
    """A file could not be written; nothing half-written is left."""


class MissingExtraError(RobustVAEError, ImportError):
    """An optional dependency is not installed; the message says how to get it."""


class UnsupportedError(RobustVAEError):
    """A model or option for which no correct method is built."""


class ModelError(RobustVAEError):
    """A user's model raised or returned what no reading fits; its own exception is the cause."""


class RobustVAEWarning(UserWarning):
    """Something that the library cannot see or had to assume; said once for each model."""


_NAMED = 12
ROUND_OFF = 1e-6  # beyond the range of pixels: what resizing and scaling in float32 leave behind
_LONGEST = 600  # characters of a message on the terminal: about eight lines


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that memory ran out.

    Examples:
        >>> from robustvae.errors import is_out_of_memory
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("memory"))
        (True, False)
    """
    words = ("out of memory", "can't allocate memory", "not enough memory")
    cause: BaseException | None = error
    while cause is not None:
        # torch's allocators raise a kind of RuntimeError, that of the CPU a plain one
        told = isinstance(cause, RuntimeError) and any(word in str(cause) for word in words)
        # torch's own class by its name: nothing here imports torch
        named = any(kind.__name__ == "OutOfMemoryError" for kind in type(cause).__mro__)
        if told or named or isinstance(cause, MemoryError):
            return True
        cause = cause.__cause__
    return False


def single_line(text: object, limit: int = _LONGEST) -> str:
    r"""Text from outside, fit for a terminal: one line, nothing invisible, at most `limit` long.

    Args:
        text: What `str` makes text of.
        limit: Characters at most; of what is longer, the middle is left out.

    Returns:
        The text with white space as single blanks and each control character, escape sequence or
        broken code point spelled out.

    Examples:
        >>> from robustvae.errors import single_line
        >>> print(single_line("a \x1b[31mred\nname"))
        a \x1b[31mred name
        >>> single_line("x" * 1000, limit=20)
        'xxxxxxxxx ... xxxxxx'
    """
    line = " ".join(str(text).split())
    line = "".join(map(_spelled_out, line))
    if len(line) <= limit:
        return line
    tail = (limit - 5) * 2 // 5  # the end of a message often says what to do, the start what failed
    return f"{line[: limit - 5 - tail]} ... {line[-tail:]}"


def requirements(extra: str) -> list[str]:
    """What an extra of this package asks for, such as "gradio>=6.0".

    Examples:
        >>> from robustvae.errors import requirements
        >>> any(name.startswith("huggingface") for name in requirements("hub"))
        True
    """
    from importlib import metadata  # 20 ms, for those who ask

    try:
        lines = metadata.requires("robustvae") or []
    except metadata.PackageNotFoundError:  # run from the sources, never installed
        return []
    parts = (line.partition(";") for line in lines)
    marker = re.compile(rf"""\bextra\s*==\s*['"]{re.escape(extra)}['"]""")
    return [name.strip() for name, _, condition in parts if marker.search(condition)]


# Extras whose packages ask for more than they use: torchattacks wants a torchvision that replaces
# the user's torch by another one, and a `requests` of 2020. They are installed without what they
# ask for, and then what they do import is named.
_USED = {"peers": ("eagerpy", "GitPython", "packaging", "requests", "six", "tqdm")}


def install_command(extra: str) -> str:
    """The command that brings what an extra needs, wherever this package was installed from.

    It names the packages and not this one, which stands on no index under its own name.
    """
    names = requirements(extra) or [f"robustvae[{extra}]"]
    names_text = " ".join(repr(name) for name in names)
    if extra in _USED:
        return f"pip install --no-deps {names_text} && pip install {' '.join(_USED[extra])}"
    return f"pip install {names_text}"


def unknown(kind: str, name: object, options: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not among `options`, with the nearest one suggested.

    Examples:
        >>> from robustvae.errors import unknown
        >>> str(unknown("data set", "digit", ["digits", "mnist"]))
        "unknown data set 'digit': did you mean 'digits'? (choose from digits, mnist)"
    """
    options = sorted(options)
    near = difflib.get_close_matches(str(name), options, n=_NAMED, cutoff=0.5)
    listing = options
    if len(options) > _NAMED:
        listing = [*(near or options)[:_NAMED], f"... {len(options)} in all"]
    choice = f"choose from {', '.join(listing)}" if listing else "there is none to choose from"
    hint = f"did you mean {near[0]!r}? ({choice})" if near else choice
    return UnknownNameError(f"unknown {kind} {_shown(name)}: {hint}")


def check_choice(kind: str, name: object, options: Iterable[str]) -> None:
    """Raise `UnknownNameError` unless `name` is one of `options`."""
    options = tuple(options)
    if not isinstance(name, str) or name not in options:
        raise unknown(kind, name, options)


def check_type(value: object, name: str, wanted: type) -> None:
    """Raise unless `value` is a `wanted`.

    Examples:
        >>> from robustvae.errors import check_type
        >>> check_type("0.5", "radius", float)
        Traceback (most recent call last):
        robustvae.errors.DtypeError: radius must be of type float, got '0.5'
    """
    if not isinstance(value, wanted):
        raise DtypeError(f"{name} must be of type {wanted.__name__}, got {_shown(value)}")


def check_number(value: Any, name: str, *, least: float | None = None) -> None:
    """Raise unless `value` is one finite real number, at least `least` where that is given."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DtypeError(f"{name} must be a number, got {_shown(value)}")
    if isinstance(value, int):
        _check_fits(value, name)
    if not math.isfinite(value):
        raise NonFiniteError(f"{name} must be finite, got {value}")
    if least is not None and value < least:
        raise RangeError(f"{name} must be at least {least:g}, got {value:g}")


def check_positive(value: Any, name: str, *, each: bool = False) -> None:
    """Raise unless `value` is a positive finite number; with `each`, a tensor of them does too."""
    if each and hasattr(value, "isfinite"):
        if value.is_complex():
            raise DtypeError(f"{name} must be real, got {value.dtype}")
        if not bool(value.isfinite().all()):
            raise NonFiniteError(f"{name} must be finite, got a NaN or an infinity")
        if not bool((value > 0).all()):
            raise RangeError(f"{name} must be positive, got {float(value.min()):g}")
        return
    check_number(value, name)
    if not value > 0:
        raise RangeError(f"{name} must be positive, got {value:g}")
    if value > _LARGEST:
        raise RangeError(f"{name} must be at most {_LARGEST:g}, got {value:g}")


def check_count(value: Any, name: str, *, least: int = 1) -> None:
    """Raise unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise DtypeError(f"{name} must be a whole number, got {_shown(value)}")
    _check_fits(value, name)
    if value < least:
        raise RangeError(f"{name} must be at least {least}, got {value}")
    if value > _MOST_COUNTED:
        raise RangeError(f"{name} must be at most {_MOST_COUNTED}, got {value}")


def check_sizes(value: Any, name: str, *, axes: int | None = None, least: int = 1) -> None:
    """Raise unless `value` is a tuple or list of whole numbers, such as an image's (C, H, W).

    Args:
        value: What is to be a shape.
        name: What to call it in the message.
        axes: How many numbers are wanted; None for any number of them.
        least: The least that each of them may be.
    """
    if not isinstance(value, tuple | list):
        raise DtypeError(f"{name} must be a tuple of whole numbers, got {_shown(value)}")
    if axes is not None and len(value) != axes:
        raise ShapeError(f"{name} must have {axes} numbers, got {_shown(value)}")
    for size in value:
        check_count(size, f"each number of {name}", least=least)


def check_probability(value: Any, name: str) -> None:
    """Raise unless `value` lies strictly between 0 and 1."""
    check_number(value, name)
    if not 0 < value < 1:
        raise RangeError(f"{name} must lie strictly between 0 and 1, got {value:g}")


def check_images(
    x: Tensor,
    image_shape: tuple[int, int, int] | None = None,
    *,
    name: str = "x",
    low: float | None = 0.0,
    high: float | None = 1.0,
) -> None:
    """Raise unless `x` is a batch of finite images of floating type within [low, high].

    Args:
        x: Images, (B, C, H, W), B at least 1.
        image_shape: (C, H, W) wanted, or None for any.
        name: What to call `x` in the message.
        low: Least pixel value allowed; None skips this side.
        high: Greatest pixel value allowed; None skips this side.

    Raises:
        DtypeError: `x` is not a tensor of floating type.
        ShapeError: Wrong number of axes, no image, or not `image_shape`.
        NonFiniteError: A NaN or an infinity.
        RangeError: A pixel outside [low, high].
    """
    if not (hasattr(x, "is_floating_point") and hasattr(x, "shape")):
        raise DtypeError(f"{name} must be a tensor of images, got {_shown(x)}")
    shape = "(B, C, H, W)" if image_shape is None else "(B, {}, {}, {})".format(*image_shape)
    wrong_axes = x.ndim != 4 or x.shape[0] == 0
    if wrong_axes or (image_shape is not None and tuple(x.shape[1:]) != tuple(image_shape)):
        size = 0 if image_shape is None else math.prod(image_shape)
        same = x.ndim > 0 and len(x) > 0 and math.prod(map(int, x.shape[1:])) == size
        numbers = ", ".join(map(str, image_shape or ()))
        remedy = f"; {name}.reshape(-1, {numbers}) has the same numbers" if same else ""
        raise ShapeError(f"{name} must be {shape} with B >= 1, got {tuple(x.shape)}{remedy}")
    if not x.is_floating_point():
        raise DtypeError(f"{name} must be of floating type in [0, 1], got {x.dtype}")
    if x.device.type == "meta" or str(x.layout) != "torch.strided":
        raise DtypeError(f"{name} must be a dense tensor that holds values, got {_layout(x)}")
    if x.stride(0) == 0:  # rows that are views of one image, as in smoothing
        x = x[:1]
    if not bool(x.isfinite().all()):
        raise NonFiniteError(f"{name} must be finite, got a NaN or an infinity")
    least, greatest = float(x.detach().min()), float(x.detach().max())
    too_low = low is not None and least < low - ROUND_OFF
    if too_low or (high is not None and greatest > high + ROUND_OFF):
        raise RangeError(
            f"{name} must lie in [{low:g}, {high:g}], got values from {least:.9g} to "
            f"{greatest:.9g}: scale them, or wrap the model with pixels=(low, high)"
            if low is not None and high is not None
            else f"{name} is out of range: values from {least:g} to {greatest:g}"
        )


def _layout(x: Tensor) -> str:
    return "one on the device meta" if x.device.type == "meta" else f"the layout {x.layout}"


def _check_fits(value: int, name: str) -> None:
    if abs(value) >= 2**63:
        raise RangeError(f"{name} must be a number of ordinary size, got one of 64 bits or more")


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
