"""Functions with typed options: every one is described, a misspelling gets the nearest name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import pytest
import torch

import robustvae as rv
from robustvae._options import option_hints
from robustvae.errors import UnknownNameError, UnknownOptionError


def functions_with_options():
    """Every function or class of ours that takes typed options, by its full name."""
    functions = {}
    for info in pkgutil.walk_packages(rv.__path__, "robustvae."):
        if info.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            is_code = inspect.isfunction(value) or inspect.isclass(value)
            if is_code and getattr(value, "__module__", "") == info.name:
                code = value.__dict__.get("__init__") if inspect.isclass(value) else value
                if inspect.isfunction(code) and option_hints(code):
                    functions[f"{info.name}.{name}"] = value
    return functions


FUNCTIONS = functions_with_options()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_describes_every_option(name):
    text = FUNCTIONS[name].__doc__
    assert [o for o in option_hints(FUNCTIONS[name]) if not re.search(rf"\b{o}\b", text)] == []


def test_options_are_found():
    assert "robustvae.geometry.metric.pullback" in FUNCTIONS
    assert "robustvae.models.lipschitz.LipschitzVAE" in FUNCTIONS


def test_misspelled_option_gets_nearest_name():
    vae, x = rv.load("digits-vae"), torch.rand(1, 1, 8, 8)
    with pytest.raises(
        UnknownOptionError, match="argument of pullback 'chnk': did you mean 'chunk'"
    ):
        rv.pullback(vae, x, chnk=3)
    with pytest.raises(TypeError, match="argument of pullback 'latnt': did you mean 'latent'"):
        rv.pullback(vae, x, latnt="flat")
    with pytest.raises(UnknownNameError, match="did you mean 'hidden'"):
        rv.models.create("vae", latent=2, image_shape=(1, 4, 4), hiden=[8])


def test_models_read_options_as_fields():
    options = {"latent": 2, "image_shape": (1, 4, 4), "hidden": [8], "batch_norm": True}
    vae = rv.models.create("vae", **options)
    assert vae.config["hidden"] == [8] and vae.config["batch_norm"] is True
