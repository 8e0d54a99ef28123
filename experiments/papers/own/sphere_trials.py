"""Perturbations on the sphere just inside certified radii: many screened, the worst judged."""

from __future__ import annotations

import copy
import functools
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
        fresh: Draws of each of those, at the most: a hundredth at a time, until it is decided.
        stddev: Of noise on the input, of a victim that smoothing certifies about its own center; 0
            for the model as it is.
        search_dtype: In which changes are climbed and screened; what is judged runs in `dtype`.
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
    search_dtype: str = "bfloat16"


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
    subject = rv.Victim(vae, rv.InputNoise(spec.stddev)) if spec.stddev else rv.Victim(vae)
    lower = dict[str, rv.Certificate]()
    for displacement in spec.displacements:
        lower[displacement] = _certified(subject, x, displacement, spec, run)
        run.progress(f"{displacement}: {lower[displacement].radius.tolist()}")
    for together in run.each(_passes(lower)):
        trial = functools.partial(_trials, subject, x, {d: lower[d] for d in together}, spec, run)
        values |= run.part("+".join(together), trial, vae)
    for displacement in spec.displacements:
        trials = values[displacement]
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
    shared = [" and ".join(together) for together in _passes(lower) if len(together) > 1]
    noise = f"behind noise of {spec.stddev:g}, about its own center, " if spec.stddev else ""
    return run.result(
        f"On the sphere of {_SHARE} of the certified radius: {spec.model}",
        "counts and probabilities",
        rows,
        (
            f"{noise}r = {spec.r:g}, m = {spec.m:g}, {spec.dtype}; every perturbation screened "
            f"with {spec.screen} draws in {spec.search_dtype}, the worst {spec.worst} judged by "
            f"fresh ones in {spec.dtype}, a hundredth of {spec.fresh:,} at a time until the "
            "Clopper-Pearson interval, at confidence 1 - 1e-8, lies on one side of m. A violation "
            "has its upper end at or below m."
            + "".join(
                f" The radii of {words} are equal: one set of perturbations and of screening draws "
                "speaks of both."
                for words in shared
            ),
        ),
        values,
    )


def _certified(
    subject: rv.Victim, x: Tensor, displacement: str, spec: Spec, run: Run
) -> rv.Certificate:
    return rv.certify(
        subject,
        x,
        r=spec.r,
        m=spec.m,
        displacement=displacement,
        methods=list(spec.methods) or None,
        generator=run.noise(f"{displacement}, certify"),
    )


def _passes(lower: dict[str, rv.Certificate]) -> list[tuple[str, ...]]:
    """Displacements whose outputs follow one law on one sphere: each output is decoded once.

    Full and paired spread the perturbed code alike and differ in what its output is compared with.
    """
    both, keys = ("full", "paired"), list(lower)
    if all(name in lower for name in both):
        one, other = (lower[name].radius for name in both)
        if torch.equal(one, other):
            return [*((key,) for key in keys if key not in both), both]
    return [(key,) for key in keys]


