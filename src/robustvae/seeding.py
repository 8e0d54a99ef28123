"""All randomness: generators are made here, and every draw names the generator it spends.

This is the only module that seeds anything.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.errors import (
    ConfigError,
    DtypeError,
    RangeError,
    ShapeError,
    UnsupportedError,
    check_sizes,
    check_type,
)


@checked()
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


@checked(formula=True)
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


@checked(formula=True)
def split(generator: torch.Generator, n: int) -> list[torch.Generator]:
    """`n` new generators seeded by draws from `generator`; of a `RowGenerator`, n of its kind."""
    check_type(generator, "generator", torch.Generator)
    if isinstance(generator, RowGenerator):
        streams = [split(stream, n) for stream in generator.streams]
        return [RowGenerator([stream[k] for stream in streams]) for k in range(n)]
    top = torch.iinfo(torch.int64).max
    seeds = torch.randint(top, (n,), generator=generator, device=generator.device)
    return [_new(seed, generator.device) for seed in seeds.tolist()]


@checked(formula=True)
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
    check_type(rows, "rows", Iterable)
    generators = []
    for number in rows:
        _check_seed(number, "each of rows")
        digest = hashlib.sha256(f"{seed}/{number}/row/{purpose}".encode()).digest()
        generators.append(_new(int.from_bytes(digest[:8], "big") >> 1, device or "cpu"))
    return generators


@final
class RowGenerator(torch.Generator):
    """One stream of random numbers for each row of a batch, where one generator is expected.

    `randn`, `rand`, `draw` and `split` fill row i from stream i, so that what a row draws does not
    depend on its batch. Handed to torch's own functions it is an ordinary generator, seeded by the
    first stream: then the numbers are reproducible, yet not each row's own.

    Args:
        streams: A generator for each row, as `row_generators` makes them.

    Raises:
        ShapeError: No stream.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.seeding import RowGenerator, randn, row_generators
        >>> like = torch.zeros(())
        >>> both = RowGenerator(row_generators(rv.generator(0), "noise", [4, 7]))
        >>> alone = RowGenerator(row_generators(rv.generator(0), "noise", [7]))
        >>> noise = randn(2, 5, like=like, generator=both)
        >>> torch.equal(noise[1:], randn(1, 5, like=like, generator=alone))
        True
    """

    streams: list[torch.Generator]

    @checked(formula=True)
    def __new__(cls, streams: Sequence[torch.Generator]) -> RowGenerator:
        """An ordinary generator on the device of the streams."""
        if not len(streams):
            raise ShapeError("a RowGenerator needs a stream for each row: give at least one")
        return super().__new__(cls, streams[0].device)  # type: ignore[call-arg]

    def __init__(self, streams: Sequence[torch.Generator]) -> None:
        """Hold the streams."""
        self.streams = list(streams)
        self.manual_seed(self.streams[0].initial_seed())

    def part(self, rows: Sequence[int]) -> RowGenerator:
        """The streams of some rows: the same ones, not copies."""
        return RowGenerator([self.streams[row] for row in rows])

    def get_state(self) -> Tensor:
        """The states of the ordinary generator and of all streams, (1 + rows, bytes)."""
        states = [super().get_state(), *(stream.get_state() for stream in self.streams)]
        return torch.stack(states)

    def set_state(self, state: Tensor) -> RowGenerator:
        """Go back to what `get_state` returned."""
        # clones: torch reads a state from the start of its storage, where a view's is not
        super().set_state(state[0].clone())
        for stream, row in zip(self.streams, state[1:], strict=True):
            stream.set_state(row.clone())
        return self

    def clone_state(self) -> RowGenerator:
        """A copy that draws the same numbers."""
        twin = RowGenerator([stream.clone_state() for stream in self.streams])
        return twin.set_state(self.get_state())


@checked(formula=True)
def by_row(
    generator: torch.Generator, purpose: str, x: Tensor, rows: Sequence[int] | None = None
) -> RowGenerator:
    """`generator` where it is a `RowGenerator`, else streams for the rows of `x`.

    Args:
        generator: Spent by one number where it is an ordinary generator.
        purpose: As in `row_generators`.
        x: Inputs, (B, ...).
        rows: As in `row_numbers`.
    """
    check_type(generator, "generator", torch.Generator)
    if isinstance(generator, RowGenerator):
        if len(generator.streams) != len(x):
            raise ShapeError(
                f"a RowGenerator of {len(generator.streams)} streams cannot serve {len(x)} rows: "
                "take generator.part(rows)"
            )
        return generator
    return RowGenerator(row_generators(generator, purpose, row_numbers(x, rows)))


def for_rows(generator: torch.Generator, rows: Sequence[int]) -> torch.Generator:
    """What some rows of a batch draw from: their streams of a `RowGenerator`, else `generator`.

    Args:
        generator: What the whole batch draws from.
        rows: The places of the rows in that batch. A place may stand there again: only the first
            time it is the stream itself, and then a copy, which draws the same numbers.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.seeding import for_rows
        >>> g = rv.generator(0)
        >>> for_rows(g, [2, 3]) is g
        True
    """
    if not isinstance(generator, RowGenerator):
        return generator
    streams, used = [], set()
    for row in rows:
        stream = generator.streams[row]
        streams.append(stream.clone_state() if row in used else stream)
        used.add(row)
    return RowGenerator(streams)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within: torch's global generators follow `seed`; afterwards they are as they were.

    For code that takes no generator, such as the first weights of torch's layers.
    """
    with torch.random.fork_rng():
        torch.manual_seed(generator(seed).initial_seed())
        yield


