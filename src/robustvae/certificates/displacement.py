"""Local Lipschitz bounds: how far a feed-forward network can move over one ball around each input.

The network's Jacobian is enclosed over the ball, entry by entry, from the input on: where an
activation cannot change its slope in the ball it costs nothing, elsewhere its whole range is taken.
By the mean value theorem f(p) - f(x) = J (p - x) with J in the enclosure, so its norm bounds the
movement. All in float64; every rounding is added to the enclosure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustvae.errors import UnsupportedError
from robustvae.models.lipschitz import GroupSort, MaxMin, Scale
from robustvae.models.orthogonal import MoveChannels
from robustvae.norms import conv_norm_bound, gamma, spectral_norm_bound, spectral_norm_bounds

ROUNDING = 1e-14
"""Relative error granted to one elementwise function, its derivative or one value."""


@final
@dataclass(frozen=True)
class Enclosure:
    """A network up to some layer, over a ball around each of B centres.

    Attributes:
        value: Features at the centre, (B, *shape).
        error: Bound on the rounding of `value`, (B, *shape).
        centre: Midpoints of the Jacobian's entries, (B, k, *shape) for k input directions.
        spread: Half widths of the entries, (B, k, *shape).
        slip: Bound on the spectral norm of the Jacobian minus `centre`, (B,).
        most: Bound on the spectral norm of the Jacobian, (B,).
        rows: Bound on the norm of each of its rows, (B, *shape).
    """

    value: Tensor
    error: Tensor
    centre: Tensor
    spread: Tensor
    slip: Tensor
    most: Tensor
    rows: Tensor

    def widths(self, radius: Tensor) -> Tensor:
        """How far each feature moves over the ball, (B, *shape)."""
        return self.rows * _like(radius, self.rows) * (1 + 1e-12) + self.error


@final
class Chain:
    """The layers of feed-forward networks in a row, with the verified norm of each dense one.

    Args:
        networks: `nn.Sequential`s, nested or not, or single layers.

    Raises:
        UnsupportedError: A layer that is not covered, by name, when it is reached.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from robustvae.certificates.displacement import Chain
        >>> found = Chain(nn.ReLU()).enclose(torch.tensor([[1.0, -1.0]]), torch.tensor([0.5]))
        >>> round(float(found.most), 9)
        1.0
    """

    def __init__(self, *networks: nn.Module) -> None:
        """Take the networks apart and bound the norms."""
        self.layers = layers_of(*networks)
        self.norms: list[float | None] = [
            spectral_norm_bound(layer.weight) if isinstance(layer, nn.Linear) else None
            for layer in self.layers
        ]

    def enclose(
        self, x: Tensor, radius: Tensor, directions: tuple[Tensor, Tensor] | None = None
    ) -> Enclosure:
        """Enclose the values and the Jacobian over the l2 ball around each input.

        Args:
            x: Centres, (B, *shape).
            radius: Of each ball, (B,).
            directions: Jacobian of `x` in the coordinates in which the ball is round, and its
                half widths, each (B, k, *shape); the identity if None.
        """
        x = x.double()
        if directions is None:
            size = x[0].numel()
            eye = torch.eye(size, dtype=torch.float64).reshape(1, size, *x.shape[1:])
            centre = eye.expand(len(x), *eye.shape[1:])
            directions = centre, torch.zeros_like(centre)
        centre, spread = directions
        slip = _frobenius(spread)
        state = Enclosure(
            value=x,
            error=x.abs() * ROUNDING,
            centre=centre,
            spread=spread,
            slip=slip,
            most=spectral_norm_bounds(centre.flatten(2)) + slip,
            rows=_rows(centre, spread),
        )
        for i, layer in enumerate(self.layers):
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and self.norms[i] is None:
                coarse = (
                    state.value if isinstance(layer, nn.ConvTranspose2d) else layer(state.value)
                )
                self.norms[i] = conv_norm_bound(layer, (coarse.shape[-2], coarse.shape[-1]))
            state = _through(layer, self.norms[i] or 0.0, state, radius)
        whole = spectral_norm_bounds(state.centre.flatten(2)) + state.slip
        return replace(state, most=torch.minimum(state.most, whole))


def mahalanobis_shift(encoder: Chain, x: Tensor, radius: Tensor, stddev: Tensor) -> Tensor:
    """How far a mean can move over the l2 ball around each input, in standard deviations.

    An upper bound on max ||diag(1 / sigma) (mu(p) - mu(x))||, at most what the norms alone give.

    Args:
        encoder: The encoder's mean.
        x: Images, (B, C, H, W).
        radius: Of each ball, l2 in pixel units, (B,).
        stddev: sigma, positive, (B, d).

    Returns:
        Mahalanobis distances, (B,).
    """
    found = encoder.enclose(x, radius)
    scale = 1 / stddev[:, None, :] * (1 + 1e-12)
    largest = scale.flatten(1).amax(1)
    apart = torch.minimum(_frobenius(found.spread * scale), found.slip * largest)
    whole = spectral_norm_bounds(found.centre * scale) * (1 + 1e-12) + apart
    return torch.minimum(whole, found.most * largest) * radius * (1 + 1e-12)


def batch_norm_factor(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> Tensor:
    """What evaluation mode multiplies each channel by, (C,), float64.

    Raises:
        UnsupportedError: No running statistics: the layer then mixes its inputs.
    """
    if layer.running_var is None or layer.running_mean is None:
        raise UnsupportedError(f"{type(layer).__name__} without running statistics")
    factor: Tensor = (layer.running_var.double() + layer.eps).rsqrt()
    return factor if layer.weight is None else factor * layer.weight.detach().double()


def layers_of(*networks: nn.Module) -> list[nn.Module]:
    """The layers of feed-forward networks in order, nested `nn.Sequential` taken apart.

    Raises:
        UnsupportedError: A module with a forward hook.
    """
    found: list[nn.Module] = []
    for network in networks:
        if network._forward_hooks or network._forward_pre_hooks:
            raise UnsupportedError(f"a {type(network).__name__} with a forward hook is not covered")
        if type(network) is nn.Sequential:
            found += layers_of(*network)
        else:
            found.append(network)
    return found


def _through(layer: nn.Module, norm: float, state: Enclosure, radius: Tensor) -> Enclosure:
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        return _affine(layer, norm, state)
    if type(layer) is nn.Flatten:
        return _reshaped(state, lambda part, start: part.flatten(start))
    if type(layer) is nn.Unflatten:
        size = layer.unflattened_size
        return _reshaped(state, lambda part, start: part.unflatten(start, size))
    if type(layer) is MoveChannels:
        ends = (lambda start: (start, -1)) if layer.last else (lambda start: (-1, start))
        return _reshaped(state, lambda part, start: part.movedim(*ends(start)))
    if type(layer) in (nn.Identity, nn.Dropout):
        return state
    if type(layer) is Scale:
        factor = torch.tensor(layer.factor, dtype=torch.float64)
        return _scaled(state, factor, state.value * factor)
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        factor = batch_norm_factor(layer).reshape(-1, *[1] * (state.value.ndim - 2))
        value = layer(state.value)
        offset = (torch.as_tensor(layer.running_mean).reshape(factor.shape) * factor).abs()
        added = ROUNDING * (value.abs() + (state.value * factor).abs() + 2 * offset)
        moved = _scaled(state, factor, value)
        return replace(moved, error=moved.error + added)
    if type(layer) is MaxMin:
        return _sorted(state, radius, _halves, lambda most, least: torch.cat([most, least], -1))
    if type(layer) is GroupSort and layer.group == 2:
        return _sorted(
            state, radius, _pairs, lambda most, least: torch.stack([least, most], -1).flatten(-2)
        )
    return _elementwise(layer, state, *slopes(layer, state.value, state.widths(radius)))


def _affine(
    layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, norm: float, state: Enclosure
) -> Enclosure:
    weight = layer.weight.detach().double()
    bias = None if layer.bias is None else layer.bias.detach().double()
    apply, terms = _linear_map(layer)
    slack = gamma(4 * terms + 16)
    size = weight.abs()
    value = apply(state.value, weight, bias)
    added = 0 if bias is None else slack * apply(torch.zeros_like(state.value), size, bias.abs())
    centre = apply(state.centre, weight, None)
    lost = apply(slack * state.centre.abs(), size, None) * (1 + slack)
    spread = apply(state.spread, size, None) * (1 + slack) + lost
    slip = torch.minimum(state.slip * norm + _frobenius(lost), _frobenius(spread))
    rows = _rows(centre, spread)
    if isinstance(layer, nn.Linear):
        of_weight = weight.norm(dim=1) * (1 + slack)
        rows = torch.minimum(rows, of_weight * state.most[:, None])
        rows = torch.minimum(rows, _rows(centre, lost) + of_weight * state.slip[:, None])
    return Enclosure(
        value=value,
        error=apply(state.error + slack * state.value.abs(), size, None) * (1 + slack) + added,
        centre=centre,
        spread=spread,
        slip=slip,
        most=torch.minimum(state.most * norm, spectral_norm_bounds(centre.flatten(2)) + slip),
        rows=rows,
    )


def _linear_map(
    layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d,
) -> tuple[Callable[[Tensor, Tensor, Tensor | None], Tensor], int]:
    """The layer as a function of (x, weight, bias), any leading axes; and the terms in a sum."""
    if isinstance(layer, nn.Linear):
        return functional.linear, layer.in_features
    padding = layer.padding
    if layer.padding_mode != "zeros" or isinstance(padding, str):
        raise UnsupportedError(f"padding {layer.padding_mode!r} of {type(layer).__name__}")
    stride, dilation, groups = layer.stride, layer.dilation, layer.groups

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, *x.shape[-3:])
        if isinstance(layer, nn.ConvTranspose2d):
            out = layer.output_padding
            done = functional.conv_transpose2d(
                rows, weight, bias, stride, padding, out, groups, dilation
            )
        else:
            done = functional.conv2d(rows, weight, bias, stride, padding, dilation, groups)
        return done.reshape(*x.shape[:-3], *done.shape[1:])

    return apply, layer.weight.numel()


def _halves(part: Tensor) -> tuple[Tensor, ...]:
    return part.chunk(2, -1)


def _pairs(part: Tensor) -> tuple[Tensor, ...]:
    return part[..., 0::2], part[..., 1::2]


def _sorted(
    state: Enclosure,
    radius: Tensor,
    split: Callable[[Tensor], tuple[Tensor, ...]],
    join: Callable[[Tensor, Tensor], Tensor],
) -> Enclosure:
    """Larger and smaller of each pair; where the order can change, anything between the two."""
    value, other = split(state.value)
    centre, other_centre = split(state.centre)
    spread, other_spread = split(state.spread)
    error = torch.maximum(*split(state.error))
    rows = torch.maximum(*split(state.rows))
    apart = centre - other_centre
    doubt = _rows(apart, spread + other_spread)
    doubt = torch.minimum(doubt, _rows(apart, 0 * apart) + 2**0.5 * _like(state.slip, doubt))
    move = doubt * _like(radius, doubt) * (1 + 1e-12) + 2 * error
    first, second = (value - other > move)[:, None], (other - value > move)[:, None]
    unsure = apart * ~(first | second)
    middle = (centre + other_centre) / 2
    between = apart.abs() / 2 + torch.maximum(spread, other_spread)
    between = between * (1 + ROUNDING) + ROUNDING * middle.abs()

    def pick(one: Tensor, two: Tensor, of_one: Tensor, of_two: Tensor, else_: Tensor) -> Tensor:
        return torch.where(of_one, one, torch.where(of_two, two, else_))

    slip = state.slip + spectral_norm_bounds(unsure.flatten(2)) / 2**0.5 * (1 + ROUNDING)
    return Enclosure(
        value=join(torch.maximum(value, other), torch.minimum(value, other)),
        error=join(error, error),
        centre=join(
            pick(centre, other_centre, first, second, middle),
            pick(centre, other_centre, second, first, middle),
        ),
        spread=join(
            pick(spread, other_spread, first, second, between),
            pick(spread, other_spread, second, first, between),
        ),
        slip=slip,
        most=state.most,
        rows=join(rows, rows),
    )


def slopes(layer: nn.Module, value: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest slope of an elementwise activation over [value - width, value + width]."""
    low, high = value - width, value + width
    if isinstance(layer, nn.ReLU | nn.LeakyReLU):
        other = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0
        before = torch.where(low < 0, other, 1.0)
        after = torch.where(high > 0, 1.0, other)
        return torch.minimum(before, after), torch.maximum(before, after)
    near = torch.where(low * high <= 0, 0.0, torch.minimum(low.abs(), high.abs()))
    far = torch.maximum(low.abs(), high.abs())
    if isinstance(layer, nn.Tanh):
        return 1 - far.tanh().square(), 1 - near.tanh().square()
    if isinstance(layer, nn.Sigmoid):
        return torch.sigmoid(far) * torch.sigmoid(-far), torch.sigmoid(near) * torch.sigmoid(-near)
    if isinstance(layer, nn.Softplus):
        return torch.sigmoid(layer.beta * low), torch.sigmoid(layer.beta * high)
    raise UnsupportedError(f"no local bound is known for {type(layer).__name__}")


