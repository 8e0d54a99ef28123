"""NVAE: groups from coarse to fine, each given those before it; residual posteriors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import robustvae as rv
from robustvae import errors
from robustvae.models import checkpoint
from robustvae.models.hierarchy import draw_at
from robustvae.models.nvae import NVAE
from robustvae.objectives import ELBO

OPTIONS = {"image_shape": (1, 8, 8), "channels": 4, "groups": [2, 2], "latent_channels": 1}


@pytest.fixture
def vae() -> NVAE:
    vae = rv.models.create("nvae", **OPTIONS)
    assert isinstance(vae, NVAE)
    return vae.eval()


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.rand(3, 1, 8, 8, generator=generator)


def test_tiny_preset_has_six_groups() -> None:
    vae = rv.models.create("nvae")
    assert vae.widths == (2 * 14 * 14,) * 3 + (2 * 7 * 7,) * 3
    color = rv.models.create("nvae", image_shape=(3, 32, 32), likelihood="gaussian")
    assert color.widths == (2 * 16 * 16,) * 3 + (2 * 8 * 8,) * 3


def test_the_preset_near_the_papers_runs() -> None:
    torch.set_default_dtype(torch.float32)
    vae = rv.models.create("nvae", preset="paper").eval()
    assert vae.widths == (20 * 14 * 14,) * 10 + (20 * 7 * 7,) * 5
    x = torch.rand(1, 1, 28, 28)
    with torch.no_grad():
        terms = ELBO().terms(vae, x, generator=rv.generator(0))
    assert terms["loss"].isfinite().all() and "kl_15" in terms


@pytest.mark.parametrize("which", ["posterior", "prior"])
def test_group_depends_on_coarser_ones_alone(vae: NVAE, x: Tensor, which: str) -> None:
    """The Jacobian of the conditionals' means is block triangular, the top group last."""
    joint = vae.prior() if which == "prior" else vae.encode(x[:1])
    z = torch.randn(1, vae.latent, generator=rv.generator(1))
    slopes = torch.autograd.functional.jacobian(lambda z: joint.at(z).mean[0], z)[:, 0]
    blocks = [
        [bool((block != 0).any()) for block in rows.split(vae.widths, dim=1)]
        for rows in slopes.split(vae.widths, dim=0)
    ]
    assert blocks == [[k > l for k in range(4)] for l in range(4)]  # noqa: E741


def test_draws_follow_their_own_path(vae: NVAE, x: Tensor) -> None:
    """Noise put through the conditionals at the draw is the draw: one group after the other."""
    q = vae.encode(x)
    z = rv.draw(q, (2,), generator=rv.generator(3))
    assert z.shape == (2, 3, vae.latent)
    given = q.at(z)
    noise = (z - given.mean) / given.stddev
    generator = rv.generator(3)
    top_down = [torch.randn(2, 3, width, generator=generator) for width in reversed(vae.widths)]
    assert_close(noise, torch.cat(top_down[::-1], 2))
    for draw in z:
        assert_close(vae.encode(x).log_prob(draw), q.log_prob(z)[(z == draw).all(2).all(1)][0])


def test_posterior_prior_where_residual_zero(vae: NVAE, x: Tensor) -> None:
    q, p = vae.encode(x), vae.prior()
    z = rv.draw(q, generator=rv.generator(1))
    assert (ELBO().terms(vae, x, generator=rv.generator(1))["kl"] > 0.1).all()
    with torch.no_grad():
        for group in vae.groups:
            group.posterior_head[-1].weight.zero_()
            group.posterior_head[-1].bias.zero_()
    q = vae.encode(x)
    assert_close(q.at(z).mean, p.at(z).mean)
    assert_close(q.at(z).stddev, p.at(z).stddev)
    assert_close(q.mean, p.mean.expand(3, -1))
    terms = ELBO().terms(vae, x, generator=rv.generator(1))
    assert_close(terms["kl"], torch.zeros(3))
    assert_close(terms["kl"], sum(terms[f"kl_{i}"] for i in (1, 2, 3, 4)))


def test_walk_yields_every_distribution(vae: NVAE, x: Tensor) -> None:
    walks = []
    vae.groups[1].down_cells.register_forward_hook(lambda *_: walks.append(1))
    z, q = draw_at(vae.encode(x), generator=rv.generator(3))
    likelihood, prior = vae.given(z)
    assert len(walks) == 2
    ELBO().terms(vae, x, generator=rv.generator(3))
    vae.log_joint(x, z)
    assert len(walks) == 2 + 2 + 1
    assert_close(z, rv.draw(vae.encode(x), generator=rv.generator(3)))
    assert_close((q.mean, q.stddev), (vae.encode(x).at(z).mean, vae.encode(x).at(z).stddev))
    assert_close((prior.mean, prior.stddev), (vae.prior().at(z).mean, vae.prior().at(z).stddev))
    assert_close(likelihood.mean, vae.decode(z).mean)
    apart = vae.decode(z).log_prob(x).flatten(1).sum(1) + vae.prior().log_prob(z).sum(1)
    assert_close(vae.log_joint(x, z), apart)


def test_groups_ignore_their_neighbors(vae: NVAE, x: Tensor) -> None:
    z = torch.randn(3, vae.latent, generator=rv.generator(1))
    assert_close(vae.encode(x).at(z).mean[1:2], vae.encode(x[1:2]).at(z[1:2]).mean)
    assert_close(vae.decode(z).mean[1:2], vae.decode(z[1:2]).mean)
    assert_close(vae.log_joint(x, z)[2:], vae.log_joint(x[2:], z[2:]))


def test_trains_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    images = rv.data.load("digits")[:256]
    vae = rv.models.create("nvae", **OPTIONS)

    def loss() -> float:
        with torch.no_grad():
            return float(ELBO()(vae.eval(), images.x, generator=rv.generator(1)).mean())

    before = loss()
    objective = rv.objectives.SpectralRegularization(0.01, base=ELBO(warmup=4, free_bits=0.1))
    rv.fit(
        vae,
        objective,
        images,
        epochs=4,
        batch_size=64,
        lr=3e-3,
        validation=None,
        generator=rv.generator(0),
        out=tmp_path,
    )
    assert loss() < before
    again = checkpoint.load(tmp_path)
    assert_close(again.encode(images.x[:5]).mean, vae.encode(images.x[:5]).mean)


def test_attack_and_sampler_run_on_it(vae: NVAE, x: Tensor) -> None:
    attack = rv.Attack(
        rv.LatentShift(), rv.ProjectedAscent(steps=2, restarts=1), rv.Ball("linf", 0.1)
    )
    found = attack(rv.Victim(vae), x, generator=rv.generator(0))
    assert found.status == ("ok",) * 3
    defended = rv.Victim(vae, rv.HMC(steps=2, n_leapfrog=2))
    assert defended.reconstruct(found.x_adv, generator=rv.generator(0)).shape == x.shape


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"preset": "huge"}, errors.UnknownNameError),
        ({"groups": []}, errors.ShapeError),
        ({"groups": [1, 0]}, errors.RangeError),
        ({"groups": 3}, errors.DtypeError),
        ({"groups": [1, 1, 1], "image_shape": (1, 28, 28)}, errors.ShapeError),
        ({"channels": 0}, errors.RangeError),
        ({"latent_channels": 1.5}, errors.DtypeError),
        ({"cells": -1}, errors.RangeError),
        ({"likelihood": "normal"}, errors.UnknownNameError),
        ({"scale": 0.0}, errors.RangeError),
        ({"image_shape": (28, 28)}, errors.ShapeError),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        rv.models.create("nvae", **options)
