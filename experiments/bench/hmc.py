"""One HMC transition against its floor: L forward and backward passes of the decoder.

The floor decodes the batch and pulls one fixed tensor back to the latents, L times, with the
weights laid out the same way; energies, the prior, momenta and the decision come on top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

import robustvae as rv
from experiments.bench.timing import interleaved, ratio, timed_rows
from experiments.harness import Result, Row, Run, item
from robustvae.defenses import RobustTarget, posterior
from robustvae.mcmc import Kernel, State, evaluate, hmc_step
from robustvae.models.base import frozen
from robustvae.models.layout import channels_last


@final
@dataclass(frozen=True)
class Spec:
    """What is timed.

    Attributes:
        model: conv28 with weights of its own; empty takes fresh weights.
        batch: Chains at once.
        leapfrog: Steps of a transition.
        rounds: Of the sides in turn.
    """

    model: str = ""
    batch: int = 100
    leapfrog: int = 20
    rounds: int = 15


@item("bench/hmc", sizes={"smoke": Spec(batch=2, leapfrog=1, rounds=1), "laptop": Spec()})
def hmc(spec: Spec, run: Run) -> Result:
    """One HMC transition, plain and robust, by its floor of decoder passes."""
    g = rv.generator(run.seed)
    vae = rv.models.create("vae", architecture="conv28", latent=64)
    if spec.model:
        vae = run.model(spec.model)
    x = torch.rand(spec.batch, 1, 28, 28, generator=g)
    z = torch.randn(spec.batch, 64, generator=g)
    pull = torch.rand(spec.batch, 1, 28, 28, generator=g)
    x, z, pull = (part.to(vae.dtype) for part in (x, z, pull))

    def floor() -> None:
        at: Tensor = z
        for _ in range(spec.leapfrog):
            at = at.detach().requires_grad_()
            torch.autograd.grad(vae.decode(at).logits, at, pull)  # type: ignore[attr-defined]

    def transition(target: Callable[[Tensor], Tensor], state: State) -> None:
        hmc_step(target, state, Kernel(0.01, spec.leapfrog), generator=g)

    with frozen(vae):
        targets = {
            "hmc": posterior(vae, x),
            "robust, linf": RobustTarget(vae, x, "linf", 0.2),
            "robust, l2": RobustTarget(vae, x, "l2", 2.0),
        }
        with channels_last(vae):
            sides: dict[str, Callable[[], None]] = {"floor": floor}
            for name, target in targets.items():
                sides[name] = partial(transition, target, evaluate(target, z))
            floor()
            times = interleaved(sides, spec.rounds)
        plain = interleaved({"floor without channels last": floor}, max(1, spec.rounds // 3))
    rows = timed_rows(times | plain)
    rows += [Row(name, "times the floor", ratio(times, name, "floor")) for name in targets]
    return run.result(
        "One HMC transition by its floor",
        "milliseconds and ratios",
        rows,
        (f"L = {spec.leapfrog}, batch {spec.batch}, conv28, one thread; at most 1.1 is wanted.",),
        {"seconds": times},
    )
