"""Sampled reach (ours): how far each drawn pair of latents is from breaking, in order."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from robustvae import bounds
from robustvae.certificates.methods.base import Finding, Task, row_normals
from robustvae.certificates.methods.lipschitz import Grounds, decoder_logits, grounds
from robustvae.certificates.methods.sampling import lower_index
from robustvae.certificates.tangent import tangent_reach
from robustvae.errors import UnsupportedError, check_count
from robustvae.registry import register

# rounding is bounded for latents within so many times r / a of a draw; reaches are cut off there
_FARTHEST = 3.0


@register("certificate-method", "sampled_reach")
@final
@dataclass(frozen=True)
class SampledReach:
    """Reaches around drawn latents: probabilistic, for paired too, any m; for a fixed sigma (ours).

    For a drawn pair (z0, z), let t be such that every move of z by at most t keeps the outputs
    within r. A shift of the posterior by D keeps the event whenever t >= D, so D is an order
    statistic of the t of disjoint pairs, and the radius D / b. Each t is the tangent envelope, the
    free one or r / a at z, with what the pair itself leaves of r.

    Args:
        draws: Pairs of each input, unless the caller says how many.
        steps: Gradient steps of each tangent envelope; any number gives a valid bound.

    Raises:
        RangeError: A count that is not positive.
    """

    draws: int = 256
    steps: int = 150

    kind: ClassVar[str] = "probabilistic"
    norms: ClassVar[tuple[str, ...]] = ("l2",)

    def __post_init__(self) -> None:
        """Validate the counts."""
        check_count(self.draws, "draws")
        check_count(self.steps, "steps", least=0)

    def __call__(self, task: Task) -> Finding:
        """Radii from order statistics of the reaches."""
        common, ask = grounds(task), task.question
        if not common.constants.fixed_stddev:
            raise UnsupportedError(
                "the sampled reach with a spread that is not the same for every input: use "
                "methods=['neyman_pearson']"
            )
        count = task.draws or self.draws
        place = lower_index(count, 1 - ask.m, 1 - task.confidence)
        together = lower_index(count, 1 - ask.m, (1 - task.confidence) / task.count)
        mean, b = common.posterior.mean, common.constants.b
        noises = row_normals(mean, task.generators("sampled reach"), count)
        partners = row_normals(mean, task.generators("sampled reach/partner"), count)
        farthest = _FARTHEST * common.plain_cap
        shift = common.mean_error(farthest / b) + common.mean_error(torch.zeros_like(farthest))
        radii = torch.zeros(2, len(mean), dtype=torch.float64)
        for i in range(len(mean)):
            pair = [common.posterior.stddev[i] * noise[i] for noise in (noises, partners)]
            if ask.displacement != "paired":
                pair[1] = torch.zeros_like(pair[1])
            reach = self.reaches(common, mean[i], pair, farthest[i]).sort().values
            for row, k in enumerate((place, together)):
                if k is not None:
                    shifts = float(reach[k - 1]) * (1 - bounds.SLACK) - float(shift[i])
                    radii[row, i] = max(0.0, shifts / (b * (1 + bounds.SLACK)))
        assumptions = (
            *common.assumptions,
            f"{count} disjoint pairs of draws; confidence {task.confidence:g} for each input",
        )
        return Finding({"sampled_reach": radii[0]}, assumptions, simultaneous=radii[1])

    def reaches(
        self, shared: Grounds, mean: Tensor, pair: list[Tensor], farthest: Tensor
    ) -> Tensor:
        """How far the first latent of each pair may move before its output leaves r, (n,).

        Args:
            shared: Constants and model.
            mean: The posterior's mean at one input, (d,).
            pair: What the two latents of each pair are off it, (n, d) each.
            farthest: No reach is taken beyond this, since rounding was bounded up to it.

        Returns:
            Distances, at most `farthest`; negative where the pair itself is too far apart.
        """
        z, other = (mean + aside for aside in pair)
        gap = (shared.exact.decode(z).mean - shared.exact.decode(other).mean).flatten(1).norm(dim=1)
        rows = mean.expand_as(z)
        near, far = (aside.norm(dim=1) for aside in reversed(pair))
        losses = shared.output_error(rows, far + farthest) + shared.output_error(rows, near)
        left = shared.r - gap * (1 + bounds.SLACK) - losses
        reach = left / shared.constants.a * (1 - bounds.SLACK)
        usable = (left > 0).nonzero()[:, 0]
        if not shared.constants.sigmoid or not len(usable):
            return reach.clamp(max=farthest)
        assert shared.parts.decoder is not None
        z, tolerance = z[usable], left[usable]
        wide = bounds.envelope_reach(decoder_logits(shared.parts, z), tolerance)
        wide = wide / shared.constants.a_logits * (1 - bounds.SLACK)
        with contextlib.suppress(UnsupportedError):  # other layers: the free envelope speaks
            tilt = tangent_reach(shared.parts.decoder, z, tolerance, self.steps)
            wide = torch.maximum(wide, tilt * (1 - bounds.SLACK))
        return reach.index_put((usable,), torch.maximum(reach[usable], wide)).clamp(max=farthest)
