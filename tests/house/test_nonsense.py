"""Random nonsense, at least 500 pieces: only our own errors come back, in one line, no traceback.

A row calls one public name with arguments that work; each piece replaces one of them.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import robustvae as rv
from robustvae.errors import RobustVAEError

PIECES = settings(
    max_examples=24,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
MORE_PIECES = settings(PIECES, max_examples=100)

SHAPES = [(), (0,), (2,), (1, 8, 8), (0, 1, 8, 8), (2, 1, 8, 8), (3, 1, 8, 8), (2, 3, 7, 5)]


def tensors() -> st.SearchStrategy[torch.Tensor]:
    values = st.sampled_from([0.5, -1.0, 2.0, float("nan"), float("inf"), 6e4])
    kinds = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.complex64])
    floating = st.builds(
        lambda shape, value, dtype: torch.full(shape, value, dtype=dtype),
        st.sampled_from(SHAPES),
        values,
        kinds,
    )
    whole = st.builds(lambda shape: torch.ones(shape, dtype=torch.int64), st.sampled_from(SHAPES))
    return floating | whole


# No large whole numbers: a million steps are not nonsense, only slow.
NONSENSE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 0),
    st.sampled_from([0.0, -0.5, 1.5, float("nan"), float("inf"), -float("inf")]),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.lists(st.integers(-2, 2) | st.text(max_size=2), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(-2, 2), max_size=2),
    st.builds(object),
    st.just(torch.nn.Linear(2, 2)),
    st.just(dict),
    tensors(),
)


@functools.cache
def base() -> SimpleNamespace:
    vae = rv.models.create(
        "vae", architecture="mlp", latent=2, image_shape=(1, 8, 8), likelihood="bernoulli"
    )
    images = rv.data.load("digits", split="test")[:40]
    return SimpleNamespace(
        vae=vae.double(),
        images=images,
        x=images.x[:2].double(),
        x_adv=1 - images.x[:2].double(),
        victim=rv.Victim(vae.double()),
        ball=rv.Ball("l2", 0.5),
        search=rv.ProjectedAscent(steps=2, restarts=2),
        attack=rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(steps=2), rv.Ball("l2", 0.5)),
    )


def g() -> torch.Generator:
    return rv.generator(0)


GOALS = (
    "AnomalyScore",
    "BitRate",
    "EncoderTarget",
    "LatentShift",
    "LatentTarget",
    "MaximumDamage",
    "MetricDrop",
    "OutputTarget",
)


def used(make: str) -> Callable[..., Any]:
    """Make one part of an attack or a victim from fields, and use it."""

    def run(**fields: Any) -> Any:
        part = operator.attrgetter(make)(rv)(**fields)
        b = base()
        if make in GOALS:
            return rv.Attack(part, b.search, b.ball)(b.victim, b.x, generator=g())
        if make == "ClassifierFlip":
            victim = rv.Victim(b.vae, classifier=torch.nn.Linear(2, 3).double())
            return rv.Attack(part, b.search, b.ball)(victim, b.x, generator=g())
        if make == "AttackSuite":
            return part(b.victim, b.x[:1], generator=g())
        if make in ("LBFGS", "OneShot", "ProjectedAscent", "Universal"):
            return rv.Attack(rv.MaximumDamage(), part, b.ball)(b.victim, b.x, generator=g())
        if make == "Ball":
            return rv.Attack(rv.MaximumDamage(), b.search, part)(b.victim, b.x, generator=g())
        if make == "Attack":
            return part(b.victim, b.x, generator=g())
        if make.startswith("objectives."):
            return part(b.vae, b.x, generator=g())
        victim = part if make == "Victim" else rv.Victim(b.vae, part)
        return victim.reconstruct(b.x, generator=g())

    return run


def changed(make: str) -> Callable[..., Any]:
    """Make one change of images, and make it."""

    def run(**fields: Any) -> Any:
        change = getattr(rv.data, make)(**fields)
        return base().images.changed(change).at(1).read(torch.arange(2))

    return run


PLAN = {
    "inputs": 1,
    "draws": 10,
    "r": 1.0,
    "probes": 0,
    "longer": 1,
    "gradient_free": 0,
    "margins": {"steps": 1, "restarts": 1},
    "attacks": [{"search": {"name": "projected-ascent", "steps": 1, "restarts": 1}, "radius": 1.0}],
}
QUESTION = {"r": 1.0, "m": 0.5, "displacement": "centered"}


def smooth() -> dict[str, Any]:
    victim = rv.Victim(base().vae, rv.InputNoise(0.1))
    return {"victim": victim, "x": base().x, "draws": 20, "generator": g()}


# name: (what to call, arguments that work). A name of rv unless a dot follows a lower-case word.
ROWS: dict[str, tuple[Callable[..., Any] | None, Callable[[], dict[str, Any]]]] = {
    "generator": (None, lambda: {"seed": 0}),
    "draw": (
        None,
        lambda: {"distribution": base().vae.prior(), "shape": (2,), "generator": g()},
    ),
    "load": (None, lambda: {"model": "digits-vae"}),
    "wrap": (
        lambda **fields: rv.wrap(**fields).encode(base().x).mean,
        lambda: {
            "encode": base().vae.encode,
            "decode": base().vae.decode,
            "latent": 2,
            "image_shape": (1, 8, 8),
            "returns": "distribution",
        },
    ),
    "evaluate": (
        None,
        lambda: {
            "vae": base().vae,
            "images": base().images,
            "seed": 0,
            "inputs": 20,
            "draws": 4,
            "train": base().images,
            "parts": ["likelihood", "continuous", "reconstruction", "latents", "weights"],
        },
    ),
    "models.create": (
        None,
        lambda: {
            "name": "vae",
            "architecture": "mlp",
            "latent": 2,
            "image_shape": (1, 8, 8),
            "likelihood": "bernoulli",
        },
    ),
    "models.VAE.log_joint": (
        lambda **a: base().vae.log_joint(**a),
        lambda: {"x": base().x, "z": torch.zeros(2, 2)},
    ),
    "data.load": (None, lambda: {"name": "digits", "split": "test"}),
    "data.Images": (
        None,
        lambda: {"x": base().images.x, "y": base().images.y, "name": "mine", "split": "test"},
    ),
    "data.Images.sample": (
        lambda **a: base().images.sample(**a),
        lambda: {"n": 2, "stratified": False, "generator": g()},
    ),
    "data.Images.changed": (
        lambda change: base().images.changed(change).read(torch.arange(2)),
        lambda: {"change": rv.data.Blurred(1.0)},
    ),
    "data.Images.labeled_by": (
        lambda **a: base().images.labeled_by(**a),
        lambda: {"name": "label"},
    ),
    "data.Binarized": (changed("Binarized"), lambda: {"dynamic": True, "seed": 0}),
    "data.Blurred": (changed("Blurred"), lambda: {"sigma": 1.0}),
    "data.Compressed": (changed("Compressed"), lambda: {"quality": 50}),
    "data.Noisy": (changed("Noisy"), lambda: {"stddev": 0.1, "seed": 0}),
    "data.from_dataset": (
        lambda **a: rv.data.from_dataset(**a).x,
        lambda: {"dataset": [(base().x[0], 1), (base().x[1], 0)], "name": "mine", "split": "test"},
    ),
    "data.read_folder": (
        None,
        lambda: {"folder": "nowhere", "split": "train", "crop": 8, "size": 4, "channels": 1},
    ),
    "Ball": (used("Ball"), lambda: {"norm": "l2", "radius": 0.5, "low": 0.0, "high": 1.0}),
    "Victim": (
        used("Victim"),
        lambda: {"vae": base().vae, "defense": rv.PosteriorMean(), "classifier": None},
    ),
    "Victim.reconstruct": (
        lambda **a: base().victim.reconstruct(**a),
        lambda: {"x": base().x, "generator": g()},
    ),
    "PosteriorMean": (
        lambda **a: rv.PosteriorMean()(**a),
        lambda: {"vae": base().vae, "x": base().x, "generator": g()},
    ),
    "PosteriorSample": (
        lambda **a: rv.PosteriorSample()(**a),
        lambda: {"vae": base().vae, "x": base().x, "generator": g()},
    ),
    "PosteriorMode": (used("PosteriorMode"), lambda: {"steps": 2}),
    "InputNoise": (used("InputNoise"), lambda: {"stddev": 0.1, "votes": 1, "clip": False}),
    "HMC": (
        used("HMC"),
        lambda: {"steps": 2, "step_size": 0.1, "n_leapfrog": 2, "adapt": "chain"},
    ),
    "RobustPosterior": (
        used("RobustPosterior"),
        lambda: {"norm": "linf", "radius": 0.2, "steps": 2},
    ),
    "AnomalyScore": (used("AnomalyScore"), lambda: {"raises": True, "draws": 2}),
    "BitRate": (used("BitRate"), lambda: {"step": 1.0}),
    "EncoderTarget": (
        used("EncoderTarget"),
        lambda: {"target": base().x_adv, "spread": True, "scale": 1.0},
    ),
    "MetricDrop": (used("MetricDrop"), lambda: {"metric": "psnr", "center": "own", "draws": 2}),
    "Universal": (used("Universal"), lambda: {"steps": 2, "restarts": 1, "step": 1.0, "chunk": 4}),
    "MaximumDamage": (used("MaximumDamage"), lambda: {"through": "mean"}),
    "LatentShift": (used("LatentShift"), lambda: {"divergence": "symmetric_kl"}),
    "LatentTarget": (
        used("LatentTarget"),
        lambda: {"target": base().x_adv, "divergence": "kl", "layers": None, "draws": 2},
    ),
    "OutputTarget": (used("OutputTarget"), lambda: {"target": base().x_adv, "form": "squared"}),
    "ClassifierFlip": (used("ClassifierFlip"), lambda: {"label": torch.tensor([0, 1])}),
    "AttackSuite": (
        used("AttackSuite"),
        lambda: {"name": "smoke", "balls": (rv.Ball("l2", 0.5),)},
    ),
    "LBFGS": (used("LBFGS"), lambda: {"steps": 2, "restarts": 1, "memory": 2, "chunk": 4}),
    "OneShot": (used("OneShot"), lambda: {"count": 1, "steps": 4}),
    "pullback": (
        None,
        lambda: {
            "vae": base().vae,
            "x": base().x,
            "latent": "flat",
            "part": "mean",
            "std_term": "expected",
        },
    ),
    "ProjectedAscent": (
        used("ProjectedAscent"),
        lambda: {"steps": 2, "restarts": 2, "rule": "sign"},
    ),
    "Attack": (
        used("Attack"),
        lambda: {"goal": rv.MaximumDamage(), "search": base().search, "ball": base().ball},
    ),
    "Attack.__call__": (
        lambda **a: base().attack(**a),
        lambda: {"victim": base().victim, "x": base().x, "generator": g()},
    ),
    "robustness_probability": (
        None,
        lambda: {
            "victim": base().victim,
            "x": base().x,
            "x_adv": base().x_adv,
            "r": 1.0,
            "displacement": "centered",
            "draws": 20,
            "confidence": 0.95,
            "generator": g(),
        },
    ),
    "estimate_margin": (
        None,
        lambda: {
            "victim": base().victim,
            "x": base().x,
            **QUESTION,
            "norm": "l2",
            "box": True,
            "center": "mean",
            "generator": g(),
        },
    ),
    "Question": (None, lambda: {"r": 1.0, "m": 0.5, "norm": "l2", "displacement": "full"}),
    "certified_curve": (None, lambda: {**smooth(), "sizes": [0.1], "m": 0.5}),
    "certify_score": (None, lambda: {**smooth(), "sizes": [0.1], "quantile": 0.5}),
    "certify": (
        None,
        lambda: {"vae": base().vae, "x": base().x, **QUESTION, "norm": "l2", "generator": g()},
    ),
    "check": (None, lambda: {"model": base().vae, "x": base().x}),
    "data.as_images": (None, lambda: {"inputs": base().x}),
    "data.from_tensor": (None, lambda: {"x": base().x}),
    "models.create of a hierarchy": (
        lambda **a: rv.models.create("seatbelt", architecture="mlp", image_shape=(1, 8, 8), **a),
        lambda: {"widths": [2, 1], "between": [4], "hidden": [4], "batch_norm": False},
    ),
    "models.create of an NVAE": (
        lambda **a: rv.models.create("nvae", image_shape=(1, 8, 8), **a),
        lambda: {
            "preset": "tiny",
            "channels": 2,
            "groups": [1, 1],
            "latent_channels": 1,
            "cells": 1,
        },
    ),
    "models.create with a spread": (
        lambda **a: rv.models.create("vae", architecture="conv8", latent=2, **a),
        lambda: {"stddev": None, "stddev_offset": 0.1, "stddev_norm": 1.0},
    ),
    "objectives.ELBO": (
        used("objectives.ELBO"),
        lambda: {
            "beta": 1.0,
            "warmup": 0,
            "free_bits": 0.0,
            "input_noise": 0.2,
            "noise_warmup": 2,
        },
    ),
    "objectives.Adversarial": (
        used("objectives.Adversarial"),
        lambda: {
            "radii": (0.1, 0.2),
            "norm": "linf",
            "harm": ("damage",),
            "steps": 1,
            "step": 0.5,
            "share": 0.5,
            "base": rv.objectives.ELBO(),
        },
    ),
    "objectives.TotalCorrelation": (
        used("objectives.TotalCorrelation"),
        lambda: {
            "beta": 1.0,
            "size": 9,
            "alpha": 1.0,
            "gamma": 1.0,
            "sampling": "mss",
            "weight": 1.0,
            "warmup": 0,
            "free_bits": 0.0,
            "input_noise": (0.1, 0.2),
            "noise_warmup": 0,
        },
    ),
    "objectives.Mixup": (
        used("objectives.Mixup"),
        lambda: {
            "weight": 1.0,
            "squared": True,
            "concentration": 0.5,
            "base": rv.objectives.ELBO(),
        },
    ),
    "objectives.SmoothEncoder": (
        used("objectives.SmoothEncoder"),
        lambda: {
            "weight": 1.0,
            "radius": 0.1,
            "steps": 1,
            "step": 0.5,
            "base": rv.objectives.ELBO(),
        },
    ),
    "objectives.SelfConsistency": (
        used("objectives.SelfConsistency"),
        lambda: {"rho": 0.9, "weight": 1.0, "base": rv.objectives.ELBO(), "coupled": True},
    ),
    "objectives.SpectralRegularization": (
        used("objectives.SpectralRegularization"),
        lambda: {"weight": 0.1, "steps": 1, "base": rv.objectives.ELBO()},
    ),
    "objectives.SelfSupervision": (used("objectives.SelfSupervision"), lambda: {"rho": 0.9}),
    "objectives.SelfSupervision.__call__": (
        lambda **a: rv.objectives.SelfSupervision()(**a),
        lambda: {"vae": base().vae, "x": base().x, "generator": g()},
    ),
    "fit": (
        None,
        lambda: {
            "vae": rv.models.create(
                "vae", architecture="mlp", latent=2, image_shape=(1, 8, 8), likelihood="bernoulli"
            ),
            "objective": rv.objectives.ELBO(),
            "images": base().images,
            "epochs": 1,
            "batch_size": 20,
            "lr": 1e-3,
            "validation": 0.25,
            "generator": g(),
        },
    ),
    "audit": (
        None,
        lambda: {"victim": base().victim, "images": base().images, "plan": PLAN, "seed": 0},
    ),
    "verify": (None, lambda: {"folder": "nowhere", "inputs": 1}),
    "compare": (None, lambda: {"records": []}),
    "report.write": (None, lambda: {"record": None, "folder": "nowhere"}),
    "Record.from_json": (None, lambda: {"text": "{}"}),
}


# What a caller's own code raises is the caller's, and passes through: where a function is wanted,
# a function that does something else is no nonsense.
OWN_CODE = {"change", "classifier", "decode", "defense", "encode", "objective", "search"}


@pytest.mark.parametrize("name", ROWS)
def test_public_function_refuses_with_our_errors(name: str) -> None:
    @given(data=st.data())
    @settings(PIECES, max_examples=8 if name == "audit" else PIECES.max_examples)  # a second each
    def call_with_one_wrong_argument(data: st.DataObject) -> None:
        call, arguments = ROWS[name]
        given_arguments = arguments()
        call = call or operator.attrgetter(name)(rv)
        fixed = {"folder"}  # where to write: any name is a name
        key = data.draw(st.sampled_from([key for key in given_arguments if key not in fixed]))
        wrong = NONSENSE.filter(lambda value: not callable(value)) if key in OWN_CODE else NONSENSE
        given_arguments[key] = data.draw(wrong)
        with contextlib.suppress(RobustVAEError):
            call(**given_arguments)

    call_with_one_wrong_argument()


ONLY_NONSENSE = {
    "data.read_folder",
    "load",
    "report.write",
    "Record.from_json",
    "verify",
    "compare",
}


@pytest.mark.parametrize("name", [name for name in ROWS if name not in ONLY_NONSENSE])
def test_the_row_itself_is_sense(name: str) -> None:
    """Else the test above would be content with an argument that is always refused."""
    call, arguments = ROWS[name]
    (call or operator.attrgetter(name)(rv))(**arguments())


def test_every_public_name_has_a_row() -> None:
    made_by_us = {"AttackResult", "Certificate", "Estimate", "Record"}
    for name in rv.__all__:
        value = getattr(rv, name)
        is_error = inspect.isclass(value) and issubclass(value, BaseException)
        if callable(value) and not is_error and not inspect.isabstract(value):
            protocol = getattr(value, "_is_protocol", False)
            assert protocol or name in made_by_us or name in ROWS, f"{name} has no row"


def is_whole(word: str) -> bool:
    try:
        int(word)
    except ValueError:
        return False
    return True


WORDS = st.text(max_size=12) | st.sampled_from(
    ["nan", "inf", "-1", "1e999", "..", "/", "\0", "a\nb", "[red]", "%s", "{}", "'", "\u2603"]
)
NO_FLAG = WORDS.filter(lambda word: not word.startswith("-"))
NO_COUNT = NO_FLAG.filter(lambda word: not is_whole(word)) | st.just("-1")
DEVICES = st.sampled_from(["gpu", "cuda:99", "tpu", "meta", "", "cpu cpu", "\0"])

# What goes before, and what is always wrong after it.
WRONG_USES: list[tuple[list[str], st.SearchStrategy[str]]] = [
    ([], NO_FLAG),
    (["audit"], NO_FLAG),
    (["audit", "--plan"], NO_FLAG),
    (["audit", "--data"], NO_FLAG),
    (["audit", "--split"], NO_FLAG),
    (["audit", "--seed"], NO_COUNT | st.just(str(2**63))),
    (["audit", "--device"], DEVICES),
    (["certify"], NO_FLAG),
    (["certify", "--data"], NO_FLAG),
    (["certify", "--split"], NO_FLAG),
    (["certify", "--version"], NO_FLAG),
    (["certify", "--inputs"], NO_COUNT | st.sampled_from(["0", str(10**9)])),
    (["certify", "--r"], st.sampled_from(["0", "-1", "nan", "inf", "x", ""])),
    (["certify", "--m"], st.sampled_from(["0", "1", "-1", "nan", "inf", "x", ""])),
    (["certify", "--device"], DEVICES),
    (["train"], NO_FLAG),
    (["zoo"], NO_FLAG),
    (["zoo", "list"], NO_FLAG),
    (["doctor"], NO_FLAG),
]


def run(arguments: list[str]) -> tuple[int, str, str]:
    from robustvae import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(arguments)
    return code, out.getvalue(), err.getvalue()


def assert_one_line(arguments: list[str], code: int, err: str) -> None:
    assert code == 2, arguments
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert "internal error" not in err and "Traceback" not in err, err


@given(data=st.data())
@MORE_PIECES
def test_wrong_use_line_exit_2(data: st.DataObject) -> None:
    before, after = data.draw(st.sampled_from(WRONG_USES))
    arguments = [*before, data.draw(after)]
    code, _, err = run(arguments)
    assert_one_line(arguments, code, err)


TOKENS = st.sampled_from(
    [
        "audit",
        "train",
        "certify",
        "--seed",
        "--data",
        "--out",
        "--help",
        "--resume",
        "-q",
        "--m",
        "--",
    ]
)


@given(soup=st.lists(TOKENS | WORDS, max_size=6))
@MORE_PIECES
def test_soup_of_words_refused_or_helped(soup: list[str]) -> None:
    arguments = ["audit", "--plan", "no such plan", *soup]
    code, out, err = run(arguments)
    if code == 0:
        assert "Usage:" in out
    else:
        assert_one_line(arguments, code, err)
