"""Results print as three lines of words and numbers, never as screens of tensors."""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import typing
from dataclasses import dataclass

import pytest
import torch

import robustvae as rv
from robustvae.display import three_lines
from robustvae.mcmc import hmc
from robustvae.records import Verdict


@pytest.fixture(scope="module")
def results():
    vae, g = rv.load("digits-vae").double(), rv.generator(0)
    x = torch.rand(5, 1, 8, 8, generator=g, dtype=torch.float64)
    search = rv.ProjectedAscent(steps=2, restarts=1)
    attack = rv.Attack(rv.MaximumDamage(), search, rv.Ball("l2", 0.5))
    result = attack(rv.Victim(vae), x, generator=g)
    ask = {"r": 1.0, "displacement": "centered", "generator": g}
    images = rv.data.from_tensor(x.float(), name="noise")
    suite = rv.AttackSuite("smoke", balls=(rv.Ball("l2", 0.5),))
    return {
        "attack": result,
        "evaluation": rv.evaluate(rv.load("digits-vae"), images, seed=0, draws=4),
        "geometry": rv.pullback(vae, x),
        "suite": suite(rv.Victim(vae), x, generator=g),
        "chain": hmc(lambda z: -z.square().sum(1), torch.zeros(5, 2), steps=9, generator=g),
        "certificate": rv.certify(vae, x, m=0.5, **ask),
        "probability": rv.robustness_probability(
            rv.Victim(vae), x, result.x_adv, draws=20, confidence=0.9, **ask
        ),
    }


@pytest.mark.parametrize(
    "name",
    ["attack", "chain", "certificate", "evaluation", "geometry", "probability", "suite"],
)
def test_results_print_three_lines(results, name):
    text, page = repr(results[name]), results[name]._repr_html_()
    assert len(text.splitlines()) == 3
    assert len(text) < 800 and "tensor" not in text
    assert "5" in text.splitlines()[0]
    assert page.startswith("<") and "<script" not in page
    assert "no number" not in text, "a summary without a number says nothing"


def test_victim_prints_one_line():
    victim = rv.Victim(rv.load("digits-vae"), rv.InputNoise(0.25))
    assert repr(victim).startswith("Victim(GaussianVAE, InputNoise(stddev=0.25")
    assert "\n" not in repr(victim)


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
    assert "radius: 1299000\n" in repr(Sample(torch.tensor([1.29999e6])))


def test_certificate_never_prints_more_than_proved(results):
    kind = results["certificate"]
    text = repr(dataclasses.replace(kind, radius=torch.tensor([0.43371, 0.51269, 0.0, 0.5, 0.5])))
    assert "4 of 5 inputs, radii from 0.433 to 0.512 (l2)" in text


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


# Values that stand in lists, or that code reads: they print as plain dataclasses.
PLAIN = {
    "CampaignPlan",
    "Context",
    "Choice",
    "Cost",
    "Finding",
    "Outcome",
    "Plan",
    "Protocol",
    "State",
    "Step",
}


def results_of_public_functions():
    """Every class of ours that a public function, or a public object that is called, returns."""
    kinds = {}
    for info in pkgutil.walk_packages(rv.__path__, "robustvae."):
        if not info.ispkg or info.name in ("robustvae.cli", "robustvae.app"):
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            call = value
            if inspect.isclass(value):
                call = vars(value).get("__call__")
            if not inspect.isfunction(call):
                continue
            hint = typing.get_type_hints(call).get("return")
            for kind in typing.get_args(hint) or (hint,):
                is_record = dataclasses.is_dataclass(kind) or hasattr(kind, "model_fields")
                if inspect.isclass(kind) and is_record and kind.__module__.startswith("robustvae"):
                    kinds[kind.__name__] = kind
    return kinds


def test_every_public_result_prints_itself():
    kinds = results_of_public_functions()
    assert set(kinds) >= {"Certificate", "AttackResult", "Record", "Margin", "Chain", "Geometry"}
    assert set(kinds) >= PLAIN
    poor = {name for name, kind in kinds.items() if not hasattr(kind, "_repr_html_")} - PLAIN
    assert not poor, f"decorate with three_lines: {poor}"


def test_typed_records_print_three_lines():
    verdict = Verdict(sentences=("Useful; evidence sound.", "It breaks at 0.2."))
    assert len(repr(verdict).splitlines()) == 3 and "<b>Verdict" in verdict._repr_html_()
