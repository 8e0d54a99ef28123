"""Every defense keeps the same promises. A new one adds a row here, or does not pass."""

from dataclasses import FrozenInstanceError, fields

import pytest
import torch

import robustvae as rv
from robustvae import defenses
from robustvae.errors import (
    ConfigError,
    DtypeError,
    NonFiniteError,
    RangeError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
)
from robustvae.perturb import Ball
from robustvae.seeding import generator as seeded
from robustvae.seeding import randn

ROWS = [
    defenses.PosteriorMean(),
    defenses.PosteriorSample(draws=2),
    defenses.InputNoise(0.1),
    defenses.HMC(steps=4, n_leapfrog=3),
    defenses.HMC(steps=3, n_leapfrog=2, ball=Ball("linf", 0.1), average=True),
    defenses.HMC(steps=3, n_leapfrog=2, mass="encoder", start=defenses.PosteriorMode(steps=3)),
    defenses.HMC(steps=12, n_leapfrog=2, step_size=0.3, plateau=2),
    defenses.HMC(steps=3, n_leapfrog=2, mass="fisher", adapt=None, jitter=0.5),
    defenses.Langevin(steps=6),
    defenses.Langevin(steps=3, step_size=0.05, adjust=False, ball=Ball("l2", 0.3)),
    defenses.PosteriorMode(steps=5),
    defenses.PosteriorMode(steps=40, method="lbfgs", gradient="implicit"),
    defenses.PosteriorMode(steps=25, method="gauss-newton", gradient="implicit"),
    defenses.PosteriorMode(steps=9, start="prior", starts=2),
    defenses.RobustPosterior("linf", 0.1, steps=6, start="mean"),
    defenses.RobustPosterior("l2", 0.3, steps=6, start="mean", rate=0.05),
    defenses.RobustPosterior("linf", 0.1, steps=9, start="prior", starts=2),
    defenses.RobustPosterior("linf", 0.1, steps=40, method="lbfgs", gradient="implicit"),
    defenses.RobustPosterior("l2", 0.3, steps=30, method="gauss-newton", gradient="implicit"),
    defenses.Refined(defenses.Median(3)),
    defenses.Refined(defenses.Redraw(), defenses.PosteriorMode(steps=3)),
]
REFINEMENTS = {"BitDepth", "JPEG", "Median", "Redraw", "Threshold"}
NOT_DEFENSES = {
    "seeks_mode",
    "Cost",
    "cost",
    "is_posterior_mean",
    "is_random",
    "reads_encoder_mean",
    "Defense",
    "RadiusEstimate",
    "Refinement",
    "RobustTarget",
    "Victim",
    "estimate_radius",
    "fisher",
    "posterior",
}

every = pytest.mark.parametrize("defense", ROWS, ids=lambda d: f"{type(d).__name__}")


@pytest.fixture(scope="module")
def vae():
    with torch.random.fork_rng():
        torch.random.default_generator.set_state(seeded(3).get_state())
        made = rv.models.create("vae", architecture="conv8", latent=4)
    made.train()
    return made


@pytest.fixture(scope="module")
def normed():
    shape = {"architecture": "mlp", "latent": 4, "image_shape": (1, 8, 8), "hidden": (12,)}
    return rv.models.create("vae", **shape, batch_norm=True, seed=3).train()


@pytest.fixture
def x(generator):
    return torch.rand(5, 1, 8, 8, generator=generator)


def test_every_defense_has_a_row():
    assert {type(d).__name__ for d in ROWS} == set(defenses.__all__) - NOT_DEFENSES - REFINEMENTS


@every
def test_one_latent_image_and_no_graph(defense, vae, x):
    z = defenses.Victim(vae, defense).latent(x, generator=seeded(1))
    assert z.shape == (5, 4) and z.dtype == x.dtype and z.isfinite().all()
    assert not z.requires_grad


@every
def test_the_seed_decides(defense, vae, x):
    victim = defenses.Victim(vae, defense)
    first, again = (victim.reconstruct(x, generator=seeded(1)) for _ in range(2))
    assert torch.equal(first, again)


def changes_nothing(vae, run):
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    run()
    assert vae.training and all(p.requires_grad for p in vae.parameters())
    assert all(p.grad is None for p in vae.parameters())
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())


@every
@pytest.mark.parametrize("model", ["vae", "normed"])
def test_model_is_left_as_it_was(defense, model, x, request):
    vae = request.getfixturevalue(model)
    changes_nothing(vae, lambda: defense(vae, x, generator=seeded(1)))
    victim = defenses.Victim(vae, defense)
    changes_nothing(vae, lambda: victim.reconstruct(x, generator=seeded(1)))


