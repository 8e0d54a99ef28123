"""What a record says: its brackets, its attacks side by side, and the verdict in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, final

from robustvae.records import Record
from robustvae.report.numbers import ceil, floor, given, near, norm, number

Row = dict[str, Any]

_HEADLINES = {
    "certified": "Certified radius{kind}",
    "margin_upper_unconstrained": "Attacked: a change that breaks it, pixels free",
    "margin_upper_box": "Attacked: a change that breaks it, pixels kept in range",
    "tightness": "Certified{kind} as a share of attacked, pixels free",
    "certified_share": "Share of inputs with a certificate{kind}",
    "probability": "Probability of staying within r under attack",
    "damage": "Damage by the attack",
    "damage_noise": "Damage by random noise of the same size",
    "damage_defended": "Damage when attacked, then defended",
}
_OF_ATTACK = ("probability", "damage", "damage_noise", "damage_defended")
_COLUMNS = (
    *("input", "label", "attack", "norm", "radius", "box", "size", "score", "status"),
    *("queries", "gradient_norm", "damage", "damage_noise", "damage_defended"),
    *("ms_ssim_clean", "ms_ssim_attacked", "ms_ssim_noise", "ms_ssim_defended"),
    *("ms_ssim_variant", "probability", "probability_low", "probability_high"),
    *("r", "m", "displacement"),
    *("certified", "certified_kind", "certified_method", "certified_status"),
    *("margin_upper_unconstrained", "margin_upper_box", "margin_upper_status", "first_order"),
)


@final
@dataclass(frozen=True)
class Bracket:
    """What is known of one input's margin, l2 in pixel units; None where nothing was measured."""

    input: Any
    label: Any
    certified: float | None
    kind: str | None
    abstained: bool
    free: float | None
    box: float | None
    first_order: float | None

    @property
    def upper(self) -> float | None:
        """The attacked bound that the certificate is set against: free where there is one."""
        return self.box if self.free is None else self.free

    @property
    def measured(self) -> bool:
        """Whether there is anything to draw."""
        parts = (self.certified, self.free, self.box, self.first_order)
        return any(part is not None for part in parts)


@final
@dataclass(frozen=True)
class AttackRows:
    """All rows of one attack."""

    name: str
    rows: tuple[Row, ...]

    def column(self, key: str) -> list[float]:
        """The finite numbers of one column."""
        return finite(row.get(key) for row in self.rows)

    @property
    def broken(self) -> int:
        """Inputs at which even the upper end of the probability is at most m."""
        return sum(_compare(row, "probability_high") <= 0 for row in self.rows)

    @property
    def held(self) -> int:
        """Inputs at which even the lower end of the probability is above m."""
        return sum(_compare(row, "probability_low") > 0 for row in self.rows)

    @property
    def judged(self) -> int:
        """Inputs with a measured probability."""
        return sum(number(row.get("probability")) is not None for row in self.rows)

    @property
    def inconclusive(self) -> int:
        """Inputs at which the search did not end well, such as for want of a gradient."""
        return sum(map(inconclusive, self.rows))

    @property
    def threat(self) -> str:
        """Norm, budget and box in words."""
        row = self.rows[0]
        where = "pixels kept in range" if row.get("box") else "pixels free"
        return f"{norm(row.get('norm'))} at most {given(row.get('radius'))}, {where}"


def inconclusive(row: Row) -> bool:
    """Whether the search behind a row did not end well."""
    return row.get("status") not in (None, "", "ok")


def brackets(rows: Iterable[Row]) -> list[Bracket]:
    """One `Bracket` for each input that has any part of one, in the order of the rows."""
    inputs: dict[Any, list[Row]] = {}
    for row in rows:
        inputs.setdefault(row.get("input"), []).append(row)
    found = (
        Bracket(
            input=name,
            label=first(own, "label"),
            certified=number(first(own, "certified")),
            kind=first(own, "certified_kind"),
            abstained=first(own, "certified_status") == "abstain",
            free=number(first(own, "margin_upper_unconstrained")),
            box=number(first(own, "margin_upper_box")),
            first_order=number(first(own, "first_order")),
        )
        for name, own in inputs.items()
    )
    return [bracket for bracket in found if bracket.measured]


def kind_in_words(found: Iterable[Bracket]) -> str:
    """Of which kind the certificates are that hold, such as " (probabilistic)"; else nothing."""
    kinds = sorted({bracket.kind for bracket in found if bracket.certified and bracket.kind})
    return f" ({', '.join(kinds)})" if kinds else ""


def attacks(record: Record) -> list[AttackRows]:
    """The rows of each attack, in the order in which the attacks came."""
    named: dict[str, list[Row]] = {}
    for row in record.rows:
        named.setdefault(str(row.get("attack")), []).append(row)
    return [AttackRows(name, tuple(rows)) for name, rows in named.items()]


def columns(rows: Iterable[Row]) -> list[str]:
    """Every column of the rows: the known ones in one fixed order, then the others by name."""
    found = {key for row in rows for key in row}
    return [key for key in _COLUMNS if key in found] + sorted(found.difference(_COLUMNS))


def first(rows: Iterable[Row], key: str) -> Any:
    """The first value of a column that is not None."""
    return next((row[key] for row in rows if row.get(key) is not None), None)


def finite(values: Iterable[Any]) -> list[float]:
    """The finite numbers among `values`."""
    parsed = (number(value) for value in values)
    return [value for value in parsed if value is not None and math.isfinite(value)]


