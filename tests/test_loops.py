"""Slow work goes on where it was stopped: to the last bit, and at most two minutes are repeated."""

import json
from types import SimpleNamespace

import pytest
import torch

import robustvae as rv
from robustvae import cli, zoo
from robustvae.audit import Run
from robustvae.audit.profiles.shards import Shards
from robustvae.loops import in_turn, loop, packed, unpacked
from robustvae.mcmc import BatchWide, DualAveraging, hmc
from robustvae.records import SAVE_EVERY, SavedState, Store, saving

SECONDS = 0.5  # that a row of a fake victim takes, on a clock that only it moves


class Clock:
    """Seconds that pass when a victim works, until whoever looks is killed."""

    def __init__(self):
        self.now, self.end = 0.0, float("inf")

    def monotonic(self):
        return self.now

    def work(self, seconds):
        self.now += seconds
        if self.now > self.end:
            raise KeyboardInterrupt


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("robustvae.records.states.time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def slow(vae, clock, seconds=SECONDS):
    """The model, each row of which takes its time."""
    encode, decode = vae.encode, vae.decode

    def slowly(function):
        def wrapper(x):
            clock.work(seconds * len(x))
            return function(x)

        return wrapper

    vae.encode, vae.decode = slowly(encode), slowly(decode)
    return vae


def times_of(clock, call, share):
    """Results of a run and of one that was killed, and seconds that the second one repeated."""
    whole = call("whole")
    length = clock.now
    clock.now, clock.end = 0.0, share * length
    with pytest.raises(KeyboardInterrupt):
        call("cut")
    before = clock.now
    clock.end = float("inf")
    cut = call("cut")
    return whole, cut, clock.now - length, before


@pytest.mark.parametrize(
    "search",
    [
        rv.ProjectedAscent(steps=20, restarts=3, chunk=7),
        rv.ProjectedAscent(steps=20, restarts=2, momentum=0.75, schedule="plateau"),
        rv.ProjectedAscent(steps=20, restarts=2, rule="adam"),
        rv.perturb.SquareSearch(steps=30, restarts=2),
        rv.LBFGS(steps=20, restarts=2),
        rv.perturb.CentralDifferences(steps=5, restarts=1, directions=4),
        rv.Universal(steps=5, restarts=6),
    ],
    ids=["chunks", "plateau", "adam", "square", "lbfgs", "differences", "universal"],
)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_search_goes_on_exactly(search, norm, clock, tmp_path):
    vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
    victim, x = rv.Victim(slow(vae, clock)), torch.rand(6, 1, 4, 4, generator=rv.generator(1))
    attack = rv.Attack(rv.MaximumDamage(), search, rv.Ball(norm, 0.5))

    def call(name):
        with saving(SavedState(Store(tmp_path, name), "part"), "attack"):
            result = attack(victim, x, generator=rv.generator(0))
        names = ("x_adv", "size", "score", "queries")
        return [getattr(result, name).tolist() for name in names]

    whole, cut, again, before = times_of(clock, call, 0.8)
    assert cut == whole
    assert before > 2 * SAVE_EVERY and again <= 2 * SAVE_EVERY


def test_search_over_codes_goes_on_exactly(clock, tmp_path):
    vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 8, 8))
    victim = rv.Victim(slow(vae, clock), rv.RobustPosterior("linf", 0.1, steps=3))
    x = torch.rand(4, 1, 8, 8, generator=rv.generator(1))
    search = rv.attacks.CodeSpace(steps=3, starts=6, tracked=1, unrolled=1)
    attack = rv.Attack(rv.MetricDrop(center="mean"), search, rv.Ball("linf", 0.1))

    def call(name):
        with saving(SavedState(Store(tmp_path, name), "part"), "attack"):
            return attack(victim, x, generator=rv.generator(0)).x_adv.tolist()

    whole, cut, again, before = times_of(clock, call, 0.8)
    assert cut == whole
    assert before > 2 * SAVE_EVERY and again <= 2 * SAVE_EVERY


@pytest.mark.parametrize("adaptation", [DualAveraging(), BatchWide()], ids=["dual", "batch"])
def test_chain_goes_on_exactly(adaptation, clock, tmp_path):
    def density(z):
        clock.work(SECONDS * len(z))
        return -0.5 * z.square().sum(1)

    def call(name):
        g = rv.generator(0)
        with saving(SavedState(Store(tmp_path, name), "part"), "chain"):
            chain = hmc(
                density, torch.ones(5, 2), steps=40, adaptation=adaptation, keep=True, generator=g
            )
            return chain.draws.tolist(), chain.z.tolist(), torch.rand(1, generator=g).item()

    whole, cut, again, before = times_of(clock, call, 0.8)
    assert cut == whole
    assert before > 2 * SAVE_EVERY and again <= 2 * SAVE_EVERY


