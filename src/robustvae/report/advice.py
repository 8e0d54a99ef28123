"""What to do after reading a record: rules over its numbers, each with a command where one helps.

Nothing is measured here, and nothing is recommended that the record does not support.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from robustvae.records import Record, VictimFacts
from robustvae.records.requirements import outcomes
from robustvae.report.reading import brackets, finite, rows_of
from robustvae.rounding import ceil, floor, given, near, number

_WORTH = "defense_worth_its_price"
_MEASURED = {"mnist": "mnist", "fashion_mnist": "fashion_mnist", "fashion-mnist": "fashion_mnist"}
# In pixel units: the noise that the bundled noise-trained models were made for.
_NOISY = "input-noise:stddev=0.25"


@final
@dataclass(frozen=True)
class Advice:
    """One thing to do.

    Attributes:
        text: What, and why.
        command: How; empty where no command does it.
    """

    text: str
    command: str = ""


def advise(record: Record) -> list[Advice]:
    """What to do next, the most urgent first.

    Args:
        record: An audit.
    """
    advice = [*_urgent(record), *_defenses(record), *_certificates(record), *_next(record)]
    # of two reasons for one command the later, more particular one
    by_command = {item.command or item.text: item for item in advice}
    return [item for item in advice if by_command[item.command or item.text] is item]


# Of an audit's options, those that say what the model is and what it reads.
_OF_THE_MODEL = ("--weights", "--data", "--split", "--pixels", "--device")


def _audit(record: Record, **options: str) -> str:
    """The audit's own command with options more, or in place of those that it has."""
    words, pairs = _words(record)
    flags = {f"--{key}": value for key, value in options.items()}
    old = flags if "--defense" not in flags else {}
    pairs = [(flag, value) for flag, value in pairs if flag not in old]
    return shlex.join([*words, *(part for pair in [*pairs, *flags.items()] for part in pair)])


def _check(record: Record) -> str:
    words, pairs = _words(record)
    pairs = [(flag, value) for flag, value in pairs if flag in _OF_THE_MODEL]
    return shlex.join(
        ["robustvae", "check", *words[2:], *(part for pair in pairs for part in pair)]
    )


def _words(record: Record) -> tuple[list[str], list[tuple[str, str]]]:
    """The command's head, such as robustvae audit MODEL, and its options with their values."""
    words = shlex.split(record.command or "")
    if len(words) < 3 or len(words) % 2 == 0:  # made in Python, or with an option without a value
        # a class's name leads to no model: the reader fills in how theirs is loaded
        return ["robustvae", "audit", record.model.source or "MODEL"], []
    return words[:3], list(zip(words[3::2], words[4::2], strict=True))


def _urgent(record: Record) -> Iterator[Advice]:
    verdict = record.verdict
    for text, reason in outcomes(record):
        if reason is not None:
            yield Advice(f"The requirement {text} is not met: {reason}. Do not ship this as it is.")
    if verdict.sound is False:
        names = ", ".join(verdict.failed) or "see below"
        yield Advice(
            f"Do not quote these numbers yet: checks on the evidence failed ({names}). Each says "
            "below what it means.",
            _check(record),
        )
    if verdict.useful is False:
        yield Advice(
            "Train the model first, or look at how it is wrapped: it does not do its work, so its "
            "margins say nothing.",
            _check(record),
        )
    clean = number(record.question.clean_error)
    if clean is not None and clean > record.question.r and record.question.protocol is None:
        yield Advice(
            f"Ask at a larger tolerance: an ordinary reconstruction is off by {near(clean)}, more "
            f"than r = {given(record.question.r)}.",
            _audit(record, r=ceil(1.5 * clean, 2)),
        )


def _defenses(record: Record) -> Iterator[Advice]:
    outcomes_of = {check.victim: check.passed for check in record.checks if check.id == _WORTH}
    defended = [victim for victim in record.victims if victim.defended]
    plain = next((victim for victim in record.victims if not victim.defended), None)
    for victim in sorted(defended, key=_effect):
        numbers = f"effect {near(victim.effect)}, price without attack {near(victim.price)}"
        if plain is not None:
            numbers += f"; undefended effect {near(plain.effect)}"
        if outcomes_of.get(victim.name):
            yield Advice(f"{victim.name} saves more than it costs ({numbers}): ship it with that.")
        elif outcomes_of.get(victim.name) is False:
            yield Advice(
                f"Leave {victim.name} out at this size of attack: it costs more than it saves "
                f"({numbers})."
            )
    if not defended and record.verdict.passed:
        radius = next((row.get("radius") for row in record.rows if row.get("norm") == "l2"), 1.0)
        # climbs in the posterior, which a model that states no likelihood does not have
        defense = f"robust-posterior:norm=l2,radius={given(radius)}"
        if record.model.likelihood is None:
            defense = _NOISY
        yield Advice(
            "No defense was tried. Audit one beside the plain model:",
            _audit(record, defense=defense),
        )


def _effect(victim: VictimFacts) -> float:
    value = number(victim.effect)
    return float("inf") if value is None else value


def _certificates(record: Record) -> Iterator[Advice]:
    members = brackets(rows_of(record))
    certified = finite(b.certified for b in members)
    noisy = any("InputNoise" in victim.defense for victim in record.victims)
    if members and not any(certified) and not noisy:
        yield Advice(
            "Nothing is certified. Noise on the input certifies any model, at a price that the "
            "audit shows:",
            _audit(record, defense=_NOISY),
        )
    ratios = [b.certified / b.upper for b in members if b.certified and b.upper]
    if ratios and max(ratios) < 0.5:
        yield Advice(
            f"At most {floor(100 * max(ratios), 2)} % of any attacked bound is certified: the truth"
            " may lie anywhere between. More draws and longer searches (plan standard) narrow it."
        )


def _next(record: Record) -> Iterator[Advice]:
    if record.verdict.visible is False:
        yield Advice(
            "A change that is hardly visible breaks it. Training under input noise holds without a "
            "defense; these were measured:",
            "robustvae advise"
            + (f" --data {_MEASURED[record.data.name]}" if record.data.name in _MEASURED else ""),
        )
    yield Advice("Let somebody else check these numbers:", "robustvae verify FOLDER")
