"""What a method of certification is asked, and what it answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from robustvae.certificates.question import Question
from robustvae.defenses import Victim
from robustvae.errors import NonFiniteError
from robustvae.metrics import clopper_pearson
from robustvae.models import VAE, Gaussian
from robustvae.models.hierarchy import check_gaussian
from robustvae.registry import family_base
from robustvae.seeding import draw, randn, row_generators

SILENT = "sigma(x) is kept under attack: silent about sigma(x + delta)"
"""What a centered certificate of a learned spread says of itself."""

# rows decoded at once: some 256 of an MNIST image fit a cache
ROWS_AT_ONCE = 256


@final
@dataclass(frozen=True, eq=False)
class Task:
    """One question about a batch of inputs, as a method is asked it.

    Attributes:
        victim: What is certified.
        x: Inputs, (B, C, H, W).
        question: What is asked.
        confidence: Of each probabilistic answer, per input, after any split over methods.
        draws: The most draws that a sampled method may take per input; None for its own choice.
        rows: The inputs' own numbers, B of them.
        seed: All randomness follows from it, a purpose and the input's number.
        methods: Names of all methods that are asked.
        memo: What methods of one family share, by name.
        together: How many inputs radii that hold together speak of; None for those of `x`.
    """

    victim: Victim
    x: Tensor
    question: Question
    confidence: float
    draws: int | None
    rows: tuple[int, ...]
    seed: int
    methods: tuple[str, ...] = ()
    memo: dict[str, Any] = field(default_factory=dict)
    together: int | None = None

    @property
    def count(self) -> int:
        """How many inputs share a failure where all radii hold together."""
        return len(self.x) if self.together is None else self.together

    @property
    def vae(self) -> VAE:
        """The victim's model."""
        return self.victim.vae

    def generators(self, purpose: str) -> list[torch.Generator]:
        """A generator for each input, which its neighbors in the batch do not move."""
        return row_generators(self.seed, purpose, self.rows, self.x.device)


_KNOWN: ContextVar[dict[Any, Any] | None] = ContextVar("known models", default=None)


@contextlib.contextmanager
def unchanged_models(known: dict[Any, Any]) -> Iterator[None]:
    """Within: models stay as they are, so that what follows from weights alone is worked out once.

    For whoever asks about one model again and again, such as input by input.

    Args:
        known: What was worked out, kept by the caller.
    """
    token = _KNOWN.set(known)
    try:
        yield
    finally:
        _KNOWN.reset(token)


def of_model(vae: VAE, name: str, compute: Callable[[], Any]) -> Any:
    """What `compute` gives, remembered for the model within `unchanged_models`."""
    known = _KNOWN.get()
    if known is None:
        return compute()
    key = name, id(vae)
    if key not in known:
        known[key] = vae, compute()  # the model is kept, so that no other takes its id
    return known[key][1]


@final
@dataclass(frozen=True, eq=False)
class Finding:
    """What one method proves.

    Attributes:
        radii: Radii by the name of the bound, each (B,), float64, 0 where nothing is proved.
        assumptions: What they rest on.
        simultaneous: Radii that hold for all B inputs together with the task's confidence, (B,),
            of a probabilistic method that knows them.
        centers: What the displacement is measured from, (B, C, H, W), where the method chose it.
        spent: Draws taken for each input, (B,).
    """

    radii: dict[str, Tensor]
    assumptions: tuple[str, ...] = ()
    simultaneous: Tensor | None = None
    centers: Tensor | None = None
    spent: Tensor | None = None


@family_base("certificate-method")
@runtime_checkable
class Method(Protocol):
    """A way to certify.

    A call raises `UnsupportedError` where the method does not cover the task.

    Attributes:
        kind: "deterministic", "probabilistic" or "first_order".
        norms: The norms in which it answers; a radius in l2 is turned into linf by the caller.
    """

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def norms(self) -> tuple[str, ...]: ...  # noqa: D102

    def __call__(self, task: Task) -> Finding:
        """Radii that are proved for each input of the task."""
        ...


def row_normals(like: Tensor, generators: list[torch.Generator], count: int = 1) -> Tensor:
    """`count` standard normal tensors for each row of `like`, from its own generator, (B, n, ...).

    Drawn in float64, whose normals have no visible end, then as `like`.
    """
    wide = torch.empty(0, dtype=torch.float64, device=like.device)
    shape = (count, *like.shape[1:])
    return torch.stack([randn(*shape, like=wide, generator=g) for g in generators]).to(like)


def clean_probability(task: Task, *failures: float) -> Tensor:
    """Clopper-Pearson lower bounds on P(||Delta|| <= r) at the clean input, (K, B).

    Each input's draws are made and decoded by themselves, so that neighbors change nothing.

    Args:
        task: The task; its `draws` are 1,000 where it leaves the choice.
        failures: How often each of K bounds on one input, of the same draws, may be false.
    """
    vae, ask = task.vae, task.question
    total = task.draws or 1000
    inside = torch.zeros(len(task.x), dtype=torch.float64)
    for i, generator in enumerate(task.generators("clean probability")):
        posterior = vae.encode(task.x[i : i + 1])
        mean = posterior.mean
        center = vae.decode(mean).mean.flatten(1)
        if not bool(center.isfinite().all()):
            raise NonFiniteError("the clean reconstructions hold a NaN or an infinity")
        if ask.displacement == "centered":
            check_gaussian(posterior, "displacement 'centered'")
        if ask.displacement == "centered" or isinstance(posterior, Gaussian):
            # float64 normals have no visible end; layers that see one another keep their own type
            posterior = Gaussian(mean.double(), posterior.stddev.double())

        def decoded(count: int) -> Tensor:
            z = draw(posterior, (count,), generator=generator)[:, 0].to(mean)  # noqa: B023
            return vae.decode(z).mean.flatten(1)

        for count in chunks(total, ROWS_AT_ONCE):
            one = decoded(count)
            other = decoded(count) if ask.displacement == "paired" else center
            inside[i] += ((one - other).norm(dim=1) <= ask.r).sum().cpu()
    lows = [clopper_pearson(inside, total, 1 - failure, sides=1)[0] for failure in failures]
    return torch.stack([torch.as_tensor(low, dtype=torch.float64) for low in lows])


def chunks(total: int, most: int) -> Iterator[int]:
    """Counts of at most `most` that sum to `total`."""
    for begin in range(0, total, most):
        yield min(most, total - begin)
