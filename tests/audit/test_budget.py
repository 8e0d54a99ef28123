"""Minutes, memory and threads of an audit: what is cut, what is required, what is left out."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
import torch

import robustvae as rv
from robustvae.audit import Run, read_plan
from robustvae.audit.auditor import Auditor
from robustvae.audit.budget import (
    REQUIRED,
    Clock,
    Costs,
    search_seconds,
    stage_seconds,
)
from robustvae.audit.fitting import fit_to_minutes, reduced
from robustvae.audit.job import AuditJob, open_bundle
from robustvae.audit.protocol import choose, settle
from robustvae.audit.tasks import Memory, torch_threads
from robustvae.audit.threads import fastest_threads, fitting_threads, use_threads
from robustvae.audit.unit_cost import UnitCost
from robustvae.errors import RobustVAEError, UnsupportedError
from robustvae.perturb import SquareSearch
from robustvae.perturb.deadline import until


@pytest.fixture(scope="module")
def images():
    return rv.data.load("digits", split="test")


@pytest.fixture
def costs(images):
    result = Costs({"one": rv.Victim(rv.load("digits-vae"))}, images)
    result.units = {"one": UnitCost(0.1, 0.3, 1e8)}
    result.resident = 1e9
    return result


def test_cost_grows_with_the_plan(costs):
    small, large = read_plan("quick"), read_plan("thorough")
    assert 0 < costs.seconds(small) < costs.seconds(large)
    assert 1e9 < costs.memory(small) <= costs.memory(large)
    words = costs.words(small)
    assert "40 inputs" in words and "GB of memory" in words and "about" in words


def test_still_victims_cost_one_draw(images):
    """What answers the same again is asked once: a plan's draws do not make it dearer."""
    vae, unit = rv.load("digits-vae"), UnitCost(0.1, 0.3, 1e8)
    few, many = (read_plan({"base": "quick", "draws": draws}) for draws in (200, 2000))

    def seconds(plan, defense):
        stages = stage_seconds(plan, rv.Victim(vae, defense), unit, images[:1].x, 0.3)
        return {name: stages[name] for name in ("probability", "clean-probability", "margin")}

    assert seconds(few, "posterior-mode") == seconds(many, "posterior-mode")
    for defense in ("posterior-sample", "input-noise:stddev=0.1"):
        before, after = seconds(few, defense), seconds(many, defense)
        assert all(after[name] > 2 * before[name] for name in before if name != "margin")


def test_blind_searches_cost_outputs_alone():
    """Whoever wrote them: a search says that it reads no gradients."""
    unit = UnitCost(forward=1.0, gradient=10.0, memory=0.0)
    stranger = SimpleNamespace(steps=9, reads_gradients=False)
    assert search_seconds(stranger, unit) == search_seconds(SquareSearch(steps=9), unit) == 10
    assert search_seconds(rv.ProjectedAscent(steps=9, restarts=1), unit) == 100


@pytest.mark.parametrize("minutes", [2.0, 10.0, 60.0, 300.0])
def test_plans_are_cut_to_their_minutes(costs, minutes):
    plan = read_plan("quick")
    result, words = fit_to_minutes(plan, costs, minutes)
    assert words.startswith(f"cut to {minutes:g} minutes")
    search = result.attacks[0].build().search
    assert search.steps >= 20 and result.smoothing >= 200 and result.products >= 12
    # what is not required is left out on the way where it does not fit
    assert costs.required(result) <= 60 * minutes
    steps = search.steps * search.restarts
    whole = plan.attacks[0].build().search
    if steps == whole.steps * whole.restarts:  # fewer inputs were enough
        assert result.inputs < plan.inputs and "steps" not in words
    else:
        assert f"{steps} of {whole.steps * whole.restarts} steps of the first attack" in words
    again, nothing = fit_to_minutes(result, costs, 1e6)
    assert again == result and nothing == ""


def test_reduced_attacks_keep_their_names():
    """A stored plan is read anew to verify an audit: its attacks are those of the rows."""
    for share in (0.9, 0.3, 0.05):
        plan = reduced(read_plan("quick"), share)
        again = type(plan).model_validate_json(plan.model_dump_json())
        assert [one.id for one in plan.attacks] == [one.id for one in again.attacks]


def test_reduced_plan_keeps_what_is_required():
    plan = read_plan("quick")
    least = reduced(plan, 1e-6)
    assert (least.attacks[0].build().search.steps, least.attacks[0].build().search.restarts) == (
        20,
        1,
    )
    assert len(least.attacks) == 1 and least.margins is None and least.longer == 1
    assert reduced(plan, 1.0).attacks[0].build() == plan.attacks[0].build()


