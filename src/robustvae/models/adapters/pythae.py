"""Models of the pythae package: ModelOutput with embedding, log_covariance and reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor, nn

from robustvae.models.adapters.adapter import matched, prior_of
from robustvae.models.adapters.flow import FlowEncoder
from robustvae.models.adapters.reading import CodeReading
from robustvae.models.adapters.trial import Trial, attribute
from robustvae.models.adapters.vector_quantized import VectorQuantized
from robustvae.models.adapters.wrapped import Match, Output
from robustvae.registry import register

OTHER_POSTERIORS = ("HVAE", "RHVAE", "PoincareVAE", "SVAE")
OTHER_POSTERIOR = (
    "{name} draws its codes by another rule than N(mean, exp(log_covariance)): only the mean is "
    "read, without a spread"
)


@register("adapter", "pythae")
@final
@dataclass(frozen=True)
class Pythae:
    """Models of pythae: embedding and log_covariance, with prior, flow and loss of the model."""

    priority: ClassVar[int] = 30

    def match(self, trial: Trial) -> Match | None:
        """Encoder and decoder of the model, and what its configuration says of the loss."""
        module = trial.module
        config = attribute(module, "model_config")
        encoder, decoder = (attribute(module, name) for name in ("encoder", "decoder"))
        if config is None or not (callable(encoder) and callable(decoder)):
            return None
        if attribute(module, "quantizer") is not None:
            return VectorQuantized().match(trial)
        kind = type(module).__name__
        match = matched(trial, encoder, decoder, f"pythae {kind}.encoder and .decoder")
        if match is None:
            return None
        prior, missing = prior_of(module, match.code_shape)
        match = replace(match, prior=prior, prior_missing=missing, assumptions=())
        if kind in OTHER_POSTERIORS:
            match = replace(
                match,
                code=CodeReading(match.code.mean),
                prior_missing=missing or f"{kind} has a prior of its own: give wrap(..., prior=)",
                assumptions=(OTHER_POSTERIOR.format(name=kind),),
            )
        flow = next((name for name in ("iaf_flow", "net") if _is_flow(module, name)), None)
        if flow is not None:
            flow_encoder = FlowEncoder(encoder, getattr(module, flow), match.code, _pusher(flow))
            match = replace(match, encode=flow_encoder, code=CodeReading())
        return replace(match, output=_loss(config, match.output.reconstruction))


def _is_flow(module: Any, name: str) -> bool:
    part = attribute(module, name)
    words = " ".join(kind.__name__ for kind in type(part).__mro__).lower()
    return isinstance(part, nn.Module) and any(word in words for word in ("flow", "iaf", "maf"))


def _pusher(name: str) -> Callable[[nn.Module, Tensor], Tensor]:
    return invert if name == "iaf_flow" else push


def push(flow: nn.Module, z: Tensor) -> Tensor:
    """Draws through a flow."""
    return _out(flow(z))


def invert(flow: nn.Module, z: Tensor) -> Tensor:
    """Draws through the inverse of a flow, which is how an inverse autoregressive one is used."""
    return _out(cast(Any, flow).inverse(z))


def _out(output: Any) -> Tensor:
    value: Tensor = output if isinstance(output, Tensor) else getattr(output, "out", output[0])
    return value


def _loss(config: Any, reconstruction: Any) -> Output:
    """The likelihood that the training loss stands for."""
    loss = getattr(config, "reconstruction_loss", None)
    if loss == "bce":
        return Output(reconstruction, "bernoulli")
    if loss == "mse":
        # half the sum of squares plus beta KL is that of a Gaussian with variance beta
        beta = float(getattr(config, "beta", 1.0) or 1.0)
        return Output(reconstruction, "gaussian", float(torch.tensor(beta).sqrt()))
    return Output(reconstruction)
