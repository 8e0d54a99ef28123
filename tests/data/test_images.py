"""A set of images: what it refuses, how it is cut and sampled."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import robustvae as rv
from robustvae import errors, seeding
from robustvae.data import Images


def labeled(*counts: int) -> Images:
    """`counts[k]` images of class k; pixel 0 of image i is i / 1000."""
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    x = torch.zeros(len(y), 1, 2, 2)
    x[:, 0, 0, 0] = torch.arange(len(y)) / 1000
    return Images(x, y)


@pytest.mark.parametrize(
    ("x", "y", "error"),
    [
        (torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), errors.ShapeError),
        (torch.zeros(3, 1, 2, 2), torch.zeros(2, dtype=torch.int64), errors.ShapeError),
        (torch.zeros(3, 1, 2, 2), torch.zeros(3), errors.DtypeError),
        (torch.zeros(3, 1, 2, 2), [0, 0, 0], errors.DtypeError),
        (torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.arange(3), errors.DtypeError),
        (torch.full((3, 1, 2, 2), 2.0), torch.arange(3), errors.RangeError),
        (torch.full((3, 1, 2, 2), torch.nan), torch.arange(3), errors.NonFiniteError),
    ],
)
def test_refuses_what_is_no_set(x: torch.Tensor, y: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        Images(x, y)  # type: ignore[arg-type]


def test_an_index_gives_a_set_again() -> None:
    images = labeled(3, 2)
    assert images[1].x.shape == (1, 1, 2, 2)
    assert images[-1].y.tolist() == [1]
    assert images[1:4].y.tolist() == [0, 0, 1]
    assert len(images[images.y == 0]) == 3
    assert images[torch.tensor([4, 0])].y.tolist() == [1, 0]


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=5), data=st.data())
def test_sample_takes_different_images_and_balances(counts: list[int], data: st.DataObject) -> None:
    images = labeled(*counts)
    n = data.draw(st.integers(1, len(images)))
    g = seeding.generator(data.draw(st.integers(0, 1000)))
    for stratified in (False, True):
        x, y = images.sample(n, stratified, generator=g)
        index = (x[:, 0, 0, 0] * 1000).round().long()
        assert len(set(index.tolist())) == n
        assert torch.equal(images.y[index], y)
    got = y.bincount(minlength=len(counts))
    exhausted = got == torch.tensor(counts)
    assert (got[~exhausted] >= got.max() - 1).all()


def test_every_image_is_equally_likely(generator: torch.Generator) -> None:
    images = labeled(12, 4)
    draws, hits = 3000, torch.zeros(16)
    for _ in range(draws):
        hits[images.choose(4, stratified=True, generator=generator)] += 1
    wanted = torch.tensor([2 / 12] * 12 + [2 / 4] * 4)
    stderr = (wanted * (1 - wanted) / draws).sqrt()
    assert ((hits / draws - wanted).abs() < 4 * stderr).all()


def test_sample_is_decided_by_the_generator() -> None:
    images = labeled(20, 20)
    one, two, other = (images.sample(8, generator=seeding.generator(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("n", [0, 6])
def test_sample_rejects_too_large_numbers(n: int, generator: torch.Generator) -> None:
    with pytest.raises(errors.RangeError):
        labeled(3, 2).sample(n, generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(4, 30), min_size=1, max_size=4),
    fraction=st.floats(0.2, 0.8),
    seed=st.integers(0, 1000),
)
def test_divide_keeps_the_mixture(counts: list[int], fraction: float, seed: int) -> None:
    images = labeled(*counts)
    kept, held_out = images.divide(fraction, generator=seeding.generator(seed))
    together = torch.cat([kept.x, held_out.x])[:, 0, 0, 0]
    assert torch.equal(together.sort().values, images.x[:, 0, 0, 0])
    share = held_out.y.bincount(minlength=len(counts)) - fraction * torch.tensor(counts)
    assert (share.abs() <= 0.5 + 1e-6).all()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 0.01, 0.99])
def test_divide_leaves_no_part_empty(fraction: float, generator: torch.Generator) -> None:
    with pytest.raises(errors.RangeError):
        labeled(5, 5).divide(fraction, generator=generator)


def test_rows_that_are_not_there():

    images = rv.data.load("digits", split="test")
    for index in (99999, -99999, torch.tensor([400]), torch.tensor([0.5]), "a", torch.tensor(True)):
        with pytest.raises(errors.RobustVAEError):
            images[index]
    for rows in ([1], torch.tensor([355]), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(errors.RobustVAEError):
            images.read(rows)
    with pytest.raises(errors.ConfigError, match="nosuch"):
        rv.generator(0, "nosuch")


def test_iteration_ends_with_the_images():
    images = labeled(2, 3)
    assert [len(image) for image in images] == [1] * 5
    with pytest.raises(errors.RangeError):
        images[5]
