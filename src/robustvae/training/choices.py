"""What holds, at which price: choices of training and defense, read from stored measurements."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, final

from robustvae.arguments import checked
from robustvae.errors import ConfigError, check_choice, check_number, check_positive

MEASURED = "measured.json"
RADII = (0.1, 0.2)
"""l-infinity radii, in pixel units, at which the choices were attacked."""


@final
@dataclass(frozen=True)
class Choice:
    """A trained model behind a defense, as it was measured.

    Attributes:
        data: The data set.
        model: Name of the model, or of its recipe.
        defense: Spec of the defense at test time, "posterior-mean" where there is none.
        error: Squared error of the reconstruction of a clean image, in squared pixel units.
        error_stderr: Its standard error.
        similarity: MS-SSIM (variant "kuzina2022") under the worst attack tried, by radius.
        similarity_stderr: Its standard errors.
        images: How many were attacked.
        attacks: Which attacks: a row under more of them is judged harder.
        certified: Mean certified l2 radius of the model smoothed by its own noise, or None.
        certified_at: Under which question, and the price beside it.
        gradients: Of the decoder, for each image at test time.
        epochs: Of training, from the first weights.
        step_cost: Work of its last training's step over that of a plain one.
        source: The record that the numbers stand in.
        front: Whether no other choice has both a lower error and more similarity at every radius.
    """

    data: str
    model: str
    defense: str
    error: float
    error_stderr: float
    similarity: tuple[float, ...]
    similarity_stderr: tuple[float, ...]
    images: int
    attacks: str
    certified: float | None
    certified_at: str
    gradients: int
    epochs: float
    step_cost: float
    source: str
    front: bool = False


@checked()
def advise(
    data: str,
    *,
    similarity: float | None = None,
    radius: float = 0.2,
    price: float | None = None,
    certified: float | None = None,
    gradients: int | None = None,
) -> tuple[Choice, ...]:
    """The measured choices that meet a wish, those that keep most similarity first.

    Nothing is computed and nothing is recommended beyond what was measured: the rows are those of
    the records that each names as its source.

    Args:
        data: The data set, such as "mnist".
        similarity: Least MS-SSIM under attack at `radius`, in [0, 1].
        radius: One of `RADII`; also decides the order.
        price: Most clean error, as a multiple of the plain model's.
        certified: Least mean certified l2 radius; choices without one are left out.
        gradients: Most gradients an image at test time; 0 asks for models that need no defense.

    Returns:
        The choices, none if no measured one meets the wish.

    Raises:
        UnknownNameError: Nothing was measured on that data set.
        RangeError: A wish below 0, or a price of 0.
        ConfigError: A radius at which nothing was measured.

    Examples:
        >>> from robustvae.training import advise
        >>> best = advise("mnist", price=1.25, gradients=0)[0]
        >>> best.model.startswith("mnist-conv28")
        True
    """
    everything = measured_choices()
    check_choice("data set with measured choices", data, {choice.data for choice in everything})
    if radius not in RADII:
        radii = " and ".join(map(str, RADII))
        raise ConfigError(f"choices were attacked at l-infinity {radii}, not {radius!r}: take one")
    for name, wish in (
        ("similarity", similarity),
        ("certified", certified),
        ("gradients", gradients),
    ):
        if wish is not None:
            check_number(wish, name, least=0)
    if price is not None:
        check_positive(price, "price")
    at = RADII.index(radius)
    choices = [choice for choice in everything if choice.data == data]
    plain = min(choices, key=lambda choice: choice.error).error
    fitting = [
        choice
        for choice in choices
        if (similarity is None or choice.similarity[at] >= similarity)
        and (price is None or choice.error <= price * plain)
        and (certified is None or (choice.certified or 0.0) >= certified)
        and (gradients is None or choice.gradients <= gradients)
    ]
    return tuple(sorted(fitting, key=lambda choice: -choice.similarity[at]))


def measured_choices() -> tuple[Choice, ...]:
    """All choices of the records that come with the library, with their fronts marked.

    Examples:
        >>> from robustvae.training.choices import measured_choices
        >>> {choice.data for choice in measured_choices()} >= {"mnist", "fashion_mnist"}
        True
    """
    text = (resources.files("robustvae.training") / MEASURED).read_text(encoding="utf-8")
    choices = [_choice(row) for row in json.loads(text)["choices"]]
    return tuple(
        replace(
            choice,
            front=not any(
                other.data == choice.data and _better(other, choice) for other in choices
            ),
        )
        for choice in choices
    )


def prices(choices: Iterable[Choice]) -> dict[str, float]:
    """The least clean error on each data set of the choices: what prices are multiples of."""
    least: dict[str, float] = {}
    for choice in choices:
        least[choice.data] = min(choice.error, least.get(choice.data, choice.error))
    return least


def _choice(row: dict[str, Any]) -> Choice:
    lists = {key: tuple(value) for key, value in row.items() if isinstance(value, list)}
    return Choice(**(row | lists))


def _better(one: Choice, other: Choice) -> bool:
    pairs = zip(one.similarity, other.similarity, strict=True)
    return one.error < other.error and all(mine > theirs for mine, theirs in pairs)