def test_loops_go_on_within_loops(clock, tmp_path):
    """A chain within each round of a loop: what is saved of both belongs together."""

    def call(name):
        g, total = rv.generator(0), torch.zeros(3, 2)
        with saving(SavedState(Store(tmp_path, name), "part"), "step"), loop("outer") as place:
            if place.content is not None:
                total, state = place.content
                g.set_state(state)
            for i in range(place.begin, 3):
                place.at(i, total, g.get_state())

                def density(z):
                    clock.work(5.0)
                    return -0.5 * z.square().sum(1)

                total = total + hmc(density, total, steps=20, generator=g).z
        return total.tolist()

    for share in (0.2, 0.5, 0.9):
        clock.now, clock.end = 0.0, float("inf")
        whole, cut, again, _ = times_of(clock, lambda name: call(f"{name} {share}"), share)  # noqa: B023
        assert cut == whole and again <= 2 * SAVE_EVERY


# a row's seconds: no call of the model, and no look at it before draws, takes two minutes
ROWS = {"attack": 0.5, "certify": 0.1, "evaluate": 0.1}
WORDS = {
    "attack": [*("--inputs", "21", "--search"), "projected-ascent:steps=12,restarts=1"],
    "certify": [
        *("--inputs", "21", "--defense", "input-noise:stddev=0.1", "--displacement", "full"),
        *("--draws", "60"),
    ],
    "evaluate": ["--inputs", "130", "--draws", "7", "--part", "likelihood"],
}


@pytest.mark.parametrize("command", WORDS)
def test_command_with_slow_victim_goes_on(command, clock, tmp_path, monkeypatch, capsys):
    load, seconds = zoo.load, ROWS[command]
    monkeypatch.setattr(
        zoo, "load", lambda *words, **options: slow(load(*words, **options), clock, seconds)
    )

    def call(name):
        out = tmp_path / name
        code = cli.main([command, "digits-vae", *WORDS[command], "--out", str(out), "-q"])
        if code == 130:
            raise KeyboardInterrupt
        assert code == 0
        if command == "attack":
            return (out / "undefended" / "adversarials.npz").read_bytes()
        content = json.loads(out.read_text())
        return {key: value for key, value in content.items() if key != "facts"}

    whole, cut, again, before = times_of(clock, call, 0.6)
    assert cut == whole
    assert before > 2 * SAVE_EVERY and again <= 2 * SAVE_EVERY
    assert "going on with" in capsys.readouterr().err


def test_shard_of_a_profile_goes_on(clock, tmp_path):
    vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
    victim, x = rv.Victim(slow(vae, clock)), torch.rand(9, 1, 4, 4, generator=rv.generator(1))
    attack = rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(30, 2), rv.Ball("l2", 0.5))

    def some(part):
        return {"x_adv": attack(victim, x[part], generator=rv.generator(0)).x_adv}, []

    def call(name):
        run = Run(keep=tmp_path / name, notice=lambda words: None)
        return Shards(run, "key").measured("attack", len(x), some)[0]["x_adv"].tolist()

    whole, cut, again, before = times_of(clock, call, 0.8)
    assert cut == whole
    assert before > 2 * SAVE_EVERY and again <= 2 * SAVE_EVERY


def test_loop_without_scope_keeps_nothing():
    with loop("anything", torch.ones(2)) as place:
        place.at(3, torch.ones(1))
        assert not place.is_kept and place.content is None
        place.finish(1)
    assert place.result == [1]


def test_other_start_is_another_loop(tmp_path):
    def call(x):
        with loop("sum", x) as place:
            if place.result is None:
                place.finish(x.sum())
            return float(place.result[0])

    state = SavedState(Store(tmp_path, "key"), "part", every=0)
    with pytest.raises(KeyboardInterrupt), saving(state, "step"):
        assert call(torch.ones(2)) == 2
        raise KeyboardInterrupt
    state = SavedState(Store(tmp_path, "key"), "part")
    assert state.steps
    with saving(state, "step"):
        assert call(torch.ones(3)) == 3


def test_numbers_of_every_type_return(tmp_path):
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.int64):
        x = torch.tensor([[1.5, 0.0], [-2.0, 3.0]]).to(dtype)
        back = unpacked(packed(x))
        assert back.dtype == dtype and torch.equal(back, x)


def test_draws_in_turn_spend_one_generator(tmp_path):
    def call(stop=None):
        g = rv.generator(0)

        def some(n):
            if n == stop:
                raise KeyboardInterrupt
            return torch.rand(n, generator=g)

        with saving(SavedState(Store(tmp_path, "key"), "part", every=0), "step"):
            parts = in_turn("draws", [1, 2, 3], some, g)
        return torch.cat([*parts, torch.rand(1, generator=g)]).tolist()

    with pytest.raises(KeyboardInterrupt):
        call(stop=3)
    g = rv.generator(0)
    whole = [torch.rand(n, generator=g) for n in (1, 2, 3, 1)]
    assert call() == torch.cat(whole).tolist()
