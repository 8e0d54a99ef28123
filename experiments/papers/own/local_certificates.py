"""Certificates of VAEs whose weights nothing constrains, beside attacks: Neyman-Pearson by CROWN.

m = 0.5; r is twice the median, over the inputs, of the m-quantile of ||Delta|| without attack. A
weaker attack gives a larger upper bound, so a smaller ratio.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, final

import torch

import robustvae as rv
from experiments.harness import Result, Run, item
from experiments.harness.rows import Row, measured
from robustvae.robustness import Budget, clean_quantile, estimate_margin

M = 0.5
ROUTE: dict[str, Any] = {"methods": ["neyman_pearson"], "confidence": 0.999}


@final
@dataclass(frozen=True)
class Spec:
    """What is measured.

    Attributes:
        model: The victim.
        data: Its data set.
        inputs: Test images, balanced over the classes.
        draws: Of the certificate.
        restarts: Of the attack at each radius.
        steps: Of the attack at each radius.
        displacements: "centered", "full", "paired".
        norms: "l2", "linf".
        attacked: Displacements that are attacked, in l2.
    """

    model: str = "digits-vae"
    data: str = "digits"
    inputs: int = 50
    draws: int = 10_000
    restarts: int = 5
    steps: int = 50
    displacements: tuple[str, ...] = ("centered", "full", "paired")
    norms: tuple[str, ...] = ("l2", "linf")
    attacked: tuple[str, ...] = ("centered",)


@item(
    "own/local-certificates",
    sizes={
        "smoke": Spec(inputs=3, draws=400, restarts=1, steps=5, displacements=("centered",)),
        "laptop": Spec(),
    },
)
def local_certificates(spec: Spec, run: Run) -> Result:
    """Neyman-Pearson certificates of an unconstrained model beside attacked margins."""
    vae, images = run.model(spec.model), run.images(spec.data)
    victim, rows, values = rv.Victim(vae), list[Row](), dict[str, Any]()
    x, _ = images.sample(spec.inputs, stratified=True, generator=rv.generator(run.seed))
    for displacement in run.each(spec.displacements):

        def compute(displacement: str = displacement) -> dict[str, Any]:
            g = rv.generator(run.seed)
            ask: dict[str, Any] = {"displacement": displacement}
            rest = clean_quantile(victim, x, M, generator=g, draws=1000, **ask)
            r = 2 * float(torch.as_tensor(rest.value).median())
            part: dict[str, Any] = {"r": [r]}
            for norm in spec.norms:
                more = {"norm": norm, "draws": spec.draws, **ROUTE, **ask}
                start = time.process_time()
                lower = rv.certify(vae, x, r, M, generator=rv.generator(run.seed + 1), **more)
                part[f"{norm}, seconds an input"] = [(time.process_time() - start) / len(x)]
                within = rv.certify(
                    vae, x, r, M, generator=rv.generator(run.seed + 1), box=True, **more
                )
                part |= {f"{norm}, free": lower.radius, f"{norm}, box": within.radius}
                part[f"{norm}, box / free"] = within.radius / lower.radius
                if norm == "l2" and displacement in spec.attacked:
                    budget = Budget(starts=spec.restarts, steps=spec.steps)
                    upper = estimate_margin(
                        victim, x, r, M, box=None, generator=g, budget=budget, **ask
                    )
                    assert upper.unconstrained is not None
                    for kind, proof, end in (
                        ("free", lower, upper.unconstrained.value),
                        ("box", within, upper.value),
                    ):
                        part |= {
                            f"attacked, {kind}": end,
                            f"certified / attacked, {kind}": proof.radius / end,
                            f"certified above attacked, {kind}": (proof.radius > end).double(),
                        }
            return part

        columns = values[displacement] = run.part(displacement, compute, vae)
        for what, numbers in columns.items():
            rows.append(measured(what, "mean", numbers, section=displacement))
            if len(numbers) > 1:
                middle = float(torch.tensor(numbers).median())
                ends: dict[str, Any] = {"n": len(numbers), "section": displacement}
                rows.append(Row(what, "median", middle, **ends))
                rows.append(Row(what, "least", min(numbers), **ends))
        run.progress(displacement)
    return run.result(
        f"Local certificates: {spec.model}",
        "pixel units, seconds and ratios",
        rows,
        (
            f"{spec.inputs} test images (balanced), m = {M}, r twice the median quantile "
            f"without attack, {spec.draws:,} draws, confidence 0.999; attack: "
            f"{spec.restarts} restarts x {spec.steps} steps.",
        ),
        values,
    )
