"""Planted fakes: models and defenses that look robust and are not, or do no work at all.

Each names the checks of which at least one must open the verdict. What each hides is in its
docstring. The honest victims stand at the end.
"""

from __future__ import annotations

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
}


def bit_depth() -> Any:
    from robustvae.registry import build

    return build("refinement", {"name": "bit-depth", "bits": 8})


def principal_components(x: Tensor) -> VAE:
    """A linear autoencoder of ten components of the training digits."""
    images = rv.data.load("digits", split="train").x.to(x.dtype).flatten(1)
    mean = images.mean(0)
    _, _, basis = torch.linalg.svd(images - mean, full_matrices=False)
    basis = basis[:10]

    def encode(images: Tensor) -> Any:
        return Normal((images.flatten(1) - mean) @ basis.T, torch.tensor(0.05, dtype=x.dtype))

    def decode(z: Tensor) -> Any:
        return Normal((z @ basis + mean).view(-1, *x.shape[1:]), torch.tensor(0.1, dtype=x.dtype))

    return rv.wrap(encode=encode, decode=decode, latent=10, image_shape=tuple(x.shape[1:]))
