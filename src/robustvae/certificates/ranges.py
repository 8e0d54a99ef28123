"""Certificates in ranges of inputs, each kept when it is finished."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from robustvae.certificates.certificate import Certificate, joined
from robustvae.certificates.certification import certify, inquire
from robustvae.defenses import Victim
from robustvae.models import VAE
from robustvae.records import Store, in_ranges, plain

SIZE = 20
"""Inputs that are computed together: the last digits of the fast methods may depend on it."""


def certify_in_ranges(
    store: Store,
    vae: VAE | Victim,
    x: Tensor,
    *,
    tell: Callable[[str], None],
    progress: Callable[[int, int, str], None] | None = None,
    **asked: Any,
) -> Certificate:
    """`certify`, in ranges of inputs that a store keeps: a stopped run goes on within one of them.

    Args:
        store: Where finished ranges lie, under a key of all that decides the radii.
        vae: As of `certify`.
        x: As of `certify`.
        tell: Told in a sentence that a stopped run goes on.
        progress: Called with inputs done, inputs in all and the range under way.
        asked: The other arguments of `certify`.

    Returns:
        The certificate, without `centers`.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.certificates.ranges import certify_in_ranges
        >>> from robustvae.records import Store
        >>> x = rv.data.load("digits", split="test").x[:3]
        >>> asked = {"r": 1.0, "displacement": "centered", "generator": rv.generator(0)}
        >>> vae, store = rv.load("digits-lipschitz-vae"), Store(None, "")
        >>> certify_in_ranges(store, vae, x, tell=print, **asked).kind
        'deterministic'
    """
    arguments = inspect.signature(certify).bind(vae, x, **asked)
    arguments.apply_defaults()
    inquiry = inquire(vae, x, arguments.arguments)

    def compute(rows: range) -> Any:
        return plain(dataclasses.replace(inquiry.answer(rows), centers=None))

    return joined(in_ranges(store, len(x), SIZE, compute, tell, progress), x.device)
