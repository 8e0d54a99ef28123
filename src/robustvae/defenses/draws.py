"""Whether numbers in the order in which they were drawn look like independent draws of one law.

One place for it: `certify` asks it of the distances that decide, `rv.check` of outputs drawn for
it. Under independence the numbers' ranks are a random order whatever their law is (equal numbers
are ordered at random), so that normal scores in place of ranks have a known law. Asked of them, and
of how far from the middle they lie, is whether draws some way apart, rows of a batch or batches go
together, and whether a batch lies apart or closer than it may.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from robustvae.errors import UnsupportedError
from robustvae.seeding import generator as seeded_generator

CHANCE = 1e-9  # of refusing draws that are independent and of one law, by each kind of question
_SHARP = 1e-12  # the same where a tail is heavier than the law that stands for it
_LEAST = 64  # numbers of which an order can be asked
_FEW = 16  # rows of a batch, or batches, of which a correlation can be asked

_REMEDY = "let it draw anew for every row and every call, from the generator argument"


def check_values(values: Tensor, at_once: int) -> None:
    """Raise where numbers differ from independent draws of one law.

    Args:
        values: In the order in which they were drawn, (n,).
        at_once: Draws of each batch.

    Raises:
        UnsupportedError: They go together in a way that such draws do once in 1e9, said which.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.defenses.draws import check_values
        >>> values = torch.randn(512, generator=rv.generator(0))
        >>> check_values(values, at_once=32)
        >>> check_values(values[:256].repeat_interleave(2), at_once=32)
        Traceback (most recent call last):
        ...
        robustvae.errors.UnsupportedError: smoothing needs independent draws, and draws of this...
    """
    values = values.detach().cpu().double().nan_to_num(nan=torch.inf)
    if len(values) > at_once:
        order = values.sort().values
        # a shift that batches share by chance shows at a low, a middle or a high quantile
        for share in (0.1, 0.5, 0.9):
            parts = (values <= order[int(share * (len(order) - 1))]).split(at_once)
            check_batches([int(part.sum()) for part in parts], list(map(len, parts)))
    if len(values) < _LEAST or bool((values == values[0]).all()):
        return
    scores = _normal_scores(values)
    # how far from the middle: what shares its size goes together there
    for part in (scores, _normal_scores(scores.abs())):
        for chance, words in _questions(part, at_once):
            if chance < CHANCE:
                raise UnsupportedError(f"smoothing needs independent draws, and {words}: {_REMEDY}")


def check_batches(inside: list[int], counts: list[int]) -> None:
    """Raise where batches differ more than independent draws do: rows of one share their chance.

    Args:
        inside: Draws of each batch at which an event happened.
        counts: Draws of each batch.

    Raises:
        UnsupportedError: The batches' shares are spread too widely.
    """
    from scipy.special import chdtrc

    share = sum(inside) / sum(counts)
    # the chi-square is trusted where a batch holds some of either kind: small ones are joined
    least = 5 / max(min(share, 1 - share), 1e-300)
    groups, hits, size = list[tuple[int, int]](), 0, 0
    for hit, count in zip(inside, counts, strict=True):
        hits, size = hits + hit, size + count
        if size >= least:
            groups.append((hits, size))
            hits = size = 0
    if len(groups) < 2:
        return
    spread = sum((hit - share * n) ** 2 / (n * share * (1 - share)) for hit, n in groups)
    if chdtrc(len(groups) - 1, spread) < _SHARP:
        raise UnsupportedError(
            "smoothing needs independent draws, and batches of this victim's draws differ more "
            "than such draws do: let it draw for every row"
        )


def are_unequal(groups: list[Tensor]) -> bool:
    """Whether ranks say that numbers are not all of one law; false by chance once in 1e9."""
    from scipy.stats import kruskal

    values = [group.nan_to_num(nan=torch.inf, posinf=1e300).cpu().numpy() for group in groups]
    if all((value == values[0][0]).all() for value in values):
        return False
    return bool(kruskal(*values).pvalue < CHANCE)


def are_unlike(one: Tensor, other: Tensor) -> bool:
    """Whether ranks say that numbers lie elsewhere than others, or more widely about the middle."""
    middle = other.median()
    return are_unequal([one, other]) or are_unequal(
        [(part - middle).abs() for part in (one, other)]
    )


def _normal_scores(values: Tensor) -> Tensor:
    """Normal numbers in the order of the values, equal values in a random order, (n,)."""
    count = len(values)
    shuffle = torch.randperm(count, generator=seeded_generator(7))
    ranks = torch.empty(count, dtype=torch.float64)
    order = shuffle[values[shuffle].argsort(stable=True)]
    ranks[order] = torch.arange(count, dtype=torch.float64)
    return torch.special.ndtri((ranks + 0.5) / count)


def _questions(scores: Tensor, at_once: int) -> Iterator[tuple[float, str]]:
    """Chances under independence, over all places that were looked at, and what each would mean."""
    yield _apart(scores)
    yield _drift(scores)
    batches = scores[: len(scores) // at_once * at_once].view(-1, at_once)
    count = len(batches)
    if count < 2 or at_once < 2:
        return
    if count >= _FEW:
        yield _alike(batches.mT, "rows {} and {} of this victim's batches go together")
    if at_once >= _FEW:
        yield _alike(batches, "batches {} and {} of this victim's draws go together")
        yield from _one_batch(batches)
    yield _means(batches)
    yield _mirrored(batches)


def _apart(scores: Tensor) -> tuple[float, str]:
    """Draws that stand some way apart: at every distance up to half of them, by one transform."""
    count = len(scores)
    most = count // 2
    line = torch.fft.rfft(scores, 2 * count)
    products = torch.fft.irfft(line * line.conj(), 2 * count)[1 : most + 1]
    squares = torch.cat([torch.zeros(1, dtype=torch.float64), scores.square().cumsum(0)])
    lags = torch.arange(1, most + 1)
    sizes = (squares[count - lags] * (squares[-1] - squares[lags])).sqrt()
    correlations = (products / sizes).clamp(-1, 1)
    chance, place = _least_chance(correlations, (count - lags).double() - 2)
    return chance, (
        f"draws of this victim that stand {place + 1} apart go together (correlation "
        f"{float(correlations[place]):.2g})"
    )


def _mirrored(batches: Tensor) -> tuple[float, str]:
    """Rows of a batch that stand opposite one another about any place in it.

    Of K pairs the correlation (A - B) / (A + B), A and B sums of squares of the pairs' sums and
    differences, has the law that stands for K degrees of freedom.
    """
    count, size = batches.shape
    line = torch.fft.rfft(batches, 2 * size)
    products = torch.fft.irfft(line.square(), 2 * size)[:, : 2 * size - 1].sum(0)
    squares = batches.square().sum(0)
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), squares.cumsum(0)])
    ends = torch.arange(2 * size - 1)  # i + j
    first, last = (ends - size + 1).clamp_min(0), ends.clamp_max(size - 1)
    middle = torch.zeros(2 * size - 1, dtype=torch.float64)
    middle[::2] = squares
    wholes = (sums[last + 1] - sums[first] - middle).clamp_min(1e-300)
    pairs = count * ((last - first + 1) // 2)
    enough = pairs >= _FEW
    if not bool(enough.any()):
        return 1.0, ""
    correlations = ((products - middle) / wholes).clamp(-1, 1)[enough]
    chance, place = _least_chance(correlations, pairs[enough].double())
    return chance, (
        "rows of this victim's batches that stand opposite one another go together (correlation "
        f"{float(correlations[place]):.2g})"
    )


def _drift(scores: Tensor) -> tuple[float, str]:
    """Whether draws grow or fall from the first to the last."""
    time = torch.linspace(-1, 1, len(scores), dtype=torch.float64)
    correlation = (scores @ time) / (scores.norm() * time.norm())
    chance, _ = _least_chance(correlation[None], torch.tensor([len(scores) - 2.0]))
    return chance, (
        "draws of this victim move from the first to the last "
        f"(correlation with their number {float(correlation):.2g})"
    )


def _alike(rows: Tensor, words: str) -> tuple[float, str]:
    """Whether any two rows of numbers, (k, n), go together."""
    centered = rows - rows.mean(1, keepdim=True)
    unit = centered / centered.norm(dim=1, keepdim=True).clamp_min(1e-300)
    first, second = torch.triu_indices(len(rows), len(rows), 1)
    correlations = (unit @ unit.mT)[first, second].clamp(-1, 1)
    freedom = torch.full_like(correlations, rows.shape[1] - 2)
    chance, place = _least_chance(correlations, freedom)
    pair = words.format(int(first[place]) + 1, int(second[place]) + 1)
    return chance, f"{pair} (correlation {float(correlations[place]):.2g})"


def _one_batch(batches: Tensor) -> Iterator[tuple[float, str]]:
    """Whether the rows of any one batch lie closer together than they may, or elsewhere."""
    from scipy.special import chdtr, chdtrc, ndtr

    count, size = batches.shape
    means = batches.mean(1)
    squares = (batches - means[:, None]).square().sum(1)
    place = int(squares.argmin())
    yield (
        count * float(chdtr(size - 1, float(squares[place]))),
        f"the rows of batch {place + 1} of this victim's draws share what should be drawn for each",
    )
    place = int(squares.argmax())
    yield (
        count * float(chdtrc(size - 1, float(squares[place]))),
        f"the rows of batch {place + 1} of this victim's draws lie further apart than others do",
    )
    place = int(means.abs().argmax())
    yield (
        2 * count * float(ndtr(-float(means[place].abs()) * size**0.5)),
        f"batch {place + 1} of this victim's draws lies apart from the others",
    )


def _means(batches: Tensor) -> tuple[float, str]:
    """Whether the batches' means differ less than they may: their rows make up for one another."""
    from scipy.special import chdtr

    count, size = batches.shape
    spread = float(size * (batches.mean(1) - batches.mean()).square().sum())
    return float(chdtr(count - 1, spread)), (
        "rows of this victim's batches make up for one another (their means hardly differ)"
    )


def _least_chance(correlations: Tensor, freedom: Tensor) -> tuple[float, int]:
    """The least two-sided chance of correlations under independence, times their number; where."""
    from scipy.special import stdtr

    left = (1 - correlations.square()).clamp_min(1e-300)
    # the least chance is among these: freedoms of one question differ little where they are large
    sizes, places = (correlations.abs() * (freedom / left).sqrt()).topk(min(32, len(left)))
    chances = torch.from_numpy(2 * stdtr(freedom[places].numpy(), -sizes.numpy()))
    place = int(chances.argmin())
    return len(left) * float(chances[place]), int(places[place])