def _trials(
    subject: rv.Victim, x: Tensor, lower: dict[str, rv.Certificate], spec: Spec, run: Run
) -> dict[str, dict[str, Any]]:
    """What came of perturbations of one length under some displacements, numbers by name."""
    vae, names = subject.vae, tuple(lower)
    one = lower[names[0]]
    certified = (one.radius > 0).nonzero()[:, 0].tolist()
    result = {"radius": one.radius[certified].tolist(), "perturbations": 0, "judged": 0}
    if not certified:
        return dict.fromkeys(names, result)
    generator = run.noise(f"{'+'.join(names)}, perturbations")
    each = -(-spec.count // len(certified))
    centers = vae.decode(vae.encode(x).mean).mean if one.centers is None else one.centers
    # half of the digits, half of the time: it only chooses what is judged
    fast: Any = copy.deepcopy(vae).to(getattr(torch, spec.search_dtype))
    fast.to(memory_format=torch.channels_last)
    steps, chances, shares = list[Tensor](), list[Tensor](), list[_Share]()
    for i in certified:
        shares.append(_Share(subject, x[i], centers[i : i + 1], names, spec.r))
        steps.append(_steps(fast, x[i], _SHARE * float(one.radius[i]), each, generator))
        chances.append(shares[-1].screened(fast, steps[-1], spec.screen, generator))
    results = dict[str, dict[str, Any]]()
    for name, chance in zip(names, torch.cat(chances, 1), strict=True):
        worst = chance.argsort()[: spec.worst].tolist()
        violations, least = 0, 1.0
        for k in worst:
            row, place = divmod(k, each)
            step, inside, draws = steps[row][place : place + 1], 0, 0
            low, high = 0.0, 1.0
            while draws < spec.fresh and low <= spec.m < high:
                count = min(-(-spec.fresh // 100), spec.fresh - draws)
                inside += shares[row].inside(step, name, count, generator)
                draws += count
                ends = clopper_pearson(inside, draws, _CONFIDENCE)
                low, high = (float(torch.as_tensor(end)) for end in ends)
            violations += int(high <= spec.m)
            least = min(least, inside / draws)
        results[name] = {
            **result,
            "perturbations": sum(map(len, steps)),
            "judged": len(worst),
            "least": least,
            "violations": violations,
        }
    return results


def _steps(fast: VAE, x: Tensor, radius: float, count: int, generator: torch.Generator) -> Tensor:
    """Half climbed for the reconstruction of the mean, half random, all of one length."""

    def project(step: Tensor) -> Tensor:
        size = step.flatten(1).norm(dim=1).clamp_min(1e-30)
        return radius * step / size.view(-1, *[1] * (step.ndim - 1))

    step = project(rv.seeding.randn(count, *x.shape, like=x, generator=generator))
    clean = fast.decode(fast.encode(x[None].to(fast.dtype)).mean).mean
    climbed = list[Tensor]()
    for part in step[: count // 2].split(_ROWS):
        # 12 steps from a random start reach what a longer search does here, within a few %
        for _ in range(12):
            part = part.detach().requires_grad_(True)
            moved = fast.decode(fast.encode((x + part).to(fast.dtype)).mean).mean - clean
            (grad,) = torch.autograd.grad(moved.double().square().sum(), part)
            part = project(part.detach() + project(grad))
        climbed.append(part)
    return torch.cat([*climbed, step[count // 2 :]])


@final
@dataclass(frozen=True, eq=False)
class _Share:
    """How many draws stay within r of what they are compared with, for changes of one input.

    Attributes:
        subject: The victim.
        x: The input, (C, H, W).
        center: What displacements are measured from, (1, ...), unless they are paired.
        displacements: Of the certificates.
        r: Of the certificates.
    """

    subject: rv.Victim
    x: Tensor
    center: Tensor
    displacements: tuple[str, ...]
    r: float

    @torch.no_grad()
    def inside(
        self, step: Tensor, displacement: str, draws: int, generator: torch.Generator
    ) -> int:
        """Of so many fresh draws for one perturbation, (1, C, H, W), of the victim as it is."""
        image, inside, other = self.x + step, 0, self.center
        for count in _parts(draws):
            output = self._outputs(image, count, generator)
            if displacement == "paired":
                other = self._outputs(self.x[None], count, generator)
            inside += int((self._gaps(output, other) <= self.r).sum())
        return inside

    @torch.no_grad()
    def screened(self, fast: VAE, steps: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """The share of draws of a fast copy that stay, (displacements, N), less a trifle.

        The trifle ranks those of equal shares by their mean distance. Partners of "paired"
        displacements are shared: the worst are judged by draws of their own.
        """
        noise = self.subject.noise
        others = {name: [self.center] * draws for name in self.displacements}
        if "paired" in others:
            others["paired"] = list(self._outputs(self.x[None], draws, generator).split(1))
        shares = []
        for part in steps.split(_ROWS):
            images = self.x + part
            moved = None if noise else self._posterior(images)
            share = torch.zeros(len(others), len(part), dtype=torch.float64)
            for draw in range(draws):
                if noise:
                    rows = noise.noisy(images, generator=generator).to(fast.dtype)
                    z = noise.defense(fast, rows, generator=generator)
                else:
                    z = _latents(moved, 1, generator).to(fast.dtype)
                output = fast.decode(z).mean
                for place, partners in enumerate(others.values()):
                    gaps = self._gaps(output, partners[draw])
                    share[place] += (gaps <= self.r).double() - 1e-6 * gaps / self.r
            shares.append(share / draws)
        return torch.cat(shares, 1)

    def _outputs(self, image: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """So many outputs of the victim as it is for one image, (1, C, H, W)."""
        if self.subject.noise:
            rows = image.expand(count, *self.x.shape)
            return self.subject.reconstruct(rows, generator=generator)
        z = _latents(self._posterior(image), count, generator)
        return self.subject.vae.decode(z).mean

    def _posterior(self, images: Tensor) -> Any:
        """Of perturbed images, as the displacement spreads it."""
        moved: Any = self.subject.vae.encode(images)
        if "centered" not in self.displacements:
            return moved
        spread: Any = self.subject.vae.encode(self.x[None])
        return rv.models.Gaussian(moved.mean, spread.stddev.expand_as(moved.mean))

    def _gaps(self, output: Tensor, other: Tensor) -> Tensor:
        return (output.double() - other.double()).flatten(1).norm(dim=1)


def _latents(posterior: Any, count: int, generator: torch.Generator) -> Tensor:
    """So many latents of each image, (count N, d)."""
    return rv.draw(posterior, (count,), generator=generator).flatten(0, 1)


def _parts(draws: int) -> list[int]:
    """So many draws in parts that fit a cache."""
    return [min(_ROWS, draws - start) for start in range(0, draws, _ROWS)]
