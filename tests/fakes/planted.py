"""Planted fakes: models and defenses that look robust and are not, or do no work at all.

Each names the checks of which at least one must open the verdict. What each hides is in its
docstring. The honest victims stand at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional

import robustvae as rv
from robustvae.defenses import Refined
from robustvae.models import VAE
from robustvae.models.likelihoods import Gaussian

BLIND = ("gradient_seen", "gradient_matches_function")
USELESS = ("samples_beat_constant", "input_matters", "exchange_exceeds_tolerance")


@dataclass(frozen=True)
class Planted:
    """A fake: how it is made of an honest model and images, and which checks may name it."""

    make: Callable[[VAE, Tensor], Any]
    caught_by: tuple[str, ...]


FAKES: dict[str, Planted] = {}


def fake(*caught_by: str) -> Callable[[Callable[[VAE, Tensor], Any]], Callable[..., Any]]:
    def keep(make: Callable[[VAE, Tensor], Any]) -> Callable[[VAE, Tensor], Any]:
        FAKES[make.__name__] = Planted(make, caught_by)
        return make

    return keep


def behind(vae: VAE, change: Callable[[Tensor], Tensor]) -> rv.Victim:
    """The model behind a change of its input that calls itself a defense."""

    class Defense:
        is_random = False

        def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
            return vae.encode(change(x)).mean

    return rv.Victim(vae, Defense())


def wrapped(
    vae: VAE,
    encode: Callable[[Tensor], Any] | None = None,
    decode: Callable[[Tensor], Any] | None = None,
) -> VAE:
    """The model as a stranger's, with another encoder or decoder."""
    return rv.wrap(
        encode=encode or (lambda x: vae.encode(x)),
        decode=decode or (lambda z: vae.decode(z)),
        latent=vae.latent,
        image_shape=vae.image_shape,
    )


class Backward(torch.autograd.Function):
    """The identity, with another gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.change = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.change(gradient), None


def with_gradient(vae: VAE, change: Callable[[Tensor], Tensor]) -> VAE:
    return wrapped(vae, lambda x: vae.encode(Backward.apply(x, change)))


@fake(*BLIND)
def detached_sampler(vae: VAE, x: Tensor) -> Any:
    """A mode search that hands no gradient back."""
    return behind_mode(vae, 0.0)


@fake(*BLIND)
def detached_with_decoy(vae: VAE, x: Tensor) -> Any:
    """The same with a decoy gradient, so that it is not exactly zero."""
    return behind_mode(vae, 1e-9)


def behind_mode(vae: VAE, decoy: float) -> rv.Victim:
    class Detached:
        is_random = False

        def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
            search = rv.PosteriorMode(steps=10)
            with torch.no_grad():
                z = search(vae, x.detach(), generator=generator)
            return z + decoy * x.flatten(1).sum(1, keepdim=True)

    return rv.Victim(vae, Detached())


def quantized(levels: int) -> Callable[[Tensor], Tensor]:
    return lambda x: (x * levels).round() / levels


@fake(*BLIND)
def quantizer_8_bit(vae: VAE, x: Tensor) -> Any:
    """Rounding to 8 bits, which has gradient zero."""
    return behind(vae, quantized(255))


@fake(*BLIND)
def quantizer_4_bit(vae: VAE, x: Tensor) -> Any:
    """Rounding to 4 bits."""
    return behind(vae, quantized(15))


@fake(*BLIND)
def quantizer_2_bit(vae: VAE, x: Tensor) -> Any:
    """Rounding to 2 bits."""
    return behind(vae, quantized(3))


@fake(*BLIND, "same_beside_inputs")
def perceptual_hash_cache(vae: VAE, x: Tensor) -> Any:
    """Answers for the nearest known image by a coarse hash of block means."""
    known = x.clone()

    def block_means(images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, images.shape[-1] // 4).flatten(1)

    def change(images: Tensor) -> Tensor:
        return known[torch.cdist(block_means(images), block_means(known)).argmin(1)]

    return behind(vae, change)


@fake("same_output_twice", "score_recomputed")
def global_noise(vae: VAE, x: Tensor) -> Any:
    """Noise from torch's global generator, which nobody gave it."""
    return behind(vae, lambda images: images + 0.15 * torch.randn_like(images))


