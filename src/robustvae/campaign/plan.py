"""Models x defenses x protocols as one campaign, each audit in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from robustvae.arguments import checked
from robustvae.audit.plan import read_plan, read_yaml, text
from robustvae.audit.protocol import read_protocol
from robustvae.errors import ConfigError, RobustVAEError, unknown
from robustvae.records import Record
from robustvae.records.text import read_json, read_text
from robustvae.records.typed import Values, first_problem
from robustvae.registry import build

_STRICT = ConfigDict(extra="forbid", frozen=True)


@final
class CampaignModel(Values):
    """A model of a campaign, as `robustvae audit` takes it.

    Examples:
        >>> from robustvae.campaign.plan import CampaignModel
        >>> CampaignModel(model="mine.py:build", weights="vae.pt", name="mine").label
        'mine'
    """

    model_config = _STRICT

    model: str = Field(description="what `rv.load` takes")
    weights: str | None = Field(default=None, description="state of what FILE.py:FACTORY makes")
    pixels: str | None = Field(default=None, description="LOW,HIGH that it reads, such as -1,1")
    name: str | None = Field(default=None, description="what to call it; its file's or zoo's name")

    @property
    def label(self) -> str:
        """What it is called."""
        return self.name or self.model


@final
@dataclass(frozen=True)
class Audit:
    """One audit of a campaign.

    Attributes:
        name: Of its folder.
        model: The model.
        protocol: The protocol, or None.
    """

    name: str
    model: CampaignModel
    protocol: str | None


def _defense(spec: Any) -> Any:
    """A defense's spec as text, which names its victim."""
    try:
        build("defense", spec)
    except RobustVAEError as error:
        raise ValueError(f": {error}") from None
    return text(spec) if isinstance(spec, Mapping) else spec


@final
class CampaignPlan(Values):
    """Every model behind every defense, by every protocol.

    Examples:
        >>> from robustvae.campaign import CampaignPlan
        >>> plan = CampaignPlan(models=["a", "b"], protocols=["mnist-l2-v1"])
        >>> [audit.name for audit in plan.audits()]
        ['a', 'b']
    """

    model_config = _STRICT

    models: tuple[str | CampaignModel, ...] = Field(
        min_length=1, description="what `rv.load` takes, or a mapping with weights, pixels and name"
    )
    defenses: tuple[Annotated[str, BeforeValidator(_defense)], ...] = Field(
        default=(), description="specs of defenses, each beside the undefended model"
    )
    protocols: tuple[str, ...] = ()
    plan: Any = Field(default="quick", description="stages and effort: a name, a file or a mapping")
    data: str | None = Field(default=None, description="by default what each model was trained on")
    split: str = "test"
    seed: int = Field(default=0, ge=0, lt=2**63)
    minutes: float | None = Field(default=None, gt=0, description="budget of each audit")

    def audits(self) -> Iterator[Audit]:
        """The audits, in their order; those of several protocols are told apart by these."""
        for protocol in self.protocols or (None,):
            for entry in self.models:
                model = CampaignModel(model=entry) if isinstance(entry, str) else entry
                parts = [model.label, *([str(protocol)] if len(self.protocols) > 1 else [])]
                name = "-".join(re.sub(r"[^\w.-]+", "-", part).strip("-.") for part in parts)
                yield Audit(name, model, protocol)

    def question(self, audit: Audit) -> dict[str, Any]:
        """What decides the numbers of one of its audits, beside the weights, in JSON's own types.

        Examples:
            >>> from robustvae.campaign import CampaignPlan
            >>> campaign = CampaignPlan(models=["a"], plan="smoke", seed=3)
            >>> campaign.question(next(campaign.audits()))["seed"]
            3
        """
        return {
            **self.model_dump(mode="json", include=set(_SHARED)),
            "plan": read_plan(self.plan).model_dump(mode="json"),
            "model": audit.model.model_dump(mode="json"),
            "protocol": None
            if audit.protocol is None
            else read_protocol(audit.protocol).model_dump(mode="json"),
        }


QUESTION = "campaign.json"
"""Beside an audit of a campaign: what was asked of it."""

_SHARED = ("defenses", "data", "split", "seed", "minutes")


