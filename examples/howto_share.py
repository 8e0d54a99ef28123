"""A folder with a model, its audit and a card."""

import robustvae as rv
from robustvae.sharing import export, manifest_of

vae = rv.load("digits-vae")
images = rv.data.load("digits", split="test")
record = rv.audit(vae, images, plan="smoke", question={"r": 0.86}, seed=0)
folder = export("shared", model=vae, record=record, facts={"trained on": "digits"})
for name, size in manifest_of(folder).items():
    print(f"{size:>8} {name}")
