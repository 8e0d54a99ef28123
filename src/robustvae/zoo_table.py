"""The page of the zoo: what was measured on the stored models, beside the papers' numbers.

    robustvae zoo table --out docs/results/zoo.md

Nothing is computed anew: every number is read from the records beside the models.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from robustvae import registry, zoo
from robustvae.arguments import checked
from robustvae.audit import read_protocol
from robustvae.errors import ConfigError
from robustvae.evaluation import Evaluation, Measure
from robustvae.metrics import mean_stderr
from robustvae.models import checkpoint
from robustvae.records import Record
from robustvae.records.parts import ModelFacts
from robustvae.rounding import ceil, floor, near
from robustvae.training import recipe_names
from robustvae.training.choices import RADII, measured_choices

# name: (-log p(x), MSE) of [Kuzina22] Table 7, 300 epochs
REPORTED = {
    "mnist-conv28": (88.3, 578.6),
    "mnist-conv28-beta-2": (89.3, 824.2),
    "mnist-conv28-beta-5": (100.6, 1485.1),
    "mnist-conv28-beta-10": (126.8, 2498.9),
    "mnist-conv28-tc-2": (89.3, 828.4),
    "mnist-conv28-tc-5": (96.7, 1325.4),
    "mnist-conv28-tc-10": (107.2, 1686.1),
    "fashion-conv28": (232.8, 814.3),
    "fashion-conv28-beta-2": (234.1, 1021.1),
    "fashion-conv28-beta-5": (241.8, 1457.8),
    "fashion-conv28-beta-10": (248.7, 1842.3),
    "fashion-conv28-tc-2": (233.6, 980.4),
    "fashion-conv28-tc-5": (238.2, 1024.6),
    "fashion-conv28-tc-10": (247.5, 1570.0),
}

LADDERS = {
    f"{data}, {what}": [f"{name}-conv28", *(f"{name}-conv28-{what}-{n}" for n in (2, 5, 10))]
    for data, name in (("MNIST", "mnist"), ("Fashion-MNIST", "fashion"))
    for what in ("beta", "tc")
}

CLAIMS = (
    ("encoder_std", "rises", "[Camuto21] Fig. 9c"),
    ("encoder_slope", "falls", "[Camuto21] Fig. 9d"),
    ("encoder_weights", "rises", "[Willetts21] Table 1"),
    ("decoder_weights", "falls", "[Willetts21] Table 1"),
)

MEASURES = (
    "active_units",
    "kl",
    "index_code",
    "total_correlation",
    "probe_accuracy",
    "fid_samples",
    "fid_reconstructions",
    "decoder_slope",
)


NOT_AUDITED = "not audited"
_KEPT = ("margin_upper_box", "margin_upper_unconstrained", "certified_deterministic", "error_clean")


@checked()
def audit_facts(record: Record) -> dict[str, Any]:
    """What is kept of an audit beside a model's card.

    Args:
        record: An audit of one victim by a protocol.

    Raises:
        ConfigError: No protocol asked the question.
    """
    question = record.question
    if question.protocol is None:
        raise ConfigError(
            f"the audit of {record.model.name} has no protocol, so its numbers compare with no "
            "other model's: audit with --protocol"
        )
    return {
        "protocol": question.protocol,
        "norm": question.norm,
        "inputs": record.data.inputs,
        "is_shortened": question.shortened,
        "command": record.command,
        "seed": record.seed,
        "created": str(record.timing.get("created", ""))[:10],
        "sha256": record.model.sha256,
        "means": {
            entry.key: {"mean": entry.mean, "low": entry.low, "high": entry.high}
            for entry in record.summary
            if entry.key in _KEPT
        },
        **_unbroken(record),
    }


def _unbroken(record: Record) -> dict[str, Any]:
    """Where some inputs were not broken, so that the mean is infinite: how many, and the median."""
    victim = record.victims[0].name
    margins = {
        row["input"]: float(margin)
        for row in record.rows
        if row["victim"] == victim and (margin := row.get("margin_upper_box")) is not None
    }
    count = sum(math.isinf(margin) for margin in margins.values())
    if not count:
        return {}
    median = statistics.median_high(margins.values())
    return {"unbroken": count, "median_margin": median if math.isfinite(median) else "inf"}


@final
@dataclass(frozen=True)
class Strength:
    """One stored number about a model's robustness, in words.

    Attributes:
        key: What was measured, as records name it.
        label: The same in words.
        where: Under which protocol, empty where none was; a shortened one says by how many inputs.
        value: The number, rounded towards safety.
        interval: Its 95 % interval, empty where none is stored.
        inputs: On how many.
        source: The command or the record behind it.
    """

    key: str
    label: str
    where: str
    value: str
    interval: str
    inputs: int
    source: str

    @property
    def name(self) -> str:
        """The label with its protocol."""
        return f"{self.label} ({self.where})" if self.where else self.label


@checked()
def strengths(name: str) -> tuple[Strength, ...]:
    """All stored numbers about a model's robustness, without a defense.

    Nothing is computed: the numbers are the references of the protocols, audits that are kept
    beside the cards, and the measured choices that `robustvae advise` reads.

    Args:
        name: Of a model.

    Examples:
        >>> from robustvae.zoo_table import strengths
        >>> strengths("digits-vae")[0].source
        'robustvae audit digits-vae --protocol digits-l2-v1'
    """
    rows = [
        Strength(
            "margin_upper_box",
            f"attacked {norm} margin",
            protocol,
            ceil(score),
            "",
            inputs,
            f"robustvae audit {name} --protocol {protocol}",
        )
        for protocol, norm, inputs, model, score in _references()
        if model == name
    ]
    rows += _audited(name)
    for choice in measured_choices():
        if choice.model == name and choice.defense == "posterior-mean":
            for radius, mean, stderr in zip(
                RADII, choice.similarity, choice.similarity_stderr, strict=True
            ):
                label, value = f"MS-SSIM under linf {radius:g}", f"{mean:.3f} ± {stderr:.3f}"
                row = Strength("ms_ssim", label, "", value, "", choice.images, choice.source)
                rows.append(row)
            if choice.certified is not None:
                label, value = "certified l2 radius, smoothed", floor(choice.certified)
                source = f"{choice.certified_at}; {choice.source}"
                rows.append(Strength("certified", label, "", value, "", choice.images, source))
    return tuple(rows)


@checked()
def robustness(name: str) -> dict[str, str]:
    """The chief ones of `strengths` by name; empty: not audited.

    Args:
        name: Of a model.

    Examples:
        >>> from robustvae.zoo_table import robustness
        >>> robustness("digits-vae")
        {'attacked l2 margin (digits-l2-v1)': '0.244'}
        >>> robustness("mnist-seatbelt-4")
        {}
    """
    chief = ("margin_upper_box", "certified_deterministic", "ms_ssim", "certified")
    return {
        row.name: row.value
        for row in strengths(name)
        if row.key in chief and (row.key != "certified_deterministic" or row.value != "0")
    }


@checked()
def not_audited(name: str) -> str:
    """That a model has no robustness number, and why where its weights are not there."""
    has_weights = name in {*zoo.bundled(), *zoo.trained()}
    return NOT_AUDITED if has_weights else f"{NOT_AUDITED}: its weights are not kept"


@checked()
def card_page(name: str) -> str:
    """The card of a measured model, in markdown: what it is, its robustness, its measures.

    `README.md` beside the model is this text; nothing is computed.

    Args:
        name: Of a model with a stored evaluation.

    Raises:
        UnknownNameError: No such model.

    Examples:
        >>> from robustvae import zoo
        >>> from robustvae.zoo_table import card_page
        >>> all(card_page(name).startswith(f"# {name}") for name in zoo.measured())
        True
    """
    evaluation = zoo.evaluation(name)
    if evaluation is None:
        raise ConfigError(f"{name} has no stored evaluation: robustvae zoo train {name}")
    rows = strengths(name)
    lines = [f"{not_audited(name)[0].upper()}{not_audited(name)[1:]}."]
    if rows:
        lines = [
            "Without a defense. The attacked margin is an upper bound; ± is one standard error.",
            "",
            "| | value | 95 % interval | inputs | from |",
            "|---|---:|---|---:|---|",
        ]
        for row in rows:
            source = f"`{row.source}`" if row.source.startswith("robustvae ") else row.source
            cells = (row.name, row.value, row.interval, str(row.inputs), source)
            lines.append(f"| {' | '.join(cells)} |")
    facts = zoo.card(name)
    if facts["status"] != zoo.NOT_KEPT:
        facts["dtype"] = checkpoint.read_config(zoo.measured()[name])["dtype"]
    return zoo.card_text(name, facts, evaluation, lines)


_LABELS = {
    "margin_upper_box": "attacked {norm} margin",
    "margin_upper_unconstrained": "attacked {norm} margin, pixels unconstrained",
    "certified_deterministic": "certified {norm} radius",
    "error_clean": "error on clean inputs, l2",
}


def _audited(name: str) -> list[Strength]:
    """The numbers of the audit that is kept beside a model's card."""
    path = zoo.measured().get(name, Path(name)) / zoo.AUDIT
    if not path.is_file():
        return []
    audit = json.loads(path.read_text(encoding="utf-8"))
    where = audit["protocol"] + (f", {audit['inputs']} inputs" if audit["is_shortened"] else "")
    rows = []
    for key, label in _LABELS.items():
        entry = audit["means"].get(key, {})
        if entry.get("mean") is None:
            continue
        rounding = {"certified_deterministic": floor, "error_clean": near}.get(key, ceil)
        value = rounding(entry["mean"])
        if key == "margin_upper_box" and audit.get("unbroken"):
            value += f" (median {ceil(audit['median_margin'])}; no attack broke "
            value += f"{audit['unbroken']} of {audit['inputs']})"
        is_known = entry.get("low") is not None and entry.get("high") is not None
        interval = f"{floor(entry['low'])} to {ceil(entry['high'])}" if is_known else ""
        label = label.format(norm=audit["norm"])
        source = audit["command"] or "an audit made in Python"
        rows.append(Strength(key, label, where, value, interval, audit["inputs"], source))
    return rows


