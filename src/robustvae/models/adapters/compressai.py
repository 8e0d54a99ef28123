"""Learned codecs, after the interface of the CompressAI package: g_a, g_s and likelihoods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from robustvae.models.adapters.adapter import forward_output, matched, same
from robustvae.models.adapters.reading import picked
from robustvae.models.adapters.trial import Trial, attribute
from robustvae.models.adapters.wrapped import Match
from robustvae.registry import register

CODE_PRIOR = (
    "codes of a codec are coded by its entropy model, not by a standard normal: "
    "give wrap(..., prior=)"
)


_MULTIPLES = (8, 16, 32, 64, 128)
"""Sides that the networks of learned codecs divide by, the least first: padding costs bits."""


@register("adapter", "compressai")
@final
@dataclass(frozen=True)
class CompressAI:
    """Learned codecs with g_a and g_s: codes are rounded, gradients pass the rounding as it is."""

    priority: ClassVar[int] = 40

    def match(self, trial: Trial) -> Match | None:
        """The quantization that makes the codec's own x_hat."""
        module = trial.module
        parts = (attribute(module, name) for name in ("g_a", "g_s"))
        if not (isinstance(module, nn.Module) and all(map(callable, parts))):
            return None
        match = self._match(trial, module)
        _, *sides = trial.space.image_shape
        for multiple in _MULTIPLES:
            if match is None and any(side % multiple for side in sides):
                match = self._match(trial, Padded(module, multiple, sides))
        return match

    def _match(self, trial: Trial, module: Any) -> Match | None:
        trial = replace(trial, module=module)
        analysis = module.g_a
        expected = forward_output(trial)
        kind = getattr(module, "name", type(module).__name__)
        fallback: Match | None = None
        for quantize in (by_forward, by_hyperprior, by_mean_hyperprior, by_rounding):
            path = CodecDecoder(module, quantize)
            words = f"{kind}.g_a and {kind}.g_s, codes rounded ({quantize.__name__})"
            match = matched(trial, analysis, path, words)
            if match is None:
                continue
            match = replace(
                match,
                prior=None,
                prior_missing=CODE_PRIOR,
                decisions=path.decisions,
                is_straight_through=True,
                assumptions=("gradients pass the rounding straight through",),
            )
            output = trial.run(path, trial.run(analysis, trial.x))
            pick = trial.reconstruction(output)
            if expected is None or (
                pick is not None and same(picked(output, pick, "decode"), expected)
            ):
                return match
            fallback = match
        if fallback is None:
            return None
        doubt = "the codec's own forward pass gives another x_hat than g_s of the rounded codes"
        return replace(fallback, assumptions=(*fallback.assumptions, doubt))


def by_forward(module: Any, y: Tensor) -> Tensor:
    """Codes through the bottleneck alone: codecs without a hyperprior."""
    if hasattr(module, "h_a"):
        raise ValueError("this codec has a hyperprior")
    return first_tensor(module.entropy_bottleneck(y))


def by_hyperprior(module: Any, y: Tensor) -> Tensor:
    """Codes of a scale hyperprior: rounded to whole numbers."""
    z = first_tensor(module.entropy_bottleneck(module.h_a(y.abs())))
    return first_tensor(module.gaussian_conditional(y, module.h_s(z)))


def by_mean_hyperprior(module: Any, y: Tensor) -> Tensor:
    """Codes of a hyperprior with means: rounded about them."""
    z = first_tensor(module.entropy_bottleneck(module.h_a(y)))
    scales, means = module.h_s(z).chunk(2, 1)
    return first_tensor(module.gaussian_conditional(y, scales, means=means))


def by_rounding(module: Any, y: Tensor) -> Tensor:
    """Codes rounded to whole numbers."""
    return y.round()


def first_tensor(output: Any) -> Tensor:
    """The quantized codes, which entropy models return first."""
    value: Tensor = output if isinstance(output, Tensor) else output[0]
    return value


@final
class CodecDecoder(nn.Module):
    """Codes through the rounding, straight through for gradients, and g_s."""

    def __init__(self, model: nn.Module, quantize: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.quantize = model, quantize

    def forward(self, y: Tensor) -> Any:
        """The image that the decoder makes of the rounded codes (B, C, h, w)."""
        synthesis: Any = self.model.g_s
        return synthesis(y + (self.quantize(self.model, y) - y).detach())

    def decisions(self, y: Tensor) -> Tensor:
        """The rounded codes, (B, n)."""
        with torch.no_grad():
            return self.quantize(self.model, y).flatten(1)


@final
class Padded(nn.Module):
    """A codec of images whose sides it does not divide: padded by their border, cropped after.

    Args:
        model: With g_a, g_s and a forward pass.
        multiple: What sides are padded to a multiple of.
        size: Height and width of its images.
    """

    def __init__(self, model: nn.Module, multiple: int, size: Sequence[int]) -> None:
        super().__init__()
        self.model, self.multiple, self.size = model, multiple, tuple(size)
        self.name = f"{type(model).__name__}, sides padded to multiples of {multiple},"

    def __getattr__(self, name: str) -> Any:
        """Entropy models and the rest of the codec, as they are."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    def g_a(self, x: Tensor) -> Any:
        """Codes of the padded images."""
        model: Any = self.model
        return model.g_a(self._padded(x))

    def g_s(self, y: Tensor) -> Any:
        """Images, cropped."""
        model: Any = self.model
        height, width = self.size
        return model.g_s(y)[..., :height, :width]

    def forward(self, x: Tensor) -> Any:
        """The codec's forward pass, its images cropped."""
        model: Any = self.model
        output = dict(model(self._padded(x)))
        height, width = self.size
        output["x_hat"] = output["x_hat"][..., :height, :width]
        return output

    def compress(self, x: Tensor) -> Any:
        """The file of the padded images."""
        model: Any = self.model
        return model.compress(self._padded(x))

    def _padded(self, x: Tensor) -> Tensor:
        down, right = (-side % self.multiple for side in self.size)
        return nn.functional.pad(x, (0, right, 0, down), mode="replicate")
