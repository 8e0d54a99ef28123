"""What every test has: float64, one thread, seeds, and the data sets where they lie."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from robustvae import seeding

TESTS = Path(__file__).parent


def pytest_configure() -> None:
    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tests and their fixtures of every scope run in float64, doctests in what the user has.

    Each starts from the same global seed: layers that a test makes do not depend on which tests
    ran before it in the same process.
    """
    in_tests = item.path.is_relative_to(TESTS)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64 if in_tests else torch.float32)
    try:
        return (yield)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture
def generator() -> torch.Generator:
    return seeding.generator(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the data sets that cannot be bundled."""
    root = os.environ.get("ROBUSTVAE_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("ROBUSTVAE_DATA names no folder with the data sets")
    return Path(root)
