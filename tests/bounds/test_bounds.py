import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from robustvae import bounds, errors
from robustvae.bounds.generalized import _inverted_cdf as inverted_cdf


def noncentral_oracle(x, degrees, noncentral):
    """A Poisson mixture of chi-squares, with 30 digits."""
    with mpmath.workdps(30):
        total, j = mpmath.mpf(0), 0
        half = mpmath.mpf(noncentral) / 2
        while True:
            weight = mpmath.exp(-half + j * mpmath.log(half) - mpmath.loggamma(j + 1))
            term = weight * mpmath.gammainc(
                (degrees + 2 * j) / mpmath.mpf(2), 0, mpmath.mpf(x) / 2, regularized=True
            )
            total += term
            if j > half and term < mpmath.mpf(10) ** -20:
                return float(total)
            j += 1


@pytest.mark.parametrize("degrees", [1, 2, 10, 64])
@pytest.mark.parametrize("noncentral", [1e-6, 0.7, 30.0, 900.0])
@pytest.mark.parametrize("deviations", [0.3, 1.0, 4.0])
def test_noncentral_routine_against_high_precision_oracle(degrees, noncentral, deviations):
    mean, deviation = degrees + noncentral, math.sqrt(2 * (degrees + 2 * noncentral))
    reach = math.sqrt(mean + deviations * deviation)
    got = float(bounds.noncentral_probability(reach, math.sqrt(noncentral), 1.0, degrees))
    exact = noncentral_oracle(reach**2, degrees, noncentral)
    assert exact - 2 * bounds.CDF_SLACK < got <= exact


def test_noncentral_against_monte_carlo(generator):
    shift = torch.tensor([0.6, 0.2, 0.1])
    draws = shift + 0.3 * torch.randn(200_000, 3, generator=generator)
    for reach in (0.85, 1.0, 1.3):
        share = (draws.norm(dim=1) <= reach).double().mean()
        got = bounds.noncentral_probability(reach, shift.norm(), 0.3, 3)
        assert abs(share - got) < 4 * math.sqrt(0.25 / 200_000)


def test_below_half_only_triangle_inequality_stands():
    """At D >= t it says nothing; just below, the central chi-square at (t - D)^2 / s^2."""
    assert bounds.noncentral_probability(1.0, 1.05, 0.4, 2) == 0.0
    got = bounds.noncentral_probability(1.0, 0.96, 0.4, 2)
    assert_close(got, torch.tensor(-math.expm1(-0.005)), atol=2e-9, rtol=0)


def test_below_half_isotropic_mass_no_bound(generator):
    """Why the route stops at 1/2: with the mean outside the ball, spread helps."""
    shift, reach = torch.tensor([1.5, 0.0]), 1.0
    noise = torch.randn(100_000, 2, generator=generator)
    uneven = ((shift + noise * torch.tensor([0.1, 0.5])).norm(dim=1) <= reach).double().mean()
    isotropic = ((shift + noise * 0.5).norm(dim=1) <= reach).double().mean()
    assert uneven < isotropic / 100


stddevs = st.lists(st.floats(0.2, 1.0), min_size=2, max_size=6)


@settings(max_examples=60, deadline=None)
@given(stddevs, st.floats(0, 2), st.floats(0.2, 3), st.integers(0, 2**31))
def test_noncentral_below_true_mass_direction(spreads, size, reach, seed):
    """N(shift, diag s_j^2) puts at least F on the ball, whatever the direction of the shift."""
    g = torch.Generator().manual_seed(seed)
    s = torch.tensor(spreads)
    direction = torch.randn(len(s), generator=g)
    shift = size * direction / direction.norm()
    bound = bounds.noncentral_probability(reach, size, s.max(), len(s))
    exact = bounds.generalized_probability(reach, shift.abs()[None], s[None])[0]
    assert bound <= exact + 1e-8


