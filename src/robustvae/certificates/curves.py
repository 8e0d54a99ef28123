"""Certified tolerances for every size of the change at once, from one set of draws (ours)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack, final

import torch
from torch import Tensor

from robustvae._options import with_defaults
from robustvae.arguments import checked, is_dense, shown
from robustvae.certificates.certificate import check_complete
from robustvae.certificates.methods.sampling import Sampler, lower_index, upper_index
from robustvae.certificates.methods.smoothing import shifted_level
from robustvae.certificates.question import CENTERS, DISPLACEMENTS
from robustvae.data.verbs import reads_inputs
from robustvae.defenses import Victim
from robustvae.display import three_lines
from robustvae.errors import (
    DtypeError,
    RangeError,
    UnsupportedError,
    check_choice,
    check_count,
    check_images,
    check_number,
    check_probability,
    check_type,
)
from robustvae.models.base import check_weights
from robustvae.records import failure, failures_of, pieces
from robustvae.seeding import row_numbers


@final
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
class CertifiedCurve:
    """What r each input is certified for, by the size of the change.

    Attributes:
        sizes: l2 sizes, (K,), rising.
        tolerance: r with P(||Delta|| <= r) >= m under every change of at most that size, (B, K),
            float64; infinite where the draws do not suffice, NaN for an input that failed. The
            curve between sizes is the next larger size's value.
        confidence: Of each input: for its whole curve where `simultaneous`, else for each value.
        simultaneous: Whether the values of one input hold together.
        m: The probability.
        displacement: "full" or "paired".
        center: What "full" measures from.
        centers: The victim's own mean outputs, (B, C, H, W), where `center` is "own".
        status: "ok" for each input, or "failed: " and what the victim raised for it.

    Examples:
        >>> import robustvae as rv
        >>> vae, x = rv.load("digits-vae"), rv.data.load("digits", split="test").x[:2]
        >>> smooth = rv.Victim(vae, rv.InputNoise(stddev=0.1))
        >>> band = rv.certified_curve(smooth, x, sizes=[0.05, 0.1], draws=500,
        ...     generator=rv.generator(0))
        >>> str(band).splitlines()[0]
        'CertifiedCurve: 2 inputs, 2 sizes from 0.05 to 0.1 (l2), displacement full, center own'
        >>> bool((band.tolerance[:, 0] <= band.tolerance[:, 1]).all())
        True
    """

    sizes: Tensor
    tolerance: Tensor
    confidence: float
    simultaneous: bool
    m: float
    displacement: str
    center: str
    centers: Tensor | None = None
    status: tuple[str, ...] = ()

    @property
    def failures(self) -> dict[int, str]:
        """Why inputs failed, by their place."""
        return failures_of(self.status)

    def check_complete(self) -> None:
        """Raise `ModelError` where an input failed."""
        check_complete(self.status)

    def at(self, size: float) -> Tensor:
        """The tolerance at any size, (B,): the next larger size's, infinite beyond the last."""
        check_number(size, "size", least=0)
        place = int(torch.searchsorted(self.sizes, torch.tensor(size, dtype=self.sizes.dtype)))
        if place == len(self.sizes):
            return torch.full_like(self.tolerance[:, 0], math.inf)
        return self.tolerance[:, place]

    def radius(self, r: float) -> Tensor:
        """The largest size at which each input is certified for r, (B,); 0 where none is."""
        check_number(r, "r", least=0)
        holding = self.tolerance <= r
        return torch.where(holding, self.sizes[None, :], 0.0).amax(1)

    def __repr__(self) -> str:
        """Three lines: what is proved, in which sense, about how much."""
        scope = "each input's whole curve" if self.simultaneous else "each value"
        means = self.tolerance.nanmean(0)
        failures = f", {len(self.failures)} failed" if self.failures else ""
        return (
            f"CertifiedCurve: {len(self.tolerance)} inputs, {len(self.sizes)} sizes from "
            f"{float(self.sizes[0]):g} to {float(self.sizes[-1]):g} (l2), displacement "
            f"{self.displacement}, center {self.center}{failures}\n"
            f"  probabilistic, confidence {self.confidence:g} for {scope}, m = {self.m:g}\n"
            f"  mean tolerance from {float(means[0]):.3g} to {float(means[-1]):.3g}"
        )


