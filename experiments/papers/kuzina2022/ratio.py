"""[Kuzina22] Fig. 2 and 7: does the defense move attacked codes to where the posterior is higher?

log PR(z_r, z) = log p(x | z_r) + log p(z_r) - log p(x | z) - log p(z), with x the clean image,
z_r a draw of its encoder's posterior, and z the code of the attacked image before or after the
defense. Lower is better. The two samples are told apart by a Kolmogorov-Smirnov test.
"""

from __future__ import annotations

import torch
from scipy.stats import ks_2samp

from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import BALLS, attacked, gradients, references, share_of
from experiments.papers.kuzina2022.recovery import SIZES, Spec
from robustvae.defenses import (
    HMC,
    Defense,
    PosteriorMode,
    PosteriorSample,
    RobustPosterior,
    Victim,
    posterior,
)
from robustvae.models.base import frozen

BEFORE = "no defense (posterior sample)"


@item("kuzina2022/ratio", "[Kuzina22] Eq. 11, Fig. 2 and 7, appendix C.1", sizes=SIZES)
def ratio(spec: Spec, run: Run) -> Result:
    """The log posterior ratio of attacked codes before and after each defense, and a KS test."""
    vae, images, ball = run.model(spec.model), run.images(spec.data), BALLS[0]
    x, _ = references(images, spec.images, run.seed)
    x_adv = run.tensor(
        "attacked", x, lambda: attacked(vae, x, ball, spec.steps, spec.restarts, run.seed), vae
    )
    defenses: dict[str, Defense] = {
        BEFORE: PosteriorSample(),
        "HMC": HMC(share_of(26, spec.effort), step_size=0.5, mass="encoder"),
        "posterior mode": PosteriorMode(share_of(50, spec.effort)),
        "robust mode, radius right": RobustPosterior(
            "linf", float(ball.radius), share_of(50, spec.effort)
        ),
    }
    rows: list[Row] = []
    before: list[float] = []
    single: dict[str, list[float]] = {}
    for name, defense in run.each(defenses.items()):

        def ratios(name: str = name, defense: Defense = defense) -> object:
            noise = run.noise(name)
            reference = Victim(vae, PosteriorSample()).latent(x, generator=noise)
            z = Victim(vae, defense).latent(x_adv, generator=noise)
            with torch.no_grad(), frozen(vae):
                height = posterior(vae, x)
                return (height(reference) - height(z)).double()

        values = run.part(f"{name}: {defense}", ratios, vae)
        before = before or values
        single[name] = [float(f"{value:.5g}") for value in values]
        test, cost = ks_2samp(values, before), gradients(defense)
        rows += [
            measured(name, "log posterior ratio, nats", values, cost=cost),
            Row(name, "KS statistic against no defense", float(test.statistic), cost=cost),
            Row(name, "p value", float(test.pvalue), cost=cost),
        ]
        run.progress(f"{name}: {rows[-3].cell}, KS p = {test.pvalue:.2g}")
    return run.result(
        "Posterior ratio before and after the defense",
        "nats",
        rows,
        (
            f"{spec.images} test images, balanced over the classes, one attack on each: "
            f"symmetric KL, l-infinity {ball.radius:g} in [0, 1], {spec.steps} steps, the best of "
            f"{spec.restarts} starts. The paper has 500 attacks and 500 transitions.",
            "log p(x | z_r) p(z_r) - log p(x | z) p(z), x the clean image, z_r a draw of its "
            "encoder's posterior, z the code of the attacked image; 0 would be full recovery, "
            "and below 0 the defended code explains the clean image better than that draw.",
            "Two-sample Kolmogorov-Smirnov test, exact, of each defense against no defense.",
        ),
        {"ratios": single},
    )