def test_no_single_direction_is_the_worst():
    """docs/theory.md, "Generalized chi-square": a length alone does not say along which axis."""
    s = torch.tensor([[1.0, 0.314], [1.0, 0.314]])
    along = bounds.generalized_probability(1.378, 1.069 * torch.eye(2), s)
    assert_close(along, torch.tensor([0.599, 0.514]), atol=5e-4, rtol=0)
    assert bounds.noncentral_probability(1.378, 1.069, 1.0, 2) <= along.min()


def test_generalized_matches_monte_carlo(generator):
    s = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.4, 0.4]])
    shifts = torch.tensor([[0.1, 0.4, 0.3], [0.5, 0.0, 0.0]])
    got = bounds.generalized_probability(0.9, shifts, s)
    for row in range(2):
        draws = shifts[row] + s[row] * torch.randn(200_000, 3, generator=generator)
        share = (draws.norm(dim=1) <= 0.9).double().mean()
        assert abs(share - got[row]) < 4 * math.sqrt(0.25 / 200_000)
    assert_close(got[1], bounds.noncentral_probability(0.9, 0.5, 0.4, 3), atol=1e-8, rtol=0)


@pytest.mark.parametrize("ratio", [2.0, 30.0, 100.0, 1000.0])
def test_generalized_of_uneven_spreads(ratio, generator):
    """Ruben's series alone gave 0.476 at a ratio of 30, and 0.0003 at 100, for 0.826."""
    s = torch.logspace(0, -math.log10(ratio), 16)
    shift = s * torch.rand(16, generator=generator)
    draws = (torch.randn(100_000, 16, generator=generator) * s + shift).square().sum(1)
    reach = float(draws.quantile(0.826).sqrt())
    chance = float(bounds.generalized_probability(reach, shift[None], s[None]))
    # the share of 100,000 draws has a standard deviation of 0.0012
    assert abs(chance - 0.826) < 4 * 0.0012


def test_inversion_agrees_with_the_series(generator):
    for _ in range(8):
        s = 0.3 + torch.rand(1, 5, generator=generator)
        shift = torch.rand(1, 5, generator=generator)
        reach = 0.5 + 3 * float(torch.rand((), generator=generator))
        series = float(bounds.generalized_probability(reach, shift, s))
        inverted = inverted_cdf(reach**2, s[0].square(), (shift / s)[0].square())
        # both are lower bounds, each within 1e-9 of the value
        assert abs(series - inverted) < 3e-9


def test_generalized_against_imhof():
    """Ruben's series against Imhof's inversion integral, an independent method."""
    s = torch.tensor([[0.2, 0.9, 0.35, 0.5]])
    shifts = torch.tensor([[0.6, 0.1, 0.0, 0.3]])
    for reach in (0.5, 1.0, 2.0):
        got = bounds.generalized_probability(reach, shifts, s)[0]
        assert abs(float(got) - imhof(reach**2, shifts[0], s[0])) < 1e-7


def imhof(x, shifts, stddevs):
    from scipy.integrate import quad

    weights = (stddevs**2).tolist()
    noncentral = (shifts**2 / stddevs**2).tolist()
    pairs = list(zip(weights, noncentral, strict=True))

    def integrand(u):
        theta = -x * u / 2
        log_rho = 0.0
        for w, n in pairs:
            square = 1 + (w * u) ** 2
            theta += 0.5 * (math.atan(w * u) + n * w * u / square)
            log_rho += 0.25 * math.log(square) + 0.5 * n * (w * u) ** 2 / square
        return math.sin(theta) / (u * math.exp(log_rho))

    return 0.5 - quad(integrand, 0, 400, limit=2000)[0] / math.pi


settings_of_a_model = {
    "stddev": st.floats(1e-3, 1.0),
    "uneven": st.floats(0.0, 1.0),
    "r": st.floats(0.1, 20.0),
    "m": st.floats(0.05, 0.99),
    "a": st.floats(0.1, 20.0),
    "b": st.floats(0.1, 20.0),
    "c": st.sampled_from([0.0, 0.1, 5.0]),
    "latent": st.integers(2, 40),
}


