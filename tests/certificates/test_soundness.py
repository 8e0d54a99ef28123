"""Many trials on the bundled models: random and adversarial perturbations inside each radius."""

import pytest
import torch

import robustvae as rv
from robustvae.metrics import clopper_pearson

R, M = 1.0, 0.5
SHARES = (0.3, 0.9, 0.999, 1 - 1e-6)


def share_inside(vae, q, q_adv, version, draws, generator):
    """How many of the draws keep ||Delta|| <= R, (B,)."""
    size = (draws, *q.mean.shape)
    stddev = q.stddev if version == "centred" else q_adv.stddev
    noise = torch.randn(size, generator=generator, dtype=q.mean.dtype)
    moved = vae.decode((q_adv.mean + stddev * noise).flatten(0, 1)).mean.flatten(1)
    if version == "paired":
        noise = torch.randn(size, generator=generator, dtype=q.mean.dtype)
        clean = vae.decode((q.mean + q.stddev * noise).flatten(0, 1)).mean.flatten(1)
    else:
        clean = vae.decode(q.mean).mean.flatten(1).repeat(draws, 1)
    return ((moved - clean).norm(dim=1) <= R).view(draws, -1).sum(0)


def violations(vae, x, x_adv, version, generator):
    """Inputs at which P(||Delta|| <= R) is at most M with confidence 1 - 1e-8."""
    q, q_adv = vae.encode(x), vae.encode(x_adv)
    inside = share_inside(vae, q, q_adv, version, 32, generator)
    close = inside < 24
    failed = torch.zeros(len(x), dtype=torch.bool)
    if close.any():
        count = share_inside(
            vae,
            *(rv.models.Gaussian(p.mean[close], p.stddev[close]) for p in (q, q_adv)),
            version,
            2000,
            generator,
        )
        _, high = clopper_pearson(count, 2000, 1 - 1e-8, sides=1)
        failed[close] = torch.as_tensor(high) <= M
    return failed


def trials(name, version, route, total, generator, dtype=torch.float32):
    """Number of violations in at least `total` trials, a third of them adversarial."""
    vae = rv.load(name).to(dtype)
    images = rv.data.load("digits", split="test").x.to(dtype)
    found = rv.certify(vae, images, R, M, version, generator=generator, routes=route)
    radius = found.radius.to(dtype)[:, None, None, None]
    assert (found.radius > 0).double().mean() >= 0.9
    damage = rv.MaximumDamage()
    done = failures = 0
    while done < total:
        for share in SHARES:
            step = torch.randn(images.shape, generator=generator, dtype=dtype)
            step = share * radius * step / step.flatten(1).norm(dim=1)[:, None, None, None]
            for kind in ("random", "random", "adversarial"):
                if kind == "adversarial":
                    ball = rv.Ball("l2", share * found.radius, low=None, high=None)
                    search = rv.ProjectedAscent(steps=10, restarts=1, rule="normalised")
                    attack = rv.Attack(damage, search, ball)
                    x_adv = attack(rv.Victim(vae), images, generator=generator).x_adv
                else:
                    x_adv, step = images + step, -step
                with torch.no_grad():
                    failures += int(violations(vae, images, x_adv, version, generator).sum())
                done += len(images)
    return failures, done


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("version", ["centred", "paired", "full"])
def test_no_violation_of_the_deterministic_certificate(version, dtype, generator):
    failures, done = trials("digits-lipschitz-vae", version, None, 20_000, generator, dtype)
    assert failures == 0 and done >= 20_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-vae", "digits-lipschitz-vae"])
def test_no_violation_of_neyman_pearson(name, generator):
    failures, done = trials(name, "centred", ["neyman_pearson"], 20_000, generator)
    assert failures == 0 and done >= 20_000


def test_a_few_trials_of_the_bundled_model(generator):
    failures, done = trials("digits-lipschitz-vae", "centred", None, 1_000, generator)
    assert failures == 0 and done >= 1_000
