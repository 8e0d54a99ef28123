"""Pullback metrics: which directions of the input move the latent code most, and by how much.

The encoder N(mu(x), diag sigma(x)^2) pulls a metric of the latent space back to the input. Flat
latent [Khan23 Eq. 4]: G = J_mu^T J_mu + J_sigma^T J_sigma. Riemannian latent [Khan23 Eq. 11]:
G = J_mu^T G_z J_mu + J_sigma^T (G_z o I) J_sigma, with the decoder's metric G_z at z = mu(x).
G is D x D of rank at most 2d: it is never built. Its spectrum is that of a 2d x 2d Gram matrix.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack, final

import torch
from torch import Tensor, nn

from robustvae._options import with_defaults
from robustvae.arguments import checked
from robustvae.data.verbs import reads_inputs
from robustvae.display import three_lines
from robustvae.errors import (
    RangeError,
    ShapeError,
    UnsupportedError,
    check_choice,
    check_count,
    check_images,
    check_type,
)
from robustvae.jacobians import (
    ELEMENTS_IN_CACHE,
    Products,
    eigenpairs,
    jacobian,
    lanczos,
    products,
    share_of,
    signs,
    spectral_sums,
)
from robustvae.models import VAE, Gaussian
from robustvae.models.base import frozen
from robustvae.models.layout import channels_last

Latent = Literal["flat", "riemannian"]
Part = Literal["mean", "std", "both"]
StdTerm = Literal["expected", "paper"]
Normalize = Literal["max", "trace"]

_ELEMENTS_AT_ONCE = 2**24
_ROWS_AT_MOST = 512  # backward passes for one input's whole Jacobian


@final
@three_lines(show=("spectral_radius",))
@dataclass(frozen=True, eq=False, repr=False)
class Geometry:
    """The spectrum of a pullback metric at each input.

    Attributes:
        eigenvalues: In descending order, in squared latent (or output) units by squared pixel
            units, (B, n), float64. n = d for one part, 2d for both: all that can differ from 0.
            From `leading_pullback` only the top ones.
        directions: Unit eigenvectors of the first eigenvalues, (B, count, C, H, W), each signed so
            that its entry largest in size is positive; zeros where the eigenvalue is 0.
        latent: "flat" or "riemannian".
        part: "mean", "std" or "both".
        std_term: "expected" or "paper"; it matters to a Riemannian std part only.
        complete: Whether `eigenvalues` holds all that can differ from 0.
    """

    eigenvalues: Tensor
    directions: Tensor
    latent: str
    part: str
    std_term: str
    complete: bool = True

    @property
    def spectral_radius(self) -> Tensor:
        """The largest eigenvalue, (B,) [Khan23 Eq. 8]; robust inputs have a small one."""
        return self.eigenvalues[:, 0]

    def entropy(self, normalize: Normalize | None = "trace") -> Tensor:
        """-sum l log l of the eigenvalues, in nats, (B,).

        Warning:
            The three are different scores. "trace", l / sum l, is the von Neumann entropy proper:
            from 0 (one direction) to log n (isotropic). None takes l as [Khan23] prints it
            (unnumbered); it depends on the unit of the pixels. "max", l / l_max, is what their code
            computes: 0 for one direction and for isotropy alike, largest in between, so it does
            not order spectra by anisotropy.

        Args:
            normalize: "trace", "max" or None.
        """
        if normalize is not None:
            check_choice("normalize", normalize, ("max", "trace"))
        values = self._all("entropy")
        if normalize == "trace":
            values = share_of(values, values.sum(1, keepdim=True))
        if normalize == "max":
            values = share_of(values, values[:, :1])
        return -torch.special.xlogy(values, values).sum(1) + 0.0

    @property
    def effective_rank(self) -> Tensor:
        """exp of the "trace" entropy, (B,): from 1 (one direction) to n (isotropic)."""
        return self.entropy("trace").exp()

    @property
    def anisotropy(self) -> Tensor:
        """The largest eigenvalue by the mean of all n, (B,): from 1 (isotropic) to n."""
        values = self._all("anisotropy")
        return share_of(values[:, 0], values.mean(1))

    def log_volume(self, cut: float = 1e-12) -> Tensor:
        """Half the log of the product of the eigenvalues above `cut` times the largest, (B,).

        The log of the factor by which the encoder stretches volume across the directions that it
        sees at all. Compare it only between inputs of equal rank.

        Args:
            cut: Share of the largest eigenvalue below which an eigenvalue counts as 0.
        """
        values = self._all("log_volume")
        is_visible = values > cut * values[:, :1]
        return 0.5 * torch.where(is_visible, values, 1.0).log().sum(1)

    def alignment(self, other: Geometry, count: int = 1) -> Tensor:
        """How far the spans of the first `count` directions of two models agree, (B,).

        The mean squared cosine of the principal angles: 1 for equal spans, 0 for orthogonal ones,
        count / D on average for spans drawn at random.

        Args:
            other: Of the same inputs.
            count: Directions of each.

        Raises:
            RangeError: More directions than either holds.
            ShapeError: Directions of other shapes.
        """
        check_count(count, "count")
        pair = [geometry.directions.flatten(2)[:, :count] for geometry in (self, other)]
        if pair[0].shape[0] != pair[1].shape[0] or pair[0].shape[2] != pair[1].shape[2]:
            raise ShapeError(
                f"both must be of the same inputs, got directions {tuple(self.directions.shape)} "
                f"and {tuple(other.directions.shape)}"
            )
        if min(directions.shape[1] for directions in pair) < count:
            raise RangeError(f"count must be at most the number of directions held, got {count}")
        return (pair[0] @ pair[1].mT).square().sum((1, 2)) / count

    def _all(self, score: str) -> Tensor:
        if not self.complete:
            raise UnsupportedError(f"{score} wants the whole spectrum: take it from `pullback`")
        return self.eigenvalues


@final
class ProductOptions(TypedDict, total=False):
    """How `pullback` computes; it describes them."""

    batched: bool | None
    chunk: int | None


_PRODUCTS: ProductOptions = {"batched": None, "chunk": None}


@reads_inputs("x")
@checked(formula=True)
def pullback(
    vae: VAE,
    x: Tensor,
    latent: Latent = "flat",
    part: Part = "both",
    std_term: StdTerm = "expected",
    *,
    count: int | None = None,
    **options: Unpack[ProductOptions],
) -> Geometry:
    """Eigenvalues and eigenvectors of the encoder's pullback metric at each input.

    With J the stacked Jacobian of mean and std, (2d, D), scaled by a root of the latent's metric,
    J J^T is decomposed in float64, and the eigenvectors of J^T J are J^T u / sqrt(l).

    The expected Riemannian std term holds G_z o I, since E[diag(e) G_z diag(e)] keeps the diagonal
    only; the paper prints the full G_z there.

    Args:
        vae: Its encoder's `mean` and `stddev` are read in evaluation mode.
        x: Images, (B, C, H, W); not held to [0, 1]. Or whatever `as_images` reads.
        latent: "flat", or "riemannian" with the decoder's metric, see `decoder_metric`.
        part: "mean", "std" or "both".
        std_term: "expected" or "paper", of the Riemannian std part.
        count: How many directions to keep, None for all.
        options: Any of batched, whether the products with J are vectorized, None for yes unless the
            model has convolutions; and chunk, inputs at a time, None for as many as keep J within
            2^24 numbers, or in the cache where its products are vectorized.

    Returns:
        `Geometry`, without a graph.

    Raises:
        UnknownNameError: Any other `latent`, `part` or `std_term`, or an unknown option.
        ShapeError: Images that the model cannot read.

    References:
        [Khan23] Eqs. 6 and 11, Theorem 3.2.

    Examples:
        >>> import torch
        >>> from robustvae.geometry import pullback
        >>> from robustvae import models
        >>> vae = models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> geometry = pullback(vae, torch.rand(3, 1, 4, 4))
        >>> geometry.eigenvalues.shape, geometry.directions.shape
        (torch.Size([3, 4]), torch.Size([3, 4, 1, 4, 4]))
    """
    settings = with_defaults(pullback, options, _PRODUCTS)
    batched, chunk = settings["batched"], settings["chunk"]
    _check(vae, x, latent, part, std_term)
    n = vae.latent * (2 if part == "both" else 1)
    rank = n if count is None else min(count, n)
    check_count(rank, "count")
    if batched is None:
        batched = not _convolutional(vae)
    room = 2 * ELEMENTS_IN_CACHE if batched else _ELEMENTS_AT_ONCE
    at_once = chunk or max(1, room // (n * x[0].numel()))
    values, directions = [], []
    with frozen(vae), _laid_out(vae, batched):
        for inputs in x.detach().split(at_once):
            stacked = jacobian(_encoder(vae, part), inputs, batched=batched, chunk=at_once)
            if latent == "riemannian":
                stacked = _root(vae, inputs, part, std_term, batched) @ stacked
            value, direction = eigenpairs(stacked, rank)
            values.append(value)
            directions.append(direction.reshape(len(inputs), rank, *x.shape[1:]))
    return Geometry(torch.cat(values), torch.cat(directions), latent, part, std_term)


@final
class LanczosOptions(TypedDict, total=False):
    """Options of `leading_pullback`, which describes them."""

    count: int
    steps: int | None


_LANCZOS: LanczosOptions = {"count": 1, "steps": None}


@checked()
def leading_pullback(
    vae: VAE,
    x: Tensor,
    latent: Latent = "flat",
    part: Part = "both",
    std_term: StdTerm = "expected",
    *,
    generator: torch.Generator,
    **options: Unpack[LanczosOptions],
) -> Geometry:
    """The top of the spectrum only, matrix-free: for large d or large images.

    Lanczos on products with the Jacobian and its transpose, none of which is built; memory is
    B x steps x D. Everything is done in the dtype of `x`.

    Args:
        vae: Its encoder's `mean` and `stddev` are read in evaluation mode.
        x: Images, (B, C, H, W); not held to [0, 1].
        latent: "flat", or "riemannian" with the decoder's metric, see `decoder_metric`.
        part: "mean", "std" or "both".
        std_term: "expected" (which takes d products with the decoder's Jacobian) or "paper".
        generator: Spent on the start.
        options: Any of count, how many eigenpairs, 1 by default; and steps, products, at least
            `count`, None for 4 count + 20.

    Returns:
        `Geometry` with `count` eigenvalues and directions, and `complete` False.

    Raises:
        UnknownNameError: Any other `latent`, `part` or `std_term`, or an unknown option.
        RangeError: A count out of range.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.geometry import leading_pullback
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> leading_pullback(vae, x, generator=g).spectral_radius.shape
        torch.Size([3])
    """
    settings = with_defaults(leading_pullback, options, _LANCZOS)
    count, steps = settings["count"], settings["steps"]
    _check(vae, x, latent, part, std_term)
    with frozen(vae), channels_last(vae):
        encoder = products(_encoder(vae, part), x)
        weigh = _weight(vae, x, part, std_term) if latent == "riemannian" else torch.clone
        top = lanczos(
            lambda v: encoder.vjp(weigh(encoder.jvp(v))),
            x.flatten(1),
            count=count,
            steps=steps,
            generator=generator,
        )
    directions = (signs(top.vectors) * top.vectors).reshape(len(x), count, *x.shape[1:])
    values = top.values.double().clamp_min(0)
    return Geometry(values, directions, latent, part, std_term, complete=False)


@final
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """What a summary of a pullback metric holds, at any size.

    Attributes:
        spectral_radius: The largest eigenvalue, (B,), float64.
        effective_rank: exp of the entropy of the normalized spectrum, (B,), float64.
        is_exact: Whether the whole spectrum was computed; else the radius is a lower bound that is
            tight to the residual of Lanczos, and the rank an estimate by random probes.
    """

    spectral_radius: Tensor
    effective_rank: Tensor
    is_exact: bool


@checked()
def spectrum(
    vae: VAE,
    x: Tensor,
    part: Part = "both",
    *,
    probes: int = 4,
    steps: int = 24,
    generator: torch.Generator,
) -> Spectrum:
    """Spectral radius and effective rank of the pullback metric, whatever the size of the model.

    Small models get the whole spectrum. Beyond 2^24 entries of a Jacobian or 512 rows of it the
    two are found matrix-free, with `probes` x `steps` products an input: the radius by Lanczos, the
    rank from the sums of l and l log l by stochastic Lanczos quadrature.

    Args:
        vae: Its encoder's `mean` and `stddev` are read in evaluation mode.
        x: Images, (B, C, H, W); not held to [0, 1].
        part: "mean", "std" or "both"; codes without a spread are read by their mean.
        probes: Random vectors of the quadrature; 0 for the radius alone, the rank being NaN.
        steps: Products for each.
        generator: Spent on the vectors.

    Raises:
        UnsupportedError: A black box.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.geometry import spectrum
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> spectrum(vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)).is_exact
        True
    """
    _check(vae, x, "flat", part, "expected")
    if part == "both" and getattr(vae, "has_spread", True) is False:
        part = "mean"
    rows = vae.latent * (2 if part == "both" else 1)
    if is_small(vae, x):
        metric = pullback(vae, x, part=part, count=1)
        return Spectrum(metric.spectral_radius, metric.effective_rank, True)
    radii, ranks = [], []
    with frozen(vae), channels_last(vae):
        for image in x.detach().split(1):  # one graph at a time: a large one fills the memory
            at = products(_encoder(vae, part), image)

            def operator(u: Tensor, at: Products = at) -> Tensor:
                return at.jvp(at.vjp(u))

            like = at.value
            top = lanczos(operator, like, steps=min(steps, rows), generator=generator)
            radii.append(top.values[:, 0].double().clamp_min(0))
            if not probes:
                ranks.append(torch.full_like(radii[-1], torch.nan))
                continue
            total, weighted_log = spectral_sums(
                operator,
                like,
                [lambda v: v.clamp_min(0), lambda v: torch.special.xlogy(*[v.clamp_min(0)] * 2)],
                probes=probes,
                steps=steps,
                generator=generator,
            )
            entropy = torch.where(total > 0, total.log() - weighted_log / total, 0.0)
            ranks.append(entropy.exp().clamp(1, rows))
    return Spectrum(torch.cat(radii), torch.cat(ranks), False)


@checked(formula=True)
def is_small(vae: VAE, x: Tensor) -> bool:
    """Whether `spectrum` takes the whole Jacobian of each input.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.geometry import is_small
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> is_small(vae, torch.rand(3, 1, 4, 4))
        True
    """
    rows = vae.latent * (2 if getattr(vae, "has_spread", True) else 1)
    return rows <= _ROWS_AT_MOST and rows * x[0].numel() <= _ELEMENTS_AT_ONCE


@checked(formula=True)
def decoder_metric(vae: VAE, z: Tensor, *, batched: bool | None = None, chunk: int = 128) -> Tensor:
    """The metric that the decoder pulls back from images to the latent, G_z = J_g^T J_g.

    A Gaussian decoder whose spread depends on z adds the same of its spread.

    Args:
        vae: Its decoder is read in evaluation mode.
        z: Latents, (B, d).
        batched: Vectorize the products; None for yes unless the model has convolutions.
        chunk: Latents at a time.

    Returns:
        Metrics, (B, d, d), in squared pixel units by squared latent units; half the log of the
        determinant is the log volume of the generated surface.

    References:
        [Khan23] section 3.1; Arvanitidis et al., 2018, Theorem 1.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.geometry import decoder_metric
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> decoder_metric(vae, torch.zeros(3, 2)).shape
        torch.Size([3, 2, 2])
    """
    if z.ndim != 2 or z.shape[1] != vae.latent:
        raise ShapeError(f"z must be (B, {vae.latent}), got {tuple(z.shape)}")
    if batched is None:
        batched = not _convolutional(vae)
    with frozen(vae), _laid_out(vae, batched):
        parts = [
            jacobian(_decoder(vae), part, batched=batched, chunk=chunk) for part in z.split(chunk)
        ]
    return torch.cat([part.mT @ part for part in parts])


def _encoder(vae: VAE, part: str) -> Callable[[Tensor], Tensor]:
    def read(y: Tensor) -> Tensor:
        posterior = vae.encode(y)
        if part == "both":
            return torch.cat([posterior.mean, posterior.stddev], 1)
        return posterior.mean if part == "mean" else posterior.stddev

    return read


def _decoder(vae: VAE) -> Callable[[Tensor], Tensor]:
    def read(z: Tensor) -> Tensor:
        likelihood = vae.decode(z)
        mean = likelihood.mean.flatten(1)
        if isinstance(likelihood, Gaussian) and likelihood.stddev.requires_grad:
            return torch.cat([mean, likelihood.stddev.flatten(1)], 1)
        return mean

    return read


def _root(vae: VAE, x: Tensor, part: str, std_term: str, batched: bool) -> Tensor:
    """R with R^T R the latent's metric on the stacked mean and std, (B, n, n)."""
    with torch.no_grad():
        z = vae.encode(x).mean
    metric = decoder_metric(vae, z, batched=batched)
    values, vectors = torch.linalg.eigh(metric)
    full = values.clamp_min(0).sqrt()[:, :, None] * vectors.mT
    axes = torch.diag_embed(metric.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt())
    std = axes if std_term == "expected" else full
    if part != "both":
        return full if part == "mean" else std
    nothing = torch.zeros_like(full)
    return torch.cat([torch.cat([full, nothing], 2), torch.cat([nothing, std], 2)], 1)


