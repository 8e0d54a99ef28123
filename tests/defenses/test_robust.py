from dataclasses import dataclass, replace

import pytest
import torch

import robustvae as rv
from robustvae.defenses import (
    PosteriorMode,
    RobustPosterior,
    RobustTarget,
    estimate_radius,
    fisher,
    posterior,
    targets,
)
from robustvae.defenses.climb import climb
from robustvae.defenses.targets import nearest
from robustvae.errors import RangeError, ShapeError, UnsupportedError
from robustvae.models import Bernoulli, ContinuousBernoulli, Gaussian
from robustvae.seeding import rand, randn

PIXELS = (1, 4, 4)
RADII = {"linf": 0.15, "l2": 0.4}
LIKELIHOODS = ["bernoulli", "continuous_bernoulli", "gaussian", "varying gaussian"]


def likelihood_of(kind, parameters):
    if kind == "bernoulli":
        return Bernoulli(parameters)
    if kind == "continuous_bernoulli":
        return ContinuousBernoulli(parameters)
    mean = torch.sigmoid(parameters) * 1.6 - 0.3
    spread = torch.full_like(mean, 0.2)
    return Gaussian(mean, 0.1 + 0.2 * torch.sigmoid(-parameters) if "varying" in kind else spread)


def model(kind, generator):
    weight = 2 * randn(16, 3, like=torch.zeros(()), generator=generator)
    return rv.wrap(
        encode=lambda x: torch.distributions.Normal(x.flatten(1)[:, :3], 1.0),
        decode=lambda z: likelihood_of(kind, torch.tanh(z @ weight.mT).view(-1, *PIXELS) * 4),
        latent=3,
        image_shape=PIXELS,
    )


def attacked(x, norm, generator):
    noise = randn(*x.shape, like=x, generator=generator)
    if norm == "linf":
        moved = RADII[norm] * noise.sign()
    else:
        moved = RADII[norm] * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return (x + moved).clamp(0, 1)


def images(n, generator):
    x = rand(n, *PIXELS, like=torch.zeros(()), generator=generator)
    return (1.6 * x - 0.3).clamp(0, 1)