@checked()
def training_facts(model: ModelFacts) -> dict[str, str]:
    """How a model of the zoo was trained, for a page about it; empty for any other.

    Args:
        model: Of a record; its weights decide, not its name alone.
    """
    place = zoo.stored().get(model.name)
    if place is None or checkpoint.read_config(place)["sha256"] != model.sha256:
        return {}
    card = zoo.card(model.name)
    keys = ("about", "data", "epochs", "objective", "start", "recipe", "seed", "date")
    return {
        "training data" if key == "data" else key: str(card[key]) for key in keys if key in card
    }


@functools.cache
def _references() -> list[tuple[str, str, int, str, float]]:
    """Protocol, norm, inputs, model and score of every reference model of every protocol."""
    protocols = [read_protocol(name) for name in registry.names("protocol")]
    return [
        (
            protocol.name,
            protocol.question.norm,
            protocol.inputs,
            reference.name,
            float(reference.score),
        )
        for protocol in protocols
        for reference in protocol.references
    ]


@final
class _Models:
    """The stored models with their records."""

    def __init__(self) -> None:
        evaluations = {name: zoo.evaluation(name) for name in zoo.measured()}
        self.records = {name: record for name, record in evaluations.items() if record is not None}

    def get(self, name: str, key: str) -> Measure | None:
        if name not in self.records:
            return None
        return next((m for m in self.records[name].measures if m.key == key), None)

    def cell(self, name: str, key: str) -> str:
        measure = self.get(name, key)
        if measure is None:
            return ""
        error = "" if measure.stderr is None else f" ± {measure.stderr:.2g}"
        return f"{measure.value:.4g}{error}"


