"""What `audit` is given, as it needs it: victims by name, images, a question, and the header."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from robustvae import registry
from robustvae.audit.plan import Plan
from robustvae.audit.protocol import Inputs
from robustvae.audit.tasks import Run
from robustvae.data import Images
from robustvae.defenses import Victim
from robustvae.errors import ConfigError, DtypeError, unknown
from robustvae.models import VAE, checkpoint
from robustvae.records import DataFacts, ModelFacts, QuestionFacts


def named_victims(victim: Any, victims: Mapping[str, Any] | None = None) -> dict[str, Victim]:
    """Victims by name from whatever `audit` accepts.

    Raises:
        DtypeError: Something that is neither a victim, a model, nor the spec of a defense.
        ConfigError: No victim at all.
    """
    values = dict(victim) if isinstance(victim, Mapping) else {"victim": victim}
    values = {**({} if victim is None else values), **(victims or {})}
    if not values:
        raise ConfigError("an audit needs a victim: give a model or a Victim")
    by_name: dict[str, Victim] = {}
    for name, one in values.items():
        if isinstance(one, Victim):
            by_name[str(name)] = one
        elif isinstance(one, VAE):
            by_name[str(name)] = Victim(one)
        elif by_name:
            first = next(iter(by_name.values()))
            by_name[str(name)] = dataclasses.replace(first, defense=registry.build("defense", one))
        else:
            raise DtypeError(
                f"victim must be a Victim or a model, got {type(one).__name__}: "
                "wrap a module of your own with rv.wrap"
            )
    return by_name


def question_parts(question: Any) -> dict[str, Any]:
    """The parts of a question that were given, from a mapping or an `rv.Question`.

    Raises:
        UnknownNameError: A part that no question has.
        DtypeError: Something else.
    """
    if question is None:
        return {}
    if isinstance(question, Mapping):
        limit = ("r", "m", "norm", "displacement", "center", "box")
        for key in question:
            if key not in limit:
                raise unknown("part of a question", key, limit)
        return dict(question)
    if dataclasses.is_dataclass(question) and not isinstance(question, type):
        return {f.name: getattr(question, f.name) for f in dataclasses.fields(question)}
    raise DtypeError(f"question must be a mapping or an rv.Question, got {type(question).__name__}")


def header(
    named: dict[str, Victim],
    images: Images,
    inputs: Inputs,
    plan: Plan,
    question: QuestionFacts,
    run: Run,
    threads: int | None,
) -> dict[str, Any]:
    """What decides the numbers, and what an interrupted audit is known again by.

    `threads` are those of the workers; None for this process's own.
    """
    first = next(iter(named.values()))
    vae = first.vae
    kind = registry.name_of("model", vae) or type(vae).__name__
    digest = checkpoint.weights_sha256(vae)
    if run.resume and digest is None:
        raise ConfigError(
            "cannot resume: the model's weights are not accessible, so it cannot be told from "
            "another; run it without resume"
        )
    return {
        "model": ModelFacts(
            name=run.name or kind,
            kind=kind,
            architecture=vae.config.get("architecture"),
            latent=vae.latent,
            image_shape=list(vae.image_shape),
            likelihood=vae.config.get("likelihood"),
            parameters=sum(parameter.numel() for parameter in vae.parameters()),
            sha256=digest,
        ),
        "data": DataFacts(
            name=images.name,
            split=images.split,
            inputs=len(inputs.numbers),
            available=len(images),
            sha256=inputs.sha256(),
        ),
        "plan": plan.model_dump(mode="json"),
        "question": question,
        "victims": {name: repr(victim.defense) for name, victim in named.items()},
        "environment": checkpoint.environment(vae, threads),
    }
