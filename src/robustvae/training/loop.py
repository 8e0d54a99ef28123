"""`fit`: one plain loop, which can be killed at any time and then goes on to the same weights."""

from __future__ import annotations

import hashlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from robustvae.arguments import checked
from robustvae.data import Images
from robustvae.data.images import permutation
from robustvae.data.verbs import reads_inputs
from robustvae.display import Lines
from robustvae.errors import (
    ConfigError,
    DtypeError,
    MissingExtraError,
    RangeError,
    ShapeError,
    TrainingError,
    check_choice,
    check_count,
    check_positive,
    check_type,
    install_command,
)
from robustvae.loggers import Logger
from robustvae.models import VAE
from robustvae.models.base import move
from robustvae.models.layout import is_ours, lay_weights
from robustvae.objectives import Objective
from robustvae.registry import build
from robustvae.training.log import TrainingLog
from robustvae.training.run import Place, Progress, Run

LOG = "log.jsonl"

Precision = Literal["32-true", "bf16-mixed"]
Schedule = float | Sequence[Sequence[float]]
Forward = Callable[[Objective, Tensor], dict[str, Tensor]]
Update = Callable[[int, Tensor], None]


@reads_inputs("images", whole=True)
@checked()
def fit(
    vae: VAE,
    objective: Objective | str | Mapping[str, Any],
    images: Images,
    *,
    epochs: int,
    generator: torch.Generator,
    batch_size: int = 128,
    lr: Schedule = 1e-3,
    validation: float | Images | None = 0.1,
    patience: int | None = None,
    plateau: int | None = None,
    clip: float | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    progress: bool | None = None,
    logger: Logger | str | Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    precision: Precision | None = None,
) -> VAE:
    """Train a model with Adam, in place.

    With `out`, every epoch ends with a checkpoint there (`rv.load(out)` reads it), a line in
    `log.jsonl`, and the state from which a killed run goes on, which a long epoch also saves every
    two minutes; on a CPU it then reaches bit for bit the weights of a run that was never killed. A
    wrapped model gets the state only.

    Args:
        vae: Any model with weights; left in evaluation mode.
        objective: The loss of each image, such as `ELBO(beta=2.0)`, or its spec, "elbo:beta=2".
        images: What to train on. What is in memory is converted to the model's type and moved to
            the device once; what is read as it is asked for is never held at once.
        epochs: Passes over the images, counted from the start of the run and not of this call.
        generator: Decides validation split, shuffling and draws.
        batch_size: Images in a step; the last step of an epoch may have fewer.
        lr: Learning rate, or pairs (epoch, rate): each rate holds from its epoch on, from 0.
        validation: Share of `images` to hold out, strictly between 0 and 1, or other images, or
            None. Their loss is the objective's without warm-up.
        patience: Stop after so many epochs without a lower validation loss, and return the
            weights of the best epoch.
        plateau: Halve the learning rate after so many epochs without a lower loss, of the
            validation images if there are any.
        clip: Scale gradients down to this norm wherever they exceed it.
        out: Folder of the run; None keeps nothing.
        resume: Go on from the state in `out` if there is one; otherwise start anew.
        progress: Show a bar; None shows it on a terminal, and elsewhere a line now and then.
        logger: Where the numbers of every epoch go, besides the file: a logger of
            `robustvae.loggers`, or its spec, such as "tensorboard".
        device: Where to train, such as "cuda"; None stays where the model is.
        precision: "32-true" or "bf16-mixed", by lightning-fabric; None is the model's own.

    Returns:
        `vae`, trained.

    Raises:
        TrainingError: A loss or gradient became a NaN or an infinity. The model keeps the weights
            from before that step, and `out` those of the last whole epoch.
        ConfigError: Settings that do not go together, or not with the run in `out`; a device
            that is not there.
        CheckpointError: The state in `out` is damaged or of another model, or its
            `log.jsonl` cannot be read.
        MissingExtraError: A `precision` that needs lightning-fabric.
        RangeError: A setting out of range.
        ShapeError: Images that the model does not read.
        StorageError: The disk cannot be written.

    References:
        Kingma & Ba, 2015, Algorithm 1.

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.models.create("vae", architecture="conv8", latent=2)
        >>> few = rv.data.load("digits")[:64]
        >>> vae = rv.fit(vae, rv.objectives.ELBO(), few, epochs=1, generator=rv.generator(0))
        >>> vae.training
        False
    """
    rates = _rates(lr)
    check_type(vae, "vae", VAE)
    target: Objective = build("objective", objective)
    tracker: Logger | None = None if logger is None else build("logger", logger)
    check_type(images, "images", Images)
    check_type(generator, "generator", torch.Generator)
    check_count(epochs, "epochs", least=0)
    check_count(batch_size, "batch_size")
    for name, value in (("patience", patience), ("plateau", plateau)):
        if value is not None:
            check_count(value, name)
    if patience is not None and validation is None:
        raise ConfigError("patience needs validation images, got validation=None")
    if clip is not None:
        check_positive(clip, "clip")
    settings = {
        "model": type(vae).__name__,
        **{f"{key} of the model": value for key, value in vae.config.items()},
        "objective": type(target).__name__,
        **{
            f"{key} of the objective": value
            for key, value in getattr(target, "__dict__", {}).items()
        },
        "images": f"{images.name} {images.split} {images.shape}",
        "validation": str(validation),
        "generator": hashlib.sha256(generator.get_state().numpy().tobytes()).hexdigest()[:12],
        "batch_size": batch_size,
        "lr": rates,
        "patience": patience,
        "plateau": plateau,
        "clip": clip,
        "precision": precision,
    }
    held_out: Images | None = None
    if isinstance(validation, Images):
        held_out = validation
    elif validation is not None:
        images, held_out = images.divide(validation, generator=generator)
    forward, backward = _engine(vae, generator, device, precision)
    batches = _Batches.of(vae, images)
    batches_held_out = None if held_out is None else _Batches.of(vae, held_out)
    if len(images) % batch_size == 1 and _normalizes_batches(vae):
        raise ConfigError(
            f"the last step of an epoch would see one image of {len(images)}, of which batch norm "
            f"can tell no spread: choose another batch_size than {batch_size}"
        )
    run = Run(vae, generator, settings, None if out is None else Path(out))
    with run.folder_taken():
        if resume:
            run.restore()
        position = run.progress
        if position.epoch > epochs:
            raise ConfigError(
                f"epochs must be at least the {position.epoch} that {out} holds, got {epochs}"
            )
        log = None if run.out is None else TrainingLog(run.out / LOG, keep=position.epoch)
        if position.epoch == 0:
            run.save(_card(images, position, {}))
        loop = _Loop(run, target, forward, backward, batch_size, clip)
        if is_ours(vae):  # a stranger's code may count on the memory layout of its weights
            lay_weights(vae, torch.channels_last)
        try:
            with _bar(
                progress, epochs * math.ceil(len(images) / batch_size), position.step
            ) as update:
                while position.epoch < epochs and not position.given_up(patience):
                    start = time.perf_counter()
                    rate = _rate_at(rates, position.epoch) * position.factor
                    values = loop.train(batches.at(position.epoch), rate, update)
                    loss = values["loss"]
                    if batches_held_out is not None:
                        loss = values["validation_loss"] = loop.evaluate(batches_held_out)
                    position.end_epoch(loss, plateau)
                    if patience is not None and position.best_epoch == position.epoch:
                        run.keep_best()
                    seconds = time.perf_counter() - start
                    position.seconds += seconds
                    numbers = values | {"lr": rate, "seconds": seconds}
                    if tracker is not None:
                        tracker.log(numbers, step=position.epoch)
                    if log is not None:
                        log.log(numbers, step=position.epoch)
                    run.save(_card(images, position, values))
        finally:
            lay_weights(vae, torch.contiguous_format)
            vae.eval()
        run.finish()
    return vae


