"""Measures a profile's use and puts it into the record of the plan."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustvae import registry
from robustvae.audit.plan import Plan
from robustvae.audit.profiles.base import Use, UseContext, UseResult
from robustvae.audit.profiles.pace import UseClock
from robustvae.audit.profiles.shards import Shards
from robustvae.audit.tasks import Run
from robustvae.data import Images
from robustvae.defenses import Victim
from robustvae.errors import RobustVAEError
from robustvae.models.base import frozen
from robustvae.records import Record, pieces, plain
from robustvae.records.parts import Omission, UseFacts, VictimFacts
from robustvae.records.verdict import judged

_ONLY_SCORE = "a detector gives a score and no reconstruction, which the plan's audit is about"
"""Why the plan is left out for a wrapped detector."""


def use_of(profile: Mapping[str, Any]) -> Use | None:
    """The use that a profile's keys name, or None."""
    spec = profile.get("use")
    return None if spec is None else registry.build("use", spec)


def plan_images(use: Use | None, images: Images) -> Images:
    """The inputs that the plan's own audit is about."""
    choose = getattr(use, "plan_images", None)
    return images if choose is None else choose(images)


def fitted_plan(stages: Plan, images: Images, is_fixed: bool) -> Plan:
    """A profile's plan for as many inputs as there are; a plan that the user chose stays."""
    if is_fixed or stages.inputs <= len(images):
        return stages
    return stages.model_copy(update={"inputs": len(images)})


def measured(use: Use, context: UseContext) -> UseResult:
    """What a use measures, on models in evaluation mode.

    Inputs for which a victim raises are left out and named; the others' numbers stay.

    Raises:
        Exception: That of the use, where no single input is to blame.
    """
    failures: list[tuple[int, str, Exception]] = []
    with contextlib.ExitStack() as stack:
        # in training mode noise and dropout would be read, too
        for victim in context.victims.values():
            stack.enter_context(frozen(victim.vae))
        while True:
            try:
                context.searches.clear()
                result = use(context)
                break
            except Exception:  # a stranger's model may raise anything
                found = _failing(use, context)
                if not found:
                    raise
                failures += found
                context.failed.update(number for number, _, _ in found)
    for name, (blind, count) in context.searches.items():
        if blind:
            result.facts |= {f"searches of {name}": count, f"without slope of {name}": blind}
    for number, name, error in failures:
        result.omit(f"input {number}", name, error)
    for name in context.shards.damaged:
        result.omit("resume", "", f"{name} was damaged and computed again")
    return result


def _failing(use: Use, context: UseContext) -> list[tuple[int, str, Exception]]:
    """Inputs read so far that a victim raises for when it is asked about them alone.

    Raises:
        Exception: What a victim raises for every input.
    """
    probe, found = getattr(use, "probe", Victim.reconstruct), list[tuple[int, str, Exception]]()
    for name, victim in context.victims.items():
        rows = torch.tensor(sorted(context.seen - context.failed - {one[0] for one in found}))

        def ask(places: Sequence[int], rows: Tensor = rows, victim: Victim = victim) -> None:
            numbers = rows[list(places)]
            with torch.no_grad():
                x = context.inputs(numbers)
                probe(victim, x, generator=context.streams("probe", numbers.tolist()))

        found += [
            (int(rows[places[0]]), name, error)
            for places, error in (pieces(len(rows), ask) if len(rows) else ())
            if isinstance(error, Exception)
        ]
    return found


def use_context(
    victims: Mapping[str, Victim], images: Images, seed: int, run: Run, clock: UseClock
) -> UseContext:
    """What a use may measure; the plan's progress goes on counting its own steps.

    Args:
        victims: By name.
        images: The user's inputs.
        seed: Of every generator.
        run: Folder, progress and notices.
        clock: Of the minutes that are left.
    """

    def step(words: str) -> None:
        if run.progress is not None:
            run.progress(0, 1, words)

    return UseContext(dict(victims), images, seed, step, clock, Shards(run))


def settings_of(use: Use) -> Mapping[str, Any] | None:
    """The spec of a use; None where an object or a function in it cannot be said."""
    try:
        settings: Mapping[str, Any] = registry.spec_of("use", use)
    except RobustVAEError:
        return None
    return settings


def with_use(record: Record, use: Use, result: UseResult) -> Record:
    """The record with what a use measured, and its checks and verdict made again."""
    settings = settings_of(use) or {"name": registry.name_of("use", use) or type(use).__name__}
    facts = UseFacts.model_validate(
        plain(
            {
                "name": settings["name"],
                "settings": {key: value for key, value in settings.items() if key != "name"},
                "rows": result.rows,
                "facts": result.facts,
                "notes": result.notes,
                "gallery": result.gallery,
            }
        )
    )
    victims = [
        victim.model_copy(
            update={"probes": {**victim.probes, **plain(result.probes.get(victim.name, {}))}}
        )
        for victim in record.victims
    ]
    copy = record.model_copy(
        update={
            "use": facts,
            "victims": victims,
            "proved": _proved(record.proved, result),
            "left_out": [*record.left_out, *dict.fromkeys(result.left_out)],
        }
    )
    again = judged(copy)
    return again if record.adversarials is None else again.with_adversarials(record.adversarials)


def _proved(sentences: Sequence[str], result: UseResult) -> list[str]:
    """What is proved, where the profile's own certificates stand beside the plan's."""
    if not any(row.get("condition") == "certified" for row in result.rows):
        return list(sentences)
    own = "The profile's own certificates stand in its section and in its rows."
    plan = [
        words.replace("about any input of this audit", "about the reconstructions", 1)
        for words in sentences
    ]
    return [own, *plan]


def is_score_only(victims: Mapping[str, Victim]) -> bool:
    """Whether any victim is a detector without a reconstruction."""
    return any(getattr(victim.vae, "score_only", False) for victim in victims.values())


def bare_record(
    header: Mapping[str, Any],
    victims: Mapping[str, Victim],
    images: Images,
    seed: int,
    clock: tuple[float, datetime.datetime],
) -> Record:
    """A record without the plan's rows, for victims that the plan's audit does not fit."""
    start_time, creation = clock
    draft = {
        "title": f"{header['model'].name} on {images.name} ({images.split})",
        "model": header["model"],
        "data": header["data"],
        "question": header["question"],
        "victims": [
            VictimFacts(name=name, defense=repr(victim.defense)) for name, victim in victims.items()
        ],
        "plan": header["plan"],
        "seed": seed,
        "environment": header["environment"],
        "protocol": [],
        "columns": [],
        "rows": [],
        "hashes": [],
        "summary": [],
        "checks": [],
        "verdict": {"sentences": ("Not judged yet.",)},
        "left_out": [Omission(stage="plan", reason=_ONLY_SCORE)],
        "timing": {
            "created": creation.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "seconds": round(time.monotonic() - start_time, 1),
        },
    }
    return Record.model_validate(draft)
