"""[Camuto21] Eq. 6: what the beta-VAE's objective comes to, and whether it shrinks Jacobians.

With a Gaussian likelihood of variance 1, the encoder's covariance optimal to first order is
(I + J'J / beta)^-1, J the decoder's Jacobian, and the objective becomes

    |x - g(mu)|^2 / 2 + beta / 2 |mu|^2 + beta / 2 log det(I + J'J / beta).

Eq. 6 has the squared Frobenius norm of the encoder's Jacobian in place of |mu|^2: the same on
average where mu is linear and inputs are white. Both stand beside the objective that was trained,
and Eq. 6 is trained itself.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from robustvae.metrics import kl_to_standard_normal
from robustvae.models import VAE
from robustvae.objectives import ELBO
from robustvae.objectives.base import Objective
from robustvae.seeding import draw

LR, BATCH, DRAWS = 1e-3, 128, 16


@final
@dataclass(frozen=True)
class LinearizedELBO:
    """Eq. 6 as a loss.

    Args:
        beta: Weight of the KL that it stands for, positive.
    """

    beta: float

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The loss of each image, (B,)."""
        return self.terms(vae, x, generator=generator)["loss"]

    def terms(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
        """Its three terms, and |mu|^2 beta / 2 as "code", (B,)."""
        x = x.detach().requires_grad_(True)
        mean = vae.encode(x).mean
        rows = [
            torch.autograd.grad(mean[:, i].sum(), x, create_graph=True)[0].flatten(1)
            for i in range(mean.shape[1])
        ]
        slope = torch.stack(rows, 1).square().sum((1, 2))
        output = vae.decode(mean).mean
        terms = {
            "distortion": (x - output).flatten(1).square().sum(1) / 2,
            "slope": self.beta / 2 * slope,
            "volume": self.beta / 2 * _log_volume(vae, mean, self.beta),
        }
        loss = torch.stack(list(terms.values())).sum(0)
        return {**terms, "code": self.beta / 2 * mean.square().sum(1), "loss": loss}

    def at(self, step: int) -> Self:
        """The objective at a step: always the same."""
        return self


def _log_volume(vae: VAE, z: Tensor, beta: float) -> Tensor:
    """log det(I + J'J / beta) of the decoder's mean at each code, (B,), with a graph."""
    with torch.enable_grad():
        output = vae.decode(z).mean.flatten(1)
        # J v as the slope of u' J v in u: torch's own forward mode warns of what it imports
        u = torch.zeros_like(output, requires_grad=True)
        (pulled,) = torch.autograd.grad(output, z, u, create_graph=True)
        basis = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        columns = [
            torch.autograd.grad(pulled, u, v.expand_as(z), create_graph=True)[0] for v in basis
        ]
        j = torch.stack(columns, 2)
        volume: Tensor = torch.linalg.slogdet(basis + j.mT @ j / beta)[1]
    return volume


@final
@dataclass(frozen=True)
class Spec:
    """What is trained and measured.

    Attributes:
        data: To train on and measure at.
        betas: In ascending order; the paper's Fig. 8 has these.
        train: Training images.
        epochs: Passes over them.
        hidden: Widths of the encoder, ReLU.
        latent: d.
        inputs: Test images.
    """

    data: str = "mnist"
    betas: tuple[float, ...] = (0.1, 1.0, 10.0)
    train: int = 4_000
    epochs: int = 6
    hidden: tuple[int, ...] = (200,)
    latent: int = 8
    inputs: int = 100


@item(
    "camuto2021/eq-6",
    "[Camuto21] Eq. 6, section 5",
    sizes={
        "smoke": Spec("digits", (0.01, 0.1), 200, 2, (16,), 2, 10),
        "laptop": Spec(),
        "full": Spec(train=60_000, epochs=30, hidden=(512, 512), latent=20, inputs=1_000),
    },
)
def linearized(spec: Spec, run: Run) -> Result:
    """The beta-VAE's objective beside Eq. 6 at trained models, and models that Eq. 6 trained."""
    train, test = run.images(spec.data, "train"), run.images(spec.data)
    part = train[train.choose(spec.train, stratified=True, generator=rv.generator(0))]
    x, _ = test.sample(spec.inputs, stratified=True, generator=run.noise("inputs"))
    options: dict[str, Any] = {
        "name": "vae",
        "architecture": "mlp",
        "image_shape": part.image_shape,
        "hidden": list(spec.hidden),
        "latent": spec.latent,
        "likelihood": "gaussian",
        "scale": 1.0,
    }
    settings: dict[str, Any] = {"epochs": spec.epochs, "batch_size": BATCH, "lr": LR}
    rows, slopes = list[Row](), dict[str, list[list[float]]]()
    for beta in run.each(spec.betas):
        kinds: dict[str, Objective] = {"ELBO": ELBO(beta=beta), "Eq. 6": LinearizedELBO(beta)}
        for kind, objective in run.each(kinds.items()):
            label = f"eq-6/{spec.data}-{kind[:2]}-{beta:g}-{spec.train}-{spec.epochs}-{run.seed}"
            vae = run.train(label, options, objective, part, **settings)
            compute = functools.partial(_measure, vae, x.to(vae.dtype), beta, run)
            found = run.part(f"{kind}, beta = {beta:g}", compute, vae)
            for key, values in found.items():
                row = measured(f"beta = {beta:g}", key, values, section=f"Trained by {kind}")
                rows.append(row)
            slopes.setdefault(kind, []).append(found[SLOPE])
            run.progress(f"{kind}, beta = {beta:g}: {rows[-1].cell}")
    for kind, by_beta in slopes.items():
        pairs = zip(by_beta[0], by_beta[-1], strict=True)
        change = measured("", "", [after / before - 1 for before, after in pairs])
        falls = change.measured < -2 * change.stderr
        section = f"The encoder's Jacobian, beta = {spec.betas[0]:g} to {spec.betas[-1]:g}"
        text = f"{100 * change.measured:+.1f} ± {100 * change.stderr:.1f} %"
        rows.append(
            Row(f"trained by {kind}", "change", change.measured, section=section, text=text)
        )
        text = "falls, as the paper says" if falls else "does not fall"
        rows.append(Row(f"trained by {kind}", "verdict", float(falls), section=section, text=text))
    return run.result(
        f"The beta-VAE's objective and Eq. 6: {spec.data}",
        "nats and pixel units",
        rows,
        (
            f"MLPs {spec.hidden}, ReLU, d = {spec.latent}, Gaussian of variance 1 (the constant is "
            f"left out), {spec.epochs} epochs on {spec.train:,} images, Adam at {LR:g}, one run "
            f"each; {spec.inputs} test images, {DRAWS} draws.",
            "Objective: |x - g(z)|^2 / 2 + beta KL over draws of the encoder. Its expansion has "
            "|mu|^2, Eq. 6 the encoder's Jacobian in its place; gap: what they are above it, in "
            "shares of it.",
        ),
    )


SLOPE = "encoder's Jacobian, Frobenius"


def _measure(vae: VAE, x: Tensor, beta: float, run: Run) -> dict[str, list[float]]:
    g = run.noise("draws")
    with torch.no_grad():
        q = vae.encode(x)
        errors = [
            (vae.decode(draw(q, generator=g)).mean - x).flatten(1).square().sum(1) / 2
            for _ in range(DRAWS)
        ]
        objective = torch.stack(errors).mean(0) + beta * kl_to_standard_normal(q.mean, q.stddev)
    terms = LinearizedELBO(beta).terms(vae, x, generator=g)
    expansion = terms["loss"] - terms["slope"] + terms["code"]
    found = {
        "objective": objective,
        "expansion": expansion,
        "Eq. 6": terms["loss"],
        "expansion, gap": expansion / objective - 1,
        "Eq. 6, gap": terms["loss"] / objective - 1,
        SLOPE: (2 / beta * terms["slope"]).sqrt(),
        "error": terms["distortion"] * 2,
    }
    return {key: values.detach().tolist() for key, values in found.items()}
