"""Models of the Hub: fetched within a size limit, or taken from the cache without a network."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from robustvae.errors import CheckpointError, MissingExtraError, install_command
from robustvae.models import factories

HUB_BYTES = 2**32  # of weights fetched from the Hub without asking
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")
_YES = {"1", "ON", "YES", "TRUE"}  # as the Hub's client reads its switches


def is_hub_id(text: str) -> bool:
    """Whether a model's name has the form "owner/name".

    Examples:
        >>> from robustvae.models.hub import is_hub_id
        >>> is_hub_id("owner/name"), is_hub_id("../name"), is_hub_id("a/b/c")
        (True, False, False)
    """
    parts = text.split("/")
    return len(parts) == 2 and all(
        part
        and part[0].isalnum()
        and part.replace("-", "").replace("_", "").replace(".", "").isalnum()
        for part in parts
    )


def hub_folder(identifier: str, revision: str | None = None) -> Path:
    """The folder with a model of the Hub: from the local cache, or fetched within a size limit.

    A commit in the cache is never asked for again, so that a pinned model loads without a network
    and without the extra `hub`. A branch or tag is asked for, except where HF_HUB_OFFLINE is set:
    then the cache's own is taken.

    Args:
        identifier: "owner/name".
        revision: Commit, tag or branch; None for the main branch.

    Raises:
        CheckpointError: A bad revision, more than the limit, or what the Hub's client raised.
        MissingExtraError: It is not in the cache, and the extra `hub` is not installed.
    """
    if revision is not None and not _REVISION.fullmatch(revision):
        raise CheckpointError(
            f"revision must be a commit, tag or branch of {identifier!r}, got {revision!r}"
        )
    snapshot = cached(identifier, revision)
    is_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in _YES
    is_pinned = revision is not None and _COMMIT.fullmatch(revision) is not None
    if snapshot is not None and (is_offline or is_pinned):
        return snapshot
    if is_offline:
        raise CheckpointError(
            f"{identifier!r} at {revision or 'main'} is not in the cache {cache_folder()}, and "
            "HF_HUB_OFFLINE is set: fetch it once with a network"
        )
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise MissingExtraError(
            f"there is no folder {identifier!r}; to fetch it from the Hub: {install_command('hub')}"
        ) from None
    try:
        size = _size(HfApi().model_info(identifier, revision=revision, files_metadata=True))
        if size > HUB_BYTES:
            raise CheckpointError(
                f"{identifier!r} holds {size / 2**30:.1f} GB of weights, more than "
                f"{HUB_BYTES / 2**30:g} GB: fetch it yourself and give its folder"
            )
        return Path(
            snapshot_download(identifier, revision=revision, allow_patterns=factories.PATTERNS)
        )
    except CheckpointError:
        raise
    except Exception as error:  # the Hub's client raises many kinds, from network to permission
        line = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{identifier!r} could not be fetched from the Hub: {line}") from None


def cache_folder() -> Path:
    """Where the Hub's client keeps what it fetched."""
    place = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if place:
        return Path(place).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def cached(identifier: str, revision: str | None = None) -> Path | None:
    """The cached snapshot of a model that holds a configuration and weights; None without one.

    Args:
        identifier: "owner/name".
        revision: Commit, tag or branch; None for the main branch.
    """
    top = cache_folder() / f"models--{identifier.replace('/', '--')}"
    commit = revision or "main"
    if not _COMMIT.fullmatch(commit):
        try:
            commit = (top / "refs" / commit).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
        if not _COMMIT.fullmatch(commit):
            return None
    snapshot = top / "snapshots" / commit
    # a download that was stopped leaves a snapshot with some of its files
    names = {name for name in factories.PATTERNS if (snapshot / name).is_file()}
    is_whole = any(name.endswith(".json") for name in names) and any(
        not name.endswith(".json") for name in names
    )
    return snapshot if is_whole else None


def _size(facts: Any) -> int:
    """Bytes of what would be fetched."""
    return sum(
        one.size or 0
        for one in facts.siblings or []
        if any(Path(one.rfilename).match(pattern) for pattern in factories.PATTERNS)
    )
