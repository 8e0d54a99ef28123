"""Attack, defend, estimate and certify the bundled digits model, on eight digits."""

import robustvae as rv

g = rv.generator(0)
vae = rv.load("digits-lipschitz-vae")
images = rv.data.load("digits", split="test")
x, y = images.sample(8, generator=g)

victim = rv.Victim(vae)
attack = rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(steps=20, restarts=3), rv.Ball("l2", 1.0))
found = attack(victim, x, generator=g)
print("l2 size spent", found.size, "status", found.status)

fixed = rv.Victim(vae, rv.HMC(steps=20)).reconstruct(found.x_adv, generator=g)
print("reconstructions behind the defense", tuple(fixed.shape))

question = {"r": 1.0, "m": 0.5, "displacement": "centered"}
lower = rv.certify(vae, x, **question, generator=g)
upper = rv.estimate_margin(victim, x, **question, box=False, generator=g)
for proved, attacked in zip(lower.radius, upper.high, strict=True):
    print(f"margin of this digit: between {proved:.3f} (proved) and {attacked:.3f} (attacked)")
