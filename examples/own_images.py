"""Train on images of your own, read from a folder when needed, and attack on blurred ones."""

import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

import robustvae as rv

g = rv.generator(0)
with tempfile.TemporaryDirectory() as folder:
    for kind, draw in (("disc", "ellipse"), ("box", "rectangle")):
        Path(folder, kind).mkdir()
        for i in range(40):
            picture = Image.new("L", (40, 36))
            getattr(ImageDraw.Draw(picture), draw)((8, 6, 18 + i % 10, 20 + i % 7), fill=200)
            picture.save(Path(folder, kind, f"{i}.png"))

    train, test = (rv.data.read_folder(folder, split, size=8) for split in ("train", "test"))
    print(len(train), "for training,", len(test), "for testing, classes", train.y.unique().tolist())
    vae = rv.models.create("vae", architecture="conv8", latent=4)
    rv.fit(vae, rv.objectives.ELBO(), train, epochs=2, generator=g)

    x, y = test.changed(rv.data.Blurred(0.5)).sample(4, stratified=True, generator=g)
    attack = rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(steps=10), rv.Ball("l2", 0.5))
    print("damage", attack(rv.Victim(vae), x, generator=g).score)
