"""Simulate a campaign of many workers with given task times: where does the driver saturate?

A discrete simulation: tasks of two stages for each range of inputs (attacks, then measures), and
workers that die at a rate. One driver spends time on each part (read, check, hash, write) and on
each task that it hands out. Times come from a measured audit or from the options.

    python scripts/simulate_campaign.py --attacks 40 --measures 60 --driver 0.02 --mtbf 86400
"""

from __future__ import annotations

import argparse
import heapq
import random


def simulate(
    workers: int, ranges: int, seconds: tuple[float, float], driver: float, mtbf: float, seed: int
) -> tuple[float, float, int]:
    """Seconds that the campaign takes, share of them the driver is busy, and lost tasks."""
    source = random.Random(seed)
    events: list[tuple[float, int, int, int, bool]] = []
    ready = [(number, 0) for number in range(ranges)][::-1]
    idle, free_at, busy, lost, done, counter, now = workers, 0.0, 0.0, 0, 0, 0, 0.0
    while done < 2 * ranges:
        while ready and idle:
            number, stage = ready.pop()
            idle -= 1
            free_at = max(free_at, now) + driver / 2  # handing out
            busy += driver / 2
            length = seconds[stage] * source.lognormvariate(0.0, 0.2)
            death = source.expovariate(1 / mtbf)
            counter += 1
            end = free_at + min(length, death)
            heapq.heappush(events, (end, counter, number, stage, death < length))
        now, _, number, stage, has_died = heapq.heappop(events)
        idle += 1
        if has_died:
            lost += 1
            ready.append((number, stage))
            continue
        free_at = max(free_at, now) + driver / 2  # taking the part in
        busy += driver / 2
        now = max(now, free_at - driver / 2)
        done += 1
        if stage == 0:
            ready.append((number, 1))
    total = max(now, free_at)
    return total, busy / total, lost


def main() -> None:
    """Print a table over numbers of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attacks", type=float, default=40.0, help="seconds of a range's attacks")
    parser.add_argument("--measures", type=float, default=60.0, help="and of its measures")
    parser.add_argument("--driver", type=float, default=0.02, help="driver seconds for a task")
    parser.add_argument("--mtbf", type=float, default=86400.0, help="seconds between two deaths")
    parser.add_argument("--ranges", type=int, default=0, help="of inputs; 0: ten a worker")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    seconds = (options.attacks, options.measures)
    print("| workers | tasks | hours | efficiency | driver busy | tasks lost |")
    print("|---:|---:|---:|---:|---:|---:|")
    for workers in (1, 2, 10, 100, 1000, 2000, 5000, 10_000):
        ranges = options.ranges or 10 * workers
        total, busy, lost = simulate(
            workers, ranges, seconds, options.driver, options.mtbf, options.seed
        )
        work = ranges * sum(seconds)
        print(
            f"| {workers:,} | {2 * ranges:,} | {total / 3600:.2f} | {work / total / workers:.3f} | "
            f"{busy:.3f} | {lost} |"
        )


if __name__ == "__main__":
    main()
