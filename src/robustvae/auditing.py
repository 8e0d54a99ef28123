"""The audit: a plan cut into shards, each shard into rows, and all of it into one `Record`.

A shard is the unit of randomness: its generators follow from (seed, shard, purpose) alone, so the
numbers do not depend on the order of the shards, nor on where an interrupted run was resumed.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import io
import json
import math
import platform
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from robustvae import registry
from robustvae.attacks import Attack, LatentShift, MaximumDamage, evidence_checks
from robustvae.attacks.attack import AttackResult
from robustvae.certificates import certify
from robustvae.data import Images
from robustvae.defenses import RobustPosterior, Victim, is_posterior_mean
from robustvae.errors import (
    ConfigError,
    RangeError,
    ShapeError,
    StorageError,
    UnsupportedError,
    check_type,
    unknown,
)
from robustvae.geometry import pullback
from robustvae.metrics import mean_stderr, ms_ssim
from robustvae.models import checkpoint
from robustvae.models.base import check_weights
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.records import Record, plain, write_text
from robustvae.robustness import (
    Bisection,
    find_margins,
    rest_quantile,
    robustness_probability,
)
from robustvae.seeding import randn, shard_generator

STRICT = ConfigDict(extra="forbid", frozen=True)
Progress = Callable[[int, int, str], None]
MS_SSIM = "kuzina2022"
_PREDICTORS = {
    "spectral_radius": "the spectral radius of the pullback metric",
    "effective_rank": "its effective rank",
    "first_order": "the first-order estimate",
    "certified": "the certified radius",
}
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")
STAGES = 3  # attacks, margins, certificates: the steps of progress that one shard makes


@final
class AttackPlan(BaseModel):
    """One attack of an audit, by name and numbers."""

    model_config = STRICT

    goal: Literal["maximum_damage", "latent_shift"] = "maximum_damage"
    norm: Literal["l2", "linf"] = "l2"
    radius: float = Field(gt=0, allow_inf_nan=False)
    steps: int = Field(default=50, ge=1)
    restarts: int = Field(default=10, ge=1)

    def build(self) -> Attack:
        """The attack itself, kept to the pixel range."""
        goal = MaximumDamage() if self.goal == "maximum_damage" else LatentShift()
        search = ProjectedAscent(steps=self.steps, restarts=self.restarts)
        return Attack(goal, search, Ball(self.norm, self.radius))

    @property
    def name(self) -> str:
        """The attack in words: goal, norm and radius."""
        return f"{self.goal.replace('_', ' ')}, {self.norm} {self.radius:g}"


@final
class Plan(BaseModel):
    """What an audit does: validated, complete, and part of its record.

    Unknown keys are refused by name. Radii and r are in pixel units of images in [0, 1].

    Examples:
        >>> from robustvae.auditing import Plan
        >>> Plan(inputs=8, attacks=[{"radius": 1.0}]).attacks[0].name
        'maximum damage, l2 1'
    """

    model_config = STRICT

    name: str = "custom"
    inputs: int = Field(default=32, ge=1, description="images, balanced over the classes")
    shard: int = Field(default=16, ge=1, description="images to a shard, the unit of randomness")
    r: float | Literal["auto"] = Field(
        default="auto",
        description="output distance tolerated, or auto: twice the median over the inputs of the "
        "m-quantile of the distance at rest",
    )
    m: float = Field(default=0.5, gt=0, lt=1, description="probability asked for")
    displacement: Literal["centered", "paired"] = "centered"
    attacks: tuple[AttackPlan, ...] = Field(min_length=1)
    defense_steps: int = Field(default=50, ge=1, description="gradients of the robust posterior")
    draws: int = Field(default=1000, ge=10, description="posterior draws to a probability")
    confidence: float = Field(default=0.95, gt=0, lt=1)
    margin_steps: int = Field(default=50, ge=1)
    margin_restarts: int = Field(default=5, ge=1)
    neyman_pearson: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="the probabilistic certificate where the deterministic ones prove nothing; "
        "auto leaves it out for convolutions, where it takes seconds for each input",
    )
    evidence: int = Field(default=8, ge=0, description="inputs for the checks on the evidence")
    gallery: int = Field(default=6, ge=0)


PLANS: dict[str, Plan] = {
    "quick": Plan(
        name="quick",
        inputs=40,
        shard=20,
        attacks=(
            AttackPlan(radius=1.0),
            AttackPlan(goal="latent_shift", norm="linf", radius=0.1),
        ),
        margin_steps=30,
        margin_restarts=3,
    ),
    "standard": Plan(
        name="standard",
        inputs=100,
        shard=20,
        attacks=(
            AttackPlan(radius=1.0),
            AttackPlan(norm="linf", radius=0.1),
            AttackPlan(goal="latent_shift", norm="linf", radius=0.1),
            AttackPlan(goal="latent_shift", norm="linf", radius=0.2),
        ),
        draws=2000,
        margin_steps=100,
        margin_restarts=5,
        gallery=10,
    ),
    "thorough": Plan(
        name="thorough",
        inputs=300,
        shard=20,
        attacks=(
            AttackPlan(radius=1.0, steps=200, restarts=20),
            AttackPlan(norm="linf", radius=0.1, steps=200, restarts=20),
            AttackPlan(goal="latent_shift", norm="linf", radius=0.1, steps=200, restarts=20),
            AttackPlan(goal="latent_shift", norm="linf", radius=0.2, steps=200, restarts=20),
        ),
        draws=5000,
        margin_steps=200,
        margin_restarts=20,
        gallery=20,
    ),
}


def read_plan(plan: str | Path | dict[str, Any] | Plan) -> Plan:
    """A plan from its name, a YAML file, a dict, or itself.

    Raises:
        UnknownNameError: Neither a known name nor a file.
        ConfigError: The file or dict is no valid plan; the first thing wrong is named.
    """
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, str) and plan in PLANS:
        return PLANS[plan]
    if isinstance(plan, str | Path):
        path = Path(plan)
        if not path.is_file():
            raise unknown("plan", str(plan), [*PLANS, "FILE.yaml"])
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(
                f"{path} is no readable YAML: {' '.join(str(error).split())}"
            ) from None
        plan = {"name": path.stem, **content} if isinstance(content, dict) else content
    if not isinstance(plan, dict):
        raise ConfigError(f"a plan must be a mapping, got {type(plan).__name__}")
    try:
        return Plan.model_validate(plan)
    except ValidationError as error:
        # a mistyped key often shows as a missing one too: name the typing error
        first = min(error.errors(), key=lambda part: part["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in first["loc"]) or "plan"
        if first["type"] == "extra_forbidden":
            fields = Plan.model_fields if len(first["loc"]) == 1 else AttackPlan.model_fields
            inside = where.rpartition(".")[0]
            raise unknown(
                "key of a plan", where, [f"{inside}.{f}".lstrip(".") for f in fields]
            ) from None
        raise ConfigError(f"plan: {where}: {first['msg']}, got {first['input']!r}") from None


def audit(
    victim: Victim,
    images: Images,
    plan: str | Path | dict[str, Any] | Plan = "quick",
    *,
    seed: int = 0,
    name: str | None = None,
    keep: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Record:
    """Attack, defend, estimate and certify a victim on a sample of images.

    Warning:
        What attacks and samples show holds for what was tried. Only the rows' `certified` is a
        guarantee, and its kind says of which sort.

    Args:
        victim: The model and how its latent is read.
        images: Where the inputs are taken from, balanced over the classes; pixels in [0, 1].
        plan: "quick" (under two minutes on two cores for the bundled models), "standard",
            "thorough", a YAML file, a dict, or a `Plan`.
        seed: Of every generator; with the plan, the model and the data it decides every number.
        name: What to call the model in the record.
        keep: A folder for finished shards, so that nothing is lost when the run is stopped.
        resume: Take shards of the same audit from `keep` instead of computing them again; the
            same means the same weights, images, plan and seed.
        progress: Called with (steps done, steps in all, what is under way).

    Returns:
        A `Record`; the same bytes for the same arguments, apart from `timing`.

    Raises:
        ShapeError: The images are not of the model's shape.
        RangeError: The plan wants more inputs than there are.
        NonFiniteError: A NaN or an infinity in the weights.
        ConfigError: A bad plan.

    Examples:
        >>> import robustvae as rv
        >>> images = rv.data.load("digits", split="test")
        >>> plan = {"inputs": 4, "attacks": [{"radius": 0.5, "steps": 5, "restarts": 1}]}
        >>> record = rv.audit(rv.Victim(rv.load("digits-vae")), images, plan=plan, seed=0)
        >>> len(record.rows)
        4
    """
    started, created = time.monotonic(), datetime.datetime.now(datetime.UTC)
    check_type(victim, "victim", Victim)
    check_type(images, "images", Images)
    plan = read_plan(plan)
    vae = victim.vae
    if images.image_shape != tuple(vae.image_shape):
        raise ShapeError(
            f"the model reads images of {tuple(vae.image_shape)}, "
            f"got {images.name} with {images.image_shape}"
        )
    check_weights(vae)
    if plan.inputs > len(images):
        raise RangeError(f"the plan wants {plan.inputs} inputs, {images.name} has {len(images)}")

    chosen = images.choose(
        plan.inputs, stratified=True, generator=shard_generator(seed, 0, "inputs")
    )
    picked = images[chosen]
    r = _tolerance(victim, picked, plan, seed)
    model = _model(victim, name)
    header: dict[str, Any] = {
        "model": model,
        "data": {
            "name": images.name,
            "split": images.split,
            "inputs": plan.inputs,
            "available": len(images),
            "sha256": _sha256(picked),
        },
        "plan": {**plan.model_dump(mode="json"), "r": r, "r_rule": plan.r},
        "seed": seed,
        "versions": _versions(),
    }
    defense = repr(victim.defense)
    if resume and model["sha256"] is None:
        raise ConfigError(
            "cannot resume: the model's weights are out of sight, so it cannot be told from another"
        )
    shards = [chosen[i : i + plan.shard] for i in range(0, plan.inputs, plan.shard)]
    store = _Store(keep, {**header, "defense": defense}, resume)
    report = progress or (lambda done, total, what: None)
    rows: list[dict[str, Any]] = []
    gallery: list[dict[str, Any]] = []
    certificates: list[dict[str, Any]] = []
    for number, members in enumerate(shards):
        shard = store.read(number)
        if shard is None:

            def tell(stage: int, what: str, number: int = number) -> None:
                where = f"shard {number + 1} of {len(shards)}: {what}"
                report(number * STAGES + stage, len(shards) * STAGES, where)

            bench = _Bench(victim, plan, r, seed, number, tell)
            shard = plain(bench.measure(images[members], members.tolist()))
            store.write(number, shard)
        rows += shard["rows"]
        gallery += shard["gallery"][: plan.gallery - len(gallery)]
        certificates += shard["certificates"]
    report(len(shards) * STAGES, len(shards) * STAGES, "checks on the evidence")
    checks = _checks(rows) + _evidence(victim, picked, plan, seed)
    return Record(
        title=f"{model['name']} on {images.name} ({images.split})",
        defense=defense,
        rows=rows,
        summary=_summary(rows, plan),
        checks=checks,
        gallery=gallery,
        protocol=_protocol(victim, plan, r),
        proved=_proved(rows, r, plan, certificates),
        estimated=_estimated(plan, r),
        not_tried=_not_tried(victim, plan),
        references=REFERENCES,
        timing={
            "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "seconds": round(time.monotonic() - started, 1),
        },
        **header,
    )


class _Bench:
    """Measures one shard: every generator it spends follows from (seed, shard, purpose)."""

    def __init__(
        self,
        victim: Victim,
        plan: Plan,
        r: float,
        seed: int,
        shard: int,
        tell: Callable[[int, str], None],
    ) -> None:
        self.victim, self.plan, self.r = victim, plan, r
        self.seed, self.shard, self.tell = seed, shard, tell

    def generator(self, purpose: str) -> torch.Generator:
        return shard_generator(self.seed, self.shard, purpose)

    def measure(self, images: Images, numbers: list[int]) -> dict[str, Any]:
        vae, plan = self.victim.vae, self.plan
        x = images.x.to(device=vae.device, dtype=vae.dtype)
        self.tell(0, "attacks")
        attacked = [self.attack(attack, x) for attack in plan.attacks]
        self.tell(1, "margins")
        margins = self.margins(x, torch.stack([shown["attacked"] for _, shown in attacked]))
        self.tell(2, "certificates")
        certified, certificates = self.certificates(x)
        rows = [
            {
                "input": number,
                "label": int(images.y[i]),
                **{key: values[i] for key, values in {**columns, **margins, **certified}.items()},
                "r": self.r,
                "m": plan.m,
                "displacement": plan.displacement,
            }
            for i, number in enumerate(numbers)
            for columns, _ in attacked
        ]
        gallery = [
            self.panels(*attacked[0], i) | {"input": number, "label": int(images.y[i])}
            for i, number in enumerate(numbers[: plan.gallery])
        ]
        return {"rows": rows, "gallery": gallery, "certificates": certificates}

    def attack(
        self, attack: AttackPlan, x: Tensor
    ) -> tuple[dict[str, list[Any]], dict[str, Tensor]]:
        """One attack on all inputs of the shard: a column for each field of a row, and images."""
        name = attack.name
        found = attack.build()(self.victim, x, generator=self.generator(f"attack {name}"))
        noise = self.noise(attack, x, found, name)
        x_hat, x_hat_adv, x_hat_noise = (
            self.victim.reconstruct(image, generator=self.generator(f"reconstruct {name}"))
            for image in (x, found.x_adv, noise)
        )
        probability = robustness_probability(
            self.victim,
            x,
            found.x_adv,
            self.r,
            self.plan.displacement,
            draws=self.plan.draws,
            confidence=self.plan.confidence,
            generator=self.generator(f"probability {name}"),
        )
        columns: dict[str, list[Any]] = {
            "attack": [name] * len(x),
            "norm": [attack.norm] * len(x),
            "radius": [attack.radius] * len(x),
            "box": [True] * len(x),
            "size": found.size.tolist(),
            "score": found.score.tolist(),
            "status": list(found.status),
            "queries": plain(found.queries),
            "inside": Ball(attack.norm, attack.radius).contains(x, found.x_adv).tolist(),
            "damage": _distance(x_hat_adv, x_hat).tolist(),
            "damage_noise": _distance(x_hat_noise, x_hat).tolist(),
            "ms_ssim_clean": _similarity(x, x_hat),
            "ms_ssim_attacked": _similarity(x_hat, x_hat_adv),
            "ms_ssim_noise": _similarity(x_hat, x_hat_noise),
            "ms_ssim_variant": [MS_SSIM] * len(x),
            "probability": plain(probability.value),
            "probability_low": plain(probability.low),
            "probability_high": plain(probability.high),
            "damage_defended": [None] * len(x),
            "ms_ssim_defended": [None] * len(x),
        }
        shown = {
            "input": x,
            "attacked": found.x_adv,
            "reconstruction": x_hat,
            "attacked reconstruction": x_hat_adv,
        }
        if not _is_defended(self.victim):
            norm, steps = attack.norm, self.plan.defense_steps
            defense = RobustPosterior(norm=norm, radius=attack.radius, steps=steps)
            x_hat_defended = Victim(self.victim.vae, defense).reconstruct(
                found.x_adv, generator=self.generator(f"defense {name}")
            )
            columns["damage_defended"] = _distance(x_hat_defended, x_hat).tolist()
            columns["ms_ssim_defended"] = _similarity(x_hat, x_hat_defended)
            shown["defended reconstruction"] = x_hat_defended
        return columns, shown

    def noise(self, attack: AttackPlan, x: Tensor, found: AttackResult, name: str) -> Tensor:
        """Random noise of the size that the attack spent on each input, in the pixel range."""
        direction = randn(*x.shape, like=x, generator=self.generator(f"noise {name}"))
        far = direction.sign() if attack.norm == "linf" else direction * math.sqrt(x[0].numel())
        return Ball(attack.norm, found.size.clamp_min(1e-9)).project(x, x + far)

    def margins(self, x: Tensor, candidates: Tensor) -> dict[str, list[Any]]:
        """The upper end of the bracket, for box and for free perturbations."""
        plan = self.plan
        search = ProjectedAscent(steps=plan.margin_steps, restarts=plan.margin_restarts)
        found = find_margins(
            self.victim,
            x,
            self.r,
            plan.m,
            plan.displacement,
            draws=plan.draws,
            confidence=plan.confidence,
            bisection=Bisection(search=search),
            candidates=candidates,
            generator=self.generator("margins"),
        )
        return {
            "margin_upper_box": plain(found.box.estimate.value),
            "margin_upper_unconstrained": plain(found.free.estimate.value),
            "margin_upper_status": list(found.free.estimate.status),
        }

    def certificates(self, x: Tensor) -> tuple[dict[str, list[Any]], list[dict[str, Any]]]:
        """The lower end of the bracket, the first-order estimate beside it, and what it rests on.

        Where the deterministic methods prove nothing about any input, Neyman-Pearson is asked.
        """
        if _is_defended(self.victim):
            silent = [None] * len(x)
            keys = ("certified", "certified_kind", "certified_method", "certified_status")
            scores = ("first_order", "spectral_radius", "effective_rank")
            return dict.fromkeys((*keys, *scores), silent), []
        ask = functools.partial(
            certify,
            self.victim.vae,
            x,
            r=self.r,
            m=self.plan.m,
            displacement=self.plan.displacement,
        )
        lower = ask(generator=self.generator("certify"))
        if not bool((lower.radius > 0).any()) and _asks_neyman_pearson(self.victim, self.plan):
            other = ask(methods=("neyman_pearson",), generator=self.generator("neyman-pearson"))
            lower = other if bool((other.radius > 0).any()) else lower
        try:
            first = ask(methods=("first_order",), generator=self.generator("first order"))
            first_order = plain(first.radius)
        except UnsupportedError:
            first_order = [None] * len(x)
        geometry = pullback(self.victim.vae, x)
        columns = {
            "spectral_radius": plain(geometry.spectral_radius),
            "effective_rank": plain(geometry.effective_rank),
            "certified": plain(lower.radius),
            "certified_kind": [lower.kind] * len(x),
            "certified_method": list(lower.method),
            "certified_status": list(lower.status),
            "first_order": first_order,
        }
        held = bool((lower.radius > 0).any())
        return columns, [{"kind": lower.kind, "held": held, "rests_on": lower.assumptions}]

    def panels(
        self, columns: dict[str, list[Any]], shown: dict[str, Tensor], i: int
    ) -> dict[str, Any]:
        """The pictures of one input under the plan's first attack."""
        panels = {name: _picture(images[i]) for name, images in shown.items()}
        difference = (shown["attacked"] - shown["input"])[i]
        scale = float(difference.abs().max())
        panels["difference"] = _signed_picture(difference, scale)
        return {
            "attack": columns["attack"][i],
            "panels": panels,
            "caption": f"size {columns['size'][i]:.3g} ({columns['norm'][i]}); the reconstruction "
            f"moved by {columns['damage'][i]:.3g}; difference shown on a scale of ±{scale:.2g}",
        }


