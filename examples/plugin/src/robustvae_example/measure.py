"""A measure: how much of the attack is seen as a change of brightness."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from robustvae.records import Column
from robustvae.registry import register


@register("measure", "brightness")
@final
@dataclass(frozen=True)
class Brightness:
    """The change of the mean pixel of the output under attack."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            id="darkened",
            label="fall of the output's mean pixel under attack",
            unit="pixel units",
            better="lower",
            headline="Darkened by attacks",
        ),
    )

    def __call__(self, context: Any) -> Mapping[str, Any]:
        """Measure one attack on the inputs of a context."""
        fall = context.output.flatten(1).mean(1) - context.attacked_output.flatten(1).mean(1)
        return {"darkened": fall}
