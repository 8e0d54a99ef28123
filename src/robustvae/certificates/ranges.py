"""Certificates in ranges of inputs, each kept when it is finished."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustvae.certificates.certification import Certificate, certify, inquire
from robustvae.defenses import Victim
from robustvae.models import VAE
from robustvae.records import Store, in_ranges, plain

SIZE = 20
"""Inputs in a range: few seconds of the fast methods, and minutes of the slow ones."""

_PER_INPUT = ("radius", "simultaneous", "draws")


def certify_in_ranges(
    store: Store,
    vae: VAE | Victim,
    x: Tensor,
    *,
    tell: Callable[[str], None],
    progress: Callable[[int, int, str], None] | None = None,
    **asked: Any,
) -> Certificate:
    """`certify`, in ranges of inputs that a store keeps: a stopped run loses one of them.

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


def joined(parts: Sequence[Any], device: torch.device | str = "cpu") -> Certificate:
    """The certificate of all inputs from those of their ranges, as `plain` gives them.

    Args:
        parts: In the order of the inputs.
        device: Of the result.
    """
    first = parts[0]
    counts = [len(part["radius"]) for part in parts]

    def column(name: str) -> Tensor | None:
        values = [part[name] for part in parts]
        if any(value is None for value in values):
            return None
        kind = torch.int64 if name == "draws" else torch.float64
        # `plain` writes infinities as words
        flat = [float(value) for part in values for value in part]
        return torch.tensor(flat, dtype=torch.float64).to(device, kind)

    by_method = {
        name: torch.tensor(
            [
                float(value)
                for part, count in zip(parts, counts, strict=True)
                for value in part["by_method"].get(name, [0.0] * count)
            ],
            dtype=torch.float64,
            device=device,
        )
        for name in dict.fromkeys(name for part in parts for name in part["by_method"])
    }
    besides = [part["beside"] for part in parts]
    words = [part["suggestions"] or [""] * n for part, n in zip(parts, counts, strict=True)]
    has_words = any(part["suggestions"] for part in parts)
    example = next((one for one in besides if one is not None), None)
    beside = None
    if example is not None:
        ranges = [
            _not_asked(example, count) if one is None else one
            for one, count in zip(besides, counts, strict=True)
        ]
        beside = joined(ranges, device)
    assumptions = dict.fromkeys(line for part in parts for line in part["assumptions"])
    return Certificate(
        **{name: first[name] for name in ("kind", "confidence", "displacement", "norm", "box")},
        **{name: column(name) for name in _PER_INPUT},  # type: ignore[arg-type]
        center=first["center"],
        method=tuple(name for part in parts for name in part["method"]),
        status=tuple(word for part in parts for word in part["status"]),
        assumptions=tuple(assumptions),
        by_method=by_method,
        beside=beside,
        suggestions=tuple(word for part in words for word in part) if has_words else (),
    )


def _not_asked(like: dict[str, Any], count: int) -> dict[str, Any]:
    """A range of which all inputs have a radius, beside one where others were asked."""
    zeros = [0.0] * count
    return {
        **like,
        "radius": zeros,
        "method": ["none"] * count,
        "status": ["not asked"] * count,
        "by_method": {},
        "assumptions": [],
        "suggestions": [],
        "simultaneous": None if like["simultaneous"] is None else zeros,
        "draws": None if like["draws"] is None else [0] * count,
    }