@pytest.mark.parametrize(
    "run",
    [
        lambda vae, x: defenses.HMC(steps=2).run(vae, x, generator=seeded(1)),
        lambda vae, x: defenses.HMC(steps=2, plateau=1).settle(vae, x, generator=seeded(1)),
        lambda vae, x: defenses.HMC(steps=8).diagnose(vae, x, generator=seeded(1)),
        lambda vae, x: defenses.HMC(mass="encoder").scale(vae, x),
        lambda vae, x: defenses.HMC().begin(vae, x, generator=seeded(1)),
        lambda vae, x: defenses.Redraw()(vae, x, generator=seeded(1)),
        lambda vae, x: defenses.fisher(vae, x.new_zeros(5, 4)),
    ],
    ids=["run", "settle", "diagnose", "scale", "begin", "Redraw", "fisher"],
)
def test_defense_parts_restore_the_model(run, normed, x):
    changes_nothing(normed, lambda: run(normed, x))


@every
def test_differentiates_by_image_for_fixed_noise(defense, vae, x):
    """An attack that knows the defense sees a gradient, and the right one.

    A mode has one where the decoder is smooth, and the search ends near the mode.
    """
    implicit = getattr(defense, "gradient", None) == "implicit"
    if implicit:
        options = {"architecture": "mlp", "activation": "tanh", "hidden": [16]}
        vae = rv.models.create("vae", latent=4, image_shape=(1, 8, 8), seed=3, **options)
    victim = defenses.Victim(vae, defense)
    weight, direction = (
        randn(5, 4, like=x, generator=seeded(7)),
        randn(*x.shape, like=x, generator=seeded(8)),
    )
    x = 0.2 + 0.6 * x

    def read(image):
        return (victim.latent(image, generator=seeded(1)) * weight).sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(read(leaf), leaf)
    # noisy values lie 1e-6 apart: only a longer step is seen by all of them
    noisy = isinstance(defense, defenses.InputNoise)
    step = 1e-3 if noisy else 1e-6
    numerical = (read(x + step * direction) - read(x - step * direction)) / (2 * step)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    rtol = 1e-2 if implicit or noisy else 1e-4
    torch.testing.assert_close((gradient * direction).sum(), numerical, rtol=rtol, atol=1e-7)


@every
def test_float32_stays_float32(defense, x):
    vae = rv.models.create("vae", architecture="conv8", latent=4).float()
    assert defense(vae, x.float(), generator=seeded(1)).dtype == torch.float32


@every
def test_settings_are_values(defense):
    assert defense == type(defense)(*(getattr(defense, f.name) for f in fields(defense)))
    assert hash(defense) is not None
    if fields(defense):
        with pytest.raises(FrozenInstanceError):
            setattr(defense, fields(defense)[0].name, 1)


@pytest.mark.parametrize("defense", [d for d in ROWS if hasattr(d, "chunk")], ids=str)
def test_chunks_change_nothing_but_the_noise(defense, vae, x):
    chunked = type(defense)(
        **{f.name: getattr(defense, f.name) for f in fields(defense)} | {"chunk": 2}
    )
    whole, parts = (d(vae, x, generator=seeded(1)) for d in (defense, chunked))
    drawn = isinstance(defense, defenses.HMC | defenses.Langevin)
    if drawn or getattr(defense, "start", None) == "prior":
        assert parts.shape == whole.shape
    else:
        torch.testing.assert_close(whole, parts)


