"""The first adapter that recognizes a module, or the reading that its owner stated."""

from __future__ import annotations

from collections.abc import Sequence

from robustvae.data.space import InputSpace
from robustvae.errors import ModelError, RobustVAEError, single_line
from robustvae.models.adapters.adapter import Adapter
from robustvae.models.adapters.reading import Pick
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
    """The match of a reading that the user gave: of `encode`, or of forward itself."""
    assert said.reading is not None
    kind = type(trial.module).__name__
    encoders = list(trial.parts(ENCODERS))
    if callable(trial.module):
        encoders.append(("forward", trial.module))
    for first, encode in encoders:
        output = trial.run(encode, trial.x)
        code = None if output is None else trial.mean_of(said.reading, output)
        if code is None:
            continue
        for second, decode in decoders_of(trial):
            decoding = trial.run(decode, code)
            pick: Pick | None = trial.reconstruction(decoding)
            if said.reconstruction is not None and decoding is not None:
                pick = (said.reconstruction,)
            if pick is None:
                continue
            return Match(
                recognized=f"{kind}.{first} and {kind}.{second}; codes read as was said",
                encode=encode,
                decode=decode,
                code_shape=tuple(code.shape[1:]),
                code=said.reading,
                output=Output(pick),
            )
    return None
