"""The parts of a record: frozen, typed, and nothing but what is declared."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, final

from pydantic import ConfigDict, Field

from robustvae.display import three_lines
from robustvae.records.typed import Values

FORMAT: Literal[2] = 2

Number = float | Literal["inf", "-inf"] | None
Scalar = bool | int | float | str | None
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


STRICT = ConfigDict(extra="forbid", frozen=True)


@final
class Column(Values):
    """What one column of the rows holds, and how it is summarized.

    Attributes:
        id: Its key in every row, in snake_case.
        label: What it is, in a few words.
        unit: Of its numbers; empty where they have none.
        kind: What its values are.
        per: Whether it belongs to an attack on an input, or to the input alone.
        reduction: How the summary puts its values together; "none" leaves it out. "share" is the
            mean of yes and no with its exact interval.
        better: Which way is better for whoever runs the model; None where neither is.
        rounding: Which way its numbers are rounded for print: towards safety.
        headline: Its name among the key numbers; None keeps it out of them.

    Examples:
        >>> from robustvae.records import Column
        >>> Column(id="damage", label="distance moved", unit="pixel units").per
        'attack'
    """

    model_config = STRICT

    id: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
    label: str
    unit: str = ""
    kind: Literal["number", "share", "count", "flag", "text"] = "number"
    per: Literal["attack", "input"] = "attack"
    reduction: Literal["mean", "share", "none"] = "mean"
    better: Literal["higher", "lower"] | None = None
    rounding: Literal["down", "up", "near"] = "near"
    headline: str | None = None

    def accepts(self, value: Any) -> bool:
        """Whether `value` may stand in this column."""
        if value is None:
            return True
        if self.kind == "flag":
            return isinstance(value, bool)
        if self.kind == "text":
            return isinstance(value, str)
        if self.kind == "count":
            return isinstance(value, int) and not isinstance(value, bool)
        if value in ("inf", "-inf") and self.kind == "number":
            return True
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            return False
        return self.kind == "number" or 0 <= value <= 1


@final
class ModelFacts(Values):
    """Which model was audited."""

    model_config = STRICT

    name: str
    kind: str
    architecture: str | None = None
    latent: Count | None = None
    image_shape: list[Count]
    likelihood: str | None = None
    parameters: Count
    sha256: Sha256 | None = None
    source: str | None = None


@final
class DataFacts(Values):
    """Which inputs were audited."""

    model_config = STRICT

    name: str
    split: str
    inputs: Count
    available: Count
    sha256: Sha256 | None = None


@final
class QuestionFacts(Values):
    """What was asked, and where the question came from.

    Attributes:
        norm: Of the change whose margin is measured.
        r: Output distance tolerated, in pixel units.
        m: Probability with which the output must stay within r.
        displacement: "centered", "full" or "paired".
        center: What the output is measured from: "mean" or "own".
        box: Whether changed pixels had to stay in range for the headline.
        rule: Where r came from, in words.
        protocol: Name of the protocol, or None.
        shortened: Whether a plan or a budget cut the protocol's suite or inputs.
        clean_error: Mean distance of a clean reconstruction from its input, beside r.
    """

    model_config = STRICT

    norm: Literal["l2", "linf"]
    r: Annotated[float, Field(gt=0)]
    m: Annotated[float, Field(gt=0, lt=1)]
    displacement: str
    center: str = "mean"
    box: bool = True
    rule: str = "given"
    protocol: str | None = None
    shortened: bool = False
    clean_error: Number = None

    @property
    def name(self) -> str | None:
        """The protocol's name, with "shortened" where it is not whole."""
        if self.protocol is None:
            return None
        return f"{self.protocol}, shortened" if self.shortened else self.protocol


@final
class VictimFacts(Values):
    """One victim of the audit, with its three numbers.

    Attributes:
        name: Its name in the rows.
        defense: How it reads a code, as text.
        spec: The defense's spec, from which it can be made again; None where no spec can say it.
        random: Whether its output depends on a generator.
        defended: Whether it reads its code otherwise than the first victim does.
        effect: Mean distance from its own clean output under the worst attack that knows it.
        price: Mean distance of its clean output from the undefended one: what it costs unattacked.
        distance: Mean distance of its attacked output from the clean input.
        probes: What was measured beside the rows; the checks read it.
    """

    model_config = STRICT

    name: str
    defense: str
    spec: dict[str, Any] | None = None
    random: bool = False
    defended: bool = False
    effect: Number = None
    price: Number = None
    distance: Number = None
    probes: dict[str, Any] = Field(default_factory=dict)


