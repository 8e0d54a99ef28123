"""Whether an encoder's code can be moved, and whether such a change lasts on an image's way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from robustvae import registry, zoo
from robustvae.attacks import Attack, EncoderTarget
from robustvae.audit.profiles.base import LATE, Stage, UseContext, UseResult, in_parts, numbers
from robustvae.audit.profiles.minutes import (
    check_searches,
    pass_seconds,
    scaled,
    scaled_search,
    search_passes,
)
from robustvae.audit.profiles.transforms import STANDARD, Transform, transforms_of
from robustvae.audit.unit_cost import UnitCost
from robustvae.defenses import Victim
from robustvae.errors import (
    ConfigError,
    RobustVAEError,
    ShapeError,
    UnsupportedError,
    check_count,
    check_positive,
)
from robustvae.metrics import default_variant, ms_ssim
from robustvae.models import VAE
from robustvae.perturb import Ball, Score
from robustvae.registry import register
from robustvae.seeding import by_row, rand

LEVELS = (4 / 255, 8 / 255, 16 / 255)
_ROBUST_SHARE = 0.05  # of the time, below which no change is made through the transforms
SAME_CODE = 1e-6  # of the codes' length: what is nearer is rounding
_LEAST = 4  # inputs: the distance between two images' codes is the unit of every drift


@register("use", "latent-diffusion")
@final
@dataclass(frozen=True)
class LatentDiffusion:
    """Whether an encoder's code can be moved, and whether such a change lasts on its way.

    Both sides of one question: is my encoder resistant, does my protection last? Changes away from
    an image's own code and towards another image's, and random changes of the same size. The unit
    of a drift is the median distance between the codes of two different images. What is left after
    each transform is the distance between the codes of the transformed image with the change and
    without it. A change made in expectation over the transforms stands beside the plain one. Every
    change is also read by the other encoders.

    Args:
        radii: In linf, in units of the input range [0, 1].
        inputs: Images, at most.
        search: The gradient search.
        transforms: What happens to images on their way; see
            `robustvae.audit.profiles.transforms`.
        robust: Whether changes are also made in expectation over the transforms, at the middle
            radius.
        spread: Whether the posterior's spread counts beside its mean, where it has one.
        others: More encoders, each a name, a folder or FILE.py:FACTORY, that read the changes; the
            other victims of the audit do so too.

    Raises:
        RangeError: A radius that is not positive, or fewer than 4 inputs.
        UnknownNameError: A transform of another kind.

    References:
        Salman et al., 2023 (PhotoGuard, the encoder attack).

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.audit.profiles.base import UseContext
        >>> from robustvae.audit.profiles.latent_diffusion import LatentDiffusion
        >>> images = rv.data.load("digits", split="test")
        >>> use = LatentDiffusion(radii=(0.1,), inputs=4, transforms=("jpeg:75",), robust=False,
        ...     search="projected-ascent:steps=2,restarts=1")
        >>> victims = {"plain": rv.Victim(rv.load("digits-vae"))}
        >>> {row["goal"] for row in use(UseContext(victims, images)).rows} >= {"away", "target"}
        True
    """

    question: ClassVar[str] = "Can the encoder's code be moved, and does such a change last?"

    radii: tuple[float, ...] = LEVELS
    inputs: int = 16
    search: Any = "projected-ascent:steps=40,restarts=1"
    transforms: tuple[str, ...] = STANDARD
    robust: bool = True
    spread: bool = True
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate the fields."""
        for radius in self.radii:
            check_positive(radius, "each radius")
        if not self.radii:
            raise ConfigError("the profile latent-diffusion needs at least one radius: give radii=")
        check_count(self.inputs, "inputs", least=_LEAST)
        transforms_of(self.transforms)
        check_searches(self.search)

    def __call__(self, context: UseContext) -> UseResult:
        """Drift, damage, survival and transfer of every change."""
        result = UseResult()
        rows = context.choose(torch.arange(len(context.images)), self.inputs, "images")
        if len(rows) < _LEAST:
            raise ShapeError(f"the profile needs at least {_LEAST} images, got {len(rows)}")
        encoders = self._encoders(context, result)
        source, victim = next(iter(context.victims.items()))
        if getattr(victim.vae, "output_only", False):
            raise UnsupportedError(
                "the profile latent-diffusion needs an encoder, and this model is a black box: "
                "wrap it with encode= and decode="
            )
        study = Study(self, context, rows, result)
        for name, encoder in encoders.items():
            context.step(f"{name}: changes of the code")
            study.measure(name, encoder, encoders, full=name == source)
        result.facts["spread"] = self.spread and study.has_spread(victim)
        result.facts["unit"] = study.unit(victim)
        result.facts["inputs"] = len(rows)
        return result

    def seconds(self, victims: Mapping[str, Victim], units: Mapping[str, UnitCost]) -> float:
        """About how long it takes, by what a row costs each victim."""
        unit = next(iter(units.values()))
        forward, gradient = pass_seconds(next(iter(victims.values())), unit)
        changes = 2 * len(self.radii) + len(victims) + len(self.others) - 1
        ways = len(self.transforms) + 1
        changes += ways * self.robust  # each step passes all of them
        readings = 6 * (3 * len(self.radii) + ways)
        gradients = changes * search_passes(self.search) * gradient
        return self.inputs * (gradients + readings * forward)

    def cut(self, share: float) -> LatentDiffusion:
        """The same question for about that share of the time."""
        return dataclasses.replace(
            self,
            inputs=scaled(self.inputs, share, _LEAST),
            search=scaled_search(self.search, share),
            robust=self.robust and share > _ROBUST_SHARE,
        )

    def _encoders(self, context: UseContext, result: UseResult) -> dict[str, Victim]:
        """The audit's victims, one a model, and the other encoders."""
        encoders: dict[str, Victim] = {}
        models: list[VAE] = []
        for name, victim in context.victims.items():
            if all(victim.vae is not vae for vae in models):
                models.append(victim.vae)
                encoders[name] = victim
            else:
                result.omit("transfer", name, "the encoder is that of another victim")
        for spec in self.others:
            # a path says in tables what its last part says; two of one name keep their paths
            name = spec.rpartition("/")[2]
            name = spec if name in encoders else name
            vae = zoo.load(spec).to(context.first.vae.device)
            if vae.image_shape != context.first.vae.image_shape:
                raise ShapeError(
                    f"others: {spec} reads {tuple(vae.image_shape)}, the audited model "
                    f"{tuple(context.first.vae.image_shape)}: name encoders of one shape"
                )
            encoders[name] = Victim(vae)
        return encoders