@checked(formula=True)
def randn(*shape: int, like: Tensor, generator: torch.Generator, axis: int = 0) -> Tensor:
    """Standard normal numbers of `shape`, with the device and dtype of `like`.

    Args:
        shape: Shape of the numbers.
        like: Where they go.
        generator: Spent by them; of a `RowGenerator` each stream fills its own row.
        axis: Which axis counts the rows of a `RowGenerator`.
    """
    return _fill(torch.randn, shape, like, generator, axis)


@checked(formula=True)
def rand(*shape: int, like: Tensor, generator: torch.Generator, axis: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) of `shape`, otherwise as `randn`."""
    return _fill(torch.rand, shape, like, generator, axis)


def _fill(
    sampler: Callable[..., Tensor],
    shape: tuple[int, ...],
    like: Tensor,
    generator: torch.Generator,
    axis: int,
) -> Tensor:
    check_type(generator, "generator", torch.Generator)
    if isinstance(generator, RowGenerator):
        n = len(generator.streams)
        if axis >= len(shape) or shape[axis] != n:
            # a caller that does not know of rows: its first axis of that length counts them
            axis = shape.index(n) if n in shape else -1
        if axis >= 0:
            other_axes = (*shape[:axis], *shape[axis + 1 :])
            parts = [
                sampler(other_axes, generator=stream, device=stream.device, dtype=like.dtype)
                for stream in generator.streams
            ]
            return torch.stack(parts, axis).to(like.device)
    noise = sampler(shape, generator=generator, device=generator.device, dtype=like.dtype)
    return noise.to(like.device)


@checked()
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
        DtypeError: `shape` is not a tuple of whole numbers, or `generator` not a generator.
        RangeError: A negative number in `shape`.

    Examples:
        >>> import robustvae as rv, torch
        >>> q = torch.distributions.Normal(torch.zeros(3, 2), torch.ones(3, 2))
        >>> rv.draw(q, (5,), generator=rv.generator(0)).shape
        torch.Size([5, 3, 2])
    """
    check_sizes(shape, "shape", least=0)
    if hasattr(distribution, "draw"):
        value: Tensor = distribution.draw(shape, generator=generator)
        return value
    if isinstance(distribution, torch.distributions.Independent):
        return draw(distribution.base_dist, shape, generator=generator)
    if isinstance(distribution, torch.distributions.Normal):
        mean, stddev = distribution.loc, distribution.scale
        noise = randn(*shape, *mean.shape, like=mean, generator=generator, axis=len(shape))
        return mean + stddev * noise
    if isinstance(distribution, torch.distributions.Distribution):
        # torch's own samplers read the global generator: lend them ours and put theirs back.
        with seeded(split(generator, 1)[0].initial_seed()):
            has_rsample = distribution.has_rsample
            sample = distribution.rsample if has_rsample else distribution.sample
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
    try:
        generator = torch.Generator(device=device)
    except (RuntimeError, TypeError, ImportError, ValueError) as error:
        line = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"device {device!r:.60} cannot make random numbers here: {line}"
        ) from None
    generator.manual_seed(seed)
    return generator