@dataclass(frozen=True)
class _Batches:
    """Images as the model takes them; those in memory lie on its device from the start."""

    vae: VAE
    images: Images
    held: Tensor | None

    @classmethod
    def of(cls, vae: VAE, images: Images) -> _Batches:
        if images.image_shape != tuple(vae.image_shape):
            raise ShapeError(
                f"images must be {tuple(vae.image_shape)} for this model, "
                f"got {images.name} with {images.image_shape}"
            )
        holding = images.x.to(vae.device, vae.dtype) if images.in_memory else None
        return cls(vae, images, holding)

    @property
    def device(self) -> torch.device:
        """Where the numbers of rows are wanted."""
        return torch.device("cpu") if self.held is None else self.held.device

    def at(self, epoch: int) -> _Batches:
        return replace(self, images=self.images.at(epoch))

    def read(self, rows: Tensor) -> Tensor:
        if self.held is not None:
            return self.held[rows]
        return self.images.read(rows).to(self.vae.device, self.vae.dtype)


@dataclass(frozen=True)
class _Loop:
    """What an epoch is made of."""

    run: Run
    objective: Objective
    forward: Forward
    backward: Callable[[Tensor], Any]
    batch_size: int
    clip: float | None

    def train(self, batches: _Batches, rate: float, update: Update) -> dict[str, float]:
        """One pass in a new order; returns the means of the objective's terms."""
        vae, optimizer, position = self.run.vae, self.run.optimizer, self.run.progress
        vae.train()
        for group in optimizer.param_groups:
            group["lr"] = rate
        place, self.run.place = self.run.place, None
        if place is None:
            place = Place(permutation(len(batches.images), self.run.generator), 0, {}, 0.0)
        sums = {name: total.to(vae.device) for name, total in place.sums.items()}
        order = place.order.to(batches.device)
        for rows in order.split(self.batch_size)[place.count :]:
            terms = self.forward(self.objective.at(position.step), batches.read(rows))
            loss = terms["loss"].mean()
            optimizer.zero_grad()
            self.backward(loss)
            norm = nn.utils.get_total_norm(
                [p.grad for p in self.run.parameters if p.grad is not None]
            )
            self._check_finite(loss=loss.detach(), gradient_norm=norm)
            if self.clip is not None:
                nn.utils.clip_grads_with_norm_(self.run.parameters, self.clip, norm)
            optimizer.step()
            vae.after_step()
            position.step += 1
            place.largest = max(place.largest, float(norm))
            for name, values in terms.items():
                sums[name] = values.detach().sum() + sums.get(name, 0)
            update(position.epoch, loss.detach())
            place.count, place.sums = place.count + 1, sums
            self.run.save_within(place)
        vae.finalize()
        means = {name: float(total) / len(order) for name, total in sums.items()}
        return means | {"gradient_norm": place.largest}

    def evaluate(self, batches: _Batches) -> float:
        """The mean loss, in evaluation mode."""
        self.run.vae.eval()
        with torch.no_grad():
            parts = [
                self.forward(self.objective, batches.read(rows))["loss"]
                for rows in torch.arange(len(batches.images), device=batches.device).split(
                    self.batch_size
                )
            ]
        loss = torch.cat(parts).mean()
        self._check_finite(validation_loss=loss)
        return float(loss)

    def _check_finite(self, **values: Tensor) -> None:
        if all(value.isfinite() for value in values.values()):
            return
        terms = ", ".join(f"{name} {float(value):g}" for name, value in values.items())
        position, out = self.run.progress, self.run.out
        remedy = "" if out is None else f"; the weights after epoch {position.epoch} are in {out}"
        raise TrainingError(
            f"training stopped in epoch {position.epoch + 1}, step {position.step + 1}: "
            f"{terms}{remedy}"
        )


