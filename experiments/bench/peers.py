"""Projected ascent beside torchattacks, foolbox and ART: the same objective, the same gradients.

All climb ||g(mu(y)) - g(mu(x))||^2 on the same images in batches of one size, with the weights
frozen; what each ends with is judged by the same call. The others run projected gradient ascent
with their own random starts and the step that their authors advise, 2.5 / steps of the radius; of
their restarts, which are rows of the batch, the best is kept, as of ours. `robustvae doctor` says
how to install them: torchattacks asks for an old `requests` and for torchvision, which nothing here
needs.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from robustvae.models.base import frozen
from robustvae.perturb import Ball
from robustvae.seeding import seeded

OURS = "robustvae"
_STEP = 2.5  # times radius / steps: what Madry et al. advise and all three document
_LONG = 50  # steps of a restart; where a budget is larger, twice as many


@final
@dataclass(frozen=True)
class Spec:
    """What is compared.

    Attributes:
        models: Zoo models.
        data: Their data sets.
        balls: Norm and radius, such as "linf:0.1".
        budgets: Gradients for each input.
        images: Attacked images of each model.
        batch: Rows, images x restarts, of one call.
        peers: Who is beside ours, of those that are installed.
    """

    models: tuple[str, ...] = ("mnist-conv28", "fashion-conv28")
    data: tuple[str, ...] = ("mnist", "fashion_mnist")
    balls: tuple[str, ...] = ("linf:0.1", "l2:1")
    budgets: tuple[int, ...] = (50, 500, 5000)
    images: int = 6
    batch: int = 250
    peers: tuple[str, ...] = ("torchattacks", "foolbox", "art")


class _Logits(nn.Module):
    """Two logits whose cross-entropy with class 0 is the softplus of the objective."""

    def __init__(self, vae: rv.VAE) -> None:
        super().__init__()
        self.vae = vae
        self.clean = torch.zeros(0)

    def objective(self, y: Tensor) -> Tensor:
        """Squared damage of each row, (n,)."""
        picture = self.vae.decode(self.vae.encode(y).mean).mean
        return (picture - self.clean).flatten(1).square().sum(1)

    def forward(self, y: Tensor) -> Tensor:
        value = self.objective(y)
        return torch.stack([torch.zeros_like(value), value], 1)


Peer = Callable[[_Logits, Tensor, Ball, int], Tensor]


def _torchattacks(model: _Logits, x: Tensor, ball: Ball, steps: int) -> Tensor:
    import torchattacks

    kind = torchattacks.PGD if ball.norm == "linf" else torchattacks.PGDL2
    radius = float(ball.radius)
    attack = kind(model, eps=radius, alpha=_STEP * radius / steps, steps=steps, random_start=True)
    result: Tensor = attack(x, torch.zeros(len(x), dtype=torch.long))
    return result


def _foolbox(model: _Logits, x: Tensor, ball: Ball, steps: int) -> Tensor:
    import eagerpy
    import foolbox

    kind = foolbox.attacks.LinfPGD if ball.norm == "linf" else foolbox.attacks.L2PGD
    radius = float(ball.radius)
    attack = kind(abs_stepsize=_STEP * radius / steps, steps=steps, random_start=True)

    def loss(inputs: Any) -> Any:
        return eagerpy.astensor(model.objective(inputs.raw).sum())

    attack.get_loss_fn = lambda victim, labels: loss
    victim = foolbox.PyTorchModel(model.eval(), bounds=(0, 1))
    criterion = foolbox.criteria.Misclassification(torch.zeros(len(x), dtype=torch.long))
    result: Tensor = attack.run(victim, x, criterion, epsilon=radius)
    return result


def _art(model: _Logits, x: Tensor, ball: Ball, steps: int) -> Tensor:
    import numpy as np
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    victim = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(reduction="sum"),
        input_shape=tuple(x.shape[1:]),
        nb_classes=2,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    radius = float(ball.radius)
    attack = ProjectedGradientDescent(
        victim,
        norm=np.inf if ball.norm == "linf" else 2,
        eps=radius,
        eps_step=_STEP * radius / steps,
        max_iter=steps,
        num_random_init=1,
        batch_size=len(x),
        verbose=False,
    )
    labels = np.eye(2, dtype=np.float32)[np.zeros(len(x), dtype=int)]
    return torch.from_numpy(attack.generate(x.numpy(), labels))


PEERS: dict[str, Peer] = {"torchattacks": _torchattacks, "foolbox": _foolbox, "art": _art}


def shape_of(budget: int) -> tuple[int, int]:
    """Steps and restarts that spend a budget of gradients."""
    steps = _LONG if budget < 100 * _LONG else 2 * _LONG
    steps = min(steps, budget)
    return steps, max(1, budget // steps)


def _by_peer(peer: Peer, vae: rv.VAE, x: Tensor, ball: Ball, budget: int, batch: int) -> Tensor:
    """The best damage of a peer's restarts on each image, (B,)."""
    steps, restarts = shape_of(budget)
    model, best = _Logits(vae), torch.zeros(len(x))
    with torch.no_grad():
        clean = vae.decode(vae.encode(x).mean).mean
    at_once = max(1, batch // len(x))
    for begin in range(0, restarts, at_once):
        count = min(at_once, restarts - begin)
        model.clean = clean.repeat(count, 1, 1, 1)
        images = x.repeat(count, 1, 1, 1)
        with frozen(vae):
            y = peer(model, images, ball, steps)
        y = ball.project(images, y.detach())
        with torch.no_grad():
            damage = model.objective(y).sqrt().view(count, len(x))
        best = torch.maximum(best, damage.amax(0))
    return best


def _ours(vae: rv.VAE, x: Tensor, ball: Ball, budget: int, batch: int, seed: int) -> Tensor:
    steps, restarts = shape_of(budget)
    search = rv.ProjectedAscent(steps=steps, restarts=restarts, chunk=batch)
    attack = rv.Attack(rv.MaximumDamage(), search, ball)
    return attack(rv.Victim(vae), x, generator=rv.generator(seed)).score


@item(
    "bench/peers",
    sizes={
        "smoke": Spec(("digits-vae",), ("digits",), ("linf:0.1",), (4, 8), 2),
        "laptop": Spec(),
    },
)
def peers(spec: Spec, run: Run) -> Result:
    """Damage and time of projected ascent beside torchattacks, foolbox and ART."""
    sides = {name: PEERS[name] for name in spec.peers if importlib.util.find_spec(name)}
    missing = [name for name in spec.peers if name not in sides]
    rows: list[Row] = []
    raw: dict[str, Any] = {}
    for name, data in run.each(zip(spec.models, spec.data, strict=True)):
        vae = run.model(name)
        images = run.images(data)
        x, _ = images.sample(spec.images, stratified=True, generator=rv.generator(run.seed))
        for ball_text in run.each(spec.balls):
            norm, _, radius = ball_text.partition(":")
            ball = Ball(norm, float(radius))
            damage: dict[tuple[str, int], Tensor] = {}
            seconds: dict[tuple[str, int], float] = {}
            for budget in run.each(spec.budgets):
                calls: dict[str, Callable[[], Tensor]] = {
                    OURS: partial(_ours, vae, x, ball, budget, spec.batch, run.seed)
                }
                for side, peer in sides.items():
                    calls[side] = partial(_by_peer, peer, vae, x, ball, budget, spec.batch)
                for side, call in run.each(calls.items()):
                    key = f"{name}, {ball_text}, {budget}, {side}"

                    def measure(call: Callable[[], Tensor] = call) -> list[Any]:
                        with seeded(run.seed):
                            start = time.process_time()
                            values = call().tolist()
                        return [values, time.process_time() - start]

                    values, seconds[side, budget] = run.part(key, measure, vae)
                    damage[side, budget] = torch.tensor(values)
                    raw[key] = {"damage": values, "seconds": seconds[side, budget]}
            best = torch.stack(list(damage.values())).amax(0)
            setting = f"{name}, {norm} {radius}"
            for (side, budget), values in damage.items():
                share = (values / best).tolist()
                rows.append(
                    Row(
                        side,
                        f"{budget} gradients",
                        statistics.fmean(share),
                        n=len(share),
                        section=f"{setting}: share of the best known damage",
                    )
                )
                ratio = seconds[side, budget] / seconds[OURS, budget]
                if side != OURS:
                    rows.append(
                        Row(
                            side,
                            f"{budget} gradients",
                            ratio,
                            section=f"{setting}: CPU time, times ours",
                        )
                    )
    notes = [
        f"{spec.images} images a model, balanced; the best known damage of an image is the "
        f"greatest that any side found with any budget. {_LONG} steps a restart ({2 * _LONG} in "
        f"the largest budget), all restarts in batches of {spec.batch}. One thread, CPU seconds of "
        "the process.",
    ]
    if missing:
        notes.append(f"Not installed, hence not beside ours: {', '.join(missing)}.")
    return run.result("Attacks beside other libraries", "shares, ratios", rows, tuple(notes), raw)
