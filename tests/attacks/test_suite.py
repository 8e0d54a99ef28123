"""The suite, its floors, the scores, and adversarials on disk."""

from __future__ import annotations

import gc
import json
import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustvae import errors
from robustvae.attacks import (
    Attack,
    AttackSuite,
    LatentShift,
    adversarial_accuracy,
    distances,
    likelihood_degradation,
    noise_robustness,
    rescore,
    store,
    success_curve,
)
from robustvae.attacks.suite import WORST, standard, stretched
from robustvae.data.changes import blur, jpeg
from robustvae.defenses import PosteriorMode, PosteriorSample, Victim
from robustvae.models import create
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.seeding import generator, rand

like = torch.zeros(0, dtype=torch.float64)


def make_vae():
    torch.random.default_generator.set_state(generator(5).get_state())
    return create("vae", architecture="mlp", latent=3, image_shape=(1, 8, 8), hidden=(24,)).double()


@pytest.fixture
def x() -> Tensor:
    return rand(4, 1, 8, 8, like=like, generator=generator(1))


def test_suite_led_by_pointwise_worst_case(x):
    victim = Victim(make_vae())
    found = AttackSuite("smoke")(victim, x, generator=generator(0))
    assert found.suite == "smoke-1"
    for ball in (Ball("linf", 0.1), Ball("l2", 1.0)):
        rows = [row for row in found.rows if row.ball == ball]
        worst = found.worst(ball)
        assert rows[0] is worst and worst.name == WORST
        attacks = torch.stack([row.damage for row in rows[1:] if row.attack])
        torch.testing.assert_close(worst.damage, attacks.amax(0))
        floors = {row.name: row for row in rows if not row.attack}
        assert set(floors) == {"noise", "blur", "JPEG"}
        assert all(worst.damage.mean() > row.damage.mean() for row in floors.values())
        for row in rows:
            assert ball.contains(x, row.x_adv).all()
            again = victim.reconstruct(row.x_adv, generator=generator(0))
            again = again - victim.reconstruct(x, generator=generator(0))
            torch.testing.assert_close(row.damage, again.flatten(1).norm(dim=1))
    table = found.table()
    assert table.count("worst of the attacks") == 2 and "floor: JPEG" in table
    with pytest.raises(errors.RangeError):
        found.worst(Ball("l2", 9.0))


def test_suite_takes_defense_and_balls(x):
    suite = AttackSuite("smoke", balls=(Ball("linf", 0.1),))
    victim = Victim(make_vae(), PosteriorMode(steps=3))
    assert suite(victim, x[:2], generator=generator(0)).suite == "smoke-1, custom balls"
    with pytest.raises(errors.UnknownNameError, match="did you mean 'standard'"):
        AttackSuite("standart")


def test_the_standard_suite_runs_whole(x):
    """Few inputs and one ball: every member of the standard suite works on a small model."""
    suite = AttackSuite("standard", balls=(Ball("l2", 0.5),))
    found = suite(Victim(make_vae()), x[:2], generator=generator(0))
    assert [row.name for row in found.rows[1:-3]] == [name for name, *_ in standard().members]
    assert all(row.status == ("ok", "ok") for row in found.rows)


def test_wide_suite_runs_whole(x, monkeypatch):
    """Every member beside the standard ones works on a small model, and the worst leads."""
    from robustvae.attacks import suite as module

    beside = tuple(m for m in module._WIDE if m not in module._STANDARD)
    monkeypatch.setattr(module, "_WIDE", beside)
    found = AttackSuite("wide", balls=(Ball("l2", 0.5),))(
        Victim(make_vae()), x[:2], generator=generator(0)
    )
    attacks = [row for row in found.rows if row.attack and row.name != WORST]
    assert [row.name for row in attacks] == [name for name, _, _ in beside]
    best = torch.stack([row.damage for row in attacks]).amax(0)
    torch.testing.assert_close(found.worst(Ball("l2", 0.5)).damage, best)


def test_adaptive_suite_keeps_reported_worst(x, monkeypatch):
    """Attacks that cannot be put to a victim are left out; by similarity the least one leads."""
    from robustvae.attacks import suite as module

    short = [
        (name, goal, module.ProjectedAscent(steps=2, restarts=1))
        if "ascent" in name
        else (name, goal, module.CodeSpace(2, 2, 1, 1) if "code" in name else search)
        for name, goal, search in module._ADAPTIVE[:4]
    ]
    monkeypatch.setattr(module, "_ADAPTIVE", tuple(short))
    ball = Ball("linf", 0.2)
    suite = AttackSuite("adaptive", balls=(ball,))
    defended = suite(Victim(make_vae(), PosteriorMode(steps=3)), x[:2], generator=generator(0))
    rows = [row for row in defended.rows if row.attack and row.name != WORST]
    least = torch.stack([row.similarity for row in rows]).amin(0)
    torch.testing.assert_close(defended.worst(ball, by="similarity").similarity, least)
    assert "similarity, code space" in {row.name for row in rows}
    plain = suite(Victim(make_vae()), x[:2], generator=generator(0))
    assert "similarity, code space" not in {row.name for row in plain.rows}


