"""Models that a study trains itself, each in its own folder, and what several of them come to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustvae import models
from robustvae.data import Images
from robustvae.metrics import mean_stderr
from robustvae.models import VAE
from robustvae.objectives.base import Objective
from robustvae.seeding import shard_generator
from robustvae.training import fit
from robustvae.training.loop import LOG


def trained(
    folder: Path,
    model: dict[str, Any],
    objective: Objective,
    images: Images,
    *,
    epochs: int,
    seed: int,
    **settings: Any,
) -> VAE:
    """A model trained by `fit` in `folder`; run again, it goes on there, or is done at once.

    Args:
        folder: Of the run.
        model: Arguments of `models.create`.
        objective: What is minimized.
        images: To train on.
        epochs: Passes over them.
        seed: Of the first weights and of everything random after.
        settings: Of `fit`.

    Raises:
        ConfigError: The folder holds a run of other settings.
    """
    return fit(
        models.create(seed=seed, **model),
        objective,
        images,
        epochs=epochs,
        generator=shard_generator(seed, 0, "training"),
        validation=None,
        out=folder,
        progress=False,
        **settings,
    )


def balanced(images: Images, n: int, purpose: str) -> Images:
    """`n` of the images, class by class, the same for every run."""
    return images[images.choose(n, stratified=True, generator=shard_generator(0, 0, purpose))]


def losses(folder: Path) -> list[float]:
    """The mean loss of each epoch of a run."""
    lines = (folder / LOG).read_text("utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def across_runs(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half a 95 % interval, by Student's t: the training runs are the sample.

    Args:
        values: One number a run, at least 2 for a finite interval.

    Examples:
        >>> from robustvae.studies.runs import across_runs
        >>> mean, half = across_runs([1.0, 2.0, 3.0])
        >>> mean, round(half, 3)
        (2.0, 2.484)
    """
    from scipy.stats import t

    mean, stderr = mean_stderr(values)
    return mean, float(t.ppf(0.975, max(len(values) - 1, 1))) * stderr
