import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robustvae import bounds, errors, seeding
from robustvae.certificates import certify, lipschitz_constants
from robustvae.certificates.movement import Encoder, largest_radius
from robustvae.models import create, wrap

SHAPE = (1, 4, 4)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(inplace=True))
        self.mean, self.log_var = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        h = self.trunk(2 * x - 1)
        return self.mean(h), self.log_var(h)


def wrapped(encode):
    return wrap(
        encode=encode,
        decode=nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, SHAPE)),
        latent=3,
        image_shape=SHAPE,
        returns="mean_log_var",
    )


def hierarchy(kind, **options):
    settings = {"widths": [3, 2, 2], "hidden": [8], "between": [6], **options}
    return create(kind, image_shape=SHAPE, **settings)


MODELS = {
    "plain": lambda: create("vae", architecture="mlp", image_shape=SHAPE, latent=3, hidden=[8]),
    "offset and norm": lambda: create(
        "vae",
        architecture="mlp",
        image_shape=SHAPE,
        latent=3,
        hidden=[8, 8],
        activation="tanh",
        batch_norm=True,
        stddev_offset=0.1,
        stddev_norm=1.0,
    ),
    "fixed sigma": lambda: create(
        "vae", architecture="mlp", image_shape=SHAPE, latent=3, hidden=[8], stddev=0.2
    ),
    "convolutions": lambda: create("vae", architecture="conv8", latent=3),
    "lipschitz": lambda: create(
        "lipschitz-vae", image_shape=SHAPE, latent=3, hidden=[16], stddev=None
    ),
    "dlgm": lambda: hierarchy("dlgm"),
    "seatbelt": lambda: hierarchy("seatbelt", activation="tanh"),
    "wrapped": lambda: wrapped(TwoHeads()),
}


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", MODELS)
def test_every_posterior_of_ball_is_within(name, norm, generator):
    vae = MODELS[name]().double().eval().requires_grad_(False)
    x = torch.rand(4, *vae.image_shape, generator=generator)
    radius = torch.tensor([0.0, 0.01, 0.1, 0.5])
    encoder = Encoder(vae)
    found = encoder.over(x, radius, norm=norm)
    clean = encoder.posterior(x).mean
    for _ in range(20):
        step = torch.randn(x.shape, generator=generator)
        step = step / step.flatten(1).norm(dim=1)[:, None, None, None]
        step = radius[:, None, None, None] * (step if norm == "l2" else step.sign())
        for _ in range(3):
            step = step.requires_grad_(True)
            q = encoder.posterior(x + step)
            assert ((q.mean - clean).norm(dim=1) <= found.length(torch.ones(4, 3))).all()
            assert (found.least <= q.stddev).all() and (q.stddev <= found.most).all()
            if not q.stddev.requires_grad:
                break
            (grad,) = torch.autograd.grad(q.stddev.sum(), step)
            size = grad.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(1e-30)
            step = grad.sign() if norm == "linf" else grad / size
            step = (radius[:, None, None, None] * step).detach()
    assert_close(found.least[0], found.most[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["dlgm", "seatbelt"])
def test_mean_path_of_what_likelihood_reads(kind, generator):
    """All layers of a Seatbelt, the lowest of a DLGM; exact at a linear posterior."""
    vae = hierarchy(kind, hidden=[], between=[]).double().requires_grad_(False)
    x = torch.rand(2, *SHAPE, generator=generator)
    encoder = Encoder(vae, spread=False)
    assert encoder.width == (3 if kind == "dlgm" else 7)
    found = encoder.over(x, torch.tensor([0.2, 3.0]))
    clean = encoder.posterior(x)
    assert_close(found.mean.value, clean.mean)
    jacobian = torch.func.jacrev(lambda y: encoder.posterior(y[None]).mean[0])(x[0]).flatten(1)
    for i, radius in enumerate((0.2, 3.0)):
        exact = radius * torch.linalg.matrix_norm(jacobian / clean.stddev[i, :, None], 2)
        assert_close(found.mean.length(1 / clean.stddev)[i], exact, rtol=1e-8, atol=0)


def test_other_models_are_refused_by_name():
    with pytest.raises(errors.UnsupportedError, match="NVAE's posterior reads the image"):
        Encoder(create("nvae", image_shape=(1, 8, 8)))
    with pytest.raises(errors.UnsupportedError, match="getitem"):
        Encoder(wrapped(lambda x: (x[:, 0, 0, :3], x[:, 0, 1, :3])))
    with pytest.raises(errors.UnsupportedError, match="Mish"):
        Encoder(wrapped(nn.Sequential(nn.Mish(), TwoHeads())))


def test_largest_radius_is_one_that_holds():
    edge = torch.tensor([0.01, 0.3, 1.0, 50.0])
    asked = []

    def share(radius):
        asked.append(radius)
        return (radius / edge) ** torch.tensor([1.0, 1.5, 2.0, 3.0])

    found = largest_radius(share, torch.full((4,), 0.2), torch.full((4,), 2.0))
    assert (share(found) <= 1).all() and len(asked) <= 12
    assert (found[:3] >= 0.9 * edge[:3]).all() and found[3] > 1.9


def test_search_does_not_give_up():
    """An infinite share says only that it failed, and so does one at its end."""
    for cap in (torch.inf, 1.08):
        edge = torch.tensor([1e-6, 1e-3, 0.1])

        def share(radius, edge=edge, cap=cap):
            return torch.where(radius <= edge, (radius / edge) ** 1.5, torch.tensor(cap))

        radius = largest_radius(share, torch.full((3,), 0.2), torch.full((3,), 2.0))
        assert (radius > 0.5 * edge).all() and (radius <= edge).all()
    nothing = largest_radius(lambda rho: rho + torch.inf, torch.ones(2), torch.ones(2))
    assert (nothing == 0).all()


def test_deployed_posterior_gets_a_certificate(generator):
    """In 0.1 the search gave up for `full` and `paired` on networks like this one."""
    vae = create("vae", architecture="conv8", latent=3).double()
    with torch.no_grad():
        vae.log_var_head.weight.mul_(8.0)
        vae.mean_head.weight.mul_(8.0)
    x = torch.rand(2, 1, 8, 8, generator=generator)
    radii = {}
    for displacement in ("centered", "full", "paired"):
        lower = certify(
            vae,
            x,
            r=2.0,
            m=0.5,
            displacement=displacement,
            methods=["neyman_pearson"],
            draws=300,
            generator=seeding.generator(0),
        )
        radii[displacement] = lower.radius
    assert all((radius > 0).all() for radius in radii.values()), radii
    assert (radii["full"] <= radii["centered"] * 1.01).all()


def normal_chance(low, high, mean, stddev):
    ends = [(torch.as_tensor(end) - mean) / stddev for end in (low, high)]
    return torch.special.ndtr(ends[1]) - torch.special.ndtr(ends[0])


def test_moved_normal_bounds_event_probability(generator):
    """Half-lines and intervals of one coordinate: their exact chances never exceed the bound."""
    one = torch.ones(1, 1)
    for _ in range(300):
        shift = 2 * torch.rand((), generator=generator)
        least, most = (
            1 - 0.5 * torch.rand((), generator=generator),
            1 + torch.rand((), generator=generator),
        )
        if torch.rand((), generator=generator) < 0.5:
            low, high = 3 * torch.rand((), generator=generator), torch.inf
        else:
            low, high = torch.randn(2, generator=generator).sort().values
        failure = normal_chance(low, high, 0.0, 1.0)
        bound = bounds.moved_failure(failure, shift, one, least * one, most * one)
        for mean in torch.linspace(-1, 1, 9) * shift:
            for stddev in torch.linspace(0, 1, 5) * (most - least) + least:
                assert normal_chance(low, high, mean, stddev) <= bound


def test_moved_bound_near_fixed_spread():
    """At a fixed spread it is above the exact worst case, and not by much."""
    one = torch.ones(3, 2)
    failure, shift = torch.tensor([0.001, 0.01, 0.1]), torch.tensor([2.0, 1.0, 0.3])
    exact = torch.special.ndtr(torch.special.ndtri(failure) + shift)
    bound = bounds.moved_failure(failure, shift, one, one, one)
    assert (bound >= exact).all() and (bound <= 1.01 * exact).all()


def test_never_above_the_lipschitz_constant(generator):
    vae = MODELS["lipschitz"]().double()
    x = torch.rand(4, *SHAPE, generator=generator)
    for norm, size in (("l2", 1.0), ("linf", 4.0)):
        found = Encoder(vae).over(x, torch.full((4,), 2.0), norm=norm)
        ceiling = lipschitz_constants(vae).b * 2.0 * size * 3.0
        assert (found.length(torch.full((4, 3), 3.0)) <= ceiling * (1 + 1e-9)).all()
