"""What every set of images promises, whether it is held, read, drawn or changed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import robustvae as rv
from robustvae import data, errors
from robustvae.data import Binarized, Blurred, Compressed, Images, Noisy, cifar10, folder
from robustvae.data.arrays import pixels_of
from robustvae.data.changes import blur, jpeg
from robustvae.models.checkpoint import weights_sha256

from .conftest import pixels, write_batches, write_faces, write_photos


def stored(root: Path, save: Callable[..., None]) -> Images:
    save(root / "mine.npz", images=pixels(40, 9, 7), labels=np.arange(40) % 4)
    return data.load(f"folder:{root / 'mine.npz'}")


def mapped(root: Path) -> Images:
    np.save(root / "mine.npy", pixels(40, 9, 7))
    return data.as_images(np.load(root / "mine.npy", mmap_mode="r"), name="mapped")


@functools.cache
def recompressed() -> Images:
    """Its file takes seconds to decompress."""
    return data.load("cifar10_jpeg", "test")


def published_batches(root: Path) -> Images:
    write_batches(root)
    return data.load("cifar10", "test", root)


# name: how to make it, in an empty folder; the first twelve are the names of `data.names()`
SOURCES: dict[str, Callable[[Path], Images]] = {
    "celeba": lambda root: data.read_folder(write_faces(root), crop=16, size=8),
    "cifar10": published_batches,
    "cifar10_jpeg": lambda root: recompressed(),
    "color_mnist": lambda root: data.load("color_mnist", "test"),
    "digits": lambda root: data.load("digits"),
    "breast-cancer": lambda root: data.load("breast-cancer"),
    "drawn-shapes": lambda root: data.load("drawn-shapes", "test"),
    "drawn-signals": lambda root: data.load("drawn-signals", "test"),
    "dsprites": lambda root: data.load("dsprites", "test"),
    "wine": lambda root: data.load("wine"),
    "fashion_mnist": lambda root: data.load("fashion_mnist", "test"),
    "mnist": lambda root: data.load("mnist", "test"),
    "a folder": lambda root: data.load(f"folder:{write_photos(root)}+crop:18+size:12"),
    "a dataset": lambda root: data.from_dataset(
        [(Image.fromarray(pixels(1, 6, 5, 3, seed=i)[0]), i % 4) for i in range(40)]
    ),
    "npz, stored": lambda root: stored(root, np.savez),
    "npz, compressed": lambda root: stored(root, np.savez_compressed),
    "a mapped array": mapped,
    "static": lambda root: data.load("digits+static"),
    "dynamic": lambda root: data.load("digits+dynamic"),
    "noise": lambda root: data.load("digits+noise:0.2"),
    "blur of a source": lambda root: data.load("dsprites+blur:1.5", "test"),
    "jpeg of a source": lambda root: data.load(f"folder:{write_photos(root)}+size:16+jpeg:40"),
    "two changes": lambda root: data.load("digits+blur:0.5+static"),
}
NEEDS_FILES = {"cifar10_jpeg", "color_mnist", "fashion_mnist", "mnist"}


@pytest.fixture(params=SOURCES)
def images(
    request: pytest.FixtureRequest, tmp_path: Path, few_of_each: None, monkeypatch: object
) -> Images:
    if request.param in NEEDS_FILES:
        request.getfixturevalue("data_root")
        request.getfixturevalue("monkeypatch").undo()
    return SOURCES[request.param](tmp_path)


def test_every_name_has_a_row() -> None:
    assert set(data.names()) <= set(SOURCES)
    shown = {word for source in SOURCES for word in source.split()}
    assert set(data.sets.CHANGES) <= shown


def same(a: Tensor, b: Tensor, images: Images) -> bool:
    """To the bit, but for blur: torch's convolutions round by the size of the batch."""
    return torch.allclose(a, b, rtol=0, atol=1e-6) if "+blur" in images.name else torch.equal(a, b)


