"""Models by name."""

from __future__ import annotations

import sys
from typing import Any

from robustvae import registry
from robustvae.arguments import checked
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


@checked()
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
        UnknownNameError: No name leads to the class, as with wrapped models.
    """
    name = saved_name(vae)
    if name is None:
        raise UnknownNameError(
            f"a saved model needs a name that leads to its class, got {type(vae).__name__}: define "
            'it at the top of a module, with a `config` property, or put @register("model", '
            '"a-name") above it'
        )
    return name


def saved_name(vae: VAE) -> str | None:
    """The name that a checkpoint holds, registered or `package.module:Name`; None without one.

    A class that is not registered must stand at the top of a module and say by `config` how its
    models are made again: without that, nobody knows whether they need arguments.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.models.registry import saved_name
        >>> saved_name(rv.load("digits-vae"))
        'vae'
    """
    name: str | None = registry.name_of("model", vae)
    if name is not None:
        return name
    path = registry.target_of(type(vae))
    says_how = type(vae).config is not VAE.config
    return path if says_how and imported_class(path) is type(vae) else None


def imported_class(path: str) -> type[VAE] | None:
    """The `VAE` class that a path `package.module:Name` leads to, without importing anything.

    A checkpoint may come from anywhere, so a path in it runs no code: the module counts only where
    the user's own program has imported it.
    """
    module, colon, name = path.partition(":")
    kind = getattr(sys.modules.get(module), name, None) if colon else None
    return kind if isinstance(kind, type) and issubclass(kind, VAE) else None
