"""Results print as three lines of words and numbers, never as screens of tensors."""

import math
from dataclasses import dataclass

import pytest
import torch

import robustvae as rv
from robustvae.display import three_lines
from robustvae.mcmc import hmc


@pytest.fixture(scope="module")
def results():
    vae, g = rv.load("digits-vae").double(), rv.generator(0)
    x = torch.rand(5, 1, 8, 8, generator=g, dtype=torch.float64)
    search = rv.ProjectedAscent(steps=2, restarts=1)
    attack = rv.Attack(rv.MaximumDamage(), search, rv.Ball("l2", 0.5))
    result = attack(rv.Victim(vae), x, generator=g)
    ask = {"r": 1.0, "displacement": "centered", "generator": g}
    return {
        "attack": result,
        "chain": hmc(lambda z: -z.square().sum(1), torch.zeros(5, 2), steps=9, generator=g),
        "certificate": rv.certify(vae, x, m=0.5, **ask),
        "probability": rv.robustness_probability(
            rv.Victim(vae), x, result.x_adv, draws=20, confidence=0.9, **ask
        ),
    }


@pytest.mark.parametrize("name", ["attack", "chain", "certificate", "probability"])
def test_results_print_three_lines(results, name):
    text, page = repr(results[name]), results[name]._repr_html_()
    assert len(text.splitlines()) == 3 or name == "certificate"  # which may name what to do next
    assert len(text) < 800 and "tensor" not in text
    assert "5" in text.splitlines()[0]
    assert page.startswith("<") and "<script" not in page


@three_lines(floor=("radius",))
@dataclass(repr=False)
class Sample:
    radius: torch.Tensor
    note: str = ""
    status: tuple[str, ...] = ()
    images: torch.Tensor | None = None


def test_guaranteed_numbers_are_rounded_down():
    text = repr(Sample(torch.tensor([0.19999, 0.99999])))
    assert "0.1999 to 0.9999" in text
    assert "1.2e+06" not in repr(Sample(torch.tensor([1.29999e6]))) and "1.299e+06" in repr(
        Sample(torch.tensor([1.29999e6]))
    )


def test_statuses_are_counted_and_images_named():
    text = repr(
        Sample(torch.tensor([1.0, math.nan]), "", ("ok", "abstain"), torch.zeros(2, 1, 8, 8))
    )
    assert "ok 1, abstain 1" in text and "1 not finite" in text
    assert "images (2, 1, 8, 8)" in text


def test_outside_text_stays_text():
    sample = Sample(torch.zeros(1), "<b>\x1b[31m")
    assert "\x1b" not in repr(sample)
    assert "<b>\\x1b" not in sample._repr_html_()[8:]
