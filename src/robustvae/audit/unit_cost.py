"""What one row costs a victim: its output, its gradient and its memory, measured."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from robustvae.attacks import Attack, MaximumDamage
from robustvae.data import Images
from robustvae.defenses import Victim
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.seeding import generator

_SAMPLE = 4  # inputs of the measurement
_FURTHER = 4  # more steps, and times as many rows, that tell what one of them takes
_ROWS, _LOOK = 64, 0.6  # rows of it at the most, and seconds that they may take one by one
_SLOW = 0.05  # seconds a row from which one row is sample enough
_TIMES, _LONG = 2, 3.0  # measurements of a slow row, and seconds beyond which one is enough


@final
@dataclass(frozen=True)
class UnitCost:
    """What one row costs a victim.

    Attributes:
        forward: Seconds of an output.
        gradient: Seconds of an output with its gradient, by one draw where the victim is random.
        memory: Bytes that its graph keeps.
    """

    forward: float
    gradient: float
    memory: float


def unit_cost(victim: Victim, images: Images) -> UnitCost:
    """Seconds and memory of a row, from a few outputs and gradients.

    Args:
        victim: What is measured.
        images: Where the inputs are taken from.
    """
    x = images.read(torch.arange(min(_SAMPLE, len(images))))
    x = x.to(device=victim.vae.device, dtype=victim.vae.dtype)

    spent = {"wall": 0.0, "processor": 0.0}
    # a short call on a busy machine waits for its turn many times as long as it takes, or not at
    # all: its own time is measured, and what waiting adds over all calls together
    reads_processor = torch.device(victim.vae.device).type == "cpu"

    def seconds(call: Any, times: int = 1) -> float:
        least = math.inf
        for _ in range(times):
            begin = time.monotonic(), time.process_time()
            # a stranger's model may raise anything: the stage that meets it says so
            with contextlib.suppress(Exception):
                call()
            wall, processor = time.monotonic() - begin[0], time.process_time() - begin[1]
            spent["wall"] += wall
            spent["processor"] += processor
            least = min(least, processor if reads_processor else wall)
            if wall > _LONG:
                break
        return least

    def attack(rows: Tensor, steps: int) -> None:
        search = ProjectedAscent(steps=steps, restarts=1)
        Attack(MaximumDamage(draws=1), search, Ball("l2", 0.5))(
            victim, rows, generator=generator(0)
        )

    seconds(lambda: victim.reconstruct(x[:1], generator=generator(0)))  # the first one warms up
    forward = seconds(lambda: victim.reconstruct(x[:1], generator=generator(0)), _TIMES)
    sizes: dict[tuple[int, int], int] = {}

    def note(tensor: Tensor) -> Tensor:
        sizes[(tensor.data_ptr(), tensor.numel())] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        first = seconds(lambda: attack(x[:1], 1), 1 if forward <= _SLOW else _TIMES)
    if forward > _SLOW:
        # two outputs that the goal and the score want, and one more of the last step
        gradient = max(first - 3 * forward, forward)
    else:
        # as many rows as an audit's batches have, and only what a further step adds: what a call
        # and an attack cost by themselves is shared by many
        rows = int(min(_ROWS, max(_SAMPLE, _LOOK / max(first, 1e-6))))
        times = _TIMES if rows == _ROWS else 1
        many = x[:1].expand(rows, *x.shape[1:]).contiguous()
        short = seconds(lambda: attack(many, 1), times)
        long = seconds(lambda: attack(many, 1 + _FURTHER), times)
        gradient = max(long - short, 0.0) / (_FURTHER * rows)
        more = many.repeat(_FURTHER, *(1,) * (many.ndim - 1))
        few, most = (
            seconds(lambda: victim.reconstruct(y, generator=generator(0)), times)  # noqa: B023
            for y in (many, more)
        )
        forward = max(most - few, 0.1 * most) / (len(more) - rows)
        gradient = max(gradient, forward)
    waiting = spent["wall"] / max(spent["processor"], 1e-9) if reads_processor else 1.0
    return UnitCost(waiting * forward, waiting * gradient, float(sum(sizes.values())))
