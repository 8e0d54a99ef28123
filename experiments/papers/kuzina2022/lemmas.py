"""[Kuzina22] Lemmas 1 and 2 and Theorem 1, numerically, where the posterior can be integrated.

A VAE with two latent coordinates: log p(x | z) + log p(z) on a grid gives the posterior itself, and
the chain's distribution after t steps is carried exactly (a Metropolis chain on the grid, whose
target is the attacked image's posterior), so that every term of Lemma 2 is a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from robustvae.attacks import Attack, LatentShift
from robustvae.models import VAE
from robustvae.objectives import ELBO
from robustvae.perturb import Ball, ProjectedAscent

EDGE = 5.0  # the prior has less than 1e-5 of its mass beyond


@final
@dataclass(frozen=True)
class Spec:
    """What is trained and integrated.

    Attributes:
        data: To train on and attack.
        train: Training images.
        epochs: Passes over them.
        hidden: Widths of the encoder.
        images: Attacked images, balanced over the classes.
        side: Points of the grid along each coordinate.
        radii: l2 sizes of the attacks, ascending.
        steps: Of the chain.
        reach: Of its proposal, in points of the grid.
        search: Steps of the attack.
    """

    data: str = "mnist"
    train: int = 60_000
    epochs: int = 5
    hidden: tuple[int, ...] = (256, 256)
    images: int = 10
    side: int = 120
    radii: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0)
    steps: tuple[int, ...] = (0, 10, 100)
    reach: int = 3
    search: int = 50


@item(
    "kuzina2022/lemmas",
    "[Kuzina22] Lemma 1, Lemma 2, Theorem 1",
    sizes={
        "smoke": Spec("digits", 256, 1, (16,), 3, 40, (0.01, 0.1, 1.0), (0, 5), 1, 5),
        "laptop": Spec(),
    },
)
def lemmas(spec: Spec, run: Run) -> Result:
    """Rate of the posterior's change, and the three terms of the bound beside the distance."""
    train, test = run.images(spec.data, "train"), run.images(spec.data)
    model = {
        "name": "vae",
        "architecture": "mlp",
        "image_shape": train.image_shape,
        "hidden": list(spec.hidden),
        "latent": 2,
    }
    label = f"lemmas/{spec.data}-{spec.train}-{spec.epochs}-{run.seed}"
    settings: dict[str, Any] = {"batch_size": 128, "lr": 1e-3, "epochs": spec.epochs}
    vae = run.train(label, model, ELBO(), train[: spec.train], **settings)
    x, _ = test.sample(spec.images, stratified=True, generator=run.noise("data"))
    columns = run.part("terms", lambda: _terms(vae, x, spec, run), vae)
    rows: list[Row] = []
    for radius in spec.radii:
        what, values = f"l2 {radius:g}", columns[f"{radius:g}"]
        kl = torch.tensor(values["KL of the posteriors"])
        rows.append(measured(what, "KL of the posteriors, nats", kl.tolist(), section="Lemma 1"))
        rows.append(measured(what, "KL / size", (kl / radius).tolist(), section="Lemma 1"))
        for t in spec.steps:
            section = f"Lemma 2 after {t} steps"
            total, bound = (torch.tensor(values[f"{name}, {t}"]) for name in ("TV", "bound"))
            rows += [
                measured(what, "TV, defended code to clean code", total.tolist(), section=section),
                measured(what, "1: TV, chain to its target", values[f"1, {t}"], section=section),
                measured(what, "2: sqrt(KL of the posteriors / 2)", values["2"], section=section),
                measured(what, "3: sqrt(KL of the encoder / 2)", values["3"], section=section),
                measured(what, "bound", bound.tolist(), section=section),
                Row(what, "violations", int((total > bound + 1e-6).sum()), n=len(x),
                    section=section),
                Row(what, "share where it says nothing (above 1)",
                    float((bound >= 1).double().mean()), n=len(x), section=section),
            ]  # fmt: skip
    few = [(r, torch.tensor(columns[f"{r:g}"]["KL of the posteriors"])) for r in spec.radii[:2]]
    (small, low), (large, high) = few
    rate = (high / low).log() / torch.tensor(large / small).log()
    rows.append(measured("slope of log KL by log size", "slope", rate.tolist(), section="Lemma 1"))
    return run.result(
        "Lemmas 1 and 2 on a VAE with two latent coordinates",
        "nats, total variation in [0, 1]",
        rows,
        (
            f"MLP {spec.hidden}, d = 2, {spec.epochs} epochs; {spec.images} test images; one "
            "symmetric-KL attack a size; posteriors on a grid of "
            f"{spec.side} x {spec.side} points in [-{EDGE:g}, {EDGE:g}]^2.",
            "The chain is Metropolis with a uniform proposal of at most "
            f"{spec.reach} points along each coordinate; its distribution is carried exactly.",
            "Lemma 1 says that KL / size goes to 0 with the size; a slope of 2 is the second order "
            "that the lemma's proof leaves.",
        ),
    )


