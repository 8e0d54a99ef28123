"""The optimizer that keeps steps tangent."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import robustvae as rv
from robustvae import errors
from robustvae.training import TangentAdam, optimizer_of, run


def spirals(generator: torch.Generator, steps: int = 30) -> list[torch.Tensor]:
    return [torch.randn(4, 3, generator=generator) for _ in range(steps)]


def test_others_move_as_in_torchs_adam(generator):
    gradients = spirals(generator)
    ours, theirs = (nn.Parameter(torch.ones(4, 3)) for _ in range(2))
    optimizers = TangentAdam([], [ours], lr=0.01), torch.optim.Adam([theirs], lr=0.01)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert_close(ours, theirs)


def test_manifold_tensors_use_one_moment(generator):
    """Against the definition, written out."""
    gradients = spirals(generator)
    weight = nn.Parameter(torch.ones(4, 3))
    adam = TangentAdam([weight], [], lr=0.01)
    wanted, mean, square = torch.ones(4, 3), torch.zeros(4, 3), 0.0
    for k, gradient in enumerate(gradients, 1):
        weight.grad = gradient.clone()
        adam.step()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * float(gradient.square().mean())
        root = (square / (1 - 0.999**k)) ** 0.5
        wanted = wanted - 0.3 * 0.01 * mean / (1 - 0.9**k) / (root + 1e-8)
    assert_close(weight.detach(), wanted)


def test_weights_stay_near_manifold(generator):
    """In second order of the rate: ten times less rate, about a hundred times less drift."""
    x = torch.rand(64, 1, 4, 4, generator=generator)

    def drift(lr: float, optimizer: type | None) -> float:
        vae = rv.models.create("lipschitz-vae", latent=3, image_shape=(1, 4, 4), hidden=[16, 16])
        adam = optimizer(vae.parameters(), lr=lr) if optimizer else optimizer_of(vae, lr)
        for _ in range(20):
            adam.zero_grad()
            rv.objectives.ELBO()(vae, x, generator=rv.generator(0)).mean().backward()
            adam.step()
        weights = [w.detach() for w in vae.on_manifold()]
        weights = [w if w.shape[0] <= w.shape[1] else w.mT for w in weights]
        return max(float((w @ w.mT - torch.eye(len(w))).norm()) for w in weights)

    slow, fast = drift(1e-4, None), drift(1e-3, None)
    assert slow < 0.03 * fast
    assert 10 * slow < drift(1e-4, torch.optim.Adam)


def test_the_choice_of_the_optimizer():
    vae = rv.models.create("lipschitz-vae", latent=3, image_shape=(1, 4, 4), hidden=[8])
    whole, others = optimizer_of(vae).param_groups
    assert len(whole["params"]) == 4 and all(p.ndim == 2 for p in whole["params"])
    assert len(others["params"]) == 4 and all(p.ndim == 1 for p in others["params"])
    for layer in vae._layers():
        layer.weight.requires_grad_(False)
    assert type(optimizer_of(vae)) is torch.optim.Adam


def test_mixed_precision_keeps_orthogonality():
    pytest.importorskip("lightning_fabric")
    vae = rv.models.create("lipschitz-vae", hidden=[16], latent=4, image_shape=(1, 8, 8)).float()
    few = rv.data.load("digits")[:64]
    options = {"epochs": 1, "precision": "bf16-mixed", "validation": None}
    rv.fit(vae, rv.objectives.ELBO(), few, generator=rv.generator(0), **options)
    values = torch.linalg.svdvals(vae.on_manifold()[0].detach().double())
    assert_close(values, torch.ones_like(values), atol=1e-5, rtol=0)


def test_state_of_another_optimizer_is_refused(tmp_path, monkeypatch):
    vae = rv.models.create("lipschitz-vae", hidden=[16], latent=4, image_shape=(1, 8, 8))
    few = rv.data.load("digits")[:64]
    options = {"generator": rv.generator(0), "validation": None, "out": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(run, "optimizer_of", lambda vae: torch.optim.Adam(vae.parameters()))
        rv.fit(vae, rv.objectives.ELBO(), few, epochs=1, **options)
    options["generator"] = rv.generator(0)
    with pytest.raises(errors.CheckpointError, match="another optimizer"):
        rv.fit(vae, rv.objectives.ELBO(), few, epochs=2, **options)


def test_refusals_and_the_closure():
    weight = nn.Parameter(torch.eye(2))
    with pytest.raises(errors.RangeError):
        TangentAdam([weight], [], lr=-1.0)
    with pytest.raises(errors.ConfigError):
        TangentAdam([], [])
    weight.grad = torch.zeros(2, 2)
    assert TangentAdam([weight], []).step(lambda: 3.0) == 3.0
    vae = rv.models.create("lipschitz-vae", hidden=[16], latent=4, image_shape=(1, 8, 8))
    with torch.no_grad():
        vae.on_manifold()[0].fill_(torch.nan)
    with pytest.raises(errors.NonFiniteError):
        vae.finalize()