def _elementwise(layer: nn.Module, state: Enclosure, low: Tensor, high: Tensor) -> Enclosure:
    middle, half = (low + high) / 2, (high - low) / 2 + ROUNDING
    value = layer(state.value)
    steepest = torch.maximum(low.abs(), high.abs()) + ROUNDING
    rows = state.rows * steepest
    steep = steepest.flatten(1).amax(1)
    middle, half = middle[:, None], half[:, None]
    centre = middle * state.centre
    lost = ROUNDING * centre.abs()
    spread = middle.abs() * state.spread + half * (state.centre.abs() + state.spread)
    spread = spread * (1 + ROUNDING) + lost
    unsure = spectral_norm_bounds((half * state.centre).flatten(2))
    slip = (steep * state.slip + unsure) * (1 + ROUNDING) + _frobenius(lost)
    return Enclosure(
        value=value,
        error=steepest * state.error + ROUNDING * (value.abs() + 1),
        centre=centre,
        spread=spread,
        slip=torch.minimum(slip, _frobenius(spread)),
        most=state.most * steep,
        rows=rows,
    )


def _scaled(state: Enclosure, factor: Tensor, value: Tensor) -> Enclosure:
    size = factor.abs() * (1 + ROUNDING)
    most = size.max()
    centre = state.centre * factor
    lost = ROUNDING * centre.abs()
    return Enclosure(
        value=value,
        error=(state.error + ROUNDING * state.value.abs()) * size,
        centre=centre,
        spread=state.spread * size + lost,
        slip=state.slip * most + _frobenius(lost),
        most=state.most * most,
        rows=state.rows * size,
    )


def _reshaped(state: Enclosure, change: Callable[[Tensor, int], Tensor]) -> Enclosure:
    return replace(
        state,
        value=change(state.value, 1),
        error=change(state.error, 1),
        centre=change(state.centre, 2),
        spread=change(state.spread, 2),
        rows=change(state.rows, 1),
    )


def _rows(centre: Tensor, spread: Tensor) -> Tensor:
    return (centre.norm(dim=1) + spread.norm(dim=1)) * (1 + 1e-12)


def _frobenius(entries: Tensor) -> Tensor:
    return entries.flatten(1).norm(dim=1) * (1 + 1e-9)


def _like(radius: Tensor, features: Tensor) -> Tensor:
    return radius.reshape(-1, *[1] * (features.ndim - 1))