def test_the_contract_of_a_set(images: Images) -> None:
    count = min(len(images), 200)
    rows = torch.randint(count, (7,), generator=rv.generator(0))
    x = images.read(rows)
    assert x.dtype == torch.float32 and x.shape == (7, *images.image_shape)
    assert float(x.min()) >= 0 and float(x.max()) <= 1 and float(x.std()) > 0
    one_by_one = torch.cat([images.read(rows[i : i + 1]) for i in range(7)])
    assert same(x, one_by_one, images), "an image depends on its batch"
    assert same(images[rows].x, x, images) and torch.equal(images[rows].y, images.y[rows])
    assert same(images[:count][rows].x, x, images)
    assert same(images[rows][2:5][torch.tensor([True, False, True])].x, x[[2, 4]], images)
    assert same(images[int(rows[0])].x, x[:1], images)
    last = images.read(torch.tensor([len(images) - 1]))
    assert torch.equal(images[-1].x, last)
    assert images.shape == (len(images), *images.image_shape)

    assert any(torch.equal(images.y, label) for label in images.labels.values())
    for name, label in images.labels.items():
        assert label.dtype == torch.int64 and label.shape == (len(images),)
        assert torch.equal(images.labeled_by(name)[rows].y, label[rows])
        assert torch.equal(images[rows].labels[name], label[rows])
    with pytest.raises(errors.UnknownNameError, match="label"):
        images.labeled_by("no such label")
    with pytest.raises(errors.ShapeError):
        images[torch.zeros(len(images), dtype=torch.bool)]


def test_samples_and_parts(images: Images) -> None:
    few = images[: min(len(images), 60)]
    chosen = few.choose(6, stratified=True, generator=rv.generator(1))
    x, y = few.sample(6, stratified=True, generator=rv.generator(1))
    assert same(x, few.read(chosen), few) and torch.equal(y, few.y[chosen])
    kept, held_out = few.divide(0.25, generator=rv.generator(2))
    assert len(kept) + len(held_out) == len(few)
    together = torch.cat([kept.x, held_out.x]).flatten(1)
    torch.testing.assert_close(
        together.sum(1).sort().values, few.x.flatten(1).sum(1).sort().values, rtol=1e-5, atol=1e-4
    )


def test_training_and_its_name(images: Images) -> None:
    vae = rv.models.create(
        "vae", architecture="mlp", latent=2, hidden=[4], seed=0, image_shape=images.image_shape
    )
    before = weights_sha256(vae)
    rv.fit(
        vae,
        rv.objectives.ELBO(),
        images[:24],
        epochs=1,
        batch_size=8,
        validation=0.25,
        generator=rv.generator(0),
    )
    assert weights_sha256(vae) != before


@dataclass
class Counting:
    """A source of a million images that knows how many were asked for at once."""

    most: int = 0
    every: list[int] = field(default_factory=list)

    @property
    def shape(self) -> Sequence[int]:
        return 1_000_000, 1, 4, 4

    def read(self, rows: Tensor, epoch: int) -> Tensor:
        self.most = max(self.most, len(rows))
        self.every += rows.tolist()
        return (rows.view(-1, 1, 1, 1) % 97 / 96).to(torch.float32).expand(-1, 1, 4, 4)


def test_nothing_asks_for_a_whole_set(tmp_path: Path) -> None:
    source = Counting()
    images = Images(source, torch.arange(1_000_000) % 10)
    images.sample(20, stratified=True, generator=rv.generator(0))
    images.divide(0.1, generator=rv.generator(0))
    assert source.most == 20
    source.most, source.every = 0, []
    few = images[torch.arange(0, 1_000_000, 5_000)]
    vae = rv.models.create("vae", architecture="mlp", latent=2, hidden=[4], image_shape=(1, 4, 4))
    rv.fit(vae, rv.objectives.ELBO(), few, epochs=2, batch_size=16, generator=rv.generator(0))
    assert source.most == 16
    assert sorted(source.every)[::2] == sorted(source.every)[1::2], "an epoch reads each image once"
    source.most = 0
    plan = {
        "inputs": 3,
        "shard": 3,
        "draws": 10,
        "margins": None,
        "probes": 0,
        "longer": 1,
        "gradient_free": 0,
        "attacks": [
            {"search": {"name": "projected-ascent", "steps": 1, "restarts": 1}, "radius": 1.0}
        ],
    }
    record = rv.audit(rv.Victim(vae), images, plan=plan, seed=0)
    assert record.data.available == 1_000_000
    assert source.most <= 2000, "the rule for r reads a sample"