@settings(max_examples=100, deadline=None)
@given(**settings_of_a_model)
def test_ours_is_never_below_barrett(stddev, uneven, r, m, a, b, c, latent):
    """The larger of noncentral and trace-Markov against Lemma 2, by the same constants."""
    sigma = stddev * torch.linspace(1 - 0.9 * uneven, 1, latent)
    norm = sigma.norm()
    theirs = bounds.barrett_margin(norm[None], r=r, m=m, a=a, b=b, c=c, latent=latent)
    reach = torch.tensor([r / a])

    def holds(rho):
        after = sigma + c * rho
        spread = (sigma.square() + after.square()).max().sqrt()
        trace = norm.square() + (norm + c * rho).square()
        ours = torch.maximum(
            bounds.noncentral_probability(reach, b * rho, spread, latent),
            bounds.trace_markov_probability(reach, b * rho, trace),
        )
        return ours > m

    assert bounds.largest(holds, reach / b) >= theirs * (1 - 1e-6) - 1e-9


def test_trace_markov_can_win():
    """d = 10, sigma = 0.05, a = b = c = 5, r = 8: Markov 0.125 beats the chi-square's 0.090."""
    sigma = torch.full((10,), 0.05)
    norm = sigma.norm()
    reach = torch.tensor([1.6])

    def chi_square(rho):
        spread = (0.05**2 + (0.05 + 5 * rho) ** 2).sqrt()
        return bounds.noncentral_probability(reach, 5 * rho, spread, 10) > 0.5

    m1 = bounds.barrett_margin(norm[None], r=8, m=0.5, a=5, b=5, c=5, latent=10)
    assert_close(m1, torch.tensor([0.125]), atol=5e-4, rtol=0)
    assert_close(bounds.largest(chi_square, reach / 5), torch.tensor([0.090]), atol=5e-4, rtol=0)


def test_barrett_global_margins_of_one_example():
    """K = 10 everywhere, sigma = 0.1, r = 8, m = 1/2, d = 10."""
    arguments = {"r": 8, "m": 0.5, "a": 10, "b": 10, "latent": 10}
    assert bounds.barrett_global_margin(0.1, **arguments) == pytest.approx(0.032, abs=5e-4)
    centered = bounds.barrett_global_margin(0.1, **arguments, displacement="centered")
    assert centered == pytest.approx(0.047, abs=5e-4)


def test_barrett_bounds_the_true_probability(generator):
    """Theorem 1 on a linear model whose paired difference is known exactly."""
    a, b, c, latent, sigma = 2.0, 1.5, 0.0, 4, 0.1
    for size in (0.0, 0.1, 0.3):
        bound = bounds.barrett_probability(
            size, sigma * math.sqrt(latent), r=1.5, a=a, b=b, c=c, latent=latent
        )
        true = bounds.noncentral_probability(1.5 / a, b * size, sigma * math.sqrt(2), latent)
        assert bound <= true + 1e-6


def brute_envelope(logits, r, starts=60, generator=None):
    """The least ||e|| seen that moves the sigmoids by r: an upper bound on the envelope's reach."""
    clean = torch.sigmoid(logits)
    best = torch.full((len(logits),), math.inf)
    for _ in range(starts):
        power = 4 * torch.rand((), generator=generator)
        direction = torch.randn(logits.shape, generator=generator) * (clean * (1 - clean)) ** power
        direction = direction.abs() * -logits.sign()
        low, high = torch.zeros(len(logits)), torch.full((len(logits),), 1e3)
        unit = direction / direction.norm(dim=1, keepdim=True)
        for _ in range(50):
            middle = (low + high) / 2
            moved = torch.sigmoid(logits + middle[:, None] * unit) - clean
            inside = moved.norm(dim=1) <= r
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        best = torch.minimum(best, high)
    return best


def test_envelope_between_adversary_and_slope(generator):
    logits = 5 * torch.randn(20, 16, generator=generator)
    for r in (0.2, 0.8, 1.5):
        reach = bounds.envelope_reach(logits, r)
        assert (reach >= 4 * r * (1 - 1e-9)).all()
        assert (reach <= brute_envelope(logits, r, generator=generator)).all()


