"""Whether one image can be made to cost many bits, or to come back broken, by a learned codec."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from robustvae import registry
from robustvae.attacks import AnomalyScore, Attack, BitRate
from robustvae.attacks.goals.base import reported
from robustvae.audit.profiles.base import LATE, Stage, UseContext, UseResult, numbers
from robustvae.audit.profiles.minutes import (
    check_searches,
    pass_seconds,
    scaled,
    scaled_search,
    search_passes,
)
from robustvae.audit.unit_cost import UnitCost
from robustvae.defenses import Victim
from robustvae.errors import (
    ConfigError,
    RobustVAEError,
    UnsupportedError,
    check_count,
    check_positive,
)
from robustvae.metrics import default_variant, ms_ssim
from robustvae.models.adapters.compressai import CodecDecoder
from robustvae.models.base import frozen
from robustvae.perturb import Ball, Score
from robustvae.registry import register
from robustvae.scores import ReconstructionError
from robustvae.seeding import by_row, rand, seeded
from robustvae.seeding import generator as new_generator

LEVELS = (4 / 255, 8 / 255)
_AT_ONCE = 16  # images coded at a time: codecs keep large activations


@register("use", "codec")
@final
@dataclass(frozen=True)
class Codec:
    """Whether one image can be made to cost many bits, or to come back broken.

    Three goals: the rate, the distortion, and both together as the codec's training weighs them.
    The search climbs the likelihood under additive noise, as codecs are trained; reported are the
    bits of the codec's own file where it can write one, else the likelihood of its rounded codes.
    Models without an entropy model of their own are coded by their Gaussian prior at `step`.

    Args:
        radii: In linf, in units of the input range [0, 1].
        inputs: Images, at most.
        search: The gradient search.
        weight: Bits a pixel that a mean squared error of 1 counts in the third goal.
        step: Width of a quantization cell for models without an entropy model.

    Raises:
        RangeError: A number that is not positive.

    References:
        Balle et al., 2018, Eqs. 4-6 (additive noise in place of rounding).

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.audit.profiles.base import UseContext
        >>> from robustvae.audit.profiles.codec import Codec
        >>> images = rv.data.load("digits", split="test")
        >>> use = Codec(radii=(0.1,), inputs=2, step=0.25,
        ...     search="projected-ascent:steps=2,restarts=1")
        >>> victims = {"plain": rv.Victim(rv.load("digits-vae"))}
        >>> sorted({row["goal"] for row in use(UseContext(victims, images)).rows})
        ['distortion', 'nothing', 'random noise', 'rate', 'rate and distortion']
    """

    question: ClassVar[str] = "Can one image cost many times the bits, or come back broken?"

    radii: tuple[float, ...] = LEVELS
    inputs: int = 8
    search: Any = "projected-ascent:steps=60,restarts=1"
    weight: float = 100.0
    step: float = 1.0

    def __post_init__(self) -> None:
        """Validate the fields."""
        for radius in self.radii:
            check_positive(radius, "each radius")
        if not self.radii:
            raise ConfigError("the profile codec needs at least one radius: give radii=")
        check_count(self.inputs, "inputs")
        check_searches(self.search)
        check_positive(self.weight, "weight")
        check_positive(self.step, "step")

    def __call__(self, context: UseContext) -> UseResult:
        """Bits, PSNR and MS-SSIM of every change, and whether coding is the same in any batch."""
        result = UseResult()
        rows = context.choose(torch.arange(len(context.images)), self.inputs, "images")
        x = context.inputs(rows)
        for name, victim in context.victims.items():
            if getattr(victim.vae, "output_only", False):
                raise UnsupportedError(
                    "the profile codec needs codes, and this model is a black box: wrap a codec "
                    "with g_a and g_s, or encode= and decode="
                )
            with frozen(victim.vae):  # in training mode a codec adds noise to its codes
                self._measure(name, victim, x, rows.tolist(), context, result)
        result.facts["pixels"] = int(x.shape[-1] * x.shape[-2])
        result.facts["inputs"] = len(rows)
        return result

    def seconds(self, victims: Mapping[str, Victim], units: Mapping[str, UnitCost]) -> float:
        """About how long it takes, by what a row costs each victim."""
        total = 0.0
        for name, victim in victims.items():
            forward, gradient = pass_seconds(victim, units[name])
            # four goals' worth of searches, each of two draws, in every ball
            gradients = 8 * search_passes(self.search) * gradient
            total += self.inputs * len(self.radii) * (gradients + 10 * forward)
        return total

    def cut(self, share: float) -> Codec:
        """The same question for about that share of the time."""
        return dataclasses.replace(
            self,
            inputs=scaled(self.inputs, share, 1),
            search=scaled_search(self.search, share),
        )

    def _measure(
        self,
        name: str,
        victim: Victim,
        x: Tensor,
        rows: list[int],
        context: UseContext,
        result: UseResult,
    ) -> None:
        coder = Coder(name, victim, self.step)
        context.step(f"{name}: clean images")
        result.facts |= {f"{key} of {name}": value for key, value in coder.facts(x).items()}
        clean = numbers_of(coder, victim, x, context, rows)
        base = [{"victim": name, "input": i} for i in rows]
        add(result, base, {"goal": "nothing", "radius": 0.0}, clean)
        for radius in self.radii:
            self._changes(coder, x, (radius, rows), context, result)

    def _changes(
        self,
        coder: Coder,
        x: Tensor,
        where: tuple[float, list[int]],
        context: UseContext,
        result: UseResult,
    ) -> None:
        (radius, rows), name, victim = where, coder.name, coder.victim
        ball = Ball("linf", radius)
        pixels = x.shape[-1] * x.shape[-2]
        rate = coder.goal
        error = AnomalyScore(score=ReconstructionError(squared=True), draws=2)
        both = Weighted((rate, error), (1 / pixels, self.weight / x[0].numel()))
        base = [{"victim": name, "input": i} for i in rows]
        for goal, member in (("rate", rate), ("distortion", error), ("rate and distortion", both)):
            # the rate at the first radius is searched in any case: without it there is no answer
            if context.is_late and (goal, radius) != ("rate", self.radii[0]):
                result.omit(f"{goal}, linf {radius:.3g}", name, LATE)
                continue
            context.step(f"{name}: {goal}, linf {radius:.3g}")
            attack = Attack(member, registry.build("search", self.search), ball)
            stage = Stage(name, f"{goal} {radius:g}", 4 if member is both else 2)
            try:
                x_adv, words = context.attacked(stage, attack, victim, x, rows)
            except (RobustVAEError, RuntimeError) as fault:
                result.omit(f"{goal}, linf {radius:.3g}", name, fault)
                continue
            if words:
                result.omit(f"{goal}, linf {radius:.3g}", name, words)
            values = numbers_of(coder, victim, x_adv, context, rows)
            add(result, base, {"goal": goal, "radius": radius}, values)
            if goal == "rate" and victim is context.first:
                self._show(victim, x, x_adv, (radius, rows), values["bits"], context, result)
        streams = context.streams(f"noise {radius:g}", rows)
        sign = (rand(*x.shape, like=x, generator=streams) < 0.5).to(x)
        noisy = ball.project(x, x + radius * (2 * sign - 1))
        values = numbers_of(coder, victim, noisy, context, rows)
        add(result, base, {"goal": "random noise", "radius": radius}, values)

    def _show(
        self,
        victim: Victim,
        x: Tensor,
        x_adv: Tensor,
        where: tuple[float, list[int]],
        bits: Tensor,
        context: UseContext,
        result: UseResult,
    ) -> None:
        radius, rows = where
        for i in bits.argsort(descending=True)[:2].tolist():
            pair = torch.stack([x[i], x_adv[i]])
            with torch.no_grad():
                output = victim.reconstruct(pair, generator=context.streams("show", [0, 1]))
            result.show(
                rows[i],
                int(context.images.y[rows[i]]),
                f"rate, linf {radius:.3g}",
                f"{float(bits[i]) / 8:.0f} bytes",
                input=pair[0],
                attacked=pair[1],
                reconstruction=output[0],
                attacked_reconstruction=output[1],
            )


@final
class Coder:
    """How a model's codes become bits: by its own entropy model, or by its Gaussian prior.

    Attributes:
        module: The codec, or None for a model without an entropy model.
        goal: Raises the bits; reports those of the rounded codes.
    """

    def __init__(self, name: str, victim: Victim, step: float) -> None:
        self.name, self.victim = name, victim
        self.module: nn.Module | None = codec_of(victim)
        self.goal: Any = BitRate(step) if self.module is None else CodecRate(self)
        self.writes_files = self.module is not None and self._writes()

    def _writes(self) -> bool:
        compress = getattr(self.module, "compress", None)
        if compress is None:
            return False
        try:
            self._file(torch.full((1, *self.victim.vae.image_shape), 0.5).to(self._like()))
        except Exception:  # an entropy coder without tables, or another package's fault
            return False
        return True

    def _like(self) -> Tensor:
        vae = self.victim.vae
        return torch.empty(0, dtype=vae.dtype, device=vae.device)

    def _read(self, x: Tensor) -> Tensor:
        """What the codec reads: in its own range."""
        space = getattr(self.victim.vae, "space", None)
        value: Tensor = x if space is None else space.to_model(x)
        return value

    def _file(self, x: Tensor) -> list[int]:
        """Bits of each image's file."""
        module: Any = self.module
        sizes = []
        with torch.no_grad():
            for i in range(len(x)):  # a file holds one image
                strings = module.compress(self._read(x[i : i + 1]))["strings"]
                sizes.append(8 * sum(len(part) for group in strings for part in group))
        return sizes

    def bits(self, x: Tensor) -> Tensor:
        """Bits of each image as the deployed system pays them, (B,)."""
        if self.writes_files:
            return torch.tensor(self._file(x), dtype=torch.float64)
        rows = torch.arange(len(x))
        # rounded codes draw nothing; the form of a goal asks for a generator all the same
        score = reported(self.goal, self.victim, x, generator=new_generator(0))
        with torch.no_grad():
            parts = [score(x[part], part) for part in rows.split(_AT_ONCE)]
        return torch.cat(parts).double().cpu()

    def likelihood(self, x: Tensor, noise: int | None) -> Tensor:
        """-log2 of the likelihoods of all codes, (B,); under noise of a seed, or rounded."""
        assert self.module is not None, "a model without an entropy model has no likelihoods"
        module: Any = self.module
        with contextlib.ExitStack() as stack:
            if noise is not None:
                stack.enter_context(noisy_codes(module))
                stack.enter_context(seeded(noise))
            output = module(self._read(x))
        parts = [
            -value.clamp_min(1e-9).log2().flatten(1).sum(1)
            for value in output["likelihoods"].values()
        ]
        return torch.stack(parts).sum(0)

    def facts(self, x: Tensor) -> dict[str, Any]:
        """How the bits are counted, and whether codes are the same in any batch and precision."""
        facts: dict[str, Any] = {
            "counted": "coded bytes"
            if self.writes_files
            else "likelihood of rounded codes"
            if self.module is not None
            else "rounded codes under the Gaussian prior"
        }
        vae = self.victim.vae
        decisions: Callable[[Tensor], Tensor] | None = getattr(vae, "decisions", None)
        if decisions is None:
            return facts
        try:
            with torch.no_grad():
                together = decisions(vae.encode(x).mean)
                alone = torch.cat([decisions(vae.encode(x[i : i + 1]).mean) for i in range(len(x))])
                facts["flips_in_batch"] = float((together != alone).double().mean())
                wide = vae.double()
                try:
                    exact = decisions(wide.encode(x.double()).mean)
                finally:
                    vae.to(x.dtype)
                facts["flips_in_float64"] = float((together.double() != exact).double().mean())
        except (RobustVAEError, RuntimeError) as error:
            facts["flips_missing"] = " ".join(str(error).split())[:200]
        return facts


