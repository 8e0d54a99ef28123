"""Hostile victims behind noise: each is refused, or its certificate holds where it is deployed.

Deployed means: fresh calls of one row each, on the same object, with generators of their own.
"""

import random

import numpy as np
import pytest
import torch

import robustvae as rv
from robustvae import errors
from robustvae.certificates import certify
from robustvae.certificates.methods import sampling
from robustvae.defenses.independence import Independence

S, R, WIDTH = 0.5, 2.0, 4
FAR = 10.0  # what a spoiled output lies away


class Mind:
    """Whatever a victim remembers between its calls."""

    def __init__(self):
        self.calls, self.memory = 0, {}


def victim(encode=None, decode=None, defense=None, stddev=0.0, votes=1):
    """A victim whose code is the image itself, but for what is given; each gets a `Mind`."""
    mind = Mind()

    def plain(x, mind):
        return x.flatten(1)

    def posterior(x):
        mean = (encode or plain)(x, mind)
        return rv.models.Gaussian(mean, torch.full_like(mean, stddev))

    def output(z):
        mean = z if decode is None else decode(z, mind)
        return rv.models.Gaussian(mean.view(-1, 1, 1, WIDTH), torch.ones(len(z), 1, 1, WIDTH))

    vae = rv.wrap(encode=posterior, decode=output, latent=WIDTH, image_shape=(1, 1, WIDTH))
    kind = rv.PosteriorSample() if stddev else rv.PosteriorMean()
    inner = kind if defense is None else Own(defense, mind)
    return rv.Victim(vae, rv.InputNoise(S, inner, votes=votes))


class Own:
    """A defense out of a function of the codes' means, a mind and a generator."""

    def __init__(self, function, mind):
        self.function, self.mind = function, mind
        self.is_random = getattr(function, "is_random", True)

    def __call__(self, vae, x, *, generator):
        return self.function(vae.encode(x).mean, self.mind, generator)


def fixed(function):
    """The function says of itself that it is not random."""
    function.is_random = False
    return function


def normals(*shape, generator=None):
    return torch.randn(*shape, generator=generator, dtype=torch.float32)


def counts(x, mind):
    mind.calls += 1
    return x.flatten(1) + FAR * (mind.calls % 2)


def turns_over(after):
    """From some call on, and for good, its outputs are spoiled."""

    def encode(x, mind):
        mind.calls += 1
        return x.flatten(1) + FAR * (mind.calls > after)

    return encode


def reads_last_bits(x, mind):
    last = (x.flatten(1) * 2**24) % 1 != 0
    return x.flatten(1) + FAR * last


def cached_rows(z, mind, generator):
    key = tuple(z.shape)
    if key not in mind.memory:
        mind.memory[key] = normals(*key, generator=generator)
    return z + 2 * mind.memory[key]


def cached_once(z, mind, generator):
    if "noise" not in mind.memory:
        mind.memory["noise"] = normals(1, WIDTH, generator=generator)
    return z + 0.1 * mind.memory["noise"]


def reseeded(x, mind):
    """The process's generator is set by every call: rows differ, calls do not."""
    state = torch.get_rng_state()
    torch.default_generator.set_state(torch.Generator().manual_seed(0).get_state())
    noise = normals(len(x), 1)
    torch.set_rng_state(state)
    return x.flatten(1) + FAR * (noise > 0.3)


def reseeded_alike(x, mind):
    return x.flatten(1) + 0.1 * normals(1, WIDTH, generator=torch.Generator().manual_seed(0))


def reseeded_by_content(x, mind):
    seed = int(x.double().sum() * 1e6) % 2**31
    return x.flatten(1) + FAR * (normals(len(x), 1, generator=rv.generator(seed)) > 0)


def shared_draw(z, mind, generator):
    return z + FAR * (normals(1, 1, generator=generator) > 0.3)


def shared_beside_own(z, mind, generator):
    own = 0.3 * normals(*z.shape, generator=generator)
    return z + own + FAR * (normals(1, 1, generator=generator) > 0.9)


def generator_set_back(z, mind, generator):
    generator.set_state(torch.Generator().manual_seed(5).get_state())
    return z


def generator_set_back_and_drawn(z, mind, generator):
    generator.set_state(torch.Generator().manual_seed(5).get_state())
    return z + FAR * (normals(len(z), 1, generator=generator) > 0.3)


