"""A stranger's calls, with what is read of them, as modules that a trace can read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from robustvae.data.space import InputSpace
from robustvae.errors import UnsupportedError
from robustvae.models.adapters.reading import (
    CodeReading,
    Pick,
    first_half,
    second_half,
    step_into,
)

if TYPE_CHECKING:
    from robustvae.models.adapters.wrapped import Match


@final
class EncoderPath(nn.Module):
    """Images in [0, 1] to the mean and the spread, as it is given, through a user's encoder."""

    def __init__(
        self,
        encode: Callable[[Tensor], Any],
        owners: nn.ModuleList,
        space: InputSpace,
        code: CodeReading,
    ) -> None:
        super().__init__()
        self.encode, self.owners, self.space, self.code = encode, owners, space, code

    def forward(self, x: Tensor) -> Any:
        """(mean, spread) of images, both (B, d)."""
        if self.space.low != 0.0 or self.space.high != 1.0:
            low, scale = _one_scale(self.space)
            x = x * scale + low
        if self.space.shape != self.space.image_shape:
            x = x.reshape(-1, *self.space.shape)
        output = self.encode(x)
        return tuple(_read(output, pick).flatten(1) for pick in (self.code.mean, self.code.spread))


@final
class DecoderPath(nn.Module):
    """Codes to the reconstruction in [0, 1] units, through a user's decoder."""

    def __init__(
        self,
        decode: Callable[[Tensor], Any],
        owners: nn.ModuleList,
        space: InputSpace,
        match: Match,
    ) -> None:
        super().__init__()
        self.decode, self.owners, self.space, self.match = decode, owners, space, match

    def forward(self, z: Tensor) -> Tensor:
        """The mean of codes (B, d), (B, C, H, W)."""
        output = self.match.output
        if output.pair is not None:
            raise UnsupportedError(
                "bounds by the weights want a wrapped decoder that gives one tensor; "
                "use methods=['smoothing']"
            )
        if len(self.match.code_shape) > 1:
            z = z.reshape(-1, *self.match.code_shape)
        u: Tensor = _read(self.decode(z), output.reconstruction)
        u = u.reshape(-1, *self.space.image_shape)
        if output.is_logits:
            return torch.sigmoid(u)
        if output.likelihood == "bernoulli" or (self.space.low == 0.0 and self.space.high == 1.0):
            return u
        low, scale = _one_scale(self.space)
        return (u - low) / scale


def _one_scale(space: InputSpace) -> tuple[float, float]:
    """The model's value of 0 and its step for one of 1, in [0, 1] units."""
    if space.scale is None or isinstance(space.low, tuple):
        raise UnsupportedError(
            "bounds by the weights want a normalization that is the same for every channel, got "
            f"low={space.low}; use pixels= of one mean and std, or methods=['smoothing']"
        )
    return space.low, space.scale


_HALVES: dict[Any, Callable[[Any], Any]] = {
    first_half: lambda value: value.chunk(2, 1)[0],
    second_half: lambda value: value.chunk(2, 1)[1],
}
"""Steps that look at a tensor's type, without the look, which a trace's placeholder fails."""


def _read(output: Any, pick: Pick | None) -> Any:
    for step in pick or ():
        output = _HALVES[step](output) if step in _HALVES else step_into(output, step)
    return output