def mean(values: Iterable[Any]) -> float | None:
    """Mean of the finite numbers among `values`; None where there is none."""
    numbers = finite(values)
    return math.fsum(numbers) / len(numbers) if numbers else None


def mean_stderr(values: Iterable[Any]) -> tuple[float | None, float | None]:
    """Mean and standard error of the finite numbers among `values`."""
    numbers = finite(values)
    middle = mean(numbers)
    if middle is None or len(numbers) < 2:
        return middle, None
    variance = math.fsum((value - middle) ** 2 for value in numbers) / (len(numbers) - 1)
    return middle, math.sqrt(variance / len(numbers))


def everywhere(values: Iterable[float | None]) -> float | None:
    """Mean of values that are all there and finite; None where one is not."""
    listed = list(values)
    whole = all(value is not None and math.isfinite(value) for value in listed)
    return mean(listed) if whole else None


def headlines(record: Record) -> list[dict[str, Any]]:
    """The summary's best-known numbers under short names, `under` naming the attack they are of.

    All of the summary, as it stands, where none of them is in it.
    """
    named = {entry.get("key"): entry for entry in record.summary}
    attack = first(record.rows, "attack")
    kind = kind_in_words(brackets(record.rows))
    return [
        {
            **named[key],
            "label": label.format(kind=kind),
            "under": attack if key in _OF_ATTACK else None,
        }
        for key, label in _HEADLINES.items()
        if key in named
    ] or record.summary


def failed_checks(record: Record) -> list[dict[str, Any]]:
    """The checks on the evidence that did not pass."""
    return [check for check in record.checks if check.get("passed") is False]


def verdict(record: Record) -> str:
    """The audit in one sentence."""
    found = brackets(record.rows)
    certified = mean(b.certified for b in found)
    free, box = everywhere(b.free for b in found), everywhere(b.box for b in found)
    upper = box if free is None else free
    if upper is not None:
        broken = f"on average an attack breaks this model with a change of size {ceil(upper)}"
        if free is not None and box is not None:
            broken += f" ({ceil(box)} where pixels must stay in range)"
    else:
        broken = _where_broken(found)
    if certified:
        kind = kind_in_words(found)
        sentence = f"{broken}; the certified radius is {floor(certified)} on average{kind}."
    elif any(b.certified is not None for b in found):
        sentence = f"{broken}; nothing could be certified, so smaller changes may do so too."
    elif found:
        sentence = f"{broken}; certificates were not asked for, so smaller changes may do so too."
    else:
        sentence = _damage_alone(record)
    return sentence[0].upper() + sentence[1:]


def margin_in_words(record: Record) -> str:
    """What "breaks" means in this record."""
    r, m = number(first(record.rows, "r")), number(first(record.rows, "m"))
    if r is None or m is None:
        return ""
    often = "at least half of the time" if m == 0.5 else f"with probability {near(1 - m)} or more"
    between = (
        "two draws of the reconstruction, of the changed and of the clean input,"
        if first(record.rows, "displacement") == "paired"
        else "the reconstruction"
    )
    moved = (
        f"{between} lie more than r = {given(r)} apart"
        if between.startswith("two")
        else f"{between} lands more than r = {given(r)} away from the clean one"
    )
    return (
        f"A change breaks the model when {moved} {often} (m = {given(m)}). "
        "Sizes and distances are ℓ₂ in pixel units: turning one pixel from black to white is 1."
    )


def bracket_facts(record: Record) -> Iterator[str]:
    """Sentences under the bracket figure."""
    found = brackets(record.rows)
    positive = [b for b in found if b.certified]
    if any(b.certified is not None for b in found):
        yield f"Certified above zero: {len(positive)} of {len(found)} inputs."
        ratios = [b.certified / b.free for b in positive if b.certified and b.free]
        share = mean(ratios)
        if share is not None:
            yield (
                "Where both ends are known, the certified bound is on average "
                f"{floor(100 * share, 2)}\N{NO-BREAK SPACE}% of the attacked one (pixels free)."
            )
        yield (
            "What is certified for free pixels holds for pixels kept in range too; an attack with "
            "free pixels says nothing about them."
        )
    untouched = sum(b.upper is not None and math.isinf(b.upper) for b in found)
    if untouched:
        yield f"No attack broke {untouched} of {len(found)} inputs: their upper end is open."
    at_rest = sum(b.upper == 0 for b in found)
    if at_rest:
        yield f"{at_rest} of {len(found)} inputs are not robust even when left alone: margin 0."


def _where_broken(found: list[Bracket]) -> str:
    known = [b.upper for b in found if b.upper is not None]
    reached = finite(known)
    if not known:
        return "no attack measured a margin"
    if not reached:
        return f"no attack tried broke any of the {len(known)} inputs"
    return (
        f"attacks broke {len(reached)} of {len(known)} inputs, "
        f"with a change of size {ceil(mean(reached))} on average"
    )


def _damage_alone(record: Record) -> str:
    for attack in attacks(record):
        damage, noise = mean(attack.column("damage")), mean(attack.column("damage_noise"))
        if damage is not None and noise:
            return (
                f"the attack “{attack.name}” moves the reconstruction by {near(damage)}, "
                f"{near(damage / noise, 2)} times as far as random noise of the same size."
            )
    return "this record holds no margins and no damage: there is nothing to judge by."


def _compare(row: Row, key: str) -> float:
    """Sign of a probability against m; NaN, which is neither, where it was not measured."""
    probability, m = number(row.get(key)), number(row.get("m"))
    return math.nan if probability is None or m is None else probability - m
