"""What the explorer computes: the library's own calls on one input, and pictures of the outcome."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from robustvae.attacks import Attack, MaximumDamage
from robustvae.audit.protocol import tolerance
from robustvae.certificates import Certificate, certify
from robustvae.data import Images
from robustvae.defenses import Victim
from robustvae.errors import RangeError, RobustVAEError, ShapeError, check_positive
from robustvae.geometry import pullback
from robustvae.models import VAE
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.robustness import Margin, estimate_margin
from robustvae.seeding import generator

EIGEN_IMAGES = 6  # as many as fit side by side


@final
@dataclass(frozen=True)
class Scene:
    """One attack on one input.

    Attributes:
        panels: What there is to see, by name; each (C, H, W) in [0, 1].
        size: Of the change, in the ball's norm.
        damage: How far the undefended output moved, l2 in pixel units.
        defended_damage: How far the defended output moved from its own clean one, or None.
    """

    panels: dict[str, Tensor]
    size: float
    damage: float
    defended_damage: float | None = None


@final
class Explorer:
    """One model and, if wanted, one defense, asked about one input at a time.

    Equal questions give equal answers: every call begins at the same seed.

    Args:
        vae: The model.
        images: Where inputs are chosen from.
        defended: The same model behind a defense, or None.
        seed: Of every generator.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.app import Explorer
        >>> explorer = Explorer(rv.load("digits-vae"), rv.data.load("digits", split="test"))
        >>> scene = explorer.attack(explorer.input(3), radius=0.5, steps=5)
        >>> scene.size <= 0.5 and scene.damage > 0
        True
    """

    def __init__(
        self, vae: VAE, images: Images, defended: Victim | None = None, seed: int = 0
    ) -> None:
        if tuple(images.image_shape) != tuple(vae.image_shape):
            raise ShapeError(
                f"the explorer wants images of the model's shape {tuple(vae.image_shape)}, got "
                f"{images.name} with {images.image_shape}; name another set with --data"
            )
        self.vae, self.images, self.defended, self.seed = vae, images, defended, seed
        self.victim = Victim(vae)

    def tolerance(self) -> float:
        """r as the data alone decide it."""
        return tolerance(self.images)

    def input(self, number: int) -> Tensor:
        """An input of the data by its number, (1, C, H, W).

        Raises:
            RangeError: No input of that number.
        """
        if not 0 <= number < len(self.images):
            raise RangeError(
                f"input must be a number from 0 to {len(self.images) - 1}, got {number}"
            )
        return self.images[number].x.to(device=self.vae.device, dtype=self.vae.dtype)

    def read(self, pixels: np.ndarray) -> Tensor:
        """An uploaded picture as an input: resized, gray where the model is, in [0, 1].

        Args:
            pixels: (H, W), (H, W, 3) or (H, W, 4), of bytes.
        """
        from PIL import Image

        channels, height, width = self.vae.image_shape
        picture = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
        array = np.asarray(picture.resize((width, height)), dtype=np.float32) / 255
        if array.ndim == 2:
            array = array[..., None]
        if array.shape[-1] != channels:
            raise ShapeError(
                f"a picture has 1 or 3 channels, the model reads {channels}: choose an input of "
                "the data instead"
            )
        x = torch.from_numpy(array).permute(2, 0, 1)[None]
        return x.to(device=self.vae.device, dtype=self.vae.dtype)

    def attack(
        self, x: Tensor, radius: float, norm: str = "l2", steps: int = 40, restarts: int = 2
    ) -> Scene:
        """Attack an input for the greatest damage, and look at what comes out.

        Args:
            x: One input, (1, C, H, W).
            radius: Of the ball, in pixel units.
            norm: "l2" or "linf".
            steps: Gradients of each start.
            restarts: Starts.
        """
        check_positive(radius, "radius")
        search = ProjectedAscent(steps=steps, restarts=restarts)
        ball = Ball(norm, radius)
        result = Attack(MaximumDamage(), search, ball)(
            self.victim, x, generator=generator(self.seed)
        )
        clean, output = self._output(self.victim, x), self._output(self.victim, result.x_adv)
        panels = {
            "input": x,
            "attacked": result.x_adv,
            "reconstruction": clean,
            "attacked reconstruction": output,
        }
        defended_damage = None
        if self.defended is not None:
            panels["defended reconstruction"] = self._output(self.defended, result.x_adv)
            change = panels["defended reconstruction"] - self._output(self.defended, x)
            defended_damage = float(change.norm())
        return Scene(
            panels={name: tensor[0].clamp(0, 1) for name, tensor in panels.items()},
            size=float(result.size[0]),
            damage=float((output - clean).norm()),
            defended_damage=defended_damage,
        )

    def _output(self, victim: Victim, x: Tensor) -> Tensor:
        with torch.no_grad():
            return victim.reconstruct(x, generator=generator(self.seed))

    def bracket(self, x: Tensor, r: float, m: float = 0.5) -> tuple[Certificate, Margin]:
        """What is certified and what an attack reaches for one input, at one question.

        Args:
            x: One input, (1, C, H, W).
            r: Output distance tolerated, l2 in pixel units.
            m: Probability asked for.
        """
        question: dict[str, Any] = {"r": r, "m": m, "displacement": "centered"}
        lower = certify(self.vae, x, generator=generator(self.seed), **question)
        upper = estimate_margin(self.victim, x, generator=generator(self.seed), **question)
        return lower, upper

    def edge(self, x: Tensor, lower: Certificate, upper: Margin) -> Scene | None:
        """The worst change found, cut to the certified size: it breaks nothing.

        Args:
            x: One input, (1, C, H, W).
            lower: Its certificate.
            upper: Its attacked margin, whose direction is taken.

        Returns:
            What lies on the edge of the certified ball; None where nothing is certified or no
            attack broke the input.
        """
        radius, reach = float(lower.radius[0]), float(upper.value[0])
        if radius <= 0 or not math.isfinite(reach) or reach <= 0:
            return None
        at_edge = x + (upper.x_adv - x) * (radius / reach)
        clean, attacked = self._output(self.victim, x), self._output(self.victim, at_edge)
        panels = {"edge of the certified ball": at_edge, "its reconstruction": attacked}
        return Scene(
            panels={name: tensor[0].clamp(0, 1) for name, tensor in panels.items()},
            size=float((at_edge - x).norm()),
            damage=float((attacked - clean).norm()),
        )

    def spectrum(self, x: Tensor, count: int = EIGEN_IMAGES) -> tuple[list[float], list[Tensor]]:
        """The encoder's greatest eigenvalues at an input, and their eigen-images.

        Args:
            x: One input, (1, C, H, W).
            count: How many at most.

        Returns:
            Eigenvalues, and eigen-images (C, H, W) of norm 1.

        Raises:
            RobustVAEError: A model whose encoder says no mean and standard deviation.
        """
        geometry = pullback(self.vae, x, count=count)
        values = geometry.eigenvalues[0].tolist()[:count]
        directions = geometry.directions
        if directions is None:
            raise RobustVAEError("this model's eigen-images are too large to show")
        return values, list(directions[0][:count])