def test_envelope_nearly_exact_for_one_pixel():
    """One pixel: the reach solves |s(y + e) - s(y)| = r in closed form."""
    y = torch.linspace(-6, 6, 41)[:, None]
    share = torch.sigmoid(y.abs())
    for r in (0.1, 0.3, 0.45):
        moved = share - r
        exact = (y.abs() - (moved / (1 - moved)).log())[:, 0]
        reach = bounds.envelope_reach(y, r)
        assert (reach <= exact + 1e-9).all()


def test_slope_of_one_fifth_is_caught():
    """The sigmoid's slope is 1/4: a reach of 5 r is reached from gray pixels."""
    gray = torch.zeros(1, 4)
    moved = torch.sigmoid(gray + 5 * 0.1 / 2) - 0.5
    assert moved.norm() > 0.1
    assert bounds.envelope_reach(gray, 0.1) < 5 * 0.1 * 0.82


def test_first_order_spectral_never_below_camuto(generator):
    jacobian = torch.randn(30, 5, 12, generator=generator)
    stddev = 0.1 + torch.rand(30, 5, generator=generator)
    p = 0.5 + 0.5 * torch.rand(30, generator=generator)
    ours = bounds.first_order_margin(p, 0.4, jacobian, stddev)
    theirs = bounds.camuto_margin(p, 0.4, jacobian, stddev)
    assert (ours >= theirs * (1 - 1e-12)).all()
    assert (bounds.first_order_margin(p, 0.999, jacobian, stddev)[p <= 0.999] == 0).all()


def test_probabilities_are_differentiable():
    reach = torch.tensor([2.0, 2.5], requires_grad=True)
    shift = torch.tensor([0.5, 1.0], requires_grad=True)
    spread = torch.tensor([0.4, 0.5], requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *v: bounds.noncentral_probability(*v, 5), (reach, shift, spread)
    )
    assert torch.autograd.gradcheck(
        lambda t, d: bounds.trace_markov_probability(t, d, 0.3), (reach, shift)
    )


def test_largest_never_exceeds_the_edge():
    edge = torch.tensor([0.0, 1e-9, 0.3, 1.0, 5.0])
    found = bounds.largest(lambda rho: rho < edge, torch.ones(5))
    assert (found <= edge).all()
    assert_close(found, edge.clamp(max=1.0), atol=1e-9, rtol=0)


def test_bad_input_is_refused():
    with pytest.raises(errors.ShapeError):
        bounds.generalized_probability(1.0, torch.zeros(2, 3), torch.ones(2, 2))
    with pytest.raises(errors.ShapeError):
        bounds.envelope_reach(torch.zeros(3), 1.0)
    with pytest.raises(errors.RangeError):
        bounds.envelope_reach(torch.zeros(1, 3), -1.0)
    with pytest.raises(errors.RangeError):
        bounds.noncentral_probability(-1.0, 0.1, 0.1, 3)


@pytest.mark.parametrize("m", [0.5, 0.7, 0.95])
def test_crossing_search_beats_bisection(m, generator):
    spread = 0.05 + 0.2 * torch.rand(200, generator=generator)
    reach = 0.2 + 3 * torch.rand(200, generator=generator)
    asked = 0

    def spare(rho, rows):
        nonlocal asked
        asked += len(rows)
        return bounds.isotropic_mass(reach[rows], 2 * rho, spread[rows], 6) - m

    def holds(rho):
        return bounds.noncentral_probability(reach, 2 * rho, spread, 6) > m

    slow = bounds.largest(holds, reach / 2, steps=45)
    guess = bounds.isotropic_guess(reach, lambda rho: (2 * rho, spread), m, 6)
    for start in (guess, None, 0.3 * guess):
        asked = 0
        fast = bounds.crossing(spare, reach / 2, start)
        assert_close(fast, slow, rtol=1e-8, atol=1e-9)
        assert holds(fast)[fast > 0].all() and ((fast > 0) == (slow > 0)).all()
        assert asked < (8 if start is guess else 24) * 200
