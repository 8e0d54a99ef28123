"""Vector-quantized autoencoders: codes before the codebook, gradients straight through it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from robustvae.models.adapters.adapter import forward_output, matched, same
from robustvae.models.adapters.reading import fields_of, picked
from robustvae.models.adapters.trial import DECODERS, ENCODERS, Trial
from robustvae.models.adapters.wrapped import Match
from robustvae.registry import register

NAMES = re.compile(r"quant|codebook|(^|_)vq|(^|_)rvq|(^|_)fsq", re.IGNORECASE)
VIEWS = ("as they are", "channels last", "pixels")  # how codebooks read codes


@register("adapter", "vector-quantized")
@final
@dataclass(frozen=True)
class VectorQuantized:
    """Vector-quantized models: codes before the codebook, gradients straight through it."""

    priority: ClassVar[int] = 50

    def match(self, trial: Trial) -> Match | None:
        """Encoder, codebook and decoder that make forward's own reconstruction."""
        if not isinstance(trial.module, nn.Module):
            return None
        kind = type(trial.module).__name__
        expected = forward_output(trial)
        for name, quantizer in quantizers_of(trial.module):
            for first, encode in trial.parts(ENCODERS):
                for second, decode in trial.parts(DECODERS):
                    for view in VIEWS:
                        path = QuantizedDecoder(quantizer, decode, view)
                        words = f"{kind}.{first}, {kind}.{name} (codebook) and {kind}.{second}"
                        match = matched(trial, encode, path, words)
                        if match is not None and _fits(trial, match, expected):
                            return _finished(match, path)
        return None


def _finished(match: Match, path: QuantizedDecoder) -> Match:
    return Match(
        recognized=match.recognized,
        encode=match.encode,
        decode=path,
        code_shape=match.code_shape,
        code=match.code,
        output=match.output,
        prior_missing=(
            "codes of a vector-quantized model are entries of a codebook, whose prior is another "
            "model: give wrap(..., prior=)"
        ),
        decisions=path.decisions,
        is_straight_through=True,
        assumptions=("gradients pass the codebook straight through",),
    )


def quantizers_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Parts of a module that look like codebooks, with their names."""
    return (
        (name, part)
        for name, part in module.named_children()
        if NAMES.search(name) or NAMES.search(type(part).__name__)
    )


def _fits(trial: Trial, match: Match, wanted: Tensor | None) -> bool:
    code = trial.mean_of(match.code, trial.run(match.encode, trial.x))
    if code is None or match.code.spread is not None:
        return False
    output = trial.run(match.decode, code)
    pick = trial.reconstruction(output)
    if pick is None:
        return False
    return wanted is None or same(picked(output, pick, "decode"), wanted)


@final
class QuantizedDecoder(nn.Module):
    """Codes through the codebook, straight through for gradients, and the decoder."""

    def __init__(
        self,
        quantizer: nn.Module,
        decode: Callable[[Tensor], Any],
        view: str,
    ) -> None:
        super().__init__()
        self.quantizer, self.decode, self.view = quantizer, decode, view

    def forward(self, z: Tensor) -> Any:
        """What the decoder makes of the nearest entries to codes (B, ...)."""
        entries, _ = self.quantized(z)
        # the values are the codebook's and the gradient is the code's
        return self.decode(z + (entries - z).detach())

    def quantized(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """The entries of the codebook, shaped as the codes, and their numbers where given."""
        reads = z
        if self.view == "channels last" and z.ndim > 2:
            reads = z.movedim(1, -1).contiguous()
        if self.view == "pixels" and z.ndim == 2:  # as pythae reads codes without a place
            reads = z.reshape(len(z), 1, 1, -1).permute(0, 2, 3, 1).contiguous()
        output = self.quantizer(reads)
        parts = [output] if isinstance(output, Tensor) else list(fields_of(output).values())
        floats = [
            part
            for part in parts
            if isinstance(part, Tensor) and part.is_floating_point() and part.numel() == z.numel()
        ]
        if not floats:
            raise ValueError("the codebook returned nothing of the codes' size")
        entries = floats[0]
        if entries.shape != z.shape and entries.ndim == z.ndim:
            entries = entries.movedim(-1, 1)
        numbers = next(
            (part for part in parts if isinstance(part, Tensor) and not part.is_floating_point()),
            None,
        )
        return entries.reshape(z.shape), numbers

    def decisions(self, z: Tensor) -> Tensor:
        """Numbers of the entries, or the entries where the codebook gives no numbers, (B, n)."""
        with torch.no_grad():
            entries, numbers = self.quantized(z)
        return (entries if numbers is None else numbers).reshape(len(z), -1)
