"""Certificates beside their nearest rivals, each by our own slow reference of its published rule.

- Center smoothing [Kumar & Goldstein, 2021]: a smoothed output's distance from a sample center.
- CROWN [Zhang et al., 2018], with the adaptive lower lines of its published code, against the
  parallel lines used here.
- [Barrett22], Lemma 2.
- Support sets [CIVET, 2025]: intervals over a box of latents that holds the mass m, here by CROWN.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

import robustvae as rv
from experiments.harness import Result, Run, item
from experiments.harness.rows import Row, measured
from robustvae.certificates import Encoder
from robustvae.certificates.constants import OUTPUT_SLOPES
from robustvae.certificates.methods.sampling import upper_index
from robustvae.certificates.networks import composition_of
from robustvae.certificates.propagation import Relaxation
from robustvae.robustness import displacements

FACTOR = 3.0  # of center smoothing with a center among the samples: 1 + beta, beta = 2
GAP = 0.05  # Delta of their rule, as they have it


@final
@dataclass(frozen=True)
class Spec:
    """What is compared.

    Attributes:
        noisy: A model trained under noise, of smoothing.
        plain: A model of dense layers with ReLU, of linear bounds.
        lipschitz: A Lipschitz-VAE, of [Barrett22].
        data: Their data set.
        stddev: Of the noise.
        r: Of smoothing, one after the other.
        paired: r of [Barrett22].
        radii: l2, of the linear bounds.
        inputs: Test images.
        draws: Of each smoothing certificate.
    """

    noisy: str = "digits-vae-noise"
    plain: str = "digits-vae"
    lipschitz: str = "digits-lipschitz-vae"
    data: str = "digits"
    stddev: float = 0.25
    r: tuple[float, ...] = (1.5, 4.0)
    paired: float = 1.5
    radii: tuple[float, ...] = (0.05, 0.2, 0.5)
    inputs: int = 20
    draws: int = 10_000


@item(
    "bench/certificate-peers",
    sizes={"smoke": Spec(inputs=2, draws=300, radii=(0.2,)), "laptop": Spec()},
)
def certificate_peers(spec: Spec, run: Run) -> Result:
    """Center smoothing, CROWN and [Barrett22] beside ours, in one run."""
    x, _ = run.images(spec.data).sample(
        spec.inputs, stratified=True, generator=rv.generator(run.seed)
    )
    rows = [*_smoothing(spec, run, x), *_linear(spec, run, x), *_barrett(spec, run, x)]
    rows += _support(spec, run, x)
    return run.result(
        "Certificates beside their rivals",
        "pixel units; standard deviations of the latent",
        rows,
        (
            f"{spec.inputs} test images (balanced), m = 0.5. Smoothing: {spec.noisy}, noise "
            f"{spec.stddev:g}, {spec.draws:,} draws, confidence 0.999; center "
            "smoothing speaks of the smoothed output's own movement, ours of single outputs about "
            f"a fixed center. Linear bounds: ||Sigma^(-1/2) Delta mu|| of {spec.plain}, lower is "
            f"better. [Barrett22]: {spec.lipschitz}, paired, r = {spec.paired:g}. "
            "Support sets: the tolerance certified at a size, models as they are, beside the "
            "median displacement of 1,000 draws without a change.",
        ),
    )


def _smoothing(spec: Spec, run: Run, x: Tensor) -> list[Row]:
    victim = rv.Victim(run.model(spec.noisy), rv.InputNoise(spec.stddev))
    rows = []
    for r in spec.r:
        ours = rv.certify(
            victim, x, r=r, methods=["smoothing"], draws=spec.draws, generator=rv.generator(1)
        )
        theirs = [
            center_smoothing(victim, x[i : i + 1], r, spec.draws, rv.generator(2 + i))
            for i in range(len(x))
        ]
        what = f"certified radius behind noise, r = {r:g}"
        rows.append(measured(what, "ours, full, own center", ours.radius))
        rows.append(measured(what, "center smoothing", torch.tensor(theirs)))
    return rows


@torch.no_grad()
def center_smoothing(
    victim: rv.Victim, x: Tensor, r: float, draws: int, generator: torch.Generator
) -> float:
    """The largest change under which the smoothed output is certified to move by at most r.

    The center is the one of `draws` / 5 outputs with the least median distance to the others,
    within twice the smallest ball of half the mass. Of fresh outputs R bounds the quantile at
    Phi(Phi^-1(1/2 + Delta) + size / s) of their distance from it: then the smoothed output moves by
    at most (1 + 2) R.

    Args:
        victim: With noise on its input.
        x: One image, (1, C, H, W).
        r: Tolerance.
        draws: Of the quantile.
        generator: Spent by the draws.
    """

    def outputs(count: int) -> Tensor:
        parts = [
            victim.reconstruct(x.expand(n, *x.shape[1:]), generator=generator).flatten(1)
            for n in [500] * (count // 500) + [count % 500]
            if n
        ]
        return torch.cat(parts).double()

    samples = outputs(max(30, draws // 5))
    center = samples[torch.cdist(samples, samples).median(1).values.argmin()]
    distances = (outputs(draws) - center).norm(dim=1).sort().values
    noise = victim.noise
    assert noise is not None
    # half of the failure for the center (by Hoeffding within Delta of 1/2), half for the quantile
    if math.exp(-2 * len(samples) * GAP**2) > 5e-4:
        return 0.0
    low, high = 0.0, 5 * noise.stddev
    for _ in range(30):
        size = (low + high) / 2
        normal = torch.special.ndtri(torch.tensor(0.5 + GAP, dtype=torch.float64))
        level = float(torch.special.ndtr(normal + size / noise.stddev))
        place = upper_index(draws, level, 5e-4)
        holds = place is not None and FACTOR * float(distances[place - 1]) <= r
        low, high = (size, high) if holds else (low, size)
    return low


def _linear(spec: Spec, run: Run, x: Tensor) -> list[Row]:
    vae = copy.deepcopy(run.model(spec.plain)).double().requires_grad_(False)
    encoder, images = Encoder(vae), x.double()
    stddev = encoder.posterior(images).stddev
    layers = [part for part in encoder.networks[0].modules() if not list(part.children())]
    rows = []
    for radius in spec.radii:
        ours = encoder.over(images, torch.full((len(x),), radius, dtype=torch.float64))
        low, high = crown(layers, images, radius)
        theirs = (torch.maximum(-low, high).clamp_min(0) / stddev).norm(dim=1)
        what = f"movement in standard deviations, l2 {radius:g}"
        rows += [
            measured(what, "ours, parallel lines", ours.mean.length(1 / stddev)),
            measured(what, "CROWN, coordinate by coordinate", theirs),
        ]
    return rows


@torch.no_grad()
def crown(layers: list[nn.Module], x: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Bounds on what each output of dense layers with ReLU moves by over an l2 ball, (B, d) each.

    Zhang et al., 2018: every layer's interval by full backward substitution; the upper line of an
    unstable unit joins its ends, the lower one is 0 or the identity, whichever leaves less area.

    Args:
        layers: `nn.Flatten`, `nn.Linear` and `nn.ReLU`.
        x: Centers, (B, ...), float64.
        radius: Of each ball.
    """
    center, maps, lines = x.flatten(1), list[nn.Linear](), list[tuple[Tensor, ...]]()

    def substituted(rows: Tensor, sign: float) -> Tensor:
        """Upper bounds on sign times the rows applied to the last layer's output, (B, n)."""
        coefficients = sign * rows.expand(len(x), *rows.shape)
        constant = torch.zeros(len(x), len(rows), dtype=x.dtype)
        for k in range(len(maps) - 1, -1, -1):
            if k < len(lines):
                lower, upper, offset = lines[k]
                positive, negative = coefficients.clamp_min(0), coefficients.clamp_max(0)
                constant = constant + (positive * offset[:, None]).sum(2)
                coefficients = positive * upper[:, None] + negative * lower[:, None]
            constant = constant + coefficients @ maps[k].bias
            coefficients = coefficients @ maps[k].weight
        value = (coefficients * center[:, None]).sum(2)
        return value + constant + radius * coefficients.norm(dim=2)

    low = high = clean = center
    for layer in layers:
        if isinstance(layer, nn.Linear):
            maps.append(layer)
            rows = torch.eye(layer.out_features, dtype=x.dtype)
            low, high, clean = -substituted(rows, -1.0), substituted(rows, 1.0), layer(clean)
        elif isinstance(layer, nn.ReLU):
            upper = torch.where(low >= 0, 1.0, torch.where(high <= 0, 0.0, high / (high - low)))
            lower = torch.where(high > -low, 1.0, 0.0)
            lower = torch.where(low >= 0, 1.0, torch.where(high <= 0, 0.0, lower))
            lines.append((lower, upper, torch.where((low < 0) & (high > 0), -upper * low, 0.0)))
            clean = clean.clamp_min(0)
    return low - clean, high - clean


