"""The profile "anomaly": attacks both ways, thresholds, certificates, tables and detectors."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import robustvae as rv
from robustvae import errors, registry
from robustvae.audit.profiles.anomaly import Anomaly, score_of, violations
from robustvae.audit.profiles.base import UseContext
from robustvae.audit.unit_cost import UnitCost
from robustvae.records.parts import UseFacts
from robustvae.report.profiles.anomaly import section
from robustvae.report.profiles.section import section_of

FAST = {"inputs": 8, "gradient_free": 0, "draws": 200, "votes": 3}
SEARCH = "projected-ascent:steps=8,restarts=1"


class Linear(torch.nn.Module):
    """An autoencoder that keeps the first coordinate: its error is the norm of the others."""

    def encode(self, x):
        return x[:, :1]

    def decode(self, z):
        return torch.cat([z, torch.full((len(z), 3), 0.5)], dim=1)


def line_images():
    """Normals at error 0.1, anomalies at 0.4, all along the second coordinate."""
    x = torch.full((60, 1, 1, 4), 0.5)
    x[:, 0, 0, 0] = torch.linspace(0.2, 0.8, 60)
    x[:40, 0, 0, 1] += 0.1
    x[40:, 0, 0, 1] += 0.4
    return rv.data.joined({"normal": x[:40], "crack": x[40:]})


def linear_victim():
    return rv.Victim(rv.wrap(Linear(), image_shape=(4,)))


def run(use, victims=None, images=None):
    context = UseContext(victims or {"plain": linear_victim()}, images or line_images())
    return use(context)


def rows_of(result, **values):
    return [row for row in result.rows if all(row.get(k) == v for k, v in values.items())]


def test_l2_attack_reaches_optimum():
    """The error of a linear model moves by the whole radius, on either side."""
    result = run(Anomaly(balls=(rv.Ball("l2", 0.1),), search=SEARCH, **FAST))
    for side, clean, sign in (("normal", 0.1, 1), ("anomalous", 0.4, -1)):
        attacked = [row["score"] for row in rows_of(result, side=side, condition="attacked")]
        assert attacked == pytest.approx([clean + sign * 0.1] * 8, abs=2e-3)


def test_threshold_keeps_false_alarms():
    images = rv.data.load("digits", split="test")
    use = Anomaly(balls=(rv.Ball("l2", 0.1),), search=SEARCH, fpr=0.1, anomalous=(9,), **FAST)
    victim = rv.Victim(rv.load("digits-vae"))
    result = run(use, {"plain": victim}, images)
    clean = images.x[images.y != 9]
    score = rv.scores.ReconstructionError()(victim, clean, generator=rv.generator(0))
    share = float((score > result.facts["threshold of plain"]).float().mean())
    assert share == pytest.approx(0.1, abs=0.02)


def test_larger_ball_never_weaker():
    balls = (rv.Ball("l2", 0.05), rv.Ball("l2", 0.2))
    result = run(Anomaly(balls=balls, search="projected-ascent:steps=1,restarts=1", **FAST))
    small, large = (
        [row["score"] for row in rows_of(result, side="normal", condition="attacked", radius=r)]
        for r in (0.05, 0.2)
    )
    assert all(b >= a - 1e-6 for a, b in zip(small, large, strict=True))


@pytest.mark.parametrize("name", registry.names("search"))
def test_every_search_may_join(name):
    """One that cannot attack a score is left out in words; its time can be told beforehand."""
    use = Anomaly(balls=(rv.Ball("linf", 0.1),), search=SEARCH, suite=(name,), **FAST)
    unit = {"plain": UnitCost(forward=1e-3, gradient=2e-3, memory=0.0)}
    assert use.seconds({"plain": linear_victim()}, unit) > 0
    assert len(rows_of(run(use), condition="attacked")) == 16


def test_suite_never_weaker():
    images = rv.data.load("digits", split="test")
    victims = {"plain": rv.Victim(rv.load("digits-vae"))}
    weak, ball = "projected-ascent:steps=1,restarts=1", (rv.Ball("linf", 0.1),)
    more = ("projected-ascent:steps=20,restarts=1", "directed-ascent:search=(projected-ascent)")
    runs = [
        run(Anomaly(balls=ball, search=weak, suite=suite, anomalous=(9,), **FAST), victims, images)
        for suite in ((), more)
    ]
    for side, sign in (("normal", 1), ("anomalous", -1)):
        alone, together = (
            rows_of(result, side=side, condition="attacked", victim="plain") for result in runs
        )
        pairs = list(zip(alone, together, strict=True))
        assert all(sign * (b["score"] - a["score"]) >= -1e-6 for a, b in pairs)
        assert any(sign * (b["score"] - a["score"]) > 0.01 for a, b in pairs)
    attacks = {row["attack"] for row in runs[1].rows if row["condition"] == "attacked"}
    assert attacks & {"gradients 2", "gradients 3"}
    cut = Anomaly(search=weak, suite=more).cut(0.1)
    assert cut.suite[1]["search"]["restarts"] < rv.ProjectedAscent().restarts


@pytest.mark.parametrize(("norm", "climbs"), [("l2", True), ("linf", False)])
def test_climb_follows_squares(norm, climbs):
    """In l2 gradients go on from where squares ended, masked places stay, no row gets weaker."""
    images = rv.data.load("digits", split="test")
    victims = {"plain": rv.Victim(rv.load("digits-vae"))}
    # a single gradient leaves all to the squares and to what climbs from them
    use = Anomaly(
        balls=(rv.Ball(norm, 0.5),),
        search="projected-ascent:steps=1,restarts=1",
        anomalous=(9,),
        masked=tuple(range(8)),
        **{**FAST, "gradient_free": 20},
    )
    result = run(use, victims, images)
    attacks = {row["attack"] for row in rows_of(result, condition="attacked")}
    assert ("gradients from there" in attacks) == climbs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[Anomaly.__module__], "climb_of", lambda search: None)
        without = run(use, victims, images)
    for side, sign in (("normal", 1), ("anomalous", -1)):
        more, less = (
            [row["score"] for row in rows_of(one, side=side, condition="attacked")]
            for one in (result, without)
        )
        assert all(sign * (a - b) >= -1e-6 for a, b in zip(more, less, strict=True))


def test_certified_contains_attacked():
    victims = {"noisy": rv.Victim(linear_victim().vae, "input-noise:stddev=0.1")}
    use = Anomaly(balls=(rv.Ball("l2", 0.05),), search=SEARCH, **{**FAST, "votes": 41})
    result = run(use, victims)
    facts = result.probes["noisy"]["use"]
    assert facts["compared"] == 16 and facts["attacked_outside_certified"] == 0
    bounds = rows_of(result, condition="certified", side="anomalous")
    clean = rows_of(result, condition="clean", side="anomalous")
    # the ends move by the radius at least, and the noise hides nothing larger than itself
    for row, other in zip(bounds, clean, strict=True):
        assert other["score"] - 0.15 < row["lower"] < other["score"] - 0.045
        assert row["upper"] > other["score"] + 0.045


def test_violation_is_counted():
    row = {"victim": "a", "input": 1, "radius": 0.1, "norm": "l2"}
    rows = [
        {**row, "condition": "certified", "lower": 0.0, "upper": "inf"},
        {**row, "condition": "attacked", "score": -1.0},
    ]
    assert violations(rows, "a")["use"] == {"attacked_outside_certified": 1, "compared": 1}


def test_masked_places_stay():
    use = Anomaly(balls=(rv.Ball("linf", 0.1),), search=SEARCH, masked=(1, 2, 3), **FAST)
    result = run(use)
    pairs = zip(
        rows_of(result, condition="clean"), rows_of(result, condition="attacked"), strict=False
    )
    # only the kept coordinate may change, which the error does not see
    assert all(clean["score"] == pytest.approx(other["score"], abs=1e-6) for clean, other in pairs)


class Detector:
    """pyod's interface."""

    def decision_function(self, rows):
        return np.abs(rows - 0.5).sum(1)


