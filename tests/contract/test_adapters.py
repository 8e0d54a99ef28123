"""What every adapter owes: a style that it recognizes, first of all, and a round trip."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import robustvae as rv
from robustvae.models.adapters import Adapter
from robustvae.registry import build, names

_path = Path(__file__).parents[1] / "foreign" / "styles.py"
_spec = importlib.util.spec_from_file_location("styles", _path)
styles = importlib.util.module_from_spec(_spec)
sys.modules["styles"] = styles  # dataclasses look their module up
_spec.loader.exec_module(styles)

# Of each adapter, a style of tests/foreign that it recognizes; None where its own test is below.
ROWS = {
    "black-box": "skip connections",
    "compressai": "learned codec",
    "detector": None,
    "diffusers": "latent diffusion",
    "flow": "flow posterior",
    "forward-alone": "forward alone",
    "lightning": "lightning module",
    "own": None,
    "pair": "dropout",
    "plain": "one sequence",
    "pythae": "pythae model",
    "scales": "two scales",
    "triple": "dictionary",
    "vector-quantized": "vector-quantized",
}


class Distance:
    """pyod's interface."""

    def decision_function(self, rows):
        return rows.sum(1)


def test_every_adapter_has_a_row():
    assert set(ROWS) == set(names("adapter"))


@pytest.mark.parametrize("name", ROWS)
def test_an_adapter_recognizes_its_style(name):
    adapter = build("adapter", name)
    assert isinstance(adapter, Adapter)
    if name == "detector":
        assert rv.wrap(Distance(), image_shape=(4,), adapter=name).recognized.startswith("Distance")
        return
    if ROWS[name] is None:
        vae = rv.load("digits-vae")
        assert rv.wrap(vae, adapter=name) is vae
        return
    style = styles.STYLES[ROWS[name]]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = style.make()
    by_name = rv.wrap(model, adapter=name, **{"image_shape": style.shape, **style.options})
    first = rv.wrap(model, **{"image_shape": style.shape, **style.options})
    assert first.recognized == by_name.recognized
    x = torch.rand(2, *first.image_shape, generator=rv.generator(0))
    with torch.no_grad():
        image = first.eval().decode(first.encode(x).mean).mean
    assert image.shape == x.shape and bool(image.isfinite().all())


def test_adapters_have_an_order():
    priorities = [build("adapter", name).priority for name in names("adapter")]
    assert len(set(priorities)) == len(priorities)
