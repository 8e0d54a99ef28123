"""Whether an encoder and a decoder that were found are all that a module's forward pass does."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from robustvae.models.adapters.adapter import same
from robustvae.models.adapters.reading import is_distribution, picked, places_of
from robustvae.models.adapters.trial import (
    DECODERS,
    ENCODERS,
    LEAST_DRAWS,
    Trial,
    attribute,
    is_alike,
    is_center,
)
from robustvae.models.adapters.wrapped import Match

UNREAD_SPREAD = (
    "forward draws codes about the mean, and no spread was found in what the encoder returns: none "
    "is judged; say log_var= or code_stddev= if there is one"
)


def as_forward(trial: Trial, match: Match) -> Match | None:
    """The match, or None where the module does more than its two parts.

    Parts inside a module may be less than the model: its forward pass may scale what the encoder
    reads, hand features past the code, crop or squash what the decoder returns, or add a
    condition. Two parts of such a module fit each other and would be judged in its place. A
    squashing that is the logistic function is read as log odds; after anything else the parts do
    not match.

    Args:
        trial: The module and its inputs.
        match: Its encoder and its decoder, as found.
    """
    if any(_is_passed_over(trial, names, part) for names, part in _ends(match)):
        return None
    if not isinstance(trial.module, nn.Module):
        return match
    encoding, decoding, result = _observed(trial, match)
    if result is None and _reads_images(trial):
        return None  # parts may bear flattened inputs that the module itself does not
    if encoding and not same(encoding[0].value, trial.x):
        return None
    draws = _draws_about(trial, match, decoding[0].value) if decoding else False
    if draws is None:
        return None
    if draws and match.code.mean is not None and match.code.spread is None:
        match = replace(match, assumptions=(*match.assumptions, UNREAD_SPREAD))
    ends = (match.encode, encoding), (match.decode, decoding)
    if any(_reads_more(trial, part, calls) for part, calls in ends):
        return None
    images = _images(trial, result)
    images = [image for image in images if not same(image, trial.x)]
    if not images:
        return match
    if any(_is_watched(trial, part) and not calls for part, calls in ends):
        return None  # a part that the forward pass does without
    outputs = [_image(match, call.output) for call in decoding]
    if not decoding and _draws_nothing(trial, images):
        code = trial.mean_of(match.code, trial.run(match.encode, trial.x))
        if code is not None:
            outputs = [_image(match, trial.run(match.decode, code.to(trial.x.dtype)))]
    known = [output for output in outputs if output is not None]
    if not known:
        return _as_draws(trial, match)
    if any(same(image, output) for image in images for output in known):
        return match
    if any(same(image, torch.sigmoid(output)) for image in images for output in known):
        return _of_logits(trial, match)
    return None


def _of_logits(trial: Trial, match: Match) -> Match | None:
    """The match of a decoder whose output forward squashes."""
    if (trial.space.low, trial.space.high) != (0.0, 1.0):
        return None
    words = f"{match.recognized}; decoder's output read as log odds, as in forward"
    return replace(match, recognized=words, output=replace(match.output, is_logits=True))


def _as_draws(trial: Trial, match: Match) -> Match | None:
    """The match, where draws of its code give what forward passes give, whose calls are not seen.

    Scripted modules take no hooks, and a forward pass may write out what a method stands for.
    """
    if match.code.mean is None or match.code.spread is None:
        return match
    draws, output = trial.forward_draws(), trial.run(match.encode, trial.x)
    samples = None if draws is None else trial.samples(match.code, output, match.decode)
    if draws is None or samples is None or is_alike(samples, draws):
        return match
    return _of_logits(trial, match) if is_alike(torch.sigmoid(samples), draws) else None


def _ends(match: Match) -> tuple[tuple[tuple[str, ...], Any], ...]:
    return (ENCODERS[:2], match.encode), (DECODERS[:2], match.decode)


def _is_passed_over(trial: Trial, names: tuple[str, ...], part: Callable[[Tensor], Any]) -> bool:
    """Whether a method that stands for a part was left out, for a part inside of it.

    Such a method asks for more than one argument, a condition, or failed on what the part takes.
    """
    for name in names:
        method = attribute(trial.module, name)
        if method == part or part is trial.module:
            return False
        if not inspect.ismethod(method):
            continue
        required = [
            parameter
            for parameter in inspect.signature(method).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        if len(required) > 1 or (name in ENCODERS and trial.run(method, trial.x) is None):
            return True
    return False


def _reads_images(trial: Trial) -> bool:
    """Whether the forward pass runs on images, where the trial is one of flattened inputs."""
    if trial.space.shape == trial.space.image_shape:
        return False
    x = trial.x.reshape(len(trial.x), *trial.space.image_shape)
    return trial.run(trial.module, x) is not None


@final
@dataclass(frozen=True)
class Call:
    """One call of a part within a forward pass.

    Attributes:
        value: Its first argument.
        more: Whether there were others, but for None.
        output: What it returned.
    """

    value: Tensor
    more: bool
    output: Any


def _observed(trial: Trial, match: Match, seed: int = 0) -> tuple[list[Call], list[Call], Any]:
    """The calls of encoder and decoder within a forward pass, and its result."""
    encoding: list[Call] = []
    decoding: list[Call] = []
    # a compiled module would be compiled once more for being watched
    module = getattr(trial.module, "_orig_mod", trial.module)
    with contextlib.ExitStack() as stack:
        for part, calls in ((match.encode, encoding), (match.decode, decoding)):
            if part is not trial.module:
                stack.enter_context(_watching(part, calls))
        return encoding, decoding, trial.run(module, trial.x, seed=seed)


@contextlib.contextmanager
def _watching(part: Callable[[Tensor], Any], calls: list[Call]) -> Iterator[None]:
    """Within: the calls of a module or of a module's method are noted."""
    if isinstance(part, nn.Module):
        if isinstance(part, torch.jit.ScriptModule):  # which takes no hooks
            yield
            return
        first: list[tuple[Tensor, bool]] = []

        def begin(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            first.append(_arguments(arguments, named))

        def end(module: nn.Module, arguments: Any, output: Any) -> None:
            calls.append(Call(*first.pop(), _copied(output)))

        handles = [
            part.register_forward_pre_hook(begin, with_kwargs=True),
            part.register_forward_hook(end),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        return
    owner, name = getattr(part, "__self__", None), getattr(part, "__name__", "")
    if not (inspect.ismethod(part) and isinstance(owner, nn.Module) and name not in vars(owner)):
        yield
        return

    @functools.wraps(part)
    def noted(*arguments: Any, **named: Any) -> Any:
        begin = _arguments(arguments, named)
        output = part(*arguments, **named)
        calls.append(Call(*begin, _copied(output)))
        return output

    vars(owner)[name] = noted  # an attribute of the instance goes before its class's method
    try:
        yield
    finally:
        del vars(owner)[name]


def _arguments(arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Tensor, bool]:
    values = [*arguments, *named.values()]
    first = values[0] if values and isinstance(values[0], Tensor) else torch.empty(0)
    return first.detach().clone(), any(value is not None for value in values[1:])


def _copied(output: Any) -> Any:
    return output.clone() if isinstance(output, Tensor) else output


def _is_watched(trial: Trial, part: Any) -> bool:
    """Whether a call of a part within the forward pass would have been seen, and must be there.

    A method may stand for what the forward pass writes out once more.
    """
    return (
        isinstance(part, nn.Module)
        and part is not trial.module
        and not isinstance(part, torch.jit.ScriptModule)
        and not isinstance(trial.module, torch.jit.ScriptModule)
    )


def _reads_more(trial: Trial, part: Callable[[Tensor], Any], calls: list[Call]) -> bool:
    """Whether what a part is given beside its first argument changes what it returns."""
    for call in calls:
        if not call.more:
            continue
        alone, again = (_tensors(trial.run(part, call.value, seed=seed)) for seed in (0, 1))
        output = _tensors(call.output)
        repeats = len(alone) == len(again) and all(map(same, alone, again))
        if len(alone) != len(output) or (repeats and not all(map(same, alone, output))):
            return True
    return False


def _draws_about(trial: Trial, match: Match, value: Tensor) -> bool | None:
    """Whether what the decoder reads within a forward pass is drawn about the code, or is it.

    None where it is neither: between the two may be a flow, a codebook, a normalization or a
    relaxed choice.
    """
    code = trial.mean_of(match.code, trial.run(match.encode, trial.x))
    if code is None or code.numel() != value.numel() or same(value, code):
        return False
    values = [value]
    for seed in range(1, LEAST_DRAWS):
        calls = _observed(trial, match, seed)[1]
        if not calls or calls[0].value.shape != value.shape:
            return False
        values.append(calls[0].value)
        if seed == 1 and same(*values):
            return None  # no draw, and another code than the encoder's
    return True if is_center(torch.stack(values), code.reshape(value.shape)) else None


def _tensors(output: Any) -> list[Tensor]:
    if is_distribution(output):
        return [output.mean]
    parts = (output, *places_of(output).values())
    return [part for part in parts if isinstance(part, Tensor)]


def _images(trial: Trial, result: Any) -> list[Tensor]:
    return [result] if trial.is_image(result) else list(trial.images(result).values())


def _draws_nothing(trial: Trial, images: list[Tensor]) -> bool:
    """Whether a forward pass gives the same images by another random state."""
    result = trial.run(trial.module, trial.x, seed=1)
    others = _images(trial, result)
    return all(any(same(image, other) for other in others) for image in images)


def _image(match: Match, output: Any) -> Tensor | None:
    """The image in what the decoder returned, or None where it is none."""
    try:
        if match.output.reconstruction is None:
            mean: Tensor = output.mean
            return mean
        return picked(output, match.output.reconstruction, "decode")
    except Exception:  # a user's object may raise anything from a property
        return None