def test_detector_without_gradients():
    vae = rv.wrap(Detector(), image_shape=(4,))
    profile = {"use": {"name": "anomaly", "balls": [{"norm": "linf", "radius": 0.1}], **FAST}}
    profile["use"]["gradient_free"] = 60
    record = rv.audit(vae, line_images(), profile=profile, question={"r": 1.0})
    assert record.rows == [] and record.left_out[0].stage == "plan"
    section = section_of(record)
    assert "an attacker hides" in section.answer[0]
    normal = [r for r in record.use.rows if r["side"] == "normal" and r["condition"] == "attacked"]
    # the planted optimum: every coordinate moves by 0.1, three from the middle
    assert all(row["score"] >= 0.35 for row in normal)


def test_sklearn_sign_is_turned():
    from sklearn.ensemble import IsolationForest

    x = line_images().x.flatten(1).double().numpy()
    forest = IsolationForest(n_estimators=5, random_state=0).fit(x)
    vae = rv.wrap(forest, image_shape=(4,))
    scores = vae.anomaly_scores(torch.tensor(x).float().reshape(-1, 1, 1, 4))
    assert torch.allclose(scores, -torch.tensor(forest.decision_function(x)).to(scores))


def my_score(victim, x, *, generator):
    return x.flatten(1).sum(1)


