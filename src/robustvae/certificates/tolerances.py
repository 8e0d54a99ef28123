"""Certified radii along r: how far a change may go for each of several tolerances (ours)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from robustvae import bounds
from robustvae.arguments import checked
from robustvae.certificates.certification import answer, as_victim, methods_by_name, seed_of
from robustvae.certificates.methods import Task
from robustvae.certificates.methods.sampling import Sampler
from robustvae.certificates.methods.smoothing import sampler_radius
from robustvae.certificates.question import Question
from robustvae.data.verbs import reads_inputs
from robustvae.defenses import Victim
from robustvae.display import three_lines
from robustvae.errors import UnsupportedError, check_count, check_images, check_positive
from robustvae.models import VAE
from robustvae.models.base import check_weights
from robustvae.seeding import row_numbers

QUICK = ("noncentral", "trace_markov", "envelope")
"""The deterministic methods of `certify` but for the one that takes the longest."""

CONFIDENCE = 0.999


@final
@three_lines(floor=("radius",))
@dataclass(frozen=True, eq=False, repr=False)
class CertifiedRadii:
    """For each tolerance the radius below which no change breaks an input.

    Attributes:
        tolerances: r, (K,), as they were given.
        radius: l2 in pixel units, (B, K), float64; 0 where nothing is proved.
        kind: "deterministic" or "probabilistic".
        confidence: Of all radii of one input together; 1 for deterministic ones.
        assumptions: What they rest on.
    """

    tolerances: Tensor
    radius: Tensor
    kind: str
    confidence: float
    assumptions: tuple[str, ...]


@reads_inputs("x")
@checked(formula=True)
def certified_radii(
    victim: VAE | Victim,
    x: Tensor,
    question: Question,
    tolerances: Sequence[float],
    *,
    generator: torch.Generator,
    rows: Sequence[int] | None = None,
    draws: int = 2000,
) -> CertifiedRadii:
    """Certified radii at several tolerances at once: the certified side of the band.

    Of a victim with noise on its input by smoothing, from one set of draws: all radii of an input
    hold together with confidence 0.999. Otherwise by the deterministic methods but the tangent,
    which takes the longest.

    Args:
        victim: As of `certify`.
        x: Images in [0, 1], (B, C, H, W), or whatever `as_images` reads.
        question: Of which r and box are not read.
        tolerances: r, K of them, positive.
        generator: Of which one number is spent; all draws follow from it and each input.
        rows: The inputs' own numbers, from which their draws follow; None for their content.
        draws: Of each input, where draws are made.

    Returns:
        A `CertifiedRadii`.

    Raises:
        UnsupportedError: No method speaks of this victim; the message says why.
        RangeError: A tolerance that is not positive.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.certificates import certified_radii
        >>> vae = rv.load("digits-lipschitz-vae")
        >>> x = rv.data.load("digits", split="test").x[:2]
        >>> question = rv.Question(r=1.0, displacement="centered", box=False)
        >>> band = certified_radii(vae, x, question, [0.8, 1.2], generator=rv.generator(0))
        >>> band.kind, bool((band.radius[:, 0] < band.radius[:, 1]).all())
        ('deterministic', True)
    """
    victim = as_victim(victim)
    check_images(x, victim.vae.image_shape)
    victim.vae.check(x)
    check_weights(victim.vae)
    check_count(draws, "draws")
    for r in tolerances:
        check_positive(r, "each of tolerances")
    numbers, seed = tuple(row_numbers(x, rows)), seed_of(generator)
    levels = torch.tensor([float(r) for r in tolerances], dtype=torch.float64)
    if victim.noise is not None:
        sampler = Sampler(victim, x, numbers, seed, draws)
        radius = _smoothed(sampler, question, levels, draws)
        if question.norm == "linf":  # one l2 radius within a linf ball's inscribed l2 ball
            radius = radius * x[0].numel() ** -0.5 * (1 - bounds.SLACK)
        assumptions = (f"{draws} draws of each input, its radii together at {CONFIDENCE:g}",)
        return CertifiedRadii(levels, radius, "probabilistic", CONFIDENCE, assumptions)
    methods, memo = methods_by_name(None, QUICK), dict[str, Any]()
    parts = [
        answer(
            Task(
                victim=victim,
                x=x,
                question=dataclasses.replace(question, r=r, box=False),
                confidence=CONFIDENCE,
                draws=None,
                rows=numbers,
                seed=seed,
                methods=tuple(methods),
                memo=memo,
            ),
            methods,
            CONFIDENCE,
        )
        for r in levels.tolist()
    ]
    if not any(part.by_method for part in parts):
        raise UnsupportedError("; ".join(parts[-1].assumptions))
    radius = torch.stack([part.radius for part in parts], 1)
    return CertifiedRadii(levels, radius, "deterministic", 1.0, parts[-1].assumptions)


def _smoothed(sampler: Sampler, question: Question, levels: Tensor, draws: int) -> Tensor:
    """Radii by smoothing, (B, K), the failure probability split over the tolerances."""
    is_paired = question.displacement == "paired"
    centers = None if is_paired else sampler.centers(question.center)
    failure, rows = (1 - CONFIDENCE) / len(levels), list[list[float]]()
    with sampler.running():
        for i, g in enumerate(sampler.generators("smoothing/along r")):
            center = None if centers is None else centers[i : i + 1]
            distances = sampler.distances(i, center, draws, g).cpu()
            sampler.check(distances)
            counts = (distances[:, None] <= levels).sum(0).tolist()
            rows.append(
                [sampler_radius(sampler, count, draws, failure, question.m) for count in counts]
            )
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(levels))