def page() -> str:
    """The page, in markdown.

    Examples:
        >>> from robustvae.zoo_table import page
        >>> page().splitlines()[0]
        '# The zoo'
    """
    models = _Models()
    sections = (
        _head(models),
        _robustness(),
        _table7(models),
        _orders(models),
        _lipschitz(models),
    )
    text = [line for section in sections for line in [*section, ""]]
    return "\n".join([*text, *_claims(models), "", *_others(models), "", *_cards(models)]) + "\n"


@checked()
def paired(one: Evaluation, other: Evaluation, key: str) -> tuple[float, float]:
    """Mean of `other` - `one` over the images that both were judged by, and its standard error.

    Examples:
        >>> from robustvae.evaluation import Evaluation
        >>> from robustvae.zoo_table import paired
        >>> one = Evaluation((), per_image={"index": [5, 7, 9], "nll": [1.0, 2.0, 3.0]})
        >>> other = Evaluation((), per_image={"index": [7, 5], "nll": [3.0, 1.5]})
        >>> paired(one, other, "nll")
        (0.75, 0.25)
    """
    by_image = dict(zip(one.per_image["index"], one.per_image[key], strict=False))
    pairs = zip(other.per_image["index"], other.per_image[key], strict=False)
    return mean_stderr([value - by_image[i] for i, value in pairs if i in by_image])


