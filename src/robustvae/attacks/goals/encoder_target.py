"""Move an encoder's code away, or to that of a target: what protects images from editing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from robustvae.attacks.goals.base import targets
from robustvae.defenses import Victim
from robustvae.errors import check_positive, check_type
from robustvae.models.hierarchy import check_gaussian
from robustvae.perturb import Score
from robustvae.registry import build, register
from robustvae.seeding import by_row


@register("goal", "encoder-target")
@final
@dataclass(frozen=True, eq=False)
class EncoderTarget:
    """Move the encoder's code away from where it was, or to that of a target image.

    The score is ||mu - mu'||^2 + ||sigma - sigma'||^2 in scaled units, raised from the clean code
    or lowered to the target's.

    Args:
        target: Target images, (B, C, H, W) or (1, C, H, W) for all; None moves away.
        spread: Whether the spread counts beside the mean.
        scale: What codes are divided by, in latent units: the scaling factor of a latent-diffusion
            model is its inverse.
        after: A refinement, or its spec, such as "jpeg": what is reported is the code of the
            refined image, for perturbations that must survive it; None reports what is climbed.

    Raises:
        RangeError: A scale that is not positive.
        UnknownNameError: A spec that names no refinement.
        UnsupportedError: A spread of a posterior that is not Gaussian (when bound).

    References:
        Salman et al., 2023 (PhotoGuard, the encoder attack).

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> score = rv.EncoderTarget().bind(rv.Victim(vae), x, generator=g)
        >>> bool(score(x, torch.arange(3)).abs().max() < 1e-9)
        True
    """

    target: Tensor | None = None
    spread: bool = True
    scale: float = 1.0
    after: Any = None

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_type(self.spread, "spread", bool)
        check_positive(self.scale, "scale")
        if self.target is not None:
            check_type(self.target, "target", Tensor)
        if self.after is not None:
            build("refinement", self.after)

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The squared distance of codes, up or down; see `Goal.bind`."""
        vae = victim.vae
        away = self.target is None
        with torch.no_grad():
            other = vae.encode(x if self.target is None else targets(self.target, x))
            if self.spread:
                check_gaussian(other, "EncoderTarget(spread=True)")
            mean, stddev = other.mean, other.stddev if self.spread else None

        def score(y: Tensor, rows: Tensor) -> Tensor:
            q = vae.encode(y)
            gap = (q.mean - mean[rows]).square().sum(1)
            if stddev is not None:
                gap = gap + (q.stddev - stddev[rows]).square().sum(1)
            return (gap if away else -gap) / float(self.scale) ** 2

        return score

    def report(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The same after the refinement, in the form of `Goal.bind`."""
        streams = by_row(generator, "refined", x)
        score = self.bind(victim, x, generator=streams)
        if self.after is None:
            return score
        refine = build("refinement", self.after)

        def refined(y: Tensor, rows: Tensor) -> Tensor:
            part = streams.clone_state().part(rows.tolist())
            return score(refine(victim.vae, y, generator=part), rows)

        return refined
