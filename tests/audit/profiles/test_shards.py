"""A profile's measurements in ranges: the same numbers, gone on with, and within the minutes."""

from __future__ import annotations

import time

import pytest
import torch

import robustvae as rv
from robustvae import errors
from robustvae.audit import Run
from robustvae.audit.profiles.anomaly import Anomaly
from robustvae.audit.profiles.base import UseContext
from robustvae.audit.profiles.pace import UseClock
from robustvae.audit.profiles.shards import ShardJob, Shards

SEARCH = "projected-ascent:steps=6,restarts=1"
FAST = {"inputs": 6, "draws": 200, "votes": 3, "reference": 20, "gradient_free": 5}


class Bowl(torch.nn.Module):
    """Keeps the first value, counts its calls, and stops at one of them."""

    def __init__(self, pause=0.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.calls, self.last, self.pause = 0, None, pause

    def encode(self, x):
        self.calls += 1
        if self.calls == self.last:
            raise KeyboardInterrupt
        time.sleep(self.pause * len(x))
        return self.weight * x[:, :1]

    def decode(self, z):
        return torch.cat([z, torch.full((len(z), 3), 0.5)], dim=1)


def images():
    x = torch.full((60, 1, 1, 4), 0.5)
    x[:, 0, 0, 0] = torch.linspace(0.2, 0.8, 60)
    x[:40, 0, 0, 1] += 0.1
    x[40:, 0, 0, 1] += 0.4
    return rv.data.joined({"normal": x[:40], "crack": x[40:]})


def victims(module):
    vae = rv.wrap(module, image_shape=(4,))
    return {"plain": rv.Victim(vae), "noisy": rv.Victim(vae, "input-noise:stddev=0.1")}


def used(shards, module=None, **options):
    use = Anomaly(
        balls=(rv.Ball("l2", 0.05), rv.Ball("linf", 0.1)),
        search=SEARCH,
        **{**FAST, **options},
    )
    return use(UseContext(victims(module or Bowl()), images(), shards=shards))


def columns(result):
    return [
        [row.get(key) for key in ("victim", "input", "condition", "attack")] for row in result.rows
    ], [row[key] for row in result.rows for key in ("score", "lower", "upper") if key in row]


def test_ranges_change_no_number():
    """One range of all inputs is the slow definition."""
    whole, cut = (columns(used(Shards(size=size))) for size in (100, 3))
    assert whole[0] == cut[0]
    assert cut[1] == pytest.approx(whole[1], rel=1e-5)


def test_killed_run_goes_on(tmp_path):
    whole = Bowl()
    reference = columns(used(Shards(size=4), whole))
    module = Bowl()
    module.last = whole.calls * 3 // 4
    notices: list[str] = []
    run = Run(keep=tmp_path, notice=notices.append)
    with pytest.raises(KeyboardInterrupt):
        used(Shards(run, "key", size=4), module)
    again = Bowl()
    assert columns(used(Shards(run, "key", size=4), again)) == reference
    assert again.calls < whole.calls / 2 and len(notices) == 1
    # of another key, other weights or another seed nothing is taken
    other = Bowl()
    with torch.no_grad():
        other.weight.mul_(0.5)
    used(Shards(run, "key", size=4), other)
    assert other.calls > again.calls * 2


def test_damaged_part_is_computed_again(tmp_path):
    run = Run(keep=tmp_path, notice=lambda words: None)
    reference = columns(used(Shards(run, "key", size=4)))
    path = sorted(tmp_path.glob("*.part.json"))[0]
    path.write_text(path.read_text()[:-20])
    shards = Shards(run, "key", size=4)
    assert columns(used(shards)) == reference and shards.damaged == [path.name]


def test_input_that_fails_costs_no_other():
    class Fragile(Bowl):
        def encode(self, x):
            if x.requires_grad and bool((x[:, 0] > 0.795).any()):
                raise RuntimeError("too bright")
            return super().encode(x)

    result = used(Shards(size=4), Fragile(), inputs=20)
    assert any("too bright" in one.reason for one in result.left_out)
    scores = [
        row["score"]
        for row in result.rows
        if (row["victim"], row["side"], row["condition"]) == ("plain", "anomalous", "attacked")
    ]
    assert sum(score < 0.395 for score in scores if score is not None) >= 0.9 * len(scores)


def test_range_of_one_bad_input():
    """A range of one input has no other to try; the first range may not fail as a whole."""

    def compute(part):
        if bad & set(range(part.start, part.stop)):
            raise ValueError("not this one")
        return {"value": torch.arange(part.start, part.stop)}, []

    def blank(part):
        return {"value": torch.full((part.stop - part.start,), -1)}

    bad = {4, 5}
    for count, size in ((5, 2), (5, 1), (6, 2)):
        values, notes = Shards(Run(), size=size).measured("x", count, compute, blank)
        assert values["value"].tolist() == [0, 1, 2, 3, -1, -1][:count]
        assert set(notes) == {"ValueError: not this one"}
    bad = {0}
    with pytest.raises(ValueError, match="not this one"):
        Shards(Run(), size=1).measured("x", 3, compute, blank)


def test_time_is_shared_by_all_stages():
    """No stage takes another's share, and what is not spent is left for those that follow."""
    clock = UseClock(time.monotonic() + 40, {}, seconds=4)
    assert [round(clock.room(1)) for _ in range(4)] == [10, 13, 20, 40]
    assert UseClock().room(5) == float("inf")


class Slowing(Bowl):
    """Three times slower than it was when it was measured."""

    def encode(self, x):
        self.pause = 1e-4 if self.calls < 150 else 3e-4
        return super().encode(x)


@pytest.mark.slow  # it reads the clock
def test_minutes_hold_for_slow_machine():
    profile = {"use": {"name": "anomaly", "search": SEARCH, **FAST, "inputs": 20, "draws": 2000}}
    plan, minutes = {"base": "smoke", "inputs": 2}, 0.07
    begin = time.monotonic()
    record = rv.audit(
        victims=victims(Slowing()),
        images=images(),
        plan=plan,
        profile=profile,
        minutes=minutes,
        question={"r": 0.1},
    )
    assert time.monotonic() - begin <= 1.2 * 60 * minutes
    # what there was no time for is said, and both sides have their answer
    assert any("want of time" in one.reason for one in record.left_out)
    attacked = {row["side"] for row in record.use.rows if row["condition"] == "attacked"}
    assert attacked == {"normal", "anomalous"}


def test_failure_of_all_is_told():
    class Broken(Bowl):
        def encode(self, x):
            if x.requires_grad:
                raise errors.UnsupportedError("no gradient here")
            return super().encode(x)

    result = used(Shards(size=4), Broken(), gradient_free=0)
    assert any("no gradient here" in one.reason for one in result.left_out)


@pytest.mark.parametrize(
    "values",
    [5, {}, {"s": 5}, {"s": {"shape": []}}, {"s": {"shape": [2], "dtype": "float32", "bytes": ""}}],
    ids=str,
)
def test_odd_parts_are_computed_again(values):
    job = ShardJob("key", "label", [slice(0, 2)], lambda part: ({}, []))
    (task,) = job.tasks()
    assert not job.is_valid(task, {"values": values, "notes": []})