def test_score_by_path_and_fit():
    victim, clean = linear_victim(), line_images().x[:40]
    assert score_of(my_score, victim, clean) is my_score
    by_path = score_of(f"{__name__}:my_score", victim, clean)
    assert by_path(victim, clean, generator=rv.generator(0)).shape == (40,)
    assert score_of("latent-distance", victim, clean).mean.shape == (1,)
    assert score_of({"name": "anomaly-score", "squared": True}, victim, clean).squared
    assert score_of({"name": "noisy-distance", "blur": 0.5}, victim, clean).blur == 0.5


def test_sides_by_name_and_label():
    images = line_images()
    normal, anomalous = Anomaly().sides(images)
    assert len(normal) == 40 and len(anomalous) == 20
    swapped = Anomaly(normal=("crack",)).sides(images)
    assert torch.equal(swapped[0], anomalous)
    with pytest.raises(errors.UnknownNameError, match="crackk"):
        Anomaly(anomalous=("crackk",)).sides(images)
    with pytest.raises(errors.ConfigError, match="normal/ and anomalous/"):
        Anomaly().sides(rv.data.from_tensor(torch.rand(9, 1, 4, 4)))


@pytest.mark.parametrize("wrong", [{"votes": 2}, {"balls": ()}, {"fpr": 0.0}, {"inputs": 1}])
def test_bad_settings_are_refused(wrong):
    with pytest.raises(errors.RobustVAEError):
        Anomaly(**wrong)


def test_folders_name_their_kinds(tmp_path):
    from PIL import Image

    for kind in ("normal", "scratch"):
        (tmp_path / kind).mkdir()
        for i in range(3):
            Image.new("L", (8, 8), 20 * i).save(tmp_path / kind / f"{i}.png")
    images = rv.data.read_folder(tmp_path)
    assert images.classes == ("normal", "scratch")
    assert images[images.y == 1].class_name(1) == "scratch"


def test_record_survives_json():
    profile = {"use": {"name": "anomaly", "balls": [{"norm": "l2", "radius": 0.1}], **FAST}}
    plan = {"base": "use", "inputs": 8, "probes": 0, "gradient_free": 0}
    record = rv.audit(linear_victim(), line_images(), plan, profile=profile)
    again = rv.Record.from_json(record.to_json())
    assert again.use == record.use
    page = rv.report.files.render(again)
    assert section_of(again).answer[0] in page and "<polyline" in page


def test_profile_fields_from_text():
    from robustvae.audit.protocol import read_profile

    profile = read_profile("anomaly:fpr=0.01")
    assert profile["use"] == {"name": "anomaly", "fpr": 0.01}
    with pytest.raises(errors.UnknownNameError, match="fpr"):
        rv.audit(linear_victim(), line_images(), profile="anomaly:fprr=0.01")


def test_command_joins_anomalies(tmp_path):
    from robustvae.cli.common import with_anomalies

    wine = rv.data.load("wine", split="test")
    images = with_anomalies(wine[wine.y == 0], "wine", "test")
    assert images.classes == ("normal", "grower 1", "grower 2", "grower 3")
    normal, anomalous = Anomaly().sides(images)
    assert len(normal) == int((wine.y == 0).sum()) and len(anomalous) == len(wine)


