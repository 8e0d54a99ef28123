"""[Kuzina22] Fig. 2 and 7: does the defense move attacked codes to where the posterior is higher?

    python -m robustvae.studies.defense_ratio --model runs/mnist-conv28 --data mnist

log PR(z_r, z) = log p(x | z_r) + log p(z_r) - log p(x | z) - log p(z), with x the clean image,
z_r a draw of its encoder's posterior, and z the code of the attacked image before or after the
defense. Lower is better. The two samples are told apart by a Kolmogorov-Smirnov test.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from scipy.stats import ks_2samp

from robustvae.data import Images
from robustvae.defenses import (
    HMC,
    Defense,
    PosteriorMode,
    PosteriorSample,
    RobustPosterior,
    Victim,
    posterior,
)
from robustvae.errors import check_choice
from robustvae.metrics import mean_stderr
from robustvae.models.base import VAE, frozen
from robustvae.seeding import shard_generator
from robustvae.studies.defense_table import BALLS, SIZES, attacked
from robustvae.studies.kept import Keep, Values
from robustvae.studies.table import Row, Table, facts_of, from_command_line

BEFORE = "no defense (posterior sample)"


def defense_ratio(
    vae: VAE,
    images: Images,
    *,
    size: str = "laptop",
    seed: int = 0,
    kept: Keep | None = None,
    progress: Callable[[str], None] | None = None,
) -> Table:
    """Run the study.

    Args:
        vae: The model.
        images: Where the inputs are sampled, class by class.
        size: "smoke", "laptop" or "full".
        seed: Of everything random.
        kept: Where finished parts are kept; None keeps nothing.
        progress: Told what has been done, a line at a time.

    Raises:
        UnknownNameError: Any other size.
        DataError: `kept` holds parts of another run.

    References:
        [Kuzina22] Eq. 11, Fig. 2 and 7, appendix C.1.
    """
    check_choice("size", size, SIZES)
    plan, began, ball = SIZES[size], time.perf_counter(), BALLS[0]
    x, _ = images.sample(plan.images, stratified=True, generator=shard_generator(seed, 0, "data"))
    known = (kept or Keep())("defense_ratio", vae, images, size, plan, seed)
    x_adv = attacked(vae, x, ball, plan, seed)

    def n(count: int) -> int:
        return max(2, round(count * plan.effort))

    defenses: dict[str, Defense] = {
        BEFORE: PosteriorSample(),
        "HMC": HMC(n(26), step_size=0.5, mass="encoder"),
        "posterior mode": PosteriorMode(n(50)),
        "robust mode, radius right": RobustPosterior("linf", float(ball.radius), n(50)),
    }
    rows: list[Row] = []
    before: list[float] = []
    for name, defense in defenses.items():

        def ratio(name: str = name, defense: Defense = defense) -> Values:
            noise = shard_generator(seed, 0, name)
            own = Victim(vae, PosteriorSample()).latent(x, generator=noise)
            z = Victim(vae, defense).latent(x_adv, generator=noise)
            with torch.no_grad(), frozen(vae):
                height = posterior(vae, x)
                return {"ratio": (height(own) - height(z)).double().tolist()}

        values = known(f"{name}: {defense}", ratio)["ratio"]
        before = before or values
        test = ks_2samp(values, before)
        mean, stderr = mean_stderr(values)
        cost = getattr(defense, "gradients", 0)
        for setting, (value, spread) in {
            "log posterior ratio, nats": (mean, stderr),
            "KS statistic against no defense": (float(test.statistic), 0.0),
            "p value": (float(test.pvalue), 0.0),
        }.items():
            rows.append(Row(name, setting, value, spread, len(values), cost))
        if progress is not None:
            progress(f"{name}: {mean:.4g} ± {stderr:.2g}, KS p = {test.pvalue:.2g}")
    return Table(
        "Posterior ratio before and after the defense",
        "nats",
        tuple(rows),
        (
            f"{plan.images} test images, balanced over the classes, one attack on each: "
            f"symmetric KL, l-infinity {ball.radius:g} in [0, 1], {plan.steps} steps, the best of "
            f"{plan.restarts} starts. The paper has 500 attacks and 500 transitions.",
            "log p(x | z_r) p(z_r) - log p(x | z) p(z), x the clean image, z_r a draw of its "
            "encoder's posterior, z the code of the attacked image; 0 would be full recovery, "
            "and below 0 the defended code explains the clean image better than that draw.",
            "Two-sample Kolmogorov-Smirnov test, exact, of each defense against no defense.",
        ),
        facts_of(vae, images, size, seed, began),
    )


if __name__ == "__main__":
    from_command_line(defense_ratio, "defense_ratio", __doc__)
