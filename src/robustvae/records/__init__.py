"""Results as typed, frozen values, to and from JSON, and files written whole.

Nothing here imports torch: whatever reads a record needs none. `Record` and its parts are loaded
when they are first asked for, since their library takes a while to start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustvae.records.estimate import Estimate
from robustvae.records.files import (
    check_file,
    check_folder,
    check_owned,
    check_space,
    file_sha256,
    finish_switch,
    read_manifest,
    write_bytes,
    write_files,
    write_set,
    write_text,
)
from robustvae.records.locks import Lock
from robustvae.records.pieces import failure, failure_of, failures_of, pieces, reason_of
from robustvae.records.ranges import Failure, in_ranges
from robustvae.records.states import SAVE_EVERY, SavedState, saving
from robustvae.records.store import Store, forget_parts
from robustvae.records.values import plain

if TYPE_CHECKING:
    from robustvae.records.audit import Record
    from robustvae.records.judging import Case, Check, Outcome
    from robustvae.records.parts import (
        CheckResult,
        Column,
        DataFacts,
        ModelFacts,
        QuestionFacts,
        SummaryEntry,
        UseFacts,
        Verdict,
        VictimFacts,
    )

__all__ = [
    "Case",
    "Check",
    "check_file",
    "check_folder",
    "check_owned",
    "check_space",
    "CheckResult",
    "Column",
    "DataFacts",
    "Estimate",
    "Failure",
    "failure",
    "failure_of",
    "failures_of",
    "file_sha256",
    "finish_switch",
    "forget_parts",
    "in_ranges",
    "Lock",
    "ModelFacts",
    "Outcome",
    "pieces",
    "plain",
    "QuestionFacts",
    "read_manifest",
    "reason_of",
    "Record",
    "SAVE_EVERY",
    "SavedState",
    "saving",
    "Store",
    "SummaryEntry",
    "UseFacts",
    "Verdict",
    "VictimFacts",
    "write_bytes",
    "write_files",
    "write_set",
    "write_text",
]


_HOMES = {"Case": "judging", "Check": "judging", "Outcome": "judging", "Record": "audit"}


def __getattr__(name: str) -> Any:
    """The parts of a record, loaded when first asked for."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "parts")
    return getattr(importlib.import_module(f"robustvae.records.{home}"), name)
