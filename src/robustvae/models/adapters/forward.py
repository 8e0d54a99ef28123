"""Whether an encoder and a decoder that were found are all that a module's forward pass does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustvae.models.adapters.adapter import same
from robustvae.models.adapters.reading import fields_of, picked
from robustvae.models.adapters.trial import DECODERS, ENCODERS, Trial
from robustvae.models.adapters.wrapped import Match


def as_forward(trial: Trial, match: Match) -> Match | None:
    """The match, or None where the module does more than its two parts.

    Parts inside a module may be less than the model: its forward pass may scale what the encoder
    reads, crop or squash what the decoder returns, or add a condition. Two parts of such a module
    fit each other and would be judged in its place. A squashing that is the logistic function is
    read as log odds; after anything else the parts do not match.

    Args:
        trial: The module and its inputs.
        match: Its encoder and its decoder, as found.
    """
    if any(_wants_more(trial.module, names, part) for names, part in _ends(match)):
        return None
    module = trial.module
    if not isinstance(module, nn.Module):
        return match
    inputs, outputs, result = _observed(trial, match)
    if inputs and not same(inputs[0], trial.x):
        return None
    pick = match.output.reconstruction
    if result is None or pick is None or not outputs:
        return match
    decoding = picked(outputs[-1], pick, "decode")
    images = [part for part in (result, *fields_of(result).values()) if trial.is_image(part)]
    images = [image for image in images if not same(image, trial.x)]
    if not images or any(same(image, decoding) for image in images):
        return match
    is_squashed = any(same(image, torch.sigmoid(decoding)) for image in images)
    if is_squashed and (trial.space.low, trial.space.high) == (0.0, 1.0):
        words = f"{match.recognized}; decoder's output read as log odds, as in forward"
        return replace(match, recognized=words, output=replace(match.output, is_logits=True))
    return None


def _ends(match: Match) -> tuple[tuple[tuple[str, ...], Any], ...]:
    return (ENCODERS, match.encode), (DECODERS, match.decode)


def _wants_more(module: Any, names: tuple[str, ...], part: Callable[[Tensor], Any]) -> bool:
    """Whether a method stands for a part that was taken instead, and asks for a condition."""
    for name in names:
        method = getattr(module, name, None)
        if not inspect.ismethod(method) or part in (method, module):
            continue
        required = [
            parameter
            for parameter in inspect.signature(method).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        if len(required) > 1:
            return True
    return False


def _observed(trial: Trial, match: Match) -> tuple[list[Tensor], list[Any], Any]:
    """What the encoder reads and the decoder returns within a forward pass, and its result."""
    inputs: list[Tensor] = []
    outputs: list[Any] = []
    handles = []
    try:
        if isinstance(match.encode, nn.Module):
            handles.append(match.encode.register_forward_pre_hook(_append_first(inputs)))
        if isinstance(match.decode, nn.Module):
            handles.append(match.decode.register_forward_hook(_append_output(outputs)))
        return inputs, outputs, trial.run(trial.module, trial.x)
    except RuntimeError:  # compiled modules take no hooks, and are not judged
        return [], [], None
    finally:
        for handle in handles:
            handle.remove()


def _append_first(inputs: list[Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments and isinstance(arguments[0], Tensor):
            inputs.append(arguments[0].detach().clone())

    return hook


def _append_output(outputs: list[Any]) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        outputs.append(output.clone() if isinstance(output, Tensor) else output)

    return hook
