"""Models by name."""

from __future__ import annotations

import inspect
from typing import Any

from robustvae.errors import UnknownNameError, check_choice, unknown
from robustvae.models.base import VAE
from robustvae.models.dlgm import DLGM
from robustvae.models.lipschitz import LipschitzVAE
from robustvae.models.nvae import NVAE
from robustvae.models.seatbelt import SeatbeltVAE
from robustvae.models.vae import GaussianVAE
from robustvae.seeding import seeded

MODELS: dict[str, type[VAE]] = {
    "dlgm": DLGM,
    "lipschitz-vae": LipschitzVAE,
    "nvae": NVAE,
    "seatbelt": SeatbeltVAE,
    "vae": GaussianVAE,
}


def names() -> list[str]:
    """Names that `create` knows, sorted.

    Examples:
        >>> import robustvae as rv
        >>> "vae" in rv.models.names()
        True
    """
    return sorted(MODELS)


def create(name: str, *, seed: int = 0, **options: Any) -> VAE:
    """Make a new, untrained model.

    Args:
        name: One of `names()`.
        seed: Decides the first weights; torch's global generator is left as it was.
        options: The model's own arguments, such as `architecture` and `latent`.

    Raises:
        UnknownNameError: Unknown model or option.
        RobustVAEError: What the model itself refuses.

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.models.create("vae", architecture="conv8", latent=8)
        >>> vae.latent, vae.image_shape
        (8, (1, 8, 8))
    """
    check_choice("model", name, MODELS)
    accepted = list(inspect.signature(MODELS[name]).parameters)
    for option in options:
        if option not in accepted:
            raise unknown(f"option of model {name!r}", option, accepted)
    with seeded(seed):
        return MODELS[name](**options)


def name_of(vae: VAE) -> str:
    """The name under which `create` makes models of this class.

    Raises:
        UnknownNameError: The class is not registered, as with wrapped models.
    """
    for name, kind in MODELS.items():
        if type(vae) is kind:
            return name
    raise UnknownNameError(
        f"{type(vae).__name__} is not a registered model: only models of `create` can be saved"
    )
