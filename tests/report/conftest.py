"""Records made up for the tests: the shape of a real audit, without a model."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from robustvae.records import Record

ATTACKS = (("maximum damage, l2 1", "l2", 1.0), ("latent shift, linf 0.1", "linf", 0.1))


def png(pixels: np.ndarray) -> dict[str, Any]:
    """(C, H, W) bytes as a picture of a record."""
    channels, height, width = pixels.shape
    lines = b"".join(b"\0" + pixels[:, i].T.tobytes() for i in range(height))

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )
    return {"shape": list(pixels.shape), "png": base64.b64encode(content).decode()}


def rows(n: int, *, rng: np.random.Generator, certified: bool, margins: bool) -> list[dict]:
    """`n` inputs under two attacks."""
    made = []
    for i in range(n):
        free = float(rng.gamma(9, 0.085))
        lower = 0.0 if i % 11 == 5 else free * float(rng.uniform(0.25, 0.6))
        bracket = {
            "margin_upper_unconstrained": free if margins else None,
            "margin_upper_box": ("inf" if i % 13 == 7 else free * float(rng.uniform(1.1, 1.6)))
            if margins
            else None,
            "margin_upper_status": "ok" if margins else None,
            "certified": lower if certified else None,
            "certified_kind": "deterministic" if certified else None,
            "certified_method": "noncentral chi-square" if certified else None,
            "certified_status": ("ok" if lower else "abstain") if certified else None,
            "first_order": free * float(rng.uniform(0.7, 1.2)) if certified else None,
        }
        for name, norm, radius in ATTACKS:
            damage = float(rng.gamma(6, 0.3))
            p = float(rng.beta(2, 3))
            made.append(
                {
                    "input": i * 7,
                    "label": i % 10,
                    "attack": name,
                    "norm": norm,
                    "radius": radius,
                    "box": True,
                    "size": radius,
                    "score": damage**2,
                    "status": "inconclusive" if i == 3 else "ok",
                    "queries": 500,
                    "damage": damage,
                    "damage_noise": damage * float(rng.uniform(0.1, 0.6)),
                    "damage_defended": damage * float(rng.uniform(0.2, 1.0)),
                    "ms_ssim_clean": float(rng.beta(40, 3)),
                    "ms_ssim_attacked": float(rng.beta(4, 4)),
                    "ms_ssim_noise": float(rng.beta(30, 4)),
                    "ms_ssim_defended": float(rng.beta(9, 4)),
                    "ms_ssim_variant": "kuzina2022",
                    "probability": p,
                    "probability_low": max(0.0, p - 0.03),
                    "probability_high": min(1.0, p + 0.03),
                    **bracket,
                    "r": 1.2,
                    "m": 0.5,
                    "displacement": "centered",
                }
            )
    return made


def record(
    n: int = 40, *, certified: bool = True, margins: bool = True, gallery: int = 3, **changes: Any
) -> Record:
    """An audit of `n` inputs that nobody made; `changes` replace whole fields."""
    rng = np.random.default_rng(n)
    made = rows(n, rng=rng, certified=certified, margins=margins)

    def image(channels: int = 1) -> dict[str, Any]:
        return png(rng.integers(0, 256, (channels, 8, 8), dtype=np.uint8))

    means = []
    for key, label, unit in (
        ("ms_ssim_clean", "MS-SSIM of input and reconstruction", ""),
        ("damage", "maximum damage, l2 1: distance between the reconstructions", "pixel units, l2"),
        ("damage_noise", "the same under random noise of equal size", "pixel units, l2"),
        (
            "margin_upper_unconstrained",
            "attacked upper bound on the margin, unconstrained",
            "pixel units, l2",
        ),
        ("certified", "certified lower bound on the margin", "pixel units, l2"),
        ("damage / latent shift, linf 0.1", "latent shift, linf 0.1: distance", "pixel units, l2"),
    ):
        column = [row[key.split(" / ")[0]] for row in made]
        values = [float(value) for value in column if value is not None]
        if values:
            error = float(np.std(values, ddof=1) / len(values) ** 0.5)
            means.append(
                {"key": key, "label": label, "mean": float(np.mean(values)), "stderr": error}
                | {"n": len(values), "unit": unit}
            )
    fields: dict[str, Any] = {
        "title": "digits-lipschitz-vae on digits (test)",
        "model": {
            "name": "digits-lipschitz-vae",
            "kind": "lipschitz-vae",
            "architecture": "mlp",
            "latent": 10,
            "image_shape": [1, 8, 8],
            "likelihood": "bernoulli",
            "parameters": 123456,
            "sha256": "0f" * 32,
        },
        "data": {"name": "digits", "split": "test", "inputs": n, "available": 360},
        "defense": "PosteriorMean()",
        "plan": {"name": "quick", "inputs": n, "r": 1.2, "m": 0.5, "attacks": [{"norm": "l2"}]},
        "seed": 0,
        "versions": {"robustvae": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        "protocol": ["40 inputs, balanced over the classes.", "Attack: projected ascent."],
        "rows": made,
        "summary": means,
        "checks": [
            {
                "name": "gradients",
                "passed": False,
                "value": "2 of 80 inconclusive",
                "meaning": "The attacker saw a gradient other than zero on every input.",
            },
            {
                "name": "sandwich",
                "passed": True,
                "value": "0 of 40 violated",
                "meaning": "No certified lower bound exceeds the attacked upper bound.",
            },
            {"name": "transfer", "passed": None, "value": None, "meaning": "Was not asked for."},
        ],
        "gallery": [
            {
                "input": i * 7,
                "label": i,
                "attack": ATTACKS[0][0],
                "panels": {
                    "attacked": image(),
                    "attacked reconstruction": image(),
                    "defended reconstruction": image(),
                    "difference": image(3),
                    "input": image(),
                    "reconstruction": image(),
                },
                "caption": "size 1 (l2); difference shown on a scale of ±0.31",
            }
            for i in range(gallery)
        ],
        "proved": ["36 of 40 inputs have a deterministic certificate."],
        "estimated": ["Damage holds for the perturbations found."],
        "not_tried": ["Norms, radii and goals outside the plan."],
        "references": ["[Barrett22] Certifiably Robust Variational Autoencoders. AISTATS 2022."],
        "timing": {"created": "2026-01-01T00:00:00Z", "seconds": 12.5},
    }
    return Record(**{**fields, **changes})


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """`record`, for the tests to call."""
    return record