class _Store:
    """Finished shards on disk, each in a file whose name tells the audit it belongs to."""

    def __init__(self, folder: str | Path | None, header: dict[str, Any], resume: bool) -> None:
        text = json.dumps(plain(header), sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = None if folder is None else Path(folder)
        self.resume = resume

    def path(self, number: int) -> Path | None:
        return None if self.folder is None else self.folder / f"{self.key}-{number:05d}.json"

    def read(self, number: int) -> dict[str, Any] | None:
        path = self.path(number)
        if not self.resume or path is None or not path.is_file():
            return None
        try:
            shard: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StorageError(f"{path} cannot be resumed from: {error}") from None
        return shard

    def write(self, number: int, shard: dict[str, Any]) -> None:
        path = self.path(number)
        if path is not None:
            write_text(path, json.dumps(shard))


def _tolerance(victim: Victim, picked: Images, plan: Plan, seed: int) -> float:
    if plan.r != "auto":
        return float(plan.r)
    vae = victim.vae
    rest = rest_quantile(
        victim,
        picked.x.to(device=vae.device, dtype=vae.dtype),
        plan.m,
        plan.displacement,
        generator=shard_generator(seed, 0, "rest"),
    )
    median = float(torch.as_tensor(rest.value).median())
    if not median > 0:
        raise ConfigError(
            "r cannot be chosen by itself, as the output does not move at rest: "
            "give r a number in the plan"
        )
    # two significant digits: a tolerance is chosen, not measured
    return float(f"{2 * median:.2g}")


def _is_defended(victim: Victim) -> bool:
    return not is_posterior_mean(victim.defense)


def _asks_neyman_pearson(victim: Victim, plan: Plan) -> bool:
    if plan.neyman_pearson != "auto":
        return plan.neyman_pearson == "always"
    convolutions = (nn.Conv2d, nn.ConvTranspose2d)
    return not any(isinstance(part, convolutions) for part in victim.vae.modules())


def _sha256(images: Images) -> str:
    """SHA-256 of the pixels and labels, so that no other images pass for these."""
    digest = hashlib.sha256(images.x.cpu().contiguous().numpy().tobytes())
    digest.update(images.y.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _model(victim: Victim, name: str | None) -> dict[str, Any]:
    vae = victim.vae
    kind = registry.name_of("model", vae) or type(vae).__name__
    return {
        "name": name or kind,
        "kind": kind,
        "architecture": vae.config.get("architecture"),
        "latent": vae.latent,
        "image_shape": list(vae.image_shape),
        "likelihood": vae.config.get("likelihood"),
        "parameters": sum(parameter.numel() for parameter in vae.parameters()),
        "sha256": checkpoint.weights_sha256(vae),
    }


def _versions() -> dict[str, str]:
    packages = ("robustvae", "torch", "numpy", "scipy")
    found = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), **found}


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).flatten(1).norm(dim=1)


