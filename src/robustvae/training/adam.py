"""Adam, and what it takes to keep its steps tangent to a manifold."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from robustvae.arguments import checked, checked_fields
from robustvae.errors import ConfigError, check_positive
from robustvae.models import VAE

BETAS, EPS = (0.9, 0.999), 1e-8

SHARE = 0.3
"""Rate of weights on a manifold over that of the others; small, as they move as one."""


@checked(formula=True)
def optimizer_of(vae: VAE, lr: float = 1e-3) -> torch.optim.Optimizer:
    """Adam for a model's trainable weights; `TangentAdam` where some of them lie on a manifold.

    Args:
        vae: Any model with weights.
        lr: Learning rate.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.training import optimizer_of
        >>> type(optimizer_of(rv.models.create("lipschitz-vae"))).__name__
        'TangentAdam'
        >>> type(optimizer_of(rv.models.create("vae"))).__name__
        'Adam'
    """
    parameters = [p for p in vae.parameters() if p.requires_grad]
    tangent = [p for p in vae.on_manifold() if p.requires_grad]
    if not tangent:
        return torch.optim.Adam(parameters, lr=lr, betas=BETAS, eps=EPS)
    tangent_ids = {id(p) for p in tangent}
    return TangentAdam(tangent, [p for p in parameters if id(p) not in tangent_ids], lr=lr)


@checked_fields
@final
class TangentAdam(torch.optim.Optimizer):
    """Adam with one second moment for each whole tensor that lies on a manifold.

    Adam divides every entry by its own root mean square, which turns a tangent gradient into a step
    that leaves the manifold. Divided by one number it stays a sum of tangent vectors, and the
    weights drift in second order only. Those tensors learn at `SHARE` times the rate.

    Args:
        tangent: Weights on a manifold, whose gradients are tangent to it.
        others: Weights for Adam as it is.
        lr: Learning rate.

    Raises:
        RangeError: A rate that is not positive.
        ConfigError: No weights.

    References:
        Kingma & Ba, 2015, Algorithm 1; Becigneul & Ganea, 2019 (one moment for each manifold).

    Examples:
        >>> import torch
        >>> from robustvae.training import TangentAdam
        >>> weight = torch.nn.Parameter(torch.eye(2))
        >>> adam = TangentAdam([weight], [], lr=1.0)
        >>> weight.grad = torch.tensor([[0.0, 3.0], [-3.0, 0.0]])
        >>> adam.step()
        >>> weight[0, 1] == -weight[1, 0]
        tensor(True)
    """

    def __init__(self, tangent: list[Tensor], others: list[Tensor], lr: float = 1e-3) -> None:
        """Take the weights in two groups."""
        check_positive(lr, "lr")
        if not tangent and not others:
            raise ConfigError("TangentAdam wants weights to train, got none")
        groups = [
            {"params": tangent, "whole": True, "share": SHARE},
            {"params": others, "whole": False, "share": 1.0},
        ]
        super().__init__([group for group in groups if group["params"]], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every weight that has a gradient, those of `closure` where it is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rate = group["lr"] * group["share"]
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, rate, group["whole"])
        return loss

    def _move(self, weight: Tensor, gradient: Tensor, rate: float, whole: bool) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = weight.new_zeros(()) if whole else torch.zeros_like(weight)
        state["step"] += 1
        count = int(state["step"])
        square = (
            torch.linalg.vector_norm(gradient).square() / gradient.numel()
            if whole
            else gradient.square()
        )
        mean = state["exp_avg"].lerp_(gradient, 1 - BETAS[0])
        spread = state["exp_avg_sq"].lerp_(square, 1 - BETAS[1])
        root = (spread / (1 - BETAS[1] ** count)).sqrt_().add_(EPS)
        weight.addcdiv_(mean, root, value=-rate / (1 - BETAS[0] ** count))