@final
@dataclass(frozen=True, eq=False)
class CodecRate:
    """Raise the bits that a codec's own entropy model counts.

    Args:
        coder: Of the codec.
        draws: Noises on the codes that the search averages.
    """

    coder: Coder
    draws: int = 2

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """Bits under additive noise; see `robustvae.attacks.Goal.bind`."""
        seeds = range(self.draws)  # fixed, so that the score is a fixed function
        return lambda y, rows: torch.stack([self.coder.likelihood(y, seed) for seed in seeds]).mean(
            0
        )

    def report(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """Bits of the rounded codes."""
        return lambda y, rows: self.coder.likelihood(y, None)


@final
@dataclass(frozen=True)
class Weighted:
    """Several goals' scores weighted, the searched and the reported ones each by themselves."""

    goals: tuple[Any, ...]
    weights: tuple[float, ...]

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The weighted sum of the searched scores; see `robustvae.attacks.Goal.bind`."""
        streams = by_row(generator, "weighted", x)
        return self._sum(
            [goal.bind(victim, x, generator=streams.clone_state()) for goal in self.goals]
        )

    def report(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The weighted sum of the reported scores."""
        streams = by_row(generator, "weighted", x)
        return self._sum(
            [reported(goal, victim, x, generator=streams.clone_state()) for goal in self.goals]
        )

    def _sum(self, scores: list[Score]) -> Score:
        pairs = list(zip(self.weights, scores, strict=True))
        return lambda y, rows: torch.stack([w * s(y, rows) for w, s in pairs]).sum(0)


def codec_of(victim: Victim) -> nn.Module | None:
    """The codec inside a wrapped model, whose forward pass returns likelihoods; None without."""
    part = next((part for part in victim.vae.modules() if isinstance(part, CodecDecoder)), None)
    if part is None:
        return None
    model: Any = part.model
    x = torch.full((1, *victim.vae.image_shape), 0.5, dtype=victim.vae.dtype)
    try:
        with torch.no_grad():
            output = model(x.to(victim.vae.device))
    except Exception:  # a stranger's forward pass may raise anything
        return None
    has = isinstance(output, dict) and isinstance(output.get("likelihoods"), dict)
    return model if has else None


@contextlib.contextmanager
def noisy_codes(module: nn.Module) -> Iterator[None]:
    """Within: entropy models add noise in place of rounding, as in training; all else as it is."""
    parts = [part for part in module.modules() if callable(getattr(part, "quantize", None))]
    modes = [part.training for part in parts]
    # the flag alone: `train()` would reach dropout and statistics inside
    for part in parts:
        part.training = True
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def numbers_of(
    coder: Coder, victim: Victim, x: Tensor, context: UseContext, rows: list[int]
) -> dict[str, Tensor]:
    """Bits, and what decoding gives back of the image that was sent, (B,) each."""
    streams = context.streams("decoded", rows)
    with torch.no_grad():
        output = torch.cat(
            [
                victim.reconstruct(x[part], generator=streams.part(part.tolist()))
                for part in torch.arange(len(x)).split(_AT_ONCE)
            ]
        ).clamp(0, 1)
    error = (output - x).flatten(1).square().mean(1).clamp_min(1e-10)
    return {
        "bits": coder.bits(x),
        "psnr": -10 * error.log10(),
        "ms_ssim": ms_ssim(output, x, variant=default_variant(x)),
    }


def add(
    result: UseResult, base: list[dict[str, Any]], same: dict[str, Any], values: dict[str, Tensor]
) -> None:
    """A row for each image."""
    lists = {key: numbers(column) for key, column in values.items()}
    result.rows += [
        {**row, "norm": "linf", **same, **{key: lists[key][i] for key in lists}}
        for i, row in enumerate(base)
    ]
