"""What every model promises."""

from __future__ import annotations

import tempfile

import torch

from robustvae import registry
from robustvae.models import VAE, checkpoint
from robustvae.seeding import draw, generator, rand
from robustvae.testing.contracts import close, require, unchanged


def check_model(vae: VAE) -> None:
    """Check a model's contract: distributions of the right shapes, row by row, saved and loaded.

    Args:
        vae: A made model of any size.

    Raises:
        ContractError: A broken promise, in a sentence.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.testing import check_model
        >>> check_model(rv.models.create("vae", architecture="conv8", latent=2))
    """
    what = f"the model {type(vae).__name__}"
    vae.eval()
    like = torch.zeros(0, dtype=vae.dtype)
    x = rand(3, *vae.image_shape, like=like, generator=generator(0))
    with unchanged(vae, what), torch.no_grad():
        posterior = vae.encode(x)
        z = draw(posterior, generator=generator(1))
        mean = posterior.mean
        output = vae.decode(mean).mean
        log_prob = vae.decode(mean).log_prob(x)
        prior = draw(vae.prior(), (2,), generator=generator(2))
    require(
        mean.shape == z.shape == (3, vae.latent),
        f"{what} encodes to {tuple(mean.shape)}, not (3, {vae.latent})",
    )
    require(
        output.shape == x.shape and log_prob.shape[0] == 3,
        f"{what} decodes to {tuple(output.shape)}, not {tuple(x.shape)}",
    )
    require(prior.shape == (2, vae.latent), f"{what} has a prior of {tuple(prior.shape)}")
    with torch.no_grad():
        alone = torch.cat([vae.decode(vae.encode(row).mean).mean for row in x.split(1)])
    tolerance = 1e-9 if vae.dtype == torch.float64 else 1e-4
    require(close(alone, output, tolerance), f"{what} lets a row depend on the other rows")
    name = registry.name_of("model", vae)
    require(name is not None, f'{what} is not registered: put @register("model", ...) above it')
    again = registry.build("model", registry.spec_of("model", vae))
    require(type(again) is type(vae), f"{what} has a config that makes another model")
    with tempfile.TemporaryDirectory() as folder:
        copy = checkpoint.load(checkpoint.save(vae, f"{folder}/model"))
    require(
        checkpoint.weights_sha256(copy) == checkpoint.weights_sha256(vae),
        f"{what} comes back from a checkpoint with other weights",
    )