def test_floors_have_size_of_attack():
    x = 0.4 + 0.2 * rand(3, 3, 9, 9, like=like, generator=generator(1))
    for ball in (Ball("linf", 0.05), Ball("l2", 0.5)):
        for y in (blur(x), jpeg(x)):
            size = ball.size(x, stretched(x, y, ball))
            torch.testing.assert_close(size, ball.radii(x), rtol=1e-5, atol=0)
    flat = torch.full((1, 1, 8, 8), 0.5)
    torch.testing.assert_close(blur(flat), flat)
    assert (jpeg(x) - x).abs().max() < 0.3
    with pytest.raises(errors.UnsupportedError):
        jpeg(torch.zeros(1, 2, 8, 8))


def test_two_adversarial_accuracies_are_told_apart(x):
    vae = make_vae()
    classifier = nn.Linear(3, 3).double()
    victim = Victim(vae, classifier=classifier)
    said = victim.classify(x, generator=generator(0)).argmax(1)
    wrong = (said + 1) % 3
    held = adversarial_accuracy(victim, x, x, generator=generator(0))
    assert (held == 1).all()
    for label, wanted in ((said, 1.0), (wrong, 0.0)):
        found = adversarial_accuracy(victim, x, x, label, against="label", generator=generator(0))
        assert (found == wanted).all()
    with pytest.raises(errors.ShapeError):
        adversarial_accuracy(victim, x, x, against="label", generator=generator(0))


def test_likelihoods_by_hand(x):
    vae = make_vae()
    y = x.flip(0)

    def by_hand(at: Tensor) -> Tensor:
        logits = vae.decode(vae.encode(at).mean).logits
        return -functional.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1)

    clean, moved = by_hand(x).sum(1), by_hand(y).sum(1)
    wanted = (moved - clean).abs() / clean.abs()
    torch.testing.assert_close(likelihood_degradation(vae, x, y), wanted.detach())
    curve = noise_robustness(vae, x, [0.0, 0.3, 3.0], generator=generator(0))
    torch.testing.assert_close(curve[:, 0], clean.detach())
    box = noise_robustness(vae, x, [3.0], box=True, generator=generator(0))
    assert not torch.allclose(curve[:, 2:], box)
    with pytest.raises(errors.RangeError):
        noise_robustness(vae, x, [-0.1], generator=generator(0))


def test_distances_and_curves(x):
    victim = Victim(make_vae(), PosteriorSample())
    same = distances(victim, x, x, generator=generator(0))
    assert all((value == 0).all() for value in same.values())
    moved = distances(victim, x, x.flip(0), generator=generator(0))
    assert all((value > 0).all() for value in moved.values())
    least = torch.tensor([0.1, 0.2, math.inf])
    assert success_curve(least, [0.05, 0.1, 0.3]).tolist() == pytest.approx([0, 1 / 3, 2 / 3])


def stored(tmp_path, x, **more):
    vae, ball = make_vae(), Ball("linf", 0.1)
    attack = Attack(LatentShift(), ProjectedAscent(steps=5, restarts=2), ball)
    found = attack(Victim(vae), x, generator=generator(0))
    return vae, store(tmp_path / "s", Victim(vae), x, found, ball, attack="shift", **more)


def test_stored_adversarials_scored_again_by_anyone(tmp_path, x):
    _, folder = stored(tmp_path, x)
    found = rescore(folder)
    assert found.agrees and found.same_model and found.inside.all()
    assert found.manifest["attack"] == "shift"
    other = make_vae()
    with torch.no_grad():
        other.decoder[0].weight.mul_(3)
    other = rescore(folder, other)
    assert not other.same_model and not other.agrees


def test_a_forged_folder_is_found_out(tmp_path, x):
    import numpy as np

    _, folder = stored(tmp_path, x)
    with np.load(folder / "adversarials.npz") as held:
        arrays = dict(held)
    arrays["x_adv"] = np.clip(arrays["x_adv"] + 0.3, 0, 1)
    np.savez(folder / "adversarials.npz", **arrays)
    found = rescore(folder)
    assert not found.inside.all() and not found.agrees


def test_damaged_folders_are_refused(tmp_path, x):
    with pytest.raises(errors.DataError):
        rescore(tmp_path / "nothing")
    _, folder = stored(tmp_path, x, with_model=False)
    with pytest.raises(errors.CheckpointError, match="holds no model"):
        rescore(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 9}))
    with pytest.raises(errors.DataError, match="format 9"):
        rescore(folder)
    for key in manifest.keys() - {
        "defense",
        "inputs",
        "status",
        "arrays",
        "environment",
    }:  # which nobody reads
        content = {name: value for name, value in manifest.items() if name != key}
        (folder / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(errors.DataError, match="damaged"):
            rescore(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(errors.DataError):
        rescore(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for content in (b"PK no zip", b"PK\x03\x04 no zip", b"\x93NUMPY\x01\x00"):
        (folder / "adversarials.npz").write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as of a file that was left open
            with pytest.raises(errors.DataError):
                rescore(folder)
            gc.collect()
