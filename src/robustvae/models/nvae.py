"""NVAE: a deep hierarchy of spatial groups, from a coarse scale to a fine one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack, final

import torch
from torch import Tensor, nn

from robustvae import gate
from robustvae._options import with_defaults
from robustvae.errors import (
    ShapeError,
    UnsupportedError,
    check_choice,
    check_count,
    check_sizes,
)
from robustvae.models.base import VAE
from robustvae.models.composition import Composition
from robustvae.models.hierarchy import Choose, LayeredGaussian
from robustvae.models.likelihoods import Distribution, Gaussian
from robustvae.models.vae import check_likelihood, likelihood_of
from robustvae.registry import register

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"channels": 16, "groups": [3, 3], "latent_channels": 2, "cells": 1},
    "paper": {"channels": 32, "groups": [5, 10], "latent_channels": 20, "cells": 2},
}
_SOFT_BOUND = 5.0
_RESIDUAL = 0.1


@final
class SizeOptions(TypedDict, total=False):
    """Values that `NVAE` puts in place of a preset's; it describes them."""

    channels: int | None
    groups: Sequence[int] | None
    latent_channels: int | None
    cells: int | None


_DEFAULTS: SizeOptions = {"channels": None, "groups": None, "latent_channels": None, "cells": None}


@register("model", "nvae")
@gate.know_model
@final
class NVAE(VAE):
    """A nouveau VAE: p(x | z) of groups z_1, ..., z_L, each given all before it, coarse to fine.

    Each group is a map of `latent_channels` at its scale's size, given a top-down state h of the
    groups before it: p(z_l | z_<l) = N(m, s^2), and q(z_l | x, z_<l) = N(m + dm, (s ds)^2), the
    residual normal posterior. The image's size over 2^S is that of the coarsest of S scales, half
    of it that of the finest. Batch norm, swish, depthwise convolutions and squeeze-excitation as
    in the paper; no normalizing flows. `SpectralRegularization` is the paper's for its weights.

    In the flat latent the group next to the data comes first, as in every hierarchy.

    Args:
        preset: "tiny" (two scales of three groups) or "paper" (close to the paper's for MNIST).
        image_shape: (C, H, W), H and W multiples of 2^S.
        likelihood: As of `vae`.
        scale: As of `vae`.
        options: In place of the preset's, any of channels, features at the finest scale, twice as
            many at each coarser one; groups, of each scale, from the coarsest; latent_channels, of
            each group; and cells, the residual cells of each group, in encoder and decoder.

    Raises:
        UnknownNameError: An unknown preset, likelihood or option.
        RangeError: A count below 1.
        ShapeError: No scale, or images whose size does not halve that often.

    References:
        Vahdat & Kautz, 2020, sections 3.1-3.2; [Kuzina22] section 4.3.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("nvae", image_shape=(1, 8, 8), groups=[1, 2], channels=4)
        >>> vae.widths
        (32, 32, 8)
        >>> vae.encode(torch.rand(3, 1, 8, 8)).mean.shape
        torch.Size([3, 72])
    """

    widths: tuple[int, ...]

    def __init__(
        self,
        preset: str = "tiny",
        image_shape: Sequence[int] = (1, 28, 28),
        likelihood: str = "bernoulli",
        scale: float = 1.0,
        **options: Unpack[SizeOptions],
    ) -> None:
        """Build the networks; torch's global generator makes the first weights."""
        super().__init__()
        check_choice("preset", preset, PRESETS)
        check_likelihood(likelihood, scale)
        check_sizes(image_shape, "image_shape", axes=3)
        settings = with_defaults(NVAE, options, _DEFAULTS)
        size = PRESETS[preset] | {name: v for name, v in settings.items() if v is not None}
        for name in ("channels", "latent_channels", "cells"):
            check_count(size[name], name)
        check_sizes(size["groups"], "groups")
        scales = len(size["groups"])
        if not scales:
            raise ShapeError("groups must name at least one scale, got none")
        colors, height, width = image_shape
        if height % 2**scales or width % 2**scales:
            raise ShapeError(
                f"{scales} scales want images of a multiple of {2**scales} pixels, "
                f"got {height} x {width}"
            )
        self.image_shape = (colors, height, width)
        self.likelihood = likelihood
        self.scale = float(scale)
        self._config = {
            "preset": preset,
            "image_shape": list(image_shape),
            "likelihood": likelihood,
            "scale": self.scale,
            **size,
            "groups": list(size["groups"]),
        }
        features = [size["channels"] * 2 ** (scales - 1 - t) for t in range(scales)]
        maps = [(height >> (scales - t), width >> (scales - t)) for t in range(scales)]
        self.stem = nn.Conv2d(colors, features[-1], 3, stride=2, padding=1)
        self.start = nn.Parameter(torch.randn(1, features[0], *maps[0]))
        self.groups = nn.ModuleList(
            _Group(
                first=(t, number) == (0, 0),
                coarser=features[t - 1] if t and not number else None,
                features=features[t],
                latent_channels=size["latent_channels"],
                cells=size["cells"],
                size=maps[t],
            )
            for t, count in enumerate(size["groups"])
            for number in range(count)
        )
        self.last = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(features[-1], size["channels"], 3, padding=1),
            _decoder_cell(size["channels"]),
            nn.SiLU(),
            nn.Conv2d(size["channels"], colors, 3, padding=1),
        )
        self.widths = tuple(group.width for group in self._top_down())[::-1]
        self.latent = sum(self.widths)

    def encode(self, x: Tensor) -> LayeredGaussian:
        """q(z | x), group by group downwards, (B, d)."""
        self.check(x)
        state = _channels_last(self.stem(x))
        features = []
        for group in reversed(self._top_down()):
            state = group.climb(state)
            features.append(state)
            state = group.leave(state)
        features.reverse()
        return LayeredGaussian(
            lambda choose: self._walk(choose, features)[0], self.widths, upwards=False
        )

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z), (B, C, H, W)."""
        return self.given(z)[0]

    def given(self, z: Tensor) -> tuple[Distribution, Distribution]:
        """p(x | z) and every group of p(z) given those of `z` before it, in one walk."""
        states: list[Tensor] = []

        def walk(choose: Choose) -> list[Gaussian]:
            layers, state = self._walk(choose)
            states.append(state)
            return layers

        prior = LayeredGaussian(walk, self.widths, upwards=False).at(z)
        return likelihood_of(self.last(states[0]), self.likelihood, self.scale), prior

    def prior(self) -> LayeredGaussian:
        """p(z), group by group downwards from a standard normal, (d,)."""
        return LayeredGaussian(lambda choose: self._walk(choose)[0], self.widths, upwards=False)

    def composition(self) -> Composition:
        """Raise an error: no chain of networks leads to one posterior.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(
            "every group of an NVAE's posterior reads the image, so that no bound on how far one "
            "of them moves speaks for the others; use methods=['smoothing']"
        )

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, complete."""
        return dict(self._config)

    def _top_down(self) -> list[_Group]:
        return [group for group in self.groups if isinstance(group, _Group)]

    def _walk(
        self, choose: Choose, features: list[Tensor] | None = None
    ) -> tuple[list[Gaussian], Tensor]:
        """Every group's prior, or posterior where there are features, and the state after all."""
        state: Tensor = self.start
        lead = state.shape[:0] if features is None else features[0].shape[:1]
        layers: list[Gaussian] = []
        for number, group in enumerate(self._top_down()):
            state = group.descend(state)
            feature = None if features is None else features[number]
            layers.append(group.layer(state, feature, lead))
            z = choose(layers[-1])
            lead = z.shape[:-1]
            state = group.merge(state, z)
        return layers, state


