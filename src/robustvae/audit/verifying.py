"""`verify`: a stored audit computed again, from its rows, its stored inputs and its model."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from robustvae import registry, zoo
from robustvae.arguments import checked
from robustvae.attacks.attack import nothing_found
from robustvae.audit.auditor import Auditor
from robustvae.audit.context import Attacked
from robustvae.audit.plan import AttackPlan, Plan
from robustvae.audit.protocol import Inputs, sha256
from robustvae.audit.store import ADVERSARIALS, read_adversarials, tensor_sha256
from robustvae.audit.summary import summarize
from robustvae.defenses import Victim
from robustvae.display import Progress
from robustvae.errors import DataError, RobustVAEError, check_count
from robustvae.models import VAE, checkpoint
from robustvae.records import Column, Record, finish_switch, read_manifest
from robustvae.records.text import read_json, read_text, reason
from robustvae.records.verdict import judged

# rounding of another batch shape; draws near the tolerance may fall on its other side
_RELATIVE, _ABSOLUTE, _SHARE = 2e-3, 1e-4, 0.02
_SEARCHED = ("margin_upper_box", "margin_upper_unconstrained")
_SMALLER = 1.25  # by which a stored margin may exceed one that is searched again


@final
@dataclass(frozen=True)
class Verification:
    """What of a stored audit could be computed again, and what differs.

    Attributes:
        passed: Whether nothing differs and no file is missing; where no row could be computed
            again, the record agrees with itself, and no more.
        problems: What differs or is missing, a sentence each.
        rows: Rows that were read.
        recomputed: Rows that were computed again.
        inputs: Inputs that they belong to.
        not_checked: What could not be computed again, and why.
    """

    passed: bool
    problems: tuple[str, ...]
    rows: int
    recomputed: int
    inputs: tuple[int, ...]
    not_checked: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Three lines and more where there are problems."""
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        return "<p>" + "<br>".join(escape(line) for line in self._lines()) + "</p>"

    def _lines(self) -> list[str]:
        word = "NOT verified"
        if self.passed:  # without the model, a record that somebody made up whole agrees as well
            word = "verified" if self.recomputed else "agrees with itself, not verified"
        lines = [
            f"{word}: {self.rows} rows read, {self.recomputed} computed again "
            f"on {len(self.inputs)} inputs"
        ]
        lines += [f"differs: {problem}" for problem in self.problems]
        lines += [f"not checked: {reason}" for reason in self.not_checked]
        return lines


