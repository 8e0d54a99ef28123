"""All of a training run that a kill must not lose, and the folder it is kept in."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import safetensors
import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor

from robustvae.errors import CheckpointError, ConfigError
from robustvae.models import VAE, checkpoint
from robustvae.models.registry import saved_name
from robustvae.records import SAVE_EVERY, Lock, check_space, write_bytes
from robustvae.training.adam import optimizer_of

STATE = "state.safetensors"


@final
@dataclass
class Progress:
    """Where a run stands, apart from its tensors.

    Attributes:
        epoch: Whole epochs done.
        step: Optimization steps done.
        factor: Of the learning rate, halved on every plateau.
        best: Lowest loss at the end of an epoch.
        best_epoch: When it was reached.
        calm: Epochs since then, or since the learning rate was halved.
        seconds: Time spent in epochs.
    """

    epoch: int = 0
    step: int = 0
    factor: float = 1.0
    best: float = math.inf
    best_epoch: int = 0
    calm: int = 0
    seconds: float = 0.0

    def end_epoch(self, loss: float, plateau: int | None) -> None:
        """Count an epoch that ended with `loss`."""
        self.epoch += 1
        self.calm += 1
        if loss < self.best:
            self.best, self.best_epoch, self.calm = loss, self.epoch, 0
        elif plateau is not None and self.calm >= plateau:
            self.factor, self.calm = self.factor / 2, 0

    def given_up(self, patience: int | None) -> bool:
        """Whether the loss has not fallen for `patience` epochs."""
        return patience is not None and self.epoch - self.best_epoch >= patience


@final
@dataclass
class Place:
    """Where an epoch stands that is not over.

    Attributes:
        order: The numbers of its images in the order in which they are seen, on the CPU.
        count: How many steps are done.
        sums: Of the objective's terms.
        largest: The greatest gradient norm.
    """

    order: Tensor
    count: int
    sums: dict[str, Tensor]
    largest: float


@final
class Run:
    """A model in training with its optimizer, and the folder both are kept in.

    Args:
        vae: The model.
        generator: The one source of randomness.
        settings: What a run in the folder must agree on to be gone on with; JSON values.
        out: The folder, or None to keep nothing.
    """

    def __init__(
        self, vae: VAE, generator: torch.Generator, settings: dict[str, Any], out: Path | None
    ) -> None:
        self.vae = vae
        self.generator = generator
        self.settings = settings
        self.out = out
        self.progress = Progress()
        self.place: Place | None = None
        self.saved_at = time.monotonic()
        self.best: dict[str, Tensor] = {}
        self.card: dict[str, Any] = {}
        self.parameters = [p for p in vae.parameters() if p.requires_grad]
        if not self.parameters:
            raise ConfigError("a model needs weights to be trained, got none")
        self.optimizer = optimizer_of(vae)

    @contextlib.contextmanager
    def folder_taken(self) -> Iterator[None]:
        """Within: no other process trains into the folder, which has room for the files.

        Raises:
            StorageError: Another process does, or the disk is too full.
        """
        if self.out is None:
            yield
            return
        with Lock(self.out):
            size = sum(p.numel() * p.element_size() for p in self.vae.state_dict().values())
            # weights, state with two moments and the best weights; each is written beside the old
            check_space(self.out, 2 * 5 * size + 2**20)
            yield

    def keep_best(self) -> None:
        """Remember the weights as the best so far."""
        self.best = _copies(self.vae.state_dict())

    def finish(self) -> None:
        """Put the best weights into the model, where some were remembered, and into the folder."""
        if self.best:
            self.vae.load_state_dict(self.best)
        self._save_checkpoint()

    def save(self, card: dict[str, Any]) -> None:
        """Write the checkpoint, if the last epoch is what a caller would get, and the state."""
        self.place = None
        if not self.best or self.progress.best_epoch == self.progress.epoch:
            self.card = card
            self._save_checkpoint()
        self._save_state()

    def save_within(self, place: Place) -> None:
        """Write the state of an unfinished epoch, where the last save is some time ago."""
        if self.out is not None and time.monotonic() - self.saved_at >= SAVE_EVERY:
            self.place = place
            self._save_state()

    def _save_state(self) -> None:
        if self.out is None:
            return
        self.saved_at = time.monotonic()
        tensors = {f"weights/{name}": t for name, t in self.vae.state_dict().items()}
        tensors |= {f"best/{name}": t for name, t in self.best.items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{number}/{name}": t for name, t in moments.items()}
        tensors["generator"] = self.generator.get_state()
        within = None
        if self.place is not None:
            place = self.place
            tensors["epoch/order"] = place.order
            tensors |= {f"epoch/sum/{name}": total for name, total in place.sums.items()}
            # names in their order, which the log keeps
            within = {
                "count": place.count,
                "largest": place.largest,
                "terms": list(place.sums),
                "model": getattr(self.vae, "training_state", {}),
            }
        metadata = {
            "within": json.dumps(within),
            "progress": json.dumps(asdict(self.progress)),
            "settings": _json(self.settings),
            "card": json.dumps(self.card),
        }
        write_bytes(self.out / STATE, dump_tensors(_copies(tensors), metadata))

    def restore(self) -> None:
        """Go on from the state in the folder, if there is one.

        Raises:
            ConfigError: The run there has other settings.
            CheckpointError: The state is damaged, or of another model.
        """
        if self.out is None or not (self.out / STATE).exists():
            return
        path = self.out / STATE
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            settings = json.loads(metadata["settings"])
            progress = Progress(**json.loads(metadata["progress"]))
            self.card = json.loads(metadata["card"])
            within = json.loads(metadata.get("within", "null"))
            if within is not None:
                sums = {name: tensors[f"epoch/sum/{name}"] for name in within["terms"]}
                order = tensors["epoch/order"]
                self.place = Place(order, within["count"], sums, within["largest"])
        except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read as the state of a run: {_line(error)}; "
                "give resume=False to start anew"
            ) from None
        self._check_same(settings)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below("adam/", tensors).items():
            number, _, moment = name.partition("/")
            moments.setdefault(int(number), {})[moment] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        try:
            self.vae.load_state_dict(_below("weights/", tensors))
            self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{path} must be the state of this model: {_line(error)}; name another folder"
            ) from None
        if any(moment["exp_avg"].shape != p.shape for p, moment in self.optimizer.state.items()):
            raise CheckpointError(f"{path} is of another optimizer: start anew in another folder")
        if within is not None and within["model"]:
            self.vae.training_state = within["model"]
        self.generator.set_state(tensors["generator"])
        self.best = _below("best/", tensors)
        self.progress = progress

    def _save_checkpoint(self) -> None:
        if self.out is not None and saved_name(self.vae) is not None:
            checkpoint.save(self.vae, self.out, card=self.card)

    def _check_same(self, settings: dict[str, Any]) -> None:
        for name, value in json.loads(_json(self.settings)).items():
            there = settings.get(name, value)  # an option younger than the run
            if there != value:
                raise ConfigError(
                    f"{self.out} holds another run: {name} is {there!r} there and {value!r} here; "
                    "choose another folder, or resume=False to start anew"
                )


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
