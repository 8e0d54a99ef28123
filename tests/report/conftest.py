"""Records made up for the tests: the shape of a real audit, without a model."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from robustvae.records import Column, Record, SummaryEntry
from robustvae.records.audit import row_sha256

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


def columns() -> list[Column]:
    """Columns such as a real audit's."""
    texts = ("victim", "attack", "role", "knows", "goal", "norm", "status", "adversarial")
    texts += ("certified_kind", "certified_status", "margin_upper_status")
    counts, shares = ("input", "label", "queries"), ("probability", "probability_low")
    inputs = ("margin_upper_box", "margin_upper_unconstrained", "certified", "first_order")
    roundings = {"certified": "down", "probability_low": "down", "probability_high": "up"}
    roundings |= dict.fromkeys(inputs[:2], "up")
    names = (
        *("victim", "input", "label", "attack", "role", "knows", "goal", "norm", "radius", "box"),
        *("size", "score", "status", "queries", "damage", "damage_noise", "ms_ssim_clean"),
        *("damage_at_25", "damage_at_50", "damage_at_75"),
        *("tolerance_at_25", "tolerance_at_50", "tolerance_at_75", "tolerance_attacked"),
        *("certified_at_50", "certified_at_75", "certified_at_150", "certified_at_200"),
        *("ms_ssim_attacked", "ms_ssim_noise", "probability", "probability_low"),
        *("probability_high", "certified", "certified_kind", "certified_status"),
        *("margin_upper_unconstrained", "margin_upper_box", "margin_upper_status", "first_order"),
        *("adversarial", "zero_gradients"),
    )

    def kind(name: str) -> str:
        if name in texts:
            return "text"
        if name == "box":
            return "flag"
        return "count" if name in counts else "share" if name in shares else "number"

    return [
        Column(
            id=name,
            label=name.replace("_", " "),
            kind=kind(name),
            per="input" if name in inputs else "attack",
            rounding=roundings.get(name, "near"),
        )
        for name in names
    ]


def whole(row: dict[str, Any]) -> dict[str, Any]:
    """A row with every column, None where it says nothing."""
    return {**dict.fromkeys(column.id for column in columns()), "victim": "undefended", **row}


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
            "certified_kind": "deterministic" if certified and lower else None,
            "certified_status": ("ok" if lower else "abstain") if certified else None,
            "first_order": free * float(rng.uniform(0.7, 1.2)) if certified else None,
        }
        for name, norm, radius in ATTACKS:
            damage = float(rng.gamma(6, 0.3))
            p = float(rng.beta(2, 3))
            made.append(
                whole(
                    {
                        "input": i * 7,
                        "label": i % 10,
                        "attack": name,
                        "role": "plan",
                        "knows": "all of the model",
                        "goal": name.partition(",")[0],
                        "norm": norm,
                        "radius": radius,
                        "box": True,
                        "size": radius,
                        "score": damage**2,
                        "status": "inconclusive" if i == 3 else "ok",
                        "zero_gradients": 1.0 if i == 3 else 0.0,
                        "queries": 500,
                        "damage": damage,
                        "damage_at_25": damage * 0.2,
                        "damage_at_50": damage * 0.4,
                        "damage_at_75": damage * 0.8,
                        "damage_noise": damage * float(rng.uniform(0.1, 0.6)),
                        "ms_ssim_clean": float(rng.beta(40, 3)),
                        "ms_ssim_attacked": float(rng.beta(4, 4)),
                        "ms_ssim_noise": float(rng.beta(30, 4)),
                        "probability": p,
                        "probability_low": max(0.0, p - 0.03),
                        "probability_high": min(1.0, p + 0.03),
                        **bracket,
                    }
                )
            )
    return made


def entry(key: str, values: list[float], **more: Any) -> SummaryEntry:
    """One headline number."""
    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    mean = float(np.mean(values))
    return SummaryEntry(key=key, label=key, mean=mean, stderr=error, n=len(values), **more)


def record(
    n: int = 40, *, certified: bool = True, margins: bool = True, gallery: int = 3, **changes: Any
) -> Record:
    """An audit of `n` inputs that nobody made; `changes` replace whole fields."""
    rng = np.random.default_rng(n)
    made = rows(n, rng=rng, certified=certified, margins=margins)
    if "rows" in changes:
        made = changes["rows"] = [whole(row) for row in changes["rows"]]

    def image(channels: int = 1) -> dict[str, Any]:
        return png(rng.integers(0, 256, (channels, 8, 8), dtype=np.uint8))

    means = []
    for key, headline, rounding in (
        ("damage", "Damage by the worst attack", "near"),
        ("margin_upper_unconstrained", "Attacked: a change that breaks it", "up"),
        ("certified", "Certified radius (deterministic)", "down"),
        ("ms_ssim_clean", None, "near"),
    ):
        values = [float(row[key]) for row in made if row[key] is not None]
        if values:
            means.append(
                entry(key, values, headline=headline, rounding=rounding, unit="pixel units, l2")
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
        "question": {"norm": "l2", "r": 1.2, "m": 0.5, "displacement": "centered"},
        "victims": [{"name": "undefended", "defense": "PosteriorMean()"}],
        "plan": {"name": "quick", "inputs": n},
        "seed": 0,
        "environment": {"robustvae": "0.2.0", "torch": "2.13.0", "python": "3.11.9"},
        "protocol": ["40 inputs, balanced over the classes.", "Attack: projected ascent."],
        "columns": columns(),
        "rows": made,
        "summary": means,
        "checks": [
            {
                "id": "gradient_seen",
                "victim": "undefended",
                "passed": False,
                "value": "2 of 80 attacks without a gradient",
                "sentence": "The attacks met a gradient.",
                "meaning": "Its row is inconclusive.",
            },
            {
                "id": "certified_below_attacked",
                "victim": "undefended",
                "passed": True,
                "value": "0 of 40 violated",
                "sentence": "No certified lower bound exceeds the attacked upper bound.",
            },
            {
                "id": "same_output_twice",
                "victim": "undefended",
                "passed": None,
                "value": "not measured",
                "sentence": "The same input gives the same output.",
            },
        ],
        "verdict": {
            "useful": True,
            "sound": False,
            "failed": ["gradient_seen"],
            "sentences": ["Useful; not evidence of robustness (gradient_seen failed).", "So."],
        },
        "gallery": [
            {
                "input": i * 7,
                "label": i,
                "attack": ATTACKS[0][0],
                "panels": {
                    "attacked": image(),
                    "attacked reconstruction": image(),
                    "undefended reconstruction": image(),
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
    fields |= changes
    fields.setdefault("hashes", [row_sha256(row) for row in fields["rows"]])
    return Record.model_validate(fields)


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """`record`, for the tests to call."""
    return record
