"""Models times defenses, one table, as LaTeX."""

import robustvae as rv
from robustvae.audit import Run

images = rv.data.load("digits", split="test")
defenses = {"noise": "input-noise:stddev=0.1", "mode": "posterior-mode:steps=5"}
plan = {"base": "smoke", "margins": None, "certificates": False, "geometry": False}
records = [
    rv.audit(
        {"plain": rv.load(name)},
        images,
        plan=plan,
        question={"r": 0.86},
        victims=defenses,
        seed=0,
        run=Run(name=name),
    )
    for name in ("digits-vae", "digits-lipschitz-vae")
]
print(rv.compare(records).to_latex())
