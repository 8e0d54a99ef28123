"""`audit`: a plan, a question from outside and victims make one record."""

from __future__ import annotations

import dataclasses
import datetime
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustvae import registry
from robustvae.arguments import checked
from robustvae.audit.admission import admit, readable
from robustvae.audit.arguments import header, named_victims, question_parts
from robustvae.audit.auditor import Auditor
from robustvae.audit.budget import Clock, Costs, tell_cost
from robustvae.audit.fitting import fit_to_minutes
from robustvae.audit.job import AuditJob, StageParts
from robustvae.audit.plan import Plan, read_plan, text
from robustvae.audit.profiles.minutes import (
    PLAN_SHARE,
    expected_seconds,
    fitted_use,
    score_units,
)
from robustvae.audit.profiles.pace import UseClock
from robustvae.audit.profiles.running import (
    bare_record,
    fitted_plan,
    is_score_only,
    measured,
    plan_images,
    settings_of,
    use_context,
    use_of,
    with_use,
)
from robustvae.audit.profiles.shards import key_of
from robustvae.audit.protocol import (
    choose,
    read_profile,
    read_protocol,
    settle,
    with_profile,
)
from robustvae.audit.tasks import Run, space_needed, torch_threads
from robustvae.audit.threads import fitting_threads, use_threads
from robustvae.data.coercion import as_images
from robustvae.defenses import Victim
from robustvae.errors import ShapeError, check_positive, check_type
from robustvae.models import VAE
from robustvae.models.base import check_weights
from robustvae.records import (
    Record,
    check_space,
)
from robustvae.records.parts import Omission
from robustvae.seeding import generator as new_generator


