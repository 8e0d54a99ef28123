"""What the gallery shows: which inputs, and on which scale."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

import robustvae as rv
from robustvae.audit import pictures


def rows(count: int) -> list[dict]:
    return [{"input": i, "damage": float(i)} for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("total", [1, 2, 3, 7, 40])
def test_chosen_are_different_inputs(total: int, count: int) -> None:
    chosen = pictures.chosen(rows(total), count)
    numbers = [row["input"] for _, row in chosen]
    assert len(set(numbers)) == len(numbers) == min(total, count)
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] == total - 1
    if min(total, count) > 1:
        assert numbers[-1] == 0


def test_median_is_in_the_middle() -> None:
    places = [(place, row["input"]) for place, row in pictures.chosen(rows(101), 3)]
    assert places == [("worst", 100), ("median", 50), ("best", 0)]


def pixels(panel: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(panel["png"]))))


def test_color_difference_is_signed() -> None:
    difference = torch.zeros(3, 2, 2)
    difference[0, 0, 0], difference[2, 1, 1] = 0.5, -0.25
    drawn = pixels(pictures.signed_picture(difference, 0.5))
    assert drawn[0, 0].tolist() == [255, 128, 128]
    assert drawn[1, 1].tolist() == [128, 128, 64]


def test_gray_difference_names_no_color_twice() -> None:
    difference = torch.tensor([[[0.0, 1.0], [-1.0, 0.5]]])
    drawn = pixels(pictures.signed_picture(difference, 1.0))
    assert drawn[0, 0].tolist() == [255, 255, 255]
    assert drawn[0, 1].tolist() == [216, 96, 16]
    assert drawn[1, 0].tolist() == [33, 102, 172]


@pytest.fixture(scope="module")
def record() -> rv.Record:
    images = rv.data.load("digits", split="test")
    plan = {"base": "smoke", "inputs": 7, "shard": 3, "gallery": 3}
    return rv.audit(rv.load("digits-vae").float(), images, plan=plan, seed=0)


def test_gallery_spans_worst_to_best(record: rv.Record) -> None:
    worst = {}
    for row in record.rows:
        worst[row["input"]] = max(worst.get(row["input"], 0.0), row["damage"])
    ranked = sorted(worst, key=lambda number: -worst[number])
    shown = [(item.place, item.input) for item in record.gallery]
    assert shown == [("worst", ranked[0]), ("median", ranked[3]), ("best", ranked[-1])]
    assert len({item.caption.partition("all differences")[2] for item in record.gallery}) == 1


def test_damage_curve_belongs_to_first_attacks(record: rv.Record) -> None:
    leaders = [row for row in record.rows if row["damage_at_50"] is not None]
    assert {row["role"] for row in leaders} == {"plan"} and len(leaders) == 7
    means = [np.mean([row[f"damage_at_{share}"] for row in leaders]) for share in (25, 50, 75)]
    assert means == sorted(means) and means[-1] < np.mean([row["damage"] for row in leaders])


def test_signals_and_tables_are_numbers() -> None:
    vae = rv.wrap(
        encode=lambda x: (x.flatten(1)[:, :4], torch.zeros(len(x), 4)),
        decode=lambda z: z.repeat(1, 3).view(-1, 2, 1, 6),
        latent=4,
        image_shape=(2, 1, 6),
        returns="mean_log_var",
    )
    x = torch.rand(8, 2, 1, 6, generator=rv.generator(0))
    record = rv.audit(vae, x.to(vae.dtype), plan={"base": "smoke", "gallery": 2}, seed=0)
    assert len(record.gallery) == 2
    panel = record.gallery[0].panels["difference"]
    assert panel.shape == [2, 6] and len(panel.values) == 2 and panel.low == -panel.high
    assert not panel.png
