"""The diagnosis of a model before any number is believed: what is wrong with it, and the remedy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from robustvae.arguments import checked, is_dense, shown
from robustvae.data.coercion import as_images
from robustvae.data.images import Images
from robustvae.errors import DtypeError, ShapeError, UnsupportedError, check_type
from robustvae.models.adapters import wrap
from robustvae.models.adapters.trial import buffers_kept
from robustvae.models.adapters.wrapped import WrappedVAE
from robustvae.models.base import VAE, frozen
from robustvae.models.comparisons import line
from robustvae.models.items import Diagnosis, Item
from robustvae.models.looks import Subject, look

ROWS = 8  # inputs looked at; a fault of a model shows on any of them
# draws behind noise on the input: what one batch in 32 shares is seen twice
AT_ONCE, BATCHES = 64, 64
PATIENCE = 4.0  # CPU seconds that such draws may take

__all__ = ["check", "Diagnosis", "Item"]


@checked()
def check(model: Any, x: Any) -> Diagnosis:
    """Diagnose a model or a victim on a few inputs: is it what the library takes it for?

    The model runs in evaluation mode on at most eight inputs, and is left as it was. Looked at are
    mode, randomness inside the calls, dependence on the batch, range of the pixels, spread of the
    codes, kind of the outputs, finite values by type, gradients against central differences, and
    what changes by being called; behind noise on the input also whether draws look independent.

    Args:
        model: A `VAE`; a `Victim`; or a module, which is wrapped first.
        x: Inputs, in [0, 1] or in the model's unit: a tensor or whatever `rv.data.as_images` takes.

    Returns:
        `Diagnosis`; `passed` is False where something failed, and each item says its remedy.

    Raises:
        DtypeError: Neither a model, nor a victim, nor a module.
        RobustVAEError: Inputs that the model cannot be given.

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.load("digits-vae")
        >>> rv.check(vae, rv.data.load("digits", split="test").x[:4]).passed
        True
    """
    if isinstance(model, nn.Module) and not isinstance(model, VAE):
        model = wrap(model, fit_on=x)
    vae = model if isinstance(model, VAE) else getattr(model, "vae", None)
    if not isinstance(vae, VAE):
        raise DtypeError(
            f"model must be a VAE, a Victim or a module, got {type(model).__name__}: "
            "see rv.wrap for autoencoders of other kinds"
        )
    subject = Subject(model, vae, _inputs(vae, x))
    with buffers_kept(vae), torch.random.fork_rng(devices=[]):
        items = [*look(subject), *_forward(vae, subject.x), *_draws(subject), *_statements(vae)]
    return Diagnosis(tuple(items), subject.words)


def _forward(vae: VAE, x: Tensor) -> Iterator[Item]:
    """Whether a decoder that is a whole forward pass does on these inputs what forward does."""
    try:
        with frozen(vae):
            gap = vae.forward_gap(x) if isinstance(vae, WrappedVAE) else None
    except Exception as error:  # a stranger's code may raise anything
        yield Item("forward_agrees", None, f"could not be judged: {line(error)}")
        return
    if gap is None:
        return
    same = gap[0] <= gap[1]
    yield Item(
        "forward_agrees",
        same,
        "forward passes give what their codes decode to"
        if same
        else f"forward passes differ by {gap[0]:.2g} of their size from what their codes decode to",
        "" if same else "forward hands more than the code to its decoder: give output_only=True",
    )


def _draws(subject: Subject) -> Iterator[Item]:
    """Whether draws behind noise on the input are what smoothing takes them for, as it asks it."""
    if getattr(subject.model, "noise", None) is None:
        return
    name = "draws_independent"
    try:
        seconds = subject.seconds or _seconds(subject)
        if AT_ONCE * BATCHES * seconds > PATIENCE * len(subject.x):
            yield Item(name, None, "draws are too slow to be made here: certify looks at its own")
            return
        with torch.no_grad():
            subject.model.check_draws(subject.x, at_once=AT_ONCE, batches=BATCHES)
    except UnsupportedError as error:
        message, _, remedy = line(error).partition(": ")
        yield Item(name, False, message, remedy)
    except Exception as error:  # a stranger's code may raise anything
        yield Item(name, None, f"could not be judged: {type(error).__name__}: {line(error)}")
    else:
        yield Item(name, True, f"{AT_ONCE * BATCHES:,} draws look independent and of one law")


def _seconds(subject: Subject) -> float:
    """CPU seconds that a call takes, where its operations could not be counted."""
    start = time.process_time()
    with torch.no_grad():
        subject.output(subject.x)
    return time.process_time() - start


def _statements(vae: VAE) -> Iterator[Item]:
    """What `wrap` took for granted and what it could not look into."""
    for words in getattr(vae, "assumptions", ()):
        yield Item("assumption", None, words)
    if unseen := getattr(vae, "unseen", ()):
        yield Item(
            "weights_in_sight",
            None,
            f"not looked into: {', '.join(unseen)}",
            "pass the module that holds the weights, so that their mode and values are checked",
        )


def _inputs(vae: VAE, x: Any) -> Tensor:
    space = getattr(vae, "space", None)
    if isinstance(x, Tensor) and space is None and x.is_floating_point():
        images = x
    elif isinstance(x, Images):
        images = x[: min(len(x), ROWS)].x
    else:
        images = as_images(x, space=space).x
    check_type(images, "x", Tensor)
    if not is_dense(images) or images.ndim == 0:
        raise ShapeError(f"x must be a batch of inputs that hold values, got {shown(images)}")
    images = images[:ROWS].detach().to(vae.device)
    if images.is_floating_point() and images.dtype != vae.dtype:
        images = images.to(vae.dtype)
    vae.check(images)
    return images.contiguous()