def _terms(vae: VAE, x: Tensor, spec: Spec, run: Run) -> dict[str, dict[str, list[float]]]:
    ticks = torch.linspace(-EDGE, EDGE, spec.side, dtype=torch.float64)
    z = torch.cartesian_prod(ticks, ticks).to(vae.dtype)
    victim, columns = rv.Victim(vae), dict[str, dict[str, list[float]]]()

    def posterior(y: Tensor) -> Tensor:
        """log p(z | x) of each image on the grid, (B, side^2), normalized."""
        prior = -0.5 * z.double().square().sum(1)
        parts = []
        with torch.no_grad():
            for part in z.split(4000):
                decoded = vae.decode(part)
                parts.append(torch.stack([_log_likelihood(decoded, image) for image in y]))
        return (torch.cat(parts, 1) + prior).log_softmax(1)

    def encoded(y: Tensor) -> Tensor:
        """log q(z | x) of each image on the grid, (B, side^2), normalized."""
        with torch.no_grad():
            q = vae.encode(y)
        gaps = (z - q.mean[:, None]).double() / q.stddev[:, None].double()
        return (-0.5 * gaps.square().sum(2)).log_softmax(1)

    clean, code = posterior(x), encoded(x)
    for radius in run.each(spec.radii):
        search = ProjectedAscent(steps=spec.search, restarts=1)
        attack = Attack(LatentShift("symmetric_kl"), search, Ball("l2", radius))
        y = attack(victim, x, generator=run.noise(f"l2 {radius:g}")).x_adv
        target, chain = posterior(y), encoded(y).exp()
        second, third = _kl(clean, target), _kl(code, clean)
        values: dict[str, list[float]] = {
            "KL of the posteriors": second.tolist(),
            "2": (second / 2).sqrt().tolist(),
            "3": (third / 2).sqrt().tolist(),
        }
        done = 0
        for t in spec.steps:
            for _ in range(t - done):
                chain = _metropolis(chain, target, spec)
            done = t
            first = _tv(chain, target.exp())
            values[f"1, {t}"] = first.tolist()
            values[f"TV, {t}"] = _tv(chain, code.exp()).tolist()
            values[f"bound, {t}"] = (first + (second / 2).sqrt() + (third / 2).sqrt()).tolist()
        columns[f"{radius:g}"] = values
        run.progress(f"l2 {radius:g}")
    return columns


def _log_likelihood(decoded: Any, image: Tensor) -> Tensor:
    values: Tensor = decoded.log_prob(image.expand(decoded.mean.shape)).flatten(1).double().sum(1)
    return values


def _kl(one: Tensor, other: Tensor) -> Tensor:
    return (one.exp() * (one - other)).sum(1).clamp_min(0)


def _tv(one: Tensor, other: Tensor) -> Tensor:
    return 0.5 * (one - other).abs().sum(1)


def _metropolis(chain: Tensor, target: Tensor, spec: Spec) -> Tensor:
    """The chain's distribution after one more step; a proposal beyond the edge is refused."""
    side, reach = spec.side, spec.reach
    q, log_p = chain.view(-1, side, side), target.view(-1, side, side)
    moved, count = q.clone(), (2 * reach + 1) ** 2 - 1
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            if i == j == 0:
                continue
            here = (slice(max(0, -i), side - max(0, i)), slice(max(0, -j), side - max(0, j)))
            there = (slice(max(0, i), side - max(0, -i)), slice(max(0, j), side - max(0, -j)))
            start, end = log_p[:, here[0], here[1]], log_p[:, there[0], there[1]]
            flow = q[:, here[0], here[1]] * (end - start).clamp(max=0).exp() / count
            moved[:, here[0], here[1]] -= flow
            moved[:, there[0], there[1]] += flow
    return moved.view_as(chain)
