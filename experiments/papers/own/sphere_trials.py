"""Perturbations on the sphere just inside certified radii: many screened, the worst judged."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
# outputs that are computed together: they fit a cache
_ROWS = 512


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
        fresh: Draws of each of those, at the most: a tenth at a time, until it is decided.
        stddev: Of noise on the input, of a victim that smoothing certifies about its own center; 0
            for the model as it is.
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
    stddev: float = 0.0


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
    x, rows, values = x.to(vae.dtype), list[Row](), dict[str, Any]()
    for displacement in run.each(spec.displacements):
        trial = functools.partial(_trial, vae, x, displacement, spec, run)
        trials = values[displacement] = run.part(displacement, trial, vae)
        count = len(trials["radius"])
        rows.append(Row(displacement, "certified inputs", count, n=len(x)))
        if not count:
            continue
        rows.append(measured(displacement, "radius", trials["radius"]))
        rows.append(Row(displacement, "perturbations", trials["perturbations"], n=count))
        rows.append(Row(displacement, "judged", trials["judged"], n=count))
        rows.append(Row(displacement, "least probability, fresh draws", trials["least"]))
        rows.append(Row(displacement, "violations", trials["violations"], n=trials["judged"]))
        run.progress(f"{displacement}: {trials['violations']} violations")
    noise = f"behind noise of {spec.stddev:g}, about its own center, " if spec.stddev else ""
    return run.result(
        f"On the sphere of {_SHARE} of the certified radius: {spec.model}",
        "counts and probabilities",
        rows,
        (
            f"{noise}r = {spec.r:g}, m = {spec.m:g}, {spec.dtype}; every perturbation screened "
            f"with {spec.screen} draws, the worst {spec.worst} judged by fresh ones, a tenth of "
            f"{spec.fresh:,} at a time until the Clopper-Pearson interval, at confidence 1 - 1e-8, "
            "lies on one side of m. A violation has its upper end at or below m.",
        ),
        values,
    )


def _trial(vae: VAE, x: Tensor, displacement: str, spec: Spec, run: Run) -> dict[str, Any]:
    """What came of the perturbations of one displacement, numbers by name."""
    subject = rv.Victim(vae, rv.InputNoise(spec.stddev)) if spec.stddev else rv.Victim(vae)
    lower = rv.certify(
        subject,
        x,
        r=spec.r,
        m=spec.m,
        displacement=displacement,
        methods=list(spec.methods) or None,
        generator=run.noise(f"{displacement}, certify"),
    )
    certified = (lower.radius > 0).nonzero()[:, 0].tolist()
    result = {"radius": lower.radius[certified].tolist(), "perturbations": 0, "judged": 0}
    if not certified:
        return result
    generator = run.noise(f"{displacement}, perturbations")
    each = -(-spec.count // len(certified))
    centers = vae.decode(vae.encode(x).mean).mean if lower.centers is None else lower.centers
    steps, chances, shares = list[Tensor](), list[Tensor](), list[_Share]()
    for i in certified:
        share = _Share(subject, x[i], centers[i : i + 1], displacement, spec.r)
        steps.append(_steps(vae, x[i], _SHARE * float(lower.radius[i]), each, generator))
        chances.append(share.inside(steps[-1], spec.screen, generator) / spec.screen)
        shares.append(share)
    worst = torch.cat(chances).argsort()[: spec.worst].tolist()
    violations, least = 0, 1.0
    for k in worst:
        row, place = divmod(k, each)
        step, inside, draws = steps[row][place : place + 1], 0, 0
        low, high = 0.0, 1.0
        while draws < spec.fresh and low <= spec.m < high:
            count = min(-(-spec.fresh // 10), spec.fresh - draws)
            inside += int(shares[row].inside(step, count, generator))
            draws += count
            ends = clopper_pearson(inside, draws, _CONFIDENCE)
            low, high = (float(torch.as_tensor(end)) for end in ends)
        violations += int(high <= spec.m)
        least = min(least, inside / draws)
    total = sum(map(len, steps))
    return {
        **result,
        "perturbations": total,
        "judged": len(worst),
        "least": least,
        "violations": violations,
    }


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


@final
@dataclass(frozen=True, eq=False)
class _Share:
    """How many draws stay within r of the center after a perturbation of one input.

    Attributes:
        subject: The victim.
        x: The input, (C, H, W).
        center: What displacements are measured from, (1, ...).
        displacement: Of the certificate.
        r: Of the certificate.
    """

    subject: rv.Victim
    x: Tensor
    center: Tensor
    displacement: str
    r: float

    @torch.no_grad()
    def inside(self, steps: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Of so many draws for each perturbation, (N,), float64."""
        shares = []
        for part in steps.split(_ROWS):
            gaps = self._noisy(part) if self.subject.noise else self._own(part)
            inside, left = torch.zeros(len(part), dtype=torch.float64), draws
            while left:
                count = min(max(1, _ROWS // len(part)), left)
                inside += (gaps(count, generator) <= self.r).double().view(count, -1).sum(0)
                left -= count
            shares.append(inside)
        return torch.cat(shares)

    def _noisy(self, steps: Tensor) -> Callable[[int, torch.Generator], Tensor]:
        """What draws distances of a victim with noise, for each perturbation, (count N,)."""
        images = self.x + steps

        def gaps(count: int, generator: torch.Generator) -> Tensor:
            many = images.repeat(count, *[1] * self.x.ndim)
            output = self.subject.reconstruct(many, generator=generator)
            return (output.double() - self.center).flatten(1).norm(dim=1)

        return gaps

    def _own(self, steps: Tensor) -> Callable[[int, torch.Generator], Tensor]:
        """What draws distances of a model's own posterior; it is encoded once."""
        vae = self.subject.vae
        clean, moved = vae.encode(self.x[None]), vae.encode(self.x + steps)
        if self.displacement == "centered":
            spread: Any = clean
            moved = rv.models.Gaussian(moved.mean, spread.stddev.expand_as(moved.mean))

        def gaps(count: int, generator: torch.Generator) -> Tensor:
            one = vae.decode(rv.draw(moved, (count,), generator=generator).flatten(0, 1)).mean
            other = self.center
            if self.displacement == "paired":
                z = rv.draw(clean, (len(one),), generator=generator)[:, 0]
                other = vae.decode(z).mean
            return (one - other).flatten(1).norm(dim=1)

        return gaps
