"""What a check made from annotations accepts and refuses, and how it says so."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import robustvae as rv
from robustvae import arguments, metrics
from robustvae.arguments import checked, checked_fields, is_dense, shown
from robustvae.errors import ArgumentError, DtypeError, RangeError, RobustVAEError, UnknownNameError


@checked()
def taken(
    x: Tensor | None = None,
    number: float = 1.0,
    count: int = 1,
    word: Literal["a", "b"] = "a",
    flag: bool = False,
    parts: Sequence[int] = (),
    anything: Any = None,
    unseen: NoSuchName = None,  # noqa: F821
) -> str:
    return "taken"


SPARSE = torch.ones(2, 2).to_sparse()
META = torch.empty(2, device="meta")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", None),
        ("x", torch.ones(2)),
        ("number", 3),
        ("number", float("nan")),
        ("count", 0),
        ("word", "b"),
        ("flag", True),
        ("parts", [1, 2]),
        ("parts", range(3)),
        ("anything", object()),
        ("unseen", object()),
    ],
)
def test_right_argument_passes(name: str, value: object) -> None:
    assert taken(**{name: value}) == "taken"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", "1"),
        ("x", SPARSE),
        ("x", META),
        ("x", torch.ones(2, dtype=torch.complex64)),
        ("number", True),
        ("number", "1"),
        ("number", None),
        ("count", 1.0),
        ("count", False),
        ("word", "c"),
        ("word", torch.ones(2)),
        ("flag", 1),
        ("parts", "12"),
        ("parts", [1, 0.5]),
        ("parts", 3),
    ],
)
def test_wrong_argument_refused(name: str, value: object) -> None:
    kind = UnknownNameError if name == "word" and isinstance(value, str) else DtypeError
    with pytest.raises(kind, match=rf"taken: {name} must be .*, got "):
        taken(**{name: value})


def test_huge_number_out_of_range() -> None:
    for name in ("number", "count"):
        with pytest.raises(RangeError, match=r"must be a .*number, got 1180591620717411303424"):
            taken(**{name: 2**70})


def test_misfit_shows_all_arguments() -> None:
    with pytest.raises(ArgumentError, match=r"kl: .*mean=\(2, 3\).*other_mean=\(4,\)") as caught:
        metrics.kl(torch.ones(2, 3), torch.ones(2, 3), torch.ones(4), torch.ones(4))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_users_own_error_passes() -> None:
    @checked()
    def run(f: Any) -> None:
        f()

    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_fields_checked_at_construction() -> None:
    @checked_fields
    @dataclass(frozen=True)
    class Size:
        value: int = 1

    assert Size(2) == Size(value=2)
    with pytest.raises(DtypeError, match="Size: value must be a whole number"):
        Size("2")


def test_dense_tensors_only() -> None:
    assert is_dense(torch.ones(1, 1).expand(3, 3))
    assert not any(is_dense(value) for value in (SPARSE, META, [1.0], None))


def test_shown_in_few_words() -> None:
    assert shown(SPARSE) == "(2, 2) float32 sparse_coo"
    assert shown(META) == "(2,) float32 on meta"
    assert len(shown("x" * 5000)) <= 80


def test_long_message_is_shortened() -> None:
    with pytest.raises(RobustVAEError) as caught:
        rv.data.load("x" * 10_000)
    assert len(str(caught.value)) < 2000


class OwnModel(rv.models.VAE):
    """A model of the user's, with a fault of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.image_shape, self.latent = (1, 4, 4), 2
        self.weight = torch.nn.Parameter(torch.ones(1))

    def encode(self, x: Tensor) -> Any:
        raise ValueError("a fault in the user's code")

    def decode(self, z: Tensor) -> Any:
        return {}["a key that is missing"]


def test_errors_of_own_models_pass() -> None:
    vae, noise = OwnModel(), rv.generator(0)
    with pytest.raises(ValueError, match="in the user's code") as caught:
        rv.evaluation.squared_error(vae, torch.rand(2, 1, 4, 4), generator=noise)
    assert not isinstance(caught.value, RobustVAEError)
    with pytest.raises(KeyError, match="missing"):
        rv.geometry.decoder_metric(vae, torch.zeros(2, 2))
    with pytest.raises(ArgumentError, match="fit together"):  # of ours, on the same arguments
        metrics.kl(*[torch.zeros(2, 2)] * 3, torch.zeros(3, 3))


# Not looked at: what runs at every import, what is called for each of many values, and what only
# the library calls.
UNCHECKED = {
    *("plain", "register", "family_base", "is_word", "double", "slack"),
    *("is_posterior_mean", "spectral_norm_bounds"),  # the latter's matrices may be complex
}


def is_checked(function: Any) -> bool:
    """Whether a function, or one that it wraps, validates its arguments."""
    while function.__code__.co_filename != arguments.__file__:
        if not hasattr(function, "__wrapped__"):
            return False
        function = function.__wrapped__
    return True


SINGLE = ("callbacks", "jacobians", "metrics", "norms", "scores", "sharing", "zoo", "zoo_table")
OTHERS = ("cli", "app", "testing")


def is_own(value: Any, home: Any) -> bool:
    """Whether a module has made a function for others."""
    is_public = not getattr(value, "__name__", "_").startswith("_")
    return is_public and getattr(value, "__module__", "") == home.__name__


def test_every_public_function_is_checked() -> None:
    """A function that a package names as its own refuses what its annotations do not allow."""
    missing = set()
    for info in pkgutil.walk_packages(rv.__path__, "robustvae."):
        family = info.name.removeprefix("robustvae.")
        if (info.ispkg or family in SINGLE) and family.split(".")[0] not in OTHERS:
            home = importlib.import_module(info.name)
            own = [name for name, value in vars(home).items() if is_own(value, home)]
            for name in getattr(home, "__all__", own):
                value = getattr(home, name)
                if not inspect.isfunction(value) or name in UNCHECKED:
                    continue
                if inspect.signature(value).parameters and not is_checked(value):
                    missing.add(f"{info.name}.{name}")
    assert not missing
