"""Sorts of neighboring features, as exchanges of pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from robustvae.certificates.propagation.affine import pick_step
from robustvae.certificates.propagation.operator import Builder, Operator, Shape
from robustvae.certificates.propagation.operators.relu import RECTIFIER
from robustvae.certificates.propagation.steps import CurveStep, LinearStep
from robustvae.errors import ShapeError
from robustvae.models.sorts import GroupSort, MaxMin
from robustvae.registry import register


@register("operator", "sort")
@final
class Sort(Operator):
    """The last axis sorted within groups, by exchanges of neighbors where there are several."""

    kinds = (GroupSort, MaxMin)

    def build(self, network: Builder, reads: tuple[int, ...]) -> int:
        """An exchange for two in a group; an odd-even transposition sort for more."""
        (node,) = reads
        size = network.shape(node)[-1]
        group = self.layer.group if isinstance(self.layer, GroupSort) else 2
        if size % group:
            raise ShapeError(f"a sort needs a multiple of {group} features, got {size}")
        index = torch.arange(size)
        if isinstance(self.layer, MaxMin):
            greatest, least = index.chunk(2)
            return exchange(network, node, greatest, least)
        place = index % group
        # an odd-even sort of n features is done after n turns
        for turn in range(1 if group == 2 else group):
            least = index[(place % 2 == turn % 2) & (place < group - 1)]
            if len(least):
                node = exchange(network, node, least + 1, least)
        return node

    def lipschitz(self, shape: Shape) -> float:
        """1: a sort only rearranges, piece by piece."""
        return 1.0


def last_axis(
    index: Tensor, coefficients: Tensor, node: int, shape: Shape, size: int
) -> LinearStep:
    """`pick_step` along the last axis, the same at every place of the others."""
    step = pick_step(index, coefficients, node, shape[-1:], (size,))

    def apply(x: Tensor, way: str) -> Tensor:
        return step.apply(x.reshape(-1, shape[-1]), way).reshape(*x.shape[:-1], size)

    def transpose(y: Tensor) -> Tensor:
        return step.transpose(y.reshape(-1, size)).reshape(*y.shape[:-1], shape[-1])

    return replace(step, apply=apply, transpose=transpose, shape=shape)


def exchange(network: Builder, node: int, most: Tensor, least: Tensor) -> int:
    """Pairs in order: max(a, b) = a + relu(b - a) and min(a, b) = b - relu(b - a)."""
    shape = network.shape(node)
    size, pairs = shape[-1], len(most)
    first, second = torch.minimum(most, least), torch.maximum(most, least)
    every = torch.arange(size)
    # the features, and b - a behind them
    index = torch.stack([torch.cat([every, second]), torch.cat([every, first])])
    signs = torch.zeros(2, size + pairs, dtype=torch.float64)
    signs[0], signs[1, size:] = 1.0, -1.0
    wide = (*shape[:-1], size + pairs)
    node_wide = network.append(last_axis(index, signs, node, shape, size + pairs), wide)
    curve = network.append(CurveStep((node_wide,), RECTIFIER, after=size), wide)
    index = torch.stack([every, every])
    signs = torch.zeros(2, size, dtype=torch.float64)
    signs[0] = 1.0
    behind = size + torch.arange(pairs)
    index[0, most], index[1, most], signs[1, most] = first, behind, 1.0
    index[0, least], index[1, least], signs[1, least] = second, behind, -1.0
    step = last_axis(index, signs, curve, wide, size)
    return network.append(replace(step, pairs=(node, most, least)), shape)
