"""Every certificate method of the library stays below an exact margin, or abstains by name."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import robustvae as rv
from robustvae import registry
from robustvae.certificates.methods.base import Finding
from robustvae.testing import ContractError, check_method, exact_margin, members_of

# how each is asked; what proves nothing on orthonormal maps says so
CASES = {
    "barrett": ("barrett", {"displacement": "paired", "proves": False}),
    "envelope": ("envelope", {"proves": False}),  # the decoder ends in no sigmoid
    "first_order": ("first_order", {}),
    "generalized": ("generalized", {}),
    "neyman_pearson": ("neyman_pearson", {"displacement": "paired"}),
    "noncentral": ("noncentral", {"displacement": "paired"}),
    "sampled_reach": ("sampled_reach:draws=400,steps=5", {"displacement": "paired"}),
    "smoothing": ("smoothing:draws=2000", {"displacement": "paired", "noise": 0.1}),
    "support_set": ("support_set", {"proves": False}),  # half of the mass, all at its worst
    "tangent": ("tangent", {"proves": False}),
    "trace_markov": ("trace_markov", {}),
}


def test_every_method_has_evidence():
    assert set(CASES) == members_of("robustvae", "certificate-method")


@pytest.mark.parametrize("name", sorted(CASES))
def test_method_keeps_its_contract(name):
    spec, options = CASES[name]
    check_method(registry.build("certificate-method", spec), **options)


@dataclasses.dataclass(frozen=True)
class Constant:
    """A method that says the same radius of every input."""

    radius: float = 0.1
    kind: str = "deterministic"
    norms: tuple[str, ...] = ("l2",)
    by_place: bool = False

    def __call__(self, task):
        radii = torch.full((len(task.x),), self.radius, dtype=torch.float64)
        if self.by_place:
            radii = radii / torch.arange(1, len(task.x) + 1)
        return Finding({"constant": radii}, ("nothing",))


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (Constant(1.001 * exact_margin(1.2, 0.6, "centered")), "where the exact margin is"),
        (Constant(float("inf")), "negative or not finite"),
        (Constant(0.0), "proves nothing"),
        (Constant(by_place=True), "depend on the other rows"),
        (Constant(kind="certain"), "not one of"),
        (Constant(norms=("l1",)), "not in l2 or linf"),
    ],
)
def test_broken_method_is_named(method, sentence):
    with pytest.raises(ContractError, match=sentence):
        check_method(method)


def test_sound_constant_passes():
    check_method(Constant(0.999 * exact_margin(1.2, 0.6, "centered")))


@pytest.mark.parametrize("name", sorted(CASES))
def test_method_abstains_outside_its_scope(name, generator):
    """A model behind functions without a Gaussian posterior or noise on its input."""
    vae = rv.wrap(
        encode=lambda x: torch.distributions.Laplace(x.flatten(1)[:, :2], 0.1),
        decode=lambda z: torch.distributions.Normal(z.repeat(1, 8).view(-1, 1, 4, 4), 1.0),
        latent=2,
        image_shape=(1, 4, 4),
    )
    x = torch.rand(1, 1, 4, 4, generator=generator)
    certificate = rv.certify(
        vae, x, 1.2, 0.6, "full", methods=[CASES[name][0]], generator=rv.generator(0)
    )
    assert certificate.status == ("abstain",) and "not covered" in " ".join(certificate.assumptions)
