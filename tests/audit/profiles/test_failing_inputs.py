"""An input that a victim raises for is named by a profile and costs the others nothing."""

from __future__ import annotations

import pytest

import robustvae as rv
from robustvae.audit.profiles.anomaly import Anomaly
from robustvae.audit.profiles.base import UseContext
from robustvae.audit.profiles.codec import Codec
from robustvae.audit.profiles.latent_diffusion import LatentDiffusion
from robustvae.audit.profiles.representation import Representation
from robustvae.audit.profiles.running import measured

FAST = "projected-ascent:steps=2,restarts=1"
USES = {
    "anomaly": Anomaly(
        inputs=6, balls=(rv.Ball("linf", 0.1),), gradient_free=0, votes=3, search=FAST
    ),
    "representation": Representation(inputs=6, balls=(rv.Ball("linf", 0.1),), search=FAST),
    "codec": Codec(inputs=6, search=FAST),
    "latent-diffusion": LatentDiffusion(inputs=6, search=FAST),
}


@pytest.fixture(scope="module")
def images():
    return rv.data.load("digits", split="test")


def moody(bad):
    """The bundled model, which raises for one image as it is, not for changed ones."""
    vae = rv.load("digits-vae")
    encode = vae.encode

    def raising(x):
        if bool((x.detach() - bad).flatten(1).norm(dim=1).lt(1e-6).any()):
            raise ValueError("not this one")
        return encode(x)

    vae.encode = raising
    return vae


def alone(rows, bad):
    """Rows of the others, without what depends on which inputs were read beside them.

    These are the spread of codes, the unit of a drift, and the input that is another's target.
    """
    return [
        {key: value for key, value in row.items() if key != "drift"}
        for row in rows
        if row["input"] != bad and row.get("goal") != "target"
    ]


@pytest.mark.parametrize("name", USES)
def test_failing_input_is_named(name, images):
    """All other rows are those of a model that reads every input."""
    use = USES[name]
    whole = measured(use, UseContext({"plain": rv.Victim(rv.load("digits-vae"))}, images))
    bad = whole.rows[3]["input"]
    context = UseContext({"plain": rv.Victim(moody(images[bad].x))}, images)
    result = measured(use, context)
    assert bad not in {row["input"] for row in result.rows}
    assert alone(whole.rows, bad) == alone(result.rows, bad)
    named = [one for one in result.left_out if one.stage == f"input {bad}"]
    assert [(one.victim, one.reason) for one in named] == [("plain", "ValueError: not this one")]


def test_model_without_use_raises(images):
    """Where every input fails, it is the model: its own error is told."""

    def refusing(x):
        raise ValueError("no input at all")

    vae = rv.load("digits-vae")
    vae.encode = refusing
    with pytest.raises(ValueError, match="no input at all"):
        measured(USES["codec"], UseContext({"plain": rv.Victim(vae)}, images))