def test_clock_leaves_required_stages_their_time(costs, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plan = read_plan({"base": "smoke", "inputs": 4, "probes": 0})
    clock = Clock(1.0, costs, plan)
    clock.start_part("one", 4, "measures")
    clock.expected = {"certificate": 20.0, "geometry": 5.0, "margin": 40.0, "survival": 10.0}
    clock.ahead = ["certificate", "geometry"]
    clock.required = {("one", name): clock.expected[name] for name in clock.ahead}
    with pytest.raises(UnsupportedError, match="it takes about 40 s"), clock.stage("margin"):
        raise AssertionError
    with clock.stage("survival"):
        now[0] += 20.0  # twice as slow as measured
    assert clock.pace == pytest.approx(1.5)
    with clock.stage("certificate"):  # required, and there is time for it alone
        now[0] += 30.0
    with pytest.raises(UnsupportedError, match="give more minutes"), clock.stage("survival"):
        raise AssertionError
    names = [name for name, _ in clock.ordered([("margin", 0), ("geometry", 0), ("damage", 0)])]
    assert names == ["damage", "geometry", "margin"]


def test_some_certificates_are_better_than_none(costs, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plan = read_plan({"base": "smoke", "inputs": 4, "probes": 0})
    clock = Clock(1.0, costs, plan)
    clock.start_part("one", 4, "measures")
    clock.expected, clock.required = {"certificate": 400.0}, {}

    def certify(rows):
        now[0] += 15.0 * len(rows)
        return list(rows)

    with clock.stage("certificate"):
        paced = clock.paced("certificate", 4, certify)
        with pytest.raises(UnsupportedError, match="it takes about 7 min"):
            paced((0, 1, 2, 3))
        with pytest.raises(UnsupportedError, match="it takes about 2 min"):
            paced((0,))  # nothing is known yet of a certificate's time but what was foretold
    clock.expected = {"certificate": 200.0}
    with clock.stage("certificate"):
        paced, done = clock.paced("certificate", 4, certify), []
        for row in range(4):
            try:
                done += paced((row,))
            except UnsupportedError as error:
                assert "it takes about 15 s" in str(error)
    assert done == [0, 1, 2, 3][: len(done)] and 3 <= len(done) <= 4


def test_first_attacks_go_before_certificates(costs, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    vae = costs.named["one"].vae
    costs.named["noise"] = rv.Victim(vae, rv.InputNoise(stddev=0.1))
    costs.units["noise"] = costs.units["one"]
    plan = reduced(read_plan({"base": "quick", "inputs": 4}), 1e-6)
    attack, told = plan.attacks[0].build(), []
    needed = 4 * 21 * 0.3  # seconds of 20 steps and a last look, of one victim
    assert costs.stages(plan, "one")["geometry"] > 0 == costs.stages(plan, "noise")["geometry"]

    def steps(seconds):
        """Steps of the first attack of the first of two victims."""
        now[0], clock = 0.0, Clock(seconds / 60, costs, plan)
        clock.start_part("one", 4, "attacks")
        with clock.attack(("one", "first"), attack, 4, told.append) as shorter:
            return shorter.search.steps, clock

    first, clock = steps(2 * needed + 60)  # nothing is left for 200 draws of each input
    assert first == 20 and not told
    now[0] = needed
    clock.start_part("noise", 4, "measures")
    with clock.stage("certificate"):
        paced = clock.paced("certificate", 4, list)
        with pytest.raises(UnsupportedError, match="it takes about"):
            paced((0, 1, 2, 3))
    first, _ = steps(needed)  # half of the time for each victim
    assert 5 <= first <= 10 and "for want of time" in told[0]


def test_clock_without_minutes_refuses_nothing():
    clock = Clock()
    clock.start_part("one", 4, "measures")
    with clock.stage("margin"):
        pass
    assert clock.ordered([("margin", 0), ("damage", 0)]) == [("margin", 0), ("damage", 0)]
    assert set(REQUIRED) >= {"damage", "certificate", "geometry"}


def test_slow_machines_keep_the_first_attack(images):
    plan = {"base": "smoke", "inputs": 4}
    record = rv.audit(rv.load("digits-vae"), images, plan, question={"r": 0.9}, minutes=0.01)
    reasons = [entry.reason for entry in record.left_out]
    assert any("no time for it" in reason for reason in reasons)
    assert {row["role"] for row in record.rows} >= {"plan"}
    assert record.rows


def test_named_plans_shrink_to_small_sets(images):
    record = rv.audit(rv.load("digits-vae"), images[:1], "smoke", question={"r": 0.9})
    assert record.plan["inputs"] == 1
    assert any("has 1 inputs" in entry.reason for entry in record.left_out)


def test_cost_is_told_beforehand(images):
    words = []
    run = Run(announce=words.append)
    rv.audit(rv.load("digits-vae"), images, {"base": "smoke", "inputs": 3}, run=run)
    assert len(words) == 1 and "3 inputs" in words[0] and "GB of memory" in words[0]


def test_threads_are_given_back(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with fitting_threads() as threads:
        assert 1 <= threads == torch.get_num_threads() <= before
    assert torch.get_num_threads() == before
    assert 1 <= fastest_threads() <= before
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with fitting_threads() as threads:
        assert threads == before


def test_searches_stop_at_their_deadline(images):
    victim, x = rv.Victim(rv.load("digits-vae")), images[:3].x
    attack = rv.Attack(
        rv.MaximumDamage(), rv.ProjectedAscent(steps=40, restarts=2), rv.Ball("l2", 0.5)
    )
    with until(time.monotonic()) as deadline:
        short = attack(victim, x, generator=rv.generator(0))
    whole = attack(victim, x, generator=rv.generator(0))
    assert deadline.fewest == 3
    assert short.queries.tolist() == [2 * 4] * 3 and whole.queries.tolist() == [2 * 41] * 3
    assert bool((short.score <= whole.score).all()) and bool((short.score > 0).all())


def test_several_draws_take_their_time(costs):
    plan = read_plan("quick")
    noisy = rv.Victim(rv.load("digits-vae"), rv.InputNoise(stddev=0.1))
    plain = costs.seconds(plan)
    costs.named["one"] = noisy
    assert costs.seconds(plan) > 2 * plain
    few = reduced(plan, 0.01)
    assert few.attacks[0].build().goal.draws == 1
    assert reduced(plan, 0.5).attacks[0].goal == plan.attacks[0].goal


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan"), float("inf")])
def test_minutes_that_are_none_refused(minutes):
    images = rv.data.load("digits", split="test")
    with pytest.raises(RobustVAEError, match="minutes"):
        rv.audit(rv.load("digits-vae"), images, "smoke", minutes=minutes)


def test_stopped_audit_keeps_its_threads(tmp_path, monkeypatch):
    """By the load it might have others, and then no part would be its own."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def head(threads):
        return {"environment": {"threads": str(threads), "device": "cpu"}, "seed": 0}

    with torch_threads(2):
        use_threads(head(2), Run(keep=tmp_path))
    with torch_threads(1):
        second = head(1)
        use_threads(second, Run(keep=tmp_path))
        assert torch.get_num_threads() == 2 and second == head(2)
    with torch_threads(1):
        anew, other = head(1), {**head(1), "seed": 1}
        use_threads(other, Run(keep=tmp_path))
        use_threads(anew, Run(keep=tmp_path, resume=False))
        assert (anew, other["environment"]["threads"]) == (head(1), "1")


def test_worker_clock_ends_with_the_driver(costs):
    """A worker knows the end and the costs, and expects its share of the work."""
    plan = read_plan({"base": "smoke", "inputs": 4, "probes": 0})
    clock = Clock(2.0, costs, plan, 30.0, workers=2)
    facts = json.loads(json.dumps(clock.facts()))
    again = Clock.restored(costs.named, costs.x, plan, facts)
    assert again.end == pytest.approx(clock.end, abs=0.5)
    assert again.costs.units == costs.units
    whole = Clock(2.0, costs, plan)
    assert again.remaining == clock.remaining == pytest.approx(whole.remaining / 2)
    assert again.reserve() == clock.reserve() == pytest.approx(whole.reserve() / 2)
    assert Clock().facts() is None


def test_late_worker_does_required_stages(images, tmp_path):
    """A worker opened from its bundle leaves out what is optional, and says why."""
    named = {"victim": rv.Victim(rv.load("digits-vae"))}
    plan, question = settle(read_plan({"base": "quick", "inputs": 2, "r": 0.9}), None, {}, images)
    inputs = choose(images, plan, None, 0)
    auditor = Auditor(named, inputs, plan, question, 0)
    auditor.clock = Clock(1.0, Costs(named, images), plan, spent=60.0, workers=2)
    job = AuditJob(auditor, {})
    for name, content in job.bundle().files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    worker = open_bundle(tmp_path)
    assert worker.auditor.clock.limited
    attacks, *_, measures = (task for task in job.tasks() if task.fields["stage"] != "checks")
    part = worker.compute(attacks, {}, Memory(), print)
    assert part["attacks"][0]["id"] == auditor.facts_of("victim", auditor.jobs("victim")[0])["id"]
    # what is begun ends at its deadline, what is not is left out: either is said
    assert "for want of time" in str(part["left_out"]) or "no time for it" in str(part["left_out"])
    rows = worker.compute(measures, {attacks.key: part}, Memory(), print)["rows"]
    assert all(row["damage"] is not None and row["margin_upper_box"] is None for row in rows)
