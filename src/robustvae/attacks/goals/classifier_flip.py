"""Change what a classifier of the latent codes says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from robustvae.attacks.goals.base import Readings
from robustvae.defenses import Victim
from robustvae.errors import DtypeError, ShapeError, check_choice, check_count, check_type
from robustvae.perturb import Score
from robustvae.registry import register


@register("goal", "classifier-flip")
@final
@dataclass(frozen=True, eq=False)
class ClassifierFlip:
    """Change what the victim's classifier says: maximize its loss at the latent it is given.

    Args:
        label: Classes to move away from, (B,) int, or None for what is predicted at the clean
            input.
        loss: "cross_entropy" in nats, or "margin", the best other logit minus the label's, which
            keeps its gradient where the classifier is certain and is positive once it is wrong.
        draws: Draws of the defense's randomness that are averaged, where it has any.

    Raises:
        UnknownNameError: Any other loss.
        ConfigError: The victim has no classifier (when bound).
        ShapeError: Labels for another number of inputs (when bound).

    References:
        [Kuzina22] section 4.2.

    Examples:
        >>> from robustvae.attacks import ClassifierFlip
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> victim = rv.Victim(vae, classifier=torch.nn.Linear(2, 10))
        >>> score = ClassifierFlip(loss="margin").bind(victim, x, generator=g)
        >>> (score(x, torch.arange(3)) < 0).all()
        tensor(True)
    """

    label: Tensor | None = None
    loss: str = "cross_entropy"
    draws: int = 8

    def __post_init__(self) -> None:
        """Validate the fields."""
        if self.label is not None:
            check_type(self.label, "label", Tensor)
            if self.label.dtype != torch.int64:
                raise DtypeError(f"label must be an int64 tensor, got {self.label.dtype}")
        check_choice("loss", self.loss, ("cross_entropy", "margin"))
        check_count(self.draws, "draws")

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The classifier's loss; see `Goal.bind`."""
        read = Readings(victim.classify, victim, x, self.draws, generator)
        if self.label is None:
            with torch.no_grad():
                label = read(x, torch.arange(len(x), device=x.device)).mean(0).argmax(1)
        else:
            if tuple(self.label.shape) != (len(x),):
                raise ShapeError(f"label must be ({len(x)},), got {tuple(self.label.shape)}")
            label = self.label.to(x.device)

        def score(y: Tensor, rows: Tensor) -> Tensor:
            logits = read(y, rows)
            target = label[rows].expand(logits.shape[:2])
            if self.loss == "cross_entropy":
                loss = functional.cross_entropy(
                    logits.flatten(0, 1), target.flatten(), reduction="none"
                )
                return loss.reshape(logits.shape[:2]).mean(0)
            target_logit = logits.gather(2, target.unsqueeze(2)).squeeze(2)
            others = logits.scatter(2, target.unsqueeze(2), -torch.inf)
            return (others.amax(2) - target_logit).mean(0)

        return score