def reads_the_seed(z, mind, generator):
    return z + FAR * (generator.initial_seed() % 2)


@fixed
def notices_the_noise(z, mind, generator):
    """Spoils what looks too clean: a function of the noisy image alone."""
    return z + FAR * (z.std(1, keepdim=True) < 0.05)


@fixed
def nearest_of_two(z, mind, generator):
    return torch.where(
        z.sum(1, keepdim=True) > 0.6 * WIDTH, torch.ones_like(z), torch.zeros_like(z)
    )


def by_place(x, mind):
    spoiled = torch.arange(len(x))[:, None] % 2 == 0
    return x.flatten(1) + FAR * spoiled


def first_row_apart(x, mind):
    """Deployed, a row is always the first one; in a batch hardly any is."""
    return x.flatten(1) + FAR * (torch.arange(len(x))[:, None] == 0)


def first_place_of_large_batches(x, mind):
    return x.flatten(1) + FAR * (len(x) <= 3)


def small_batches_apart(x, mind):
    return x.flatten(1) + FAR * (len(x) < 64)


def random_by_place(z, mind, generator):
    first = torch.arange(len(z))[:, None] == 0
    return z + 0.3 * normals(*z.shape, generator=generator) + FAR * first


def half_batch(x, mind):
    """What saves half of the work: the second half of a batch gets the first half's codes."""
    z, half = x.flatten(1), len(x) // 2
    return torch.cat([z[: len(x) - half], z[:half]])


def of_the_batch(x, mind):
    z = x.flatten(1)
    return z - z.mean(0) + 0.5


def in_place(x, mind):
    return x.flatten(1).add_(0.01)


def drops(x, mind):
    return torch.nn.functional.dropout(x.flatten(1), 0.5, training=True)


def half_not_a_number(z, mind):
    return torch.where(z.sum(1, keepdim=True) > 0.5 * WIDTH, z, torch.nan)


def remembers(x, mind):
    """A memory by rounded content: the first image of its kind speaks for all later ones."""
    rows = []
    for row in x.flatten(1):
        key = tuple((row * 2).round().int().tolist())
        rows.append(mind.memory.setdefault(key, row.clone()))
    return torch.stack(rows)


def remembers_the_first(x, mind):
    mind.memory.setdefault("first", x.flatten(1)[:1].clone())
    return mind.memory["first"].expand(len(x), -1).clone()


HOSTILE = {
    "counts its calls": lambda: victim(counts),
    "turns over soon": lambda: victim(turns_over(4)),
    "turns over while it is certified": lambda: victim(turns_over(60)),
    "decoder counts": lambda: victim(decode=lambda z, mind: counts(z, mind)),
    "last bits": lambda: victim(reads_last_bits),
    "noise cached by shape": lambda: victim(defense=cached_rows),
    "noise cached once": lambda: victim(defense=cached_once),
    "process reseeded": lambda: victim(reseeded),
    "process reseeded, beside a draw": lambda: victim(reseeded, stddev=0.3),
    "process reseeded, decoder": lambda: victim(decode=reseeded, stddev=0.3),
    "own seed, one noise": lambda: victim(reseeded_alike),
    "seed by content": lambda: victim(reseeded_by_content),
    "process's random numbers": lambda: victim(lambda x, _: x.flatten(1) + normals(len(x), 1)),
    "process's, one for all": lambda: victim(lambda x, _: x.flatten(1) + normals(1, 1)),
    "numpy's random numbers": lambda: victim(lambda x, _: x.flatten(1) + np.random.random()),
    "Python's random numbers": lambda: victim(decode=lambda z, _: z + random.random()),
    "one draw for all rows": lambda: victim(defense=shared_draw),
    "one draw for all rows, beside their own": lambda: victim(defense=shared_beside_own),
    "generator set back": lambda: victim(defense=generator_set_back),
    "generator set back, not random": lambda: victim(defense=fixed(generator_set_back)),
    "generator set back and drawn": lambda: victim(defense=generator_set_back_and_drawn),
    "reads the seed": lambda: victim(defense=reads_the_seed),
    "notices the noise": lambda: victim(defense=notices_the_noise),
    "nearest of two": lambda: victim(defense=nearest_of_two),
    "by place": lambda: victim(by_place),
    "first row apart": lambda: victim(first_row_apart),
    "first row apart, beside a draw": lambda: victim(first_row_apart, stddev=0.3),
    "first row apart, decoder": lambda: victim(decode=first_row_apart, stddev=0.3),
    "few rows apart": lambda: victim(first_place_of_large_batches),
    "small batches apart": lambda: victim(small_batches_apart, stddev=0.3),
    "random by place": lambda: victim(defense=random_by_place),
    "half of the batch": lambda: victim(half_batch),
    "half of the batch, decoder": lambda: victim(decode=half_batch, stddev=0.3),
    "statistics of the batch": lambda: victim(of_the_batch),
    "in place": lambda: victim(in_place),
    "dropout": lambda: victim(drops),
    "half not a number": lambda: victim(decode=half_not_a_number),
    "memory by content": lambda: victim(remembers),
    "memory of the first": lambda: victim(remembers_the_first),
    "votes": lambda: victim(stddev=0.3, votes=4),
    "votes by place": lambda: victim(first_row_apart, votes=4),
}