def _weight(vae: VAE, x: Tensor, part: str, std_term: str) -> Callable[[Tensor], Tensor]:
    """The latent's metric on the stacked mean and std, as a product with vectors (B, n)."""
    with torch.no_grad():
        z = vae.encode(x).mean
    decoder, d = products(_decoder(vae), z), vae.latent
    diagonal: Tensor | None = None
    if part != "mean" and std_term == "expected":
        axes = torch.eye(d, dtype=z.dtype, device=z.device)[:, None].expand(d, *z.shape)
        diagonal = torch.stack([decoder.jvp(axis).square().sum(1) for axis in axes], 1)

    def full(w: Tensor) -> Tensor:
        return decoder.vjp(decoder.jvp(w))

    def std(w: Tensor) -> Tensor:
        return full(w) if diagonal is None else diagonal * w

    if part != "both":
        return full if part == "mean" else std
    return lambda w: torch.cat([full(w[:, :d]), std(w[:, d:])], 1)


def _laid_out(vae: VAE, batched: bool) -> contextlib.AbstractContextManager[None]:
    """Convolutions in their fast layout, which no vectorized product can go through."""
    return contextlib.nullcontext() if batched else channels_last(vae)


def _convolutional(vae: VAE) -> bool:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
    # a stranger's code may hold what no vectorized product goes through
    return getattr(vae, "is_foreign", False) or any(
        isinstance(module, kinds) for module in vae.modules()
    )


def _check(vae: VAE, x: Tensor, latent: str, part: str, std_term: str) -> None:
    check_choice("latent", latent, ("flat", "riemannian"))
    check_choice("part", part, ("both", "mean", "std"))
    check_choice("std_term", std_term, ("expected", "paper"))
    check_type(vae, "vae", VAE)
    if vae.output_only:
        raise UnsupportedError(
            "a pullback metric reads codes, and this model is a black box (output_only): wrap it "
            "with encode= and decode="
        )
    check_images(x, vae.image_shape, low=None, high=None)
