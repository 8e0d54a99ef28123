"""500 attacks in one batch against the same attack point by point: one thread, interleaved.

    python benchmarks/bench_attacks.py [--model FOLDER] [--rounds 3] [--points 50]

The slow side is a plain loop over the images and restarts with the model's weights frozen. Its
time is measured on some of the points each round and scaled to all of them. The floor is the
encoder's forward and backward pass to the input at batch 100, weights frozen, channels last.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import torch

import robustvae as rv
from robustvae.attacks import Attack, LatentShift
from robustvae.data import load
from robustvae.defenses import Victim
from robustvae.metrics import symmetric_kl
from robustvae.models.base import frozen
from robustvae.models.layout import channels_last
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.seeding import rand

RESULTS = Path(__file__).parent / "results" / "attacks.json"
STEPS, RESTARTS = 50, 10


def floor(vae: rv.VAE, x: torch.Tensor) -> float:
    """Seconds of one forward and backward pass to the input, per 100 rows."""
    rows = x.repeat(2, 1, 1, 1)[:100]
    with frozen(vae), channels_last(vae):
        began = time.perf_counter()
        for _ in range(10):
            y = rows.clone().requires_grad_()
            q = vae.encode(y)
            torch.autograd.grad((q.mean + q.stddev).sum(), y)
        return (time.perf_counter() - began) / 10 * 100 / len(rows)


def plain(vae: rv.VAE, x: torch.Tensor, start: float, generator: torch.Generator) -> float:
    """The best score of one image and one restart, as one would write the attack down.

    The same attack as the batched one: sign steps that shrink to 0, the best iterate kept, a start
    within the share `start` of the ball; but no layout and no bookkeeping.
    """
    with frozen(vae):
        with torch.no_grad():
            clean = vae.encode(x)
        noise = 2 * rand(*x.shape, like=x, generator=generator) - 1
        y, best = (x + 0.1 * start * noise).clamp(0, 1), -torch.inf
        for count in range(STEPS + 1):
            y = y.detach().requires_grad_()
            q = vae.encode(y)
            score = symmetric_kl(q.mean, q.stddev, clean.mean, clean.stddev).sum()
            best = max(best, score.item())
            if count < STEPS:
                (slope,) = torch.autograd.grad(score, y)
                with torch.no_grad():
                    moved = y + 0.1 * (1 - count / STEPS) * slope.sign()
                    y = moved.clamp(x - 0.1, x + 0.1).clamp(0, 1)
        return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--slow-points", type=int, default=4, help="timed point by point a round")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vae = rv.models.create("vae", architecture="conv28", latent=64)
    if given.model:
        vae = rv.load(given.model)
    images = load("mnist", split="test")
    x, _ = images.sample(given.points, stratified=True, generator=rv.generator(0))
    victim, ball = Victim(vae), Ball("linf", 0.1)
    together = Attack(LatentShift(), ProjectedAscent(steps=STEPS, restarts=RESTARTS), ball)
    starts = torch.logspace(-2, 0, RESTARTS).tolist()

    fast, slow, floors, best = [], [], [], {}
    for turn in range(given.rounds):
        floors.append(floor(vae, x) * STEPS * RESTARTS * given.points / 100)
        began = time.perf_counter()
        found = together(victim, x, generator=rv.generator(turn))
        fast.append(time.perf_counter() - began)
        picked = [(turn * given.slow_points + i) % given.points for i in range(given.slow_points)]
        began = time.perf_counter()
        for i in picked:
            g = rv.generator(1000 + i)
            best[i] = max(plain(vae, x[i : i + 1], start, g) for start in starts)
        slow.append((time.perf_counter() - began) * given.points / given.slow_points)
    memory = []
    for turn in range(20):
        search = ProjectedAscent(steps=5, restarts=RESTARTS)
        Attack(LatentShift(), search, ball)(victim, x, generator=rv.generator(turn))
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    chosen = sorted(best)
    mean_fast = float(found.score[chosen].mean())
    mean_slow = statistics.fmean(best[i] for i in chosen)
    record = {
        "what": f"PGD-{STEPS} x {RESTARTS} restarts, {given.points} MNIST images, conv28, "
        "LatentShift symmetric KL, linf 0.1, one thread",
        "weights": "trained" if given.model else "random",
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "batched_s": statistics.median(fast),
        "point_by_point_s": statistics.median(slow),
        "slow_points_timed_a_round": given.slow_points,
        "ratio": statistics.median(s / f for s, f in zip(slow, fast, strict=True)),
        "floor_s": statistics.median(floors),
        "batched_over_floor": statistics.median(f / b for f, b in zip(fast, floors, strict=True)),
        "mean_score_batched": mean_fast,
        "mean_score_point_by_point": mean_slow,
        "points_compared": len(chosen),
        "peak_rss_mib_first_and_last_of_20_calls": [memory[0], memory[-1]],
        "rounds": {"batched": fast, "point_by_point": slow, "floor": floors},
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
