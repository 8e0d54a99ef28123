"""Modules of which only the output can be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from robustvae.errors import DtypeError
from robustvae.models.adapters.reading import Pick, described, fields_of, picked
from robustvae.models.adapters.trial import ENCODERS, Trial
from robustvae.models.adapters.wrapped import BlackBox
from robustvae.registry import register


@register("adapter", "black-box")
@final
@dataclass(frozen=True)
class BlackBoxes:
    """Anything else with a forward pass: attacks on the output, smoothing; the rest is left out."""

    priority: ClassVar[int] = 100

    def match(self, trial: Trial) -> BlackBox | None:
        """The module as a map from inputs to outputs."""
        if not callable(trial.module):
            return None
        output = trial.run(trial.module, trial.x)
        pick = trial.reconstruction(output)
        if pick is None:
            places: list[tuple[Pick, object]] = [((), output)]
            places += [((key,), part) for key, part in fields_of(output).items()]
            pick = next((place for place, part in places if _is_rows(part, len(trial.x))), None)
            if pick is None:
                return None
        # as many samples as inputs would pass for rows: another number of inputs tells them apart
        fewer = trial.run(trial.module, trial.x[1:])
        if fewer is not None and not _is_rows(_part(fewer, pick), len(trial.x) - 1):
            return None
        kind = type(trial.module).__name__
        where = f" at {pick[0]!r}" if pick else ""
        return BlackBox(
            trial.module,
            pick,
            trial.space,
            f"{kind}.forward as a black box, {described(output)}{where}",
            _reason(trial),
        )


def _reason(trial: Trial) -> str:
    """Why the code of a module is not read, and what to say to have it judged."""
    call = "wrap(encode=..., decode=..., latent=..., image_shape=...)"
    for name, encode in trial.parts(ENCODERS[:1]):
        output = trial.run(encode, trial.x)
        if output is None:
            return f"{name} does not take an input alone; to have codes judged, give {call}"
        return (
            f"{name} returns {described(output)}, in which no code was found that a part decodes "
            "to what forward returns; to have codes judged, say where they are with mean=, "
            f"log_var=, or give {call}"
        )
    return (
        f"no part that encodes and none that decodes were found; to have codes judged, give {call}"
    )


def _part(output: object, pick: Pick) -> object:
    try:
        return picked(output, pick, "forward")
    except DtypeError:
        return None


def _is_rows(value: object, rows: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim > 0
        and len(value) == rows
    )
