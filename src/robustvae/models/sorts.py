"""Sorts of features: activations that keep the length of every gradient."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from robustvae.errors import ShapeError, check_count


@final
class GroupSort(nn.Module):
    """Sort neighboring features in groups, ascending; 1-Lipschitz and gradient-preserving.

    Args:
        group: Features in a group.

    References:
        Anil et al., 2019; [Barrett22] appendix B.3.

    Examples:
        >>> import torch
        >>> from robustvae.models.sorts import GroupSort
        >>> GroupSort()(torch.tensor([[3.0, 1.0, 2.0, 5.0]]))
        tensor([[1., 3., 2., 5.]])
    """

    def __init__(self, group: int = 2) -> None:
        """Keep the size of a group."""
        super().__init__()
        check_count(group, "group")
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., n) with n a multiple of the group, to features of the same shape."""
        if x.shape[-1] % self.group:
            raise ShapeError(f"a sort needs a multiple of {self.group} features, got {x.shape[-1]}")
        if self.group == 2:
            one, two = x[..., ::2], x[..., 1::2]
            return _Exchange.apply(x, (one > two).to(x), 1)
        return x.unflatten(-1, (-1, self.group)).sort(-1).values.flatten(-2)


@final
class MaxMin(nn.Module):
    """Maximum and minimum of feature i and feature i + n/2: group sort of two, laid out in halves.

    Examples:
        >>> import torch
        >>> from robustvae.models.sorts import MaxMin
        >>> MaxMin()(torch.tensor([[3.0, 1.0, 2.0, 5.0]]))
        tensor([[3., 5., 2., 1.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., n), n even, to features of the same shape."""
        if x.shape[-1] % 2:
            raise ShapeError(f"MaxMin wants an even number of features, got {x.shape[-1]}")
        one, two = x.chunk(2, -1)
        return _Exchange.apply(x, (one < two).to(x), x.shape[-1] // 2)


class _Exchange(torch.autograd.Function):
    """Features i and i + apart exchanged where a mask is 1, not where it is 0: its own adjoint.

    The features come in runs of 2 x apart; their differences are finite. `lerp` is exact at both
    ends and takes an eighth of `where`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mask: Tensor, apart: int) -> Tensor:
        one, two = _pairs(x, apart)
        parts = [torch.lerp(a, b, mask).movedim(-1, 0) for a, b in ((one, two), (two, one))]
        channels = torch.stack(parts, 1) if apart == 1 else torch.cat(parts)
        return channels.reshape(-1, *parts[0].shape[1:]).movedim(0, -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        _, mask, ctx.apart = inputs
        ctx.save_for_backward(mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Exchange.apply(grad, *ctx.saved_tensors, ctx.apart), None, None


def _pairs(x: Tensor, apart: int) -> tuple[Tensor, Tensor]:
    """Views of the features that are exchanged with each other: neighbors, or two halves."""
    return (x[..., ::2], x[..., 1::2]) if apart == 1 else (x[..., :apart], x[..., apart:])