@final
class _Group(nn.Module):
    """One group of latents, with the cells that lead to it from below and from above."""

    def __init__(
        self,
        *,
        first: bool,
        coarser: int | None,
        features: int,
        latent_channels: int,
        cells: int,
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.shape = (latent_channels, *size)
        self.width = latent_channels * size[0] * size[1]
        self.up_cells = nn.Sequential(*(_encoder_cell(features) for _ in range(cells)))
        self.down: nn.Module = nn.Identity()
        self.up: nn.Module = nn.Identity()
        if coarser is not None:
            self.down = nn.Conv2d(features, coarser, 3, stride=2, padding=1)
            self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(coarser, features, 1))
        self.down_cells = nn.Sequential(
            *(_decoder_cell(features) for _ in range(0 if first else cells))
        )
        self.prior_head = (
            None if first else nn.Sequential(nn.ELU(), nn.Conv2d(features, 2 * latent_channels, 1))
        )
        self.posterior_head = nn.Sequential(
            nn.ELU(), nn.Conv2d(2 * features, 2 * latent_channels, 3, padding=1)
        )
        self.merging = nn.Conv2d(features + latent_channels, features, 1)

    def climb(self, state: Tensor) -> Tensor:
        """The features from below that the posterior reads."""
        features: Tensor = self.up_cells(state)
        return features

    def leave(self, state: Tensor) -> Tensor:
        """What the group above gets of them, at its own scale."""
        above: Tensor = self.down(state)
        return above

    def descend(self, state: Tensor) -> Tensor:
        """The state from above, at this group's scale."""
        result: Tensor = self.down_cells(self.up(state))
        return result

    def layer(self, state: Tensor, features: Tensor | None, lead: torch.Size) -> Gaussian:
        """The group's prior given the state, or posterior given features too, (*lead, w)."""
        if self.prior_head is None:
            mean = state.new_zeros(len(state), *self.shape)
            stddev = torch.ones_like(mean)
        else:
            mean, stddev = _bounded(self.prior_head(state))
        if features is not None:
            rows = max(len(state), len(features))
            below = features.repeat(rows // len(features), 1, 1, 1)
            above = state.expand(rows, *state.shape[1:])
            shift, factor = _bounded(
                self.posterior_head(_channels_last(torch.cat([below, above], 1)))
            )
            mean, stddev = mean + shift, stddev * factor
        return Gaussian(mean.reshape(*lead, self.width), stddev.reshape(*lead, self.width))

    def merge(self, state: Tensor, z: Tensor) -> Tensor:
        """The state that knows this group's value too."""
        value = z.reshape(-1, *self.shape)
        state = state.expand(len(value), *state.shape[1:])
        result: Tensor = self.merging(_channels_last(torch.cat([state, value], 1)))
        return result


@final
class _Residual(nn.Module):
    """x + 0.1 f(x), f ending in squeeze-excitation."""

    def __init__(self, features: int, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        hidden = max(features // 4, 2)
        self.excitation = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(features, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, features, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        update = self.layers(x)
        return x + _RESIDUAL * update * self.excitation(update)


def _encoder_cell(features: int) -> nn.Module:
    return _Residual(
        features,
        nn.BatchNorm2d(features),
        nn.SiLU(),
        nn.Conv2d(features, features, 3, padding=1),
        nn.BatchNorm2d(features),
        nn.SiLU(),
        nn.Conv2d(features, features, 3, padding=1),
    )


def _decoder_cell(features: int, expansion: int = 3) -> nn.Module:
    wide = expansion * features
    return _Residual(
        features,
        nn.BatchNorm2d(features),
        nn.Conv2d(features, wide, 1),
        nn.BatchNorm2d(wide),
        nn.SiLU(),
        nn.Conv2d(wide, wide, 5, padding=2, groups=wide),
        nn.BatchNorm2d(wide),
        nn.SiLU(),
        nn.Conv2d(wide, features, 1),
        nn.BatchNorm2d(features),
    )


def _channels_last(state: Tensor) -> Tensor:
    """The same values, on a CPU laid out as its convolutions run fastest."""
    if state.device.type != "cpu":
        return state
    return state.contiguous(memory_format=torch.channels_last)


def _bounded(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each parameter softly within (-5, 5)."""
    mean, log_stddev = (_SOFT_BOUND * torch.tanh(parameters / _SOFT_BOUND)).chunk(2, dim=1)
    return mean, log_stddev.exp()