def test_source_is_held_to_range() -> None:
    class Wild(Counting):
        def read(self, rows: Tensor, epoch: int) -> Tensor:
            return super().read(rows, epoch) * 255

    images = Images(Wild(), torch.arange(1_000_000) % 10)
    with pytest.raises(errors.RangeError, match=r"an image of images must lie in \[0, 1\]"):
        images.read(torch.tensor([50]))
    with pytest.raises(errors.ShapeError):
        Images(Counting(), torch.arange(10))


def test_only_what_dynamic_changes_with_epoch(images: Images) -> None:
    rows = torch.arange(min(len(images), 20))
    same = torch.equal(images.read(rows), images.at(3).read(rows))
    assert same == (not images.name.endswith("+dynamic"))
    assert torch.equal(images.at(3).read(rows), images.at(3).read(rows))


def test_dynamic_training_goes_bit_bit(tmp_path: Path) -> None:
    images = data.load("digits+dynamic")[:100]

    def trained(out: Path, epochs: int) -> str:
        vae = rv.models.create(
            "vae", architecture="mlp", latent=2, hidden=[4], seed=0, image_shape=(1, 8, 8)
        )
        rv.fit(vae, rv.objectives.ELBO(), images, epochs=epochs, generator=rv.generator(0), out=out)
        return weights_sha256(vae)

    trained(tmp_path / "stopped", 1)
    assert trained(tmp_path / "stopped", 2) == trained(tmp_path / "whole", 2)


def test_binarized_pixels_ones_often_bright() -> None:
    x = torch.linspace(0, 1, 64).view(1, 1, 8, 8).expand(2000, -1, -1, -1)
    images = Images(x, torch.zeros(2000, dtype=torch.int64)).changed(Binarized(seed=3))
    found, p = images.x.mean(0), x[0]
    assert ((found - p).abs() <= 4 * (p * (1 - p) / 2000).sqrt() + 1e-12).all()
    fresh = Images(x, images.y).changed(Binarized(dynamic=True, seed=3))
    assert torch.equal(fresh[:50].x, images[:50].x), "epoch 0 is the static draw"
    agree = (fresh.at(1)[:2000].x == images.x).double().mean(0)
    expected = p**2 + (1 - p) ** 2
    assert ((agree - expected).abs() <= 4 * (expected * (1 - expected) / 2000).sqrt() + 1e-12).all()
    other = Images(x, images.y).changed(Binarized(seed=4))
    assert not torch.equal(other[:50].x, images[:50].x)


def test_noise_has_the_spread_it_names() -> None:
    x = torch.full((500, 1, 8, 8), 0.5)
    noisy = Images(x, torch.zeros(500, dtype=torch.int64)).changed(Noisy(0.05))
    step = noisy.x - x
    n = step.numel()
    assert abs(float(step.mean())) < 4 * 0.05 / n**0.5
    assert abs(float(step.std()) - 0.05) < 4 * 0.05 / (2 * n) ** 0.5


def test_blur_is_convolution_with_gaussian(generator: torch.Generator) -> None:
    x, sigma = torch.rand(2, 3, 9, 7, generator=generator), 0.8
    reach = 2  # round(3 sigma)
    slow = torch.zeros_like(x)
    for i in range(9):
        for j in range(7):
            total = 0.0
            for a in range(-reach, reach + 1):
                for b in range(-reach, reach + 1):
                    weight = float(np.exp(-(a * a + b * b) / (2 * sigma**2)))
                    total += weight
                    slow[..., i, j] += weight * x[..., min(max(i + a, 0), 8), min(max(j + b, 0), 6)]
            slow[..., i, j] /= total
    torch.testing.assert_close(blur(x, sigma), slow)


