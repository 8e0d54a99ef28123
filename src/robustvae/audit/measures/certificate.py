"""The lower end of the bracket: what can be proved, kinds kept apart, input by input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from robustvae import registry
from robustvae.audit.context import Context
from robustvae.certificates import Certificate, Question, certify
from robustvae.certificates.certification import GUARANTEED
from robustvae.certificates.methods.base import unchanged_models
from robustvae.errors import ConfigError, UnsupportedError
from robustvae.records import Column
from robustvae.registry import register

_KINDS = ("deterministic", "probabilistic")  # in the order in which they are asked


def _columns(kind: str, words: str) -> tuple[Column, ...]:
    return (
        Column(
            id=f"certified_{kind}",
            label=f"certified lower bound on the margin, {words}",
            unit="pixel units",
            per="input",
            rounding="down",
            better="higher",
            headline=f"Certified radius ({words})",
        ),
        Column(
            id=f"certified_{kind}_share",
            label=f"share of inputs with a certificate, {words}",
            kind="share",
            per="input",
            reduction="share",
            rounding="down",
            better="higher",
        ),
        Column(
            id=f"certified_{kind}_method",
            label=f"method of the {words} bound",
            kind="text",
            per="input",
            reduction="none",
        ),
    )


@register("measure", "certificate")
@final
@dataclass(frozen=True)
class CertificateMeasure:
    """Certified lower bounds on the margin: deterministic, and probabilistic where it proves 0.

    Kinds are decided input by input, and no certificate depends on the other inputs.

    Args:
        methods: Specs of certificate methods that are asked instead of the usual ones.

    Raises:
        UnknownNameError: A spec that names no certificate method.
        ConfigError: A method that guarantees nothing.
    """

    methods: tuple[Any, ...] = ()

    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            id="certified",
            label="certified lower bound on the margin, the larger of its kinds",
            unit="pixel units",
            per="input",
            reduction="none",  # a mean over kinds would be a number of neither
            rounding="down",
        ),
        Column(
            id="certified_kind",
            label="kind of the certificate",
            kind="text",
            per="input",
            reduction="none",
        ),
        Column(
            id="certified_status",
            label="status of the certificate",
            kind="text",
            per="input",
            reduction="none",
        ),
        *_columns("deterministic", "deterministic"),
        *_columns("probabilistic", "probabilistic"),
        Column(
            id="certified_draws",
            label="draws that the probabilistic bound took",
            kind="count",
            per="input",
            reduction="none",
        ),
    )

    def __post_init__(self) -> None:
        """Validate the methods."""
        for spec in self.methods:
            kind = registry.build("certificate-method", spec).kind
            if kind not in _KINDS:
                raise ConfigError(
                    f"methods of the measure certificate must be {' or '.join(_KINDS)}, got {spec} "
                    f"with the kind {kind}: an estimate is a measure of its own"
                )

    def __call__(self, context: Context) -> Mapping[str, Any]:
        """Measure the inputs."""
        if not context.plan.certificates:
            raise UnsupportedError("certificate: the plan asks for none")
        kinds = self._methods(context)
        if not kinds:
            raise UnsupportedError(
                "certificate: no method speaks of this defense; input noise has one (smoothing)"
            )
        count = len(context.x)
        values: dict[str, list[Any]] = {column.id: [None] * count for column in self.columns}
        notes = context.once("rests on", dict)
        values["certified"] = [0.0] * count
        for kind, methods in kinds.items():
            # a further kind is asked for where no other has proved anything
            rows = [row for row in range(count) if values["certified"][row] == 0]
            if not rows:
                continue
            certificate = self._ask(context, rows, methods)
            for place, row in enumerate(rows):
                radius = float(certificate.radius[place])
                values[f"certified_{kind}"][row] = radius
                values[f"certified_{kind}_share"][row] = float(radius > 0)
                values[f"certified_{kind}_method"][row] = certificate.method[place]
                if certificate.draws is not None:
                    values["certified_draws"][row] = int(certificate.draws[place])
                notes.setdefault((kind, radius > 0), []).append(list(certificate.assumptions))
                if radius > 0:
                    values["certified"][row], values["certified_kind"][row] = radius, kind
        values["certified_status"] = [
            "ok" if radius > 0 else "abstain" for radius in values["certified"]
        ]
        return values

    def _methods(self, context: Context) -> dict[str, tuple[Any, ...]]:
        """The methods of each kind that are asked about the victim."""
        if self.methods:
            members = [(registry.build("certificate-method", spec), spec) for spec in self.methods]
            by_kind = {
                kind: tuple(spec for member, spec in members if member.kind == kind)
                for kind in _KINDS
            }
            return {kind: specs for kind, specs in by_kind.items() if specs}
        if context.victim.noise is not None:
            return {"probabilistic": ("smoothing",)}
        if not context.victim.draws_own_posterior:
            return {}
        also = context.plan.probabilistic
        if also == "auto":
            also = "never" if _has_convolutions(context.victim.vae) else "always"
        kinds: dict[str, tuple[Any, ...]] = {"deterministic": GUARANTEED}
        if also == "always":
            kinds["probabilistic"] = ("neyman_pearson",)
        return kinds

    def _ask(self, context: Context, rows: list[int], methods: tuple[Any, ...]) -> Certificate:
        """One kind's certificate of some inputs; each input's is the same in any batch."""
        question = context.question
        with unchanged_models(context.once("of models", dict)):
            certificate = certify(
                context.victim,
                context.x[rows],
                question=Question(
                    r=question.r,
                    m=question.m,
                    norm=question.norm,
                    displacement=question.displacement,
                    center=question.center,
                    box=False,  # a certificate of every change bounds those kept in range too
                ),
                methods=methods,
                draws=context.plan.smoothing if methods == ("smoothing",) else None,
                generator=context.generator("certificate"),
                rows=[context.numbers[row] for row in rows],
            )
        certificate.check_complete()
        return certificate


def _has_convolutions(vae: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d | nn.ConvTranspose2d) for part in vae.modules())
