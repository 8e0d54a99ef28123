"""All randomness: generators are made here, and every draw names the generator it spends.

This is the only module that seeds anything.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from robustvae.errors import DtypeError, RangeError, UnsupportedError, check_sizes, check_type


def generator(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A new random generator.

    Args:
        seed: Whole number in [0, 2**63).
        device: Where the numbers are made.

    Raises:
        DtypeError: `seed` is not a whole number.
        RangeError: `seed` is out of range.

    Examples:
        >>> import robustvae as rv, torch
        >>> g = rv.generator(0)
        >>> torch.rand(2, generator=g).shape
        torch.Size([2])
    """
    _check_seed(seed)
    return _new(seed, device)


def shard_generator(
    seed: int, shard: int, purpose: str, device: str | torch.device = "cpu"
) -> torch.Generator:
    """The generator of one shard for one purpose: the unit of randomness of an audit.

    The three arguments alone decide it, so the numbers do not depend on how many workers ran,
    in which order, or whether a run was resumed.

    Args:
        seed: The seed of the whole run.
        shard: Number of the shard, from 0.
        purpose: What the numbers are for, such as "attack".
        device: Where the numbers are made.
    """
    _check_seed(seed)
    digest = hashlib.sha256(f"{seed}/{shard}/{purpose}".encode()).digest()
    return generator(int.from_bytes(digest[:8], "big") >> 1, device)


def split(generator: torch.Generator, n: int) -> list[torch.Generator]:
    """`n` new generators seeded by draws from `generator`."""
    check_type(generator, "generator", torch.Generator)
    top = torch.iinfo(torch.int64).max
    seeds = torch.randint(top, (n,), generator=generator, device=generator.device)
    return [_new(seed, generator.device) for seed in seeds.tolist()]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within: torch's global generators follow `seed`; afterwards they are as they were.

    For code that takes no generator, such as the first weights of torch's layers.
    """
    with torch.random.fork_rng():
        torch.manual_seed(generator(seed).initial_seed())
        yield


def randn(*shape: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of `shape`, with the device and dtype of `like`."""
    check_type(generator, "generator", torch.Generator)
    noise = torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype)
    return noise.to(like.device)


def rand(*shape: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1) of `shape`, with the device and dtype of `like`."""
    check_type(generator, "generator", torch.Generator)
    noise = torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype)
    return noise.to(like.device)


def draw(distribution: Any, shape: tuple[int, ...] = (), *, generator: torch.Generator) -> Tensor:
    """Draw from a distribution, reparameterized where it has a mean and a spread.

    Args:
        distribution: One of the library's (it has `.draw(shape, generator=...)`), or any of
            `torch.distributions`.
        shape: Leading shape of the draws.
        generator: Spent by the draw.

    Returns:
        Draws, `shape` + the distribution's own shape.

    Raises:
        UnsupportedError: The object offers no way to draw.
        DtypeError: `shape` is no tuple of whole numbers, or `generator` no generator.
        RangeError: A negative number in `shape`.

    Examples:
        >>> import robustvae as rv, torch
        >>> q = torch.distributions.Normal(torch.zeros(3, 2), torch.ones(3, 2))
        >>> rv.draw(q, (5,), generator=rv.generator(0)).shape
        torch.Size([5, 3, 2])
    """
    check_sizes(shape, "shape", least=0)
    if hasattr(distribution, "draw"):
        drawn: Tensor = distribution.draw(shape, generator=generator)
        return drawn
    if isinstance(distribution, torch.distributions.Independent):
        return draw(distribution.base_dist, shape, generator=generator)
    if isinstance(distribution, torch.distributions.Normal):
        mean, stddev = distribution.loc, distribution.scale
        return mean + stddev * randn(*shape, *mean.shape, like=mean, generator=generator)
    if isinstance(distribution, torch.distributions.Distribution):
        # torch's own samplers read the global generator: lend them ours and put theirs back.
        with seeded(split(generator, 1)[0].initial_seed()):
            reparameterized = distribution.has_rsample
            sample = distribution.rsample if reparameterized else distribution.sample
            return sample(torch.Size(shape))
    raise UnsupportedError(
        f"cannot draw from {type(distribution).__name__}: "
        "it needs draw(shape, generator=...), or to be one of torch.distributions"
    )


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise DtypeError(f"seed must be a whole number, got {seed!r}")
    if not 0 <= seed < 2**63:
        raise RangeError(f"seed must lie in [0, 2**63), got {seed}")


def _new(seed: int, device: str | torch.device) -> torch.Generator:
    made = torch.Generator(device=device)
    made.manual_seed(seed)
    return made