SOUND = {
    "last bits",
    "notices the noise",
    "nearest of two",
    "in place",
    "votes",
    "own seed, one noise",
}
"""Those that must not be refused: whatever they do, they do it to every row alone."""


def deployed(subject, x, step, center, count=300):
    """P(||Delta|| <= R) of single uses, each with a generator of its own."""
    inside = 0
    for k in range(count):
        g = rv.generator(1000 + k)
        with torch.no_grad():
            output = subject.reconstruct(x + step, generator=g)
        inside += int((output - center).norm() <= R)
    return inside / count


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_or_holds_deployed(name, generator, monkeypatch):
    # small batches, so that there are many calls
    monkeypatch.setattr(sampling, "_VALUES_AT_ONCE", 80 * WIDTH)
    subject = HOSTILE[name]()
    x = torch.full((1, 1, 1, WIDTH), 0.5)
    try:
        lower = certify(subject, x, R, m=0.5, draws=4000, generator=rv.generator(0))
    except errors.NonFiniteError:  # not even a center
        assert name not in SOUND
        return
    if not float(lower.radius[0]):
        assert name not in SOUND, lower.assumptions
        assert any("smoothing needs" in line for line in lower.assumptions), name
        return
    for _ in range(3):
        step = torch.randn(x.shape, generator=generator)
        step = 0.999 * float(lower.radius[0]) * step / step.norm()
        chance = deployed(subject, x, step.to(x.dtype), lower.centers)
        # 300 uses have a standard deviation of at most 0.029
        assert chance >= 0.5 - 0.12, (name, chance, float(lower.radius[0]))


def test_model_changed_is_seen_again():
    """What was looked at once is looked at again when another encoder has taken its place."""
    subject = rv.Victim(rv.load("digits-vae"), rv.InputNoise(S))
    x = rv.data.load("digits", split="test").x[:1]
    ask = {"methods": ["smoothing"], "draws": 40, "generator": rv.generator(0)}
    assert float(certify(subject, x, 5.0, **ask).radius[0]) > 0
    right = subject.vae.trunk

    class Place(torch.nn.Module):
        def forward(self, x):
            return right(x) * (1 + (torch.arange(len(x)) > 4).to(x)[:, None])

    subject.vae.trunk = Place()
    lower = certify(subject, x, 5.0, **ask)
    assert not float(lower.radius[0]) and any("encoder gives" in a for a in lower.assumptions)


def test_unchanged_victim_is_looked_at_once(monkeypatch):
    """What makes a model of convolutions ready for its draws is no change of the victim."""
    looks, look = [], Independence._look
    monkeypatch.setattr(Independence, "_look", lambda self: looks.append(1) or look(self))
    vae = rv.models.create("vae", architecture="conv8", latent=2)
    subject, x = rv.Victim(vae.float(), rv.InputNoise(S)), torch.full((1, 1, 8, 8), 0.5)
    for _ in range(2):
        certify(subject, x.float(), 5.0, draws=40, generator=rv.generator(0))
    assert len(looks) == 1


