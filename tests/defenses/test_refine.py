import pytest
import torch

import robustvae as rv
from robustvae import defenses
from robustvae.seeding import generator as seeded

EVERY = [
    defenses.BitDepth(1),
    defenses.JPEG(60),
    defenses.Median(3),
    defenses.Redraw(),
    defenses.Threshold(0.4),
]


@pytest.fixture
def vae():
    return rv.models.create("vae", architecture="conv8", latent=4)


@pytest.mark.parametrize("refine", EVERY, ids=str)
def test_images_stay_images_and_pass_gradient(refine, vae, generator):
    x = torch.rand(3, 1, 8, 8, generator=generator).requires_grad_()
    refined = refine(vae, x, generator=seeded(0))
    assert refined.shape == x.shape and refined.dtype == x.dtype
    assert refined.min() >= 0 and refined.max() <= 1
    (gradient,) = torch.autograd.grad(refined.sum(), x)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("refine", [defenses.BitDepth(2), defenses.Threshold(0.3)], ids=str)
def test_twice_is_once(refine, vae, generator):
    x = torch.rand(3, 1, 8, 8, generator=generator)
    once = refine(vae, x, generator=seeded(0))
    assert torch.equal(refine(vae, once, generator=seeded(0)), once)


def test_refinements_of_known_pixels(vae):
    x = torch.tensor([0.1, 0.4, 0.6, 0.9]).view(1, 1, 2, 2)

    def shown(refine):
        return refine(vae, x, generator=seeded(0)).flatten().tolist()

    assert shown(defenses.Threshold(0.5)) == [0, 0, 1, 1]
    assert shown(defenses.BitDepth(1)) == [0, 0, 1, 1]


def test_a_median_removes_a_lone_pixel(vae):
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 4, 4] = 1
    assert defenses.Median(3)(vae, x, generator=seeded(0)).abs().max() == 0


def test_jpeg_is_close_at_high_quality(vae):
    x = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
    assert (defenses.JPEG(95)(vae, x, generator=seeded(0)) - x).abs().max() < 0.03


def test_composition_reads_the_refined_image(vae, generator):
    x = torch.rand(3, 1, 8, 8, generator=generator)
    z = defenses.Refined(defenses.Threshold(0.5))(vae, x, generator=seeded(0))
    torch.testing.assert_close(z, vae.encode((x > 0.5).to(x)).mean)
    both = defenses.Refined(defenses.Redraw(defenses.PosteriorMode(5)), defenses.HMC(steps=2))
    assert both.gradients == 5 + 11
