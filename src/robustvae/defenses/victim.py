"""What an attack is pointed at: a VAE, the way a latent is read off an image, a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from robustvae.defenses.defense import Defense, reads_encoder_mean
from robustvae.defenses.posterior import PosteriorMean
from robustvae.errors import ConfigError, DtypeError, check_images, check_type
from robustvae.models.base import VAE, check_weights, frozen


@final
@dataclass(frozen=True)
class Victim:
    """A VAE with its defense and, where there is one, the classifier built on its latents.

    A defense-aware attack is this same object with another defense, not another attack. The
    model runs in evaluation mode with frozen weights, and both are restored afterwards. Where
    `x` requires no gradient, no graph is kept, and weights that are not finite are refused.

    Args:
        vae: The model.
        defense: How a latent is read off an image.
        classifier: Latents (B, d) to logits (B, K), or None.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x = torch.rand(3, 1, 4, 4)
        >>> rv.Victim(vae).reconstruct(x, generator=rv.generator(0)).shape
        torch.Size([3, 1, 4, 4])
    """

    vae: VAE
    defense: Defense = field(default_factory=PosteriorMean)
    classifier: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Refuse what is no model, no defense or no classifier."""
        check_type(self.vae, "vae", VAE)
        check_type(self.defense, "defense", Defense)
        if not (self.classifier is None or callable(self.classifier)):
            kind = type(self.classifier).__name__
            raise DtypeError(f"classifier must be a function or module, got {kind}")

    @property
    def draws_own_posterior(self) -> bool:
        """Whether this is the VAE as it is: one draw of its posterior a use, or its mean."""
        return reads_encoder_mean(self.defense) and getattr(self.defense, "draws", 1) == 1

    def latent(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The latent that the defense reads off each image.

        Args:
            x: Images in [0, 1], (B, C, H, W).
            generator: Spent by the defense.

        Returns:
            Latents, (B, d).
        """
        with self._ready(x):
            return self.defense(self.vae, x, generator=generator)

    def reconstruct(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The decoder's mean at the latent that the defense reads off each image.

        Args:
            x: Images in [0, 1], (B, C, H, W).
            generator: Spent by the defense.

        Returns:
            Reconstructions, (B, C, H, W).
        """
        with self._ready(x):
            z = self.defense(self.vae, x, generator=generator)
            return self.vae.decode(z).mean

    def classify(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The classifier's logits on the latent that the defense reads off each image.

        Args:
            x: Images in [0, 1], (B, C, H, W).
            generator: Spent by the defense.

        Returns:
            Logits, (B, K).

        Raises:
            ConfigError: This victim has no classifier.
        """
        if self.classifier is None:
            raise ConfigError("this victim has no classifier: give Victim(..., classifier=...)")
        with self._ready(x):
            return self.classifier(self.defense(self.vae, x, generator=generator))

    @contextmanager
    def _ready(self, x: Tensor) -> Iterator[None]:
        check_images(x, self.vae.image_shape, low=None, high=None)
        graph = torch.is_grad_enabled() and x.requires_grad
        if not graph:  # a search's many gradient steps were preceded by this check
            check_weights(self.vae)
        with frozen(self.vae), torch.set_grad_enabled(graph):
            yield
