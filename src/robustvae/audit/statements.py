"""Sentences of a record: what was done, what is proved, what was only estimated or not tried."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from robustvae.audit.plan import EXPLORED, Plan, text
from robustvae.records import QuestionFacts, VictimFacts

Row = Mapping[str, Any]
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")
_DISPLACEMENTS = {
    "centered": "the distance between an output drawn at the changed input, with the clean input's "
    "posterior spread, and the output of the clean posterior mean",
    "full": "the distance between an output drawn at the changed input, as the deployed model "
    "draws it, and the output of the clean posterior mean",
    "paired": "the distance between outputs drawn independently at the changed and at the clean "
    "input",
}
KNOWS = {
    "plan": "all of the victim, its defense included",
    "longer": "all of the victim, its defense included",
    "gradient-free": "the victim's outputs only",
    "explored": "all of the victim, its defense included",
    "differences": "the victim's outputs, and a gradient that it did not trust",
    "transfer": "the undefended model only",
}


def protocol(plan: Plan, question: QuestionFacts, victims: Sequence[VictimFacts]) -> list[str]:
    """What was done, in order."""
    words = [
        f"{plan.inputs} inputs, balanced over the classes; images in [0, 1].",
        f"Robust at a change means P(D <= r) > m with D {_DISPLACEMENTS[question.displacement]} "
        f"(displacement {question.displacement}), r = {question.r:g} ({question.rule}), "
        f"m = {question.m:g}.",
    ]
    words += [
        f"Attack {attack.id}: goal {text(attack.goal)}, search {text(attack.search)}; changed "
        "pixels kept in [0, 1]; what the search returned was projected and scored again."
        for attack in plan.attacks
    ]
    if plan.longer > 1:
        words.append(
            f"The first attack once more with {plan.longer} times the steps, from the best point "
            "known in its ball where its search can go on."
        )
    if plan.gradient_free:
        words.append(
            f"In every ball a square search of {plan.gradient_free} queries without gradients, and "
            "a climb by gradients from where it ended."
        )
    if plan.transfer and any(victim.defended for victim in victims):
        words.append("For defended victims, in every ball the attack on the undefended model too.")
    if plan.probes:
        words.append(
            "Where a victim's gradient is missing or not that of its function, in every ball an "
            "ascent along central differences too."
        )
    words += [
        "The headline is the worst of all attacks on each input; all of them are candidates of its "
        "margin.",
        f"Probabilities: {plan.draws} draws for the worst attack of the first ball, fewer for the "
        f"others, Clopper-Pearson interval at {plan.confidence:g}.",
        "Noise of equal size: uniform direction (random signs for linf), projected like an attack.",
        f"Checks beside the rows: on {plan.probes} inputs, and on inputs beside them.",
    ]
    if plan.margins is not None:
        words.append(
            f"Attacked upper bounds on the margin: walks of {plan.margins.steps} steps along the "
            f"boundary in the {question.norm} norm, from {plan.margins.restarts + 1} random starts "
            f"and {EXPLORED} that short square searches found, and from the nearest known changes; "
            f"fresh draws decide, at confidence {plan.confidence:g} per input, split over the "
            "tests made for it."
        )
    return words


def proved(
    rows: Sequence[Row], question: QuestionFacts, notes: Mapping[tuple[str, bool], list[list[str]]]
) -> list[str]:
    """What the certificates of the first victim prove, kind by kind."""
    words: list[str] = []
    for kind in ("deterministic", "probabilistic"):
        radii = [
            float(row["certified"])
            for row in rows
            if row.get("certified_kind") == kind and row.get("certified")
        ]
        if not radii:
            continue
        least, greatest = (math.floor(end(radii) * 1e3) / 1e3 for end in (min, max))
        words += [
            f"{len(radii)} of {len(rows)} inputs have a {kind} certificate, with radii from "
            f"{least:.3f} to {greatest:.3f} ({question.norm}, pixel units): no change of smaller "
            f"norm, kept in range or not, brings P(D <= {question.r:g}) down to {question.m:g} or "
            "below.",
            *(f"It rests on: {assumption}." for assumption in merged(notes.get((kind, True), []))),
        ]
    if words:
        return words
    reasons = "; ".join(
        [
            *(
                reason
                for (_, holding), lists in notes.items()
                if not holding
                for reason in merged(lists)
                if reason.startswith("not covered")
            ),
            *_given_up(rows, question),
        ]
    )
    because = f" ({reasons})" if reasons else ""
    return [f"Nothing is proved about any input of this audit{because}."]


def _given_up(rows: Sequence[Row], question: QuestionFacts) -> list[str]:
    """How many draws were taken in vain."""
    draws = [int(row["certified_draws"]) for row in rows if row.get("certified_draws")]
    if not draws:
        return []
    return [
        f"sampling took from {min(draws)} to {max(draws)} draws of an input, by which "
        f"P(D <= {question.r:g}) is not above {question.m:g}"
    ]


def merged(lists: Iterable[list[str]]) -> list[str]:
    """Every assumption once; of those that differ in a number only, the one with the greatest."""
    greatest: dict[str, str] = {}
    for sentence in (sentence for sentences in lists for sentence in sentences):
        shape = _NUMBER.sub("#", sentence)
        if shape not in greatest or _numbers(sentence) > _numbers(greatest[shape]):
            greatest[shape] = sentence
    return list(greatest.values())


def _numbers(sentence: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(sentence)]


def estimated(plan: Plan, question: QuestionFacts) -> list[str]:
    """What holds for what was tried only."""
    return [
        "Damage, MS-SSIM and probabilities under attack hold for the changes found; a stronger "
        "attack may do worse.",
        f"The attacked upper bound of an input is a change that was found and for which "
        f"P(D <= {question.r:g}) is at most {question.m:g} at confidence {plan.confidence:g}: the "
        "margin is no larger. How much smaller it is, the attack cannot tell.",
        "The first-order estimate replaces the networks by their Jacobians at the input. It "
        "bounds the margin from neither side.",
        "Intervals of means speak of the sampling of inputs, at 95 %.",
    ]


def not_tried(plan: Plan, question: QuestionFacts, victims: Sequence[VictimFacts]) -> list[str]:
    """What nobody tried."""
    words = [
        "Norms, radii and goals outside the plan; changes that are not additive in the pixels, "
        "such as rotations.",
    ]
    if not any(victim.defended for victim in victims):
        words.append("Defenses: none was given.")
    if any(victim.defended for victim in victims):
        words.append("Certificates of defended victims, except where a row has one.")
    if plan.probabilistic == "auto":
        words.append(
            "The probabilistic certificate (Neyman-Pearson) for convolutional models, which takes "
            "seconds for each input; `probabilistic: always` in the plan asks for it."
        )
    if question.displacement == "centered":
        words.append(
            "The spread of the posterior at the changed input: 'centered' keeps the clean input's."
        )
    return words


def knows(attacked_role: str, defended: bool) -> str:
    """What the attacker knew, in words."""
    if attacked_role in ("plan", "explored", "longer") and not defended:
        return "all of the model"
    return KNOWS[attacked_role]


REFERENCES = [
    "[Camuto21] A. Camuto, M. Willetts, S. Roberts, C. Holmes, T. Rainforth. Towards a Theoretical "
    "Understanding of the Robustness of Variational Autoencoders. AISTATS 2021.",
    "[Barrett22] B. Barrett, A. Camuto, M. Willetts, T. Rainforth. Certifiably Robust Variational "
    "Autoencoders. AISTATS 2022.",
    "[Kuzina22] A. Kuzina, M. Welling, J. M. Tomczak. Alleviating Adversarial Attacks on "
    "Variational Autoencoders with MCMC. NeurIPS 2022.",
    "[Khan23] A. Khan, A. Storkey. Adversarial robustness of VAEs through the lens of local "
    "geometry. AISTATS 2023.",
    "N. Carlini et al. On Evaluating Adversarial Robustness. arXiv:1902.06705, 2019.",
    "A. Athalye, N. Carlini, D. Wagner. Obfuscated Gradients Give a False Sense of Security. ICML "
    "2018.",
    "C. J. Clopper, E. S. Pearson. The use of confidence or fiducial limits illustrated in the "
    "case of the binomial. Biometrika 26, 1934.",
    "M. Andriushchenko, F. Croce, N. Flammarion, M. Hein. Square Attack. ECCV 2020.",
    "Z. Wang, E. P. Simoncelli, A. C. Bovik. Multiscale structural similarity for image quality "
    "assessment. Asilomar Conference on Signals, Systems and Computers, 2003.",
]