def test_jpeg_loses_more_at_lower_quality() -> None:
    x = torch.rand(4, 3, 16, 16, generator=rv.generator(0))
    far = [float((jpeg(x, quality) - x).abs().mean()) for quality in (95, 50, 5)]
    assert far == sorted(far) and far[0] > 0
    with pytest.raises(errors.UnsupportedError, match="channels"):
        jpeg(torch.rand(1, 2, 8, 8))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Binarized(dynamic=1), errors.DtypeError),  # type: ignore[arg-type]
        (lambda: Binarized(seed=-1), errors.RangeError),
        (lambda: Noisy(0.0), errors.RangeError),
        (lambda: Noisy("much"), errors.DtypeError),  # type: ignore[arg-type]
        (lambda: Blurred(-1.0), errors.RangeError),
        (lambda: Compressed(96), errors.RangeError),
        (lambda: Compressed(0), errors.RangeError),
        (lambda: data.load("digits").changed(3), errors.DtypeError),  # type: ignore[arg-type]
        (lambda: data.load("digits+statik"), errors.UnknownNameError),
        (lambda: data.load("digits+noise:much"), errors.DtypeError),
        (lambda: data.load("digits+jpeg:1.5"), errors.DtypeError),
        (lambda: data.load("digits+static:3"), errors.DtypeError),
        (lambda: data.load("digits+size:3"), errors.UnknownNameError),
        (lambda: data.load("digits+label:color"), errors.UnknownNameError),
        (lambda: data.load("digits+blur:nan"), errors.NonFiniteError),
        (lambda: data.load("digits").at(-1), errors.RangeError),
    ],
)
def test_changes_refuse_nonsense(make: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_arrays_in_every_layout() -> None:
    gray = pixels(3, 5, 4)
    color = pixels(3, 5, 4, 3)
    everything = torch.arange(3)
    wanted = torch.tensor(color).movedim(3, 1) / 255
    for array in (color, np.moveaxis(color, 3, 1), np.moveaxis(color, 3, 1) / 255):
        torch.testing.assert_close(
            pixels_of(array, "x").read(everything, 0), wanted, check_dtype=False
        )
    for array in (gray, gray[..., None], gray[:, None]):
        found = pixels_of(array, "x")
        assert tuple(found.shape) == (3, 1, 5, 4)
        torch.testing.assert_close(
            found.read(everything, 0)[:, 0], torch.tensor(gray) / 255, check_dtype=False
        )
    for wrong in (gray[0], color.astype(np.int32), gray[:0], pixels(3, 5, 4, 2)):
        with pytest.raises(errors.DataError, match=r"x holds|x must hold"):
            pixels_of(wrong, "x")


def test_datasets_of_several_item_types() -> None:
    color = pixels(4, 3, 5, 3)  # as many rows as channels: tensors have these first
    wanted = torch.tensor(color).movedim(3, 1) / 255
    tensors = [(x, 0) for x in wanted.float()]
    arrays = [(x, 0) for x in color]
    pictures = [(Image.fromarray(x), 0) for x in color]
    for pairs in (tensors, arrays, pictures):
        assert torch.equal(data.from_dataset(pairs).x, wanted.float())

    class Labeled(list):  # type: ignore[type-arg]
        targets = torch.tensor([3, 1, 2, 0])

    assert data.from_dataset(Labeled(tensors)).y.tolist() == [3, 1, 2, 0]
    for wrong, message in (
        ([], "at least one item"),
        ([1], "must be a pair"),
        ([(wanted[0], "cat")], "no labels"),
        ([("cat", 1)], "holds no images"),
        ([(wanted[0], 0), (wanted[0, :1], 0)], "like the first, got"),
    ):
        with pytest.raises(errors.DataError, match=message):
            data.from_dataset(wrong).x  # noqa: B018
    with pytest.raises(errors.DtypeError, match="length and pairs"):
        data.from_dataset(5)  # type: ignore[arg-type]


def test_the_counts_are_not_patched() -> None:
    """The fixture of the contract above lends CIFAR-10 other counts."""
    assert cifar10.EACH == {"train": (5000, 1800), "test": (1000,)}
    assert folder.TEST_EVERY == 10


def test_arrays_stand_for_tensors():
    """In memory is in memory: floats, bytes with the channels last, labels, other spaces."""
    x = np.linspace(0, 1, 4 * 64, dtype=np.float32).reshape(4, 1, 8, 8)
    images = rv.data.from_tensor(x, np.arange(4), split="train")
    assert torch.equal(images.x, torch.from_numpy(x)) and images.y.tolist() == [0, 1, 2, 3]
    assert rv.data.from_tensor(torch.from_numpy(x), np.arange(4)).y.tolist() == [0, 1, 2, 3]
    assert rv.data.from_tensor(np.zeros((4, 8, 8, 3), np.uint8)).image_shape == (3, 8, 8)
    signals = rv.data.from_tensor(
        x.reshape(4, 2, 32), space=rv.data.InputSpace((2, 32)), split="train"
    )
    assert signals.image_shape == (2, 1, 32) and signals.split == images.split == "train"
    with pytest.raises(errors.DataError, match="no labels"):
        rv.data.from_tensor(x, np.arange(3))
