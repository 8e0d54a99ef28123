"""What every method of certification promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.stats import ncx2

from robustvae import registry
from robustvae.certificates import Question, certify
from robustvae.certificates.methods.base import Method
from robustvae.defenses import InputNoise, Victim
from robustvae.models import VAE, create
from robustvae.seeding import generator
from robustvae.testing.contracts import close, require, unchanged
from robustvae.testing.planted import gray_images
from robustvae.testing.soundness import trials

_STRETCH, _GAIN, _SPREAD = 1.5, 2.0, 0.1  # of the encoder, of the decoder, of the posterior
_ABOVE = 1 + 1e-9  # rounding of the exact margin itself, which is looked up on a grid


def orthogonal_vae() -> VAE:
    """A VAE of orthonormal maps in float64, on 4 x 4 images with 4 latents.

    Latents move by 1.5 times any change, outputs by twice that, and the posterior has the spread
    0.1 everywhere: `exact_margin` knows the margin of every input.

    Examples:
        >>> from robustvae.testing import orthogonal_vae
        >>> orthogonal_vae().latent
        4
    """
    lengths: Any = {"encoder_lipschitz": _STRETCH, "decoder_lipschitz": _GAIN, "stddev": _SPREAD}
    shape: Any = {"image_shape": (1, 4, 4), "latent": 4, "hidden": []}
    return create("lipschitz-vae", likelihood="gaussian", **shape, **lengths).double().eval()


def exact_margin(r: float, m: float, displacement: str, noise: float = 0.0) -> float:
    """The margin of every input of `orthogonal_vae` in l2, to 1e-5 from above.

    A change of size s leaves the output within r with the probability of a noncentral chi-square.

    Args:
        r: Tolerance.
        m: Probability asked for.
        displacement: "paired" compares two draws, the others a draw with the mean.
        noise: Standard deviation of noise on the input.

    Examples:
        >>> from robustvae.testing import exact_margin
        >>> round(exact_margin(1.2, 0.6, "centered"), 3)
        0.366
    """
    variance = (2 if displacement == "paired" else 1) * (_SPREAD**2 + (_STRETCH * noise) ** 2)
    sizes = np.linspace(1e-6, 2 * r, 200_001)
    inside = ncx2.cdf((r / _GAIN) ** 2 / variance, 4, (_STRETCH * sizes) ** 2 / variance)
    holding = np.flatnonzero(np.asarray(inside) > m)
    return float(sizes[holding[-1] + 1]) if len(holding) else 0.0


def check_method(
    method: Method | str,
    *,
    displacement: str = "centered",
    noise: float | None = None,
    r: float = 1.2,
    m: float = 0.6,
    proves: bool = True,
    count: int = 200,
) -> None:
    """Check a method's contract on a model whose margins are known: sound, and the same row by row.

    Args:
        method: The method, or its spec.
        displacement: What it speaks of.
        noise: Of the input of the victim, for methods that want such a victim.
        r: Tolerance.
        m: Probability asked for.
        proves: Whether it must prove something here; False for a method of other models.
        count: Soundness trials of a guaranteed method: changes within its radii, each judged.

    Raises:
        ContractError: A broken promise, in a sentence.

    Examples:
        >>> from robustvae.testing import check_method
        >>> check_method("trace_markov")
    """
    member: Any = registry.build("certificate-method", method)
    what = f"the method {type(member).__name__}"
    require(isinstance(member, Method), f"{what} has no kind, no norms, or cannot be called")
    kinds = ("deterministic", "probabilistic", "first_order")
    require(member.kind in kinds, f"{what} is {member.kind!r}, not one of {', '.join(kinds)}")
    require(
        bool(member.norms) and set(member.norms) <= {"l2", "linf"},
        f"{what} answers in {member.norms!r}, not in l2 or linf",
    )
    vae, x = orthogonal_vae(), gray_images(3)
    victim = Victim(vae) if noise is None else Victim(vae, InputNoise(noise))

    def ask(rows: list[int]) -> torch.Tensor:
        certificate = certify(
            victim, x[rows], r, m, displacement, methods=[member], rows=rows, generator=generator(0)
        )
        radius: torch.Tensor = certificate.radius
        return radius

    with unchanged(vae, what):
        radius = ask([0, 1, 2])
    require(radius.shape == (3,), f"{what} returns {tuple(radius.shape)}, not one radius a row")
    require(
        bool(radius.isfinite().all()) and bool((radius >= 0).all()),
        f"{what} returns radii that are negative or not finite",
    )
    require(bool((radius > 0).all()) or not proves, f"{what} proves nothing on orthonormal maps")
    alone = torch.cat([ask([row]) for row in (2, 0)])
    require(
        close(alone, radius[[2, 0]], 1e-6), f"{what} lets a row's radius depend on the other rows"
    )
    if member.kind == "first_order":  # an estimate, which promises nothing
        return
    margin = exact_margin(r, m, displacement, noise or 0.0)
    require(
        bool((radius <= _ABOVE * margin).all()),
        f"{what} certifies {float(radius.max()):.4g} where the exact margin is {margin:.4g}",
    )
    if noise is None and count:
        question = Question(r=r, m=m, displacement=displacement, box=False)
        result = trials(vae, x, question, count=count, methods=[member], generator=generator(1))
        require(
            result.violations == 0,
            f"{what} is refuted by {result.violations} of {result.done} changes within its radii",
        )