def _head(models: _Models) -> list[str]:
    return [
        "# The zoo",
        "",
        "```sh",
        "# needs data and time, as this page says",
        "robustvae zoo train NAME   # each model; for what its card says",
        "robustvae zoo table --out docs/results/zoo.md",
        "```",
        "",
        f"{len(models.records)} of {len(recipe_names())} recipes are trained and measured; "
        "`robustvae zoo list` names all, and `zoo/` holds the weights as far as 25 MB go. Every "
        "number was measured on the weights as they are stored (float16, the Lipschitz models "
        "float32), on test images balanced over the classes; "
        "± is one standard error over images, intervals are 95 %. One training run (seed 0) "
        "each: nothing here says how much another seed would change.",
    ]


def _robustness() -> list[str]:
    lines = [
        "## Robustness",
        "",
        "From stored records, without a defense. The attacked margin is an upper bound under a "
        "protocol (`robustvae audit NAME --protocol PROTOCOL`), the mean of its 40 inputs where no "
        "other number stands there (then the plan was cut to so many: compare with care); MS-SSIM "
        "is that of the attacked "
        "reconstruction to the clean one, under the worst attack of [what was measured]"
        "(robust-training.md); the certified radius is of the model smoothed by its own noise.",
        "",
        "| model | measured |",
        "|---|---|",
    ]
    for name in zoo.names():
        if zoo.card(name)["status"] == zoo.NOT_TRAINED:
            continue
        values = robustness(name)
        text = "; ".join(f"{key}: {value}" for key, value in values.items()) or not_audited(name)
        lines.append(f"| {name} | {text} |")
    return lines


