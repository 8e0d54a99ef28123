"""A linear head on the codes of the bundled digits, attacked and certified."""

import robustvae as rv

if __name__ == "__main__":
    images = rv.data.load("digits", split="test")
    vae = rv.load("digits-vae-noise")
    noise = rv.InputNoise(stddev=0.25, defense=rv.PosteriorMean())
    search = "(projected-ascent:steps=10,restarts=1)"
    profile = f"representation:inputs=20,draws=500,balls=[(norm=l2,radius=0.5)],search={search}"
    victims = {"as it is": rv.Victim(vae), "under noise": rv.Victim(vae, noise)}
    record = rv.audit(victims, images, profile=profile, seed=0)
    for sentence in rv.report.section_of(record).answer:
        print(sentence)
