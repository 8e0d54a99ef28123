"""What every measure and every check of an audit promises."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import typing
from collections.abc import Mapping
from typing import Any

import torch

from robustvae import registry, zoo
from robustvae.audit.auditor import Auditor
from robustvae.audit.context import BASE_COLUMNS, Context, Measure
from robustvae.audit.outcomes import checked_columns
from robustvae.audit.plan import read_plan
from robustvae.audit.protocol import choose, settle
from robustvae.audit.tasks import Memory
from robustvae.data import load
from robustvae.defenses import Victim
from robustvae.errors import ConfigError
from robustvae.records import Case, Outcome
from robustvae.records.judging import Check, Subject
from robustvae.testing.contracts import ContractError, require, unchanged

_INPUTS = 3
_PLAN = {
    "base": "smoke",
    "inputs": _INPUTS,
    "shard": _INPUTS,
    "gradient_free": 0,
    "transfer": False,
    "longer": 1,
    "draws": 50,
    "smoothing": 200,
    "margins": {"steps": 3, "restarts": 1},
    "probes": 0,
}


def audit_context(victim: Victim | None = None) -> Context:
    """A small audit's context after one attack on three inputs: what a measure is given.

    Args:
        victim: Of images of 8 x 8 pixels; the bundled `digits-lipschitz-vae` by default.

    Examples:
        >>> from robustvae.testing import audit_context
        >>> audit_context().x.shape
        torch.Size([3, 1, 8, 8])
    """
    victim = Victim(zoo.load("digits-lipschitz-vae")) if victim is None else victim
    images = load("digits", split="test")
    plan, question = settle(read_plan(_PLAN), None, {"r": 1.0}, images)
    auditor = Auditor({"plain": victim}, choose(images, plan, None, 0), plan, question, 0)
    places = range(_INPUTS)
    context = auditor.context("plain", places)
    part = auditor.attacked("plain", places, Memory(), lambda words: None)
    attacks = auditor.outcomes(context.x, part)
    return dataclasses.replace(context, attacks=attacks).about(attacks[0])


def check_measure(measure: Measure | str, context: Context | None = None) -> None:
    """Check a measure's contract: the columns that it declares, and the same numbers row by row.

    Args:
        measure: The measure, or its spec.
        context: What it is asked about, two inputs or more; `audit_context()` by default.

    Raises:
        ContractError: A broken promise, in a sentence.

    Examples:
        >>> from robustvae.testing import check_measure
        >>> check_measure("damage")
    """
    member: Any = registry.build("measure", measure)
    what = f"the measure {type(member).__name__}"
    columns = getattr(member, "columns", ())
    require(isinstance(member, Measure) and bool(columns), f"{what} declares no columns")
    ids = [column.id for column in columns]
    twice = sorted(
        {one for one in ids if ids.count(one) > 1} | {c.id for c in BASE_COLUMNS} & {*ids}
    )
    require(not twice, f"{what} has a column {twice and twice[0]!r} that a row has already")
    require(
        len({column.per for column in columns}) == 1,
        f"{what} mixes columns of attacks and of inputs: make it two measures",
    )
    require(all(column.label for column in columns), f"{what} has a column without a label")
    context = audit_context() if context is None else context
    count = len(context.x)

    def read(rows: list[int]) -> Mapping[str, list[Any]]:
        part = context.part(rows)
        part.cache["rests on"] = {}
        try:
            columns = checked_columns(member, member(part), len(rows))
        except ConfigError as error:
            raise ContractError(f"{what}: {error}") from None
        same = torch.equal(part.x, context.x[rows]) and torch.equal(part.x_adv, context.x_adv[rows])
        require(same, f"{what} changes the inputs that it is given")
        return columns

    with unchanged(context.victim.vae, what):
        values = read(list(range(count)))
    for column in columns:
        odd = [value for value in values[column.id] if not column.accepts(value)]
        require(not odd, f"{what} has {odd and odd[0]!r} in {column.id}, which is a {column.kind}")
    again = read(list(range(count)))
    require(again == values, f"{what} gives other numbers when it is asked twice")
    alone = read([count - 1])
    for column in columns:
        one, other = alone[column.id][0], values[column.id][count - 1]
        require(
            _agree(one, other),
            f"{what} lets a row's {column.id} depend on the other rows: "
            f"{one!r} alone, {other!r} among others",
        )


def _agree(one: Any, other: Any) -> bool:
    """Whether two values of a column agree to what the batch's shape may change."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-3 * max(1.0, abs(other))
    return bool(one == other)


def check_check(check: Check | str, passing: Case, failing: Case) -> None:
    """Check a check's contract: it tells sound evidence from broken one, and edits neither.

    Args:
        check: The check, or its spec.
        passing: Evidence that it must pass.
        failing: Evidence that it must fail.

    Raises:
        ContractError: A broken promise, in a sentence.

    Examples:
        >>> from robustvae.records import Case
        >>> from robustvae.testing import check_check
        >>> row = {"size": 0.5, "radius": 1.0}
        >>> inside, outside = ([{**row, "inside": kept}] for kept in (True, False))
        >>> check_check("inside_ball", Case("a", inside, {}, {}), Case("a", outside, {}, {}))
    """
    member: Any = registry.build("check", check)
    what = f"the check {type(member).__name__}"
    require(isinstance(member, Check), f"{what} has no subject, no meaning, or cannot be called")
    subjects = typing.get_args(Subject)
    require(
        member.subject in subjects,
        f"{what} is about {member.subject!r}, not one of {', '.join(subjects)}",
    )
    sentence = " ".join((inspect.getdoc(member) or "").partition("\n\n")[0].split())
    require(
        sentence.endswith(".") and member.meaning.endswith("."),
        f"{what} does not say in a sentence what it asks for, and what a failure means",
    )
    for case, answer in ((passing, True), (failing, False)):
        before = copy.deepcopy(case)
        outcome = member(case)
        require(isinstance(outcome, Outcome), f"{what} returns no Outcome")
        require(
            outcome.passed is answer,
            f"{what} says {outcome.passed} ({outcome.value}) of evidence that it must "
            f"{'pass' if answer else 'fail'}",
        )
        require(bool(outcome.value), f"{what} does not say what it measured")
        require(case == before, f"{what} edits the evidence that it judges")
        require(member(case) == outcome, f"{what} says something else when it is asked twice")
    nothing = Case("nothing", [], {}, passing.question, passing.defended, passing.random)
    outcome = member(dataclasses.replace(nothing, settings=passing.settings))
    require(outcome.passed is not True, f"{what} passes where nothing was measured")
