"""Where a number comes from: command, seed, date, versions, threads, device, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import robustvae

ROOT = Path(__file__).parents[2]


def provenance(command: str, seed: int) -> dict[str, Any]:
    """The facts that stand below every table.

    Args:
        command: That makes the number again.
        seed: Of everything random.
    """
    return {
        "command": command,
        "seed": seed,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": f"robustvae {robustvae.__version__}, torch {torch.__version__}, "
        f"numpy {np.__version__}, Python {platform.python_version()}",
        "device": f"cpu, {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}",
        "commit": commit(),
    }


def commit() -> str:
    """The checkout's commit, with a plus where tracked files differ from it."""

    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return run.stdout.strip() if run.returncode == 0 else ""

    name = git("rev-parse", "--short=10", "HEAD")
    changed = name and git("status", "--porcelain", "--untracked-files=no")
    return f"{name}+" if changed else name or "unknown"
