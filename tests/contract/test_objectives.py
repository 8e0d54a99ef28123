"""Every objective of the library gives a finite loss a row that matches its terms."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import robustvae as rv
from robustvae import objectives
from robustvae.seeding import draw
from robustvae.testing import ContractError, check_objective, members_of


def _elbo(vae, x, generator):
    """The definition of the ELBO, one input at a time."""
    z = draw(vae.encode(x), generator=generator)
    losses = []
    for i in range(len(x)):
        q = vae.encode(x[i : i + 1])
        log_p = vae.decode(z[i : i + 1]).log_prob(x[i : i + 1]).sum()
        mean, stddev = q.mean[0], q.stddev[0]
        kl = 0.5 * (mean**2 + stddev**2 - 1 - 2 * stddev.log()).sum()
        losses.append(-log_p + kl)
    return torch.stack(losses)


def _adversarial(vae, x, generator):
    """One sign step from a random point of the cube, the ELBO at what it reaches."""
    y = (x + 0.2 * (2 * torch.rand(x.shape, dtype=x.dtype, generator=generator) - 1)).clamp(0, 1)
    y.requires_grad_()
    clean = vae.decode(vae.encode(x).mean).mean.detach()
    damage = (vae.decode(vae.encode(y).mean).mean - clean).flatten(1).norm(dim=1)
    (gradient,) = torch.autograd.grad(damage.sum(), y)
    y = (y.detach() + 0.1 * gradient.sign()).clamp(x - 0.2, x + 0.2).clamp(0, 1)
    z = draw(vae.encode(y), generator=generator)
    q = vae.encode(y)
    kl = 0.5 * (q.mean**2 + q.stddev**2 - 1 - 2 * q.stddev.log()).sum(1)
    return kl - vae.decode(z).log_prob(x).flatten(1).sum(1)


CASES = {
    "adversarial": (objectives.Adversarial(radii=(0.2,), steps=1), _adversarial),
    "elbo": (objectives.ELBO(), _elbo),
    "mixup": (objectives.Mixup(), None),
    "self-consistency": (objectives.SelfConsistency(), None),
    "self-supervision": (objectives.SelfSupervision(), None),
    "smooth-encoder": (objectives.SmoothEncoder(), None),
    "spectral-regularization": (objectives.SpectralRegularization(), None),
    "support-set": (objectives.SupportSet(size=0.02), None),
    "total-correlation": (objectives.TotalCorrelation(size=100), None),
}


def test_every_objective_has_evidence():
    assert set(CASES) == members_of("robustvae", "objective")


@pytest.mark.parametrize("name", sorted(CASES))
def test_objective_keeps_its_contract(name):
    objective, slow = CASES[name]
    check_objective(objective, slow=slow)


@dataclasses.dataclass(frozen=True)
class Doubled:
    """An objective that is twice what it says."""

    base: objectives.Objective

    def __call__(self, vae, x, *, generator):
        return 2 * self.base(vae, x, generator=generator)

    def terms(self, vae, x, *, generator):
        return self.base.terms(vae, x, generator=generator)

    def at(self, step):
        return self


def test_broken_objective_is_named():
    with pytest.raises(ContractError, match="not its loss"):
        check_objective(Doubled(objectives.ELBO()))
    with pytest.raises(ContractError, match="slow definition"):
        check_objective(rv.objectives.ELBO(beta=2.0), slow=_elbo)
