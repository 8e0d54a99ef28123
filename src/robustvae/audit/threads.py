"""As many threads as help: on a busy machine more of them wait for one another."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from robustvae.audit.tasks import Run
from robustvae.records import Store, plain

_ROUNDS = 3  # of each number of threads in turn, so that all of them meet the same minutes
_CALLS = 20  # small convolutions, where waiting shows: networks of this size are the usual ones


def free_cores() -> int:
    """Cores that other work leaves to this process now, at least 1.

    Examples:
        >>> from robustvae.audit.threads import free_cores
        >>> free_cores() >= 1
        True
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # not on Windows
        return cores
    # half a job is noise, such as the shell that started this one
    return max(1, cores - math.floor(load + 0.5))


def fastest_threads() -> int:
    """The number of threads by which small convolutions are fastest now: all, those free, or one.

    It takes a tenth of a second. One thread is kept unless more of them are a tenth faster.
    """
    before = torch.get_num_threads()
    choices = sorted({1, min(before, free_cores()), before})
    if len(choices) == 1:
        return before
    x, weight = torch.ones(16, 8, 28, 28), torch.ones(8, 8, 3, 3)
    seconds: dict[int, list[float]] = {threads: [] for threads in choices}
    try:
        for _ in range(_ROUNDS):
            for threads in choices:
                torch.set_num_threads(threads)
                begin = time.perf_counter()
                for _ in range(_CALLS):
                    torch.nn.functional.conv2d(x, weight, padding=1)
                seconds[threads].append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(before)
    medians = {threads: statistics.median(times) for threads, times in seconds.items()}
    best = min(medians, key=medians.__getitem__)
    return best if medians[best] < 0.9 * medians[1] else 1


def use_threads(head: dict[str, Any], run: Run) -> None:
    """Give torch the threads that a stopped audit had, so that the one that goes on is the same.

    By the load of the moment it might have others, and then not one of its parts would be its own.
    Whoever sets OMP_NUM_THREADS decides it himself.

    Args:
        head: What decides the numbers of the audit; its threads are put right.
        run: Where its parts are kept, and with them the threads.
    """
    if "OMP_NUM_THREADS" in os.environ or run.keep is None:
        return
    facts = {**head, "environment": {**head["environment"], "threads": None}}
    text = json.dumps(plain(facts), sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()
    store = Store(run.keep, key, run.resume is not False)
    threads = store.read(_PART)
    if not isinstance(threads, int) or not 1 <= threads <= _MOST:
        threads = torch.get_num_threads()
        store.keep(_PART, threads, lambda words: None)  # parts can be kept without it
    torch.set_num_threads(threads)
    head["environment"] = {**head["environment"], "threads": str(threads)}


_PART, _MOST = "threads", 1024


@contextlib.contextmanager
def fitting_threads() -> Iterator[int]:
    """Within: torch has as many threads as help on this machine now; afterwards as many as before.

    Whoever sets OMP_NUM_THREADS decides it himself.

    Examples:
        >>> import torch
        >>> from robustvae.audit.threads import fitting_threads
        >>> before = torch.get_num_threads()
        >>> with fitting_threads() as threads:
        ...     torch.get_num_threads() == threads <= before
        True
    """
    before = torch.get_num_threads()
    threads = before if "OMP_NUM_THREADS" in os.environ else fastest_threads()
    torch.set_num_threads(threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(before)
