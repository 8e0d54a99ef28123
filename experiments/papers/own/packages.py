"""Models of two packages' own classes, trained here briefly, and what an attacker does to them.

CompressAI's scale hyperprior under the profile "codec", and KL autoencoders of diffusers' class
under the profile "latent-diffusion". Neither package is an extra of this library: an item says so
where its package is absent, and is then skipped by the tests. Training takes minutes at the size
"laptop", so nothing here says what a published model of the kind would do.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import robustvae as rv
from experiments.harness import Result, Row, Run, item
from experiments.papers.own.uses import Rows, codec_lines, encoder_lines
from robustvae.audit.profiles.base import UseContext
from robustvae.audit.profiles.codec import Codec
from robustvae.audit.profiles.latent_diffusion import LatentDiffusion
from robustvae.errors import MissingExtraError
from robustvae.models import VAE
from robustvae.models.checkpoint import weights_sha256
from robustvae.seeding import seeded

SIDE = 64
"""Of the codec's images: a hyperprior divides a side by 64."""


@final
@dataclass(frozen=True)
class CodecSpec:
    """How a codec is trained and attacked.

    Attributes:
        widths: Channels of the networks, and of the code.
        steps: Batches of the training.
        batch: Images of a batch.
        weight: Of the mean squared error in units of 1 / 255 against a bit a pixel.
        train: Data set of the training images.
        sets: What is attacked: a data set, and "side by side" for four images as one, or
            "enlarged".
        inputs: Images of each set.
        radii: In linf, units of the range.
        search: The gradient search.
    """

    widths: tuple[int, int] = (32, 48)
    steps: int = 600
    batch: int = 8
    weight: float = 0.0067
    train: str = "cifar10"
    sets: tuple[tuple[str, str], ...] = (
        ("cifar10", "side by side"),
        ("cifar10", "enlarged"),
        ("drawn-shapes", "enlarged"),
    )
    inputs: int = 8
    radii: tuple[float, ...] = (8 / 255,)
    search: str = "projected-ascent:steps=60,restarts=1"


@item(
    "own/hyperprior",
    "ours",
    sizes={
        "smoke": CodecSpec(
            widths=(8, 12),
            steps=2,
            batch=2,
            train="drawn-shapes",
            sets=(("drawn-shapes", "side by side"),),
            inputs=2,
            search="projected-ascent:steps=2,restarts=1",
        ),
        "laptop": CodecSpec(),
        "full": CodecSpec(steps=20_000, inputs=64),
    },
)
def hyperprior(spec: CodecSpec, run: Run) -> Result:
    """Bytes and quality of images changed against CompressAI's scale hyperprior."""
    models = package("compressai.models", "compressai")
    with seeded(run.seed):
        model = models.ScaleHyperprior(*spec.widths)
    train = run.images(spec.train, "train").x

    def optimize(stream: torch.Generator) -> None:
        rate_model(model.train(), train, spec, stream)

    key = f"{spec.widths} {spec.steps} {spec.batch} {spec.weight:g} {spec.train}"
    trained(model, key, run, optimize)
    model.update(force=True)  # the tables of its entropy coder
    vae = rv.wrap(model, image_shape=(3, SIDE, SIDE))
    run.weights["the codec"] = str(weights_sha256(vae))
    rows: list[Row] = []
    for data, layout in run.each(spec.sets):
        x = laid_out(run.images(data).x, layout, spec.inputs)
        images = rv.data.from_tensor(x, name=f"{data}, {layout}")
        use = Codec(spec.radii, spec.inputs, spec.search)
        context = UseContext({"codec": rv.Victim(vae)}, images, run.seed)
        found: Rows = run.part(f"rows of {images.name}", partial(judged, use, context), vae)
        rows += codec_lines(found, spec.radii, x.shape[1:], f"{images.name}: ")
        run.progress(f"{images.name}: done")
    sentence = (
        f"ScaleHyperprior{spec.widths} of CompressAI, {spec.steps} batches of {spec.batch} squares "
        f"of four images of {spec.train}; {spec.inputs} images of each set, {spec.search}; the "
        "search climbs the likelihood of codes under additive noise, reported are bytes of the "
        "codec's own file."
    )
    title = "CompressAI's scale hyperprior under attack"
    return run.result(title, "", rows, (sentence,), package=f"compressai {version('compressai')}")


