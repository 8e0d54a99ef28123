"""The question from outside the victim: protocols, options, and a rule from the data alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final
from typing import Protocol as Interface

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from robustvae import registry
from robustvae.arguments import checked
from robustvae.audit.plan import STRICT, AttackPlan, Plan, read_plan, read_yaml
from robustvae.certificates import Question
from robustvae.data import Images
from robustvae.data.images import CHUNK
from robustvae.errors import ConfigError, RangeError, unknown
from robustvae.records import QuestionFacts
from robustvae.records.files import is_file
from robustvae.records.typed import Values, first_problem
from robustvae.seeding import shard_generator

RULE_SHARE = 0.4  # of the typical distance of an input from the mean input
RULE_INPUTS = 8  # fewer say too little of the data's spread
_RULE_MOST = 2000  # inputs read for the rule, evenly spaced: the median hardly moves beyond
QUESTION_KEYS = ("r", "m", "norm", "displacement", "center")


@final
class ProtocolQuestion(Values):
    """The question of a protocol."""

    model_config = STRICT

    r: float = Field(gt=0)
    m: float = Field(default=0.5, gt=0, lt=1)
    norm: Literal["l2", "linf"] = "l2"
    displacement: Literal["centered", "full", "paired"] = "centered"
    center: Literal["mean", "own"] = "mean"
    box: bool = True


@final
class Reference(Values):
    """A model that was audited by the protocol: its name, and the number that ranks it."""

    model_config = STRICT

    name: str
    score: float


@final
class Protocol(Values):
    """A named, versioned question with a suite and inputs: audits by it can be compared.

    Examples:
        >>> from robustvae.audit import read_protocol
        >>> read_protocol("digits-l2-v1").question.norm
        'l2'
    """

    model_config = STRICT

    name: str
    about: str = ""
    data: str
    split: str = "test"
    inputs: int = Field(ge=1)
    sha256: str = Field(description="of the inputs, so that no others pass for them")
    question: ProtocolQuestion
    attacks: tuple[AttackPlan, ...] = Field(min_length=1)
    gradient_free: int = Field(default=500, ge=0)
    ranked_by: str = "margin_upper_box"
    references: tuple[Reference, ...] = ()


class Rows(Interface):
    """Inputs that are read as they are asked for."""

    def read(self, rows: Tensor) -> Tensor:
        """Some of them by their places, (n, ...)."""


@final
@dataclass(frozen=True, eq=False)
class Inputs:
    """The audited inputs, and some that are not.

    Attributes:
        x: Audited inputs, (B, ...), or the set of them, which is read a few at a time.
        y: Their labels, (B,).
        numbers: Their places in the data.
        unseen: Other inputs of the same data, (N, ...), N possibly 0.
        constant: The mean of the data, (1, ...).
    """

    x: Tensor | Rows
    y: Tensor
    numbers: tuple[int, ...]
    unseen: Tensor
    constant: Tensor

    def read(self, places: Sequence[int]) -> Tensor:
        """The inputs at some places, (n, ...); of a set that is read, these are read."""
        index = torch.tensor(list(places), dtype=torch.int64)
        return self.x[index] if isinstance(self.x, Tensor) else self.x.read(index)

    def sha256(self) -> str:
        """SHA-256 of the audited inputs, so that no others pass for them."""
        digest = hashlib.sha256()
        for places in torch.arange(len(self.numbers)).split(CHUNK):
            digest.update(_bytes(self.read(places.tolist())))
        return digest.hexdigest()


@checked()
def read_protocol(name: str | Path | Mapping[str, Any] | Protocol) -> Protocol:
    """The protocol of a name, a YAML file, a mapping, or itself.

    Raises:
        UnknownNameError: Neither a known name nor a file.
        ConfigError: No valid protocol; the first thing wrong is named.
    """
    if isinstance(name, Protocol):
        return name
    content: Any = name
    if isinstance(name, str | Path):
        protocols = registry.names("protocol")
        path = (
            Path(registry.lookup("protocol", str(name))) if str(name) in protocols else Path(name)
        )
        if not is_file(path):
            raise unknown("protocol", str(name), [*protocols, "FILE.yaml"])
        content = {"name": path.stem, **read_yaml(path, "protocol")}
    try:
        return Protocol.model_validate(content)
    except ValidationError as error:
        raise ConfigError(first_problem(error, "protocol")) from None


def settle(
    plan: Plan, protocol: Protocol | None, options: Mapping[str, Any], images: Images
) -> tuple[Plan, QuestionFacts]:
    """The plan and the question, by precedence: protocol, options, plan, and the data's rule.

    With a protocol its question, inputs and suite hold, and an option for any of them is an error.
    A plan of fewer inputs than the protocol's makes the record "shortened".

    Raises:
        ConfigError: An option beside a protocol, or too few inputs for the rule.
    """
    explicit = {key: options[key] for key in QUESTION_KEYS if options.get(key) is not None}
    from_plan = {key: getattr(plan, key) for key in QUESTION_KEYS if getattr(plan, key) is not None}
    if protocol is not None:
        wrong = sorted({**from_plan, **explicit})
        if wrong:
            raise ConfigError(
                f"the protocol {protocol.name} fixes {' and '.join(wrong)}: leave "
                f"{'it' if len(wrong) == 1 else 'them'} out, or leave the protocol out"
            )
        is_short = plan.inputs < protocol.inputs
        plan = plan.model_copy(
            update={
                "inputs": min(plan.inputs, protocol.inputs),
                "attacks": protocol.attacks,
                "gradient_free": protocol.gradient_free,
                "protocol": protocol.name,
            }
        )
        return plan, QuestionFacts(
            **protocol.question.model_dump(),
            rule=f"by the protocol {protocol.name}",
            protocol=protocol.name,
            shortened=is_short,
        )
    keys = {**from_plan, **explicit}
    rule = "given"
    if "r" not in keys:
        keys["r"] = tolerance(images)
        rule = "0.4 times the median l2 distance of the inputs given from their mean"
    facts = {
        "m": 0.5,
        "norm": "l2",
        "displacement": "centered",
        "center": "mean",
        "box": options.get("box", True),
        **keys,
    }
    Question(**facts)  # validates the parts, and that they go together
    return plan, QuestionFacts(**facts, rule=rule)


def tolerance(images: Images) -> float:
    """The tolerance r that the data alone decides: nothing of any model enters.

    0.4 times the median l2 distance of the given inputs from their mean, to two digits.

    Raises:
        ConfigError: Fewer than 8 inputs, or inputs that are all the same.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.audit.protocol import tolerance
        >>> tolerance(rv.data.load("digits", split="test"))
        0.86
    """
    if len(images) < RULE_INPUTS:
        raise ConfigError(
            f"r follows from the data with at least {RULE_INPUTS} inputs, got {len(images)}: "
            "say r (--r on the command line)"
        )
    step = max(1, math.ceil(len(images) / _RULE_MOST))
    x = images.read(torch.arange(0, len(images), step)).double().flatten(1)
    middle = float((x - x.mean(0)).norm(dim=1).median())
    if not middle > 0:
        raise ConfigError("r cannot follow from inputs that are all the same: say r")
    # two significant digits: a tolerance is chosen, not measured
    return float(f"{RULE_SHARE * middle:.2g}")


def choose(images: Images, plan: Plan, protocol: Protocol | None, seed: int) -> Inputs:
    """The audited inputs, balanced over the classes, and some that are not.

    Raises:
        ConfigError: Inputs that are not the protocol's.
        RangeError: Fewer inputs than the plan wants.
    """
    if plan.inputs > len(images):
        raise RangeError(
            f"the plan wants {plan.inputs} inputs, {images.name} has {len(images)}: "
            f"give a plan with inputs: {len(images)}"
        )
    count, source = plan.inputs, seed
    if protocol is not None:
        count, source = protocol.inputs, 0  # the inputs are the protocol's, whatever the seed
        if count > len(images):
            raise ConfigError(
                f"the protocol {protocol.name} needs {count} inputs of {protocol.data} "
                f"({protocol.split}), got {len(images)} inputs of {images.name}"
            )
    rows = images.choose(count, stratified=True, generator=shard_generator(source, 0, "inputs"))
    if protocol is not None:
        digest = sha256(images.read(rows))
        if digest != protocol.sha256:
            raise ConfigError(
                f"the protocol {protocol.name} is about other inputs than these of {images.name} "
                f"({images.split}): give the {protocol.split} images of {protocol.data}"
            )
        rows = rows[: plan.inputs]
    everything = images.read(torch.arange(0, len(images), max(1, len(images) // _RULE_MOST)))
    chosen_rows = set(rows.tolist())
    others = [i for i in range(len(images)) if i not in chosen_rows][: max(plan.probes, 1)]
    unseen = images.read(torch.tensor(others)) if others else everything[:0]
    return Inputs(
        x=images.read(rows),
        y=images.y[rows],
        numbers=tuple(rows.tolist()),
        unseen=unseen,
        constant=everything.double().mean(0, keepdim=True).to(everything),
    )


def rank(protocol: Protocol, score: float, name: str) -> tuple[int | None, int | None]:
    """Place of a model among the protocol's references, 1 the best, and how many are ranked.

    A reference of the same name is the model itself and is not counted twice.

    Examples:
        >>> from robustvae.audit import read_protocol
        >>> from robustvae.audit.protocol import rank
        >>> rank(read_protocol("digits-l2-v1"), 0.5, "mine")
        (3, 4)
    """
    others = [reference for reference in protocol.references if reference.name != name]
    if not others:
        return None, None
    return 1 + sum(reference.score > score for reference in others), len(others) + 1


def sha256(x: Tensor) -> str:
    """SHA-256 of inputs, so that no others pass for these."""
    return hashlib.sha256(_bytes(x)).hexdigest()


def _bytes(x: Tensor) -> bytes:
    content: bytes = x.detach().cpu().float().contiguous().numpy().tobytes()
    return content


def read_profile(name: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a profile: a protocol, a plan, measures and checks beside the plan's own, a use.

    Args:
        name: A profile's name, alone or with fields of its use as in "anomaly:fpr=0.01"; a YAML
            file; or a mapping.

    Raises:
        UnknownNameError: Neither a known name nor a file, or an unknown key.
    """
    content: Any = name
    if isinstance(name, str | Path):
        profiles = registry.names("profile")
        head, colon, _ = str(name).partition(":")
        if colon and head in profiles:
            fields = registry.parse(str(name))
            content = read_profile(fields.pop("name"))
            return {**content, "use": {**_as_spec(content.get("use")), **fields}}
        path = Path(registry.lookup("profile", str(name))) if str(name) in profiles else Path(name)
        if not is_file(path):
            raise unknown("profile", str(name), [*profiles, "FILE.yaml"])
        content = read_yaml(path, "profile")
    keys = ("about", "protocol", "plan", "measures", "checks", "use")
    for key in content:
        if key not in keys:
            raise unknown("key of a profile", key, keys)
    return dict(content)


def _as_spec(use: Any) -> dict[str, Any]:
    """The spec of a profile's use as a mapping."""
    if use is None:
        raise ConfigError("this profile has no use, whose fields could be said: name it alone")
    return dict(registry.parse(use)) if isinstance(use, str) else dict(use)


def with_profile(plan: Any, profile: Mapping[str, Any]) -> Plan:
    """The plan that is given, or else the profile's, with the profile's measures and checks."""
    base = read_plan(profile.get("plan", "quick") if plan is None else plan)
    extra = {key: (*getattr(base, key), *profile.get(key, ())) for key in ("measures", "checks")}
    return read_plan({**base.model_dump(exclude_unset=True), **extra})