@final
class CurveOptions(TypedDict, total=False):
    """Options of `certified_curve`, which describes them."""

    displacement: str
    center: str
    confidence: float
    draws: int
    simultaneous: bool
    rows: Sequence[int] | None


_DEFAULTS: CurveOptions = {
    "displacement": "full",
    "center": "own",
    "confidence": 0.999,
    "draws": 10_000,
    "simultaneous": True,
    "rows": None,
}


@reads_inputs("x")
@checked()
def certified_curve(
    victim: Victim,
    x: Tensor,
    sizes: Sequence[float],
    m: float = 0.5,
    *,
    generator: torch.Generator,
    **options: Unpack[CurveOptions],
) -> CertifiedCurve:
    """Tolerances r that every change of each size keeps with probability m, by smoothing.

    With F the distribution of ||Delta|| at the input, its m-quantile under a change of size rho is
    at most F^-1(Phi(Phi^-1(m) + rho / s)): an order statistic of one set of draws for each size.

    Args:
        victim: With noise on its input: `Victim(vae, InputNoise(stddev))`.
        x: Images in [0, 1], (B, C, H, W), or whatever `as_images` reads.
        sizes: l2 sizes of the change in pixel units, K of them, at least 0; sorted by us.
        m: Probability with which the output must stay within r, in (0, 1).
        generator: Of which one number is spent; all draws follow from it.
        options: Any of

            - displacement: "full" (the default), or "paired" for two independent outputs;
            - center: "own" (the default) or "mean": see `Question`;
            - confidence: Of each input, in (0, 1), 0.999 by default;
            - draws: Of each input, shared by all sizes, 10,000 by default;
            - simultaneous: Whether all values of an input hold together, as by default: each then
              gets 1 / K of the failure probability;
            - rows: The inputs' own numbers, from which their draws follow; None for their content.

    Returns:
        A `CertifiedCurve`. An input for which the victim raises, where it does not for all, has
        NaN for its tolerances and the reason in `failures`.

    Raises:
        UnknownOptionError: An option of another name.
        UnsupportedError: A victim without noise on its input, or whose rows are not independent.
        RangeError: Sizes, m, confidence or draws out of range.
        Exception: What the victim raises for every input.

    References:
        docs/theory.md, "Smoothing"; Chiang et al., 2020 (percentiles).

    Examples:
        >>> import robustvae as rv
        >>> vae, x = rv.load("digits-vae"), rv.data.load("digits", split="test").x[:2]
        >>> smooth = rv.Victim(vae, rv.InputNoise(stddev=0.1))
        >>> band = rv.certified_curve(smooth, x, sizes=[0.05, 0.1], draws=500,
        ...     generator=rv.generator(0))
        >>> band.tolerance.shape
        torch.Size([2, 2])
    """
    settings = with_defaults(certified_curve, options, _DEFAULTS)
    displacement, center = settings["displacement"], settings["center"]
    confidence, draws, simultaneous = (
        settings["confidence"],
        settings["draws"],
        settings["simultaneous"],
    )
    check_choice("displacement", displacement, DISPLACEMENTS)
    check_choice("center", center, CENTERS)
    check_probability(m, "m")
    check_probability(confidence, "confidence")
    check_type(simultaneous, "simultaneous", bool)
    ranking = sorted_sizes(sizes)
    samplers = samplers_of(victim, x, generator, settings["rows"], draws)
    pairs = displacement == "paired"
    # a union bound over the sizes: their order statistics come from the same draws
    chance = (1 - confidence) / (len(ranking) if simultaneous else 1)

    def measure(sampler: Sampler) -> list[Tensor]:
        centers = None if pairs else sampler.centers(center)
        indices = [
            upper_index(draws, shifted_level(m, size, sampler, up=True), chance) for size in ranking
        ]
        curves = []
        with sampler.running():
            for i, g in enumerate(sampler.generators("smoothing/draws")):
                local = None if centers is None else centers[i : i + 1]
                # an infinite distance sorts last, so that failures count against the input
                distances = sampler.distances(i, local, draws, g).cpu()
                sampler.check(distances)
                distances = distances.sort().values
                curves.append([math.inf if k is None else float(distances[k - 1]) for k in indices])
        return [torch.tensor(curves, dtype=torch.float64), *([] if centers is None else [centers])]

    (tolerance, *others), status = by_input(len(x), samplers, measure)
    return CertifiedCurve(
        sizes=torch.tensor(ranking, dtype=torch.float64),
        tolerance=tolerance,
        confidence=confidence,
        simultaneous=simultaneous,
        m=m,
        displacement="paired" if pairs else "full",
        center=center,
        centers=others[0] if others and center == "own" else None,
        status=status,
    )


