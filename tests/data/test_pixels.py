"""The one reader of pixels, and the one way to make images of anything."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

import robustvae as rv
from robustvae.errors import DataError, DtypeError, RangeError, ShapeError

RAMP = np.linspace(0, 1, 64).reshape(8, 8)
MODES = {
    "1": (Image.fromarray(RAMP > 0.5), RAMP > 0.5),
    "L": (Image.fromarray((255 * RAMP).astype("uint8")), (255 * RAMP).astype("uint8") / 255),
    "16 bits": (
        Image.fromarray((65535 * RAMP).astype("uint16")),
        (65535 * RAMP).astype("uint16") / 65535,
    ),
    "RGB": (
        Image.fromarray(np.stack([(255 * RAMP).astype("uint8")] * 3, -1)),
        (255 * RAMP).astype("uint8") / 255,
    ),
    "RGBA": (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), np.ones((8, 8))),
    "LA": (Image.new("LA", (8, 8), (0, 0)), np.ones((8, 8))),
    "P": (Image.fromarray((255 * RAMP).astype("uint8")).convert("P"), None),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_have_their_own_scale(mode, tmp_path):
    image, expected = MODES[mode]
    image.save(tmp_path / "0.png")
    x = rv.data.as_images(tmp_path).x
    assert x.dtype == torch.float32 and 0 <= float(x.min()) <= float(x.max()) <= 1
    if expected is not None:
        np.testing.assert_allclose(x[0, 0].numpy(), expected, atol=1e-6)


def test_float_files_are_read_as_numbers(tmp_path):
    Image.fromarray(RAMP.astype("float32")).save(tmp_path / "0.tif")
    np.testing.assert_allclose(rv.data.as_images(tmp_path).x[0, 0].numpy(), RAMP, atol=1e-6)
    Image.fromarray((9 * RAMP).astype("float32")).save(tmp_path / "0.tif")
    with pytest.raises(DataError, match=r"must lie in \[0, 1\]"):
        rv.data.as_images(tmp_path)


def test_pictures_stand_upright(tmp_path):
    image = Image.fromarray((255 * RAMP[:4]).astype("uint8"))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "0.jpg", exif=exif)
    assert rv.data.as_images(tmp_path).image_shape == (1, 8, 4)


def test_animations_are_refused(tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (0, 255)]
    frames[0].save(tmp_path / "0.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="animation"):
        rv.data.as_images(tmp_path)


def test_only_regular_files_count(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / "0.png").mkdir()
    (tmp_path / "._1.png").write_bytes(b"resource fork")
    (tmp_path / "2.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "3.png")
    assert len(rv.data.as_images(tmp_path)) == 1


def test_color_is_not_thrown_away(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "1.png")
    with pytest.raises(DataError, match="channels=3"):
        _ = rv.data.as_images(tmp_path).x
    assert rv.data.read_folder(tmp_path, channels=3).image_shape == (3, 8, 8)


def test_large_files_are_refused_early(tmp_path):
    Image.new("1", (6000, 6000)).save(tmp_path / "0.png")
    with pytest.raises(DataError, match="scale it down"):
        rv.data.as_images(tmp_path)


def test_small_folders_need_no_split(tmp_path):
    for number in range(4):
        Image.new("L", (8, 8)).save(tmp_path / f"{number}.png")
    for split in ("train", "test"):
        images = rv.data.read_folder(tmp_path, split)
        assert len(images) == 4
        assert "too few to be split" in images.about


class Bare(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, number):
        return torch.full((1, 8, 8), number / 10)


X = torch.rand(6, 1, 8, 8, generator=rv.generator(0), dtype=torch.float32)
SOURCES = {
    "tensor": lambda: X,
    "without channels": lambda: X[:, 0],
    "bytes": lambda: (255 * X).to(torch.uint8),
    "array": lambda: X.numpy(),
    "channels last": lambda: X.movedim(1, -1).numpy(),
    "dataset of pairs": lambda: torch.utils.data.TensorDataset(X, torch.arange(6)),
    "dataset of images": Bare,
    "list": lambda: list(X),
    "loader": lambda: torch.utils.data.DataLoader(list(X), batch_size=4),
    "loader of pairs": lambda: torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(X, torch.arange(6)), batch_size=4
    ),
    "loader of dictionaries": lambda: torch.utils.data.DataLoader(
        [{"pixel_values": x} for x in X], batch_size=4
    ),
    "images": lambda: rv.data.from_tensor(X),
}


@pytest.mark.parametrize("source", SOURCES)
def test_anything_becomes_images(source):
    images = rv.data.as_images(SOURCES[source]())
    assert images.shape == (6, 1, 8, 8)
    assert images.x.is_contiguous()
    if source not in ("dataset of images", "bytes"):
        torch.testing.assert_close(images.x, X)
    if "pairs" in source:
        assert images.y.tolist() == list(range(6))


def test_round_off_is_clamped():
    x = X.clone()
    x[0, 0, 0, 0] = 1 + 1.2e-7
    assert float(rv.data.from_tensor(x).x.max()) <= 1
    found = rv.Attack(
        rv.MaximumDamage(), rv.ProjectedAscent(steps=1, restarts=1), rv.Ball("l2", 0.1)
    )(rv.Victim(rv.load("digits-vae")), x, generator=rv.generator(0))
    assert float(found.x_adv.max()) <= 1


def test_spaces_read_their_own_unit():
    space = rv.data.InputSpace((1, 16), low=-1, high=1)
    waves = 2 * torch.rand(3, 1, 16) - 1
    images = rv.data.as_images(waves, space=space)
    assert images.shape == (3, 1, 1, 16)
    torch.testing.assert_close(space.to_model(images.x), waves)


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        (2 * X, RangeError, "space="),
        (X[0, 0], ShapeError, "space="),
        (X.long(), DtypeError, r"\[0, 1\]"),
        ({"x": X}, DtypeError, "from_tensor"),
        (5, DtypeError, "DataLoader"),
        (torch.utils.data.DataLoader([]), DataError, "empty"),
    ],
)
def test_other_things_are_refused(source, error, says):
    with pytest.raises(error, match=says):
        rv.data.as_images(source)
