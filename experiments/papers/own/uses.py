"""What an attacker can do to a codec and to the encoder of a latent-diffusion model.

The profiles "codec" and "latent-diffusion" on models that `rv.load` takes: by default those of
`examples/`, which are trained in seconds; any other by `model=FILE.py:FACTORY`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from robustvae.audit.profiles.base import UseContext
from robustvae.audit.profiles.codec import Codec
from robustvae.audit.profiles.latent_diffusion import LatentDiffusion
from robustvae.audit.profiles.transforms import STANDARD
from robustvae.defenses import Victim

Rows = list[dict[str, Any]]


@final
@dataclass(frozen=True)
class CodecSpec:
    """What is attacked, and how hard.

    Attributes:
        model: The codec.
        data: Images.
        inputs: How many of them.
        radii: In linf, units of the range.
        steps: Of the search.
    """

    model: str = "examples/use_codec.py:build"
    data: str = "drawn-shapes"
    inputs: int = 8
    radii: tuple[float, ...] = (4 / 255, 8 / 255, 16 / 255)
    steps: int = 60


@item(
    "own/codec",
    "ours",
    sizes={
        "smoke": CodecSpec("digits-vae", "digits", 2, (0.1,), 3),
        "laptop": CodecSpec(),
        "full": CodecSpec(inputs=64, steps=200),
    },
)
def codec(spec: CodecSpec, run: Run) -> Result:
    """Bits and quality of images that were changed to cost more, or to come back broken."""
    vae, images = run.model(spec.model), run.images(spec.data)
    use = Codec(spec.radii, spec.inputs, f"projected-ascent:steps={spec.steps},restarts=1")

    def judged() -> Rows:
        return use(UseContext({"codec": Victim(vae)}, images, run.seed)).rows

    rows = codec_lines(run.part("rows", judged, vae), spec.radii, images.image_shape)
    sentence = (
        f"{spec.inputs} images of {spec.data}, {spec.steps} gradients, one start; each goal's "
        "search climbs the likelihood of codes under additive noise, reported are bytes of the "
        "codec's file where it writes one, else the likelihood of rounded codes."
    )
    return run.result(f"Codec under attack: {spec.model}", "", rows, (sentence,))


@final
@dataclass(frozen=True)
class EncoderSpec:
    """What is attacked, how hard, and what happens to the changed images.

    Attributes:
        models: The encoder, and others that read the changes made for it.
        data: Images.
        inputs: How many of them.
        radii: In linf, units of the range.
        steps: Of the search.
        transforms: What happens to the images on their way.
    """

    models: tuple[str, ...] = (
        "examples/use_latent_diffusion.py:build",
        "examples/use_latent_diffusion.py:build_other",
    )
    data: str = "drawn-shapes"
    inputs: int = 8
    radii: tuple[float, ...] = (4 / 255, 8 / 255, 16 / 255)
    steps: int = 40
    transforms: tuple[str, ...] = STANDARD


@item(
    "own/latent-diffusion",
    "ours",
    sizes={
        "smoke": EncoderSpec(
            ("digits-vae", "digits-vae-noise"), "digits", 4, (0.1,), 3, ("blur:1",)
        ),
        "laptop": EncoderSpec(),
        "full": EncoderSpec(inputs=64, steps=200),
    },
)
def latent_diffusion(spec: EncoderSpec, run: Run) -> Result:
    """Drift, damage, survival and transfer of changes of an encoder's code."""
    vaes, images = {name: run.model(name) for name in spec.models}, run.images(spec.data)
    names = {name: f"encoder {i}" for i, name in enumerate(vaes)}
    search = f"projected-ascent:steps={spec.steps},restarts=1"
    use = LatentDiffusion(spec.radii, spec.inputs, search, spec.transforms)
    victims = {names[name]: Victim(vae) for name, vae in vaes.items()}

    def judged() -> Rows:
        return use(UseContext(victims, images, run.seed)).rows

    rows = encoder_lines(run.part("rows", judged, *vaes.values()))
    sentence = (
        f"{spec.inputs} images of {spec.data}, {spec.steps} gradients, one start; the unit of a "
        "drift is the median distance between the codes of two images; what is left after a "
        "transform is the distance between the transformed image with the change and without it."
    )
    return run.result("Changes of an encoder's code", "", rows, (sentence,))


def codec_lines(
    found: Rows, radii: Sequence[float], shape: tuple[int, ...], place: str = ""
) -> list[Row]:
    """Lines of the table from the rows of the profile "codec".

    Args:
        found: Rows of one victim.
        radii: In linf.
        shape: Of an image.
        place: Begins the name of every line.
    """
    clean = _columns(found, goal="nothing")
    pixels = math.prod(shape[-2:])
    name = f"{place}clean"
    rows = [
        measured(name, "bits a pixel", [row["bits"] / pixels for row in clean]),
        measured(name, "PSNR, dB", [row["psnr"] for row in clean]),
    ]
    for radius in radii:
        for goal in ("rate", "distortion", "rate and distortion", "random noise"):
            hit = _columns(found, goal=goal, radius=radius)
            name = f"{place}{goal}, linf {255 * radius:.3g}/255"
            if hit:
                more = [100 * (b["bits"] / a["bits"] - 1) for a, b in zip(clean, hit, strict=True)]
                loss = [a["psnr"] - b["psnr"] for a, b in zip(clean, hit, strict=True)]
                rows.append(measured(name, "more bits, %", more))
                rows.append(Row(name, "more bits at worst, %", max(more)))
                rows.append(measured(name, "PSNR lost, dB", loss))
    return rows


def encoder_lines(found: Rows) -> list[Row]:
    """Lines of the table from the rows of the profile "latent-diffusion"."""
    rows: list[Row] = []
    groups: dict[tuple[str, str], Rows] = {}
    for row in found:
        name = f"made for {row['made_for']}: {row['goal']}, linf {255 * row['radius']:.3g}/255"
        if "transform" in row:
            place = f"drift left after {row['transform']}"
        else:
            place = f"drift of {row['read_by']}"
        groups.setdefault((name, place), []).append(row)
    for (name, place), members in groups.items():
        rows.append(measured(name, place, [row["drift"] for row in members]))
        for key, words in (("ms_ssim", "MS-SSIM"), ("psnr", "PSNR, dB")):
            if key in members[0] and "transform" not in members[0]:
                values = [row[key] for row in members]
                rows.append(measured(name, f"{words} of the decoded images", values))
    return rows


def _columns(rows: Rows, **values: Any) -> Rows:
    return [row for row in rows if all(row.get(key) == value for key, value in values.items())]
