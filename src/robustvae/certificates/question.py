"""The question that estimates, certificates and audits answer: one object for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

from robustvae.errors import (
    ConfigError,
    check_choice,
    check_positive,
    check_probability,
    check_type,
)

Displacement = Literal["centered", "full", "paired"]
Center = Literal["mean", "own"]
DISPLACEMENTS = ("centered", "full", "paired")
CENTERS = ("mean", "own")
NORMS = ("l2", "linf")


@final
@dataclass(frozen=True, kw_only=True)
class Question:
    """How large a change keeps P(||Delta|| <= r) > m? Two results compare only at one question.

    Args:
        r: Tolerated displacement of the output, l2 over all pixels, in pixel units, positive.
        m: Probability with which the output must stay within r, in (0, 1).
        norm: Norm of the change: "l2" or "linf".
        displacement: What Delta is: "full": an output at the changed input minus a center at the
            clean one (what the deployed system does); "centered": the same with the clean input's
            posterior spread; "paired": two independent outputs, at the changed and clean input.
        center: What "full" and "centered" measure from: "mean", the decoder's mean at the
            encoder's mean, g(mu(x)); "own", the mean output of the victim itself at x, over draws
            that are used for nothing else.
        box: Whether only changes that keep the pixels in range count.

    Raises:
        RangeError: r or m out of range.
        UnknownNameError: An unknown norm, displacement or center.
        ConfigError: A center of its own for a paired displacement, which has none.

    Examples:
        >>> import robustvae as rv
        >>> rv.Question(r=2.9).displacement
        'full'
    """

    r: float
    m: float = 0.5
    norm: str = "l2"
    displacement: str = "full"
    center: str = "mean"
    box: bool = True

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_positive(self.r, "r")
        check_probability(self.m, "m")
        check_choice("norm", self.norm, NORMS)
        check_choice("displacement", self.displacement, DISPLACEMENTS)
        check_choice("center", self.center, CENTERS)
        check_type(self.box, "box", bool)
        # two outputs are compared with each other: there is nothing to measure from
        if self.displacement == "paired" and self.center == "own":
            raise ConfigError(
                "a paired displacement has no center, got center='own': "
                "give center='mean', or displacement='full'"
            )


def one_question(
    function: str, question: Question | None, r: float | None, **fields: Any
) -> Question:
    """The question of a call that takes a whole one, or its fields.

    Raises:
        ConfigError: Neither of them, or both.
        DtypeError: A `question` of another type.
    """
    if question is None:
        if r is None:
            raise ConfigError(f"{function} needs the tolerance r, or a whole question=")
        return Question(r=r, **fields)
    if r is not None:
        raise ConfigError(f"{function} takes r or a whole question, got both: leave one out")
    check_type(question, "question", Question)
    return question
