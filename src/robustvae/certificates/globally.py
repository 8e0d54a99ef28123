"""Margins that hold for every input, and the constants that guarantee one before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict, Unpack, final

import torch

from robustvae import bounds
from robustvae._options import with_defaults
from robustvae.arguments import checked
from robustvae.certificates.constants import OUTPUT_SLOPES, constants_of
from robustvae.certificates.networks import composition_of
from robustvae.display import three_lines
from robustvae.errors import (
    RangeError,
    UnsupportedError,
    check_choice,
    check_count,
    check_positive,
    check_probability,
)
from robustvae.models import VAE

SPARE = 1e-3
"""Share of r and of the constants kept back for the trained model's last digits."""


@final
@three_lines(floor=("margin",))
@dataclass(frozen=True, repr=False)
class Design:
    """Options of a `lipschitz-vae` whose every input has at least the margin wanted.

    Attributes:
        encoder_lipschitz: K of the encoder's mean.
        decoder_lipschitz: K of the decoder's logits.
        stddev: The fixed sigma.
        latent: Dimension d.
        likelihood: As of `lipschitz-vae`.
        margin: What is guaranteed for these, l2 in pixel units.
        barrett: What [Barrett22]'s bound guarantees for these.
    """

    encoder_lipschitz: float
    decoder_lipschitz: float
    stddev: float
    latent: int
    likelihood: str
    margin: float
    barrett: float


@checked()
def isotropic_margin(
    stddev: float, *, r: float, m: float, a: float, b: float, latent: int, displacement: str
) -> float:
    """The margin of every input at once, one fixed sigma for all coordinates (ours).

    The larger of the noncentral chi-square's and trace-Markov's; never below [Barrett22]'s.

    Args:
        stddev: sigma of every coordinate.
        r: l2 distance between outputs.
        m: Probability wanted, in (0, 1).
        a: Lipschitz constant of the decoder's mean.
        b: Lipschitz constant of the encoder's mean.
        latent: Dimension d.
        displacement: "centered" (or "full", the same here) or "paired".

    Returns:
        l2 radius in pixel units; 0 where nothing can be proved.

    References:
        docs/theory.md, "Noncentral chi-square" (ours); [Barrett22] Theorem 3 is the baseline.

    Examples:
        >>> from robustvae.certificates import isotropic_margin
        >>> round(isotropic_margin(0.1, r=8, m=0.5, a=10, b=10, latent=10, displacement="paired"),
        ...     3)
        0.068
        >>> round(isotropic_margin(0.1, r=8, m=0.5, a=10, b=10, latent=10,
        ...     displacement="centered"), 3)
        0.074
    """
    check_choice("displacement", displacement, ("centered", "full", "paired"))
    for value, name in ((stddev, "stddev"), (r, "r"), (a, "a"), (b, "b")):
        check_positive(value, name)
    check_probability(m, "m")
    check_count(latent, "latent")
    spread = stddev * (2**0.5 if displacement == "paired" else 1.0) * (1 + bounds.SLACK)
    reach = torch.tensor([r / a * (1 - bounds.SLACK)], dtype=torch.float64)

    def holds(rho: torch.Tensor) -> torch.Tensor:
        shift = b * rho * (1 + bounds.SLACK)
        chance = torch.maximum(
            bounds.noncentral_probability(reach, shift, spread, latent),
            bounds.trace_markov_probability(reach, shift, latent * spread**2),
        )
        return chance > m

    return float(bounds.largest(holds, reach / b))


