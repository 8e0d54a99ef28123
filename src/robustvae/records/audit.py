"""An audit as a record: frozen, typed, complete, and the only thing that a report reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from html import escape
from typing import Annotated, Any, Literal, final

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from robustvae.errors import DataError, check_type
from robustvae.records.parts import (
    FORMAT,
    STRICT,
    CheckResult,
    Column,
    Count,
    DataFacts,
    GalleryItem,
    ModelFacts,
    Omission,
    QuestionFacts,
    Scalar,
    Sha256,
    SummaryEntry,
    UseFacts,
    Verdict,
    VictimFacts,
)
from robustvae.records.text import read_json
from robustvae.records.typed import Values, first_problem
from robustvae.records.values import plain
from robustvae.records.verdict import judged


@final
class Record(Values):
    """All that a report may read: one audit, in plain Python values.

    Everything but `timing` is decided by the model, the data, the plan and the seed.

    Attributes:
        title: What was audited, in a few words.
        model: Which model.
        data: Which inputs.
        question: What was asked, the same for every victim.
        victims: The victims; the first one is what the headline speaks of.
        plan: The complete plan.
        seed: The seed of every generator.
        environment: Versions, device, threads and floating type.
        protocol: Sentences that say what was done.
        columns: What the rows' columns are.
        rows: One flat dict per victim, input and attack.
        hashes: SHA-256 of every row, so that a changed row is noticed.
        summary: The headline numbers.
        checks: What each check said of each victim.
        verdict: What to think of all that.
        gallery: Inputs with their pictures.
        use: What a profile measured for its use, or None.
        proved: What the certificates prove, in sentences.
        estimated: What was estimated only.
        not_tried: What nobody tried.
        left_out: Stages that were left out or shortened, and why.
        references: The works that the audit rests on.
        requirements: What was required of it, in the form of `--require`.
        command: The command that makes it again; None where it was made in Python.
        timing: created (UTC) and seconds.

    Examples:
        >>> import robustvae as rv
        >>> images = rv.data.load("digits", split="test")
        >>> record = rv.audit(rv.load("digits-vae"), images, plan="smoke", seed=0)
        >>> rv.Record.from_json(record.to_json()) == record
        True
    """

    model_config = STRICT

    title: str
    model: ModelFacts
    data: DataFacts
    question: QuestionFacts
    victims: Annotated[list[VictimFacts], Field(min_length=1)]
    plan: dict[str, Any]
    seed: Count
    environment: dict[str, str]
    protocol: list[str]
    columns: list[Column]
    rows: list[dict[str, Scalar]]
    hashes: list[Sha256]
    summary: list[SummaryEntry]
    checks: list[CheckResult]
    verdict: Verdict
    gallery: list[GalleryItem] = Field(default_factory=list)
    use: UseFacts | None = None
    proved: list[str] = Field(default_factory=list)
    estimated: list[str] = Field(default_factory=list)
    not_tried: list[str] = Field(default_factory=list)
    left_out: list[Omission] = Field(default_factory=list)
    references: list[str] = Field(default_factory=list)
    requirements: list[str] = Field(default_factory=list)
    command: str | None = None
    timing: dict[str, Scalar] = Field(default_factory=dict)
    format: Literal[2] = FORMAT
    kind: Literal["audit"] = "audit"

    # clean and attacked inputs, which are written beside the record and do not belong to it
    _adversarials: bytes | None = PrivateAttr(default=None)

    @property
    def id(self) -> str:
        """Sixteen characters that name it: a hash of all but when and how it was asked for."""
        content = self.model_dump(mode="json", exclude={"timing", "requirements", "command"})
        text = json.dumps(plain(content), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @model_validator(mode="after")
    def _check_rows(self) -> Record:
        """Every row holds every column, each with a value that belongs there."""
        columns = {column.id: column for column in self.columns}
        if len(self.hashes) != len(self.rows):
            raise ValueError(f"hashes has {len(self.hashes)} entries for {len(self.rows)} rows")
        for i, row in enumerate(self.rows):
            for key in columns.keys() - row.keys():
                raise ValueError(f"rows[{i}].{key} is missing")
            for key, value in row.items():
                if key not in columns:
                    raise ValueError(f"rows[{i}].{key} is unknown")
                if not columns[key].accepts(value):
                    display = json.dumps(value)[:60]
                    raise ValueError(f"rows[{i}].{key} is {display}, not a {columns[key].kind}")
        return self

    def __eq__(self, other: object) -> bool:
        """Whether `other` is a record of the same content."""
        return isinstance(other, Record) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        """Equal records have equal hashes."""
        return hash(self.to_json())

    @property
    def adversarials(self) -> bytes | None:
        """Clean and attacked inputs as a safetensors file; None where the record was read."""
        return self._adversarials

    def with_adversarials(self, content: bytes) -> Record:
        """The same record, carrying its inputs until it is written."""
        copy = self.model_copy()
        copy._adversarials = content
        return copy

    def to_json(self) -> str:
        """This record as JSON text, keys sorted; an infinity is the string "inf"."""
        return json.dumps(plain(self.model_dump()), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read a record back; its checks and its verdict are made again from its rows.

        Raises:
            DtypeError: Not text.
            DataError: Not JSON, not a record, of another format, or not what the schema says; the
                first thing wrong is named.
        """
        check_type(text, "text", str)
        try:
            content = read_json(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not a record: no valid JSON ({error})") from None
        if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
            raise DataError(f"wanted a record of format {FORMAT}, got {content['format']!r}")
        try:
            return judged(cls.model_validate(content))
        except ValidationError as error:
            raise DataError(f"not a record: {first_problem(error, 'record')}") from None

    @property
    def changed_rows(self) -> list[int]:
        """Numbers of the rows that are not what their hashes were taken of."""
        pairs = zip(self.rows, self.hashes, strict=True)
        return [i for i, (row, digest) in enumerate(pairs) if row_sha256(row) != digest]

    def __repr__(self) -> str:
        """Three lines: what it is of, the verdict's first sentence, the key numbers."""
        return "\n".join(self._lines())

    __str__ = __repr__

    def _repr_html_(self) -> str:
        title, verdict, numbers = map(escape, self._lines())
        return f"<p><strong>{title}</strong><br>{verdict}<br>{numbers}</p>"

    def _lines(self) -> Iterator[str]:
        victims = "1 victim" if len(self.victims) == 1 else f"{len(self.victims)} victims"
        yield f"Record of {self.title}: {len(self.rows)} rows, {victims}"
        yield self.verdict.first
        display = [
            f"{entry.headline} {entry.mean if entry.mean is None else f'{float(entry.mean):.3g}'}"
            for entry in self.summary
            if entry.headline
        ]
        yield "; ".join(display) or "no key numbers"


def row_sha256(row: dict[str, Any]) -> str:
    """SHA-256 of a row's canonical JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(plain(row), sort_keys=True).encode()).hexdigest()


def schema() -> dict[str, Any]:
    """The JSON schema of a record, generated from the models.

    Examples:
        >>> from robustvae.records.audit import schema
        >>> schema()["title"]
        'Record'
    """
    return Record.model_json_schema()