def _barrett(spec: Spec, run: Run, x: Tensor) -> list[Row]:
    vae = copy.deepcopy(run.model(spec.lipschitz)).double()
    question = rv.Question(r=spec.paired, displacement="paired", box=False)
    rows = []
    for name, method in (
        ("[Barrett22] Lemma 2", "barrett"),
        ("ours, deterministic", "noncentral"),
        ("ours, sampled reach", "sampled_reach:draws=64,steps=60"),
    ):
        lower = rv.certify(
            vae, x.double(), question=question, methods=[method], generator=rv.generator(1)
        )
        rows.append(measured("certified radius, paired", name, lower.radius))
    return rows


def _support(spec: Spec, run: Run, x: Tensor) -> list[Row]:
    rows = []
    for name in (spec.plain, spec.lipschitz):
        vae = copy.deepcopy(run.model(name)).double().requires_grad_(False)
        images = x.double()
        for size in (0.0, 0.1):
            tolerance = support_set(vae, images, size)
            rows.append(measured(f"tolerance at size {size:g}", f"support set, {name}", tolerance))
        clean = displacements(
            rv.Victim(vae), images, images, "full", generator=rv.generator(0), draws=1000
        )
        rows.append(measured("median of draws", f"support set, {name}", clean.median(0).values))
    return rows


