"""Certified curves, scores, expectations and decisions on closed forms."""

import math

import pytest
import torch
from scipy.stats import norm

import robustvae as rv
from robustvae import certificates, errors, registry
from robustvae.certificates import curves, scoring

S, R = 0.5, 0.6


def victim(output=lambda z: z, width=1, stddev=S, classifier=None):
    vae = rv.wrap(
        encode=lambda x: rv.models.Gaussian(x.flatten(1), torch.zeros_like(x.flatten(1))),
        decode=lambda z: rv.models.Gaussian(
            output(z).view(-1, 1, 1, width), torch.ones(len(z), 1, 1, width)
        ),
        latent=width,
        image_shape=(1, 1, width),
    )
    return rv.Victim(vae, rv.InputNoise(stddev), classifier)


def positive_part():
    return victim(lambda z: z.clamp_min(0))


def halves(count):
    return torch.full((count, 1, 1, 1), 0.5)


def too_often(rate, count, failure):
    return rate > failure + 4 * (failure * (1 - failure) / count) ** 0.5


SIZES = [0.0, 0.2, 0.6]


def curve_of(count, simultaneous=True, seed=0, **options):
    ask = {"draws": 80, "confidence": 0.9, "center": "mean", "rows": range(count), **options}
    g = rv.generator(seed)
    return rv.certified_curve(
        positive_part(), halves(count), SIZES, 0.5, simultaneous=simultaneous, generator=g, **ask
    )


def exact(size):
    """The median of ||Delta|| when x = 1/2 moves up by `size`, above its center 1/2."""
    grid = torch.linspace(0, 5, 500_001, dtype=torch.float64)
    below = norm.cdf((grid - size) / S)  # z <= 1/2 + r; below 0 the distance is 1/2 only
    lower = norm.cdf((-grid - size) / S)
    inside = torch.tensor(below) - torch.where(grid < 0.5, torch.tensor(lower), 0.0)
    return float(grid[(inside >= 0.5).nonzero()[0, 0]])


def test_curves_are_false_rarely_enough():
    band = curve_of(2000)
    truth = torch.tensor([exact(size) for size in SIZES])
    wrong = (band.tolerance < truth).any(1).double().mean()
    assert not too_often(float(wrong), 2000, 0.1)
    # each level's order statistic of the half-space itself is met about as often as allowed
    assert band.simultaneous and (band.tolerance.diff(dim=1) >= 0).all()


def half_space_rate(shift_of_index, monkeypatch):
    """How often the curve of a half-space lies below the exact quantile at one size."""
    one_sided = victim(lambda z: (z + 40).clamp_min(0))
    right = curves.upper_index
    monkeypatch.setattr(curves, "upper_index", lambda n, q, a: right(n, q, a) - shift_of_index)
    x, count = halves(3000), 3000
    score = lambda out: out.flatten(1)[:, 0] - 40.0  # noqa: E731
    bounds = rv.certify_score(
        one_sided, x, score, [0.3], confidence=0.8, draws=80, rows=range(count),
        generator=rv.generator(0),
    )  # fmt: skip
    top = 0.5 + 0.3  # the exact median after a shift of 0.3
    return float((bounds.upper[:, 0] < top).double().mean())


def test_order_statistic_off_by_one_caught(monkeypatch):
    """Failure 0.2 over four ends: 0.05 for the upper one."""
    rate = half_space_rate(0, monkeypatch)
    assert not too_often(rate, 3000, 0.05) and rate > 0.02
    assert too_often(half_space_rate(1, monkeypatch), 3000, 0.05)


def test_step_function_takes_the_next_size():
    band = curve_of(2)
    assert torch.equal(band.at(0.1), band.tolerance[:, 1])
    assert torch.equal(band.at(0.6), band.tolerance[:, 2]) and band.at(0.7).isinf().all()
    assert torch.equal(band.radius(float("1e9")), torch.full((2,), 0.6))
    assert "2 inputs" in repr(band)


def test_all_sizes_at_once_cost_more():
    one, each = curve_of(50), curve_of(50, simultaneous=False)
    assert (one.tolerance >= each.tolerance).all() and (one.tolerance > each.tolerance).any()


def test_few_draws_prove_nothing_far_out():
    band = rv.certified_curve(
        positive_part(), halves(1), [0.1, 5.0], draws=80, generator=rv.generator(0)
    )
    assert band.tolerance[0, 0].isfinite() and band.tolerance[0, 1].isinf()


def test_paired_curve_agrees_with_the_radius(generator):
    x = torch.rand(2, 1, 1, 3, generator=generator)
    ask = {"displacement": "paired", "draws": 400, "rows": [0, 1]}
    band = rv.certified_curve(
        victim(width=3), x, [0.2], simultaneous=False, generator=rv.generator(5), **ask
    )
    r = float(band.tolerance.max()) + 1e-9
    radius = rv.certify(victim(width=3), x, r, generator=rv.generator(5), **ask).radius
    assert (radius >= 0.2 * (1 - 1e-6)).all()