def rate_model(model: Any, images: Tensor, spec: CodecSpec, stream: torch.Generator) -> None:
    """Train a codec: bits a pixel plus the weighted squared error, and its quantiles apart."""
    quantiles = [value for name, value in model.named_parameters() if name.endswith("quantiles")]
    own = {id(value) for value in quantiles}
    optimizer = torch.optim.Adam([p for p in model.parameters() if id(p) not in own], 1e-3)
    # the ends of the coder's tables: they follow the density, so they have a loss of their own
    table = torch.optim.Adam(quantiles, 1e-2)
    for step in range(spec.steps):
        if step == 3 * spec.steps // 4:
            optimizer.param_groups[0]["lr"] = 2e-4
        rows = torch.randint(len(images), (4 * spec.batch,), generator=stream)
        batch = side_by_side(images[rows])
        output = model(batch)
        bits = torch.stack([-value.log2().sum() for value in output["likelihoods"].values()]).sum()
        error = (output["x_hat"] - batch).square().mean()
        loss = bits / (len(batch) * SIDE * SIDE) + spec.weight * 255**2 * error
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        table.zero_grad()
        model.aux_loss().backward()
        table.step()


def side_by_side(x: Tensor) -> Tensor:
    """Squares of four images of 32 x 32 pixels: (4 N, C, 32, 32) to (N, C, 64, 64)."""
    parts = x.reshape(-1, 2, 2, *x.shape[1:])
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(len(parts), x.shape[1], SIDE, SIDE)


def laid_out(x: Tensor, layout: str, count: int) -> Tensor:
    """The first `count` squares of a layout, (count, 3, 64, 64)."""
    if layout == "side by side":
        return side_by_side(x[: 4 * count])
    large: Tensor = interpolate(x[:count], (SIDE, SIDE), mode="bilinear", align_corners=False)
    return large.clamp(0, 1)


@final
@dataclass(frozen=True)
class EncoderSpec:
    """How two encoders are trained and attacked.

    Attributes:
        widths: Channels of each level; a level after the first halves the sides.
        seeds: Of the encoders' first weights and batches.
        steps: Batches of the training.
        batch: Images of a batch.
        weight: Of the mean KL against the mean squared error, images in [-1, 1].
        data: Images of 32 x 32 pixels; trained on their training split.
        inputs: Images attacked.
        radii: In linf, units of the range.
        search: The gradient search.
        transforms: What happens to the images on their way.
    """

    widths: tuple[int, ...] = (24, 32, 48)
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 300
    batch: int = 16
    weight: float = 1e-4
    data: str = "cifar10"
    inputs: int = 8
    radii: tuple[float, ...] = (4 / 255, 8 / 255, 16 / 255)
    search: str = "projected-ascent:steps=20,restarts=1"
    transforms: tuple[str, ...] = ("jpeg:75", "jpeg:50", "resize:0.5", "blur:1", "noise:0.05")


