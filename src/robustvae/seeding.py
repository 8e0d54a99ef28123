"""All randomness: generators are made here, and every draw names the generator it spends.

This is the only module that seeds anything.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from robustvae.errors import (
    DtypeError,
    RangeError,
    ShapeError,
    UnsupportedError,
    check_sizes,
    check_type,
)


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


def row_numbers(x: Tensor, rows: Sequence[int] | None = None) -> list[int]:
    """The number of each input: the given ones, or else one that its content alone decides.

    A number from the content is the same whatever else is in the batch, in whatever order, and in
    whatever floating type that holds the same values. Equal inputs have equal numbers.

    Args:
        x: Inputs, (B, ...).
        rows: The inputs' own numbers, B whole numbers of at least 0, such as their places in the
            data set; None reads a number off each input's content.

    Returns:
        B whole numbers in [0, 2**63).

    Raises:
        ShapeError: Another count of numbers than inputs.
        DtypeError: Something else than whole numbers.
        RangeError: A number out of range.

    Examples:
        >>> import torch
        >>> from robustvae.seeding import row_numbers
        >>> x = torch.rand(3, 4)
        >>> row_numbers(x)[2] == row_numbers(x[2:])[0], row_numbers(x, range(3))
        (True, [0, 1, 2])
    """
    check_type(x, "x", Tensor)
    if rows is None:
        content = x.detach().to("cpu", torch.float64) + 0.0  # -0.0 and 0.0 are one value
        return [
            int.from_bytes(hashlib.sha256(row.contiguous().numpy().tobytes()).digest()[:8], "big")
            >> 1
            for row in content
        ]
    numbers = list(rows)
    if len(numbers) != len(x):
        raise ShapeError(f"rows must hold one number for each of {len(x)} inputs: {len(numbers)}")
    for number in numbers:
        _check_seed(number, "each of rows")
    return numbers


def row_generators(
    source: torch.Generator | int,
    purpose: str,
    rows: Sequence[int],
    device: str | torch.device | None = None,
) -> list[torch.Generator]:
    """A generator for each input, which (source, purpose, the input's own number) alone decide.

    So whatever is drawn for an input is the same alone, in any batch, shard, worker or order. Take
    the numbers from `row_numbers(x, rows)`. Use one purpose for one use of randomness, such as
    "smoothing/center": two calls with equal arguments give equal numbers.

    Args:
        source: A seed, or a generator, of which one number is spent whatever the count of rows.
        purpose: What the numbers are for.
        rows: The inputs' numbers, whole, in [0, 2**63).
        device: Where the numbers are made; None for the device of the source, or the CPU.

    Returns:
        A generator for each of `rows`.

    Raises:
        DtypeError: A source that is neither, or numbers that are not whole.
        RangeError: A seed or a number out of range.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.seeding import row_generators
        >>> both = row_generators(rv.generator(0), "noise", [4, 7])
        >>> alone = row_generators(rv.generator(0), "noise", [7])
        >>> torch.equal(torch.rand(2, generator=both[1]), torch.rand(2, generator=alone[0]))
        True
    """
    if isinstance(source, torch.Generator):
        device = source.device if device is None else device
        top = torch.iinfo(torch.int64).max
        seed = int(torch.randint(top, (), generator=source, device=source.device))
    else:
        _check_seed(source)
        seed = source
    made = []
    for number in rows:
        _check_seed(number, "each of rows")
        digest = hashlib.sha256(f"{seed}/{number}/row/{purpose}".encode()).digest()
        made.append(_new(int.from_bytes(digest[:8], "big") >> 1, device or "cpu"))
    return made


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


def _check_seed(seed: int, name: str = "seed") -> None:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise DtypeError(f"{name} must be a whole number, got {seed!r}")
    if not 0 <= seed < 2**63:
        raise RangeError(f"{name} must lie in [0, 2**63), got {seed}")


def _new(seed: int, device: str | torch.device) -> torch.Generator:
    made = torch.Generator(device=device)
    made.manual_seed(seed)
    return made
