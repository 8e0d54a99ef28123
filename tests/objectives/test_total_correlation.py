"""Each term of the decomposition against the exact aggregate posterior of a small data set."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import robustvae as rv
from robustvae import errors
from robustvae.models import Gaussian
from robustvae.objectives import ELBO, TotalCorrelation
from robustvae.objectives.total_correlation import log_aggregate

SIZE, LATENT = 6, 3


@pytest.fixture
def posteriors(generator: torch.Generator) -> Gaussian:
    mean = torch.randn(SIZE, LATENT, generator=generator)
    return Gaussian(mean, 0.2 + torch.rand(SIZE, LATENT, generator=generator))


@pytest.fixture
def z(posteriors: Gaussian, generator: torch.Generator) -> Tensor:
    return posteriors.draw(generator=generator)


def some(posteriors: Gaussian, rows: list[int]) -> Gaussian:
    return Gaussian(posteriors.mean[rows], posteriors.stddev[rows])


def exact(z: Tensor, posteriors: Gaussian) -> tuple[Tensor, Tensor]:
    """log q(z) and sum_j log q(z_j) under q = (1/N) sum_n q(z|x_n), one density at a time."""
    joint, product = [], []
    for point in z:
        densities = torch.distributions.Normal(posteriors.mean, posteriors.stddev)
        each = densities.log_prob(point).exp()
        joint.append(each.prod(1).mean().log())
        product.append(each.mean(0).log().sum())
    return torch.stack(joint), torch.stack(product)


def memory(posteriors: Gaussian) -> rv.VAE:
    """A VAE of the images 0, 1/8, 2/8, ... whose encoder looks its posteriors up."""

    def encode(x: Tensor) -> Gaussian:
        rows = (x.flatten(1)[:, 0] * 8).long().tolist()
        return some(posteriors, rows)

    def decode(z: Tensor) -> Gaussian:
        mean = z.sum(1).view(-1, 1, 1, 1)
        return Gaussian(mean, torch.ones_like(mean))

    return rv.wrap(encode=encode, decode=decode, latent=LATENT, image_shape=(1, 1, 1))


def images(rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).view(-1, 1, 1, 1) / 8


def test_full_batch_differs_by_log_n(posteriors: Gaussian, z: Tensor) -> None:
    """MWS is low by log N in the joint and in every coordinate; MSS not at all."""
    joint, product = exact(z, posteriors)
    mws_joint, mws_product = log_aggregate(z, posteriors, SIZE, "mws")
    torch.testing.assert_close(mws_joint, joint - math.log(SIZE))
    torch.testing.assert_close(mws_product, product - LATENT * math.log(SIZE))
    mss_joint, mss_product = log_aggregate(z, posteriors, SIZE, "mss")
    torch.testing.assert_close(mss_joint, joint)
    torch.testing.assert_close(mss_product, product)


@pytest.mark.parametrize("batch", [1, 2, 4, 6])
def test_mws_never_exceeds_the_exact_value(posteriors: Gaussian, z: Tensor, batch: int) -> None:
    """Draw by draw, not only on average: the batch's sum is part of the whole sum, over N M."""
    joint, product = exact(z, posteriors)
    for rows in map(list, itertools.combinations(range(SIZE), batch)):
        got_joint, got_product = log_aggregate(z[rows], some(posteriors, rows), SIZE, "mws")
        slack = 1e-12
        assert (got_joint <= joint[rows] - math.log(batch) + slack).all()
        assert (got_product <= product[rows] - LATENT * math.log(batch) + slack).all()


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_mss_is_unbiased_for_the_density(posteriors: Gaussian, z: Tensor, batch: int) -> None:
    """The mean over all batches that hold an image is q itself at its draw, to the last digit."""
    joint, _ = exact(z, posteriors)
    for i in range(SIZE):
        others = [n for n in range(SIZE) if n != i]
        estimates = [
            log_aggregate(z[[i, *rest]], some(posteriors, [i, *rest]), SIZE, "mss")[0][0].exp()
            for rest in itertools.combinations(others, batch - 1)
        ]
        torch.testing.assert_close(torch.stack(estimates).mean(), joint[i].exp())


def test_terms_at_full_batch(posteriors: Gaussian) -> None:
    vae, x = memory(posteriors), images(list(range(SIZE)))
    terms = TotalCorrelation(3.0, SIZE, 2.0, 0.5, "mss").terms(vae, x, generator=rv.generator(7))
    z = posteriors.draw(generator=rv.generator(7))
    joint, product = exact(z, posteriors)
    wanted = {
        "index_code": posteriors.log_prob(z).sum(1) - joint,
        "total_correlation": joint - product,
        "dimension_kl": product - torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1),
        "distortion": -vae.decode(z).log_prob(x).flatten(1).sum(1),
    }
    wanted["loss"] = (
        wanted["distortion"]
        + 2.0 * wanted["index_code"]
        + 3.0 * wanted["total_correlation"]
        + 0.5 * wanted["dimension_kl"]
    )
    assert set(terms) == set(wanted)
    for name, values in wanted.items():
        torch.testing.assert_close(terms[name], values, msg=name)


