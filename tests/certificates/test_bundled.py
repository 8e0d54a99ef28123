"""What the bundled Lipschitz-VAE was tuned for."""

import torch

import robustvae as rv
from robustvae.training import train_recipe


def test_certificate_near_attacked_bound(generator):
    """r = 1, m = 1/2, centered, free: positive on 90 %, on average 0.3 of what attacks reach."""
    vae = rv.load("digits-lipschitz-vae")
    images = rv.data.load("digits", split="test")
    lower = rv.certify(vae, images.x, 1.0, 0.5, "centered", generator=generator)
    assert (lower.radius > 0).double().mean() >= 0.9
    x, _ = images.sample(20, stratified=True, generator=generator)
    lower = rv.certify(vae, x, 1.0, 0.5, "centered", generator=generator)
    upper = rv.estimate_margin(
        rv.Victim(vae), x, r=1.0, m=0.5, displacement="centered", box=False, generator=generator
    )
    high = torch.as_tensor(upper.value).double()
    assert (lower.radius <= high).all()
    assert (lower.radius / high).mean() >= 0.3


def test_constants_of_stored_weights_of_recipe():
    constants = rv.certificates.lipschitz_constants(rv.load("digits-lipschitz-vae"))
    assert 2.0 - 1e-5 < constants.b < 2.0 + 1e-5
    assert 1.0 - 1e-5 < constants.a < 1.0 + 1e-5


def test_its_recipe_trains(tmp_path, generator):
    vae = train_recipe("digits-lipschitz-vae", tmp_path, epochs=2, progress=False)
    constants = rv.certificates.lipschitz_constants(vae)
    assert constants.b < 2.0 + 1e-5 and constants.a < 1.0 + 1e-5
