"""Smoothing: certified radii of a victim with noise on its input, beside attacks on it.

m = 0.5, displacement full, unconstrained pixels. The attack knows the noise: it raises the mean
distance from the certificate's own center over fresh noise, on the sphere, from many starts; what
comes of it is shortened as far as fresh draws still show a failure. A weaker attack gives a larger
upper bound, so a smaller ratio.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Run, item
from experiments.harness.rows import Row, measured
from robustvae.metrics import clopper_pearson
from robustvae.models.base import frozen
from robustvae.models.layout import channels_last

M = 0.5


@final
@dataclass(frozen=True)
class Spec:
    """What is measured.

    Attributes:
        model: The victim's model.
        plain: The model that the squared error of a draw is compared with, without noise.
        data: Its data set.
        stddev: Of the noise.
        r: Tolerated distance of the output.
        inputs: Test images, balanced over the classes.
        draws: Of the certificate.
        centers: "mean" beside "own", which is always taken.
        attacked: How many of the inputs are attacked, about the own center.
        restarts: Of the attack.
        steps: Of the attack.
        noises: Draws of noise of each step.
        rounds: Attacks, each at 0.95 times the size that the last ones left.
    """

    model: str = "mnist-conv28-noise-0.25"
    plain: str = "mnist-conv28"
    data: str = "mnist"
    stddev: float = 0.25
    r: float = 2.89
    inputs: int = 100
    draws: int = 10_000
    centers: tuple[str, ...] = ("mean",)
    attacked: int = 20
    restarts: int = 20
    steps: int = 200
    noises: int = 2
    rounds: int = 2


@item(
    "own/smoothing",
    sizes={
        "smoke": Spec(
            "digits-vae", "digits-vae", "digits", 0.1, 1.5, 3, 300, ("mean",), 2, 2, 5, 2, 1
        ),
        "laptop": Spec(centers=(), attacked=10, restarts=8, steps=80),
        "full": Spec(),
    },
)
def smoothing(spec: Spec, run: Run) -> Result:
    """Smoothing certificates about both centers, the price of the noise, and an attack on them."""
    vae, plain = run.model(spec.model), run.model(spec.plain)
    images = run.images(spec.data)
    x, _ = images.sample(spec.inputs, stratified=True, generator=rv.generator(run.seed))
    x = x.to(vae.dtype)
    victim = rv.Victim(vae, rv.InputNoise(spec.stddev))
    rows, values = list[Row](), dict[str, Any]()

    def errors() -> dict[str, Any]:
        return {
            "squared error of a draw": _errors(victim, x, run.seed),
            "squared error of a draw, plain": _errors(
                rv.Victim(plain, rv.PosteriorSample()), x, run.seed
            ),
        }

    values["price"] = run.part("price", errors, vae, plain)
    smooth, still = (torch.tensor(part).mean() for part in values["price"].values())
    for what, numbers in values["price"].items():
        rows.append(measured(what, "mean", numbers, section="price"))
    rows.append(Row("squared error, times the plain one's", "ratio", float(smooth / still)))

    def certify(center: str) -> None:
        def certified() -> dict[str, Any]:
            start = time.process_time()
            lower = rv.certify(
                victim,
                x,
                r=spec.r,
                m=M,
                displacement="full",
                center=center,
                methods=["smoothing"],
                draws=spec.draws,
                generator=rv.generator(run.seed + 1),
            )
            spent = time.process_time() - start
            assert lower.simultaneous is not None and lower.draws is not None
            return {
                "certified": lower.radius,
                "certified, all inputs together": lower.simultaneous,
                "share certified": (lower.radius > 0).double(),
                "seconds an input": [spent / len(x)],
            }

        values[center] = run.part(f"certified {center}", certified, vae)
        section = f"center {center}"
        rows.extend(measured(w, "mean", n, section=section) for w, n in values[center].items())
        run.progress(f"certified, center {center}")

    certify("own")
    if spec.attacked:
        attacked = run.part("attacked", lambda: _attacked(victim, x, spec, run), vae)
        lower = torch.tensor(values["own"]["certified"])[: spec.attacked]
        upper = torch.tensor(attacked["attacked"])
        attacked["certified / attacked"] = (lower / upper).tolist()
        attacked["certified above attacked"] = (lower > upper).double().tolist()
        values["attack"] = attacked
        rows += [measured(w, "mean", n, section="attack") for w, n in attacked.items()]
        ratio = float(lower.mean() / upper.mean())
        rows.append(Row("mean certified / mean attacked", "ratio", ratio, section="attack"))
    for center in spec.centers:
        if center != "own":
            certify(center)
    return run.result(
        f"Smoothing: {spec.model}",
        "pixel units, seconds and ratios",
        rows,
        (
            f"{spec.inputs} test images (balanced), m = {M}, r = {spec.r:g}, noise "
            f"{spec.stddev:g}, {spec.draws:,} draws, confidence 0.999; attack on the first "
            f"{spec.attacked}: "
            f"{spec.rounds} rounds of {spec.restarts} restarts x {spec.steps} steps, "
            f"{spec.noises} noises a step, unconstrained pixels.",
        ),
        values,
    )


def _errors(victim: rv.Victim, x: Tensor, seed: int) -> Tensor:
    """Squared error of a draw against the input, the mean of ten draws, (B,)."""
    g = rv.generator(seed)
    draws = [(victim.reconstruct(x, generator=g) - x).flatten(1).square().sum(1) for _ in range(10)]
    return torch.stack(draws).mean(0).double()


def _attacked(victim: rv.Victim, x: Tensor, spec: Spec, run: Run) -> dict[str, Any]:
    """Sizes of changes after which P(||Delta|| <= r) is at most m, by fresh draws, (attacked,)."""
    everything, x, g = x, x[: spec.attacked], run.noise("attack")
    ask: dict[str, Any] = {"r": spec.r, "m": M, "displacement": "full", "center": "own"}
    # the certificate's own center: it depends on the generator and the input only
    short = rv.certify(victim, x, draws=100, generator=rv.generator(run.seed + 1), **ask)
    assert short.centers is not None
    centers = short.centers.to(x.dtype)
    best = torch.full((len(x),), math.inf, dtype=torch.float64)
    change = torch.zeros_like(x)
    size = torch.full((len(x),), 6 * spec.stddev, dtype=x.dtype)
    with frozen(victim.vae), channels_last(victim.vae):
        for round_ in range(spec.rounds):
            starts = _starts(everything, x, change, size, spec.restarts, g)
            ends = _ascend(victim, x, centers, starts, size, spec, g)
            for end in ends:
                length = _shortened(victim, x, centers, end, spec.r, best, g)
                better = length < best
                best = torch.where(better, length, best)
                unit = end / end.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                change = torch.where(better.view(-1, 1, 1, 1), unit, change)
            size = torch.where(best.isfinite(), 0.95 * best, 1.5 * size.double()).to(x.dtype)
            run.progress(f"attack, round {round_ + 1}: mean {float(best.mean()):.4g}")
        confirmed = _confirmed(victim, x, centers, change, best, spec.r, g)
    return {"attacked": confirmed.tolist()}


def _starts(
    everything: Tensor, x: Tensor, change: Tensor, size: Tensor, restarts: int, g: torch.Generator
) -> Tensor:
    """Changes of the given sizes: toward other inputs, the best so far, and at random, (R, B)."""
    gaps = (x[:, None] - everything[None]).flatten(2).norm(dim=2)
    near = gaps.argsort(1)[:, 1 : restarts // 2 + 1]
    starts = [everything[near[:, k]] - x for k in range(near.shape[1])]
    noise = torch.randn(restarts - len(starts), *x.shape, generator=g)
    starts += [
        change + 0.02 * n if k % 2 and bool(change.any()) else n for k, n in enumerate(noise)
    ]
    stacked = torch.stack(starts)
    lengths = stacked.flatten(2).norm(dim=2).clamp_min(1e-12)
    return stacked / lengths[:, :, None, None, None] * size[None, :, None, None, None]


def _ascend(
    victim: rv.Victim,
    x: Tensor,
    centers: Tensor,
    starts: Tensor,
    size: Tensor,
    spec: Spec,
    g: torch.Generator,
) -> Tensor:
    """Changes that raise the mean distance over fresh noise, on the sphere, (R, B, ...)."""
    restarts = len(starts)
    change = starts.flatten(0, 1)
    sizes = size.repeat(restarts).view(-1, 1, 1, 1)
    clean, target = x.repeat(restarts, 1, 1, 1), centers.repeat(restarts, 1, 1, 1)
    for step in range(spec.steps):
        rate = 0.3 * (1 - step / spec.steps) + 0.01
        parts = []
        for rows in torch.arange(len(change)).split(100):
            leaf = change[rows].detach().requires_grad_()
            many = (clean[rows] + leaf).repeat(spec.noises, 1, 1, 1)
            output = victim.reconstruct(many, generator=g)
            gap = (output - target[rows].repeat(spec.noises, 1, 1, 1)).flatten(1).norm(dim=1)
            (slope,) = torch.autograd.grad(gap.sum(), leaf)
            parts.append(slope)
        slope = torch.cat(parts)
        slope = slope / slope.flatten(1).norm(dim=1).clamp_min(1e-20).view(-1, 1, 1, 1)
        change = change.detach() + rate * sizes * slope
        change = change * (sizes / change.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
    return change.unflatten(0, (restarts, len(x)))


def _inside(
    victim: rv.Victim, x: Tensor, centers: Tensor, r: float, draws: int, g: torch.Generator
) -> Tensor:
    """How many of the draws lie within r of the center, (B,)."""
    inside = torch.zeros(len(x), dtype=torch.long)
    with torch.no_grad():
        for _ in range(draws // 10):
            output = victim.reconstruct(x.repeat(10, 1, 1, 1), generator=g)
            gap = (output.unflatten(0, (10, len(x))) - centers).flatten(2).norm(dim=2)
            inside += (gap <= r).sum(0)
    return inside


def _shortened(
    victim: rv.Victim,
    x: Tensor,
    centers: Tensor,
    change: Tensor,
    r: float,
    best: Tensor,
    g: torch.Generator,
    draws: int = 100,
) -> Tensor:
    """About how short the changes may be and still fail, common noise; infinite where they hold."""
    length = change.flatten(1).norm(dim=1).double()
    unit = change / change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    state = g.get_state()

    def fails(sizes: Tensor) -> Tensor:
        common = torch.Generator()
        common.set_state(state)
        y = x + sizes.to(x.dtype).view(-1, 1, 1, 1) * unit
        return _inside(victim, y, centers, r, draws, common) <= M * draws

    high = torch.minimum(length, best)
    failed = fails(high)
    low = torch.zeros_like(high)
    if bool(failed.any()):
        for _ in range(6):
            middle = (low + high) / 2
            down = fails(middle)
            low, high = torch.where(down, low, middle), torch.where(down, middle, high)
    _inside(victim, x, centers, r, 10, g)  # the next draws are other ones
    return torch.where(failed, high, math.inf)


def _confirmed(
    victim: rv.Victim,
    x: Tensor,
    centers: Tensor,
    unit: Tensor,
    size: Tensor,
    r: float,
    g: torch.Generator,
) -> Tensor:
    """The least of a few growing sizes at which fresh draws show the failure (0.999), (B,)."""
    result = torch.full_like(size, math.inf)
    draws = 2000
    for factor in (1.0, 1.02, 1.05, 1.1, 1.2):
        rows = (result.isinf() & size.isfinite()).nonzero()[:, 0]
        if not len(rows):
            break
        grown = (factor * size[rows]).to(x.dtype).view(-1, 1, 1, 1)
        inside = _inside(victim, x[rows] + grown * unit[rows], centers[rows], r, draws, g)
        high = torch.as_tensor(clopper_pearson(inside, draws, 0.9998, sides=1)[1])
        result[rows[high <= M]] = factor * size[rows[high <= M]]
    return result
