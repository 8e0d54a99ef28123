"""What a certificate is, and how those of several inputs become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from robustvae.display import three_lines
from robustvae.errors import ModelError
from robustvae.records import Failure, failures_of
from robustvae.rounding import floor

_PER_INPUT = ("radius", "simultaneous", "draws")


@final
@three_lines(floor=("radius",))
@dataclass(frozen=True, eq=False, repr=False)
class Certificate:
    """Lower bounds on robustness margins: each input is (r, m)-robust to every ||delta|| < radius.

    Attributes:
        radius: In the unit of the pixels, (B,), float64; 0 where nothing is proved, NaN where the
            input failed.
        kind: "deterministic", "probabilistic" (each input's radius is false with probability at
            most 1 - `confidence`) or "first_order" (an extrapolation, no guarantee).
        confidence: 1 for a deterministic certificate.
        method: The bound that gave each radius, B names; "none" where nothing is proved.
        status: "ok" or "abstain", B of them; "failed: " and what was raised, where an input raises
            and others do not; "not asked" where `beside` left an input out.
        assumptions: What the statement rests on, or what is not covered.
        displacement: "centered", "paired" or "full".
        norm: "l2" or "linf".
        by_method: The radii of every method that was taken, each (B,); `radius` is their largest.
        box: Whether it holds only for perturbations that keep the pixels in [0, 1]; False: for
            all, hence for these too.
        center: What the displacement is measured from: "mean" for g(mu(x)), "own" for `centers`.
        centers: The victim's own mean outputs, (B, C, H, W), where `center` is "own".
        simultaneous: Radii that hold for all B inputs together with `confidence`, (B,), where a
            method knows them; None otherwise (see `confidence_of_all`).
        draws: Draws that each input took, (B,), of a method that chooses; None otherwise.
        beside: The probabilistic certificate of inputs of which nothing deterministic is known;
            never mixed into `radius`.
        suggestions: For each input without a radius, which method certifies or may certify it.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("lipschitz-vae", latent=2, image_shape=(1, 4, 4), hidden=[16])
        >>> x = torch.rand(2, 1, 4, 4)
        >>> lower = rv.certify(vae, x, r=1.0, m=0.5, displacement="centered",
        ...     generator=rv.generator(0))
        >>> lower.radius.shape, lower.kind, lower.box
        (torch.Size([2]), 'deterministic', False)
        >>> [name for name in lower.by_method if "envelope" not in name and "tangent" not in name]
        ['noncentral', 'trace_markov']
    """

    radius: Tensor
    kind: str
    confidence: float
    method: tuple[str, ...]
    status: tuple[str, ...]
    assumptions: tuple[str, ...]
    displacement: str
    norm: str
    by_method: dict[str, Tensor]
    box: bool = False
    center: str = "mean"
    centers: Tensor | None = None
    simultaneous: Tensor | None = None
    draws: Tensor | None = None
    beside: Certificate | None = None
    suggestions: tuple[str, ...] = ()

    @property
    def failures(self) -> dict[int, str]:
        """Why inputs failed, by their place."""
        return failures_of(self.status)

    def check_complete(self) -> None:
        """Raise where an input failed.

        Raises:
            ModelError: What the first of them raised.
        """
        check_complete(self.status)

    @property
    def confidence_of_all(self) -> float:
        """Probability that all B radii hold together, at least: 1 - B (1 - `confidence`)."""
        return max(0.0, 1 - len(self.radius) * (1 - self.confidence))

    def coverage(self, radii: Tensor) -> Tensor:
        """Share of the inputs certified beyond each radius, (K,) to (K,): a falling curve."""
        beyond = self.radius[None, :] > radii.to(self.radius)[:, None]
        return beyond.to(torch.float64).mean(1)

    def __repr__(self) -> str:
        """Three lines: what is proved, in which sense, about how much."""
        radii = self.radius[self.radius > 0].tolist()
        ends = f"radii from {floor(min(radii))} to {floor(max(radii))}" if radii else "no radius"
        failures = f", {len(self.failures)} failed" if self.failures else ""
        remedies = [words for words in self.suggestions if words]
        remedy = f"; {remedies[0]} ({len(remedies)} without a radius)" if remedies else ""
        return (
            f"Certificate: {len(radii)} of {len(self.radius)} inputs, {ends} ({self.norm})"
            f"{failures}\n"
            f"  {self.kind}, confidence {self.confidence:g} for each input, displacement "
            f"{self.displacement}, center {self.center}\n"
            f"  methods: {', '.join(sorted(set(self.method)))}{remedy}"
        )


def check_complete(statuses: Sequence[str]) -> None:
    """Raise where an input failed.

    Raises:
        ModelError: What the first of them raised.
    """
    for place, reason in failures_of(statuses).items():
        raise ModelError(f"input {place} of {len(statuses)} raised {reason}")


def joined(parts: Sequence[Any], device: torch.device | str = "cpu") -> Certificate:
    """The certificate of all inputs from those of their ranges, as `plain` gives them.

    Args:
        parts: In the order of the inputs; a `Failure` for an input that failed, but not for all.
        device: Of the result.
    """
    first = next(part for part in parts if not isinstance(part, Failure))
    names = dict.fromkeys(
        name for part in parts if not isinstance(part, Failure) for name in part["by_method"]
    )
    parts = [
        {
            **_without_answer(first, 1, part.status, None),
            "by_method": {name: [None] for name in names},
            "beside": None,
        }
        if isinstance(part, Failure)
        else part
        for part in parts
    ]
    counts = [len(part["radius"]) for part in parts]

    def column(name: str) -> Tensor | None:
        values = [part[name] for part in parts]
        if any(value is None for value in values):
            return None
        kind = torch.int64 if name == "draws" else torch.float64
        return _tensor([value for part in values for value in part]).to(device, kind)

    by_method = {
        name: _tensor(
            [
                value
                for part, count in zip(parts, counts, strict=True)
                for value in part["by_method"].get(name, [0.0] * count)
            ]
        ).to(device)
        for name in names
    }
    besides = [part["beside"] for part in parts]
    words = [part["suggestions"] or [""] * n for part, n in zip(parts, counts, strict=True)]
    has_words = any(part["suggestions"] for part in parts)
    example = next((one for one in besides if one is not None), None)
    beside = None
    if example is not None:
        ranges = [
            _without_answer(example, count, "not asked", 0.0) if one is None else one
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


def _tensor(values: list[Any]) -> Tensor:
    """Numbers as `plain` writes them: infinities as words, None for what is no number."""
    numbers = [float("nan") if value is None else float(value) for value in values]
    return torch.tensor(numbers, dtype=torch.float64)


def _without_answer(
    like: dict[str, Any], count: int, status: str, radius: float | None
) -> dict[str, Any]:
    """Inputs of which nothing is said, beside others of which something is."""
    return {
        **like,
        "radius": [radius] * count,
        "method": ["none"] * count,
        "status": [status] * count,
        "by_method": {},
        "assumptions": [],
        "suggestions": [],
        "simultaneous": None if like["simultaneous"] is None else [radius] * count,
        "draws": None if like["draws"] is None else [0] * count,
    }
