"""How likely a model finds images, and how well it gives them back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.data import Images
from robustvae.errors import (
    UnsupportedError,
    check_count,
    check_images,
    check_type,
    is_out_of_memory,
)
from robustvae.loops import in_turn
from robustvae.models import VAE, Distribution
from robustvae.models.base import check_weights, frozen
from robustvae.models.layout import channels_last
from robustvae.records import pieces, reason_of
from robustvae.seeding import draw

ROWS = 500
"""Images or latents in one pass: what a core's caches hold goes fastest."""


@contextlib.contextmanager
def judged(vae: VAE) -> Iterator[None]:
    """Within: the model as it is measured: frozen, in evaluation mode, convolutions the fast way.

    Raises:
        DtypeError: Not a VAE.
        NonFiniteError: A NaN or an infinity in its weights.
    """
    check_type(vae, "vae", VAE)
    check_weights(vae)
    with frozen(vae), channels_last(vae):
        yield


def unreadable(vae: VAE, images: Images) -> dict[str, str]:
    """Why images cannot be encoded and decoded, by their number as text; none where all cannot.

    Args:
        vae: The model.
        images: Of which batches are read, and single images where a batch fails.
    """
    reasons: dict[str, str] = {}
    results: list[tuple[Sequence[int], Any]]

    def read(places: Sequence[int], rows: Sequence[int]) -> None:
        numbers = torch.tensor([places[row] for row in rows])
        x = images.read(numbers).to(device=vae.device, dtype=vae.dtype)
        vae.decode(vae.encode(x).mean).mean  # noqa: B018

    with torch.no_grad(), judged(vae):
        for begin in range(0, len(images), ROWS):
            size = min(ROWS, len(images) - begin)
            places = range(begin, begin + size)
            try:
                results = pieces(size, partial(read, places))
            except Exception as error:  # a stranger's code may raise anything
                results = [((row,), error) for row in range(size)]
            for rows, result in results:
                if isinstance(result, Exception):
                    reasons |= {str(begin + row): reason_of(result) for row in rows}
    return reasons if len(reasons) < len(images) else {}


def check_input(vae: VAE, x: Tensor, generator: torch.Generator) -> None:
    """Raise unless `x` holds images in [0, 1] that the model reads, and the generator is one."""
    check_type(vae, "vae", VAE)
    check_images(x, vae.image_shape)
    vae.check(x)
    check_type(generator, "generator", torch.Generator)