def test_attribute_changed_is_seen_again():
    """No tensor changes and no module: the encoder's own switch does."""

    class Switched(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.reads_place = inner, False

        def forward(self, x):
            place = (torch.arange(len(x)) > 20).to(x)[:, None]
            return self.inner(x) * (1 + place * self.reads_place)

    subject = rv.Victim(rv.load("digits-vae"), rv.InputNoise(S))
    subject.vae.trunk = Switched(subject.vae.trunk)
    x = rv.data.load("digits", split="test").x[:1]
    ask = {"methods": ["smoothing"], "draws": 1000, "generator": rv.generator(0)}
    assert float(certify(subject, x, 5.0, **ask).radius[0]) > 0
    subject.vae.trunk.reads_place = True
    lower = certify(subject, x, 5.0, **ask)
    assert not float(lower.radius[0]) and any("encoder gives" in a for a in lower.assumptions)


def wide(encode, defense=None, width=64):
    """A victim of digits' size whose code is what `encode` makes of the rows."""

    def posterior(x):
        mean = encode(x.flatten(1))
        return rv.models.Gaussian(mean, torch.zeros_like(mean))

    def output(z):
        return rv.models.Gaussian(z.view(-1, 1, 1, width), torch.ones(len(z), 1, 1, width))

    vae = rv.wrap(encode=posterior, decode=output, latent=width, image_shape=(1, 1, width))
    return rv.Victim(vae, rv.InputNoise(0.1, defense or rv.PosteriorMean()))


def near_mean(rows):
    """Each row's mean with those that lie near it in its batch: alone, it is itself."""
    weight = (torch.cdist(rows, rows) < 1.6).float()
    return (weight @ rows) / weight.sum(1, keepdim=True)


def averages(vae, x, *, generator):
    return near_mean(x.flatten(1))


@pytest.mark.parametrize("where", ["encoder", "defense"])
def test_rows_seeing_near_rows_are_refused(where):
    """Far mates change nothing: noisy copies of one image do, as draws are."""
    subject = wide(near_mean) if where == "encoder" else wide(lambda rows: rows, averages)
    x = rv.data.load("digits", split="test").x[:1].reshape(1, 1, 1, 64)
    ask = {"draws": 2000, "generator": rv.generator(0)}
    lower = certify(subject, x, 0.5, methods=["smoothing"], **ask)
    assert not float(lower.radius[0]) and any("smoothing needs" in a for a in lower.assumptions)
    with pytest.raises(errors.UnsupportedError, match="smoothing needs"):
        rv.certified_curve(subject, x, sizes=[0.1], **ask)


@pytest.mark.parametrize("seed", range(4))
def test_shared_draw_in_one_batch_seen(seed):
    def shares(z, mind, generator):
        own = 0.3 * normals(*z.shape, generator=generator)
        return z + own + FAR * (torch.rand(1, generator=generator) < 0.7)

    x = torch.full((1, 1, 1, WIDTH), 0.5)
    lower = certify(victim(defense=shares), x, R, draws=2000, generator=rv.generator(seed))
    assert not float(lower.radius[0])


def large_batches_apart(x, mind):
    return torch.full_like(x.flatten(1), 0.5) if len(x) > 200 else x.flatten(1)


def large_batches_draw_nothing(z, mind, generator):
    noise = normals(*z.shape, generator=generator)
    return z + FAR * noise if len(z) <= 200 else 0 * z + 0.5 + 0.01 * noise


@pytest.mark.parametrize(
    "subject",
    [
        lambda: victim(large_batches_apart),
        lambda: victim(decode=large_batches_apart, stddev=0.3),
        lambda: victim(defense=large_batches_draw_nothing),
        lambda: victim(defense=fixed(lambda z, mind, _: large_batches_apart(z, mind))),
    ],
    ids=["encoder", "decoder", "random defense", "fixed defense"],
)
def test_batches_seen_in_size_drawn(subject):
    x = torch.full((1, 1, 1, WIDTH), 0.5)
    lower = certify(subject(), x, R / 4, draws=8000, generator=rv.generator(0))
    assert not float(lower.radius[0]) and any("smoothing needs" in a for a in lower.assumptions)


class LargeBatchesAveraged(rv.VAE):
    latent, image_shape = 2, (1, 4, 4)

    def __init__(self):
        super().__init__()
        self.reads, self.back = torch.nn.Linear(16, 2), torch.nn.Linear(2, 16)

    def encode(self, x):
        mean = self.reads(x.flatten(1))
        return rv.models.Gaussian(mean, torch.full_like(mean, 0.2))

    def decode(self, z):
        y = self.back(z if len(z) <= 200 else z.mean(0, keepdim=True).expand_as(z))
        return rv.models.Gaussian(y.view(-1, 1, 4, 4), torch.ones(len(z), 1, 4, 4).to(y))


def test_neyman_pearson_refuses_large_batch_decoder():
    with rv.seeding.seeded(0):
        vae = LargeBatchesAveraged().double().eval()
    x = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    ask = {"methods": ["neyman_pearson"], "generator": rv.generator(0)}
    assert float(certify(vae, x, 2.0, draws=150, **ask).radius[0]) > 0
    lower = certify(vae, x, 0.05, draws=1000, **ask)
    assert not float(lower.radius[0])
    assert any("batch of 256 like rows" in a for a in lower.assumptions), lower.assumptions


class Switched:
    """A defense that spoils the first row of a batch from some time on."""

    on, is_random = False, True

    def __init__(self):
        self.held = {"on": [False]}

    def __call__(self, vae, x, *, generator):
        z = vae.encode(x).mean + 0.3 * normals(len(x), WIDTH, generator=generator)
        return z + FAR * (self.on or self.held["on"][0]) * (torch.arange(len(x))[:, None] == 0)


def by_attribute(defense):
    defense.on = True


def by_class(defense):
    type(defense).on = True


def by_container(defense):
    defense.held["on"][0] = True


@pytest.mark.parametrize("switch", [by_attribute, by_class, by_container])
def test_switched_defense_is_seen_again(switch, monkeypatch):
    monkeypatch.setattr(Switched, "on", False)
    x, defense = torch.full((1, 1, 1, WIDTH), 0.5), Switched()
    subject = rv.Victim(victim().vae, rv.InputNoise(S, defense))
    ask = {"draws": 2000, "generator": rv.generator(0)}
    assert float(certify(subject, x, R, **ask).radius[0]) > 0
    switch(defense)
    lower = certify(subject, x, R, **ask)
    assert not float(lower.radius[0]) and any("smoothing needs" in a for a in lower.assumptions)


def test_switched_closure_is_seen_again():
    held = {"on": False}

    def encode(x, mind):
        return x.flatten(1) + FAR * held["on"] * (torch.arange(len(x))[:, None] > 4)

    subject, x = victim(encode), torch.full((1, 1, 1, WIDTH), 0.5)
    ask = {"draws": 2000, "generator": rv.generator(0)}
    assert float(certify(subject, x, R, **ask).radius[0]) > 0
    held["on"] = True
    lower = certify(subject, x, R, **ask)
    assert not float(lower.radius[0]) and any("encoder gives" in a for a in lower.assumptions)


class SwitchedClassifier(torch.nn.Module):
    on, after = False, None

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, z):
        self.calls += 1
        first = torch.arange(len(z)) == 0
        turned = first & (self.on or (self.after is not None and self.calls > self.after))
        sign = torch.where(turned, -1.0, 1.0) * z[:, 0].abs()
        return torch.stack([sign, -sign], 1)


