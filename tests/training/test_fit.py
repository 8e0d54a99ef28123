"""`fit`: it finds optima that are known, survives kills, and stops on nonsense."""

from __future__ import annotations

import builtins
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustvae as rv
from robustvae import errors
from robustvae.data import Images
from robustvae.models import Gaussian
from robustvae.models.checkpoint import weights_sha256
from robustvae.objectives import ELBO

LOG, STATE = "log.jsonl", "state.safetensors"


@pytest.fixture(scope="module")
def few() -> Images:
    return rv.data.load("digits")[:200]


def small(seed: int = 0) -> rv.VAE:
    return rv.models.create(
        "vae", architecture="mlp", latent=2, image_shape=(1, 8, 8), hidden=[16], seed=seed
    )


def fitted(images: Images, epochs: int, out: Path | None = None, **options: Any) -> rv.VAE:
    settings: dict[str, Any] = {"batch_size": 64, "validation": None, "generator": rv.generator(0)}
    objective = options.pop("objective", ELBO())
    return rv.fit(small(), objective, images, epochs=epochs, out=out, **(settings | options))


def log_of(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@dataclass
class Heard:
    """A logger that remembers."""

    epochs: list[int] = field(default_factory=list)
    values: list[Mapping[str, float]] = field(default_factory=list)

    def log(self, values: Mapping[str, float], *, step: int | None = None) -> None:
        self.epochs.append(step or 0)
        self.values.append(values)

    def log_files(self, folder: str | Path) -> None:
        raise AssertionError("a training sends no files")


@dataclass(frozen=True)
class Spoilt:
    """An ELBO that becomes `value` at one step."""

    step: int
    value: float
    now: int = -1

    def __call__(self, vae: rv.VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        return self.terms(vae, x, generator=generator)["loss"]

    def terms(self, vae: rv.VAE, x: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
        terms = ELBO().terms(vae, x, generator=generator)
        if self.now == self.step:
            terms["loss"] = terms["loss"] * self.value
        return terms

    def at(self, step: int) -> Spoilt:
        return Spoilt(self.step, self.value, step)


class LinearEncoder(nn.Module):
    """mean = A x + c, stddev = exp(s)."""

    def __init__(self, pixels: int, latent: int) -> None:
        super().__init__()
        self.mean = nn.Linear(pixels, latent)
        nn.init.zeros_(self.mean.weight)  # nn.Linear draws from the global generator
        nn.init.zeros_(self.mean.bias)
        self.log_stddev = nn.Parameter(torch.zeros(latent))

    def forward(self, x: Tensor) -> Gaussian:
        mean = self.mean(x.flatten(1))
        return Gaussian(mean, self.log_stddev.exp().expand_as(mean))


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_finds_the_optimal_diagonal_posterior(beta: float, generator: torch.Generator) -> None:
    """Of a linear-Gaussian decoder: means P^-1 W' (x - b) / (beta s^2), variances 1 / P_jj."""
    noise, weight = 0.3, torch.tensor([[0.6, 0.1], [0.2, -0.5], [0.4, 0.3], [-0.3, 0.6]])
    x = torch.rand(256, 1, 2, 2, generator=generator)
    encoder = LinearEncoder(4, 2)

    def decode(z: Tensor) -> Gaussian:
        mean = (z @ weight.mT + 0.5).view(-1, 1, 2, 2)
        return Gaussian(mean, torch.full_like(mean, noise))

    vae = rv.wrap(encode=encoder, decode=decode, latent=2, image_shape=(1, 2, 2))
    rv.fit(
        vae,
        ELBO(beta),
        Images(x, torch.zeros(256, dtype=torch.int64)),
        epochs=120,
        generator=generator,
        batch_size=32,
        lr=[(0, 0.02), (40, 0.005), (80, 0.0005)],
        validation=None,
    )
    precision = torch.eye(2) + weight.mT @ weight / (beta * noise**2)
    q = vae.encode(x)
    wanted = torch.linalg.solve(
        precision, ((x.flatten(1) - 0.5) @ weight / (beta * noise**2)).mT
    ).mT
    # the gradient noise left at a rate of 5e-4 moves weights by about 1e-2
    torch.testing.assert_close(q.stddev[0], precision.diagonal().rsqrt(), rtol=0.02, atol=0)
    torch.testing.assert_close(q.mean, wanted, rtol=0, atol=0.03)


def test_resumed_run_reaches_the_same_weights(few: Images, tmp_path: Path) -> None:
    options: dict[str, Any] = {"validation": 0.2, "plateau": 1, "objective": ELBO(1.0, warmup=9)}
    whole = fitted(few, 4, tmp_path / "whole", **options)
    for epochs in (1, 3):
        fitted(few, epochs, tmp_path / "parts", **options)
    heard = Heard()
    parts = fitted(few, 4, tmp_path / "parts", logger=heard, **options)
    assert heard.epochs == [4]
    assert weights_sha256(parts) == weights_sha256(whole)
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
    assert [line["epoch"] for line in log_of(tmp_path / "parts")] == [1, 2, 3, 4]
    assert weights_sha256(rv.load(tmp_path / "parts")) == weights_sha256(whole)


KILLED = """
import sys, torch
sys.path.insert(0, {here!r})
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
from pathlib import Path
import test_fit
test_fit.fitted(test_fit.rv.data.load("digits")[:200], 100000, Path({out!r}))
"""


def test_killed_run_goes_same_weights(few: Images, tmp_path: Path) -> None:
    code = KILLED.format(here=str(Path(__file__).parent), out=str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    log = tmp_path / "killed" / LOG
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and len(log.read_text().splitlines()) >= 3:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, complaint = process.communicate()
    assert process.returncode == -signal.SIGKILL, complaint.decode()
    done = len(log_of(tmp_path / "killed"))
    rv.load(tmp_path / "killed")
    resumed = fitted(few, done + 2, tmp_path / "killed")
    whole = fitted(few, done + 2, tmp_path / "whole")
    assert weights_sha256(resumed) == weights_sha256(whole)
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")


def test_members_are_named_by_specs(few: Images, tmp_path: Path) -> None:
    """The loss and the logger: what is registered for trackers hears of trainings as well."""
    path = tmp_path / "numbers.jsonl"
    vae = fitted(
        few,
        2,
        tmp_path / "run",
        objective="elbo:beta=2",
        logger={"name": "jsonl", "path": str(path)},
    )
    assert weights_sha256(vae) == weights_sha256(fitted(few, 2, objective=ELBO(beta=2)))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [json.loads(line) for line in (tmp_path / "run" / LOG).read_text().splitlines()]
    assert [line | {"epoch": line.pop("step")} for line in lines] == kept
    for name in ("objective", "logger"):
        with pytest.raises(errors.UnknownNameError, match="choose from"):
            fitted(few, 1, **{name: "nowhere"})


def test_finished_run_is_not_trained_again(few: Images, tmp_path: Path) -> None:
    once = weights_sha256(fitted(few, 2, tmp_path))
    heard = Heard()
    assert weights_sha256(fitted(few, 2, tmp_path, logger=heard)) == once
    assert heard.epochs == []
    anew = fitted(few, 1, tmp_path, resume=False)
    assert weights_sha256(anew) != once
    assert [line["epoch"] for line in log_of(tmp_path)] == [1]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("batch_size", {"batch_size": 32}),
        ("beta of the objective", {"objective": ELBO(2.0)}),
        ("objective", {"objective": Spoilt(0, 1.0)}),
        ("generator", {"generator": rv.generator(1)}),
        ("lr", {"lr": 1e-2}),
        ("validation", {"validation": 0.5}),
    ],
)
def test_another_run_in_the_folder(
    few: Images, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    fitted(few, 1, tmp_path)
    before = (tmp_path / STATE).read_bytes()
    with pytest.raises(errors.ConfigError, match=f"holds another run: {name} is"):
        fitted(few, 2, tmp_path, **options)
    assert (tmp_path / STATE).read_bytes() == before
    with pytest.raises(errors.ConfigError, match="at least the 1 that"):
        fitted(few, 0, tmp_path)


def test_damaged_state_is_an_error(few: Images, tmp_path: Path) -> None:
    fitted(few, 1, tmp_path)
    whole = (tmp_path / STATE).read_bytes()
    for content in (b"", whole[:100], whole[:-100], b"\x80\x04pickled"):
        (tmp_path / STATE).write_bytes(content)
        with pytest.raises(errors.CheckpointError, match="cannot be read as the state") as caught:
            fitted(few, 2, tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"not JSON\n", b"[1]\n", b'{"loss": 1}\n', b'{"epoch": "1"}\n', b"\xff\n"]
)
def test_a_foreign_log_is_left_alone(few: Images, tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOG).write_bytes(content)
    with pytest.raises(errors.CheckpointError, match="cannot be read as the log") as caught:
        fitted(few, 1, tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [LOG]
    assert (tmp_path / LOG).read_bytes() == content


def test_torn_last_line_of_log_dropped(few: Images, tmp_path: Path) -> None:
    fitted(few, 2, tmp_path)
    with (tmp_path / LOG).open("a") as log:
        log.write('{"epoch": 3, "lo')
    fitted(few, 3, tmp_path)
    assert [line["epoch"] for line in log_of(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_batch_keeps_good_weights(few: Images, tmp_path: Path, value: float) -> None:
    heard = Heard()
    vae = small()
    with pytest.raises(errors.TrainingError, match=r"epoch 3, step 10: loss (nan|inf)") as caught:
        rv.fit(
            vae,
            Spoilt(9, value),
            few,
            epochs=5,
            generator=rv.generator(0),
            batch_size=64,
            validation=None,
            out=tmp_path,
            logger=heard,
        )
    assert f"the weights after epoch 2 are in {tmp_path}" in str(caught.value)
    assert weights_sha256(rv.load(tmp_path)) == weights_sha256(fitted(few, 2))
    assert heard.epochs == [1, 2]
    assert not vae.training
    assert all(p.isfinite().all() for p in vae.parameters())


def test_bad_first_batch_changes_nothing(few: Images, tmp_path: Path) -> None:
    with pytest.raises(errors.TrainingError, match="the weights after epoch 0"):
        fitted(few, 1, tmp_path, objective=Spoilt(0, math.nan))
    assert weights_sha256(rv.load(tmp_path)) == weights_sha256(small())


def test_early_stopping_returns_the_best_epoch(few: Images, tmp_path: Path) -> None:
    """Black images to train on and white ones to watch: the first epoch is the best."""
    black = Images(torch.zeros(128, 1, 8, 8), torch.zeros(128, dtype=torch.int64))
    white = Images(torch.ones(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64))
    options: dict[str, Any] = {"validation": white, "patience": 3, "lr": 0.01}
    heard = Heard()
    stopped = fitted(black, 50, tmp_path, logger=heard, **options)
    losses = [values["validation_loss"] for values in heard.values]
    assert losses == sorted(losses)
    assert heard.epochs == [1, 2, 3, 4]
    first = fitted(black, 1, **options)
    assert weights_sha256(stopped) == weights_sha256(first) == weights_sha256(rv.load(tmp_path))
    assert weights_sha256(fitted(black, 50, tmp_path, **options)) == weights_sha256(first)


def test_plateau_halves_the_rate(few: Images) -> None:
    black = Images(torch.zeros(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64))
    white = Images(torch.ones(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64))
    heard = Heard()
    fitted(black, 6, validation=white, plateau=2, lr=0.01, logger=heard)
    assert [values["lr"] for values in heard.values] == [0.01] * 3 + [0.005] * 2 + [0.0025]


def test_schedule_holds_from_its_epochs(few: Images) -> None:
    heard = Heard()
    fitted(few, 5, lr=[(0, 0.01), (2, 0.001), (3, 0.0001)], logger=heard)
    assert [values["lr"] for values in heard.values] == [0.01, 0.01, 0.001, 0.0001, 0.0001]


def test_clipping_bounds_the_step(few: Images) -> None:
    """A gradient of norm 1e-12 is below Adam's epsilon of 1e-8, so nothing moves."""
    still = fitted(few, 1, clip=1e-12, lr=1e-3)
    for before, after in zip(small().parameters(), still.parameters(), strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=1e-6)
    assert weights_sha256(fitted(few, 1, clip=1e9)) == weights_sha256(fitted(few, 1))


def test_validation_loss_is_logged(few: Images) -> None:
    heard = Heard()
    fitted(few, 2, validation=0.25, logger=heard)
    assert set(heard.values[0]) == {
        *("loss", "distortion", "kl", "gradient_norm", "validation_loss", "lr", "seconds")
    }
    for values in heard.values:
        assert values["loss"] == pytest.approx(values["distortion"] + values["kl"])


def test_logged_loss_is_mean_over_images(few: Images) -> None:
    """At a vanishing rate the weights stand still; 200 images make batches of 64, 64, 64 and 8."""
    heard = Heard()
    vae = fitted(few, 1, lr=1e-12, logger=heard).requires_grad_(False)
    draws = torch.stack(
        [ELBO()(vae, few.x.double(), generator=rv.generator(seed)) for seed in range(200)]
    )
    spread = draws.std(0).square().sum().sqrt() / len(few)
    assert abs(heard.values[0]["loss"] - float(draws.mean())) < 4 * float(spread) * math.sqrt(
        1 + 1 / 200
    )


def test_wrapped_model_saves_state_only(few: Images, tmp_path: Path) -> None:
    def made() -> rv.VAE:
        inner = small()
        return rv.wrap(encode=inner.encode, decode=inner.decode, latent=2, image_shape=(1, 8, 8))

    settings: dict[str, Any] = {"validation": None, "batch_size": 64}
    whole = rv.fit(made(), ELBO(), few, epochs=2, generator=rv.generator(0), **settings)
    for epochs in (1, 2):
        resumed = made()
        rv.fit(
            resumed, ELBO(), few, epochs=epochs, generator=rv.generator(0), out=tmp_path, **settings
        )
    assert weights_sha256(resumed) == weights_sha256(whole)
    assert {path.name for path in tmp_path.iterdir()} == {LOG, STATE}


def test_frozen_weights_stay(few: Images) -> None:
    vae = small()
    vae.decoder.requires_grad_(False)
    before = {name: p.clone() for name, p in vae.named_parameters()}
    rv.fit(vae, ELBO(), few, epochs=1, generator=rv.generator(0), validation=None)
    moved = {name for name, p in vae.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if not name.startswith("decoder")}


def test_lipschitz_model_is_orthonormal_and_resumes(few: Images, tmp_path: Path) -> None:
    def made() -> rv.VAE:
        return rv.models.create(
            "lipschitz-vae", latent=2, image_shape=(1, 8, 8), hidden=[16], retract_every=3
        )

    settings: dict[str, Any] = {"validation": None, "batch_size": 64}
    whole = rv.fit(made(), ELBO(), few, epochs=2, generator=rv.generator(0), **settings)
    for epochs in (1, 2):
        resumed = made()
        rv.fit(
            resumed, ELBO(), few, epochs=epochs, generator=rv.generator(0), out=tmp_path, **settings
        )
    assert weights_sha256(resumed) == weights_sha256(whole)
    for module in rv.load(tmp_path).modules():
        if isinstance(module, nn.Linear):
            singular = torch.linalg.svdvals(module.weight)
            torch.testing.assert_close(singular, torch.ones_like(singular))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"epochs": -1}, errors.RangeError),
        ({"epochs": 1.5}, errors.DtypeError),
        ({"batch_size": 0}, errors.RangeError),
        ({"lr": 0.0}, errors.RangeError),
        ({"lr": math.nan}, errors.NonFiniteError),
        ({"lr": "fast"}, errors.DtypeError),
        ({"lr": []}, errors.RangeError),
        ({"lr": [(1, 0.1)]}, errors.RangeError),
        ({"lr": [(0, 0.1), (0, 0.2)]}, errors.RangeError),
        ({"lr": [(0, 0.1), (1,)]}, errors.DtypeError),
        ({"validation": 1.5}, errors.RangeError),
        ({"patience": 2}, errors.ConfigError),
        ({"patience": 0, "validation": 0.1}, errors.RangeError),
        ({"plateau": 0}, errors.RangeError),
        ({"clip": -1.0}, errors.RangeError),
        ({"precision": "bf16"}, errors.UnknownNameError),
        ({"device": "nowhere"}, errors.ConfigError),
    ],
)
def test_fit_rejects_nonsense(
    few: Images, tmp_path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        fitted(few, options.pop("epochs", 1), tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_refuses_images_model_does_not_read() -> None:
    large = Images(torch.zeros(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(errors.ShapeError, match=r"\(1, 8, 8\)"):
        fitted(large, 1)


def test_refuses_a_model_without_weights(few: Images) -> None:
    vae = small().requires_grad_(False)
    with pytest.raises(errors.ConfigError, match="needs weights"):
        rv.fit(vae, ELBO(), few, epochs=1, generator=rv.generator(0))


def test_a_folder_that_cannot_be_written(few: Images, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(errors.StorageError):
        fitted(few, 1, tmp_path / "file" / "out")


def test_full_disk_keeps_the_last_epoch(
    few: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = weights_sha256(fitted(few, 1, tmp_path))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(errors.StorageError, match="No space left"):
            fitted(few, 2, tmp_path)
    assert weights_sha256(rv.load(tmp_path)) == kept
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config.json", "model.safetensors", LOG, STATE)
    }
    assert weights_sha256(fitted(few, 2, tmp_path)) == weights_sha256(fitted(few, 2))


def test_no_bar_off_a_terminal(few: Images, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(few, 1)
    assert capsys.readouterr() == ("", "")
    fitted(few, 1, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "epoch 1" in shown.err


def test_mixed_precision_keeps_float32_weights(few: Images) -> None:
    pytest.importorskip("lightning_fabric")
    torch.set_default_dtype(torch.float32)
    heard, mixed = Heard(), Heard()
    fitted(few, 2, logger=heard)
    vae = fitted(few, 2, logger=mixed, precision="bf16-mixed")
    assert vae.dtype == torch.float32
    one, two = heard.values[-1]["loss"], mixed.values[-1]["loss"]
    assert one != two
    assert two == pytest.approx(one, rel=0.02)


def test_mixed_precision_says_what_to_install(few: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_fabric(name: str, *rest: Any) -> Any:
        if name == "lightning_fabric":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_fabric)
    with pytest.raises(errors.MissingExtraError, match="pip install 'lightning-fabric"):
        fitted(few, 1, precision="bf16-mixed")


def test_batch_norm_needs_two_images(few: Images) -> None:
    options = {"architecture": "mlp", "latent": 2, "image_shape": (1, 8, 8), "hidden": [16]}
    vae = rv.models.create("vae", batch_norm=True, **options)
    with pytest.raises(errors.ConfigError, match="one image of 200"):
        rv.fit(
            vae, ELBO(), few, epochs=1, batch_size=199, validation=None, generator=rv.generator(0)
        )
    rv.fit(vae, ELBO(), few, epochs=1, batch_size=198, validation=None, generator=rv.generator(0))


@pytest.mark.parametrize("kind", ["vae", "lipschitz-vae"])
def test_goes_on_within_an_epoch(kind, tmp_path, monkeypatch):
    from robustvae.training import run as module

    monkeypatch.setattr(module, "SAVE_EVERY", 0.0)
    images = rv.data.load("digits")[:96]

    def train(out, stop=None):
        options = {"latent": 2, "image_shape": (1, 8, 8), "architecture": "mlp"}
        vae = rv.models.create(kind, **options)
        steps = []

        def interrupted(self, place):
            steps.append(place.count)
            real(self, place)
            if len(steps) == stop:
                raise KeyboardInterrupt

        real = module.Run.save_within
        with monkeypatch.context() as patch:
            patch.setattr(module.Run, "save_within", interrupted)
            rv.fit(
                vae,
                rv.objectives.ELBO(),
                images,
                epochs=2,
                generator=rv.generator(0),
                batch_size=16,
                validation=None,
                out=out,
            )
        return weights_sha256(vae), len(steps)

    wanted, count = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stop=count - 2)
    weights, more = train(tmp_path / "cut")
    assert more == 2 and weights == wanted
    logs = [
        [
            {**json.loads(line), "seconds": 0}
            for line in (tmp_path / name / LOG).read_text().splitlines()
        ]
        for name in ("whole", "cut")
    ]
    assert logs[0] == logs[1]


def test_folder_in_use_is_refused(tmp_path):
    from robustvae.records import Lock

    vae = rv.models.create("vae", latent=2, architecture="conv8")
    images = rv.data.load("digits")[:32]
    with Lock(tmp_path), pytest.raises(errors.StorageError, match="in use"):
        rv.fit(
            vae, ELBO(), images, epochs=1, generator=rv.generator(0), validation=None, out=tmp_path
        )


def test_strangers_config_is_kept(tmp_path):
    (tmp_path / "config.json").write_text('{"mine": 1}')
    vae = rv.models.create("vae", latent=2, architecture="conv8")
    images = rv.data.load("digits")[:32]
    with pytest.raises(errors.StorageError, match="would be lost"):
        rv.fit(
            vae, ELBO(), images, epochs=1, generator=rv.generator(0), validation=None, out=tmp_path
        )
    assert (tmp_path / "config.json").read_text() == '{"mine": 1}'