def own_score(change):
    """A score of the user's own: the sum of pixels, changed."""
    return lambda victim, x, *, generator: change(x.flatten(1).sum(1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"normal": (0, 1), "anomalous": (1, 2)}, "1 on both sides"),
        ({"masked": (9999,)}, "lie below 64, got 9999"),
        ({"masked": (-1,)}, "count from 0, got -1"),
        ({"score": 5}, "a score is a name"),
        ({"score": {"name": "noisy-distance", "nosuch": 1}}, "nosuch"),
        ({"score": {"name": "latent-distance", "x": 3}}, "'x'"),
        ({"score": "json:loads"}, "the score loads must take"),
        ({"score": "os:getcwd"}, "the score getcwd must"),
        ({"score": lambda victim, x, generator: x.sum()}, r"got \(\) for 1"),
        ({"balls": (), "snr": (-1e308,)}, "300 decibels"),
        ({"masked": tuple(range(64))}, "all 64 places of an input are masked"),
        ({"score": own_score(lambda v: v * torch.nan)}, "is NaN for"),
        ({"score": own_score(lambda v: v.mean().reshape(1))}, r"got \(1,\) for 4"),
        ({"score": own_score(torch.Tensor.long)}, "floating-point number .* got torch.int64"),
        ({"score": own_score(lambda v: v - v.mean())}, "depends on the inputs beside it"),
        ({"score": lambda victim, x, generator: x.mul_(0).sum((1, 2, 3))}, "in place"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_odd_profiles_are_refused(options, words):
    images = rv.data.load("digits", split="test")
    with pytest.raises(errors.RobustVAEError, match=words):
        run(Anomaly(**{**FAST, **options}), {"plain": rv.Victim(rv.load("digits-vae"))}, images)


def test_classifier_is_no_detector():
    """Its output has another shape than its input, so there is no reconstruction error."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    victim = rv.Victim(rv.wrap(net, image_shape=(4,)))
    with pytest.raises(errors.ShapeError, match="this model is not an autoencoder"):
        run(Anomaly(**FAST), {"plain": victim})


def test_search_without_slope_is_told():
    """A detached score gives gradients nothing to follow: withstanding them proves nothing."""
    use = Anomaly(
        score=own_score(torch.Tensor.detach), search=SEARCH, balls=(rv.Ball("linf", 0.1),), **FAST
    )
    profile = {"plan": {"base": "use", "probes": 0, "gradient_free": 0}, "use": use}
    record = rv.audit(linear_victim(), line_images(), profile=profile)
    assert record.use.facts["without slope of victim"] == record.use.facts["searches of victim"]
    assert "met no slope to follow" in section_of(record).answer[1]
    assert any("count as evidence" in one.reason for one in record.left_out)
    seeing = run(Anomaly(search=SEARCH, balls=(rv.Ball("linf", 0.1),), **FAST))
    assert not any("slope" in one.reason for one in seeing.left_out)


@pytest.mark.parametrize(
    ("lift", "words"),
    [(0.0, "has nothing to hide, since the detector finds no"), (1.0, "hides ")],
)
def test_answer_counts_something(lift, words):
    """A detector that finds nothing is told so; "none of 0" would read as strength."""
    score = own_score(lambda v: lift * v)
    use = Anomaly(score=score, search=SEARCH, balls=(rv.Ball("linf", 0.1),), **FAST)
    result = run(use)
    facts = UseFacts(name="anomaly", rows=result.rows, facts=result.facts)
    sentence = " ".join(section(facts, ["plain"]).answer)
    assert words in sentence and " of 0 " not in sentence


def test_clean_score_is_no_attacked_one():
    """Where no search could be made there is no answer, not that of the clean inputs."""

    def brittle(victim, x, *, generator):
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("no gradient of this")
        return x.flatten(1).sum(1)

    result = run(Anomaly(score=brittle, search=SEARCH, balls=(rv.Ball("linf", 0.1),), **FAST))
    assert {row["condition"] for row in result.rows} == {"clean"}
    assert any("no gradient of this" in one.reason for one in result.left_out)
