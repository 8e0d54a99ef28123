"""The first adapter that recognizes a module, or the reading that its owner stated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from robustvae.data.space import InputSpace
from robustvae.errors import ModelError, RobustVAEError, single_line
from robustvae.models.adapters.adapter import Adapter
from robustvae.models.adapters.forward import as_forward
from robustvae.models.adapters.forward_alone import match_of
from robustvae.models.adapters.reading import CodeReading, Pick, Step, picked
from robustvae.models.adapters.said import Said
from robustvae.models.adapters.trial import ENCODERS, Trial
from robustvae.models.adapters.triple import decoders_of
from robustvae.models.adapters.wrapped import Match, Output
from robustvae.models.base import VAE
from robustvae.registry import build, names


def first_match(
    trials: Sequence[Trial], said: Said | None = None
) -> tuple[Match, InputSpace] | VAE | None:
    """What the first adapter recognizes in the first of several trials, and the space of it."""
    if said is not None and said.reading is not None:
        result = ((_said_match(trial, said), trial.space) for trial in trials)
        return next(((match, space) for match, space in result if match is not None), None)
    specs = names("adapter") if said is None or said.adapter is None else [said.adapter]
    adapters: list[Adapter] = [build("adapter", spec) for spec in specs]
    for one in sorted(adapters, key=lambda adapter: adapter.priority):
        for trial in trials:
            match = _asked(one, trial)
            if isinstance(match, Match):
                return match, trial.space
            if match is not None:
                return match
    return None


def _asked(adapter: Adapter, trial: Trial) -> Match | VAE | None:
    try:
        return adapter.match(trial)
    except RobustVAEError:
        raise
    except Exception as error:  # a stranger's object may raise anything from an attribute
        kind = type(trial.module).__name__
        raise ModelError(
            f"looking at {kind} by {type(adapter).__name__} raised {type(error).__name__}: "
            f"{single_line(error)}; give wrap(encode=..., decode=..., latent=..., image_shape=...)"
        ) from error


def _said_match(trial: Trial, said: Said) -> Match | None:
    """The match of a reading that the user gave: of `encode`, or of forward itself.

    Parts that do what forward does go first, then forward itself, then any parts that fit: what
    was said may be about more than forward shows.
    """
    assert said.reading is not None
    others: list[Match] = []
    for match in _said_parts(trial, said, said.reading):
        result = as_forward(trial, match)
        if result is not None:
            return result
        others.append(match)
    place: Pick | None = None if said.reconstruction is None else (said.reconstruction,)
    return match_of(trial, said.reading, place) or next(iter(others), None)


def _said_parts(trial: Trial, said: Said, reading: CodeReading) -> Iterator[Match]:
    """Parts that encode and decode by a reading."""
    kind = type(trial.module).__name__
    encoders = list(trial.parts(ENCODERS))
    if callable(trial.module):
        encoders.append(("forward", trial.module))
    for first, encode in encoders:
        output = trial.run(encode, trial.x)
        code = None if output is None else trial.mean_of(reading, output)
        if code is None:
            continue
        for second, decode in decoders_of(trial):
            decoding = trial.run(decode, code)
            pick: Pick | None = trial.reconstruction(decoding)
            if said.reconstruction is not None and holds(decoding, said.reconstruction):
                pick = (said.reconstruction,)
            if pick is None:
                continue
            yield Match(
                recognized=f"{kind}.{first} and {kind}.{second}; codes read as was said",
                encode=encode,
                decode=decode,
                code_shape=tuple(code.shape[1:]),
                code=reading,
                output=Output(pick),
            )


def holds(output: object, place: Step) -> bool:
    """Whether an output has a tensor at a place that was said.

    A tensor has none at a position, which would be one of its rows.
    """
    if isinstance(output, Tensor) and not callable(place):
        return False
    try:
        picked(output, (place,), "decode")
    except Exception:  # a function of the user's may raise anything
        return False
    return output is not None
