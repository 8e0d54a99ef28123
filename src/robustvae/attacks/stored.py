"""Stored adversarials: a folder that anyone can score again without trusting who wrote it."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from robustvae import metrics
from robustvae.attacks.attack import AttackResult
from robustvae.defenses import Victim
from robustvae.errors import CheckpointError, DataError, ShapeError
from robustvae.models.base import VAE
from robustvae.models.checkpoint import load, save, weights_sha256
from robustvae.perturb import Ball
from robustvae.records import write_bytes, write_text
from robustvae.seeding import generator as new_generator

FORMAT = 1
_ARRAYS = ("x", "x_adv", "size", "damage")
_SEED = 0


@final
@dataclass(frozen=True, eq=False)
class Rescored:
    """What stored adversarials are worth, recomputed from the images and the model alone.

    Attributes:
        inside: Whether each lies in the ball it was made for, and in its box, (B,) bool.
        size: ||x_adv - x|| in the ball's norm, in pixel units, (B,).
        damage: ||g(mu(x_adv)) - g(mu(x))||_2 of the undefended model, in pixel units, (B,).
        divergence: Symmetric KL of the two posteriors, in nats, (B,).
        same_model: Whether the weights are those that the manifest names.
        agrees: Whether size and damage are the stored ones, to 0.1 %.
        manifest: The manifest.
    """

    inside: Tensor
    size: Tensor
    damage: Tensor
    divergence: Tensor
    same_model: bool
    agrees: bool
    manifest: dict[str, Any]


def store(
    folder: str | Path,
    victim: Victim,
    x: Tensor,
    found: AttackResult,
    ball: Ball,
    *,
    attack: str,
    with_model: bool = True,
) -> Path:
    """Write attacked images so that anyone can score them again.

    The folder holds `adversarials.npz` (numbers only, no pickle), `manifest.json`, and the
    model's checkpoint in `model/` where it can be saved.

    Args:
        folder: Where to; made if missing.
        victim: What was attacked.
        x: Clean images, (B, C, H, W).
        found: What the attack returned.
        ball: The attack's ball.
        attack: What was done, in words.
        with_model: Keep the model beside the images.

    Raises:
        ShapeError: `x` and `found` do not belong together.
        StorageError: The folder cannot be written.

    Examples:
        >>> import robustvae as rv, tempfile, torch
        >>> from robustvae.attacks import rescore, store
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, ball = torch.rand(2, 1, 4, 4), rv.Ball("l2", 0.5)
        >>> attack = rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(steps=3, restarts=1), ball)
        >>> found = attack(rv.Victim(vae), x, generator=rv.generator(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = store(folder, rv.Victim(vae), x, found, ball, attack="damage, 3 steps")
        ...     rescore(folder).agrees
        True
    """
    folder, vae = Path(folder), victim.vae
    if found.x_adv.shape != x.shape:
        raise ShapeError(f"x is {tuple(x.shape)} and x_adv {tuple(found.x_adv.shape)}")
    damage, _ = _measure(vae, x, found.x_adv)
    arrays = {
        "x": x,
        "x_adv": found.x_adv,
        "size": ball.size(x, found.x_adv),
        "damage": damage,
        "radius": ball.radii(x),
        "score": found.score,
        "queries": found.queries,
    }
    buffer = io.BytesIO()
    numbers: dict[str, Any] = {name: a.detach().cpu().numpy() for name, a in arrays.items()}
    np.savez_compressed(buffer, **numbers)
    if with_model:
        save(vae, folder / "model")
    defense = victim.defense
    manifest = {
        "format": FORMAT,
        "attack": attack,
        "defense": repr(defense) if dataclasses.is_dataclass(defense) else type(defense).__name__,
        "ball": {"norm": ball.norm, "low": ball.low, "high": ball.high},
        "inputs": len(x),
        "status": list(found.status),
        "model_sha256": weights_sha256(vae),
        "arrays": sorted(arrays),
    }
    write_bytes(folder / "adversarials.npz", buffer.getvalue())
    write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return folder


def rescore(folder: str | Path, vae: VAE | None = None) -> Rescored:
    """Score stored adversarials again, from the images and the model alone.

    Args:
        folder: What `store` wrote.
        vae: The model; None for the one in the folder.

    Raises:
        DataError: No such folder, or its files are damaged or of another format.
        CheckpointError: No model is given and none is stored, or it cannot be read.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        with np.load(folder / "adversarials.npz", allow_pickle=False) as archive:
            arrays = {name: torch.from_numpy(archive[name]) for name in (*_ARRAYS, "radius")}
        if manifest["format"] != FORMAT:
            raise DataError(f"{folder} has format {manifest['format']!r}, wanted {FORMAT}")
        ball = Ball(radius=arrays["radius"], **manifest["ball"])
    except OSError as error:
        raise DataError(f"{folder} holds no stored adversarials: {error}") from None
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{folder} holds damaged adversarials: {error!r}") from None
    if vae is None:
        if not (folder / "model").is_dir():
            raise CheckpointError(f"{folder} holds no model: give the one that was attacked")
        vae = load(folder / "model")
    x, x_adv = (arrays[name].to(vae.device, vae.dtype) for name in ("x", "x_adv"))
    vae.check(x)
    vae.check(x_adv, name="x_adv")
    damage, divergence = _measure(vae, x, x_adv)
    size = ball.size(x, x_adv)
    agrees = all(
        torch.allclose(now, arrays[name].to(now), rtol=1e-3, atol=1e-5)
        for name, now in (("size", size), ("damage", damage))
    )
    same = weights_sha256(vae) == manifest["model_sha256"]
    return Rescored(ball.contains(x, x_adv), size, damage, divergence, same, agrees, manifest)


def _measure(vae: VAE, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
    victim, g = Victim(vae), new_generator(_SEED)
    with torch.no_grad():
        change = victim.reconstruct(x_adv, generator=g) - victim.reconstruct(x, generator=g)
        p, q = vae.encode(x_adv), vae.encode(x)
        divergence = metrics.symmetric_kl(p.mean, p.stddev, q.mean, q.stddev)
    return torch.linalg.vector_norm(change.flatten(1), dim=1), divergence
