"""Move what layers inside the network compute away from what they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from robustvae.attacks.goals.base import Readings
from robustvae.defenses import Victim
from robustvae.errors import UnsupportedError, check_choice, check_count, check_type, unknown
from robustvae.perturb import Score
from robustvae.registry import register

_CAP = 100.0  # condition number above which a layer counts for nothing, as in the reference
_LEAST = 1e-12  # squared distance below which a root has no gradient


@register("goal", "layer-shift")
@final
@dataclass(frozen=True)
class LayerShift:
    """Move what layers compute: maximize sum_l w_l D(a_l(x + d), a_l(x)), or that times the output.

    Where deep layers are ill-conditioned their gradient vanishes on its way to the input; a goal
    at the layers themselves restores it, and the product asks that the end moves too.

    Args:
        layers: Names of modules, as in `vae.named_modules()`; () for all that have a weight.
        distance: "l2" ||a - b||_2, or "cosine" 1 - cos(a, b).
        times: What the sum is multiplied by: "nothing"; "latent", the distance of the codes;
            "output", the distance of the outputs.
        weights: w_l: "equal", or "condition", 1 - min(kappa_l, 100) / 100 with kappa_l the
            condition number of the layer's weight.
        draws: Draws of the victim's randomness that are averaged, where it has any.

    Raises:
        UnknownNameError: Any other choice, or (when bound) a name that no module has.
        UnsupportedError: A model whose modules cannot be seen, or a layer that is not run (when
            bound).

    References:
        Krishnamurthy Ramanaik et al., 2025 (GRILL), whose objectives are `times="latent"` or
        `"output"` with `weights="condition"`.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> score = rv.attacks.LayerShift().bind(rv.Victim(vae), x, generator=g)
        >>> score(x.flip(0), torch.arange(3)).shape
        torch.Size([3])
    """

    layers: tuple[str, ...] = ()
    distance: Literal["l2", "cosine"] = "l2"
    times: Literal["nothing", "latent", "output"] = "nothing"
    weights: Literal["equal", "condition"] = "equal"
    draws: int = 8

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_type(self.layers, "layers", tuple)
        for name in self.layers:
            check_type(name, "each of layers", str)
        check_choice("distance", self.distance, ("cosine", "l2"))
        check_choice("times", self.times, ("latent", "nothing", "output"))
        check_choice("weights", self.weights, ("condition", "equal"))
        check_count(self.draws, "draws")

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The weighted distance of the layers; see `Goal.bind`."""
        modules = _modules(victim, self.layers)
        weights = [_weight(module) if self.weights == "condition" else 1.0 for module in modules]
        widths: list[int] = []

        def read(images: Tensor, *, generator: torch.Generator) -> Tensor:
            with _recorded(modules, len(images)) as outputs:
                z = victim.latent(images, generator=generator)
                picture = victim.vae.decode(z).mean
            missing = [i for i in range(len(modules)) if i not in outputs]
            if missing:
                names = [name for name, m in victim.vae.named_modules() if m is modules[missing[0]]]
                raise UnsupportedError(
                    f"layer-shift: the layer {names[0]!r} is not run on one row for each input; "
                    "name another one"
                )
            parts = [outputs[i] for i in range(len(modules))] + [z, picture.flatten(1)]
            widths[:] = [part.shape[1] for part in parts]
            return torch.cat(parts, 1)

        readings = Readings(read, victim, x, self.draws, generator)
        with torch.no_grad():
            clean = readings(x, torch.arange(len(x), device=x.device)).mean(0)

        def score(y: Tensor, rows: Tensor) -> Tensor:
            total = torch.zeros_like(y.flatten(1)[:, 0])
            for reading in readings.each(y, rows):
                now, before = reading.split(widths, 1), clean[rows].split(widths, 1)
                value = torch.zeros_like(total)
                for weight, a, b in zip(weights, now, before, strict=False):
                    value = value + weight * self._far(a, b)
                if self.times != "nothing":
                    place = -2 if self.times == "latent" else -1
                    value = value * _length(now[place] - before[place])
                total = total + value
            return total / readings.draws

        return score

    def _far(self, a: Tensor, b: Tensor) -> Tensor:
        if self.distance == "l2":
            return _length(a - b)
        return 1 - torch.cosine_similarity(a, b, dim=1, eps=1e-8)


def _length(step: Tensor) -> Tensor:
    """2-norm of each row, with gradient 0 where it is 0."""
    return step.square().sum(1).clamp_min(_LEAST).sqrt()


def _modules(victim: Victim, layers: tuple[str, ...]) -> list[nn.Module]:
    modules = dict(victim.vae.named_modules())
    with_weight = {
        name: module
        for name, module in modules.items()
        if name and isinstance(getattr(module, "weight", None), Tensor)
    }
    if not with_weight:
        raise UnsupportedError(
            f"layer-shift: {type(victim.vae).__name__} shows no modules with weights; wrap the "
            "module itself, not its functions"
        )
    for name in layers:
        if name not in modules:
            raise unknown("layer", name, sorted(with_weight))
    return [modules[name] for name in layers] or list(with_weight.values())


def _weight(module: nn.Module) -> float:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        return 1.0
    values = torch.linalg.svdvals(weight.detach().flatten(1).double())
    condition = float(values.max() / values.min().clamp_min(1e-300))
    return 1 - min(condition, _CAP) / _CAP


@contextlib.contextmanager
def _recorded(modules: list[nn.Module], count: int) -> Iterator[dict[int, Tensor]]:
    """Within: the first output of each module that has a row for each input, (count, width)."""
    outputs: dict[int, Tensor] = {}

    def keep(place: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if place not in outputs and isinstance(output, Tensor) and len(output) == count:
                # a copy: the activation that follows may work in place
                outputs[place] = output.flatten(1).clone()

        return hook

    handles = [module.register_forward_hook(keep(i)) for i, module in enumerate(modules)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