def test_classifier_reads_the_code(vae, x):
    def classifier(z):
        return z[:, :3]

    victim = defenses.Victim(vae, classifier=classifier)
    assert victim.classify(x, generator=seeded(1)).shape == (5, 3)
    with pytest.raises(ConfigError, match="classifier"):
        defenses.Victim(vae).classify(x, generator=seeded(1))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: defenses.HMC(steps=0), RangeError),
        (lambda: defenses.HMC(step_size=0), RangeError),
        (lambda: defenses.HMC(adapt="batch"), UnknownNameError),
        (lambda: defenses.PosteriorMode(rate=-1), RangeError),
        (lambda: defenses.PosteriorMode(method="newton"), UnknownNameError),
        (lambda: defenses.PosteriorMode(start="zero"), UnknownNameError),
        (lambda: defenses.PosteriorMode(start="prior", starts=0), RangeError),
        (lambda: defenses.RobustPosterior(steps=12, start="prior", starts=10), RangeError),
        (lambda: defenses.RobustPosterior("l1"), UnknownNameError),
        (lambda: defenses.RobustPosterior(method="l-bfgs"), UnknownNameError),
        (lambda: defenses.RobustPosterior(radius=-0.2), RangeError),
        (lambda: defenses.PosteriorSample(0), RangeError),
        (lambda: defenses.HMC(mass="unit"), UnknownNameError),
        (lambda: defenses.HMC(force="half"), UnknownNameError),
        (lambda: defenses.HMC(plateau=0), RangeError),
        (lambda: defenses.HMC(acceptance=1.5), RangeError),
        (lambda: defenses.HMC(jitter=1.0), RangeError),
        (lambda: defenses.HMC(jitter=-0.1), RangeError),
        (lambda: defenses.HMC(jitter="some"), DtypeError),
        (lambda: defenses.HMC(floor=0.5), RangeError),
        (lambda: defenses.HMC(floor=0.0), RangeError),
        (lambda: defenses.HMC(floor="1e-5"), DtypeError),
        (lambda: defenses.HMC(floor=1e-5, ball=Ball("linf", 0.1)), ConfigError),
        (lambda: defenses.HMC(plateau=5, jitter=0.1), ConfigError),
        (lambda: defenses.HMC().diagnose(None, None, chains=2.5, generator=seeded(1)), DtypeError),
        (lambda: defenses.HMC(plateau=5, adapt="paper"), ConfigError),
        (lambda: defenses.HMC(plateau=5, acceptance=0.5), ConfigError),
        (lambda: defenses.HMC(plateau=5, force="bfloat16"), ConfigError),
        (lambda: defenses.HMC(ball=Ball("l2", 1.0, None, None)), RangeError),
        (lambda: defenses.HMC(ball=Ball("l2", torch.ones(2))), DtypeError),
        (lambda: defenses.Langevin(steps=0), RangeError),
        (lambda: defenses.Threshold(1.5), RangeError),
        (lambda: defenses.BitDepth(0), RangeError),
        (lambda: defenses.Median(2), RangeError),
        (lambda: defenses.JPEG(100), RangeError),
    ],
)
def test_bad_settings_are_errors(make, error):
    with pytest.raises(error):
        make()


@pytest.mark.parametrize("defense", [defenses.PosteriorMode, defenses.RobustPosterior])
@pytest.mark.parametrize("method", ["lbfgs", "gauss-newton"])
def test_curvature_searches_reject_unrolling(defense, method, vae, x):
    search = defense(steps=3, method=method)
    assert not search(vae, x, generator=seeded(1)).requires_grad
    with pytest.raises(UnsupportedError, match="implicit"):
        search(vae, x.requires_grad_(), generator=seeded(1))


def test_wrong_images_are_refused(vae):
    with pytest.raises(ShapeError):
        defenses.Victim(vae).latent(torch.rand(2, 3, 8, 8), generator=seeded(1))


@pytest.mark.parametrize(
    "defense",
    [
        *(d for d in ROWS if hasattr(d, "chunk")),
        defenses.Refined(defenses.Threshold(0.5), defenses.PosteriorMode(steps=3)),
        lambda vae, x, generator: defenses.HMC(steps=2).run(vae, x, generator=generator),
        lambda vae, x, generator: defenses.HMC(steps=2).settle(vae, x, generator=generator),
        lambda vae, x, generator: defenses.HMC(steps=8).diagnose(vae, x, generator=generator),
    ],
    ids=lambda d: type(d).__name__,
)
@pytest.mark.parametrize("graph", [False, True])
def test_costly_defenses_check_images_first(defense, graph, vae, x):
    broken = x.clone()
    broken[3, 0, 2, 2] = torch.nan
    for images, error in ((broken, NonFiniteError), (x[0], ShapeError), (x[:0], ShapeError)):
        with pytest.raises(error, match="x must be"):
            defense(vae, images.clone().requires_grad_(graph), generator=seeded(1))


@pytest.mark.parametrize("defense", [defenses.PosteriorMean(), defenses.Refined(defenses.Median())])
def test_torch_func_differentiates_the_defense(defense, normed, x):
    def read(image):
        return defense(normed, image, generator=seeded(1))

    z, pull = torch.func.vjp(read, x)
    difference = (read(x + 1e-6) - read(x - 1e-6)).sum() / 2e-6
    torch.testing.assert_close(pull(torch.ones_like(z))[0].sum(), difference, rtol=1e-4, atol=1e-6)
