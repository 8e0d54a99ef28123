"""The verdict, as a function of rows and checks; and both made again from the rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from robustvae import registry
from robustvae.records.judging import Case, Outcome
from robustvae.records.parts import CheckResult, Verdict, VictimFacts
from robustvae.rounding import ceil, floor

if TYPE_CHECKING:  # a record judges itself when it is read
    from robustvae.records.audit import Record

# the usual limit of changes that pass unnoticed, 8 of 255 levels, as root mean square a pixel
VISIBLE = 8 / 255


def case(record: Record, victim: VictimFacts) -> Case:
    """One victim's rows and probes, as checks see them."""
    return Case(
        victim=victim.name,
        rows=[row for row in record.rows if row.get("victim") == victim.name],
        probes=victim.probes,
        question=record.question.model_dump(),
        defended=victim.defended,
        random=victim.random,
        settings=record.plan,
    )


def run_check(name: str, evidence: Case, spec: Any = None) -> CheckResult:
    """What a registered check says of one victim."""
    check = registry.build("check", spec or name)
    try:
        outcome = check(evidence)
    except Exception as error:  # a plug-in's check may raise anything: the others still judge
        outcome = Outcome(None, f"could not be judged: {type(error).__name__}: {error}"[:200])
    sentence = (type(check).__doc__ or name).partition("\n\n")[0]
    return CheckResult(
        id=name,
        victim=evidence.victim,
        passed=outcome.passed,
        value=outcome.value,
        sentence=" ".join(sentence.split()),
        meaning=" ".join(check.meaning.split()),
        subject=check.subject,
    )


def judged(record: Record) -> Record:
    """The same record with its checks and verdict made again from its rows and probes.

    A check that is not installed here stays as it was stored, and says so.
    """
    victims = {victim.name: victim for victim in record.victims}
    checks = []
    for result in record.checks:
        if result.victim not in victims or result.id not in registry.names("check"):
            note = result.value.removesuffix(_NOT_HERE) + _NOT_HERE
            checks.append(result.model_copy(update={"value": note}))
            continue
        checks.append(run_check(result.id, case(record, victims[result.victim])))
    verdict = verdict_of(record.rows, checks, record)
    verdict = verdict.model_copy(update={"rank": record.verdict.rank, "of": record.verdict.of})
    return record.model_copy(update={"checks": checks, "verdict": verdict})


_SAID = "clean_error_below_tolerance"  # the sentence on r and the clean error says the same
NOT_INFORMATIVE = "not informative"  # how such a value begins
_NOT_HERE = " (as stored: this check is not installed here)"


def verdict_of(
    rows: Sequence[dict[str, Any]], checks: Sequence[CheckResult], of: Record
) -> Verdict:
    """What to think of the first victim, and which others failed a check."""
    name = of.victims[0].name
    mine = [check for check in checks if check.victim == name]
    failures = {
        subject: [c for c in mine if c.passed is False and c.subject == subject]
        for subject in ("usefulness", "evidence", "robustness")
    }
    useful = _all_passed(check for check in mine if check.subject == "usefulness")
    sound = _all_passed(check for check in mine if check.subject == "evidence")
    inputs = Case(name, [row for row in rows if row.get("victim") == name], {}, {}).inputs()
    size = _typical_size(inputs)
    pixels = math.prod(of.model.image_shape) or 1
    per_pixel = None if size is None else size / math.sqrt(pixels)
    visible = None if per_pixel is None else per_pixel > VISIBLE
    first = "; ".join(
        (
            _usefulness(useful, failures["usefulness"]),
            _soundness(sound, failures["evidence"], mine),
            *_robustness(failures["robustness"]),
            # where no margin was looked for, the second sentence says so
            *([_visibility(visible, per_pixel)] if _looked_for(inputs) else []),
        )
    )
    sentences = [first[0].upper() + first[1:] + ".", _bracket(inputs, of)]
    if of.question.clean_error is not None and float(of.question.clean_error) > of.question.r:
        sentences.append(
            f"The model's own error on clean inputs, {float(of.question.clean_error):.3g}, is "
            f"larger than r = {of.question.r:g}: an output that moved by r is not yet a wrong one."
        )
    sentences += [
        f"To note: {check.id} failed ({check.value})."
        for check in mine
        if check.subject == "note" and check.passed is False and check.id != _SAID
    ]
    for other in of.victims[1:]:
        failing = [c for c in checks if c.victim == other.name and c.passed is False]
        names = [check.id for check in failing if check.subject != "note"]
        if names:
            sentences.append(f"Victim {other.name!r} failed {', '.join(names)}.")
        sentences += [
            f"The defense {other.name!r} costs more than it saves: {check.value}."
            for check in failing
            if check.id == "defense_worth_its_price"
        ]
    graver = [*failures["usefulness"], *failures["evidence"], *failures["robustness"]]
    return Verdict(
        useful=useful,
        sound=sound,
        visible=visible,
        failed=tuple(check.id for check in graver),
        sentences=tuple(sentences),
    )