@pytest.mark.parametrize("squared", [False, True])
def test_reconstruction_errors_use_the_triangle(squared):
    """V(x) = n alone: the error moves by the size itself, never below 0."""
    blind = victim(lambda z: torch.zeros_like(z), width=4)
    x = torch.full((1, 1, 1, 4), 0.5)  # error exactly 1
    spec = {"name": "anomaly-score", "squared": squared}
    bounds = rv.certify_score(
        blind, x, spec, [0.0, 0.25, 2.0], draws=200, generator=rv.generator(0)
    )
    ends = torch.tensor([1.0, 0.75, 0.0]), torch.tensor([1.0, 1.25, math.inf])
    power = 2 if squared else 1
    assert torch.allclose(bounds.lower[0, :2], ends[0][:2] ** power)
    assert torch.allclose(bounds.upper[0, :2], ends[1][:2] ** power)
    assert bounds.lower[0, 2] == 0 and bounds.upper[0, 2].isinf()
    assert torch.allclose(bounds.clean, torch.ones(2, 1))


def test_contrast_errors_move_further():
    """V(u) = -40 - 2u of the raised input u = c + n: the error is 40 + c + 2u, so all bounds meet.

    From 0.5 a change of 0.2 moves c by 0.25, and the median 40 + 3c by three times as much.
    """
    steep = victim(lambda u: -40 - 2 * u)
    bounds = rv.certify_score(
        steep, halves(4), "contrast-error", [0.2], draws=20_000, rows=range(4),
        generator=rv.generator(0),
    )  # fmt: skip
    least, most = bounds.lower[:, 0], bounds.upper[:, 0]
    assert (least <= 41.5 - 0.75).all() and (most >= 41.5 + 0.75).all()
    # and no further: draws alone, of spread 2 S, and a quantile near a third
    assert (least > 41.5 - 0.9).all() and (most < 41.5 + 0.9).all()
    score = registry.build("score", "contrast-error")
    x, y = torch.rand(2, 500, 1, 1, 784, dtype=torch.float32, generator=rv.generator(0))
    raised = lambda x: ((x - 0.1) / (0.9 - 0.1)).clamp(0, 1).double().flatten(1)  # noqa: E731
    moved = (raised(x) - raised(x + 1e-6 * y)).norm(dim=1)
    size = float((1e-6 * y.double()).flatten(1).norm(dim=1).max())
    assert float(moved.max()) <= score.moved(size, x) < 2e-4


def test_attacked_scores_stay_inside(generator):
    """Anomaly scores of the digits model under an ascent with expectation over noise."""
    smooth = rv.Victim(rv.load("digits-vae").double(), rv.InputNoise(0.1))
    x = rv.data.load("digits", split="test").x[:3].double()
    size = 0.15
    bounds = rv.certify_score(smooth, x, sizes=[size], draws=2000, generator=generator)
    for sign in (1, -1):
        change = torch.randn(x.shape, generator=generator)
        for _ in range(20):
            change = size * change / change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            change = change.requires_grad_()
            y = (x + change).repeat(8, 1, 1, 1)
            error = (smooth.reconstruct(y, generator=generator) - y).flatten(1).norm(dim=1)
            (grad,) = torch.autograd.grad(sign * error.sum(), change)
            grad = grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            change = (change + 0.5 * size * grad).detach()
        y = x + size * change / change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        many = y.repeat(400, 1, 1, 1)
        with torch.no_grad():
            out = smooth.reconstruct(many, generator=generator)
        error = (out - many).flatten(1).norm(dim=1).view(400, 3)
        # 5 standard errors of a share of 400
        assert ((error <= bounds.upper[:, 0]).double().mean(0) > 0.5 - 0.125).all()
        assert ((error >= bounds.lower[:, 0]).double().mean(0) > 0.5 - 0.125).all()


def test_scores_that_read_input_are_refused(generator):
    smooth = rv.Victim(rv.load("digits-vae"), rv.InputNoise(0.1))
    x = rv.data.load("digits", split="test").x[:2]
    with pytest.raises(errors.UnsupportedError, match="reads the changed input"):
        rv.certify_score(smooth, x, "negative-elbo", [0.1], generator=generator, draws=20)
    latent = rv.certify_score(
        smooth, x, certificates.scoring.build("score", _distance()), [0.1],
        generator=generator, draws=200,
    )  # fmt: skip
    assert (latent.lower < latent.upper).all()
    with pytest.raises(errors.ShapeError):
        rv.certify_score(smooth, x, lambda out: out, [0.1], generator=generator, draws=20)
    with pytest.raises(errors.UnsupportedError, match="InputNoise"):
        rv.certify_score(rv.Victim(smooth.vae), x, sizes=[0.1], generator=generator)