@checked(formula=True)
def negative_log_likelihood(
    vae: VAE,
    x: Tensor,
    *,
    draws: int = 1000,
    rows: int = ROWS,
    read: Callable[[Distribution], Distribution] | None = None,
    generator: torch.Generator,
) -> Tensor:
    """-log p(x) by importance sampling with the encoder as proposal.

    -log (1/k sum_i p(x, z_i) / q(z_i|x)), z_i ~ q(z|x), summed in the log domain

    Warning:
        The estimate is an upper bound in expectation, whatever the encoder; it falls towards
        -log p(x) with k. A Bernoulli likelihood of gray pixels is the cross-entropy that everybody
        reports, not a density.

    Args:
        vae: Any model; the layers of a hierarchy are drawn one after the other.
        x: Images in [0, 1], (B, C, H, W).
        draws: k, latents for each image.
        rows: Most latents decoded in one pass.
        read: Puts another likelihood in the place of the decoder's, made from it; None for none.
        generator: Spent by the draws.

    Returns:
        Nats, (B,), float64.

    Raises:
        RangeError: `draws` or `rows` below 1, or a pixel outside [0, 1].
        ShapeError: Images that the model does not read.
        NonFiniteError: Weights that are not finite.

    References:
        Burda et al., 2016, Eq. 8; [Kuzina22] appendix D.1 (k = 1000).

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.evaluation import negative_log_likelihood
        >>> x = rv.data.load("digits", split="test").x[:3]
        >>> vae = rv.load("digits-vae")
        >>> negative_log_likelihood(vae, x, draws=50, generator=rv.generator(0)).shape
        torch.Size([3])
    """
    check_input(vae, x, generator)
    check_count(draws, "draws")
    check_count(rows, "rows")
    with torch.no_grad(), judged(vae):
        parts = x.split(max(1, rows // draws))

        def of_part(number: int) -> Tensor:
            return _one_pass(vae, parts[number], draws, rows, read, generator)

        return torch.cat(in_turn("likelihoods", range(len(parts)), of_part, generator, x))


def in_halves(compute: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """What `compute` gives for rows, all at once or in halves where memory runs out on them.

    Examples:
        >>> import torch
        >>> from robustvae.evaluation.likelihood import in_halves
        >>> in_halves(lambda rows: 2 * rows, torch.arange(3))
        tensor([0, 2, 4])
    """
    try:
        return compute(rows)
    except Exception as error:
        if len(rows) < 2 or not is_out_of_memory(error):
            raise
    # outside of `except`: the error's frames hold what filled the memory
    return torch.cat([in_halves(compute, half) for half in rows.tensor_split(2)])


def outputs(vae: VAE, z: Tensor) -> Tensor:
    """Means of the decoder, (B, C, H, W), in smaller batches where memory runs out."""
    return in_halves(lambda codes: vae.decode(codes).mean, z)


def _one_pass(
    vae: VAE,
    x: Tensor,
    draws: int,
    rows: int,
    read: Callable[[Distribution], Distribution] | None,
    generator: torch.Generator,
) -> Tensor:
    posterior, prior = vae.encode(x), vae.prior()
    log_weights = []
    for start in range(0, draws, rows):
        z = draw(posterior, (min(rows, draws - start),), generator=generator)
        codes, images = z.flatten(0, 1), x.repeat(len(z), 1, 1, 1)

        def log_likelihoods(rows: Tensor, codes: Tensor = codes, images: Tensor = images) -> Tensor:
            decoded = vae.decode(codes[rows])
            likelihood = decoded if read is None else read(decoded)
            return likelihood.log_prob(images[rows]).flatten(1).sum(1)

        log_likelihood = in_halves(log_likelihoods, torch.arange(len(codes), device=z.device))
        log_joint = log_likelihood.reshape(z.shape[:2]) + prior.log_prob(z).sum(2)
        log_weights.append(log_joint - posterior.log_prob(z).sum(2))
    return math.log(draws) - torch.cat(log_weights).double().logsumexp(0)


@checked(formula=True)
def squared_error(
    vae: VAE, x: Tensor, *, sampled: bool = False, generator: torch.Generator
) -> Tensor:
    """Squared error of the reconstructions, a pixel, on the scale 0 to 255.

    Args:
        vae: Any model.
        x: Images in [0, 1], (B, C, H, W).
        sampled: Reconstruct a draw of the posterior instead of its mean.
        generator: Spent by the draws, if there are any.

    Returns:
        Mean over the pixels of (255 (x_hat - x))^2, (B,).

    Raises:
        UnsupportedError: A model whose outputs have another shape than its inputs.

    References:
        [Kuzina22] Table 7.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.evaluation import squared_error
        >>> x = rv.data.load("digits", split="test").x[:3]
        >>> squared_error(rv.load("digits-vae"), x, generator=rv.generator(0)).shape
        torch.Size([3])
    """
    check_input(vae, x, generator)
    errors = []
    with torch.no_grad(), judged(vae):
        for part in x.split(ROWS):
            q = vae.encode(part)
            z = draw(q, generator=generator) if sampled else q.mean
            image = outputs(vae, z)
            if image.shape != part.shape:
                raise UnsupportedError(
                    f"an error of reconstructions wants outputs of the inputs' shape "
                    f"{tuple(part.shape[1:])}, got {tuple(image.shape[1:])}"
                )
            errors.append((255 * (image - part)).square().flatten(1).mean(1))
    return torch.cat(errors)
