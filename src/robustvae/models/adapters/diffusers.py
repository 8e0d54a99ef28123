"""Autoencoders of latent-diffusion models, after the interface of the diffusers package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast, final

from torch import Tensor, nn

from robustvae.models.adapters.adapter import matched
from robustvae.models.adapters.reading import CodeReading
from robustvae.models.adapters.trial import Trial, attribute
from robustvae.models.adapters.vector_quantized import quantizers_of
from robustvae.models.adapters.wrapped import Match
from robustvae.registry import register

LATENT_PRIOR = (
    "codes of a latent-diffusion autoencoder follow the diffusion model, not a standard normal: "
    "give wrap(..., prior=), a distribution of shape (d,)"
)


@register("adapter", "diffusers")
@final
@dataclass(frozen=True)
class Diffusers:
    """Latent-diffusion autoencoders: latent_dist or latents, scaled and shifted codes."""

    priority: ClassVar[int] = 20

    def match(self, trial: Trial) -> Match | None:
        """Codes in the unit that the diffusion model reads: (code - shift) * scale."""
        module = trial.module
        config = attribute(module, "config")
        if config is None or not all(
            callable(attribute(module, name)) for name in ("encode", "decode")
        ):
            return None
        output = trial.run(module.encode, trial.x)
        field = next((name for name in ("latent_dist", "latents") if hasattr(output, name)), None)
        if field is None or not isinstance(module, nn.Module):
            return None
        scale, shift = (
            float(_setting(config, name, usual))
            for name, usual in (("scaling_factor", 1.0), ("shift_factor", 0.0))
        )
        encode = ScaledEncoder(module, field, scale, shift)
        decode = ScaledDecoder(module, scale, shift)
        words = f"{type(module).__name__}.encode().{field}, codes scaled by {scale:g}"
        code = CodeReading((0,), (1,), "stddev") if field == "latent_dist" else CodeReading((0,))
        match = matched(trial, encode, decode, words, reading=code)
        if match is None:
            return None
        return replace(
            match,
            prior=None,
            prior_missing=LATENT_PRIOR,
            assumptions=(),
            is_straight_through=next(quantizers_of(module), None) is not None,
        )


def _setting(config: Any, name: str, usual: float) -> Any:
    value = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
    return usual if value is None else value


@final
class ScaledEncoder(nn.Module):
    """Inputs to (mean, stddev) of codes, or to codes alone, in the diffusion model's unit."""

    def __init__(self, model: nn.Module, field: str, scale: float, shift: float) -> None:
        super().__init__()
        self.model, self.field, self.scale, self.shift = model, field, scale, shift

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """What `CodeReading` reads."""
        output = getattr(cast(Any, self.model).encode(x), self.field)
        if self.field == "latents":
            return ((output - self.shift) * self.scale,)
        return (output.mean - self.shift) * self.scale, output.std * self.scale


@final
class ScaledDecoder(nn.Module):
    """Codes in the diffusion model's unit to images."""

    def __init__(self, model: nn.Module, scale: float, shift: float) -> None:
        super().__init__()
        self.model, self.scale, self.shift = model, scale, shift

    def forward(self, z: Tensor) -> Tensor:
        """Images, (B, C, H, W), in the model's range."""
        output = cast(Any, self.model).decode(z / self.scale + self.shift)
        image: Tensor = getattr(output, "sample", output)
        return image
