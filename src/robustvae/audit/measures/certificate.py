"""The lower end of the bracket: what can be proved, kinds kept apart, input by input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from robustvae import registry
from robustvae.audit.context import Context
from robustvae.certificates import Question, certify
from robustvae.certificates.certification import GUARANTEED
from robustvae.defenses import Victim
from robustvae.errors import UnsupportedError
from robustvae.records import Column
from robustvae.registry import register


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

    Each input is asked about alone, so its certificate does not depend on the others.
    """

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
        values: dict[str, list[Any]] = {column.id: [] for column in self.columns}
        notes = context.once("rests on", dict)
        for row, number in enumerate(context.numbers):
            best, best_kind = 0.0, None
            for kind, methods in kinds.items():
                radius, method = self._ask(context, row, number, methods, kind, notes, best)
                values[f"certified_{kind}"].append(radius)
                share = None if radius is None else float(radius > 0)
                values[f"certified_{kind}_share"].append(share)
                values[f"certified_{kind}_method"].append(method)
                if radius is not None and radius > best:
                    best, best_kind = radius, kind
            values["certified"].append(best)
            values["certified_kind"].append(best_kind)
            values["certified_status"].append("ok" if best > 0 else "abstain")
        empty = [None] * len(context.x)
        return {name: column or empty for name, column in values.items()}

    def _methods(self, context: Context) -> dict[str, tuple[str, ...] | None]:
        """The methods of each kind that apply to the victim; None stands for the usual ones."""
        if "smoothing" in registry.names("certificate-method") and _has_noise(context.victim):
            return {"probabilistic": ("smoothing",)}
        if not context.victim.draws_own_posterior:
            return {}
        also = context.plan.probabilistic
        if also == "auto":
            also = "never" if _has_convolutions(context.victim.vae) else "always"
        kinds: dict[str, tuple[str, ...] | None] = {"deterministic": GUARANTEED}
        if also == "always":
            kinds["probabilistic"] = ("neyman_pearson",)
        return kinds

    def _ask(
        self,
        context: Context,
        row: int,
        number: int,
        methods: tuple[str, ...] | None,
        kind: str,
        notes: dict[tuple[str, bool], list[list[str]]],
        best: float,
    ) -> tuple[float | None, str | None]:
        """One kind's radius of one input, alone; none where another kind has proved one."""
        if best > 0:
            return None, None
        question = context.question
        certificate = certify(
            context.victim,
            context.x[row : row + 1],
            question=Question(
                r=question.r,
                m=question.m,
                norm=question.norm,
                displacement=question.displacement,
                center=question.center,
                box=False,  # a certificate of every change bounds those kept in range too
            ),
            methods=methods,
            generator=context.generator("certificate"),
            rows=[number],
        )
        radius = float(certificate.radius[0])
        notes.setdefault((kind, radius > 0), []).append(list(certificate.assumptions))
        return radius, certificate.method[0]


def _has_noise(victim: Victim) -> bool:
    return registry.name_of("defense", victim.defense) == "input-noise"


def _has_convolutions(vae: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d | nn.ConvTranspose2d) for part in vae.modules())