@final
class Study:
    """The images of one use, and what is measured on each encoder."""

    def __init__(
        self, use: LatentDiffusion, context: UseContext, rows: Tensor, result: UseResult
    ) -> None:
        self.use, self.context, self.rows, self.result = use, context, rows.tolist(), result
        self.x = context.inputs(rows)
        # the next image is the target: far from its own code, and made by nobody
        self.target = self.x.roll(-1, 0)

    def has_spread(self, victim: Victim) -> bool:
        """Whether the posterior has a spread that a goal can read."""
        with torch.no_grad():
            stddev = getattr(victim.vae.encode(self.x[:1]), "stddev", None)
        return stddev is not None and bool((stddev > 0).all())

    def codes(self, victim: Victim, x: Tensor) -> Tensor:
        """Means of the codes, (B, d)."""
        return in_parts(lambda part: victim.vae.encode(part).mean, x, 32)

    def unit(self, victim: Victim) -> float:
        """The median distance between the codes of two images."""
        codes = self.codes(victim, self.x)
        gap = float((codes - codes.roll(-1, 0)).norm(dim=1).median())
        if gap <= SAME_CODE * float(codes.norm(dim=1).median()):
            raise UnsupportedError(
                "the profile latent-diffusion counts in distances between the codes of different "
                "images, and this encoder gives those of most images one code: give different "
                "images, or an encoder that reads them"
            )
        return gap

    def drift(self, victim: Victim, x_adv: Tensor, x: Tensor | None = None) -> Tensor:
        """Distance of codes in units of that between two images, (B,)."""
        clean = self.codes(victim, self.x if x is None else x)
        return (self.codes(victim, x_adv) - clean).norm(dim=1) / self.unit(victim)

    def measure(
        self, name: str, victim: Victim, encoders: dict[str, Victim], *, full: bool
    ) -> None:
        """All changes made for one encoder; of one that is not the audited one, transfer alone."""
        middle = sorted(self.use.radii)[len(self.use.radii) // 2]
        for radius in self.use.radii if full else (middle,):
            changes: Iterator[tuple[str, Tensor]] = self._changes(name, victim, radius, full)
            for goal, x_adv in changes:
                base = {"made_for": name, "goal": goal, "radius": radius}
                self._read(victim, x_adv, base, name)
                if goal == "away" and radius == middle:
                    for other, reader in encoders.items():
                        if other != name:
                            self._add({**base, "read_by": other}, drift=self.drift(reader, x_adv))
                if full and radius == middle and goal in ("away", "away, through transforms"):
                    self._survival(victim, x_adv, base, name)

    def _changes(
        self, name: str, victim: Victim, radius: float, full: bool
    ) -> Iterator[tuple[str, Tensor]]:
        ball, spread = Ball("linf", radius), self.use.spread and self.has_spread(victim)
        goals: dict[str, Any] = {"away": EncoderTarget(spread=spread)}
        middle = sorted(self.use.radii)[len(self.use.radii) // 2]
        if full:
            goals["target"] = EncoderTarget(self.target, spread=spread)
            if self.use.robust and radius == middle and self.use.transforms:
                through = Expected(
                    EncoderTarget(spread=spread), tuple(transforms_of(self.use.transforms).values())
                )
                goals["away, through transforms"] = through
            streams = self.context.streams(f"noise {radius:g}", self.rows)
            sign = (rand(*self.x.shape, like=self.x, generator=streams) < 0.5).to(self.x)
            yield "noise", ball.project(self.x, self.x + radius * (2 * sign - 1))
        for goal, member in goals.items():
            attack = Attack(member, registry.build("search", self.use.search), ball)
            if self.context.is_late and goal != "away":
                self.result.omit(f"changes: {goal}, linf {radius:g}", "", LATE)
                continue
            ways = 1 + len(self.use.transforms) if goal == "away, through transforms" else 1
            stage = Stage(name, f"{goal} {radius:g}", ways)
            try:
                x_adv, words = self.context.attacked(stage, attack, victim, self.x, self.rows)
            except RobustVAEError as error:
                self.result.omit(f"changes: {goal}, linf {radius:g}", "", error)
                continue
            if words:
                self.result.omit(f"changes: {goal}, linf {radius:g}", "", words)
            yield goal, x_adv

    def _read(self, victim: Victim, x_adv: Tensor, base: dict[str, Any], name: str) -> None:
        """Drift and damage at the encoder that the change was made for."""
        decode = victim.vae.decode
        before, after = (
            in_parts(lambda z: decode(z).mean, self.codes(victim, x), 32).clamp(0, 1)
            for x in (self.x, x_adv)
        )
        psnr = -10 * (after - before).flatten(1).square().mean(1).clamp_min(1e-10).log10()
        values = {
            "drift": self.drift(victim, x_adv),
            "ms_ssim": _similarity(before, after),
            "psnr": psnr,
        }
        if base["goal"] == "target":
            goal, clean = self.codes(victim, self.target), self.codes(victim, self.x)
            left = (self.codes(victim, x_adv) - goal).norm(dim=1)
            values["left_to_target"] = left / (clean - goal).norm(dim=1).clamp_min(1e-12)
        self._add({**base, "read_by": name}, **values)
        if base["goal"] == "away":
            for i in range(2):
                self.result.show(
                    self.rows[i],
                    int(self.context.images.y[self.rows[i]]),
                    f"linf {round(255 * base['radius'])}/255",
                    f"the code moved by {float(values['drift'][i]):.2g} times the distance "
                    "between two images",
                    input=self.x[i],
                    attacked=x_adv[i],
                    reconstruction=before[i],
                    attacked_reconstruction=after[i],
                )

    def _survival(self, victim: Victim, x_adv: Tensor, base: dict[str, Any], name: str) -> None:
        for spec, transform in transforms_of(("none", *self.use.transforms)).items():
            streams = self.context.streams(f"survival {spec}", self.rows)
            # the same noise on both, so that only the change makes the difference
            clean = transform(self.x, generator=streams.clone_state())
            image = transform(x_adv, generator=streams.clone_state())
            drift = self.drift(victim, image, clean)
            self._add({**base, "read_by": name, "transform": spec}, drift=drift)

    def _add(self, base: dict[str, Any], **columns: Tensor) -> None:
        """A row for each image."""
        lists = {key: numbers(values) for key, values in columns.items()}
        self.result.rows += [
            {"input": number, "norm": "linf", **base, **{key: lists[key][i] for key in lists}}
            for i, number in enumerate(self.rows)
        ]


@final
@dataclass(frozen=True)
class Expected:
    """Another goal's score averaged over what happens to images on their way.

    Args:
        goal: What the attacker wants.
        transforms: What happens; the image as it is always counts too.
    """

    goal: EncoderTarget
    transforms: Sequence[Transform]

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The mean score over the transforms; see `robustvae.attacks.Goal.bind`."""
        streams = by_row(generator, "transforms", x)
        score = self.goal.bind(victim, x, generator=streams)

        def expected(y: Tensor, rows: Tensor) -> Tensor:
            local = streams.clone_state().part(rows.tolist())
            values = [score(y, rows)]
            values += [score(change(y, generator=local), rows) for change in self.transforms]
            return torch.stack(values).mean(0)

        return expected


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    """MS-SSIM of each pair, (B,)."""
    return ms_ssim(a, b, variant=default_variant(a))
