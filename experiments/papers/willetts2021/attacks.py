"""[Willetts21] Fig. 3, 5, 6 and 7 on stored models: attack objectives, noise and ELBO by beta.

The paper's sets (chairs, faces, CelebA) cannot be had without a download; this is its protocol on
other images: an analogue, never the paper's number. Depth beyond 2 is not trained here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from robustvae.attacks import LatentTarget, OutputTarget, PenaltySweep, noise_robustness, penalties
from robustvae.models import VAE
from robustvae.objectives import ELBO


@final
@dataclass(frozen=True)
class Spec:
    """What is attacked.

    Attributes:
        models: Stored models, by ascending beta.
        data: Their data set.
        pairs: Of an input and a target.
        penalties: How many of the papers' 51, evenly spread.
        steps: Most evaluations of a problem.
        inputs: Test images of noise and ELBO.
        noise: Standard deviations, in pixel units.
    """

    models: tuple[str, ...] = (
        "mnist-conv28",
        "mnist-conv28-tc-2",
        "mnist-conv28-tc-5",
        "mnist-seatbelt-2",
    )
    data: str = "mnist"
    pairs: int = 10
    penalties: int = 51
    steps: int = 200
    inputs: int = 200
    noise: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5)


@item(
    "willetts2021/attacks",
    "[Willetts21] section 5, Fig. 3, 5, 6 and 7",
    sizes={
        "smoke": Spec(("digits-vae",), "digits", 2, 3, 10, 10, (0.0, 0.1)),
        "laptop": Spec(),
    },
)
def attacks(spec: Spec, run: Run) -> Result:
    """Latent and output attack objectives by model, the likelihood under noise, and the ELBO."""
    images, rows = run.images(spec.data), list[Row]()
    x, _ = images.sample(2 * spec.pairs, stratified=True, generator=run.noise("pairs"))
    more, _ = images.sample(spec.inputs, stratified=True, generator=run.noise("inputs"))
    for name in run.each(spec.models):
        vae = run.model(name)

        def compute(vae: VAE = vae) -> dict[str, list[float]]:
            start, target = x[: spec.pairs].to(vae.dtype), x[spec.pairs :].to(vae.dtype)
            weights = torch.tensor(penalties())
            spread = torch.linspace(0, len(weights) - 1, spec.penalties).round().long()
            chosen = tuple(weights[spread].tolist())
            values: dict[str, list[float]] = {}
            goals: dict[str, LatentTarget | OutputTarget] = {}
            goals |= {"latent": LatentTarget(target), "output": OutputTarget(target)}
            for kind, goal in goals.items():
                sweep = PenaltySweep(goal, weights=chosen, steps=spec.steps)
                found = sweep(rv.Victim(vae), start, generator=run.noise(kind))
                shown = found.objective.gather(1, found.chosen.unsqueeze(1)).squeeze(1)
                values[f"objective, {kind}"] = shown.tolist()
                values[f"size of the attack, {kind}"] = (
                    found.size.gather(1, found.chosen.unsqueeze(1)).squeeze(1).tolist()
                )
                values[f"AUDDC, {kind}"] = found.auddc.tolist()
            y = more.to(vae.dtype)
            likely = noise_robustness(vae, y, spec.noise, generator=run.noise("noise"))
            for i, scale in enumerate(spec.noise):
                values[f"log p(x | z), noise {scale:g}"] = likely[:, i].tolist()
            with torch.no_grad():
                values["ELBO"] = (-ELBO()(vae, y, generator=run.noise("elbo"))).tolist()
            return values

        part = run.part(name, compute, vae)
        for setting, numbers in part.items():
            section = "Attacks" if "z)" not in setting and setting != "ELBO" else "Noise and ELBO"
            rows.append(measured(name, setting, numbers, section=section))
        run.progress(f"{name}: {rows[-len(part)].cell}")
    return run.result(
        f"Attack objectives, noise and ELBO by model: {spec.data}",
        "nats, squared pixel units, pixel units",
        rows,
        (
            f"{spec.pairs} pairs, {spec.penalties} penalties, at most {spec.steps} evaluations; "
            "shown is the objective at the penalty that the paper's rule chooses (larger: harder "
            "to attack). Noise and ELBO (one draw) on "
            f"{spec.inputs} test images.",
        ),
    )
