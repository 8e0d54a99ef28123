"""Models that come with the library, and the one way to load any model."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from robustvae.errors import CheckpointError, DtypeError, MissingExtraError, unknown
from robustvae.models import VAE, checkpoint

_BUNDLED = resources.files("robustvae") / "zoo_files"


def bundled() -> list[str]:
    """Names of the bundled models, sorted.

    Examples:
        >>> from robustvae import zoo
        >>> "digits-vae" in zoo.bundled()
        True
    """
    folder = Path(str(_BUNDLED))
    if not folder.is_dir():
        return []
    return sorted(part.name for part in folder.iterdir() if (part / checkpoint.CONFIG).is_file())


def card(name: str) -> dict[str, Any]:
    """The card of a bundled model: data, epochs, seed, metrics, recipe.

    Raises:
        UnknownNameError: No bundled model of that name.
    """
    if name not in bundled():
        raise unknown("model", name, bundled())
    return dict(checkpoint.read_config(Path(str(_BUNDLED)) / name)["card"])


def load(model: str | Path) -> VAE:
    """Load a model, in evaluation mode, on the CPU; never unpickles.

    Args:
        model: A bundled name, a checkpoint folder, or the id "owner/name" of a model on the Hub
            (needs the extra `hub`), looked up in this order.

    Raises:
        UnknownNameError: Neither a bundled name nor a path; the nearest name is suggested.
        CheckpointError: A path that is no checkpoint of this library.
        MissingExtraError: A Hub id without the extra.

    Examples:
        >>> import robustvae as rv
        >>> rv.load("digits-vae").image_shape
        (1, 8, 8)
    """
    if not isinstance(model, str | Path) or not str(model).strip("\0 "):
        raise DtypeError(f"wanted a model's name or its checkpoint folder, got {model!r}")
    text = str(model)
    if text in bundled():
        return checkpoint.load(Path(str(_BUNDLED)) / text)
    try:
        found = Path(text).exists()
    except (OSError, ValueError):
        raise unknown("model", text, bundled()) from None
    if found:
        return checkpoint.load(text)
    if isinstance(model, str) and _is_hub_id(text):
        return checkpoint.load(_from_hub(text))
    if isinstance(model, Path) or "/" in text or "\\" in text:
        return checkpoint.load(text)
    raise unknown("model", text, bundled())


def _is_hub_id(text: str) -> bool:
    parts = text.split("/")
    return len(parts) == 2 and all(
        part
        and part[0].isalnum()
        and part.replace("-", "").replace("_", "").replace(".", "").isalnum()
        for part in parts
    )


def _from_hub(identifier: str) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError(
            f"{identifier!r} is no folder here; to fetch it from the Hub: "
            "pip install 'robustvae[hub]'"
        ) from None
    try:
        return str(
            snapshot_download(identifier, allow_patterns=[checkpoint.CONFIG, checkpoint.WEIGHTS])
        )
    except Exception as error:  # the Hub's client raises many kinds, from network to permission
        line = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{identifier!r} could not be fetched from the Hub: {line}") from None


def trained_on(model: str | Path) -> str | None:
    """The data set that a model's card names, or None where it names none."""
    folder = Path(str(_BUNDLED)) / str(model) if str(model) in bundled() else Path(model)
    if not (folder / checkpoint.CONFIG).is_file():
        return None
    data = checkpoint.read_config(folder)["card"].get("data")
    return data if isinstance(data, str) else None