def support_set(vae: rv.VAE, x: Tensor, size: float, m: float = 0.5) -> Tensor:
    """The tolerance that every change of a size keeps with probability m, by a support set, (B,).

    The box of latents that holds the mass m of every posterior of the ball, coordinate by
    coordinate, and linear bounds of the decoder over that box around the clean mean.

    Args:
        vae: A `vae` or `lipschitz-vae` in float64.
        x: Images, (B, C, H, W), float64.
        size: l2 of the change.
        m: Mass of the support set.
    """
    parts, encoder = composition_of(vae), Encoder(vae)
    assert parts.decoder is not None
    movement = encoder.over(x, torch.full((len(x),), size, dtype=torch.float64))
    share = torch.tensor((1 + m ** (1 / vae.latent)) / 2, dtype=torch.float64)
    widths = torch.maximum(-movement.mean.lower, movement.mean.upper).clamp_min(0)
    widths = widths + torch.special.ndtri(share) * movement.most
    slope = OUTPUT_SLOPES[parts.likelihood]
    results = []
    for center, width in zip(movement.mean.value, widths, strict=True):
        scale = nn.Linear(vae.latent, vae.latent, dtype=torch.float64).requires_grad_(False)
        scale.weight.copy_(width.diag())
        scale.bias.copy_(center)
        box = Relaxation(nn.Sequential(scale, parts.decoder), shape=(vae.latent,))
        one = torch.ones(1, dtype=torch.float64)
        (ends,) = box.over(torch.zeros(1, vae.latent, dtype=torch.float64), one, norm="linf")
        logits = ends.value.flatten(1)
        far = torch.maximum(-ends.lower, ends.upper).flatten(1)
        if parts.likelihood == "gaussian":
            moved = far
        else:  # a sigmoid moves by at most its slope times that, and never out of [0, 1]
            high = torch.sigmoid(logits + far) - torch.sigmoid(logits)
            low = torch.sigmoid(logits) - torch.sigmoid(logits - far)
            moved = torch.minimum(slope * far, torch.maximum(high, low))
        results.append(moved.norm(dim=1))
    return torch.cat(results)