@checked(formula=True)
def global_margin(vae: VAE, *, r: float, m: float, displacement: str) -> float:
    """The margin of every input at once of a model with one fixed sigma, by its stored weights.

    In exact arithmetic: evaluation error is `certify`'s concern.

    Args:
        vae: A model with a fixed standard deviation.
        r: l2 distance between outputs.
        m: Probability wanted, in (0, 1).
        displacement: "centered", "full" or "paired".

    Raises:
        UnsupportedError: No Lipschitz constants are known, or sigma is learned.

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.load("digits-lipschitz-vae")
        >>> rv.certificates.global_margin(vae, r=1.0, m=0.5, displacement="centered") > 0.4
        True
    """
    parts = composition_of(vae)
    constants = constants_of(parts, vae.image_shape, vae.latent)
    if parts.spread.constant is None:
        raise UnsupportedError("a margin for every input needs a fixed standard deviation")
    stddev = parts.spread.constant * (1 + 1e-6)  # as rounded to the model's floating type
    return isotropic_margin(
        stddev, r=r, m=m, a=constants.a, b=constants.b, latent=vae.latent, displacement=displacement
    )


@final
class DesignOptions(TypedDict, total=False):
    """What `design` fixes of the model, which describes them."""

    latent: int
    stddev: float
    ratio: float
    likelihood: str


_DEFAULTS: DesignOptions = {
    "latent": 10,
    "stddev": 0.1,
    "ratio": 1.0,
    "likelihood": "continuous_bernoulli",
}


@checked()
def design(
    margin: float,
    *,
    r: float,
    m: float = 0.5,
    displacement: str = "centered",
    **options: Unpack[DesignOptions],
) -> Design:
    """The largest constants that guarantee a margin for every input, before any training.

    Args:
        margin: Wanted, l2 in pixel units, positive.
        r: l2 distance between outputs.
        m: Probability wanted, in (0, 1).
        displacement: "centered", "full" or "paired".
        options: Of the model, any of latent, the dimension d, 10 by default; stddev, the fixed
            sigma, 0.1 by default; ratio, of the encoder's constant to the decoder's, 1 by default;
            and likelihood, as of `lipschitz-vae`, which decides the slope after the decoder's
            logits, "continuous_bernoulli" by default.

    Returns:
        Options for `models.create("lipschitz-vae", ...)` and what they guarantee.

    Raises:
        UnknownOptionError: An option of another name.
        RangeError: No constants above 1/1000 guarantee that margin.

    References:
        [Barrett22] section 3.3, whose promise it keeps.

    Examples:
        >>> import robustvae as rv
        >>> found = rv.certificates.design(0.3, r=8.0)
        >>> found.margin >= 0.3, round(found.decoder_lipschitz, 2)
        (True, 10.29)
    """
    settings = with_defaults(design, options, _DEFAULTS)
    latent, stddev = settings["latent"], settings["stddev"]
    ratio, likelihood = settings["ratio"], settings["likelihood"]
    check_positive(margin, "margin")
    check_positive(ratio, "ratio")
    check_choice("likelihood", likelihood, OUTPUT_SLOPES)
    slope = OUTPUT_SLOPES[likelihood]

    def reached(decoder: float, rule: str = "ours") -> float:
        a, b = slope * decoder * (1 + SPARE), ratio * decoder * (1 + SPARE)
        tolerance = r * (1 - SPARE)
        if rule == "ours":
            return isotropic_margin(
                stddev, r=tolerance, m=m, a=a, b=b, latent=latent, displacement=displacement
            )
        # theirs knows two forms; with one fixed sigma the full one is the centered
        form = "paired" if displacement == "paired" else "centered"
        return bounds.barrett_global_margin(
            stddev, r=tolerance, m=m, a=a, b=b, latent=latent, displacement=form
        )

    low, high = 1e-3, 1e6
    if reached(low) < margin:
        raise RangeError(
            f"no constants guarantee a margin of {margin:g} at r = {r:g}, m = {m:g}: "
            "give a smaller margin, or a larger r"
        )
    # constants range over nine decades: their logarithm is halved, 60 times to the last digit
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if reached(middle) >= margin else (low, middle)
    return Design(
        encoder_lipschitz=ratio * low,
        decoder_lipschitz=low,
        stddev=stddev,
        latent=latent,
        likelihood=likelihood,
        margin=reached(low),
        barrett=reached(low, "barrett"),
    )
