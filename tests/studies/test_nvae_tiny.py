"""The study of NVAE tiny: what its page says follows from its runs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from robustvae.data import Images
from robustvae.errors import RangeError
from robustvae.studies.nvae_tiny import CONV, TINY, NVAETiny, Run, nvae_tiny


def images(shape, n, name):
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(n), dtype=torch.float32)
    return Images(x, torch.arange(n) % 10, name, "train")


def run(model, seed, elbo):
    return Run(model, seed, 10, (elbo - 1, elbo + 1), (120.0, 110.0), 3.0)


@pytest.mark.parametrize(
    ("shift", "said"), [(5.0, ": better at"), (-5.0, ": worse at"), (0.1, "is not clear at")]
)
def test_the_difference_is_taken_seed_by_seed(shift, said):
    conv = [run(CONV, seed, elbo) for seed, elbo in enumerate((-110.0, -100.0, -90.0))]
    moved = (shift - 1, shift, shift + 1)
    tiny = [
        dataclasses.replace(other, model=TINY, elbos=tuple(e + by for e in other.elbos))
        for other, by in zip(conv, moved, strict=True)
    ]
    color = Run(TINY, 0, 10, (-900.0, -950.0), (3000.0, 1000.0), 1.0)
    facts = {"data": "mnist", "color": "cifar10", "train": 60, "epochs": 2, "test": 2}
    found = NVAETiny((*tiny, *conv), color, facts | {"color_train": 30, "color_epochs": 2})
    mean, half = found.difference()
    assert mean == pytest.approx(shift)
    assert half == pytest.approx(4.3026527 / 3**0.5)  # t(2) at 0.975, standard deviation 1
    page = found.to_markdown("make it")
    assert said in page and "3000, 1000" in page and "925 ± 25" in page


@pytest.mark.slow
def test_the_smallest_size_runs_and_a_second_time_trains_nothing(tmp_path):
    torch.set_default_dtype(torch.float32)
    sets = [images((1, 28, 28), 80, "gray"), images((1, 28, 28), 40, "gray")]
    sets += [images((3, 32, 32), 40, "color"), images((3, 32, 32), 40, "color")]
    found = nvae_tiny(*sets, runs=tmp_path, size="smoke", seeds=2)
    assert [r.model for r in found.runs] == [TINY, CONV] * 2 and len(found.color.losses) == 2
    assert found.color.losses[1] < found.color.losses[0]
    assert nvae_tiny(*sets, runs=tmp_path, size="smoke", seeds=2) == found


def test_one_seed_has_no_interval(tmp_path):
    few = images((1, 28, 28), 20, "gray")
    with pytest.raises(RangeError, match="seeds"):
        nvae_tiny(few, few, few, few, runs=tmp_path, seeds=1)
