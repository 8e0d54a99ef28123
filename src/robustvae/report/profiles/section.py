"""What the section of a use holds, and how it is found by the use's name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import final

from robustvae.arguments import checked
from robustvae.errors import check_type
from robustvae.records import Record
from robustvae.records.parts import UseFacts
from robustvae.report.tables import Table


@final
@dataclass(frozen=True, repr=False)
class Section:
    """A section of the report.

    Attributes:
        title: Its heading: the question.
        answer: Sentences, the first of which answers it for somebody who has read nothing else.
        tables: Tables below.
        figures: Each a drawing for a width in pixels, with its caption.
        notes: Sentences on how it was measured.
    """

    title: str
    answer: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    figures: tuple[tuple[Callable[[int], str], str], ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Three lines: the question, the answer's first sentence, what else there is."""
        more = f"{len(self.tables)} tables, {len(self.figures)} figures"
        return f"{self.title}\n{self.answer[0]}\n{more}"

    def _repr_html_(self) -> str:
        body = "".join(table.to_html() for table in self.tables)
        return f"<p><strong>{escape(self.answer[0])}</strong></p>{body}"


MODULES = {
    "anomaly": "anomaly",
    "codec": "codec",
    "latent-diffusion": "latent_diffusion",
    "representation": "representation",
}
"""The module of each use's section."""


@checked()
def section_of(record: Record) -> Section | None:
    """The section of the record's use, or None where it has none.

    A use that the library does not know, such as a plug-in's, has a section of its notes.

    Args:
        record: An audit.

    Examples:
        >>> import robustvae as rv
        >>> images = rv.data.load("digits", split="test")
        >>> record = rv.audit(rv.load("digits-vae"), images, plan="smoke", seed=0)
        >>> rv.report.section_of(record) is None
        True
    """
    check_type(record, "record", Record)
    use = record.use
    if use is None:
        return None
    if use.name not in MODULES:
        words = f"The profile {use.name} measured {len(use.rows)} rows, which stand in record.json."
        return Section(use.name, (words,), notes=tuple(use.notes))
    module = importlib.import_module(f"robustvae.report.profiles.{MODULES[use.name]}")
    names = [victim.name for victim in record.victims]
    section: Section = module.section(use, names)
    cautions = tuple(_cautions(use, names))
    return replace(section, answer=(*section.answer[:1], *cautions, *section.answer[1:]))


def _cautions(use: UseFacts, victims: Sequence[str]) -> Iterable[str]:
    """What must be read beside the answer: searches that had nothing to go by."""
    for name in victims:
        count, blind = (
            int(use.facts.get(f"{what} of {name}", 0))  # type: ignore[arg-type]
            for what in ("searches", "without slope")
        )
        if 2 * blind >= count > 0:
            yield (
                f"This says little: on {name} {blind} of {count} searches met no slope to follow, "
                "so a stronger attack may do more."
            )


def ball_words(norm: str, radius: float) -> str:
    """A norm and a radius as people write them: levels of 255 where they are whole ones.

    Examples:
        >>> from robustvae.report.profiles.section import ball_words
        >>> ball_words("linf", 8 / 255), ball_words("linf", 0.1), ball_words("l2", 1.0)
        ('linf 8/255', 'linf 0.1', 'l2 1')
        >>> ball_words("l0", 3), ball_words("snr", 20.0)
        ('3 changed values', 'an SNR of 20 dB')
    """
    if norm == "snr":
        return f"an SNR of {radius:g} dB"
    if norm == "l0":
        return "one changed value" if radius == 1 else f"{radius:g} changed values"
    levels = radius * 255
    if norm == "linf" and radius < 1 and abs(levels - round(levels)) < 1e-6 and round(levels) > 0:
        return f"{norm} {round(levels)}/255"
    return f"{norm} {radius:g}"


def at_words(norm: str, radius: float) -> str:
    """The beginning of a sentence about a ball.

    Examples:
        >>> from robustvae.report.profiles.section import at_words
        >>> at_words("linf", 8 / 255), at_words("l2", 2)
        ('By changing each value by at most 8/255 (linf)', 'By changes of length at most 2 (l2)')
        >>> at_words("l0", 3), at_words("snr", 20.0)
        ('With 3 changed values', 'At an SNR of 20 dB')
    """
    words = ball_words(norm, radius)
    if norm in ("l0", "snr"):
        return f"{'With' if norm == 'l0' else 'At'} {words}"
    begin = "By changing each value by" if norm == "linf" else "By changes of length"
    return f"{begin} at most {words.removeprefix(norm).strip()} ({norm})"


def smallness(norm: str, radius: float) -> float:
    """Greater for smaller changes of one norm; decibels rise as the change falls."""
    return radius if norm == "snr" else -radius


def of_all(part: int, whole: int, what: str) -> str:
    """A count in words: "all 9 anomalies", "none of 9 anomalies", "1 of 1 anomalies"."""
    if whole > 1 and part == whole:
        return f"all {whole} {what}"
    return f"{part or 'none'} of {whole} {what}"


def balls_of(
    use: UseFacts, condition: str = "attacked", victim: str | None = None
) -> list[tuple[str, float]]:
    """Norm and radius of every ball in a use's rows, or one victim's, by norm and size."""
    balls = {
        (str(row["norm"]), float(row["radius"]))  # type: ignore[arg-type]
        for row in use.rows
        if row.get("condition") == condition
        and row.get("radius") is not None
        and victim in (None, row["victim"])
    }
    return sorted(balls)


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0