@final
class SummaryEntry(Values):
    """One headline number: a mean over inputs with its interval."""

    model_config = STRICT

    key: str
    label: str
    mean: Number
    stderr: Number = None
    low: Number = None
    high: Number = None
    n: Count
    unit: str = ""
    rounding: Literal["down", "up", "near"] = "near"
    better: Literal["higher", "lower"] | None = None
    headline: str | None = None


@final
@three_lines()
class CheckResult(Values):
    """What one check said of one victim."""

    model_config = STRICT

    id: str
    victim: str
    passed: bool | None
    value: str
    sentence: str
    meaning: str = ""
    subject: Literal["evidence", "usefulness", "robustness", "note"] = "evidence"


@final
@three_lines()
class Verdict(Values):
    """The audit in sentences, the first of which says what to think of the rest.

    Attributes:
        useful: Whether the model does its work at all; None where that was not judged.
        sound: Whether the checks on the evidence passed.
        visible: Whether the change that breaks it can be seen; None where nothing broke it.
        failed: Ids of the failed checks, the gravest first.
        rank: Place among the protocol's stored reference models, 1 the best; None without any.
        of: How many models were ranked.
        sentences: The verdict; `first` is the first of them.

    Examples:
        >>> from robustvae.records import Verdict
        >>> verdict = Verdict(sentences=("Useful; evidence sound.", "It breaks at 0.2."))
        >>> str(verdict)
        'Useful; evidence sound. It breaks at 0.2.'
    """

    model_config = STRICT

    useful: bool | None = None
    sound: bool | None = None
    visible: bool | None = None
    failed: tuple[str, ...] = ()
    rank: int | None = None
    of: int | None = None
    sentences: Annotated[tuple[str, ...], Field(min_length=1)]

    @property
    def first(self) -> str:
        """The first sentence: useful or not, evidence sound or not and why, visible or not."""
        return self.sentences[0]

    @property
    def passed(self) -> bool:
        """Whether nothing in it stands in the way of believing the numbers."""
        return self.useful is not False and self.sound is not False

    def __str__(self) -> str:
        """All sentences."""
        return " ".join(self.sentences)


@final
class Panel(Values):
    """One input or output to look at: a picture, or the numbers of a signal or of a table's row.

    Attributes:
        shape: Of what is shown.
        png: The picture, PNG in base64; empty where there are values instead.
        values: A list for each channel, thinned where it is long.
        low: What the lower edge of a drawing of the values stands for.
        high: What its upper edge stands for.
    """

    model_config = STRICT

    shape: list[Count]
    png: Annotated[str, Field(pattern="^[A-Za-z0-9+/=]*$")] = ""
    values: list[list[float]] = Field(default_factory=list)
    low: float = 0.0
    high: float = 1.0


@final
class GalleryItem(Values):
    """One input to look at, under its worst attack.

    Attributes:
        input: Its number.
        label: Its class.
        attack: The attack.
        place: "worst", "median" or "best": where its damage stands among the inputs.
        panels: What is shown, by name.
        caption: Sizes and scales.
    """

    model_config = STRICT

    input: int
    label: int | None = None
    attack: str
    place: Literal["worst", "median", "best", ""] = ""
    panels: dict[str, Panel]
    caption: str = ""


@final
class Omission(Values):
    """A stage that was left out or shortened, and why."""

    model_config = STRICT

    stage: str
    victim: str = ""
    reason: str


@final
class UseFacts(Values):
    """What a profile measured beyond the plan: the answer to the question of one use.

    Attributes:
        name: The member of the family "use" that measured it.
        settings: Its fields.
        rows: Plain values, one row for each thing that was measured; the report's section, its
            first sentence and its pictures are functions of them.
        facts: Numbers of the whole, such as a threshold.
        notes: Sentences about how it was measured.
        gallery: Inputs with their pictures.

    Examples:
        >>> from robustvae.records.parts import UseFacts
        >>> UseFacts(name="anomaly", rows=[{"score": 1.0}]).facts
        {}
    """

    model_config = STRICT

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)
    rows: list[dict[str, Scalar]] = Field(default_factory=list)
    facts: dict[str, Scalar] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    gallery: list[GalleryItem] = Field(default_factory=list)
