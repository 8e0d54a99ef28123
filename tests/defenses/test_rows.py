"""What a defense draws for an input is the same alone, in any batch, chunk and order."""

import pytest
import torch

import robustvae as rv
from robustvae.attacks import Checkpointed, Truncated
from robustvae.defenses import Langevin
from robustvae.seeding import RowGenerator, for_rows, row_generators

# Chains multiply a rounding until another proposal is accepted: equal to the last bit, or far off.
# "paper" adapts one step size for the whole batch, and depends on it by what it is.
CHAINS = {
    "hmc": rv.HMC(steps=30),
    "chunked": rv.HMC(steps=30, chunk=4),
    "dual": rv.HMC(steps=30, adapt="dual"),
    "langevin": Langevin(steps=20, chunk=5),
    "truncated": Truncated(rv.HMC(steps=20, chunk=4), last=3),
    "checkpointed": Checkpointed(rv.HMC(steps=12, chunk=4, adapt=None), segment=4),
}
OTHERS = {
    "mean of a chain": rv.HMC(steps=30, mass="encoder", average=True),
    "plateau": rv.HMC(steps=30, plateau=5, chunk=4),
    "draws of the prior": rv.PosteriorMode(steps=20, start="prior", chunk=4),
    "robust": rv.RobustPosterior(steps=20, start="prior", chunk=4),
    "sample": rv.PosteriorSample(),
}


@pytest.fixture(scope="module")
def digits():
    return rv.load("digits-vae"), rv.data.load("digits", split="test").x[:9]


def codes(defense, vae, x, rows):
    streams = RowGenerator(row_generators(7, "chains", rows))
    with torch.no_grad():
        return defense(vae, x[rows], generator=streams)


@pytest.mark.parametrize("name", [*CHAINS, *OTHERS])
def test_rows_do_not_depend_on_batches(digits, name):
    defense = (CHAINS | OTHERS)[name]
    whole = codes(defense, *digits, [*range(9)])
    for rows in ([5], [8, 2], [4, 5, 6, 7, 8], [*range(8, -1, -1)]):
        part = codes(defense, *digits, rows)
        if torch.get_num_threads() == 1 and name in CHAINS:
            assert torch.equal(part, whole[rows])
        else:
            torch.testing.assert_close(part, whole[rows], rtol=1e-4, atol=1e-4)


def test_repeated_row_copies_its_stream():
    streams = RowGenerator(row_generators(0, "rows", [3, 4]))
    rows = for_rows(streams, [1, 1]).streams
    assert rows[0] is streams.streams[1] and rows[1] is not rows[0]
    first, second = (torch.rand(3, generator=stream) for stream in rows)
    assert torch.equal(first, second)
