"""Randomness per input: the same alone, in any batch and in any order."""

import pytest
import torch

import robustvae as rv
from robustvae import errors
from robustvae.seeding import row_generators, row_numbers


def numbers(generators):
    return torch.stack([torch.rand(3, generator=g) for g in generators])


def test_rows_do_not_see_their_neighbors():
    all_rows = numbers(row_generators(rv.generator(0), "noise", [5, 9, 2]))
    assert torch.equal(all_rows[1:2], numbers(row_generators(rv.generator(0), "noise", [9])))
    turned = numbers(row_generators(rv.generator(0), "noise", [2, 9, 5]))
    assert torch.equal(all_rows, turned.flip(0))


def test_purposes_and_seeds_differ():
    first = numbers(row_generators(3, "noise", [1]))
    assert torch.equal(first, numbers(row_generators(3, "noise", [1])))
    for other in ((3, "center", [1]), (4, "noise", [1]), (3, "noise", [2])):
        assert not torch.equal(first, numbers(row_generators(*other)))


def test_rows_spend_one_number():
    one, many = rv.generator(0), rv.generator(0)
    row_generators(one, "noise", [1])
    row_generators(many, "noise", range(10))
    assert torch.equal(torch.rand(2, generator=one), torch.rand(2, generator=many))


def test_numbers_follow_from_the_content():
    x = torch.rand(4, 1, 3, 3, dtype=torch.float32)
    assert row_numbers(x)[2:3] == row_numbers(x[2:3]) == row_numbers(x.double())[2:3]
    assert len(set(row_numbers(x))) == 4
    assert row_numbers(torch.tensor([[-0.0]])) == row_numbers(torch.tensor([[0.0]]))
    assert row_numbers(x, [4, 3, 2, 1]) == [4, 3, 2, 1]


@pytest.mark.parametrize("rows", [[1], [0, -1], [0, 1.5], [True, 1], [0, 2**63]])
def test_bad_numbers_are_refused(rows):
    with pytest.raises(errors.RobustVAEError):
        row_numbers(torch.rand(2, 1), rows)