@item(
    "own/kl-autoencoders",
    "ours",
    sizes={
        "smoke": EncoderSpec(
            (8, 8),
            steps=2,
            batch=2,
            data="drawn-shapes",
            inputs=4,
            radii=(8 / 255,),
            search="projected-ascent:steps=2,restarts=1",
            transforms=("blur:1",),
        ),
        "laptop": EncoderSpec(),
        "full": EncoderSpec(steps=20_000, inputs=64),
    },
)
def kl_autoencoders(spec: EncoderSpec, run: Run) -> Result:
    """Changes of the codes of two of diffusers' KL autoencoders: drift, survival, transfer."""
    images, train = run.images(spec.data), run.images(spec.data, "train").x
    vaes: dict[str, VAE] = {}
    for seed in run.each(spec.seeds, (0, 2)):
        model = kl_autoencoder(spec.widths, seed)

        def optimize(stream: torch.Generator, model: Any = model) -> None:
            reconstruct_model(model.train(), train, spec, stream)

        key = f"{spec.widths} {seed} {spec.steps} {spec.batch} {spec.weight:g} {spec.data}"
        trained(model, key, run, optimize, seed)
        vaes[f"seed {seed}"] = rv.wrap(model, image_shape=(3, 32, 32), pixels=(-1, 1))
        run.weights[f"seed {seed}"] = str(weights_sha256(vaes[f"seed {seed}"]))
        run.progress(f"seed {seed}: trained")
    victims = {name: rv.Victim(vae) for name, vae in vaes.items()}
    use = LatentDiffusion(spec.radii, spec.inputs, spec.search, spec.transforms)
    context = UseContext(victims, images, run.seed)

    with torch.no_grad():
        x = images.read(torch.arange(min(200, len(images))))
        errors = [
            Row(name, "mean squared error on [-1, 1]", float(4 * (v.reconstruct(
                x, generator=run.noise("error")) - x).square().mean()))
            for name, v in victims.items()
        ]  # fmt: skip
    rows = errors + encoder_lines(run.part("rows", partial(judged, use, context), *vaes.values()))
    sentence = (
        f"AutoencoderKL of diffusers, channels {spec.widths}, four latent channels, {spec.steps} "
        f"batches of {spec.batch} images of {spec.data}; {spec.inputs} test images, {spec.search}; "
        "the unit of a drift is the median distance between the codes of two images."
    )
    title = "Changes of the codes of KL autoencoders"
    return run.result(title, "", rows, (sentence,), package=f"diffusers {version('diffusers')}")


def judged(use: Codec | LatentDiffusion, context: UseContext) -> Rows:
    """The rows of a profile."""
    return use(context).rows


def kl_autoencoder(widths: tuple[int, ...], seed: int) -> Any:
    """A model of diffusers' class with the weights that a seed gives."""
    kind = package("diffusers", "diffusers").AutoencoderKL
    with seeded(seed):
        return kind(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=32,
        )


def reconstruct_model(
    model: Any, images: Tensor, spec: EncoderSpec, stream: torch.Generator
) -> None:
    """Train an autoencoder: the mean squared error and a little KL, images in [-1, 1]."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(spec.steps):
        if step == 3 * spec.steps // 4:
            optimizer.param_groups[0]["lr"] = 2e-4
        batch = 2 * images[torch.randint(len(images), (spec.batch,), generator=stream)] - 1
        code = model.encode(batch).latent_dist
        error = (model.decode(code.sample()).sample - batch).square().mean()
        loss = error + spec.weight * code.kl().mean() / code.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def package(module: str, name: str) -> Any:
    """A module of a package that is no extra of this library.

    Raises:
        MissingExtraError: It is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages' imports
        try:
            return importlib.import_module(module)
        except ImportError as error:
            raise MissingExtraError(
                f"this item needs the package {name}: pip install --no-deps {name}"
            ) from error


def trained(
    model: nn.Module,
    key: str,
    run: Run,
    optimize: Callable[[torch.Generator], None],
    seed: int | None = None,
) -> None:
    """Give a model the weights that training ends with, from the store where they are finished.

    Args:
        model: Whose parameters are trained, in place.
        key: All that decides the training, in words.
        run: Keeps them.
        optimize: Trains the model with a generator of batches.
        seed: Of the batches and of the noise that the model itself draws; the run's by default.
    """
    seed = run.seed if seed is None else seed

    def weights() -> Tensor:
        stream = rv.generator(seed)
        with seeded(seed):  # the package draws from torch's global generator
            optimize(stream)
        return parameters_to_vector(model.parameters()).detach()

    like = parameters_to_vector(model.parameters()).detach()
    vector_to_parameters(run.tensor(f"weights, {key}", like, weights), model.parameters())
    model.eval()
