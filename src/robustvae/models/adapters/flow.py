"""Posteriors that a flow makes: draws of a Gaussian, pushed through an invertible network."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from torch import Tensor, nn

from robustvae.models.adapters.adapter import matched
from robustvae.models.adapters.posteriors import FlowPosterior
from robustvae.models.adapters.reading import CodeReading, fields_of, picked, stddev_of
from robustvae.models.adapters.trial import DECODERS, ENCODERS, Trial
from robustvae.models.adapters.wrapped import Match
from robustvae.models.likelihoods import Gaussian
from robustvae.registry import register

NAMES = re.compile(r"flow|(^|_)i?[mn]?af($|_)", re.IGNORECASE)


@register("adapter", "flow")
@final
@dataclass(frozen=True)
class Flow:
    """Models with a flow behind the encoder: the posterior is drawn through it, as given."""

    priority: ClassVar[int] = 55

    def match(self, trial: Trial) -> Match | None:
        """Encoder, flow and decoder."""
        if not isinstance(trial.module, nn.Module):
            return None
        kind = type(trial.module).__name__
        for name, flow in trial.module.named_children():
            if not NAMES.search(name) or isinstance(flow, nn.ModuleList):
                continue
            for first, encode in trial.parts(ENCODERS):
                for second, decode in trial.parts(DECODERS):
                    words = f"{kind}.{first}, {kind}.{name} (flow) and {kind}.{second}"
                    match = matched(trial, encode, decode, words, needs_spread=True)
                    if match is None or match.code.mean is None:
                        continue
                    path = FlowEncoder(encode, flow, match.code, through)
                    code = trial.mean_of(CodeReading(), trial.run(path, trial.x))
                    if code is not None and trial.run(decode, code) is not None:
                        return replace(match, encode=path, code=CodeReading())
        return None


def through(flow: nn.Module, z: Tensor) -> Tensor:
    """The first tensor of the codes' shape that a flow returns."""
    output = flow(z)
    parts = [output] if isinstance(output, Tensor) else list(fields_of(output).values())
    value: Tensor = next(
        part for part in parts if isinstance(part, Tensor) and part.shape == z.shape
    )
    return value


@final
class FlowEncoder(nn.Module):
    """Inputs to the posterior that a flow makes of a Gaussian."""

    def __init__(
        self,
        encode: Callable[[Tensor], Any],
        flow: nn.Module,
        reading: CodeReading,
        push: Callable[[nn.Module, Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.encode, self.flow, self.reading, self.push = encode, flow, reading, push

    def forward(self, x: Tensor) -> FlowPosterior:
        """The posterior of inputs."""
        output = self.encode(x)
        assert self.reading.mean is not None and self.reading.spread is not None
        mean = picked(output, self.reading.mean, "encode")
        part = picked(output, self.reading.spread, "encode")
        base = Gaussian(mean, stddev_of(part, self.reading.kind))
        return FlowPosterior(base, lambda z: self.push(self.flow, z))