def test_switched_classifier_is_seen_again():
    classifier, x = SwitchedClassifier(), torch.full((1, 1, 1, WIDTH), 0.9)
    plain = victim()
    subject = rv.Victim(plain.vae, plain.defense, classifier)
    ask = {"draws": 1000, "generator": rv.generator(0)}
    assert float(rv.certificates.certify_decision(subject, x, **ask).radius[0]) > 0
    classifier.on = True
    with pytest.raises(errors.UnsupportedError, match=r"classifier gives|other rows"):
        rv.certificates.certify_decision(subject, x, **ask)
    classifier.on, classifier.after = False, classifier.calls + 45  # while it is certified
    with pytest.raises(errors.UnsupportedError, match="has changed while"):
        rv.certificates.certify_decision(subject, x, **ask)


class Score:
    """A score object that says of itself that it reads the output alone."""

    reads_input = False

    def __init__(self, of):
        self.of = of

    def __call__(self, victim, x, *, generator):
        return self.of(victim.reconstruct(x, generator=generator).flatten(1).sum(1))


class Centering:
    """A detector whose numbers are about the mean of its batch."""

    def decision_function(self, x):
        distances = abs(x - 0.5).sum(1)
        return distances - distances.mean()


BATCH_SCORES = {
    "about the mean": lambda y: y - y.mean(),
    "ranks": lambda y: y.argsort().argsort().double() / len(y),
    "large batches apart": lambda y: y if len(y) < 100 else y * 0,
    "over the spread": lambda y: y / y.std() if len(y) > 20 else y,
}


