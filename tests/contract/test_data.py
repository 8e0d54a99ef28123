"""Every data source of the library reads the same images in any order and selection."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import robustvae as rv
from robustvae.errors import DataError
from robustvae.testing import ContractError, check_source, members_of

SOURCES = sorted(members_of("robustvae", "data"))


@pytest.mark.parametrize("name", SOURCES)
def test_source_keeps_its_contract(name):
    try:
        images = rv.data.load(name, split="test")
    except DataError as error:  # a set that this machine does not hold
        pytest.skip(str(error))
    check_source(images)


@dataclasses.dataclass(frozen=True)
class Drifting:
    """Pixels that depend on the order in which they are read."""

    shape: tuple[int, ...] = (4, 1, 8, 8)

    def read(self, rows, epoch):
        return torch.linspace(0, 1, len(rows)).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8).float()


def test_broken_source_is_named():
    images = rv.data.Images(Drifting(), torch.zeros(4, dtype=torch.int64), "drifting")
    with pytest.raises(ContractError, match="another order"):
        check_source(images)
