"""A Lipschitz-VAE trained on for its certificate, beside one that is trained on as it was.

The loss takes a weight times the free envelope's reach off, which the centered certificate grows
with, and adds another one times the distance that an attack in the latent space makes of two
outputs. The control is a smaller constant of the decoder, which buys radius as well.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

import robustvae as rv
from experiments.harness import Result, Run, item
from experiments.harness.rows import Row, measured
from robustvae.training import optimizer_of

M = 0.5
_MOVES = 65  # of a logit, from -16 to 16: the reach is a training signal, no bound


@final
@dataclass(frozen=True)
class Spec:
    """What is trained and measured.

    Attributes:
        model: A Lipschitz-VAE with a fixed spread, which training goes on from.
        data: Its data set.
        inputs: Test images of the margins, of a sample of at least 100 that is balanced.
        r: Tolerated distance of the outputs.
        weights: Of the envelope's reach and of the attack's distance, for each run.
        constants: The decoder's, of runs without either.
        multiplier: Of the envelope.
        size: Of the attack, in the latent space.
        steps: Of training, with batches of 128.
        lr: Learning rate.
        starts: Of the attack on the margin.
        ascents: Its steps.
    """

    model: str = "mnist-lipschitz-10"
    data: str = "mnist"
    inputs: int = 20
    r: float = 8.0
    weights: tuple[tuple[float, float], ...] = ((0.0, 0.0), (10.0, 0.0), (10.0, 10.0))
    constants: tuple[float, ...] = (9.3,)
    multiplier: float = 0.0175
    size: float = 7.0
    steps: int = 100
    lr: float = 1e-4
    starts: int = 3
    ascents: int = 30


@item(
    "own/lipschitz-training",
    sizes={
        "smoke": Spec(
            "digits-lipschitz-vae",
            "digits",
            2,
            1.0,
            weights=((1.0, 1.0),),
            constants=(),
            multiplier=0.03,
            size=0.5,
            steps=1,
            starts=1,
            ascents=1,
        ),
        "laptop": Spec(),
    },
)
def lipschitz_training(spec: Spec, run: Run) -> Result:
    """Certified and attacked margins after training for the certificate, and what it costs."""
    start = run.model(spec.model)
    count = max(spec.inputs, 100)
    test, _ = run.images(spec.data).sample(count, stratified=True, generator=rv.generator(run.seed))
    train = run.images(spec.data, split="train").x
    plans: list[tuple[str, float, float, float | None]] = [
        (f"envelope {reach:g}, attack {distance:g}", reach, distance, None)
        for reach, distance in spec.weights
    ]
    plans += [(f"decoder's constant {a:g}", 0.0, 0.0, a) for a in spec.constants]
    rows, values = list[Row](), dict[str, Any]()

    def finished(plan: tuple[str, float, float, float | None] | None) -> dict[str, Any]:
        vae = _with_constant(start, None if plan is None else plan[3])
        if plan is not None:
            _train(vae, train.to(vae.dtype), (plan[1], plan[2]), spec, run.seed)
        return _measured(vae, test.to(vae.dtype), spec, run.seed)

    for plan in run.each((None, *plans)):
        name = "as stored" if plan is None else plan[0]
        values[name] = run.part(name, functools.partial(finished, plan), start)
        rows += [measured(name, w, n) for w, n in values[name].items()]
        run.progress(name)
    return run.result(
        f"Training for the certificate: {spec.model}",
        "pixel units",
        rows,
        (
            f"{spec.steps} steps of 128 images, rate {spec.lr:g}; {spec.inputs} test images, "
            f"r = {spec.r:g}, m = {M}, evaluated in float64, unconstrained pixels; errors of "
            f"{count} images; attack: {spec.starts} starts of {spec.ascents} steps.",
        ),
        values,
    )


def _with_constant(start: rv.VAE, constant: float | None) -> rv.VAE:
    """A copy of the model, with another constant of its decoder where one is asked for."""
    options = dict(start.config)
    if constant is not None:
        options["decoder_lipschitz"] = constant
    vae = rv.models.create("lipschitz-vae", **options).to(start.dtype)
    vae.load_state_dict(start.state_dict())
    return vae


def _train(vae: rv.VAE, train: Tensor, weights: tuple[float, float], spec: Spec, seed: int) -> None:
    """Training goes on, with weights of the envelope's reach and of the attack's distance."""
    objective, optimizer = rv.objectives.ELBO(), optimizer_of(vae.train(), spec.lr)
    decoder, g = vae.get_submodule("decoder"), rv.generator(seed)
    for _ in range(spec.steps):
        x = train[torch.randint(len(train), (128,), generator=g)]
        loss = objective.terms(vae, x, generator=g)["loss"].mean()
        z = vae.encode(x).mean
        if weights[0]:
            loss = loss - weights[0] * _reach(decoder(z).flatten(1), spec).mean()
        if weights[1]:
            step = _farthest(vae, z.detach(), spec, g)
            gap = vae.decode(z + step).mean - vae.decode(z).mean
            loss = loss + weights[1] * gap.flatten(1).norm(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        vae.after_step()
    vae.finalize()
    vae.eval()


def _reach(logits: Tensor, spec: Spec) -> Tensor:
    """The free envelope's reach at one multiplier, (B,), with its slope in the logits."""
    with torch.no_grad():
        clean, best, move = logits.sigmoid(), torch.zeros_like(logits), torch.zeros_like(logits)
        for e in torch.linspace(-16, 16, _MOVES).tolist():
            gain = ((logits + e).sigmoid() - clean).square() - spec.multiplier * e * e
            move = torch.where(gain > best, e, move)
            best = torch.maximum(best, gain)
    gain = ((logits + move).sigmoid() - logits.sigmoid()).square() - spec.multiplier * move.square()
    return ((spec.r**2 - gain.sum(1)).clamp_min(1e-3) / spec.multiplier).sqrt()