@fitting_threads()
@checked()
def audit(
    victim: Victim | VAE | Mapping[str, Any] | None = None,
    images: Any = None,
    plan: str | Path | Mapping[str, Any] | Plan | None = None,
    *,
    protocol: str | None = None,
    profile: str | Mapping[str, Any] | None = None,
    question: Any = None,
    minutes: float | None = None,
    seed: int = 0,
    victims: Mapping[str, Any] | None = None,
    run: Run | None = None,
) -> Record:
    """Attack, defend, estimate and certify victims on a sample of inputs, at one question.

    Warning:
        What attacks and samples show holds for what was tried. Only the rows' `certified` is a
        guarantee, and its kind says of which sort.

    Args:
        victim: A victim, a model, or several of them by name; the first one is the headline's.
            May be left out where `victims` are named.
        images: Where the inputs are taken from, balanced over the classes; pixels in [0, 1].
            `Images`, or a tensor, array or data set of them.
        plan: "quick" (the default, under two minutes on two cores for the bundled models),
            "standard", "thorough", a YAML file, a mapping, or a `Plan`.
        protocol: A named question with its suite and inputs, such as "digits-l2-v1".
        profile: A protocol, a plan, measures and what a use is about: "anomaly",
            "anomaly:fpr=0.01", a YAML file or a mapping; the arguments beside it go first.
        question: r, m, norm, displacement and center as a mapping or an `rv.Question`; without a
            protocol, an r that is not given follows from the data alone.
        minutes: A budget: inputs, steps and draws are cut to it by a short measurement.
        seed: Of every generator; with the plan, the model and the data it decides every number.
        victims: More victims by name: victims, models, or specs of defenses of the first model.
        run: Name, storage and progress.

    Returns:
        A `Record`; the same bytes for the same arguments, apart from `timing`.

    Raises:
        ShapeError: The images are not of the model's shape.
        RangeError: The plan wants more inputs than there are.
        NonFiniteError: A NaN or an infinity in the weights.
        ModelError: `rv.check` finds that a model is read otherwise than it was made; the
            message says the remedy.
        ConfigError: A bad plan, or a question that does not hold together.

    Examples:
        >>> import robustvae as rv
        >>> images = rv.data.load("digits", split="test")
        >>> plan = {"base": "smoke", "inputs": 3}
        >>> record = rv.audit(rv.load("digits-vae"), images, plan=plan, seed=0)
        >>> len({row["input"] for row in record.rows})
        3
    """
    start_time, creation = time.monotonic(), datetime.datetime.now(datetime.UTC)
    run = Run() if run is None else run
    check_type(run, "run", Run)
    new_generator(seed)  # a seed that is none is told before anything is measured
    if minutes is not None:
        check_positive(minutes, "minutes")
    by_name = named_victims(victim, victims)
    images = as_images(images)
    everything, use = images, None
    if profile is not None:
        keys = read_profile(profile)
        stages = with_profile(plan, keys)
        protocol = protocol or keys.get("protocol")
        use = use_of(keys)
        images = plan_images(use, images)
        stages = fitted_plan(stages, images, plan is not None or protocol is not None)
    else:
        stages = read_plan("quick" if plan is None else plan)
    rules = protocol or stages.protocol
    constants = None if rules is None else read_protocol(rules)
    stages, facts = settle(stages, constants, question_parts(question), images)
    for spec in stages.defenses:
        defense = registry.build("defense", spec)
        by_name.setdefault(text(spec), Victim(next(iter(by_name.values())).vae, defense))
    for one in by_name.values():
        if tuple(images.image_shape) != tuple(one.vae.image_shape):
            raise ShapeError(
                f"images must be {tuple(one.vae.image_shape)} for this model, "
                f"got {images.name} with {images.image_shape}"
            )
        check_weights(one.vae)
    begin = time.monotonic()
    only_scores = use is not None and is_score_only(by_name)
    is_spared = only_scores or "diagnosis_passed" in stages.without
    mended = [] if is_spared else admit(by_name, images)
    diagnosis = (time.monotonic() - begin) / len({id(one.vae) for one in by_name.values()})
    left_out: list[Omission] = []
    if not only_scores:
        by_name, left_out = readable(by_name, images)
    if (
        constants is None
        and stages.inputs > len(images)
        and not Path(str(plan)).suffix
        and not isinstance(plan, Mapping | Plan)
    ):
        words = f"{images.name} has {len(images)} inputs, the plan asks for {stages.inputs}"
        left_out.append(Omission(stage="plan", reason=words))
        stages = stages.model_copy(update={"inputs": len(images)})
    costs = None if only_scores else Costs(by_name, images, diagnosis)
    limit = minutes or stages.minutes
    # what the user of a profile asks is the use: its plan gets the smaller part of the minutes
    budget = PLAN_SHARE * limit if limit and use is not None else limit
    if budget and costs is not None:
        stages, words = fit_to_minutes(stages, costs, budget, time.monotonic() - start_time)
        if words:
            left_out.append(Omission(stage="plan", reason=words))
            if facts.protocol is not None:
                facts = facts.model_copy(update={"shortened": True})
    inputs = choose(images, stages, constants, seed)
    if costs is not None:
        tell_cost(run.announce, costs.words(stages, budget), costs.seconds(stages))
    executor = registry.build("executor", run.executor)
    head = header(by_name, images, inputs, stages, facts, run, executor.threads)
    head["seed"] = seed
    if executor.threads is None and run.keep is not None and head["model"].sha256 is not None:
        use_threads(head, run)
    times = start_time, creation
    if only_scores:
        head["model"] = head["model"].model_copy(update={"source": run.source})
        record = bare_record(head, by_name, everything, seed, times)
    else:
        auditor = Auditor(by_name, inputs, stages, facts, seed)
        spent = time.monotonic() - start_time
        auditor.clock = Clock(budget, costs, stages, spent, getattr(executor, "workers", 1))
        job = AuditJob(auditor, head, run.source, run.loading)
        if head["model"].sha256 is None:  # it could not be told from another's parts
            run = dataclasses.replace(run, keep=None)
        if run.keep is not None:  # told now, not after hours of computing
            size = math.prod(images.image_shape)
            check_space(run.keep, space_needed(job.tasks(), stages.shard, size))
        outcome = executor.run(job, run)
        for fault in outcome.damaged:
            words = f"{fault} was damaged and computed again"
            left_out.append(Omission(stage="resume", reason=words))
        head["model"] = head["model"].model_copy(update={"source": run.source})
        parts = StageParts(job.tasks(), outcome.parts)
        with torch_threads(executor.threads):
            record = job.auditor.record(head, images, constants, parts, left_out, times)
        record = record.model_copy(update={"protocol": [*record.protocol, *mended]})
    if use is None:
        return record
    clock, words = UseClock(), ""
    if limit:
        end = start_time + 60 * limit
        units = score_units(by_name, images) if costs is None else costs.units
        use, words = fitted_use(use, by_name, units, end - time.monotonic())
        clock = UseClock(end, units, expected_seconds(use, by_name, units))
    context = use_context(by_name, everything, seed, run, clock)
    if head["model"].sha256 is not None:
        context.shards.key = key_of(head, everything, settings_of(use))
    with torch_threads(executor.threads):
        result = measured(use, context)
    if words:
        result.omit("profile", "", words)
    seconds = round(time.monotonic() - start_time, 1)
    record = record.model_copy(update={"timing": {**record.timing, "seconds": seconds}})
    return with_use(record, use, result)
