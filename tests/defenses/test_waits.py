"""On an accelerator the loops of the kernels never wait for a value: its queue is never drained."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import robustvae as rv
from robustvae.defenses import RobustTarget, fisher, posterior
from robustvae.defenses import targets as robust_targets
from robustvae.mcmc import (
    BatchWide,
    DualAveraging,
    FixedStep,
    Kernel,
    PerChain,
    evaluate,
    gauss_newton,
    hmc,
    hmc_step,
    implicit,
    langevin,
    lbfgs,
    leapfrog,
    mass_matrix,
    mode_search,
)
from robustvae.seeding import generator as seeded

VALUES_READ = {
    torch.ops.aten._local_scalar_dense,
    torch.ops.aten.equal,
    torch.ops.aten.is_nonzero,
    torch.ops.aten.masked_select,
    torch.ops.aten.nonzero,
    torch.ops.aten._unique2,
}
INDEXED = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}


class Asks(TorchDispatchMode):
    """Notes what makes a device wait for the host: values read, shapes that depend on values."""

    def __init__(self):
        super().__init__()
        self.met = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masked = func.overloadpacket in INDEXED and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if masked or func.overloadpacket in VALUES_READ:
            self.met.append(func)
        return func(*args, **(kwargs or {}))


def reads_a_value(z):
    return float(z.sum())


def has_a_shape_by_values(z):
    return z[z > 0]


def puts_by_a_mask(z):
    z = z.clone()
    z[z > 0] = 0
    return z


def branches(z):
    return z if (z > 0).any() else -z


def finds(z):
    return torch.where(z > 0)


@pytest.mark.parametrize(
    "wait", [reads_a_value, has_a_shape_by_values, puts_by_a_mask, branches, finds]
)
def test_what_waits_is_seen(wait):
    with Asks() as asks:
        wait(torch.tensor([-1.0, 1.0]))
    assert asks.met


PER_CHAIN = PerChain()


def run_hmc(target, z, adaptation=PER_CHAIN, keep=False, **options):
    kernel = Kernel(0.05, n_leapfrog=2, **options)
    return hmc(target, z, kernel, steps=4, adaptation=adaptation, keep=keep, generator=seeded(0))


def dense(z):
    return mass_matrix(torch.eye(z.shape[1]).expand(len(z), -1, -1))


def one_step(target, z):
    return hmc_step(
        target, evaluate(target, z), Kernel(step_size=0.1, n_leapfrog=2), generator=seeded(0)
    )


KERNELS = {
    "leapfrog": lambda t, z: leapfrog(t, evaluate(t, z), z, step=0.1, n_steps=2),
    "hmc_step": one_step,
    "hmc": lambda t, z: run_hmc(t, z, jitter=0.1, keep=True),
    "hmc, dual": lambda t, z: run_hmc(t, z, adaptation=DualAveraging()),
    "hmc, paper": lambda t, z: run_hmc(t, z, adaptation=BatchWide()),
    "hmc, fixed": lambda t, z: run_hmc(t, z, adaptation=FixedStep()),
    "hmc, unrolled": lambda t, z: run_hmc(t, z, graph=True),
    "hmc, matrix": lambda t, z: run_hmc(t, z, mass=dense(z)),
    "langevin": lambda t, z: langevin(t, z, steps=3, generator=seeded(0)),
    "adam": lambda t, z: mode_search(t, z, steps=3),
    "adam, unrolled": lambda t, z: mode_search(t, z, steps=3, graph=True),
    "lbfgs": lambda t, z: lbfgs(t, z, steps=4),
    "gauss-newton": lambda t, z: gauss_newton(t, lambda z: fisher(t.vae, z), z, steps=3),
    "implicit": lambda t, z: implicit(t, z, products=3).sum().backward(),
}


def targets(kind, likelihood):
    size = {"latent": 3} if kind == "vae" else {"widths": [2, 1]}
    vae = rv.models.create(
        kind, architecture="mlp", image_shape=(1, 4, 4), hidden=[8], likelihood=likelihood, **size
    )
    x = torch.rand(3, 1, 4, 4, generator=seeded(0)).requires_grad_()
    robust = {norm: RobustTarget(vae, x, norm, size) for norm, size in (("linf", 0.1), ("l2", 0.5))}
    return {"posterior": posterior(vae, x)} | robust


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernels_wait_for_no_value(kernel, monkeypatch):
    # as on an accelerator: on the CPU a warm start is looked at, which costs nothing there
    monkeypatch.setattr(robust_targets, "reads_back", lambda x: False)
    for name, target in targets("vae", "bernoulli").items():
        with Asks() as asks:
            KERNELS[kernel](target, torch.ones(3, 3))
        assert not asks.met, name


@pytest.mark.parametrize("kind", ["vae", "dlgm", "seatbelt"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli", "gaussian"])
def test_the_targets_wait_for_no_value(kind, likelihood):
    for name, target in targets(kind, likelihood).items():
        for graph in (False, True):
            with Asks() as asks:
                evaluate(target, torch.ones(3, 3), graph=graph)
            assert not asks.met, name