def energy(vae, x, z, norm, radius):
    return -RobustTarget(vae, x, norm, radius)(z)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_fisher_prior_and_curvature_of_divergence(kind, generator):
    vae, z = model(kind, generator), randn(3, like=torch.zeros(()), generator=generator)

    def pixels(z):
        p = vae.decode(z[None])
        if kind == "bernoulli":
            return torch.distributions.Bernoulli(logits=p.logits)
        if kind == "continuous_bernoulli":
            return torch.distributions.ContinuousBernoulli(logits=p.logits)
        return torch.distributions.Normal(p.mean, p.stddev)

    def away(other):
        return torch.distributions.kl_divergence(pixels(z), pixels(other)).sum()

    curvature = torch.autograd.functional.hessian(away, z)
    wanted = torch.eye(3) + curvature
    torch.testing.assert_close(fisher(vae, z[None])[0], wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_no_attack_worsens_robust_code(kind, norm, generator):
    """U_R(z; x + e) <= U_0(z; x) for every z."""
    vae = model(kind, generator)
    x, z = images(300, generator), 2 * randn(300, 3, like=torch.zeros(()), generator=generator)
    x_adv = attacked(x, norm, generator)
    robust = energy(vae, x_adv, z, norm, RADII[norm])
    plain = energy(vae, x, z, norm, 1e-12)
    assert (robust <= plain + 1e-7).all()
    assert (robust < plain - 0.1).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_radius_zero_posterior_up_constant(kind, norm, generator):
    vae = model(kind, generator)
    x = images(1, generator).expand(20, -1, -1, -1)
    z = randn(20, 3, like=torch.zeros(()), generator=generator)
    difference = energy(vae, x, z, norm, 1e-13) + posterior(vae, x)(z)
    torch.testing.assert_close(difference, difference[:1].expand(20), atol=1e-7, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_inner_minimizer_beats_random_images(kind, norm, generator):
    vae = model(kind, generator)
    x, radius = images(20, generator), RADII[norm]
    p = vae.decode(2 * randn(20, 3, like=x, generator=generator))
    best = nearest(p, x, norm, radius)
    order = 2 if norm == "l2" else float("inf")
    size = (best - x).flatten(1).norm(dim=1, p=order)
    assert (size <= radius + 1e-9).all() and (size > 0.9 * radius).any()
    assert best.min() >= 0 and best.max() <= 1
    target = RobustTarget(vae, x, norm, radius)

    def deviance(image):
        return (p.deviance().negative_entropy(image) - p.log_prob(image)).flatten(1).sum(1)

    assert target.radius == radius
    for _ in range(200):
        share = rand(20, 1, 1, 1, like=x, generator=generator) ** 3
        other = attacked(x, norm, generator)
        mixed = best + share * (other - best)
        assert (deviance(best) <= deviance(mixed) + 1e-9).all()


def test_plain_projection_is_not_minimizer():
    """x = (1, 0), x_a = (0.7, 0), R = 0.3, g = (0.9999, 0.5): projecting g breaks the lemma."""
    x = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    x_adv = torch.tensor([0.7, 0.0]).view(1, 1, 1, 2)
    g = torch.tensor([0.9999, 0.5]).view(1, 1, 1, 2)
    p = Bernoulli(torch.logit(g))

    def deviance(image):
        entropy = torch.xlogy(image, image) + torch.xlogy(1 - image, 1 - image)
        return (entropy - p.log_prob(image)).sum().item()

    projected = x_adv + 0.3 * (g - x_adv) / (g - x_adv).norm()
    assert deviance(projected) > deviance(x) + 0.1
    assert deviance(nearest(p, x_adv, "l2", 0.3)) <= deviance(x) + 1e-9


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_the_envelope_gradient_against_finite_differences(kind, norm, generator):
    vae = model(kind, generator)
    x, z = images(10, generator), randn(10, 3, like=torch.zeros(()), generator=generator)
    target = RobustTarget(vae, x, norm, RADII[norm])
    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(target(leaf).sum(), leaf)
    value, differentiable = target.with_gradient(leaf)
    torch.testing.assert_close(differentiable, gradient, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(value, target(z), atol=1e-8, rtol=1e-8)
    for direction in torch.eye(3):
        numerical = (target(z + 1e-5 * direction) - target(z - 1e-5 * direction)) / 2e-5
        torch.testing.assert_close(gradient @ direction, numerical, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_its_gradient_differentiates_by_the_image(kind, norm, generator):
    vae = model(kind, generator)
    x, z = images(10, generator), randn(10, 3, like=torch.zeros(()), generator=generator)
    weight = randn(10, 3, like=z, generator=generator)
    direction = randn(*x.shape, like=x, generator=generator)

    def pulled(image):
        target = RobustTarget(vae, image, norm, RADII[norm])
        value, gradient = target.with_gradient(z.clone().requires_grad_())
        return value + (gradient * weight).sum(1)

    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(pulled(leaf).sum(), leaf)
    numerical = (pulled(x + 1e-6 * direction) - pulled(x - 1e-6 * direction)) / 2e-6
    found = (slope * direction).flatten(1).sum(1)
    assert numerical.abs().max() > 0.1
    torch.testing.assert_close(found, numerical.detach(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_search_differentiates_exact_images(kind, generator, monkeypatch):
    """A step of a search goes on from the image of the last one, to where a new one ends."""
    vae = model(kind, generator)
    x, z = images(10, generator), randn(10, 3, like=torch.zeros(()), generator=generator)
    step = 0.1 * randn(10, 3, like=z, generator=generator)
    target, steps = RobustTarget(vae, x, "l2", RADII["l2"]), []
    boundary = targets._newton
    monkeypatch.setattr(targets, "_newton", lambda *a: steps.append(a[-1]) or boundary(*a))
    for turn in range(5):
        leaf = (z + turn * step).requires_grad_()
        value, gradient = target.with_gradient(leaf)
        cold = len(steps)
        for one, other in zip(
            (value, gradient),
            RobustTarget(vae, x, "l2", RADII["l2"]).with_gradient(leaf),
            strict=True,
        ):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)
        assert "gaussian" in kind or cold == turn + 1  # of its own the first alone


def test_it_recovers_what_an_attack_moved(linear, generator):
    """A code that explains the clean image explains the attacked one as well."""
    vae = linear.vae
    z = randn(40, 2, like=torch.zeros(()), generator=generator)
    x = vae.decode(z).mean.clamp(0, 1)
    towards = torch.sign(linear.gain.sum(0)).view(1, 1, 2, 3)
    x_adv = (x + 0.2 * towards).clamp(0, 1)
    robust = RobustPosterior(radius=0.2, steps=100)(vae, x_adv, generator=generator)
    robust_energy = energy(vae, x_adv, robust, "linf", 0.2)
    assert (robust_energy <= energy(vae, x_adv, linear.posterior_mean(x_adv), "linf", 0.2)).all()
    assert (robust_energy <= energy(vae, x, z, "linf", 1e-12) + 1e-3).all()


@pytest.mark.parametrize("start", ["mean", "zero", "both", "prior"])
def test_every_start_lowers_the_energy(start, linear, generator):
    x = torch.rand(3, 1, 2, 3, generator=generator)
    z = RobustPosterior(radius=0.1, steps=120, start=start)(linear.vae, x, generator=generator)
    reached = energy(linear.vae, x, z, "linf", 0.1)
    assert (reached <= energy(linear.vae, x, torch.zeros(3, 2), "linf", 0.1) + 1e-3).all()


def test_an_unknown_likelihood_is_refused(generator):
    vae = rv.wrap(
        encode=lambda x: torch.distributions.Normal(x.flatten(1)[:, :2], 1.0),
        decode=lambda z: torch.distributions.Laplace(z.repeat(1, 3).view(-1, 1, 2, 3), 1.0),
        latent=2,
        image_shape=(1, 2, 3),
    )
    with pytest.raises(UnsupportedError, match="Laplace"):
        RobustPosterior()(vae, torch.rand(2, 1, 2, 3), generator=generator)


@pytest.mark.parametrize("defense", [PosteriorMode, RobustPosterior])
def test_implicit_matches_unrolled_gradient(defense, linear, generator):
    x = (0.2 + 0.6 * torch.rand(4, 1, 2, 3, generator=generator)).requires_grad_()
    gradients = []
    for how in ("unrolled", "implicit"):
        z = defense(steps=400, rate=0.1, gradient=how)(linear.vae, x, generator=generator)
        gradients.append(torch.autograd.grad(z[:, 0].sum(), x)[0])
    torch.testing.assert_close(gradients[0], gradients[1], atol=2e-2, rtol=5e-2)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_excess_energy_tells_the_radius(norm, linear, generator):
    """Never less than what was spent on leaving the model's images, and not much more."""
    vae, radii = replace(linear, stddev=0.02).vae, (0.01, 0.1, 0.2)
    z = 0.1 * randn(60, 2, like=torch.zeros(()), generator=generator)
    x = vae.decode(z).mean
    away = torch.linalg.svd(linear.weight)[0][:, 2].view(1, 1, 2, 3)
    away = away / (away.abs().max() if norm == "linf" else 1)

    def found(size):
        moved = x[:30] + size * away
        options = {"norm": norm, "radii": radii, "steps": 60, "generator": generator}
        return estimate_radius(vae, moved, x[30:], **options).radius

    assert found(0.0) == 0.01
    assert found(0.09) in (0.1, 0.2)


def test_no_radius_may_be_enough(linear, generator):
    vae = replace(linear, stddev=0.02).vae
    x = vae.decode(torch.zeros(6, 2)).mean
    checkered = (x + 0.3 * torch.tensor([1.0, -1, 1, -1, 1, -1]).view(1, 1, 2, 3)).clamp(0, 1)
    found = estimate_radius(vae, checkered, x, radii=(0.01, 0.02), generator=generator)
    assert found.radius == float("inf") and min(found.excess) > 0
    with pytest.raises(RangeError):
        estimate_radius(vae, x, x, radii=(), generator=generator)
    with pytest.raises(ShapeError):
        estimate_radius(vae, x[:1], x, generator=generator)


def test_it_counts_gradients_that_it_spends(linear, generator):
    """Two starts share five steps as two each; the fifth is not spent."""
    x = torch.rand(3, 1, 2, 3, generator=generator)
    odd, even = (RobustPosterior(radius=0.1, steps=steps, start="both") for steps in (5, 4))
    assert odd.gradients == even.gradients == 4
    assert torch.equal(*(d(linear.vae, x, generator=generator) for d in (odd, even)))
    assert RobustPosterior(steps=5).gradients == 5


@pytest.mark.parametrize("starts", [1, 2, 3, 4, 7, 10])
def test_prior_starts_share_the_steps(starts, linear, generator):
    """The fewest steps that will do leave each search one; they are counted as spent."""
    asked = []

    def decode(z):
        asked.append(torch.is_grad_enabled())
        return linear.vae.decode(z)

    vae = rv.wrap(encode=linear.vae.encode, decode=decode, latent=2, image_shape=(1, 2, 3))
    x = torch.rand(3, 1, 2, 3, generator=generator)
    least = next(n for n in range(99) if n - n // 4 >= starts)
    for steps in (least, 40):
        defense = PosteriorMode(steps=steps, start="prior", starts=starts)
        asked.clear()
        defense(vae, x, generator=generator)
        assert sum(asked) == defense.gradients <= steps
    with pytest.raises(RangeError, match=f"at least {least}"):
        RobustPosterior(steps=least - 1, start="prior", starts=starts)


def two_valleys(mean):
    """p(x | z) looks at z^2 and, a little, at z: each image has a good code and a worse one."""
    return rv.wrap(
        encode=lambda x: torch.distributions.Normal(
            mean.expand(len(x), 1) + 0 * x[:, 0, :, 0], 0.1
        ),
        decode=lambda z: torch.distributions.Normal(
            torch.cat([z.square() / 9, 0.5 + 0.04 * z], 1).view(-1, 1, 1, 2), 0.05
        ),
        latent=1,
        image_shape=(1, 1, 2),
    )


@pytest.mark.parametrize(
    ("defense", "least", "most"),
    [
        (PosteriorMode(200), 0.0, 0.0),
        (PosteriorMode(200, start="prior", rate=0.4), 0.9, 1.0),
        (RobustPosterior(radius=1e-3, steps=200, start="prior", rate=0.4), 0.9, 1.0),
    ],
    ids=lambda value: getattr(value, "start", None),
)
def test_prior_starts_find_hidden_valley(defense, least, most, generator):
    """The encoder, as one attacked, points to the worse code; the oracle is a grid.

    Ten draws all begin in the wrong valley for one image in a thousand.
    """
    vae, z = two_valleys(torch.tensor([[-2.0]])), torch.linspace(1.5, 2.5, 40).view(-1, 1)
    x = vae.decode(z).mean
    found = defense(vae, x, generator=generator)
    grid = torch.linspace(-4, 4, 4001).view(-1, 1)
    heights = [vae.log_joint(row.expand(len(grid), *row.shape), grid) for row in x]
    best = torch.stack([grid[h.argmax()] for h in heights])
    assert (best > 0).all()
    assert least <= ((found - best).abs() < 0.1).double().mean() <= most


def test_both_keeps_better_of_two_ends(generator):
    """Two steps do not get far; one of the starts is there already."""
    vae = two_valleys(torch.tensor([[2.0]]))
    x = vae.decode(torch.full((3, 1), 2.0)).mean
    for start, near in (("both", True), ("mean", True), ("zero", False)):
        z = RobustPosterior(radius=1e-3, steps=4, start=start)(vae, x, generator=generator)
        assert bool(((z - 2).abs() < 0.5).all()) is near


def test_each_image_has_own_draws(linear):
    x = torch.rand(1, 1, 2, 3, generator=rv.generator(1)).expand(3, -1, -1, -1)
    defense = PosteriorMode(steps=2, start="prior", starts=1)
    one, two = (defense(linear.vae, x, generator=rv.generator(seed)) for seed in (0, 1))
    assert (one - two).abs().min() > 0 and (one[0] - one[1]).abs().min() > 0


def test_nan_candidates_never_win(linear):
    def decode(z):
        mean = linear.vae.decode(z).mean
        mean = torch.where((z.sum(1) < 0).view(-1, 1, 1, 1), torch.nan, mean)
        return torch.distributions.Normal(mean, 0.2, validate_args=False)

    vae = rv.wrap(encode=linear.vae.encode, decode=decode, latent=2, image_shape=(1, 2, 3))
    x = linear.vae.decode(torch.full((40, 2), 1.0)).mean
    z = PosteriorMode(20, start="prior")(vae, x, generator=rv.generator(0))
    assert (z.sum(1) >= 0).double().mean() > 0.9


@pytest.mark.parametrize("start", ["prior", "zero", "both"])
def test_prior_another_type_read_images(start, linear, generator):
    vae = rv.wrap(
        encode=linear.vae.encode,
        decode=lambda z: torch.distributions.Normal(
            linear.vae.decode(z.float()).mean.double(), 0.2
        ),
        prior=torch.distributions.Normal(*torch.tensor([[0.0] * 2, [1.0] * 2]).float()),
        latent=2,
        image_shape=(1, 2, 3),
    )
    mean = torch.zeros(3, 2, dtype=torch.float64)
    own = PosteriorMode(8, start="prior", starts=2)
    if start != "prior":
        own = RobustPosterior(steps=8, start=start)
    z = climb(own, vae, lambda z: -z.square().sum(1), mean, graph=False, generator=generator)
    assert z.dtype == torch.float64


def test_no_encoder_moves_start_from_prior():
    x = torch.rand(3, 1, 1, 2, generator=rv.generator(1))
    ends = [
        PosteriorMode(start="prior")(two_valleys(mean), x, generator=rv.generator(0))
        for mean in (torch.tensor([[-2.0]]), torch.tensor([[3.0]]))
    ]
    assert torch.equal(*ends)


@dataclass(frozen=True, eq=False)
class OwnGaussian:
    """A stranger's likelihood, of a class that the library does not know."""

    mean: torch.Tensor
    stddev: torch.Tensor

    def log_prob(self, value):
        return torch.distributions.Normal(self.mean, self.stddev).log_prob(value)

    def deviance(self):
        return Gaussian(self.mean, self.stddev).deviance()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_own_likelihood_has_robust_posterior(norm, generator):
    weight = randn(3, 16, like=torch.zeros(()), generator=generator)
    x, z = images(4, generator), randn(4, 3, like=weight, generator=generator)
    values = []
    for kind in (Gaussian, OwnGaussian):
        vae = rv.wrap(
            encode=lambda y: Gaussian(y.flatten(1)[:, :3], torch.ones(len(y), 3)),
            decode=lambda z, kind=kind: kind(
                (z @ weight).view(-1, *PIXELS), torch.full((len(z), *PIXELS), 0.3)
            ),
            latent=3,
            image_shape=PIXELS,
        )
        target = RobustTarget(vae, x, norm, 0.2)
        point = z.clone().requires_grad_(True)
        values.append((target(z), *target.with_gradient(point)))
    for ours, own in zip(*values, strict=True):
        torch.testing.assert_close(ours, own)


def test_likelihood_without_fields_is_named(generator):
    class Loose:
        def __init__(self, mean):
            self.mean, self.stddev = mean, torch.ones_like(mean)

        def log_prob(self, value):
            return -0.5 * (value - self.mean).square()

        def deviance(self):
            return Gaussian(self.mean, self.stddev).deviance()

    vae = rv.wrap(
        encode=lambda y: Gaussian(y.flatten(1)[:, :3], torch.ones(len(y), 3)),
        decode=lambda z: Loose(z.repeat(1, 6)[:, :16].view(-1, *PIXELS)),
        latent=3,
        image_shape=PIXELS,
    )
    target = RobustTarget(vae, images(2, generator), "linf", 0.2)
    z = torch.zeros(2, 3, requires_grad=True)
    assert target(z).shape == (2,)
    with pytest.raises(UnsupportedError, match="dataclass of its tensors, got Loose"):
        target.with_gradient(z)