@fake("robust_without_attack", *USELESS, *BLIND, "adaptive_at_least_transfer")
def random_shift(vae: VAE, x: Tensor) -> Any:
    """A random shift by up to two pixels with noise: its own noise passes for robustness."""

    class Shift:
        is_random = True

        def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
            down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
            moved = x.roll((down, right), (2, 3))
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            return vae.encode(moved + 0.15 * noise).mean

    return rv.Victim(vae, Shift())


@fake(*BLIND, "same_beside_inputs", *USELESS)
def label_leak(vae: VAE, x: Tensor) -> Any:
    """The mean of a few images where an audited one is near, the model elsewhere."""
    known, calm = x.clone(), x[:3].mean(0, keepdim=True)

    def change(images: Tensor) -> Tensor:
        near = torch.cdist(images.flatten(1), known.flatten(1)).amin(1) < 1.3
        return torch.where(near.view(-1, 1, 1, 1), calm, images)

    return behind(vae, change)


@fake(*BLIND, "same_beside_inputs")
def memory_of_inputs(vae: VAE, x: Tensor) -> Any:
    """Snaps to the audited image that is near, and is honest everywhere else."""
    known = x.clone()

    def change(images: Tensor) -> Tensor:
        distance = torch.cdist(images.flatten(1), known.flatten(1))
        nearest = known[distance.argmin(1)]
        return torch.where((distance.amin(1) < 1.3).view(-1, 1, 1, 1), nearest, images)

    return behind(vae, change)


@fake("finite_everywhere", "attacks_ran")
def nan_off_the_inputs(vae: VAE, x: Tensor) -> Any:
    """Not a number wherever the input is not an audited one."""
    known = x.clone()

    def change(images: Tensor) -> Tensor:
        off = torch.cdist(images.flatten(1), known.flatten(1)).amin(1) > 1e-3
        return torch.where(off.view(-1, 1, 1, 1), torch.nan, 1.0) * images

    return behind(vae, change)


@fake("gradient_matches_function")
def gradient_flipped(vae: VAE, x: Tensor) -> Any:
    """The gradient with its sign turned."""
    return with_gradient(vae, torch.neg)


@fake("gradient_matches_function")
def gradient_shuffled(vae: VAE, x: Tensor) -> Any:
    """The gradient with its pixels in another order."""
    order = torch.randperm(x[0].numel(), generator=rv.generator(5))
    return with_gradient(vae, lambda g: g.flatten(1)[:, order].view_as(g))


@fake("gradient_matches_function")
def gradient_noised(vae: VAE, x: Tensor) -> Any:
    """The gradient buried in fixed noise of twice its length."""
    noise = torch.randn(x[:1].shape, generator=rv.generator(6), dtype=x.dtype)
    noise = noise / noise.norm()
    return with_gradient(vae, lambda g: g + 2 * noise * g.flatten(1).norm(dim=1).view(-1, 1, 1, 1))


@fake("gradient_matches_function")
def gradient_block_means(vae: VAE, x: Tensor) -> Any:
    """Hands on the means of blocks of the gradient only."""
    size = 2 if x.shape[-1] == 8 else 4

    def change(g: Tensor) -> Tensor:
        blocks = functional.avg_pool2d(g, size)
        return functional.interpolate(blocks, scale_factor=float(size), mode="nearest")

    return with_gradient(vae, change)


