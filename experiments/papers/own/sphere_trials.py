"""Perturbations on the sphere just inside certified radii: many screened, the worst judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from robustvae.metrics import clopper_pearson
from robustvae.models import VAE

# a share of the radius at which the certificate still has to hold
_SHARE = 0.999
# of each refutation: with hundreds of them judged, chance alone refutes none
_CONFIDENCE = 1 - 1e-8


@final
@dataclass(frozen=True)
class Spec:
    """What is tried.

    Attributes:
        model: What is certified.
        data: Its data set.
        r: l2 distance between outputs, in pixel units.
        m: Probability wanted.
        displacements: Of the certificates.
        methods: Of `certify`; empty takes those of its default.
        dtype: Of the model.
        inputs: Certified.
        count: Perturbations of each displacement, over all inputs.
        screen: Draws of each perturbation.
        worst: How many go on to fresh draws.
        fresh: Draws of each of those.
    """

    model: str = "digits-lipschitz-vae"
    data: str = "digits"
    r: float = 1.0
    m: float = 0.5
    displacements: tuple[str, ...] = ("centered", "full", "paired")
    methods: tuple[str, ...] = ()
    dtype: str = "float32"
    inputs: int = 20
    count: int = 10_000
    screen: int = 64
    worst: int = 50
    fresh: int = 20_000


@item(
    "own/sphere-trials",
    sizes={
        "smoke": Spec(
            displacements=("centered",), inputs=2, count=40, screen=16, worst=3, fresh=200
        ),
        "laptop": Spec(count=2_000, worst=20, fresh=4_000),
        "full": Spec(),
    },
)
def sphere_trials(spec: Spec, run: Run) -> Result:
    """Perturbations of 0.999 of each radius, half of them climbed; the worst are judged afresh."""
    vae = run.model(spec.model).to(getattr(torch, spec.dtype)).requires_grad_(False)
    x, _ = run.images(spec.data).sample(spec.inputs, stratified=True, generator=run.noise("inputs"))
    x, rows = x.to(vae.dtype), list[Row]()
    for displacement in spec.displacements:
        lower = rv.certify(
            vae,
            x,
            r=spec.r,
            m=spec.m,
            displacement=displacement,
            methods=list(spec.methods) or None,
            generator=run.noise(f"{displacement}, certify"),
        )
        certified = (lower.radius > 0).nonzero()[:, 0]
        rows.append(Row(displacement, "certified inputs", len(certified), n=len(x)))
        if not len(certified):
            continue
        rows.append(measured(displacement, "radius", lower.radius))
        generator = run.noise(f"{displacement}, perturbations")
        each = -(-spec.count // len(certified))
        steps, chances = [], []
        for i in certified.tolist():
            radius = _SHARE * float(lower.radius[i])
            step = _steps(vae, x[i], radius, each, generator)
            steps.append(step)
            chances.append(_chance(vae, x[i], step, displacement, spec, spec.screen, generator))
        screened = torch.cat(chances)
        worst = screened.argsort()[: spec.worst].tolist()
        violations, least = 0, 1.0
        for k in worst:
            row, place = divmod(k, each)
            i, step = int(certified[row]), steps[row][place : place + 1]
            chance = _chance(vae, x[i], step, displacement, spec, spec.fresh, generator)
            inside = (chance * spec.fresh).round()  # a share of the draws is no whole number
            _, high = clopper_pearson(inside, spec.fresh, _CONFIDENCE, sides=1)
            violations += int(float(torch.as_tensor(high)) <= spec.m)
            least = min(least, float(chance))
        rows.append(Row(displacement, "perturbations", len(screened), n=len(certified)))
        rows.append(Row(displacement, "least probability, fresh draws", least, n=spec.fresh))
        rows.append(Row(displacement, "violations", violations, n=len(worst)))
        run.progress(f"{displacement}: {len(screened):,} perturbations, {violations} violations")
    return run.result(
        f"On the sphere of {_SHARE} of the certified radius: {spec.model}",
        "counts and probabilities",
        rows,
        (
            f"r = {spec.r:g}, m = {spec.m:g}, {spec.dtype}; every perturbation screened with "
            f"{spec.screen} draws, the worst {spec.worst} judged by {spec.fresh:,} fresh ones. A "
            "violation has its Clopper-Pearson upper bound, at confidence 1 - 1e-8, at or below m.",
        ),
    )


def _steps(vae: VAE, x: Tensor, radius: float, count: int, generator: torch.Generator) -> Tensor:
    """Half random, half climbed for the reconstruction of the mean, all of one length."""

    def project(step: Tensor) -> Tensor:
        size = step.flatten(1).norm(dim=1).clamp_min(1e-30)
        return radius * step / size.view(-1, *[1] * (step.ndim - 1))

    step = project(rv.seeding.randn(count, *x.shape, like=x, generator=generator))
    clean = vae.decode(vae.encode(x[None]).mean).mean
    climbed = step[: count // 2].clone()
    # 12 steps from a random start reach what a longer search does on these models, within a few %
    for _ in range(12):
        climbed.requires_grad_(True)
        moved = vae.decode(vae.encode(x + climbed).mean).mean - clean
        (grad,) = torch.autograd.grad(moved.square().sum(), climbed)
        climbed = project(climbed.detach() + project(grad))
    step[: count // 2] = climbed
    return step


@torch.no_grad()
def _chance(
    vae: VAE,
    x: Tensor,
    steps: Tensor,
    displacement: str,
    spec: Spec,
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """P(||Delta|| <= r) after each perturbation of one input, by draws, (N,)."""
    clean = vae.encode(x[None])
    center = vae.decode(clean.mean).mean.flatten(1)

    def outputs(mean: Tensor, stddev: Tensor) -> Tensor:
        noise = rv.seeding.randn(*mean.shape, like=mean, generator=generator)
        return vae.decode(mean + stddev * noise).mean.flatten(1)

    inside = torch.zeros(len(steps), dtype=torch.float64)
    q: Any = vae.encode(x + steps)
    stddev = clean.stddev.expand_as(q.mean) if displacement == "centered" else q.stddev
    # some 512 outputs at a time fit a cache
    together = max(1, 512 // len(steps))
    done = 0
    while done < draws:
        count = min(together, draws - done)
        mean, spread = q.mean.repeat(count, 1), stddev.repeat(count, 1)
        one = outputs(mean, spread)
        if displacement == "paired":
            first = clean.mean.expand_as(mean), clean.stddev.expand_as(mean)
            other = outputs(*first)
        else:
            other = center
        inside += ((one - other).norm(dim=1) <= spec.r).double().view(count, -1).sum(0)
        done += count
    return inside / draws
