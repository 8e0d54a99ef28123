"""What an attack is pointed at: a VAE, how a latent is read off an image, a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from robustvae.defenses.defense import Defense, reads_encoder_mean
from robustvae.defenses.independence import Independence
from robustvae.defenses.noise import InputNoise
from robustvae.defenses.posterior import PosteriorMean
from robustvae.errors import ConfigError, DtypeError, ShapeError, check_images
from robustvae.models.base import VAE, check_weights, frozen
from robustvae.registry import build_fields


@final
@dataclass(frozen=True, repr=False)
class Victim:
    """A VAE with its defense and, where there is one, the classifier built on its latents.

    A defense-aware attack is this same object with another defense, not another attack. The
    model runs in evaluation mode with frozen weights, and both are restored afterwards. Where
    `x` requires no gradient, no graph is kept, and weights that are not finite are refused.

    Args:
        vae: The model.
        defense: How a latent is read off an image: an object, or a spec such as
            "robust-posterior:norm=linf,radius=0.2". Of `InputNoise` with several `votes` an output
            is the mean of so many independent draws.
        classifier: Latents (B, d) to logits (B, K), or None.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x = torch.rand(3, 1, 4, 4)
        >>> rv.Victim(vae).reconstruct(x, generator=rv.generator(0)).shape
        torch.Size([3, 1, 4, 4])
        >>> rv.Victim(vae, "posterior-mode:steps=5").defense.steps
        5
    """

    vae: VAE
    defense: Defense = field(default_factory=PosteriorMean)
    classifier: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Validate the fields, and make a defense of a spec."""
        if not isinstance(self.vae, VAE):
            raise DtypeError(
                f"vae must be of type VAE, got {type(self.vae).__name__}: "
                "for a model of your own give rv.Victim(rv.wrap(model))"
            )
        build_fields(self, defense="defense")
        if not (self.classifier is None or callable(self.classifier)):
            kind = type(self.classifier).__name__
            raise DtypeError(f"classifier must be a function or module, got {kind}")

    def __repr__(self) -> str:
        read = "" if self.classifier is None else ", with a classifier"
        return f"Victim({type(self.vae).__name__}, {self.defense!r}{read})"

    @property
    def draws_own_posterior(self) -> bool:
        """Whether this is the VAE as it is: one draw of its posterior a use, or its mean."""
        return reads_encoder_mean(self.defense) and getattr(self.defense, "draws", 1) == 1

    @property
    def noise(self) -> InputNoise | None:
        """The noise on the input, where there is any: what smoothing certifies."""
        return self.defense if isinstance(self.defense, InputNoise) else None

    @property
    def votes(self) -> int:
        """How many independent draws one output is the mean of."""
        return 1 if self.noise is None else self.noise.votes

    def check_draws(self, x: Tensor, *, at_once: int = 64, batches: int = 64) -> None:
        """Raise unless draws behind noise look independent and of one law, as smoothing needs.

        Args:
            x: Images in [0, 1], (B, C, H, W); the first is drawn from.
            at_once: Rows of a batch of draws.
            batches: How many batches.

        Raises:
            UnsupportedError: There is no noise on the input, or what the draws show, in a sentence.
        """
        Independence(self, x, at_once).check_draws(batches)

    def latent(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The latent that the defense reads off each image; of several votes, their mean.

        Args:
            x: Images in [0, 1], (B, C, H, W).
            generator: Spent by the defense.

        Returns:
            Latents, (B, d).
        """
        return self._reduced(lambda z: z, x, generator)

    def reconstruct(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The decoder's mean at the latent that the defense reads; of several votes, their mean.

        Args:
            x: Images in [0, 1], (B, C, H, W).
            generator: Spent by the defense.

        Returns:
            Reconstructions, (B, C, H, W).
        """
        return self._reduced(lambda z: self.vae.decode(z).mean, x, generator)

    def classify(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The classifier's logits on the latent that the defense reads; of votes, their mean.

        Args:
            x: Images in [0, 1], (B, C, H, W).
            generator: Spent by the defense.

        Returns:
            Logits, (B, K).

        Raises:
            ConfigError: This victim has no classifier.
            ShapeError: The classifier gives something else than a row of logits for each latent.
        """
        if self.classifier is None:
            raise ConfigError("this victim has no classifier: give Victim(..., classifier=...)")
        logits = self._reduced(self.classifier, x, generator)
        if logits.ndim != 2 or len(logits) != len(x):
            raise ShapeError(
                f"the classifier must give logits of shape ({len(x)}, K), got "
                f"{tuple(logits.shape)}: of one logit an input make two, "
                "torch.stack([-logit, logit], 1)"
            )
        return logits

    def _reduced(
        self, of: Callable[[Tensor], Tensor], x: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The mean over the votes of a function of the latent, a row for each image."""
        with self._ready(x):
            votes = self.votes
            rows = x if votes == 1 else x.repeat_interleave(votes, dim=0)
            outputs = of(self.defense(self.vae, rows, generator=generator))
            return outputs if votes == 1 else outputs.unflatten(0, (len(x), votes)).mean(1)

    @contextmanager
    def _ready(self, x: Tensor) -> Iterator[None]:
        check_images(x, self.vae.image_shape, low=None, high=None)
        graph = torch.is_grad_enabled() and x.requires_grad
        if not graph:  # a search's many gradient steps were preceded by this check
            check_weights(self.vae)
        with frozen(self.vae), torch.set_grad_enabled(graph):
            yield
