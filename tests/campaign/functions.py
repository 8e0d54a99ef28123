"""What the tests of campaigns call in other processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def square(x: float) -> float:
    return x * x


def number_of_process(i: int) -> int:
    time.sleep(0.01)
    return os.getpid()


def fail_on(x: int, bad: int) -> int:
    if x == bad:
        raise ValueError(f"{x} is bad\n\x1b[31m")
    return x


def die_once(folder: str, x: int) -> int:
    """Kill its process, the first time."""
    mark = Path(folder) / f"{x}"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def die_always(x: int) -> int:
    if x == 1:
        os._exit(7)
    return x


def speak(x: int) -> int:
    print("from a model", x)
    return x
