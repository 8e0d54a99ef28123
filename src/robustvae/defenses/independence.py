"""Whether a victim's draws are independent and of one law, as far as runs of it can show.

All lemmas of smoothing speak of n independent runs of one law. What is looked at: rows that see one
another or their place, networks that treat large batches otherwise, random numbers that calls or
rows share, generators that are set back, and whatever has changed when the draws are over. It is
evidence, not a proof: what differs only in rare cases is not seen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from robustvae.defenses.contents import contents
from robustvae.defenses.defense import is_random
from robustvae.defenses.draws import are_unequal, are_unlike, check_values
from robustvae.defenses.noise import InputNoise, check_continuous
from robustvae.errors import UnsupportedError
from robustvae.models import Gaussian
from robustvae.models.base import frozen
from robustvae.models.layout import channels_last
from robustvae.seeding import generator as seeded_generator
from robustvae.seeding import randn

if TYPE_CHECKING:
    from robustvae.defenses.victim import Victim

_AGREE = 1e-4  # relative; float sums in another order differ by some 1e-6, another input by more
_CALLS = 24  # of each kind: enough to tell laws apart that hardly overlap, cheap beside the draws
_ROWS = 128  # of a batch of a few images again and again
_ALONE = 8  # rows of a drawn batch that are looked at alone
# of the rows, what may differ: a sum that is rounded otherwise can turn a quantizer's choice
_TURNED = 0.02

# Victims whose networks and defense were looked at, and the state of their weights then: inputs are
# often certified one by one, and all of it costs as much as some hundred draws.
_KNOWN: dict[int, tuple[weakref.ref[Victim], object]] = {}


def _forget(key: int) -> Callable[[object], None]:
    """What is called when a victim is gone."""
    return lambda _: _KNOWN.pop(key, None) and None


def _is_known(victim: Victim, state: tuple[bytes | None, int]) -> bool:
    """Whether this very victim was looked at in this very state; never where it cannot be read."""
    known = _KNOWN.get(id(victim))
    return state[0] is not None and known is not None and known[0]() is victim and known[1] == state


@contextlib.contextmanager
def ready(victim: Victim) -> Iterator[None]:
    """Within: the model is made ready once for many calls; without gradients."""
    with frozen(victim.vae), channels_last(victim.vae), torch.no_grad():
        yield


def noise_of(victim: Victim) -> InputNoise:
    """The noise on the victim's input.

    Raises:
        UnsupportedError: There is none, it is not `InputNoise` as it stands, or the model reads
            whole numbers only.
    """
    noise = victim.noise
    if noise is None:
        raise UnsupportedError(
            "smoothing certifies a victim with noise on its input, got the defense "
            f"{type(victim.defense).__name__}: use rv.Victim(vae, rv.InputNoise(stddev=0.25))"
        )
    # what a subclass or a replaced function draws need not be the noise that the lemma is about
    own = {field.name for field in dataclasses.fields(InputNoise)}
    if type(noise) is not InputNoise or vars(noise).keys() - own:
        raise UnsupportedError(
            "smoothing certifies the noise of rv.InputNoise itself, got a noise "
            f"({type(noise).__name__}) that may draw otherwise: give what else is to happen as "
            "rv.InputNoise(stddev, defense=...)"
        )
    check_continuous(victim.vae)
    return noise


@final
class Independence:
    """Looks at a victim before, during and after its draws.

    Args:
        victim: The victim; its defense is `InputNoise`.
        x: Inputs, (B, C, H, W); the first is looked at.
        at_once: Rows of the batches that draws are made in.

    Raises:
        UnsupportedError: The victim's rows depend on one another, on their place, on earlier
            calls, on the size of the batch, or on a generator of its own, in a sentence.
    """

    def __init__(self, victim: Victim, x: Tensor, at_once: int) -> None:
        """Look at it before any draw is made."""
        noise_of(victim)
        self._victim, self._one, self._at_once = victim, x[:1], at_once
        self._states: set[tuple[int, bytes]] = set()
        self._held = _held(victim)
        state = self._held, at_once
        with ready(victim):
            self._first = self._run(3)
            _check_calls(self._first, self._run)
            if _is_known(victim, state):
                return
            self._look()
        _KNOWN[id(victim)] = (weakref.ref(victim, _forget(id(victim))), state)

    def _look(self) -> None:
        """Look at its networks and its defense."""
        victim, one = self._victim, self._one
        noise, g = noise_of(victim), seeded_generator(1, one.device)
        noisy = noise.noisy(_four(one), generator=g)
        # copies of one image lie as near one another as draws do, in batches of their size
        copies = one.expand(max(self._at_once * victim.votes, 4), *one.shape[1:])
        near, others = (noise.noisy(copies, generator=g) for _ in range(2))
        _check_networks(victim, noisy, near)
        _check_defense(victim, noise, near, others)

    def _run(self, mates: int) -> Tensor:
        """Outputs of two rows beside others, by one generator, and their logits, (2, ...)."""
        others = torch.cat([1 - self._one, torch.zeros_like(self._one), self._one / mates])
        pair = self._one.expand(2, *self._one.shape[1:])
        rows, victim = torch.cat([pair, others]), self._victim
        g = seeded_generator(0, self._one.device)
        output = victim.reconstruct(rows, generator=g)[:2]
        if victim.classifier is None:
            return output
        code = victim.latent(rows, generator=seeded_generator(0, self._one.device))
        logits = victim.classifier(code)[:2]
        return torch.cat([output.flatten(1), logits.flatten(1).to(output)], 1)

    def check_draws(self, batches: int) -> None:
        """Raise where outputs drawn for it are not as independent draws of one law are.

        Args:
            batches: How many batches of `at_once` outputs of the first input are drawn.

        Raises:
            UnsupportedError: They are not, or the victim has changed meanwhile.
        """
        rows = self._one.expand(self._at_once, *self._one.shape[1:])
        g, sizes, places = seeded_generator(8, self._one.device), list[Tensor](), list[Tensor]()

        def drawn() -> Tensor:
            self.check_generator(0, g)
            return self._victim.reconstruct(rows, generator=g).flatten(1).double()

        with ready(self._victim):
            # of draws used for nothing else, or their batch would lie nearer than the others
            center = drawn().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).mean(0)
            line = randn(len(center), like=center, generator=seeded_generator(9, center.device))
            for _ in range(batches):
                gaps = drawn() - center
                sizes.append(gaps.norm(dim=1))
                places.append(gaps @ line)
            self.check_output()
        self.check_state()
        # the distance is what certificates read; along a line opposite draws are told apart
        for values in (sizes, places):
            check_values(torch.cat(values), self._at_once)

    def check_generator(self, i: int, generator: torch.Generator) -> None:
        """Raise where the generator of an input stands where it stood before: the victim did it.

        Args:
            i: Place of the input in the batch.
            generator: As it is before the next draws.
        """
        state = (i, generator.get_state().numpy().tobytes())
        if state in self._states:
            raise UnsupportedError(
                "smoothing needs independent draws, and this victim sets the generator that it is "
                "given back to an earlier state: let it only draw from the generator argument"
            )
        self._states.add(state)

    def check_output(self) -> None:
        """Raise where the victim no longer gives what it gave before the draws."""
        if not _same(self._first, self._run(3)):
            raise UnsupportedError(
                "smoothing needs draws of one law, and this victim's output has changed while it "
                "was drawn from: remove its cache or state"
            )

    def check_state(self) -> None:
        """Look at the victim anew where it no longer holds what it held before the draws.

        To be called where the first look was: a model made ready for its draws holds other things.
        """
        if _held(self._victim) != self._held:
            with ready(self._victim):
                self._look()


def _held(victim: Victim) -> bytes | None:
    """What a victim is, to be compared."""
    return contents(victim.vae, victim.defense, victim.classifier)


def _four(one: Tensor) -> Tensor:
    """An image, (1, ...), and three others of its range, (4, ...)."""
    return torch.cat([one, 1 - one, one / 2, torch.zeros_like(one)])


def _check_calls(first: Tensor, run: Callable[[int], Tensor]) -> None:
    """Raise where two rows change with their mates, or from call to call."""
    # the second mates have another sum, so that a mean over the batch is seen
    if not _same(first, run(7)):
        raise UnsupportedError(
            "smoothing needs independent draws, and this victim's output for a row depends on "
            "the other rows of its batch: use a defense that reads every row alone (such as "
            "HMC(adapt='chain') without plateau), and no statistics of the batch"
        )
    if not _same(first, run(3)):
        raise UnsupportedError(
            "smoothing needs independent draws, and this victim's output depends on earlier "
            "calls: remove its cache or state"
        )


def _check_networks(victim: Victim, noisy: Tensor, near: Tensor) -> None:
    """Raise where encoder, decoder or classifier treat a row by its place, mates or batch's size.

    Args:
        victim: The victim.
        noisy: Four images as its model reads them.
        near: A batch of one image as draws are made of it, at least four rows.
    """

    def encode(x: Tensor) -> Tensor:
        q = victim.vae.encode(x)
        return torch.cat([q.mean, q.stddev], 1) if isinstance(q, Gaussian) else q.mean

    networks: list[tuple[str, Callable[[Tensor], Tensor]]] = [("encoder", encode)]
    networks.append(("decoder", lambda z: victim.vae.decode(z).mean))
    if victim.classifier is not None:
        networks.append(("classifier", victim.classifier))
    rows, batch = noisy, near
    for name, network in networks:
        subject = f"smoothing needs draws of one law, and this victim's {name}"
        check_rows_alone(subject, network, rows, min(len(near), _ROWS))
        check_batch(subject, network, batch)
        if name == "encoder":
            rows, batch = (victim.vae.encode(part).mean for part in (noisy, near))


def check_rows_alone(
    subject: str, network: Callable[[Tensor], Tensor], rows: Tensor, at_once: int = _ROWS
) -> None:
    """Raise where a network gives a row another value in a batch than alone.

    Args:
        subject: Who wants it, and what the network is: the beginning of the message.
        network: Of a batch.
        rows: At least four different ones, (n, ...).
        at_once: Rows of a large batch, at least n.

    Raises:
        UnsupportedError: It does, beside other rows, at another place, or in a large batch.
    """
    # no period: what one half of a batch copies from the other is seen
    places = torch.randint(len(rows), (at_once,), generator=seeded_generator(2)).to(rows.device)
    alone = torch.cat([network(row) for row in rows.split(1)])
    for what, index in (
        ("beside other rows", torch.arange(len(rows), device=rows.device)),
        (f"in a batch of {at_once}", places),
    ):
        if not _same(network(rows[index]), alone[index]):
            raise UnsupportedError(
                f"{subject} gives a row another value {what} than alone: use a model in which a "
                "row's place, its neighbors and the size of the batch change nothing"
            )


def check_batch(subject: str, network: Callable[[Tensor], Tensor], rows: Tensor) -> None:
    """Raise where a network gives rows other values in a batch as drawn than in smaller ones.

    Args:
        subject: Who wants it, and what the network is: the beginning of the message.
        network: Of a batch.
        rows: As they are drawn, in the size they are drawn in, (n, ...).

    Raises:
        UnsupportedError: It does, to more rows than rounding can turn.
    """
    whole = network(rows)
    for count, size in ((_ALONE, 1), (len(rows), max(1, len(rows) // 3))):
        parts = torch.cat([network(part) for part in rows[:count].split(size)])
        near = torch.isclose(whole[:count], parts, rtol=_AGREE, atol=_AGREE, equal_nan=True)
        if int((~near.reshape(len(near), -1).all(1)).sum()) > 1 + _TURNED * len(parts):
            raise UnsupportedError(
                f"{subject} gives a row another value in a batch of {len(rows)} like rows, as "
                f"draws are made, than {'alone' if size == 1 else f'in one of {size}'}: use a "
                "model in which a row's neighbors and the size of the batch change nothing"
            )


def check_mates(
    subject: str,
    run: Callable[[Tensor, torch.Generator], Tensor],
    pair: Tensor,
    *mates: Tensor,
) -> None:
    """Raise where two rows have other values beside other mates, all random numbers the same.

    Args:
        subject: Who wants it, and what is run: the beginning of the message.
        run: Of a batch and a generator.
        pair: The two rows.
        mates: As many rows each, to stand beside them.

    Raises:
        UnsupportedError: They have.
    """
    first, *others = (
        run(torch.cat([pair, part]), seeded_generator(5, pair.device))[:2] for part in mates
    )
    if not all(_same(first, other) for other in others):
        raise UnsupportedError(
            f"{subject} depends on the other rows of its batch: let it read every row alone"
        )


def _check_defense(victim: Victim, noise: InputNoise, near: Tensor, after: Tensor) -> None:
    """Raise where the inner defense's draws depend on one another, on a row's place or mates.

    Args:
        victim: The victim.
        noise: Its noise.
        near: A batch of one image as draws are made of it.
        after: Another one.
    """
    noisy = near[:1]  # of one row again and again only the defense's own chance is left

    def run(rows: Tensor, generator: torch.Generator) -> Tensor:
        return victim.vae.decode(noise.defense(victim.vae, rows, generator=generator)).mean

    def inner(generator: torch.Generator, count: int) -> Tensor:
        return run(noisy.expand(count, *noisy.shape[1:]), generator)

    subject = "smoothing needs independent draws, and this victim's output for a row"
    check_mates(subject, run, near[:2], near[2:], after[2:])
    calls = [inner(seeded_generator(seed, noisy.device), 4) for seed in (2, 3)]
    g = seeded_generator(4, noisy.device)
    if all(map(_is_one, calls)):
        # a rare draw, or one that all rows share, takes many calls to be seen
        calls += [inner(g, 4) for _ in range(_CALLS if is_random(noise.defense) else 1)]
    varies = not all(map(_is_one, calls))
    repeats = all(_same(calls[0], call) for call in calls)
    if varies and not is_random(noise.defense):
        raise UnsupportedError(
            "smoothing needs draws of one law, and this victim gives equal rows unequal "
            "outputs though its defense says that it is not random: it reads their place"
        )
    if varies and repeats:
        raise UnsupportedError(
            "smoothing needs independent draws, and this victim repeats its random numbers "
            "whatever generator it is given: let it draw from the generator argument"
        )
    if not varies:
        if not repeats:
            raise UnsupportedError(
                "smoothing needs independent draws, and this victim makes one draw for all rows "
                "of a batch: let it draw for every row"
            )
        subject = "smoothing needs draws of one law, and this victim's defense"
        check_batch(subject, lambda rows: run(rows, g), near)
        return
    reference = inner(g, 1)
    pairs, singles = torch.stack([inner(g, 2) for _ in range(_CALLS)]), list[Tensor]()
    singles += [inner(g, 1)[0] for _ in range(_CALLS)]
    small = [pairs[:, 0], pairs[:, 1], torch.stack(singles)]
    groups = [
        (outputs - reference).flatten(1).double().norm(dim=1)
        for outputs in (*small, inner(g, len(near)))
    ]
    if are_unequal(groups[:-1]):
        raise UnsupportedError(
            "smoothing needs draws of one law, and this victim draws by another one for the first "
            "row of a batch than for the second or for one alone: it reads their place"
        )
    if are_unlike(torch.cat(groups[:-1]), groups[-1]):
        raise UnsupportedError(
            "smoothing needs draws of one law, and this victim draws by another one in a batch of "
            f"{len(near)} rows than in small ones: let the size of the batch change nothing"
        )


def check_score(
    run: Callable[[Tensor, torch.Generator], Tensor], one: Tensor, stddev: float, at_once: int
) -> None:
    """Raise where a score gives a row another value beside other rows, or in a large batch.

    Args:
        run: The score of a batch, (n, ...), and a generator, (n,).
        one: An image, (1, ...).
        stddev: How far from it the mates lie.
        at_once: Rows of the batches that draws are made in.

    Raises:
        UnsupportedError: It does.
    """
    subject = "smoothing needs independent draws, and this score's value for a row"
    pair, g = one.expand(2, *one.shape[1:]), seeded_generator(6, one.device)
    far = [torch.cat([1 - one, torch.zeros_like(one), one / k]) for k in (3, 7)]
    check_mates(subject, run, pair, *far)
    near = one.expand(max(at_once - 2, 2), *one.shape[1:])
    aside = stddev * randn(*near.shape, like=one, generator=g)
    check_mates(subject, run, pair, near, near + aside, near)
    singles = torch.cat([run(one, g) for _ in range(2 * _CALLS)])
    batch = run(one.expand(max(at_once, 2), *one.shape[1:]), g)
    if are_unlike(singles, batch):
        raise UnsupportedError(
            "smoothing needs draws of one law, and this score's are of another one in a batch of "
            f"{len(batch)} rows than of a row alone: let it read every row alone"
        )


def _is_one(rows: Tensor) -> bool:
    """Whether all rows are the same."""
    return _same(rows[:1].expand_as(rows), rows)


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(torch.isclose(one, other, rtol=_AGREE, atol=_AGREE, equal_nan=True).all())