@fake("gradient_matches_function")
def gradient_of_one_half(vae: VAE, x: Tensor) -> Any:
    """Hands on the gradient of the upper half of the image only."""

    def change(g: Tensor) -> Tensor:
        upper = torch.ones_like(g)
        upper[..., g.shape[-2] // 2 :, :] = 0
        return g * upper

    return with_gradient(vae, change)


@fake("gradient_matches_function", *BLIND)
def gradient_vanishes_nearby(vae: VAE, x: Tensor) -> Any:
    """A steep gate whose gradient is a decoy of the image's mean."""

    def encode(images: Tensor) -> Any:
        q = vae.encode(images.detach())
        return Gaussian(q.mean + 1e-3 * images.mean((1, 2, 3))[:, None], q.stddev)

    return wrapped(vae, encode)


@fake("gradient_beats_gradient_free", *BLIND)
def steep_sigmoid(vae: VAE, x: Tensor) -> Any:
    """A hyperbolic tangent of gain 60 on the pixels: plateaus with walls between them."""
    return wrapped(vae, lambda images: vae.encode(0.5 + 0.5 * torch.tanh(60 * (images - 0.5))))


@fake(*USELESS)
def sigma_30(vae: VAE, x: Tensor) -> Any:
    """A posterior so wide that what is sampled has nothing to do with the input."""
    return wrapped(
        vae, lambda images: Normal(vae.encode(images).mean, torch.tensor(30.0, dtype=x.dtype))
    )


@fake(*USELESS)
def sigma_million(vae: VAE, x: Tensor) -> Any:
    """The same with a spread of a million."""
    return wrapped(
        vae, lambda images: Normal(vae.encode(images).mean, torch.tensor(1e6, dtype=x.dtype))
    )


@fake(*USELESS)
def codes_shrunk(vae: VAE, x: Tensor) -> Any:
    """Codes of a thousandth and spread 1: the decoder sees the prior."""
    return wrapped(
        vae, lambda images: Normal(1e-3 * vae.encode(images).mean, torch.tensor(1.0, dtype=x.dtype))
    )


@fake(*USELESS)
def constant_decoder(vae: VAE, x: Tensor) -> Any:
    """One picture for every code."""
    return wrapped(vae, decode=lambda z: vae.decode(0 * z))


@fake(*USELESS)
def untrained_lipschitz(vae: VAE, x: Tensor) -> Any:
    """Certified, attacked in vain, and never trained."""
    return rv.models.create("lipschitz-vae", latent=8, image_shape=vae.image_shape, hidden=[32])


@fake("same_output_in_any_batch", "score_recomputed")
def batch_statistics(vae: VAE, x: Tensor) -> Any:
    """Normalizes each batch by its own mean, so that a row depends on its neighbors."""
    return behind(vae, lambda images: images - images.mean(0, keepdim=True) + x.mean(0))


@fake("same_output_twice", "score_recomputed")
def counts_its_calls(vae: VAE, x: Tensor) -> Any:
    """Turns its input further with every call."""
    calls = [0]

    def change(images: Tensor) -> Tensor:
        calls[0] += 1
        return images.roll(calls[0] % 3, 3)

    return behind(vae, change)


@fake("attacks_ran")
def random_backward(vae: VAE, x: Tensor) -> Any:
    """Raises in its backward pass, so that no gradient attack runs."""

    def change(g: Tensor) -> Tensor:
        raise RuntimeError("vmap: called random operation while in randomness error mode")

    return with_gradient(vae, change)


@fake(*BLIND)
def activations_quantized(vae: VAE, x: Tensor) -> Any:
    """Codes rounded to quarters and nothing straight through: a quantized model's export."""
    return wrapped(
        vae,
        lambda images: Gaussian(
            (4 * vae.encode(images).mean).round() / 4, vae.encode(images).stddev.detach()
        ),
    )


@fake(*BLIND)
def stochastic_rounding(vae: VAE, x: Tensor) -> Any:
    """Rounds each pixel up or down to one of eight levels by chance."""

    class Dither:
        is_random = True

        def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
            dither = rv.seeding.rand(*x.shape, like=x, generator=generator)
            return vae.encode((7 * x + dither).floor().clamp(0, 7) / 7).mean

    return rv.Victim(vae, Dither())


@fake("near_inputs_near_outputs")
def noise_by_input(vae: VAE, x: Tensor) -> Any:
    """Noise that the input's own bits choose: the same for the same input, another nearby."""

    def change(images: Tensor) -> Tensor:
        rows = []
        for image in images.detach():
            seed = int(image.double().sum().item() * 1e9) % 2**31
            noise = torch.randn(image.shape, generator=rv.generator(seed), dtype=image.dtype)
            rows.append(0.2 * noise)
        return images + torch.stack(rows)

    return behind(vae, change)


@fake("same_output_twice", "same_output_in_any_batch", "score_recomputed", *BLIND)
def cache_by_hash(vae: VAE, x: Tensor) -> Any:
    """Answers from a cache of what it saw first among images that round to the same block means."""
    answers: dict[Any, Tensor] = {}

    def change(images: Tensor) -> Tensor:
        means = functional.avg_pool2d(images.detach(), images.shape[-1] // 4).flatten(1)
        keys = [tuple((10 * row).round().int().tolist()) for row in means]
        return torch.stack(
            [answers.setdefault(key, y) for key, y in zip(keys, images.detach(), strict=True)]
        )

    return behind(vae, change)


@fake("same_output_in_any_batch", "score_recomputed")
def wary_of_large_batches(vae: VAE, x: Tensor) -> Any:
    """Blurs heavily wherever many rows come at once, as they do under attack."""

    def change(images: Tensor) -> Tensor:
        if len(images) <= 20:
            return images
        return functional.avg_pool2d(images, 5, 1, 2, count_include_pad=False)

    return behind(vae, change)


@fake("gradient_matches_function")
def gradient_clipped_by_hook(vae: VAE, x: Tensor) -> Any:
    """A hook that hands on the gradient's largest entries alone, cut to one size."""

    def encode(images: Tensor) -> Any:
        inside = images.clone()
        if inside.requires_grad:
            inside.register_hook(lambda g: g.clamp(-1e-6, 1e-6) * (g.abs() < g.abs().amax() / 3))
        return vae.encode(inside)

    return wrapped(vae, encode)


@fake("gradient_beats_gradient_free", *BLIND)
def saturated_sigmoid(vae: VAE, x: Tensor) -> Any:
    """A logistic function of gain 1000 on the pixels: nothing but plateaus in float32."""
    return wrapped(vae, lambda images: vae.encode(torch.sigmoid(1e3 * (images - 0.5))))


@fake("finite_everywhere", "attacks_ran", *BLIND)
def nan_under_gradients(vae: VAE, x: Tensor) -> Any:
    """Not a number whenever somebody asks for gradients."""
    return wrapped(
        vae, lambda images: vae.encode(images * (torch.nan if images.requires_grad else 1.0))
    )


@fake(*BLIND)
def blurred_under_gradients(vae: VAE, x: Tensor) -> Any:
    """Another function whenever somebody asks for gradients."""

    def encode(images: Tensor) -> Any:
        if images.requires_grad:
            images = functional.avg_pool2d(images, 5, 1, 2).roll(3, 3)
        return vae.encode(images)

    return wrapped(vae, encode)


@fake("same_output_twice", "score_recomputed")
def noise_by_clock(vae: VAE, x: Tensor) -> Any:
    """Noise that the clock chooses."""

    def change(images: Tensor) -> Tensor:
        noise = torch.randn(
            images.shape, generator=rv.generator(time.perf_counter_ns()), dtype=images.dtype
        )
        return images + 0.15 * noise

    return behind(vae, change)


@fake("same_output_twice", "score_recomputed")
def tires_of_calls(vae: VAE, x: Tensor) -> Any:
    """Honest for its first hundred calls, and a blur ever after."""
    calls = [0]

    def change(images: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] <= 100:
            return images
        return functional.avg_pool2d(images, 5, 1, 2, count_include_pad=False)

    return behind(vae, change)


@fake("gradient_matches_function")
def gradient_low_passed(vae: VAE, x: Tensor) -> Any:
    """Hands on a blurred gradient."""
    return with_gradient(vae, lambda g: functional.avg_pool2d(g, 5, 1, 2))


@fake(*USELESS)
def codes_clipped(vae: VAE, x: Tensor) -> Any:
    """Codes cut to a hundredth of a unit: nearly one picture for all."""
    return wrapped(
        vae,
        lambda images: Gaussian(
            vae.encode(images).mean.clamp(-0.01, 0.01), vae.encode(images).stddev
        ),
    )


HONEST: dict[str, Callable[[VAE, Tensor], Any]] = {
    "plain": lambda vae, x: vae,
    "lipschitz": lambda vae, x: rv.load("digits-lipschitz-vae").to(x.dtype),
    "posterior_sample": lambda vae, x: rv.Victim(vae, rv.PosteriorSample()),
    "posterior_mode": lambda vae, x: rv.Victim(vae, rv.PosteriorMode(steps=10)),
    "robust_mode": lambda vae, x: rv.Victim(
        vae, rv.RobustPosterior(norm="linf", radius=0.1, steps=10)
    ),
    "robust_mode_l2": lambda vae, x: rv.Victim(
        vae, rv.RobustPosterior(norm="l2", radius=0.5, steps=6)
    ),
    "hmc": lambda vae, x: rv.Victim(vae, rv.HMC(steps=3)),
    "wrapped": lambda vae, x: wrapped(vae),
    "blurred": lambda vae, x: behind(
        vae, lambda images: functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    ),
    "gradient_scaled": lambda vae, x: with_gradient(vae, lambda g: 1e-6 * g),
    "half_precision_input": lambda vae, x: behind(
        vae, lambda images: images + (images.half().to(images) - images).detach()
    ),
    "straight_through_8_bit": lambda vae, x: rv.Victim(vae, Refined(bit_depth())),
    "linear": lambda vae, x: principal_components(x),
    "mixture_of_training_images": lambda vae, x: kernel_smoother(vae, x),
    "linear_whitened": lambda vae, x: principal_components(x, count=24, whiten=True),
    "hmc_tiny_steps": lambda vae, x: rv.Victim(vae, rv.HMC(steps=3, step_size=1e-3)),
    "hard_codec": lambda vae, x: codec(vae),
    "very_deep_tanh": lambda vae, x: wrapped(vae, lambda images: vae.encode(deep_tanh(images))),
    "noise_with_votes": lambda vae, x: rv.Victim(
        rv.load("digits-vae-noise").to(x.dtype), rv.InputNoise(stddev=0.25, votes=8)
    ),
}


def kernel_smoother(vae: VAE, x: Tensor) -> rv.Victim:
    """The nearest training images, mixed smoothly, with the true gradient."""
    training = rv.data.load("digits", split="train").x.to(x.dtype).flatten(1)

    def change(images: Tensor) -> Tensor:
        gaps = torch.cdist(images.flatten(1), training).square()
        return (torch.softmax(-4 * gaps, 1) @ training).view_as(images)

    return behind(vae, change)


def codec(vae: VAE) -> VAE:
    """Codes rounded to eighths, with the gradient of the code straight through, as codecs train."""

    def encode(images: Tensor) -> Any:
        q = vae.encode(images)
        return Gaussian(q.mean + ((8 * q.mean).round() / 8 - q.mean).detach(), q.stddev)

    return wrapped(vae, encode)


def deep_tanh(images: Tensor, layers: int = 24) -> Tensor:
    """Twenty-four layers of rotations and hyperbolic tangents, and the rotations turned back."""
    noise = torch.randn(images[0].numel(), images[0].numel(), generator=rv.generator(11))
    turn, _ = torch.linalg.qr(noise.to(images))
    flat = images.flatten(1)
    for _ in range(layers):
        flat = 8 * torch.tanh(flat @ turn / 8)
    for _ in range(layers):
        flat = flat @ turn.T
    return flat.view_as(images)


def bit_depth() -> Any:
    from robustvae.registry import build

    return build("refinement", {"name": "bit-depth", "bits": 8})


def principal_components(x: Tensor, count: int = 10, whiten: bool = False) -> VAE:
    """A linear autoencoder of the first principal components of the training digits."""
    images = rv.data.load("digits", split="train").x.to(x.dtype).flatten(1)
    mean = images.mean(0)
    _, values, basis = torch.linalg.svd(images - mean, full_matrices=False)
    basis = basis[:count]
    scale = values[:count] / len(images) ** 0.5 if whiten else torch.ones(count, dtype=x.dtype)

    def encode(images: Tensor) -> Any:
        code = (images.flatten(1) - mean) @ basis.T / scale
        return Normal(code, torch.tensor(0.05, dtype=x.dtype))

    def decode(z: Tensor) -> Any:
        return Normal(
            ((z * scale) @ basis + mean).view(-1, *x.shape[1:]), torch.tensor(0.1, dtype=x.dtype)
        )

    return rv.wrap(encode=encode, decode=decode, latent=count, image_shape=tuple(x.shape[1:]))
