"""The explorer computes what the library computes, and draws it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import robustvae as rv
from robustvae.app import Explorer, drawing
from robustvae.app.explorer import Scene
from robustvae.errors import MissingExtraError, RangeError, ShapeError

R = 0.86


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    vae = rv.load("digits-lipschitz-vae")
    defended = rv.Victim(vae, rv.InputNoise(stddev=0.25))
    return Explorer(vae, rv.data.load("digits", split="test"), defended, seed=3)


def test_attack_is_the_library_attack(explorer: Explorer) -> None:
    x = explorer.input(5)
    scene = explorer.attack(x, 0.7, "l2", steps=5, restarts=2)
    search = rv.ProjectedAscent(steps=5, restarts=2)
    attack = rv.Attack(rv.MaximumDamage(), search, rv.Ball("l2", 0.7))
    result = attack(rv.Victim(explorer.vae), x, generator=rv.generator(3))
    torch.testing.assert_close(scene.panels["attacked"], result.x_adv[0])
    assert scene.size == pytest.approx(float(result.size[0]))
    assert scene.size <= 0.7 + 1e-6 and scene.damage > 0
    assert scene.defended_damage is not None
    assert list(scene.panels)[-1] == "defended reconstruction"


def test_edge_lies_inside_the_certified_ball(explorer: Explorer) -> None:
    x = explorer.input(5)
    lower, upper = explorer.bracket(x, R)
    assert float(lower.radius[0]) <= float(upper.value[0])
    edge = explorer.edge(x, lower, upper)
    assert edge is not None
    assert edge.size == pytest.approx(float(lower.radius[0]), rel=1e-5)
    assert edge.damage < R


def test_edge_needs_a_certificate(explorer: Explorer) -> None:
    x = explorer.input(5)
    vae = rv.load("digits-vae")
    plain = Explorer(vae, explorer.images)
    lower = rv.certify(vae, x, r=1e-4, displacement="centered", generator=rv.generator(0))
    _, upper = explorer.bracket(x, R)
    assert plain.edge(x, lower, upper) is None


def test_spectrum_is_the_pullback(explorer: Explorer) -> None:
    x = explorer.input(2)
    values, directions = explorer.spectrum(x, count=3)
    full = rv.pullback(explorer.vae, x)
    assert values == pytest.approx(full.eigenvalues[0, :3].tolist(), rel=1e-3)
    assert all(float(one.norm()) == pytest.approx(1.0, rel=1e-3) for one in directions)


def test_upload_takes_the_models_shape(explorer: Explorer) -> None:
    pixels = np.zeros((30, 20, 3), dtype=np.uint8)
    pixels[:15] = 255
    x = explorer.read(pixels)
    assert x.shape == (1, 1, 8, 8)
    assert float(x[..., 0, :].min()) > 0.9 and float(x[..., 7, :].max()) < 0.1


def test_wrong_inputs_say_what_to_do(explorer: Explorer) -> None:
    with pytest.raises(RangeError, match="from 0 to 354, got 355"):
        explorer.input(355)
    with pytest.raises(ShapeError, match="--data"):
        Explorer(explorer.vae, rv.data.from_tensor(torch.rand(8, 1, 4, 4)))
    assert explorer.tolerance() == R


def test_pieces_have_words_and_escape_names() -> None:
    html = drawing.panels({"<input>": torch.rand(1, 4, 4)})
    assert 'alt="&lt;input&gt;"' in html and "<input>" not in html
    line = drawing.bracket(0.39999, 0.70001, 0.5, R)
    assert "certified 0.399, attacked 0.701, at r = 0.86" in line
    assert "not broken" in drawing.bracket(0.1, float("inf"), 0.5, R)
    assert "eigenvalue 3.00" in drawing.eigen_images([3.0], [torch.rand(1, 1, 9)])


def test_page_needs_the_extra(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from robustvae.app import page

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        page.build(explorer, R)


def test_missing_gradio_announces_nothing(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """No address before the page is served: who reads it would wait for nothing."""
    import sys

    from robustvae import cli

    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["app", "digits-vae"]) == cli.WRONG_USE
    printed = capsys.readouterr()
    assert "http" not in printed.out + printed.err and "pip install" in printed.err


@pytest.mark.parametrize(("damage", "side"), [(0.859, "less than"), (0.861, "more than")])
def test_edge_is_compared_with_r(damage: float, side: str) -> None:
    from robustvae.app.page import edge_in_words

    words = edge_in_words(Scene(panels={}, size=0.4, damage=damage), R)
    assert f": {side} r = 0.86." in words