def _all_passed(checks: Iterable[CheckResult]) -> bool | None:
    answers = [check.passed for check in checks if check.passed is not None]
    return all(answers) if answers else None


def _names(checks: Sequence[CheckResult]) -> str:
    return ", ".join(f"{check.id} failed: {check.value}" for check in checks)


def _usefulness(useful: bool | None, failed: Sequence[CheckResult]) -> str:
    if useful is None:
        return "usefulness not judged"
    return "useful" if useful else f"not useful ({_names(failed)})"


def _soundness(
    sound: bool | None, failed: Sequence[CheckResult], checks: Sequence[CheckResult]
) -> str:
    if sound is False:
        return f"not evidence of robustness ({_names(failed)})"
    if sound is None:
        return "evidence not checked"
    # a chaotic or stepped function is nobody's fault, but a reader must know what led the attacks
    doubts = [c for c in checks if c.passed is None and c.value.startswith(NOT_INFORMATIVE)]
    words = ", ".join(f"{check.id}: {check.value}" for check in doubts)
    return (
        f"evidence sound, but gradients may mislead attacks ({words})"
        if words
        else "evidence sound"
    )


def _robustness(failed: Sequence[CheckResult]) -> list[str]:
    return [f"not robust ({_names(failed)})"] if failed else []


def _visibility(visible: bool | None, per_pixel: float | None) -> str:
    if visible is None or per_pixel is None:
        return "no change that breaks it was found"
    history = "visible" if visible else "hardly visible"
    return f"the change that breaks it is {history} ({per_pixel:.2g} RMS a pixel)"


def _looked_for(inputs: Sequence[Any]) -> bool:
    """Whether margins were looked for at all, found or not."""
    columns = ("margin_upper_box", "margin_upper_unconstrained")
    return any(row.get(column) is not None for row in inputs for column in columns)


def _typical_size(inputs: Sequence[Any]) -> float | None:
    """Median over inputs of the smallest change that broke one; None where none did."""
    for column in ("margin_upper_box", "margin_upper_unconstrained"):
        values = [float(row[column]) for row in inputs if row.get(column) is not None]
        if values:
            middle = statistics.median_low(values)
            return middle if math.isfinite(middle) else None
    return None


def _mean(rows: Sequence[Any], column: str) -> tuple[float, int, int] | None:
    """Mean of the finite values, how many they are, and how many there are in all."""
    values = [float(row[column]) for row in rows if row.get(column) is not None]
    finite = [value for value in values if math.isfinite(value)]
    return (math.fsum(finite) / len(finite), len(finite), len(values)) if finite else None


def _bracket(inputs: Sequence[Any], of: Record) -> str:
    upper = _mean(inputs, "margin_upper_box") or _mean(inputs, "margin_upper_unconstrained")
    lower = _mean(inputs, "certified")
    if upper is None and not _looked_for(inputs):
        words = "No margin was measured"
        if of.use is not None:  # which may have certified scores or decisions
            words = "Of the reconstructions no margin was measured"
        if lower is None:
            return f"{words}, and no certificate was asked for."
    elif upper is None:
        words = f"No attack tried broke any input{_known(of)}"
    else:
        mean, breaks, count = upper
        where = "on average" if breaks == count else f"{breaks} of {count} inputs, on average"
        words = f"Attacks break it {where} with a change of size {ceil(mean)}{_known(of)}"
    nothing = "no certificate was asked for" if lower is None else "nothing could be certified"
    if lower is None or lower[0] == 0:
        more = "so smaller changes may do so too" if upper else "so other attacks may break it"
        return f"{words}; {nothing}, {more}."
    kinds = sorted({row["certified_kind"] for row in inputs if row.get("certified")})
    return f"{words}; the certified radius is {floor(lower[0])} on average ({', '.join(kinds)})."


def _known(of: Record) -> str:
    """What the attackers of the first victim knew, to stand beside what they reached."""
    name = of.victims[0].name
    rows = [row for row in of.rows if row.get("victim") == name]
    words = list(dict.fromkeys(str(row["knows"]) for row in rows if row.get("knows")))
    if len(words) > 1:
        return f" (of the attackers some knew {', some '.join(words)})"
    return f" (the attacker knew {words[0]})" if words else ""
