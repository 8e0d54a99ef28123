"""Checkpoints: a folder with `config.json` and `model.safetensors`, and nothing that unpickles."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from robustvae.errors import CheckpointError, RobustVAEError, StorageError, check_choice
from robustvae.models.allowance import Allowance, allowance_of
from robustvae.models.base import VAE, check_weights
from robustvae.models.registry import create, imported_class, name_of, names
from robustvae.records import finish_switch, write_files
from robustvae.records.text import read_json, read_text

FORMAT = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
_LOADED = DTYPES | {"float16": torch.float32}
STORED = {*DTYPES.values(), torch.int64, torch.bool}


def save(
    vae: VAE, folder: str | Path, *, card: dict[str, Any] | None = None, dtype: str | None = None
) -> Path:
    """Write a checkpoint folder, both files together or none.

    Args:
        vae: A model of `create`, or of a class at the top of a module that has a `config`.
        folder: Made where it is missing.
        card: What to tell of the training: data, epochs, seed, metrics. JSON values.
        dtype: Store the weights as "float16", "float32" or "float64"; the model's own if None.
            float16 is for storage: `load` returns float32, and `config.json` has the sha256 of
            what it returns.

    Returns:
        The folder.

    Raises:
        UnknownNameError: A class that no name leads to, or a type other than these three.
        NonFiniteError: A NaN or an infinity in the weights.
        StorageError: The disk cannot be written.

    Examples:
        >>> import robustvae as rv, tempfile
        >>> from robustvae.models import checkpoint
        >>> vae = rv.models.create("vae", architecture="conv8", latent=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = checkpoint.load(checkpoint.save(vae, folder))
        >>> checkpoint.weights_sha256(again) == checkpoint.weights_sha256(vae)
        True
    """
    folder = Path(folder)
    check_place(folder)
    files = contents(vae, card=card, dtype=dtype)
    write_files({folder / name: content for name, content in files.items()})
    return folder


def check_place(folder: Path) -> None:
    """Raise where a config of somebody else's would be overwritten."""
    path = folder / CONFIG
    if not path.exists():
        return
    try:
        content = read_json(read_text(path))
        is_ours = {"format", "model", "options", "sha256"} <= set(content)
    except (OSError, ValueError, TypeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise StorageError(
            f"{path} was not written by this library and would be lost: choose another folder"
        )


def contents(
    vae: VAE, *, card: dict[str, Any] | None = None, dtype: str | None = None
) -> dict[str, bytes]:
    """The files of a checkpoint by name; arguments and errors are those of `save`."""
    name = name_of(vae)
    check_weights(vae)
    dtype_name = str(vae.dtype).removeprefix("torch.")
    check_choice("storage type", dtype or dtype_name, DTYPES)
    state = {}
    for key, tensor in vae.state_dict().items():
        copy = tensor.detach().cpu().contiguous().clone()
        state[key] = copy.to(DTYPES[dtype]) if dtype and copy.is_floating_point() else copy
    config = {
        "format": FORMAT,
        "model": name,
        "options": vae.config,
        "dtype": dtype or dtype_name,
        "sha256": _state_sha256(_loaded(state, dtype or dtype_name)),
        "card": card or {},
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    return {WEIGHTS: dump_tensors(state), CONFIG: text.encode()}


def load(folder: str | Path) -> VAE:
    """Read a checkpoint folder that `save` wrote; in evaluation mode, on the CPU.

    Raises:
        CheckpointError: Missing, truncated, altered, of a newer format, or anything but such a
            folder. Pickled files are never opened.
    """
    folder = Path(folder)
    config, allowance, state = _read(folder)
    if _state_sha256(state) != config["sha256"]:  # a writer may have switched them between
        config, allowance, state = _read(folder)
    if _state_sha256(state) != config["sha256"]:
        raise CheckpointError(
            f"{folder / WEIGHTS} must be the file whose hash {CONFIG} holds: copy both again"
        )
    try:
        with allowance:
            vae = create(config["model"], **config["options"])
        vae.to(_LOADED[config["dtype"]]).load_state_dict(state)
        check_weights(vae)
    except (RobustVAEError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder} does not hold the model it names: {_line(error)}"
        ) from None
    return vae.eval()


def _read(folder: Path) -> tuple[dict[str, Any], Allowance, dict[str, torch.Tensor]]:
    """Config, the memory that its model may take, and weights in the type they are used in."""
    config = read_config(folder)
    allowance = allowance_of(folder / WEIGHTS)  # before anything is read or made
    try:
        raw = (folder / WEIGHTS).read_bytes()
        state = load_tensors(raw)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {_line(error)}") from None
    for key, tensor in state.items():
        if tensor.dtype not in STORED:
            raise CheckpointError(
                f"{folder / WEIGHTS} must hold {key!r} as floats or integers, got {tensor.dtype}"
            )
    return config, allowance, _loaded(state, config["dtype"])


def read_config(folder: str | Path) -> dict[str, Any]:
    """The checked content of a checkpoint's `config.json`, its card included.

    Raises:
        CheckpointError: Not a checkpoint folder, or not a format this version reads.
    """
    folder = Path(folder)
    finish_switch(folder)
    if not folder.is_dir() or not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        what = "file" if folder.is_file() else "folder" if folder.is_dir() else "path"
        raise CheckpointError(
            f"a checkpoint is a folder with {CONFIG} and {WEIGHTS}, got the {what} {folder}"
            + (" (pickled files are never opened)" if what == "file" else "")
            + ("" if folder.exists() else " which does not exist")
        )
    try:
        config = read_json(read_text(folder / CONFIG))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {_line(error)}") from None
    texts = dict.fromkeys(("model", "dtype", "sha256"), str)
    for key, kind in {"format": int, "options": dict, "card": dict, **texts}.items():
        if not isinstance(config, dict) or not isinstance(config.get(key), kind):
            raise CheckpointError(
                f"{folder / CONFIG} must be a checkpoint's, got one where {key!r} is missing or bad"
            )
    if config["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} must have checkpoint format {FORMAT}, got {config['format']}: "
            "update the library"
        )
    if not _is_model(config["model"]) or config["dtype"] not in DTYPES:
        raise CheckpointError(
            f"{folder} needs the {config['dtype']} model {config['model']!r}, which is not "
            "installed: import the module of its class first, or give the class as the model and "
            "this folder as the weights, package.module:Name --weights FOLDER"
        )
    return config


def environment(vae: VAE, threads: int | None = None) -> dict[str, str]:
    """Where numbers of a model are computed, as a record says it: versions, device, threads, type.

    Args:
        vae: The model.
        threads: Of whoever computes; None for those that torch has here.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.models.checkpoint import environment
        >>> environment(rv.load("digits-vae"), threads=1)["dtype"]
        'float32'
    """
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in ("robustvae", "torch", "numpy", "scipy")},
        "device": str(vae.device),
        "threads": str(threads or torch.get_num_threads()),
        "dtype": str(vae.dtype).removeprefix("torch."),
        "machine": platform.machine(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from the sources, never installed
        return "not installed"


def weights_sha256(vae: VAE) -> str | None:
    """SHA-256 of a model's weights: names, types, shapes and bytes; None where it has none."""
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in vae.state_dict().items()}
    return _state_sha256(state) if state else None


def _loaded(state: dict[str, torch.Tensor], dtype: str) -> dict[str, torch.Tensor]:
    """Tensors stored as `dtype` in the type in which `load` returns them."""
    wide = _LOADED[dtype]
    return {key: t.to(wide) if t.is_floating_point() else t for key, t in state.items()}


def _state_sha256(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _is_model(name: str) -> bool:
    """Whether `create` knows the name; loading a file must not import what a path in it names."""
    return name in names() or imported_class(name) is not None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