def is_finished(folder: Path, question: Mapping[str, Any], sha256: str | None) -> bool:
    """Whether a folder holds the audit of a question.

    Args:
        folder: Of the audit.
        question: What `CampaignPlan.question` says of it.
        sha256: Of the model's weights as they are now; None where these are not accessible.

    Raises:
        ConfigError: The folder holds another audit.
        DataError: Its record cannot be read.
    """
    path = folder / "record.json"
    if not path.is_file():
        return False
    try:
        before = read_json(read_text(folder / QUESTION))
        changes = [key for key in question if before[key] != question[key]]
    except (OSError, ValueError, KeyError, TypeError):
        changes = ["what was asked there"]
    weights = Record.from_json(read_text(path)).model.sha256
    if not changes and None not in (weights, sha256) and weights != sha256:
        changes = ["the model's weights"]
    if changes:
        raise ConfigError(
            f"{folder} holds another audit than is asked for, by {', '.join(changes)}: "
            "choose another --out, or --fresh to replace it"
        )
    return True


@checked()
def read_campaign(plan: str | Path | Mapping[str, Any] | CampaignPlan) -> CampaignPlan:
    """The campaign of a YAML file, a mapping, or itself.

    Raises:
        UnknownNameError: An unknown key; the nearest is suggested.
        ConfigError: Anything else that no campaign is, or two audits of one name; also what is
            wrong with its plan, a defense or a protocol.

    Examples:
        >>> from robustvae.campaign import read_campaign
        >>> read_campaign({"models": ["digits-vae"]}).plan
        'quick'
    """
    if isinstance(plan, CampaignPlan):
        return plan
    content = read_yaml(Path(plan), "campaign") if isinstance(plan, str | Path) else plan
    if not isinstance(content, Mapping):
        raise ConfigError(f"a campaign must be a YAML file or a mapping, got {content!r:.60}")
    for key in content:
        if key not in CampaignPlan.model_fields:
            raise unknown("key of a campaign", key, CampaignPlan.model_fields)
    for key in ("models", "defenses", "protocols"):
        if isinstance(content.get(key), str | Mapping):
            raise ConfigError(
                f"campaign.{key} must be a list, got {content[key]!r:.60}: put it in brackets"
            )
    for number, model in enumerate(content.get("models") or ()):
        for key in model if isinstance(model, Mapping) else ():
            if key not in CampaignModel.model_fields:
                raise unknown(f"key of campaign.models[{number}]", key, CampaignModel.model_fields)
        if isinstance(model, Mapping) and "model" not in model:
            raise ConfigError(f"campaign.models[{number}] has no model: say what `rv.load` takes")
    try:
        campaign = CampaignPlan.model_validate(dict(content))
    except ValidationError as error:
        raise ConfigError(first_problem(error, "campaign")) from None
    for protocol in campaign.protocols:  # what the last audit needs is told before the first one
        read_protocol(protocol)
    read_plan(campaign.plan)
    _check_once(campaign)
    return campaign


_LONGEST = (
    200  # bytes of a folder's name: file systems allow 255, of which temporary names take some
)


def _check_once(campaign: CampaignPlan) -> None:
    """Raise where a model, a defense or a protocol stands twice, or a model has no folder."""
    entries = [CampaignModel(model=m) if isinstance(m, str) else m for m in campaign.models]
    lists: dict[str, list[Any]] = {
        "models": [entry.model_copy(update={"name": None}) for entry in entries],
        "defenses": [build("defense", spec) for spec in campaign.defenses],
        "protocols": list(campaign.protocols),
    }
    for key, members in lists.items():
        for number, member in enumerate(members):
            first = members.index(member)
            if first < number:
                raise ConfigError(
                    f"campaign.{key}[{number}] is {key}[{first}] again: leave one of them out"
                )
    names: dict[str, str] = {}
    for audit in campaign.audits():
        label = audit.model.label
        if not audit.name or len(audit.name.encode()) > _LONGEST:
            raise ConfigError(
                f"campaign: {label!r:.60} gives no name for a folder, of 1 to {_LONGEST} bytes: "
                "add a name to that model"
            )
        # some file systems do not tell A from a
        other = names.get(audit.name.casefold())
        names[audit.name.casefold()] = label
        if other is not None:
            raise ConfigError(
                f"campaign: {other!r:.60} and {label!r:.60} have one folder, {audit.name!r:.60}: "
                "add a name to one of these models"
            )
