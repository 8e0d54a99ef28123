"""Certified decisions of a smoothed classifier (Cohen et al.)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.certificates.certificate import check_complete
from robustvae.certificates.curves import by_input, samplers_of
from robustvae.certificates.methods.base import chunks
from robustvae.certificates.methods.sampling import Sampler
from robustvae.certificates.methods.smoothing import sampler_radius
from robustvae.data.verbs import reads_inputs
from robustvae.defenses import Victim
from robustvae.display import three_lines
from robustvae.errors import check_count, check_probability
from robustvae.loops import in_turn
from robustvae.records import failures_of


@final
@three_lines(floor=("radius",))
@dataclass(frozen=True, eq=False, repr=False)
class CertifiedDecision:
    """Decisions that no change below a radius turns.

    Attributes:
        decision: The class of the smoothed classifier, (B,); -1 where it abstains.
        radius: l2 radius in pixel units, (B,), float64; 0 where it abstains.
        confidence: Of each input.
        status: "ok" for each input, or "failed: " and what the victim raised for it: then its
            decision is -1 and its radius NaN.
    """

    decision: Tensor
    radius: Tensor
    confidence: float
    status: tuple[str, ...] = ()

    @property
    def failures(self) -> dict[int, str]:
        """Why inputs failed, by their place."""
        return failures_of(self.status)

    def check_complete(self) -> None:
        """Raise `ModelError` where an input failed."""
        check_complete(self.status)

    def accuracy(self, labels: Tensor, size: float) -> float:
        """Share of the inputs whose decision is the label up to a change of that size."""
        right = (self.decision == labels.to(self.decision)) & (self.radius > size)
        return float(right.double().mean())


@reads_inputs("x")
@checked()
def certify_decision(
    victim: Victim,
    x: Tensor,
    *,
    generator: torch.Generator,
    confidence: float = 0.999,
    draws: int = 10_000,
    choosing: int = 100,
    rows: Sequence[int] | None = None,
) -> CertifiedDecision:
    """The class that the smoothed classifier decides for, and how far that holds.

    The class is the most frequent one of `choosing` draws, which are used for nothing else; the
    radius is s Phi^-1(p), p a Clopper-Pearson lower bound on its probability from fresh draws.

    Args:
        victim: With noise on its input, and a classifier.
        x: Images in [0, 1], (B, C, H, W), or whatever `as_images` reads.
        generator: Of which one number is spent.
        confidence: Of each input, in (0, 1).
        draws: That decide about the radius.
        choosing: That choose the class.
        rows: The inputs' own numbers; None for their content.

    Returns:
        A `CertifiedDecision`; an input for which the victim raises, where it does not for all, has
        its reason in `failures`.

    Raises:
        ConfigError: A victim without a classifier.
        UnsupportedError: A victim without noise on its input.

    References:
        Cohen et al., 2019, section 3.2.2.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.certificates import certify_decision
        >>> vae, x = rv.load("digits-vae"), rv.data.load("digits", split="test").x[:2]
        >>> sign = lambda z: torch.stack([z[:, 0], -z[:, 0]], 1)
        >>> smooth = rv.Victim(vae, rv.InputNoise(stddev=0.1), sign)
        >>> certify_decision(smooth, x, draws=500, generator=rv.generator(0)).radius.shape
        torch.Size([2])
    """
    check_probability(confidence, "confidence")
    check_count(choosing, "choosing")
    samplers = samplers_of(victim, x, generator, rows, draws)

    def measure(sampler: Sampler) -> list[Tensor]:
        decisions, radii = [], []
        with sampler.running():
            choosers = sampler.generators("smoothing/choice")
            deciders = sampler.generators("smoothing/decision")
            for i, (chooser, decider) in enumerate(zip(choosers, deciders, strict=True)):
                choice = int(_classes(sampler, i, choosing, chooser).mode().values)
                matches = _classes(sampler, i, draws, decider) == choice
                sampler.check((~matches).double())
                votes = int(matches.sum())
                radius = sampler_radius(sampler, votes, draws, 1 - confidence, 0.5)
                decisions.append(choice if radius > 0 else -1)
                radii.append(radius)
        return [torch.tensor(values, dtype=torch.float64) for values in (decisions, radii)]

    (decisions, radii), status = by_input(len(x), samplers, measure)
    return CertifiedDecision(decisions.nan_to_num(-1).long(), radii, confidence, status)


def _classes(sampler: Sampler, i: int, count: int, g: torch.Generator) -> Tensor:
    """Draws of the class at input i, (count,)."""

    def some(n: int) -> Tensor:
        sampler.independence.check_generator(i, g)
        rows = sampler.x[i : i + 1].expand(n, *sampler.x.shape[1:])
        return sampler.victim.classify(rows, generator=g).argmax(1)

    return torch.cat(in_turn("classes", [*chunks(count, sampler.at_once)], some, g, sampler.x[i]))
