"""ColorMNIST beside the paper: the loss of its code, printed cells, causes."""

from __future__ import annotations

import math

import pytest
import torch

import robustvae as rv
from experiments.causes import Change, reason
from experiments.papers.kuzina2022.length import PRINTED
from experiments.papers.kuzina2022.length import source_of as source_of_length
from experiments.papers.kuzina2022.printed import cell_of, value_of
from experiments.papers.kuzina2022.short import source_of
from experiments.papers.kuzina2022.tc_code import TotalCorrelationOfCode, summed_over_draws
from robustvae.models import Gaussian


def test_code_sums_over_draws() -> None:
    noise = rv.generator(0)
    mean, stddev = (torch.randn(5, 3, generator=noise, dtype=torch.float64) for _ in range(2))
    q = Gaussian(mean, stddev.exp())
    z = q.mean + q.stddev * torch.randn(5, 3, generator=noise, dtype=torch.float64)
    joint, product = summed_over_draws(z, q)
    for j in range(5):
        one = torch.distributions.Normal(q.mean[j], q.stddev[j])
        densities = torch.stack([one.log_prob(z[i]).exp() for i in range(5)])
        assert math.isclose(float(joint[j]), float(densities.prod(1).mean().log()))
        assert math.isclose(float(product[j]), float(densities.mean(0).log().sum()))


def test_code_at_one_is_elbo() -> None:
    vae = rv.load("digits-vae")
    x = rv.data.load("digits", split="test").x[:6].to(vae.dtype)
    with torch.no_grad():
        ours = rv.objectives.TotalCorrelation(beta=1.0)(vae, x, generator=rv.generator(3))
        theirs = TotalCorrelationOfCode(1.0)(vae, x, generator=rv.generator(3))
        heavy = TotalCorrelationOfCode(5.0).terms(vae, x, generator=rv.generator(3))
    # at beta = 1 the estimates cancel, whatever they are: log q(z|x) - log p(z) is left
    assert torch.allclose(ours.mean(), theirs.mean())
    assert torch.allclose(heavy["loss"] - theirs, 4 * heavy["total_correlation"])


@pytest.mark.parametrize("kind", ["beta", "tc"])
def test_color_numbers_have_their_cells(kind: str) -> None:
    name = f"runs/color-mnist-conv28-{kind}-2"
    key = cell_of(name, "undefended", "MS-SSIM, unclipped, linf 0.2", "digit")
    assert key == f"kuzina2022/table-3/color/{kind}/ms-ssim 0.2"
    assert cell_of(name, "undefended", "accuracy, linf 0.1", "color") == (
        f"kuzina2022/table-3/color/{kind}/color accuracy 0.1"
    )
    for n in (2, 5, 10):
        model = f"color-mnist-conv28-{kind}-{n}"
        assert PRINTED[model] == f"{kind}-{n}/color"
        for measure, setting in (("squared error of a draw", "squared"), ("-log p(x)", "nll")):
            source = source_of(model, measure)
            assert source is not None and source == source_of_length(model, setting)
            assert value_of(source)[0] is not None


def test_small_moves_explain_nothing() -> None:
    clear = Change("{what} moves by {value}", -20.0, 1.0, "page", False)
    for change, gap in ((clear, 180.0), (clear, -201.0)):  # away from the paper, and too little
        assert not reason([change], gap, "20 epochs", is_loss=False)
    noisy = Change("{what} moves by {value}", -20.0, 7.0, "page", False)
    assert not reason([noisy], -100.0, "20 epochs", is_loss=False)
    assert "minus the ELBO moves by -20 ± 1" in reason([clear], -100.0, "300 epochs", is_loss=True)
