"""Models by name."""

from __future__ import annotations

from typing import Any

from robustvae import registry
from robustvae.errors import UnknownNameError
from robustvae.models.allowance import MODEL_BYTES, Allowance
from robustvae.models.base import VAE
from robustvae.seeding import seeded


def names() -> list[str]:
    """Names that `create` knows, sorted.

    Examples:
        >>> import robustvae as rv
        >>> "vae" in rv.models.names()
        True
    """
    return registry.names("model")


def create(name: str, *, seed: int = 0, **options: Any) -> VAE:
    """Make a new, untrained model.

    Args:
        name: One of `names()`, or `package.module:Name` of a `VAE` class of your own.
        seed: Decides the first weights; torch's global generator is left as it was.
        options: The model's own arguments, such as `architecture` and `latent`.

    Raises:
        UnknownNameError: Unknown model or option.
        RobustVAEError: Raised by the model itself.

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.models.create("vae", architecture="conv8", latent=8)
        >>> vae.latent, vae.image_shape
        (8, (1, 8, 8))
    """
    with seeded(seed), Allowance(MODEL_BYTES):
        vae: VAE = registry.build("model", {"name": name, **options})
    return vae


def name_of(vae: VAE) -> str:
    """The name under which `create` makes models of this class.

    Raises:
        UnknownNameError: The class is not registered, as with wrapped models.
    """
    name: str | None = registry.name_of("model", vae)
    if name is None:
        raise UnknownNameError(
            f"{type(vae).__name__} is not a registered model, and only those can be saved: "
            'put @register("model", "a-name") above its class'
        )
    return name
