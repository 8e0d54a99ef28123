"""What an attacker may do to inputs of any kind: balls, and sizes in decibels of the signal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from robustvae.errors import ConfigError, RangeError, check_number
from robustvae.models import VAE
from robustvae.perturb import Ball

SNR = "snr"
_LOUDEST = 300  # decibels: beyond, float64 tells the change from none no more, or the signal
COUNTS = (1, 3)  # values changed, of counts where no l0 ball was asked for
_SILENCE = 1e-6  # radius of an input without any signal: a ball needs one that is positive
ONLY_COUNTS = (
    "the inputs are counts, which change by whole numbers: only l0 balls say what an attacker may "
    "do to them; name one with balls=[(norm=l0,radius=3)]"
)


@final
@dataclass(frozen=True)
class Allowance:
    """What an attacker may do: a ball, or a distance in decibels below each input's own signal.

    Attributes:
        norm: "l0", "l2", "linf", or "snr" for a signal-to-noise ratio.
        size: The radius; of "snr" decibels, which fall as the change grows.
        low: Least value, None without a box.
        high: Greatest value, None without a box.
    """

    norm: str
    size: float
    low: float | None = 0.0
    high: float | None = 1.0

    def ball(self, x: Tensor) -> Ball:
        """The ball of some inputs; of "snr" in l2 with a radius for each input.

        With s the input without the mean of each of its channels, SNR = 20 log10(||s|| / ||d||) of
        a change d, so the radius is ||s|| 10^(-SNR / 20).

        Args:
            x: Inputs in [0, 1], (B, C, H, W).

        Examples:
            >>> import torch
            >>> from robustvae.audit.profiles.changes import Allowance
            >>> x = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
            >>> ball = Allowance("snr", 20.0).ball(x)
            >>> ball.norm, round(float(ball.radius), 6)
            ('l2', 0.070711)
        """
        if self.norm != SNR:
            return Ball(self.norm, self.size, self.low, self.high)
        signal = (x - x.flatten(2).mean(2)[:, :, None, None]).flatten(1).norm(dim=1)
        radius = (signal * 10 ** (-self.size / 20)).clamp_min(_SILENCE)
        return Ball("l2", radius, self.low, self.high)

    @property
    def order(self) -> tuple[str, float]:
        """Sorts by norm, and by how much is allowed."""
        return self.norm, -self.size if self.norm == SNR else self.size

    @property
    def words(self) -> str:
        """For stages that were left out."""
        return f"SNR {self.size:g} dB" if self.norm == SNR else f"{self.norm} {self.size:g}"

    def row(self) -> dict[str, float | str]:
        """The columns of a record's row that name it."""
        return {"norm": self.norm, "radius": float(self.size)}


def check_allowances(balls: Sequence[Ball], snr: Sequence[float], profile: str) -> None:
    """Validate the balls and decibels of a profile.

    Raises:
        ConfigError: None at all, or a ball with a radius for each input.
        NonFiniteError: Decibels that are not finite.
        RangeError: Decibels beyond any signal's.
    """
    if not balls and not snr:
        raise ConfigError(
            f"the profile {profile} needs at least one ball: give balls=[...] or snr=[...]"
        )
    if any(isinstance(ball.radius, Tensor) for ball in balls):
        raise ConfigError("balls must have one radius each: give a ball for each radius")
    for decibels in snr:
        check_number(decibels, "snr")
        if abs(decibels) > _LOUDEST:
            raise RangeError(f"snr must be within {_LOUDEST} decibels of 0, got {decibels}")


def allowances(
    balls: Sequence[Ball], snr: Sequence[float], vae: VAE
) -> tuple[list[Allowance], list[Allowance]]:
    """What is attacked, smaller changes of a norm first, and what counts rule out.

    Models that read counts (a discrete `InputSpace`) are attacked in l0 alone.

    Args:
        balls: Of the profile.
        snr: Decibels of the profile.
        vae: The model.
    """
    wanted = [Allowance(b.norm, float(b.radius), b.low, b.high) for b in balls]
    wanted += [Allowance(SNR, float(decibels)) for decibels in snr]
    wanted.sort(key=lambda one: one.order)
    if not is_discrete(vae):
        return wanted, []
    sparse = [one for one in wanted if one.norm == "l0"]
    values = math.prod(vae.image_shape)
    sparse = sparse or [Allowance("l0", float(k)) for k in COUNTS if k <= values]
    return sparse, [one for one in wanted if one.norm != "l0"]


def is_discrete(vae: VAE) -> bool:
    """Whether a model reads counts."""
    space = getattr(vae, "space", None)
    return space is not None and bool(space.discrete)
