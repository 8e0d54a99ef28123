"""A profile's use within the minutes that an audit has left: cut by what it costs, and a clock."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from robustvae import registry
from robustvae.audit.budget import step_count
from robustvae.audit.profiles.base import Use
from robustvae.audit.unit_cost import UnitCost
from robustvae.data import Images
from robustvae.defenses import Victim
from robustvae.perturb import Ball

PLAN_SHARE = 0.3  # of the minutes: a profile's plan is small, and what the user asks is the use
_SAFETY = 0.6  # of what is left: scores, decoders and entropy coders cost more than an output
_SHRINK = 0.75
_LEAST_SHARE = 1e-4
_LEAST_STEPS, LEAST_DRAWS = 10, 200  # below them an attack and a certificate say nothing


def fitted_use(
    use: Any, victims: Mapping[str, Victim], units: Mapping[str, UnitCost], seconds: float
) -> tuple[Any, str]:
    """The use, cut where it would take longer, and what was cut, in words.

    Args:
        use: A use with `seconds(victims, units)` and `cut(share)`; another one stays as it is.
        victims: By name.
        units: What a row costs each of them.
        seconds: That are left.
    """
    if not (hasattr(use, "seconds") and hasattr(use, "cut")):
        return use, ""
    budget = _SAFETY * max(seconds, 1.0)
    share, result = 1.0, use
    while result.seconds(victims, units) > budget and share > _LEAST_SHARE:
        share *= _SHRINK
        result = use.cut(share)
    return result, changed_words(use, result)


def expected_seconds(
    use: Any, victims: Mapping[str, Victim], units: Mapping[str, UnitCost]
) -> float:
    """What a use takes by its own account; 0 for one that does not say."""
    return float(use.seconds(victims, units)) if hasattr(use, "seconds") else 0.0


def changed_words(use: Use, result: Use) -> str:
    """Which fields a cut changed, in words; empty for none."""
    pairs = []
    for field in dataclasses.fields(use):  # type: ignore[arg-type]
        before, after = getattr(use, field.name), getattr(result, field.name)
        if before != after:
            pairs.append(f"{field.name} {_value(after)} for {_value(before)}")
    return f"cut to the minutes: {', '.join(pairs)}" if pairs else ""


def _value(value: Any) -> str:
    if isinstance(value, Mapping):  # a search's fields
        shown = [f"{key}={value[key]}" for key in ("steps", "restarts") if key in value]
        return f"{value.get('name')}:{','.join(shown)}"
    if isinstance(value, tuple):
        return "(" + ", ".join(_value(part) for part in value) + ")"
    if isinstance(value, Ball):
        return f"{value.norm} {value.radius:g}"
    return str(value)


def scaled(value: int, share: float, least: int, power: float = 0.5) -> int:
    """A count for a share of the time, no less than the least and no more than itself."""
    return min(value, max(least, int(value * share**power)))


def scaled_search(spec: Any, share: float) -> Any:
    """A gradient search for a share of the time: fewer restarts, then fewer steps."""
    search = registry.build("search", spec)
    try:
        fields = dict(registry.spec_of("search", search))
    except Exception:  # an object of the user's that no spec can say stays as it is
        return spec
    for key, least in (("restarts", 1), ("steps", _LEAST_STEPS)):
        if isinstance(fields.get(key, getattr(search, key, None)), int):
            fields[key] = scaled(getattr(search, key), share, least)
    if "search" in fields:  # one that starts another in places of its own
        fields["search"] = scaled_search(fields["search"], share)
    return fields


def scaled_draws(draws: int, share: float) -> int:
    """Draws of a certificate for a share of the time."""
    return scaled(draws, share, LEAST_DRAWS)


def check_searches(*specs: Any) -> None:
    """Raise what building one of these searches raises, before anything is computed."""
    for spec in specs:
        registry.build("search", spec)


def search_passes(spec: Any) -> float:
    """Gradients that a search takes for an input."""
    search = registry.build("search", spec)
    if not hasattr(search, "steps") and hasattr(search, "search"):
        return search_passes(search.search)
    return float((step_count(search) + 1) * getattr(search, "restarts", 1))


def score_units(victims: Mapping[str, Victim], images: Images) -> dict[str, UnitCost]:
    """What a row costs detectors that give a score and no reconstruction."""
    units = {}
    for name, victim in victims.items():
        x = images.read(torch.arange(min(4, len(images))))
        x = x.to(device=victim.vae.device, dtype=victim.vae.dtype)
        model: Any = victim.vae
        begin = time.monotonic()
        # a stranger's detector may raise anything: the stage that meets it says so
        with contextlib.suppress(Exception):
            model.anomaly_scores(x)
        each = (time.monotonic() - begin) / len(x)
        units[name] = UnitCost(each, math.inf, 0.0)
    return units


def pass_seconds(victim: Victim, unit: UnitCost) -> tuple[float, float]:
    """Seconds of an output and of a gradient, where there is one."""
    if getattr(victim.vae, "without_gradients", False) or not math.isfinite(unit.gradient):
        return unit.forward, 0.0
    return unit.forward, unit.gradient