@registry.outside_names()
@checked()
def verify(
    folder: str | Path,
    inputs: int = 8,
    *,
    victim: Victim | VAE | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compute a stored audit again: its checks from its rows, and rows from inputs and model.

    Args:
        folder: What an audit wrote: record.json, adversarials.safetensors, manifest.json.
        inputs: How many inputs' rows are computed again, evenly spaced; all of them where there
            are no more.
        victim: The model, where the record does not say how it is loaded and no checkpoint of the
            same weights lies in the folder above, as `robustvae.sharing.export` writes them.
        progress: Called with measures done, measures in all, and the one that begins.

    Returns:
        A `Verification`; it names what differs.

    Raises:
        DataError: No record there, or none that can be read.
        RangeError: `inputs` below 0.

    Examples:
        >>> import robustvae as rv, tempfile
        >>> images = rv.data.load("digits", split="test")
        >>> vae = rv.load("digits-vae")
        >>> record = rv.audit(vae, images, plan="smoke", seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = rv.report.write(record, folder)
        ...     rv.verify(folder, inputs=1, victim=vae).passed
        True
    """
    check_count(inputs, "inputs", least=0)
    folder = Path(folder)
    problems: list[str] = []
    not_checked: list[str] = []
    finish_switch(folder)
    try:
        text = read_text(folder / "record.json")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} holds no record.json: {reason(error)}; name a folder that `robustvae audit` "
            "wrote"
        ) from None
    record = Record.from_json(text)
    old = Record.model_validate(read_json(text))
    problems += _files(folder)
    problems += _statements(old, record)
    tensors: dict[str, Tensor] = {}
    try:
        tensors = read_adversarials(folder)
        problems += _inputs(record, tensors)
    except DataError as error:
        problems.append(str(error))
    recomputation = 0
    numbers: tuple[int, ...] = ()
    vae = _model(record, victim or _beside(record, folder), problems, not_checked)
    if vae is not None and tensors and inputs:
        try:
            say = progress or (lambda done, total, what: None)
            recomputation, numbers = _rows(record, vae, tensors, inputs, problems, not_checked, say)
        except (RobustVAEError, RuntimeError, KeyError, IndexError) as error:
            problems.append(f"the rows cannot be computed again: {error}")
    return Verification(
        passed=not problems,
        problems=tuple(problems),
        rows=len(record.rows),
        recomputed=recomputation,
        inputs=numbers,
        not_checked=tuple(not_checked),
    )


def _files(folder: Path) -> list[str]:
    try:
        intact = read_manifest(folder)
    except DataError as error:
        return [str(error)]
    problems = []
    for name in sorted({*intact, "record.json", ADVERSARIALS}):
        if name not in intact:
            problems.append(f"{name} is not in the manifest")
        elif not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif not intact[name]:
            problems.append(f"{name} is not the file that was written")
    return problems


def _statements(stored: Record, record: Record) -> list[str]:
    """What the record says against what its rows say."""
    problems = []
    for i in stored.changed_rows:
        row = stored.rows[i]
        problems.append(
            f"row {i} (input {row.get('input')}, {row.get('attack')}) was changed after it was "
            "measured"
        )
    for before, after in zip(stored.checks, record.checks, strict=True):
        if before.passed != after.passed:
            problems.append(
                f"check {before.id} ({before.victim}) is stored as {_word(before.passed)}, the "
                f"rows say {_word(after.passed)}: {after.value}"
            )
    verdict = judged(stored).verdict
    if stored.verdict.first.partition("; rank")[0].rstrip(".") != verdict.first.rstrip("."):
        problems.append(f"the verdict is stored as {stored.verdict.first!r}")
    names = [victim.name for victim in stored.victims]
    fresh = {entry.key: entry for entry in summarize(stored.rows, stored.columns, names)}
    for entry in stored.summary:
        again = fresh.get(entry.key)
        if again is None or not _close(entry.mean, again.mean, 1e-9, 1e-12):
            what = "not measured" if again is None else again.mean
            problems.append(f"summary {entry.key} is stored as {entry.mean}, the rows say {what}")
    return problems


def _word(passed: bool | None) -> str:
    return {True: "passed", False: "failed", None: "not judged"}[passed]


def _inputs(record: Record, tensors: Mapping[str, Tensor]) -> list[str]:
    """Whether the stored inputs are those that the rows were measured on."""
    problems = []
    order = list(dict.fromkeys(row["input"] for row in record.rows))
    if "x" not in tensors or len(tensors["x"]) != len(order):
        return [f"{ADVERSARIALS} does not hold the {len(order)} clean inputs"]
    if record.data.sha256 is not None and sha256(tensors["x"]) != record.data.sha256:
        problems.append("the stored clean inputs are not those that were audited")
    places = {number: i for i, number in enumerate(order)}
    for row in record.rows:
        key = f"{row['victim']}/{row['attack']}"
        x_adv = tensors.get(key)
        if x_adv is None or len(x_adv) != len(order):
            problem = f"the attacked inputs of {key} are missing"
        elif tensor_sha256(x_adv[places[row["input"]]]) != row["adversarial"]:
            problem = f"the attacked input {row['input']} of {key} is not the one in its row"
        else:
            continue
        if problem not in problems:
            problems.append(problem)
    return problems


def _beside(record: Record, folder: Path) -> VAE | None:
    """The model in the folder above an audit, where its weights are those that were audited."""
    place = folder.resolve().parent
    with contextlib.suppress(RobustVAEError):  # no checkpoint: the record's own way is tried
        if checkpoint.read_config(place)["sha256"] == record.model.sha256:
            return checkpoint.load(place)
    return None


def _model(
    record: Record, victim: Victim | VAE | None, problems: list[str], not_checked: list[str]
) -> VAE | None:
    vae = victim.vae if isinstance(victim, Victim) else victim
    if vae is None:
        source = record.model.source or record.model.name
        try:
            vae = zoo.load(source)
        except RobustVAEError as error:
            remedy = "name it with --model, in Python with victim="
            not_checked.append(f"rows, since the model is not accessible ({error}): {remedy}")
            return None
    digest = checkpoint.weights_sha256(vae)
    if record.model.sha256 is not None and digest != record.model.sha256:
        problem = "the model's weights are not those that were audited"
        if victim is None:  # every row would differ, and say nothing more
            problems.append(
                f"{problem}: where they lie in a file, verify with --model and --weights"
            )
            not_checked.append("rows, since they are of other weights")
            return None
        problems.append(problem)
    return vae


def _rows(
    record: Record,
    vae: VAE,
    tensors: Mapping[str, Tensor],
    count: int,
    problems: list[str],
    not_checked: list[str],
    say: Progress,
) -> tuple[int, tuple[int, ...]]:
    """Compute the rows of some inputs again and compare them."""
    order = list(dict.fromkeys(row["input"] for row in record.rows))
    labels = {row["input"]: row["label"] for row in record.rows}
    everything = tensors["x"]
    sample = sorted({round(i * (len(order) - 1) / max(count - 1, 1)) for i in range(count)})
    victims: dict[str, Victim] = {}
    for facts in record.victims:
        if facts.spec is None:
            not_checked.append(f"rows of {facts.name}, whose defense no spec can say")
            continue
        victims[facts.name] = Victim(vae, registry.build("defense", facts.spec))
    inputs = Inputs(
        x=everything,
        y=torch.tensor([labels[number] if labels[number] is not None else 0 for number in order]),
        numbers=tuple(map(_whole, order)),
        unseen=everything[:0],
        constant=tensors["constant"],
    )
    plan = Plan.model_validate(record.plan)
    auditor = Auditor(victims, inputs, plan, record.question, record.seed)
    by_place = {
        (row["victim"], row["input"], row["attack"]): (i, row) for i, row in enumerate(record.rows)
    }
    recomputation = 0
    total, begun = len(victims) * len(auditor.measures), itertools.count()
    for name in victims:
        context = auditor.context(name, sample)
        attacked = []
        by_attack = {row["attack"]: row for row in record.rows if row["victim"] == name}
        for attack, row in by_attack.items():
            x_adv = tensors[f"{name}/{attack}"][sample].to(context.x)
            ball = AttackPlan.model_validate({"norm": row["norm"], "radius": row["radius"]})
            result = dataclasses.replace(nothing_found(context.x), x_adv=x_adv)
            attacked.append(
                Attacked(ball, str(attack), str(row["role"]), str(row["knows"]), result)
            )
        context = dataclasses.replace(context, attacks=tuple(attacked))
        steps = partial(_step, say, begun, total, name)
        values, common = auditor.measured(context, lambda stage, reason: None, steps)
        for i, number in enumerate(context.numbers):
            for one in attacked:
                place, row = by_place[name, number, one.id]
                fresh = {key: column[i] for key, column in values[one.id].items()}
                fresh |= {key: column[i] for key, column in common.items()}
                differing = _differences(record.columns, row, fresh)
                problems += [
                    f"row {place} (input {number}, {one.id}): {words}" for words in differing
                ]
                recomputation += 1
    say(total, total, "all measures")
    return recomputation, tuple(_whole(order[i]) for i in sample)


def _step(say: Progress, begun: Iterator[int], total: int, name: str, measure: str) -> None:
    say(next(begun), total, f"{name}: {measure}")


def _whole(number: Any) -> int:
    return int(number)


def _differences(
    columns: Sequence[Column], row: Mapping[str, Any], fresh: Mapping[str, Any]
) -> list[str]:
    """The columns in which a stored row is not what was computed again."""
    words = []
    for column in columns:
        if column.id not in fresh:
            continue
        old, new = row[column.id], fresh[column.id]
        if column.id in _SEARCHED:
            # a search of its own: only a change that is clearly smaller refutes the stored bound
            high = math.inf if new is None else float(new)
            if old is not None and float(old) > _SMALLER * high:
                words.append(f"{column.id} is stored as {old}, a change of {new} breaks it")
        elif column.kind in ("text", "flag", "count"):
            if old != new and not column.id.endswith("status"):
                words.append(f"{column.id} is stored as {old}, computed again {new}")
        elif not _close(old, new, _RELATIVE, _SHARE if column.kind == "share" else _ABSOLUTE):
            words.append(f"{column.id} is stored as {old}, computed again {new}")
    return words


def _close(stored: Any, again: Any, relative: float, absolute: float) -> bool:
    if stored is None or again is None:
        return stored is again
    one, other = float(stored), float(again)
    if not (math.isfinite(one) and math.isfinite(other)):
        return one == other
    return abs(one - other) <= absolute + relative * max(abs(one), abs(other))