def _similarity(a: Tensor, b: Tensor) -> list[float]:
    values: list[float] = ms_ssim(a.clamp(0, 1), b.clamp(0, 1), variant=MS_SSIM).tolist()
    return values


def _picture(image: Tensor) -> dict[str, Any]:
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return _encoded(pixels)


def _signed_picture(difference: Tensor, scale: float) -> dict[str, Any]:
    """Blue where pixels were lowered, orange where raised, white where untouched."""
    signed = (difference.mean(0) / max(scale, 1e-12)).clamp(-1, 1).cpu().double().numpy()[..., None]
    lowered, raised = np.array([33, 102, 172]), np.array([216, 96, 16])
    far = np.where(signed < 0, lowered, raised)
    pixels = 255 + np.abs(signed) * (far - 255)
    return _encoded(pixels.round().astype(np.uint8).transpose(2, 0, 1))


def _encoded(pixels: np.ndarray) -> dict[str, Any]:
    from PIL import Image

    channels = pixels.shape[0]
    if channels not in (1, 3):
        pixels = pixels[:1]
    array = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, format="PNG", optimize=True)
    return {
        "shape": list(pixels.shape),
        "png": base64.b64encode(buffer.getvalue()).decode("ascii"),
    }


def _numbers(rows: list[dict[str, Any]], key: str) -> list[float]:
    """A column's measured values, infinities as floats."""
    return [float(row[key]) for row in rows if row[key] is not None]


