"""Every style through every public entry point: right, untouched, and refused only by name."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import robustvae as rv
from robustvae.errors import RobustVAEError, UnsupportedError
from robustvae.models.base import frozen
from robustvae.robustness import Budget, displacements

_spec = importlib.util.spec_from_file_location("styles", Path(__file__).with_name("styles.py"))
styles = importlib.util.module_from_spec(_spec)
__import__("sys").modules["styles"] = styles  # dataclasses look their module up
_spec.loader.exec_module(styles)
STYLES = styles.STYLES

NEEDS_SHAPE = {
    "forward only",
    "learned codec",
    "skip connections",
    "tiny latent diffusion",
    "vector-quantized",
}
PLAN = {
    "inputs": 2,
    "draws": 20,
    "gradient_free": 5,
    "longer": 1,
    "probes": 1,
    "gallery": 1,
    "margins": {"steps": 1, "restarts": 1},
    "attacks": [{"radius": 0.5, "search": {"name": "projected-ascent", "steps": 2, "restarts": 1}}],
}


def owners(model):
    return [model] if isinstance(model, nn.Module) else [model.layers]


def built(name):
    style = STYLES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = style.make()
    shape = {"image_shape": style.shape} if name in NEEDS_SHAPE else {}
    return style, model, rv.wrap(model, **{**shape, **style.options})


def state_of(model):
    (owner,) = owners(model)
    return (
        {name: value.clone() for name, value in owner.state_dict().items()},
        [part.training for part in owner.modules()],
        [p.requires_grad for p in owner.parameters()],
        [p.stride() for p in owner.parameters()],
        [sorted(vars(part)) for part in owner.modules()],
        [len(part._forward_hooks) for part in owner.modules()],
        torch.get_rng_state(),
        np.random.get_state()[1].tobytes(),
    )


def assert_same_state(one, other):
    for first, second in zip(one, other, strict=True):
        if isinstance(first, dict):
            assert first.keys() == second.keys()
            assert all(torch.equal(first[key], second[key]) for key in first)
        elif isinstance(first, torch.Tensor):
            assert torch.equal(first, second)
        else:
            assert first == second


def inputs(vae, rows=3):
    return torch.rand(rows, *vae.image_shape, generator=rv.generator(3), dtype=vae.dtype)


@pytest.mark.parametrize("name", STYLES)
def test_wrapping_equals_the_reference(name):
    style, model, vae = built(name)
    assert vae.output_only == style.is_black_box
    assert vae.recognized
    x = inputs(vae)
    low, high = style.range
    u = (low + (high - low) * x).reshape(len(x), *style.shape)
    with torch.no_grad(), frozen(owners(model)[0]):
        z = style.encode(model, u.clone())
        image = style.decode(model, z)
    expected = (image.reshape(x.shape) - low) / (high - low)
    with torch.no_grad(), frozen(vae):
        torch.testing.assert_close(vae.encode(x).mean, z, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(vae.decode(z).mean, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", STYLES)
def test_reconstruction_and_attack_work(name):
    _, model, vae = built(name)
    before, x = state_of(model), inputs(vae)
    victim, g = rv.Victim(vae), rv.generator(0)
    image = victim.reconstruct(x, generator=g)
    assert image.shape == x.shape and image.is_contiguous()
    search = rv.ProjectedAscent(steps=4, restarts=2)
    found = rv.Attack(rv.MaximumDamage(), search, rv.Ball("l2", 0.5))(victim, x, generator=g)
    assert found.status == ("ok",) * 3
    assert bool((found.score > 0).all())
    for chunk in (1, 2, 5):
        parts = displacements(victim, x, found.x_adv, "paired", generator=g, draws=4, chunk=chunk)
        assert parts.shape == (4, 3)
    assert_same_state(state_of(model), before)


def refusal(call):
    """The named error of a call, or None where it works."""
    try:
        call()
    except UnsupportedError as error:
        return str(error)
    return None


REFUSED = r"spread|likelihood|prior|posterior|black box|code|Gaussian|density|NoiseReduction"


@pytest.mark.parametrize("name", STYLES)
def test_every_entry_point_works_or_refuses(name):
    _, model, vae = built(name)
    before, x, g = state_of(model), inputs(vae, 2), rv.generator(0)
    search, ball = rv.ProjectedAscent(steps=2, restarts=1), rv.Ball("l2", 0.5)
    victim = rv.Victim(vae)
    calls = {
        "latent shift": lambda: rv.Attack(rv.LatentShift(), search, ball)(victim, x, generator=g),
        "latent means": lambda: rv.Attack(rv.LatentShift("means"), search, ball)(
            victim, x, generator=g
        ),
        "output target": lambda: rv.Attack(rv.OutputTarget(1 - x), search, ball)(
            victim, x, generator=g
        ),
        "draws": lambda: rv.Victim(vae, rv.PosteriorSample()).reconstruct(x, generator=g),
        "hmc": lambda: rv.Victim(vae, rv.HMC(steps=1)).reconstruct(x, generator=g),
        "mode": lambda: rv.Victim(vae, rv.PosteriorMode(steps=2)).reconstruct(x, generator=g),
        "robust": lambda: rv.Victim(vae, rv.RobustPosterior(steps=2)).reconstruct(x, generator=g),
        "probability": lambda: rv.robustness_probability(
            victim, x, x, 1.0, "full", generator=g, draws=10
        ),
        "margin": lambda: rv.estimate_margin(
            victim,
            x,
            1.0,
            0.5,
            "full",
            generator=g,
            budget=Budget(starts=1, steps=2, draws=60, choosing=10),
        ),
        "certify": lambda: rv.certify(
            vae, x, r=1.0, m=0.5, displacement="full", norm="l2", generator=g
        ),
        "pullback": lambda: rv.pullback(vae, x),
        "check": lambda: rv.check(vae, x),
    }
    faults = {}
    for entry, call in calls.items():
        try:
            said = refusal(call)
        except Exception as error:  # all of them in one message
            said = f"raised {type(error).__name__}: {error}"
        if said is not None and not re.search(REFUSED, said.partition("raised ")[0]):
            faults[entry] = said
    assert not faults
    assert_same_state(state_of(model), before)


@pytest.mark.parametrize("name", STYLES)
def test_diagnosis_accuses_no_style(name):
    _, model, vae = built(name)
    before = state_of(model)
    found = rv.check(vae, inputs(vae))
    assert found.passed, str(found)
    assert_same_state(state_of(model), before)


@pytest.mark.parametrize("name", STYLES)
def test_audits_end_with_a_verdict(name):
    _, model, vae = built(name)
    before = state_of(model)
    images = rv.data.from_tensor(inputs(vae, 8))
    record = rv.audit(rv.Victim(vae), images, plan=PLAN)
    assert len(record.rows) >= 2
    assert record.verdict.first
    assert_same_state(state_of(model), before)


def test_most_styles_take_one_line():
    assert len(STYLES) >= 25
    assert len(set(STYLES) - NEEDS_SHAPE) >= 20
    assert math.prod(STYLES["audio"].shape) == 64
    assert issubclass(UnsupportedError, RobustVAEError)