def _table7(models: _Models) -> list[str]:
    lines = [
        "## Likelihood and reconstruction ([Kuzina22] Table 7)",
        "",
        "-log p(x) by importance sampling, k = 1000, in nats; MSE a pixel on the scale 0 to 255, "
        "reconstructed from the posterior's mean and from a draw. The paper trains 300 epochs.",
        "",
        'Where few images were scored so, "of all" is the -ELBO of the whole test set less its '
        "mean gap to -log p(x) on those few.",
        "",
        "| model | epochs | images | -log p(x) | 95 % | of all | paper | MSE, mean | MSE, draw | "
        "paper |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for name, (likelihood, error) in REPORTED.items():
        measure = models.get(name, "nll")
        if measure is None:
            lines.append(f"| {name} | {zoo.NOT_TRAINED} | | | | | {likelihood} | | | {error} |")
            continue
        assert measure.interval is not None
        low, high = measure.interval
        lines.append(
            f"| {name} | {zoo.card(name)['epochs']} | {measure.n:,} | {models.cell(name, 'nll')} | "
            f"{low:.1f} to {high:.1f} | {models.cell(name, 'nll_all')} | {likelihood} | "
            f"{models.cell(name, 'mse')} | {models.cell(name, 'mse_sampled')} | {error} |"
        )
    return lines


def _orders(models: _Models) -> list[str]:
    lines = [
        "## In the order of beta",
        "",
        "The paper's -log p(x) and MSE rise with beta throughout. Differences of neighbors, on "
        "the same images:",
        "",
        "| | from | to | -log p(x) | paper | MSE, mean | paper |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    sentences = []
    for ladder, names in LADDERS.items():
        there = [name for name in names if name in models.records]
        signs = []
        for one, other in itertools.pairwise(there):
            cells = []
            for number, key in enumerate(("nll", "mse")):
                mean, stderr = paired(models.records[one], models.records[other], key)
                signs.append(mean > 2 * stderr)
                reported = REPORTED[other][number] - REPORTED[one][number]
                cells += [f"{mean:+.4g} ± {stderr:.2g}", f"{reported:+.4g}"]
            lines.append(f"| {ladder} | {one} | {other} | {' | '.join(cells)} |")
        if len(there) > 1:
            verdict = "as in the paper" if all(signs) else "not all rise by two standard errors"
            missing = len(names) - len(there)
            short = f" ({missing} of {len(names)} {zoo.NOT_TRAINED})" if missing else ""
            sentences.append(f"- {ladder}{short}: {verdict}.")
    return [*lines, "", *(sentences or ["Nothing to compare yet."])]


def _lipschitz(models: _Models) -> list[str]:
    lines = [
        "## Lipschitz-VAEs",
        "",
        "log p(x) of the test images under the continuous Bernoulli, a density on [0, 1]^784, by "
        "importance sampling, k = 1000, in nats. mnist-mlp-10 is a plain VAE of the same size, "
        "trained with the same likelihood. mnist-conv28 was trained with the Bernoulli's; its "
        "logits are read as the continuous Bernoulli's.",
        "",
        "| model | epochs | images | log p(x) | 95 % | encoder, verified | decoder, verified |",
        "|---|---:|---:|---:|---|---:|---:|",
    ]
    for name in (
        "mnist-mlp-10",
        "mnist-conv28",
        *(n for n in models.records if "-lipschitz-" in n),
    ):
        measure = models.get(name, "nll_continuous") or models.get(name, "nll")
        if measure is None or (measure.key == "nll" and name == "mnist-conv28"):
            lines.append(f"| {name} | {zoo.card(name)['status']} | | | | | |")
            continue
        assert measure.interval is not None
        low, high = measure.interval
        constants = [models.get(name, f"{part}_lipschitz") for part in ("encoder", "decoder")]
        cells = ["not covered" if c is None else c.shown for c in constants]
        lines.append(
            f"| {name} | {zoo.card(name)['epochs']} | {measure.n:,} | {-measure.value:.5g} ± "
            f"{measure.stderr:.2g} | {-high:.5g} to {-low:.5g} | {' | '.join(cells)} |"
        )
    return lines


def _claims(models: _Models) -> list[str]:
    lines = [
        "## What beta does to encoder and decoder ([Camuto21] Fig. 9c-d, [Willetts21] Table 1)",
        "",
        "Mean over coordinates of the encoder's standard deviation; Frobenius norm of the Jacobian "
        "of the encoder's mean; l2 norms of the weights. The intervals of the first two are over "
        "test images. A weight norm is one number of one model: it has none, and a change between "
        "two models may be the run's.",
    ]
    for ladder, names in LADDERS.items():
        there = [name for name in names if name in models.records]
        if len(there) < 2:
            continue
        lines += ["", f"**{ladder}**", "", f"| | {' | '.join(there)} | expected | found |"]
        lines += [f"|---|{'---:|' * len(there)}---|---|"]
        for key, expected, source in CLAIMS:
            cells = " | ".join(models.cell(name, key) for name in there)
            measures = [measure for name in there if (measure := models.get(name, key)) is not None]
            lines.append(
                f"| {key} | {cells} | {expected} ({source}) | {_trend(models, there, measures)} |"
            )
    return lines if len(lines) > 3 else [*lines, "", "Nothing to compare yet."]


def _trend(models: _Models, names: Sequence[str], found: Sequence[Measure]) -> str:
    signs = set()
    for position, (one, other) in enumerate(itertools.pairwise(names)):
        key = found[position].key
        if found[position].stderr is None:
            change, error = found[position + 1].value - found[position].value, 0.0
        else:
            change, error = paired(models.records[one], models.records[other], key)
        signs.add(0 if abs(change) <= 2 * error else math.copysign(1, change))
    return {frozenset({1.0}): "rises", frozenset({-1.0}): "falls"}.get(
        frozenset(signs), "neither, step by step"
    )


def _others(models: _Models) -> list[str]:
    lines = ["## Everything else", "", f"| model | {' | '.join(MEASURES)} |"]
    lines += [f"|---|{'---:|' * len(MEASURES)}"]
    for name in models.records:
        lines.append(f"| {name} | {' | '.join(models.cell(name, key) for key in MEASURES)} |")
    return [
        *lines,
        "",
        "Nats for kl, index_code and total_correlation (aggregate posterior of 10,000 test "
        "images). Fréchet distances are in the features of a small network trained on 10,000 "
        "training images: they compare with each other only, for equal numbers of images.",
    ]


def _cards(models: _Models) -> list[str]:
    lines = ["## Runs", "", "| model | epochs | training, s | seed | images | stored | sha256 |"]
    lines += ["|---|---:|---:|---:|---:|---|---|"]
    for name, record in models.records.items():
        card = zoo.card(name)
        lines.append(
            f"| {name} | {card['epochs']} | {card['seconds']:.0f} | {card['seed']} | "
            f"{record.facts['inputs']:,} | {card['date']} | {record.facts['sha256'][:12]} |"
        )
    return lines