def _engine(
    vae: VAE,
    generator: torch.Generator,
    device: str | torch.device | None,
    precision: Precision | None,
) -> tuple[Forward, Callable[[Tensor], Any]]:
    """Move the model; the forward pass, and the backward pass that belongs to it."""
    if precision is not None:
        check_choice("precision", precision, get_args(Precision))
    where = move(vae, device or vae.device).device

    def terms(objective: Objective, x: Tensor) -> dict[str, Tensor]:
        return objective.terms(vae, x, generator=generator)

    if precision in (None, "32-true") and where.type == "cpu":
        return terms, Tensor.backward
    try:
        from lightning_fabric import Fabric
    except ImportError:
        if precision in (None, "32-true"):
            return terms, Tensor.backward
        raise MissingExtraError(
            f"precision {precision!r} needs lightning-fabric: {install_command('train')}"
        ) from None
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    devices = 1 if where.type == "cpu" else [where.index or 0]
    fabric = Fabric(accelerator=where.type, devices=devices, precision=precision or "32-true")

    def autocast_terms(objective: Objective, x: Tensor) -> dict[str, Tensor]:
        with fabric.autocast():
            losses = terms(objective, x)
        return {name: values.to(vae.dtype) for name, values in losses.items()}

    return autocast_terms, fabric.backward


def _normalizes_batches(vae: VAE) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in vae.modules())


def _card(images: Images, done: Progress, values: dict[str, float]) -> dict[str, Any]:
    return {
        "data": images.name,
        "epochs": done.epoch,
        "seconds": round(done.seconds, 1),
        "metrics": {name: value for name, value in values.items() if name.endswith("loss")},
    }


def _rates(lr: Schedule) -> list[list[float]]:
    """Pairs [epoch, rate], checked; a single rate holds from epoch 0."""
    if isinstance(lr, int | float):
        lr = [(0, lr)]
    try:
        rates = [[epoch, rate] for epoch, rate in lr]
    except (TypeError, ValueError):
        raise DtypeError(f"lr must be a number or pairs (epoch, rate), got {lr!r}") from None
    for epoch, rate in rates:
        check_count(epoch, "each epoch in lr", least=0)
        check_positive(rate, "each rate in lr")
    epochs = [epoch for epoch, _ in rates]
    if epochs[:1] != [0] or epochs != sorted(set(epochs)):
        raise RangeError(f"epochs in lr must rise from 0, got {epochs}")
    return rates


def _rate_at(rates: list[list[float]], epoch: int) -> float:
    return [rate for start, rate in rates if start <= epoch][-1]


@contextmanager
def _bar(shown: bool | None, total: int, completed: int) -> Iterator[Update]:
    """A bar on standard error, or lines of a log, and what to call at every step."""
    if shown is False:
        yield lambda epoch, loss: None
        return
    if shown is None and not sys.stderr.isatty():
        lines, step = Lines(task="training"), completed
        lines(step, total, "")  # steps of an earlier run say nothing of this one's pace

        def tell(epoch: int, loss: Tensor) -> None:
            nonlocal step
            step += 1
            lines(step, total, f"epoch {epoch + 1}, loss {float(loss):.2f}")

        yield tell
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=total, completed=completed)
        yield lambda epoch, loss: bar.update(
            task, advance=1, description=f"epoch {epoch + 1}, loss {float(loss):.2f}"
        )