def _distance():
    from robustvae.scores import LatentDistance

    return LatentDistance(torch.zeros(16), torch.eye(16))


def test_auroc_and_rate_by_hand():
    def bounds(low, high):
        low, high = torch.tensor(low)[:, None], torch.tensor(high)[:, None]
        rest = torch.stack([low[:, 0] + 0.5, high[:, 0] - 0.5])
        sizes = torch.ones(1, dtype=torch.float64)
        return certificates.ScoreBounds(sizes, low, high, rest, 0.999, 0.99, 0.5)

    normal, anomalous = bounds([0.0, 1.0], [2.0, 3.0]), bounds([2.2, 3.0], [9.0, 9.0])
    # pairs above both ends: 2.2 > 2, 3 > 2; ties lose
    assert certificates.certified_auroc(normal, anomalous).tolist() == [0.5]
    # ends 2.2, 3.0 against 1.5, 2.5; and 2.7, 3.5 against 2, 3
    assert certificates.certified_auroc(normal, anomalous, "anomalies").tolist() == [0.75]
    assert certificates.certified_auroc(normal, anomalous, "normals").tolist() == [0.75]
    assert certificates.certified_tpr(normal, anomalous, 0.5).tolist() == [1.0]
    assert certificates.certified_tpr(normal, anomalous, 0.1).tolist() == [0.0]
    assert certificates.certified_tpr(normal, anomalous, 0.1, "anomalies").tolist() == [0.5]


def test_expectation_of_half_space_is_met():
    """f = 1 below a threshold: E_delta[f] = Phi(Phi^-1(p) - rho / s), whatever the levels."""
    step = lambda out, center: (out.flatten(1)[:, 0] <= 1.0).double()  # noqa: E731
    found = scoring.certify_expectation(
        victim(), halves(1), step, [0.0, 0.3], levels=4, draws=20_000, generator=rv.generator(0)
    )
    truth = torch.tensor([norm.cdf(1.0), norm.cdf(1.0 - 0.3 / S)])
    # f > 1 is impossible, so the last of four levels is lost
    assert (found.lower[0] <= 0.75 * truth).all() and (found.lower[0] > 0.72 * truth).all()
    with pytest.raises(errors.RangeError):
        scoring.certify_expectation(
            victim(), halves(1), lambda a, b: a.flatten(1)[:, 0] + 5, [0.1], draws=20,
            generator=rv.generator(0),
        )  # fmt: skip


def test_decisions_hold_up_to_the_radius():
    """A linear classifier: the radius is the distance to its border, less what draws cost."""
    sign = lambda z: torch.stack([0.9 - z[:, 0], z[:, 0] - 0.9], 1)  # noqa: E731
    smooth = victim(classifier=sign)
    found = certificates.certify_decision(
        smooth, halves(20), draws=4000, rows=range(20), generator=rv.generator(0)
    )
    assert (found.decision == 0).all()
    assert (found.radius <= 0.4).all() and (found.radius > 0.33).all()
    assert found.accuracy(torch.zeros(20), 0.3) == 1.0 and found.accuracy(torch.ones(20), 0.3) == 0
    undecided = lambda z: torch.stack([0.5 - z[:, 0], z[:, 0] - 0.5], 1)  # noqa: E731
    found = certificates.certify_decision(
        victim(classifier=undecided), halves(1), draws=400, generator=rv.generator(0)
    )
    assert found.decision[0] == -1 and found.radius[0] == 0


def test_median_of_votes_by_counting():
    g = rv.generator(0)
    below = (torch.rand(200_000, 5, generator=g) < 0.7).sum(1) >= 3
    share, expected = float(below.double().mean()), certificates.median_probability(5, 0.7)
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 200_000) ** 0.5
    with pytest.raises(errors.RangeError):
        certificates.median_probability(4, 0.7)


@pytest.mark.parametrize("sizes", [[], [-1.0], "0.1", [math.nan], None])
def test_bad_sizes_are_refused(sizes):
    with pytest.raises(errors.RobustVAEError):
        rv.certified_curve(positive_part(), halves(1), sizes, generator=rv.generator(0))


def test_curves_do_not_see_their_neighbors():
    smooth = rv.Victim(rv.load("digits-vae").float(), rv.InputNoise(0.1))
    x = rv.data.load("digits", split="test").x[:6].float()

    def both(rows):
        ask = {"sizes": [0.05, 0.1], "draws": 100}
        band = rv.certified_curve(smooth, x[rows], generator=rv.generator(1), **ask)
        score = rv.certify_score(smooth, x[rows], generator=rv.generator(1), **ask)
        return band.tolerance, score.upper

    rows = torch.arange(6)
    for whole, *parts in zip(both(rows), both(rows[:1]), both(rows[1:]), strict=True):
        assert torch.allclose(whole, torch.cat(parts), rtol=1e-6)