def sorted_sizes(sizes: Any) -> list[float]:
    """The sizes as rising numbers.

    Raises:
        DtypeError: No sequence of numbers.
        RangeError: None, or a negative one.
    """
    if isinstance(sizes, Tensor) and not is_dense(sizes):
        raise DtypeError(f"sizes must be a list of numbers, got {shown(sizes)}")
    values = sizes.tolist() if hasattr(sizes, "tolist") else sizes
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise DtypeError(f"sizes must be a list of numbers, got {values!r}")
    if not values:
        raise RangeError("sizes must hold at least one number, got none")
    for size in values:
        check_number(size, "each of sizes", least=0)
    # rising, so that the tolerance is, too: a larger change includes the smaller ones
    return sorted(float(size) for size in values)


Samplers = Callable[[Sequence[int]], Sampler]
"""A sampler of the victim at the inputs of some places."""


def samplers_of(
    victim: Victim,
    x: Tensor,
    generator: torch.Generator,
    rows: Sequence[int] | None,
    draws: int,
) -> Samplers:
    """Samplers of the victim at inputs, all arguments validated."""
    check_type(victim, "victim", Victim)
    check_images(x, victim.vae.image_shape)
    victim.vae.check(x)
    check_weights(victim.vae)
    check_count(draws, "draws")
    check_type(generator, "generator", torch.Generator)
    numbers = tuple(row_numbers(x, rows))
    top = torch.iinfo(torch.int64).max
    seed = int(torch.randint(top, (), generator=generator, device=generator.device))

    def sampler(places: Sequence[int]) -> Sampler:
        some = x if len(places) == len(x) else x[list(places)]
        return Sampler(victim, some, tuple(numbers[place] for place in places), seed, draws)

    return sampler


def by_input(
    count: int, samplers: Samplers, measure: Callable[[Sampler], list[Tensor]]
) -> tuple[list[Tensor], tuple[str, ...]]:
    """What is measured of all inputs at once, or of one after the other where some of them fail.

    Args:
        count: Of the inputs.
        samplers: Of them.
        measure: Columns of a sampler's inputs, (n, ...) each.

    Returns:
        The columns, (count, ...), NaN for an input that fails, and the status of each input.

    Raises:
        UnsupportedError: A victim that is refused at any input: its draws are not independent at
            the others either, where that is seen less well.
        Exception: What every input raises.
    """
    refusals: list[UnsupportedError] = []

    def some(places: Sequence[int]) -> list[Tensor]:
        if refusals:
            raise refusals[0]
        try:
            return measure(samplers(places))
        except UnsupportedError as error:
            refusals.append(error)
            raise

    results = pieces(count, some)
    if refusals:
        raise refusals[0]
    (example,) = [part for _, part in results if not isinstance(part, Exception)][:1]
    columns = [column.new_full((count, *column.shape[1:]), math.nan) for column in example]
    status = ["ok"] * count
    for places, part in results:
        if isinstance(part, Exception):
            status[places[0]] = failure(part)
            continue
        for column, values in zip(columns, part, strict=True):
            column[list(places)] = values
    return columns, tuple(status)


def quantile_ends(
    sampler: Sampler, level: float, size: float, draws: int, failure: float
) -> tuple[int | None, int | None]:
    """Order statistics below and above a quantile under a change of that size, failure for each."""
    low = lower_index(draws, shifted_level(level, size, sampler, up=False), failure)
    high = upper_index(draws, shifted_level(level, size, sampler, up=True), failure)
    return low, high
