"""The losses that only experiments train by, against their slow definitions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Beta

import robustvae as rv
from experiments.papers.camuto2021.linearized import LinearizedELBO
from experiments.papers.khan2023.mixup import MixupOfCode
from experiments.papers.willetts2021.claims import Claim
from robustvae.evaluation import encoder_slopes
from robustvae.jacobians import jacobian

SHAPE = (1, 4, 4)


def small(**more):
    options = {"architecture": "mlp", "image_shape": SHAPE, "hidden": [8], "latent": 3, **more}
    return rv.models.create("vae", seed=0, **options).double().eval()


def test_equation_6_as_printed():
    vae, x, beta = small(likelihood="gaussian"), torch.rand(5, *SHAPE), 0.3
    terms = LinearizedELBO(beta).terms(vae, x, generator=rv.generator(0))
    mean = vae.encode(x).mean.detach()
    j = jacobian(lambda z: vae.decode(z).mean.flatten(1), mean)
    volume = torch.linalg.slogdet(torch.eye(16) + j @ j.mT / beta)[1]  # (B, D, D), as Eq. 6 has it
    error = (vae.decode(mean).mean - x).flatten(1).square().sum(1)
    torch.testing.assert_close(terms["volume"], beta / 2 * volume)
    torch.testing.assert_close(terms["slope"], beta / 2 * encoder_slopes(vae, x).square())
    whole = error / 2 + terms["slope"] + terms["volume"]
    torch.testing.assert_close(terms["loss"], whole)


def test_expansion_is_exact_for_linear_decoder():
    """The best covariance of a linear decoder gives the beta-VAE's objective to the last digit."""
    vae, x, beta = small(likelihood="gaussian"), torch.rand(5, *SHAPE), 0.3
    terms = LinearizedELBO(beta).terms(vae, x, generator=rv.generator(0))
    mean = vae.encode(x).mean.detach()
    j = jacobian(lambda z: vae.decode(z).mean.flatten(1), mean)
    precision = torch.eye(3) + j.mT @ j / beta
    covariance = torch.linalg.inv(precision)
    kl = covariance.diagonal(dim1=1, dim2=2).sum(1) - 3 + torch.linalg.slogdet(precision)[1]
    spread = (j @ covariance @ j.mT).diagonal(dim1=1, dim2=2).sum(1)
    slow = terms["distortion"] + spread / 2 + beta / 2 * (mean.square().sum(1) + kl)
    expansion = terms["loss"] - terms["slope"] + terms["code"]
    torch.testing.assert_close(expansion, slow)


def test_mixup_of_code_mixes_apart():
    vae, x = small(), torch.rand(6, *SHAPE)
    terms = MixupOfCode().terms(vae, x, generator=rv.generator(0))
    g = rv.generator(0)
    rv.objectives.ELBO().terms(vae, x, generator=g)
    z, mixed = rv.draw(vae.encode(x), generator=g), []
    for values in (x, z):
        order = torch.randperm(6, generator=g)
        a = float(rv.draw(Beta(torch.tensor([0.5]), torch.tensor([0.5])), generator=g))
        mixed.append(torch.stack([a * v + (1 - a) * values[j] for v, j in zip(values, order)]))  # noqa: B905
    q = vae.encode(mixed[0])
    errors = (vae.decode(mixed[1]).mean - mixed[0]).flatten(1).norm(dim=1) ** 2
    torch.testing.assert_close(terms["mixup_decoder"], errors)
    codes = (mixed[1] - rv.draw(q, generator=g)).norm(dim=1) ** 2
    torch.testing.assert_close(terms["mixup_encoder"], codes)
    whole = terms["distortion"] + terms["kl"] + errors + codes + terms["mixup_kl"]
    torch.testing.assert_close(terms["loss"], whole)


@pytest.mark.parametrize(
    ("values", "sign", "verdict"),
    [
        ([1.0, 1.1, 0.9], 1, "holds"),
        ([1.0, 1.1, 0.9], -1, "**the opposite**"),
        ([1.0, -1.1, 0.9], 1, "not clear"),
        ([1.0, 1.1, 0.9], 0, "**it rises**"),
        ([-1.0, 1.1, 0.1], 0, "holds"),
        ([1.0], 1, "not clear"),
    ],
)
def test_claim_wants_two_errors(values, sign, verdict):
    here, *_ = Claim("x", values, sign).rows()
    assert here.text == verdict