def test_weights_elbo_sample_kl(posteriors: Gaussian) -> None:
    vae, x = memory(posteriors), images([4, 0, 3])
    for sampling in ("mws", "mss"):
        got = TotalCorrelation(size=SIZE, sampling=sampling)(vae, x, generator=rv.generator(7))
        q = vae.encode(x)
        z = q.draw(generator=rv.generator(7))
        kl = (q.log_prob(z) - vae.prior().log_prob(z)).sum(1)
        elbo = ELBO(beta=0.0)(vae, x, generator=rv.generator(7)) + kl
        torch.testing.assert_close(got, elbo)


def test_averages_are_the_information_quantities(generator: torch.Generator) -> None:
    """Two images far apart on one coordinate: log 2 nats of information, no total correlation;
    apart on both: log 2 of either.
    """
    apart = torch.tensor([-20.0, 20.0])
    for mean, total in (
        (torch.stack([apart, torch.zeros(2)], 1), 0.0),
        (torch.stack([apart, apart], 1), math.log(2)),
    ):
        q = Gaussian(mean, torch.ones_like(mean))
        z = q.draw(generator=generator)
        joint, product = log_aggregate(z, q, 2, "mss")
        torch.testing.assert_close(q.log_prob(z).sum(1) - joint, torch.full((2,), math.log(2)))
        torch.testing.assert_close(joint - product, torch.full((2,), total))


def test_size_defaults_to_the_batch(posteriors: Gaussian) -> None:
    vae, x = memory(posteriors), images([4, 0, 3])
    one, other = (
        TotalCorrelation(5.0, size)(vae, x, generator=rv.generator(1)) for size in (None, 3)
    )
    assert torch.equal(one, other)


def test_warm_up_and_free_bits(posteriors: Gaussian) -> None:
    assert TotalCorrelation(4.0, warmup=8).at(2) == TotalCorrelation(4.0, weight=0.25)
    vae, x = memory(posteriors), images([0, 1])
    terms = TotalCorrelation(4.0, free_bits=1e3).terms(vae, x, generator=rv.generator(1))
    torch.testing.assert_close(terms["loss"], terms["distortion"] + 1e3)


def test_free_bits_leave_likelihood_alone() -> None:
    collapsed = Gaussian(torch.zeros(5, 3), torch.ones(5, 3))
    objective = TotalCorrelation(5.0, size=60_000, free_bits=2.0)
    terms = objective.terms(memory(collapsed), images([0, 1]), generator=rv.generator(1))
    assert terms["total_correlation"].mean() > 10
    torch.testing.assert_close(terms["loss"], terms["distortion"] + 2.0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"beta": -1.0}, errors.RangeError),
        ({"alpha": math.nan}, errors.NonFiniteError),
        ({"gamma": "1"}, errors.DtypeError),
        ({"size": 0}, errors.RangeError),
        ({"size": 2.0}, errors.DtypeError),
        ({"sampling": "exact"}, errors.UnknownNameError),
        ({"free_bits": -1.0}, errors.RangeError),
        ({"size": 2}, errors.RangeError),
        ({"size": 9, "sampling": "mss", "rows": [0]}, errors.ShapeError),
    ],
)
def test_total_correlation_rejects_nonsense(
    options: dict[str, object], error: type[Exception], posteriors: Gaussian
) -> None:
    x = images(options.pop("rows", [0, 1, 2]))  # type: ignore[arg-type]
    with pytest.raises(error):
        TotalCorrelation(**options)(memory(posteriors), x, generator=rv.generator(0))  # type: ignore[arg-type]


def test_refuses_latents_that_are_not_gaussian(x_half: Tensor) -> None:
    vae = rv.wrap(
        encode=lambda x: torch.distributions.Laplace(x.flatten(1), 1.0),
        decode=lambda z: Gaussian(z.view(-1, 1, 1, 1), torch.ones(len(z), 1, 1, 1)),
        latent=1,
        image_shape=(1, 1, 1),
    )
    with pytest.raises(errors.UnsupportedError, match="Laplace"):
        TotalCorrelation()(vae, x_half, generator=rv.generator(0))


@pytest.fixture
def x_half() -> Tensor:
    return torch.full((2, 1, 1, 1), 0.5)