def _farthest(vae: rv.VAE, z: Tensor, spec: Spec, g: torch.Generator) -> Tensor:
    """Movements of the latents that bring the outputs far, by five steps, (B, d)."""
    step = torch.randn(z.shape, generator=g, dtype=z.dtype)
    step = step / step.norm(dim=1, keepdim=True) * spec.size
    clean = vae.decode(z).mean.detach()
    for _ in range(5):
        step.requires_grad_(True)
        gap = (vae.decode(z + step).mean - clean).flatten(1).norm(dim=1).sum()
        (slope,) = torch.autograd.grad(gap, step)
        step = slope / slope.norm(dim=1, keepdim=True).clamp_min(1e-12) * spec.size
    return step.detach()


@torch.no_grad()
def _measured(vae: rv.VAE, test: Tensor, spec: Spec, seed: int) -> dict[str, Any]:
    """Margins of the first inputs, and errors of all."""
    exact, x, g = _with_constant(vae, None).double(), test[: spec.inputs], rv.generator(seed)
    victim = rv.Victim(vae)
    errors = (victim.reconstruct(test, generator=g) - test).flatten(1).square().sum(1)
    loss = rv.objectives.ELBO().terms(vae, test, generator=g)["loss"]
    radii = {}
    for method, displacement in (("tangent", "centered"), ("noncentral", "paired")):
        radii[displacement] = rv.certify(
            exact,
            x.double(),
            spec.r,
            M,
            displacement,
            methods=[method],
            generator=rv.generator(seed),
        ).radius
    budget = rv.robustness.Budget(starts=spec.starts, steps=spec.ascents, draws=2000)
    with torch.enable_grad():
        attacked = rv.estimate_margin(
            victim, x, spec.r, M, "centered", box=False, budget=budget, generator=g
        ).value
    return {
        "certified, centered": radii["centered"],
        "attacked": attacked,
        "certified / attacked": radii["centered"] / attacked,
        "certified above attacked": (radii["centered"] > attacked).double(),
        "certified, paired": radii["paired"],
        "squared error of a draw": errors,
        "-ELBO, nats": loss,
    }
