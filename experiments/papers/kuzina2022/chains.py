"""Diagnostics of the samplers, chain by chain, and how long a trajectory should be.

Several chains on each attacked image, all samplers at the same number of gradients. Effective
draws are those of the image's worst coordinate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import BALLS, attacked, references
from robustvae.defenses import HMC

CHAINS = 4
SPREAD = "worst R-hat"


@final
@dataclass(frozen=True)
class Spec:
    """What is measured.

    Attributes:
        model: The victim.
        data: Its data set.
        images: Inputs, balanced over the classes.
        gradients: Of each chain.
        steps: Of the attack.
        restarts: Of the attack.
    """

    model: str = "digits-vae"
    data: str = "digits"
    images: int = 5
    gradients: int = 1000
    steps: int = 50
    restarts: int = 10


def samplers(gradients: int) -> dict[str, HMC]:
    """Trajectories of several lengths, and two mass matrices, for about as many gradients each."""
    rows = {f"L = {leap}": HMC(gradients // leap, n_leapfrog=leap) for leap in (1, 2, 5, 10, 20)}
    rows["L = 5, encoder's mass"] = HMC(gradients // 5, step_size=0.5, mass="encoder")
    rows["L = 5, encoder's mass, bfloat16 force"] = HMC(
        gradients // 5, step_size=0.5, mass="encoder", force="bfloat16"
    )
    return rows


@item(
    "kuzina2022/chains",
    "Gelman et al., 2013, section 11.4; Hoffman & Gelman, 2014",
    sizes={
        "smoke": Spec(images=3, gradients=200, steps=5, restarts=1),
        "laptop": Spec(),
        "full": Spec("mnist-conv28", "mnist", 50, 5000),
    },
)
def chains(spec: Spec, run: Run) -> Result:
    """Acceptance, energy error, R-hat, effective draws and divergences of HMC's chains."""
    vae, ball = run.model(spec.model), BALLS[1]
    x, _ = references(run.images(spec.data), spec.images, run.seed)
    x_adv = run.tensor(
        "attacked", x, lambda: attacked(vae, x, ball, spec.steps, spec.restarts, run.seed), vae
    )
    rows: list[Row] = []
    for name, defense in run.each(samplers(spec.gradients).items()):

        def diagnose(defense: HMC = defense, name: str = name) -> object:
            report = defense.diagnose(vae, x_adv, chains=CHAINS, generator=run.noise(name))
            columns = {
                "acceptance": report.acceptance,
                "energy error, nats": report.energy_error,
                SPREAD: report.r_hat,
                "effective draws per 1,000 gradients": 1000 * report.ess / report.gradients,
                "divergences": report.divergences,
                "share sound": report.sound,
            }
            return {key: values.double() for key, values in columns.items()}

        values = run.part(f"{name}: {defense}", diagnose, vae)
        cost = defense.gradients
        rows += [measured(name, setting, part, cost=cost) for setting, part in values.items()]
        rows.append(Row(name, "largest of them", max(values[SPREAD]), n=len(x), cost=cost))
        run.progress(f"{name}: R-hat {rows[-1].cell}")
    return run.result(
        "Diagnostics of the chains",
        "the units of the columns",
        rows,
        (
            f"{spec.images} attacked test images (symmetric KL, l-infinity {ball.radius:g}), "
            f"{CHAINS} chains on each from draws of the encoder's posterior; half of the "
            "transitions warm up, step size adapted for each chain, and are thrown away.",
            "Effective draws and R-hat are those of the worst of the latent's coordinates, all "
            "chains of an image together; gradients of the warm-up are counted.",
            "Sound: no divergence, worst R-hat below 1.1, at least 10 effective draws.",
        ),
    )
