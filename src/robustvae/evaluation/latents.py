"""What a latent code holds: used coordinates, their dependence, and what can be read off it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.errors import RangeError, ShapeError, check_count, check_positive, check_type
from robustvae.evaluation.likelihood import ROWS, check_input, judged
from robustvae.models import VAE, Gaussian, conditionals
from robustvae.models.hierarchy import check_gaussian
from robustvae.seeding import draw

_PAIRS = 2**24  # densities of one coordinate held at a time


def encoded(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the posteriors (of a hierarchy: along the mean path)."""
    with torch.no_grad(), judged(vae):
        posteriors = [vae.encode(part) for part in x.split(ROWS)]
        mean, stddev = ([getattr(q, what) for q in posteriors] for what in ("mean", "stddev"))
        return torch.cat(mean), torch.cat(stddev)


@checked(formula=True)
def active_units(mean: Tensor, *, threshold: float = 0.01) -> Tensor:
    """Which coordinates of the latent move with the image: Var_x(E[z_j | x]) > threshold.

    Args:
        mean: Posterior means, (B, d), B at least 2.
        threshold: Variance in the latent's unit (the prior's is 1).

    Returns:
        True for each active coordinate, (d,).

    Raises:
        ShapeError: Not (B, d) with two images or more.

    References:
        Burda et al., 2016, section 5 (threshold 0.01).

    Examples:
        >>> import torch
        >>> from robustvae.evaluation import active_units
        >>> active_units(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
        tensor([False,  True])
    """
    check_type(mean, "mean", Tensor)
    check_positive(threshold, "threshold")
    if mean.ndim != 2 or len(mean) < 2:
        raise ShapeError(f"mean must be (B, d) with B >= 2, got {tuple(mean.shape)}")
    return mean.var(0) > threshold


@checked(formula=True)
def aggregate_terms(
    vae: VAE, x: Tensor, *, draws: int = 1000, generator: torch.Generator
) -> dict[str, Tensor]:
    """The KL to the prior in three parts, against the aggregate posterior of all the images given.

    index_code = log q(z|x) - log q(z), total_correlation = log q(z) - sum_j log q(z_j),
    dimension_kl = sum_j (log q(z_j) - log p(z_j)), with q(z) = 1/M sum_i q(z|x_i) over `x`

    The means over the draws estimate the three divergences for the M images given without bias. In
    a hierarchy they are those of the top layer, with one draw of the layer below in place of each
    image.

    Warning:
        They speak of these M images: the index-code information cannot exceed log M. Give 10,000.

    Args:
        vae: A model with Gaussian posteriors.
        x: Images in [0, 1], (M, C, H, W).
        draws: Latents to average over, each of another image; at most M.
        generator: Spent by the draws.

    Returns:
        "index_code", "total_correlation" and "dimension_kl", nats, (draws,) each, float64.

    Raises:
        RangeError: More draws than images.
        UnsupportedError: Posteriors that are not Gaussian.

    References:
        Chen et al., 2018, Eq. 2; docs/theory.md, "Models and objectives".

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.evaluation import aggregate_terms
        >>> x = rv.data.load("digits", split="test").x[:50]
        >>> sorted(aggregate_terms(rv.load("digits-vae"), x, draws=9, generator=rv.generator(0)))
        ['dimension_kl', 'index_code', 'total_correlation']
    """
    check_input(vae, x, generator)
    check_count(draws, "draws")
    if draws > len(x):
        raise RangeError(f"draws must be at most {len(x)}, the number of images, got {draws}")
    top = (vae.widths or (vae.latent,))[-1]
    means, stddevs, latents = [], [], []
    with torch.no_grad(), judged(vae):
        prior = vae.prior()
        for part in x.split(ROWS):
            posterior = vae.encode(part)
            check_gaussian(posterior, "the aggregate posterior")
            z = draw(posterior, generator=generator)
            q = conditionals(posterior, z)
            means.append(q.mean[:, -top:])
            stddevs.append(q.stddev[:, -top:])
            latents.append(z)
        z = torch.cat(latents)[:draws]
        log_prior = prior.log_prob(z)[:, -top:].sum(1).double()
    z = z[:, -top:]
    q = Gaussian(torch.cat(means), torch.cat(stddevs))
    log_q = Gaussian(q.mean[:draws], q.stddev[:draws]).log_prob(z).sum(1).double()
    joint, product = [], []
    for rows in z.split(max(1, _PAIRS // q.mean.numel())):
        pairs = q.log_prob(rows[:, None])
        joint.append(pairs.sum(2).double().logsumexp(1))
        product.append(pairs.logsumexp(1).double().sum(1))
    log_joint = torch.cat(joint) - math.log(len(x))
    log_product = torch.cat(product) - top * math.log(len(x))
    return {
        "index_code": log_q - log_joint,
        "total_correlation": log_joint - log_product,
        "dimension_kl": log_product - log_prior,
    }


@checked(formula=True)
def linear_probe(codes: Tensor, y: Tensor, test_codes: Tensor, test_y: Tensor) -> Tensor:
    """Which images a logistic regression on their codes classifies rightly.

    The codes are scaled to unit variance a coordinate; the regression has scikit-learn's default
    penalty.

    Args:
        codes: To learn from, such as posterior means, (N, d).
        y: Their labels, (N,), at least two classes.
        test_codes: To judge by, (B, d).
        test_y: Their labels, (B,).

    Returns:
        True where the label is found, (B,).

    Raises:
        ShapeError: Codes and labels that do not fit.
        RangeError: A single class.

    Examples:
        >>> import torch
        >>> from robustvae.evaluation import linear_probe
        >>> codes, y = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
        >>> linear_probe(codes, y, torch.tensor([[-3.0], [3.0]]), torch.tensor([0, 0]))
        tensor([ True, False])
    """
    for value, name in ((codes, "codes"), (y, "y"), (test_codes, "test_codes"), (test_y, "test_y")):
        check_type(value, name, Tensor)
    fits = codes.ndim == test_codes.ndim == 2 and codes.shape[1] == test_codes.shape[1]
    if not fits or y.shape != codes.shape[:1] or test_y.shape != test_codes.shape[:1]:
        shapes = [tuple(value.shape) for value in (codes, y, test_codes, test_y)]
        raise ShapeError(f"codes and labels must be (N, d), (N,), (B, d), (B,), got {shapes}")
    if len(y.unique()) < 2:
        raise RangeError("a probe wants at least two classes, got one")
    from sklearn.linear_model import LogisticRegression

    mean, scale = codes.mean(0), codes.std(0).clamp_min(1e-6)
    train, test = ((part - mean) / scale for part in (codes, test_codes))
    model = LogisticRegression(max_iter=5000).fit(train.double().numpy(), y.numpy())
    return torch.from_numpy(model.predict(test.double().numpy())) == test_y
