"""Several sets as one, labeled by which set an input came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.data.coercion import as_images
from robustvae.data.images import Images
from robustvae.errors import ConfigError, ShapeError


@checked(formula=True)
def joined(sets: Mapping[str, Any], *, name: str | None = None) -> Images:
    """Several sets as one, whose labels say by number and name which set an input came from.

    Args:
        sets: By name, such as {"normal": ..., "scratch": ...}: whatever `as_images` reads, all of
            one image shape.
        name: Of the result; None for the names of the sets.

    Raises:
        ConfigError: No set.
        ShapeError: Sets of different image shapes.

    Examples:
        >>> import robustvae as rv, torch
        >>> dark, bright = torch.zeros(3, 1, 4, 4), torch.ones(2, 1, 4, 4)
        >>> both = rv.data.joined({"normal": dark, "crack": bright})
        >>> both.y.tolist(), both.class_name(1)
        ([0, 0, 0, 1, 1], 'crack')
    """
    if not sets:
        raise ConfigError("joined needs at least one set: give {'normal': ..., 'anomalous': ...}")
    members = [as_images(part) for part in sets.values()]
    shapes = {part.image_shape for part in members}
    if len(shapes) > 1:
        raise ShapeError(
            f"all sets must have one image shape, got {sorted(shapes)}: resize them, "
            "such as folder:PATH+size:64"
        )
    y = torch.cat([torch.full((len(part),), i) for i, part in enumerate(members)])
    if all(part.in_memory for part in members):
        source: Any = torch.cat([part.x for part in members])
    else:
        source = _Joined(members)
    title = name or " and ".join(dict.fromkeys(part.name for part in members))
    return Images(source, y, title, members[0].split).with_classes(list(sets))


@final
@dataclass(frozen=True, eq=False)
class _Joined:
    """The images of several sets, one set after the other."""

    members: Sequence[Images]

    @property
    def shape(self) -> Sequence[int]:
        return sum(len(part) for part in self.members), *self.members[0].image_shape

    def read(self, rows: Tensor, epoch: int) -> Tensor:
        result = torch.empty(len(rows), *self.members[0].image_shape)
        begin = 0
        for part in self.members:
            inside = (rows >= begin) & (rows < begin + len(part))
            if bool(inside.any()):
                result[inside] = part.at(epoch).read(rows[inside] - begin).float()
            begin += len(part)
        return result