def _by_attack(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for name in dict.fromkeys(row["attack"] for row in rows):
        yield name, [row for row in rows if row["attack"] == name]


def _summary(rows: list[dict[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """The headline numbers; the first attack's have plain keys, the others' name the attack."""
    entries: list[dict[str, Any]] = []

    def add(key: str, label: str, values: list[float], unit: str) -> None:
        if not values:
            return
        finite = all(map(math.isfinite, values))
        mean, stderr = mean_stderr(values) if finite else (math.inf, math.nan)
        entry = {"key": key, "label": label, "mean": mean, "stderr": stderr, "unit": unit}
        entries.append(plain({**entry, "n": len(values)}))

    for i, (name, members) in enumerate(_by_attack(rows)):
        suffix = "" if i == 0 else f" / {name}"
        if i == 0:
            clean = _numbers(members, "ms_ssim_clean")
            add("ms_ssim_clean", "MS-SSIM of input and reconstruction", clean, "")
        for key, (label, unit) in ATTACK_KEYS.items():
            told = label.format(displacement=plan.displacement)
            add(key + suffix, f"{name}: {told}", _numbers(members, key), unit)
    first = next(_by_attack(rows))[1]
    l2 = "pixel units, l2"
    upper = _numbers(first, "margin_upper_unconstrained")
    add(
        "margin_upper_unconstrained", "attacked upper bound on the margin, unconstrained", upper, l2
    )
    box = _numbers(first, "margin_upper_box")
    add("margin_upper_box", "attacked upper bound on the margin, pixels kept in range", box, l2)
    lower = _numbers(first, "certified")
    add("certified", "certified lower bound on the margin", lower, l2)
    add("certified_share", "share of inputs with a certificate", [float(c > 0) for c in lower], "")
    if lower and all(map(math.isfinite, upper)) and sum(upper) > 0:
        ratios = [low / high for low, high in zip(lower, upper, strict=True) if high > 0]
        add("tightness", "certified / attacked, free", ratios, "")
    add("first_order", "first-order estimate of the margin", _numbers(first, "first_order"), l2)
    radius = _numbers(first, "spectral_radius")
    add("spectral_radius", "spectral radius of the encoder's pullback metric", radius, "")
    if len(first) > 2 and all(map(math.isfinite, upper)) and len(set(upper)) > 1:
        for key, label in _PREDICTORS.items():
            score = _numbers(first, key)
            if len(score) == len(upper) and len(set(score)) > 1:
                rank = _rank_correlation(score, upper)
                words = f"rank correlation of the attacked bound, free, with {label}"
                entry = {"key": f"predicts / {key}", "label": words, "mean": rank, "stderr": None}
                entries.append({**entry, "unit": "", "n": len(upper)})
    return entries


def _rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's, ties sharing their mean rank."""
    from scipy import stats

    return float(stats.spearmanr(a, b).statistic)


ATTACK_KEYS = {
    "size": ("size of the perturbation", "pixel units"),
    "damage": ("distance between the reconstructions, clean and attacked", "pixel units, l2"),
    "damage_noise": ("the same under random noise of equal size", "pixel units, l2"),
    "damage_defended": ("the same with the defense", "pixel units, l2"),
    "ms_ssim_attacked": ("MS-SSIM of the reconstructions, clean and attacked", ""),
    "ms_ssim_noise": ("the same under random noise of equal size", ""),
    "ms_ssim_defended": ("the same with the defense", ""),
    "probability": ("P(distance <= r) under attack, {displacement}", ""),
}
"""What the summary says of each attack: key, label and unit."""

INPUT_KEYS = (
    "ms_ssim_clean",
    "margin_upper_unconstrained",
    "margin_upper_box",
    "certified",
    "certified_share",
    "tightness",
    "first_order",
    "spectral_radius",
    *(f"predicts / {key}" for key in _PREDICTORS),
)


EVIDENCE = (
    "honest score",
    "larger radius never weaker",
    "more steps change little",
    "beats random noise",
    "beats the gradient-free search",
    "unbounded attack succeeds",
    "seeing beats transfer",
)


def summary_keys(plan: Plan) -> list[str]:
    """Every key that the summary may have; what could not be measured is left out of a record."""
    suffixes = ["", *(f" / {attack.name}" for attack in plan.attacks[1:])]
    return [*INPUT_KEYS, *(key + suffix for suffix in suffixes for key in ATTACK_KEYS)]


def check_names(plan: Plan) -> list[str]:
    """The names of the checks on the evidence, in their order."""
    against_noise = (f"beats noise: {attack.name}" for attack in plan.attacks)
    of_rows = ["inside", "gradients", *against_noise, "robust at rest", "sandwich"]
    return [*of_rows, *(EVIDENCE if plan.evidence else ())]


def _checks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Checks on the evidence: what fails here makes the numbers above it worth less."""
    inside = [row["inside"] for row in rows]
    for row in rows:
        del row["inside"]
    stuck = sum(row["status"] != "ok" for row in rows)
    checks = [
        {
            "name": "inside",
            "passed": all(inside),
            "value": f"{sum(inside)} of {len(inside)}",
            "meaning": "Every attacked image lies in its ball and in the pixel range, to 1e-6. "
            "If not, the attack cheated and its numbers overstate the weakness.",
        },
        {
            "name": "gradients",
            "passed": stuck == 0,
            "value": f"{stuck} of {len(rows)} inconclusive",
            "meaning": "The attacker saw a gradient other than zero on every input. "
            "Where it did not, the row is inconclusive, which is not the same as robust.",
        },
    ]
    for name, members in _by_attack(rows):
        gains = [row["damage"] - row["damage_noise"] for row in members]
        mean, stderr = mean_stderr(gains)
        checks.append(
            {
                "name": f"beats noise: {name}",
                "passed": mean > 2 * stderr if len(gains) > 1 else mean > 0,
                "value": f"{mean:.3g} more damage (standard error {stderr:.2g})",
                "meaning": "The attack moves the reconstruction further than random noise of the "
                "same size. If not, the attack is too weak to say anything.",
            }
        )
    first = next(_by_attack(rows))[1]
    rest = sum(row["margin_upper_status"] == "not robust at rest" for row in first)
    checks.append(
        {
            "name": "robust at rest",
            "passed": rest == 0,
            "value": f"{rest} of {len(first)} not robust at rest",
            "meaning": "Without any perturbation the output stays within r with probability "
            "above m. Where it does not, the margin is 0 and r is too small for this model.",
        }
    )
    pairs = [
        (row["certified"], float(row["margin_upper_unconstrained"]))
        for row in first
        if row["certified"] is not None
    ]
    violations = sum(low > high + 1e-6 for low, high in pairs)
    checks.append(
        {
            "name": "sandwich",
            "passed": violations == 0 if pairs else None,
            "value": f"{violations} of {len(pairs)} violated" if pairs else "no certificate",
            "meaning": "No certified lower bound exceeds the attacked upper bound of its input. "
            "One violation would refute the certificate.",
        }
    )
    return checks


def _evidence(victim: Victim, picked: Images, plan: Plan, seed: int) -> list[dict[str, Any]]:
    """Whether the plan's first attack was a real one, looked at on a few inputs."""
    if plan.evidence == 0:
        return []
    attack = plan.attacks[0].build()
    vae = victim.vae
    checks = evidence_checks(
        victim,
        picked.x[: plan.evidence].to(device=vae.device, dtype=vae.dtype),
        goal=attack.goal,
        ball=attack.ball,
        search=attack.search,
        generator=shard_generator(seed, 0, "evidence"),
    )
    # those two were made on every row already
    return [plain(check) for check in checks if check.name not in ("inside", "gradients")]


def _protocol(victim: Victim, plan: Plan, r: float) -> list[str]:
    delta = {
        "centered": "the distance between a reconstruction drawn at the perturbed input, with the "
        "clean input's posterior spread, and the reconstruction of the clean posterior mean",
        "paired": "the distance between reconstructions drawn independently at the perturbed and "
        "at the clean input",
    }[plan.displacement]
    rule = (
        "given"
        if plan.r != "auto"
        else ("twice the median over the inputs of the m-quantile of the distance at rest")
    )
    words = [
        f"{plan.inputs} inputs, balanced over the classes, drawn with the seed; images in [0, 1].",
        f"Robust at a perturbation means P(D <= r) > m with D {delta} "
        f"(displacement {plan.displacement}), "
        f"r = {r:g} ({rule}), m = {plan.m:g}.",
        *(
            f"Attack {attack.name}: projected ascent, {attack.steps} steps, {attack.restarts} "
            "restarts, perturbed pixels kept in [0, 1]; the best iterate of the worst "
            "restart, projected and scored again."
            for attack in plan.attacks
        ),
        f"Probabilities: {plan.draws} draws, Clopper-Pearson interval at {plan.confidence:g}.",
        f"Attacked upper bounds on the margin: bisection with {plan.margin_restarts} restarts of "
        f"{plan.margin_steps} steps in the l2 norm; fresh draws decide, at confidence "
        f"{plan.confidence:g} per input, split over the tests made for it, box and free.",
        f"Checks on the evidence: the first attack run again on {plan.evidence} inputs, with "
        "a larger ball, more steps, other searches and the whole pixel range.",
        "Noise of equal size: uniform direction (random signs for linf), projected like an attack.",
        f"MS-SSIM: variant {MS_SSIM}, on reconstructions as the victim makes them.",
    ]
    if not victim.vae.state_dict():
        words.append(
            "The model's weights are out of sight: nothing in this record identifies them."
        )
    if not _is_defended(victim):
        words.append(
            f"Defense shown beside the attack: mode of the robust posterior, {plan.defense_steps} "
            "gradients, told the attack's norm and radius; the attack did not know it."
        )
    return words


def _proved(
    rows: list[dict[str, Any]], r: float, plan: Plan, certificates: list[dict[str, Any]]
) -> list[str]:
    first = next(_by_attack(rows))[1]
    words: list[str] = []
    for kind in dict.fromkeys(part["kind"] for part in certificates if part["held"]):
        radii = [row["certified"] for row in first if row["certified_kind"] == kind]
        radii = [radius for radius in radii if radius > 0]
        least, most = (math.floor(end(radii) * 1e3) / 1e3 for end in (min, max))
        rests_on = _merged([p["rests_on"] for p in certificates if p["held"] and p["kind"] == kind])
        words += [
            f"{len(radii)} of {len(first)} inputs have a {kind} certificate, with radii from "
            f"{least:.3f} to {most:.3f} (l2, pixel units): no perturbation of smaller norm, "
            f"box or free, brings P(D <= {r:g}) down to {plan.m:g} or below.",
            *(f"It rests on: {assumption}." for assumption in rests_on),
        ]
    if not words:
        reasons = "; ".join(_merged([part["rests_on"] for part in certificates]))
        reasons = reasons or "certificates speak of the undefended model only"
        return [f"Nothing is proved about any input of this audit ({reasons})."]
    return words


def _merged(lists: list[list[str]]) -> list[str]:
    """Every assumption once; of those that differ in a number only, the one with the greatest."""
    kept: dict[str, str] = {}
    for sentence in (sentence for sentences in lists for sentence in sentences):
        shape = _NUMBER.sub("#", sentence)
        if shape not in kept or _numbers_in(sentence) > _numbers_in(kept[shape]):
            kept[shape] = sentence
    return list(kept.values())


def _numbers_in(sentence: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(sentence)]


def _estimated(plan: Plan, r: float) -> list[str]:
    return [
        "Damage, MS-SSIM and probabilities under attack hold for the perturbations found; a "
        "stronger attack may do worse.",
        f"The attacked upper bound of an input is a perturbation that was found and for which "
        f"P(D <= {r:g}) is at most {plan.m:g} at confidence {plan.confidence:g}: the margin is no "
        "larger. How much smaller it is, the attack cannot tell.",
        "The first-order estimate replaces the networks by their Jacobians at the input. It is no "
        "bound of either kind.",
    ]


def _not_tried(victim: Victim, plan: Plan) -> list[str]:
    words = [
        "Norms, radii and goals outside the plan; perturbations that are not additive in the "
        "pixels, such as rotations.",
        "Penalty-based searches, and gradient-free ones beyond the checks on the evidence.",
    ]
    if _is_defended(victim):
        words.append("Certificates: none speaks of a defended victim.")
    else:
        words.append("Attacks that know the defense shown beside them.")
        if not _asks_neyman_pearson(victim, plan):
            words.append(
                "The probabilistic certificate (Neyman-Pearson), which takes seconds for each "
                "input of a convolutional model; `neyman_pearson: always` in the plan asks for it."
            )
    if plan.displacement == "centered":
        words.append(
            "The spread of the posterior at the perturbed input: 'centered' keeps the "
            "clean input's."
        )
    return words


REFERENCES = [
    "[Camuto21] A. Camuto, M. Willetts, S. Roberts, C. Holmes, T. Rainforth. Towards a Theoretical "
    "Understanding of the Robustness of Variational Autoencoders. AISTATS 2021.",
    "[Barrett22] B. Barrett, A. Camuto, M. Willetts, T. Rainforth. Certifiably Robust Variational "
    "Autoencoders. AISTATS 2022.",
    "[Kuzina22] A. Kuzina, M. Welling, J. M. Tomczak. Alleviating Adversarial Attacks on "
    "Variational Autoencoders with MCMC. NeurIPS 2022.",
    "[Khan23] A. Khan, A. Storkey. Adversarial robustness of VAEs through the lens of local "
    "geometry. AISTATS 2023.",
    "C. J. Clopper, E. S. Pearson. The use of confidence or fiducial limits illustrated in the "
    "case of the binomial. Biometrika 26, 1934.",
    "Z. Wang, E. P. Simoncelli, A. C. Bovik. Multiscale structural similarity for image quality "
    "assessment. Asilomar Conference on Signals, Systems and Computers, 2003.",
]


def forget_shards(folder: str | Path) -> None:
    """Remove the shards that audits kept in `folder`, and the folder if nothing else is in it."""
    folder = Path(folder)
    for path in folder.glob("*.json"):
        if _SHARD.fullmatch(path.name):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


_SHARD = re.compile(r"[0-9a-f]{16}-\d{5}\.json")