@pytest.mark.parametrize("name", BATCH_SCORES)
def test_score_objects_of_batch_are_refused(name):
    subject, x = victim(stddev=0.1), torch.full((1, 1, 1, WIDTH), 0.5)
    ask = {"sizes": [0.1], "draws": 4000, "generator": rv.generator(0)}
    bounds = rv.certify_score(subject, x, score=Score(lambda y: y), **ask)
    assert bool((bounds.lower < bounds.upper).all())
    with pytest.raises(errors.UnsupportedError, match="this score"):
        rv.certify_score(subject, x, score=Score(BATCH_SCORES[name]), **ask)


def test_detector_centering_by_batch_is_refused():
    subject = rv.Victim(rv.wrap(Centering(), image_shape=(4,)), rv.InputNoise(S))
    x = torch.full((2, 1, 1, 4), 0.5)
    ask = {"sizes": [0.1], "draws": 2000, "generator": rv.generator(0)}
    with pytest.raises(errors.UnsupportedError, match="this score"):
        rv.certify_score(subject, x, score=rv.scores.DetectorScore(), **ask)


def test_infinite_scores_stay_infinite():
    """A quantile that may be -inf is bounded by -inf, not by the least number there is."""
    subject, x = victim(stddev=0.1), torch.full((1, 1, 1, WIDTH), 0.5)

    def score(y):
        total = y.flatten(1).sum(1)
        return torch.where(total > 1.0, total, -torch.inf)

    bounds = rv.certify_score(
        subject, x, score=score, sizes=[0.5], draws=2000, generator=rv.generator(0)
    )
    assert float(bounds.lower[0, 0]) == -float("inf") < float(bounds.upper[0, 0]) < 100


@fixed
def replays_the_noise(z, mind, generator):
    """Draws the noise again from the seed, and so knows the clean image."""
    g, now = torch.Generator(), generator.get_state()
    g.manual_seed(generator.initial_seed())
    clean = z
    for _ in range(60):
        noise = torch.randn(len(z), 1, 1, WIDTH, generator=g, dtype=torch.float64) * S
        if torch.equal(g.get_state(), now):
            clean = (z.double() - noise.flatten(1)).float()
            break
    return z * 0 + 0.5 + FAR * (clean.sum(1, keepdim=True) > 0.52 * WIDTH)


def test_defense_cannot_draw_noise_again():
    subject, x = victim(defense=replays_the_noise), torch.full((1, 1, 1, WIDTH), 0.5)
    with torch.no_grad():
        outputs = [subject.reconstruct(x + 0.05, generator=rv.generator(k)) for k in range(40)]
        clean = [subject.reconstruct(x, generator=rv.generator(k)) for k in range(40)]
    far = [[float(y.max()) > FAR / 2 for y in part] for part in (outputs, clean)]
    # it decides by the noisy image, as all must
    assert 0 < sum(far[0]) < 40
    assert 0 < sum(far[1]) < 40


def test_mean_victim_is_told_of_draws():
    vae, x = rv.load("digits-vae").double(), rv.data.load("digits", split="test").x[:1].double()
    ask = {"methods": ["neyman_pearson"], "draws": 200, "generator": rv.generator(0)}
    told = {
        type(defense).__name__: any(
            "of draws of the posterior" in line
            for line in certify(rv.Victim(vae, defense), x, 2.0, **ask).assumptions
        )
        for defense in (rv.PosteriorMean(), rv.PosteriorSample())
    }
    assert told == {"PosteriorMean": True, "PosteriorSample": False}


class Late(Switched):
    """Once its draws are made in large batches, it spoils each row that comes alone."""

    seen = 0

    def __call__(self, vae, x, *, generator):
        self.seen += len(x)
        z = vae.encode(x).mean + 0.3 * normals(len(x), WIDTH, generator=generator)
        return z + FAR * (self.seen > 4000 and len(x) < 5) * normals(len(x), 1, generator=generator)


def test_switched_during_draws_is_seen_anew():
    """The pair that is run again after the draws does not show it: its batch is another one."""
    subject = rv.Victim(victim().vae, rv.InputNoise(S, Late()))
    x = torch.full((1, 1, 1, WIDTH), 0.5)
    lower = certify(subject, x, R, draws=8000, generator=rv.generator(0))
    assert not float(lower.radius[0]) and any("smoothing needs" in a for a in lower.assumptions)
