"""Models from a user's own file, and from folders that diffusers or pythae wrote."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robustvae.errors import (
    CheckpointError,
    MissingExtraError,
    ModelError,
    RobustVAEError,
    install_command,
)
from robustvae.models.adapters import WrappedVAE, wrap
from robustvae.models.base import VAE
from robustvae.records.text import read_json, read_text
from robustvae.registry import check_code

FACTORY = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")
DIFFUSERS, PYTHAE = "config.json", "model_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
PYTHAE_WEIGHTS = "model.pt"
PATTERNS = ["config.json", "model.safetensors", WEIGHTS, PYTHAE, PYTHAE_WEIGHTS]
"""What is fetched from the Hub: configurations, and weights that are read without unpickling."""

STATES = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put the state of their model."""


def is_factory(text: str) -> bool:
    """Whether a model's name is a function in a file.

    Examples:
        >>> from robustvae.models.factories import is_factory
        >>> is_factory("my_model.py:build"), is_factory("digits-vae")
        (True, False)
    """
    return FACTORY.fullmatch(text) is not None


def load_factory(text: str, weights: str | Path | None = None, **options: Any) -> VAE:
    """The wrapped result of a function in a user's file, in evaluation mode.

    The file is run because it was named; modules beside it can be imported by it.

    Args:
        text: "FILE.py:FACTORY", a function that takes nothing and returns a module or a `VAE`.
        weights: State for it, see `read_state`.
        options: Of `wrap`.

    Raises:
        CheckpointError: No such file or function, or weights that do not fit.
        ModelError: The function or the file raised, or it returned no model.
        ConfigError: The name comes from a file: see `robustvae.registry.outside_names`.
    """
    check_code(text)
    match = FACTORY.fullmatch(text)
    assert match is not None
    path, name = Path(match["file"]).expanduser(), match["name"]
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}: give FILE.py:FACTORY")
    try:
        with _importable(path.parent):
            space = _run(path)
            build = getattr(space, name, None)
            if not callable(build):
                names = [key for key, value in vars(space).items() if callable(value)]
                raise CheckpointError(
                    f"{path} has no function {name}: it has {', '.join(names[:8]) or 'none'}"
                )
            model = build()
    except RobustVAEError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's file raises
        line = " ".join(str(error).split())[:200]
        raise ModelError(f"{text} raised {type(error).__name__}: {line}") from error
    if model is None:
        raise ModelError(f"{text} returned None: end it with return model")
    if weights is not None:
        _load_state(model, weights)
    if isinstance(model, nn.Module):
        model.eval()
    vae = wrap(model, **options)
    return vae.eval()


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Within: modules of a folder can be imported by those beside them."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)


def _run(path: Path) -> Any:
    name = f"robustvae_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CheckpointError(f"{path} cannot be imported: give a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def read_state(path: str | Path) -> dict[str, Tensor]:
    """A state dict from safetensors, or from a file of torch of which only tensors are read.

    Raises:
        CheckpointError: Missing, damaged, or holding anything else than tensors.

    Examples:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> from robustvae.models.factories import read_state
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"weight": torch.ones(2)}, f"{folder}/w.safetensors")
        ...     read_state(f"{folder}/w.safetensors")
        {'weight': tensor([1., 1.])}
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"there is no file {path}: give weights of safetensors or a .pt state dict"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers raise many kinds, on damage and on code in a pickle
        line = " ".join(str(error).split())[:160]
        advice = "save it as safetensors, or with torch.save(model.state_dict())"
        if isinstance(error, safetensors.SafetensorError):
            advice = "it may be truncated"
        raise CheckpointError(f"{path} cannot be read: {line}; {advice}") from None
    while isinstance(content, dict):
        inner = next((content[key] for key in STATES if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no state dict: save model.state_dict()")
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if len(state) != len(content):
        raise CheckpointError(f"{path} holds more than tensors: save model.state_dict()")
    return state


def _load_state(model: Any, weights: str | Path) -> None:
    """Put weights into a module, by their names or by their names less a common prefix."""
    state = read_state(weights)
    target = model
    if isinstance(model, WrappedVAE) and len(model._owners) == 1:
        target = model._owners[0]
    if not isinstance(target, nn.Module):
        raise CheckpointError(f"weights need a module, got {type(model).__name__} from the factory")
    targets = set(target.state_dict())
    prefixes = {key.split(".")[0] + "." for key in state}
    if not targets & set(state) and len(prefixes) == 1:
        prefix = prefixes.pop()  # as DataParallel, compile and Lightning put before every name
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    try:
        target.load_state_dict(state)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:240]
        raise CheckpointError(f"{weights} must fit {type(target).__name__}: {line}") from None


def is_foreign_folder(folder: Path) -> bool:
    """Whether diffusers or pythae wrote a folder."""
    return (folder / PYTHAE).is_file() or "_class_name" in _config(folder / DIFFUSERS)


def load_foreign(folder: Path, **options: Any) -> VAE:
    """The wrapped model of a folder that diffusers or pythae wrote, in evaluation mode.

    Args:
        folder: With the configuration and the weights; nothing is unpickled.
        options: Of `wrap`.

    Raises:
        MissingExtraError: The package is not installed.
        CheckpointError: A class or file that is not known.
    """
    if (folder / PYTHAE).is_file():
        return wrap(_pythae(folder).eval(), **options).eval()
    name = str(_config(folder / DIFFUSERS)["_class_name"])
    package = _package("diffusers")
    kind = getattr(package, name, None)
    if kind is None or not name.startswith(("Autoencoder", "VQModel", "AsymmetricAutoencoder")):
        raise CheckpointError(f"{folder} must hold an autoencoder of diffusers, got a {name}")
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS}: save it with safe_serialization=True")
    model = kind.from_pretrained(folder, use_safetensors=True)
    return wrap(model.eval(), **options).eval()


def _pythae(folder: Path) -> nn.Module:
    config = _config(folder / PYTHAE)
    name = str(config.pop("name", "")).removesuffix("Config").removesuffix("_")
    if any(folder.glob("*.pkl")):
        raise CheckpointError(
            f"{folder} has networks of its own as pickles, which are not read: build the model in "
            "a file and give FILE.py:FACTORY with weights="
        )
    models = _package("pythae", "pythae.models")
    kind = getattr(models, name, None)
    if kind is None:
        raise CheckpointError(f"{folder} must hold a model of pythae, got {name!r}")
    home = importlib.import_module(kind.__module__.rpartition(".")[0])
    settings = getattr(home, f"{name}Config", None) or getattr(home, f"{name}_Config")
    if isinstance(config.get("input_dim"), list):
        config["input_dim"] = tuple(config["input_dim"])
    model: nn.Module = kind(settings(**config))
    _load_state(model, folder / PYTHAE_WEIGHTS)
    return model


def _package(extra: str, name: str | None = None) -> Any:
    try:
        return importlib.import_module(name or extra)
    except ImportError:
        raise MissingExtraError(
            f"this model needs {extra}, which is not installed: {install_command(extra)}"
        ) from None


def _config(path: Path) -> dict[str, Any]:
    try:
        content = read_json(read_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
