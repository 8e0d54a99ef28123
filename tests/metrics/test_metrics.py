"""Metrics against other people's definitions, and against slow ones written out."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from robustvae import metrics, seeding
from robustvae.errors import DtypeError, RangeError, ShapeError, UnknownNameError

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def _images(*shape, seed):
    return torch.rand(*shape, generator=seeding.generator(seed), dtype=torch.float64)


def _pair(*shape, noise=0.2, seed=0):
    x = _images(*shape, seed=seed)
    return x, ((1 - noise) * x + noise * _images(*shape, seed=seed + 1))


def _slow_terms(x, y, size):
    """SSIM and contrast of one pair of one-channel images, window position by position."""
    g = [math.exp(-((i - size // 2) ** 2) / (2 * 1.5**2)) for i in range(size)]
    w = np.outer(g, g) / np.outer(g, g).sum()
    ssim, contrast = [], []
    for i in range(x.shape[0] - size + 1):
        for j in range(x.shape[1] - size + 1):
            a, b = x[i : i + size, j : j + size], y[i : i + size, j : j + size]
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum()
            cov = (w * (a - ma) * (b - mb)).sum()
            contrast.append((2 * cov + 0.03**2) / (va + vb + 0.03**2))
            ssim.append(contrast[-1] * (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2))
    return np.mean(ssim), np.mean(contrast)


def _halved(x):
    h, w = x.shape[0] // 2, x.shape[1] // 2
    return x[: 2 * h, : 2 * w].reshape(h, 2, w, 2).mean(axis=(1, 3))


def _slow_kuzina(x, y):
    x, y = x.numpy(), y.numpy()
    value = 1.0
    for scale, weight in enumerate(WEIGHTS):
        if scale and min(x.shape) > 1:
            x, y = _halved(x), _halved(y)
        ssim, contrast = _slow_terms(x, y, min(14, *x.shape))
        last = scale == len(WEIGHTS) - 1
        value *= max(ssim, 0) ** (4 * weight) if last else max(contrast, 0) ** weight
    return value


@pytest.mark.parametrize("shape", [(28, 28), (32, 20), (16, 16), (8, 8), (8, 11)])
def test_kuzina2022_is_the_formula(shape):
    x, y = _pair(3, 1, *shape)
    slow = [_slow_kuzina(a[0], b[0]) for a, b in zip(x, y, strict=True)]
    fast = metrics.ms_ssim(x, y, variant="kuzina2022")
    torch.testing.assert_close(fast, torch.tensor(slow, dtype=torch.float64))


def _slow_wang(x, y):
    """The textbook's product; torchmetrics' border in the last similarity."""
    x, y = x.numpy(), y.numpy()
    value = 1.0
    for weight in WEIGHTS[:-1]:
        value *= _slow_terms(x, y, 11)[1] ** weight
        x, y = _halved(x), _halved(y)
    x, y = (np.pad(image, 5, mode="reflect") for image in (x, y))
    return value * _slow_terms(x, y, 11)[0] ** WEIGHTS[-1]


def test_wang2003_is_the_formula():
    x, y = _pair(1, 1, 176, 180)
    torch.testing.assert_close(metrics.ms_ssim(x, y).item(), _slow_wang(x[0, 0], y[0, 0]))


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_wang2003_is_torchmetrics(noise):
    image = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics missing")
    x, y = _pair(2, 3, 192, 177, noise=noise)
    other = image.multiscale_structural_similarity_index_measure(
        x, y, data_range=1.0, normalize="relu", reduction="none"
    )
    torch.testing.assert_close(metrics.ms_ssim(x, y), other, rtol=1e-6, atol=1e-6)


def test_wang2003_matches_torchmetrics():
    i, j = torch.meshgrid(torch.arange(176.0), torch.arange(180.0), indexing="ij")
    x = (0.5 + 0.5 * torch.sin(i / 7) * torch.cos(j / 5))[None, None]
    y = (0.5 + 0.4 * torch.sin(i / 7) * torch.cos(j / 5.05))[None, None]
    assert metrics.ms_ssim(x, y).item() == pytest.approx(0.91415586, abs=1e-6)


def test_wang2003_needs_large_images():
    x, y = _pair(1, 1, 175, 300)
    with pytest.raises(ShapeError, match="kuzina2022"):
        metrics.ms_ssim(x, y)


@pytest.mark.parametrize(("variant", "side"), [("wang2003", 176), ("kuzina2022", 8)])
def test_ms_ssim_laws(variant, side):
    x, y = _pair(3, 2, side, side, noise=0.7)
    same = metrics.ms_ssim(x, x, variant=variant)
    torch.testing.assert_close(same, torch.ones(3, dtype=torch.float64))
    forth, back = (metrics.ms_ssim(*p, variant=variant) for p in ((x, y), (y, x)))
    torch.testing.assert_close(forth, back)
    assert ((forth >= 0) & (forth < 1)).all()
    nearer = metrics.ms_ssim(x, 0.7 * x + 0.3 * y, variant=variant)
    assert (nearer > forth).all()
    alone = metrics.ms_ssim(x[1:2], y[1:2], variant=variant)
    torch.testing.assert_close(alone, forth[1:2])
    assert metrics.ms_ssim(x.float(), y.float(), variant=variant).dtype == torch.float32


def test_ms_ssim_of_opposites_is_zero():
    board = (torch.arange(28)[:, None] + torch.arange(28)[None]).remainder(2).double()[None, None]
    assert metrics.ms_ssim(board, 1 - board, variant="kuzina2022").item() == 0


def test_ms_ssim_refuses():
    x, y = _pair(2, 1, 8, 8)
    with pytest.raises(UnknownNameError, match="kuzina2022"):
        metrics.ms_ssim(x, y, variant="kuzina")
    with pytest.raises(ShapeError, match="one shape"):
        metrics.ms_ssim(x, y[:1], variant="kuzina2022")
    with pytest.raises(RangeError):
        metrics.ms_ssim(x, y + 2, variant="kuzina2022")


@pytest.fixture
def gaussians():
    g = seeding.generator(3)
    draw = lambda: torch.randn(7, 5, generator=g, dtype=torch.float64)  # noqa: E731
    return draw(), draw().exp(), draw(), draw().exp()


def test_kl_is_torch_distributions(gaussians):
    m, s, n, t = gaussians
    normal, kl = torch.distributions.Normal, torch.distributions.kl_divergence
    there = kl(normal(m, s), normal(n, t)).sum(-1)
    back = kl(normal(n, t), normal(m, s)).sum(-1)
    torch.testing.assert_close(metrics.kl(m, s, n, t), there)
    torch.testing.assert_close(metrics.symmetric_kl(m, s, n, t), (there + back) / 2)
    prior = metrics.kl(m, s, torch.zeros(5), torch.ones(5))
    torch.testing.assert_close(metrics.kl_to_standard_normal(m, s), prior)


def test_wasserstein2_of_sorted_samples(gaussians):
    m, s, n, t = (v[:1, :1] for v in gaussians)
    quantiles = torch.from_numpy(stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000))
    cost = ((m + s * quantiles - n - t * quantiles) ** 2).mean()
    torch.testing.assert_close(metrics.wasserstein2(m, s, n, t).squeeze(), cost, rtol=1e-3, atol=0)


@pytest.mark.parametrize("trials", [1, 10, 1000])
@pytest.mark.parametrize("confidence", [0.9, 0.999])
def test_clopper_pearson_is_scipy(trials, confidence):
    ks = np.unique(np.linspace(0, trials, 6).astype(int))
    low, high = metrics.clopper_pearson(ks, trials, confidence)
    for k, a, b in zip(ks, low, high, strict=True):
        exact = stats.binomtest(int(k), trials).proportion_ci(confidence, "exact")
        assert (a, b) == pytest.approx((exact.low, exact.high), rel=1e-9)
    upper = metrics.clopper_pearson(torch.as_tensor(ks), trials, confidence, sides=1)[1]
    for k, b in zip(ks, upper, strict=True):
        exact = stats.binomtest(int(k), trials, alternative="less").proportion_ci(confidence)
        assert b == pytest.approx(exact.high, rel=1e-9)


def test_clopper_pearson_covers():
    n, confidence = 20, 0.9
    low, high = metrics.clopper_pearson(np.arange(n + 1), n, confidence)
    for p in np.linspace(0.01, 0.99, 25):
        inside = (low <= p) & (p <= high)
        assert stats.binom.pmf(np.arange(n + 1), n, p)[inside].sum() >= confidence


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((3, 2, 0.9), RangeError),
        ((-1, 2, 0.9), RangeError),
        ((0, 0, 0.9), RangeError),
        ((0.5, 2, 0.9), RangeError),
        ((float("nan"), 2, 0.9), RangeError),
        ((1, 2, 1.0), RangeError),
        (("many", 2, 0.9), DtypeError),
    ],
)
def test_clopper_pearson_refuses(arguments, error):
    with pytest.raises(error):
        metrics.clopper_pearson(*arguments)


def test_mean_stderr_is_scipy():
    values = np.random.default_rng(0).normal(size=30)
    mean, stderr = metrics.mean_stderr(values)
    assert (mean, stderr) == pytest.approx((values.mean(), stats.sem(values)))
    assert metrics.mean_stderr(torch.tensor([2.0])) == (2.0, math.inf)
    with pytest.raises(ShapeError):
        metrics.mean_stderr([])
