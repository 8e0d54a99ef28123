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
from robustvae.arguments import checked
from robustvae.attacks.attack import AttackResult
from robustvae.defenses import Victim
from robustvae.defenses.defense import is_random
from robustvae.display import three_lines
from robustvae.errors import CheckpointError, DataError, ShapeError, StorageError
from robustvae.models.base import VAE
from robustvae.models.checkpoint import check_place, contents, environment, load, weights_sha256
from robustvae.perturb import Ball
from robustvae.records import finish_switch, write_files
from robustvae.records.files import is_file
from robustvae.records.text import read_json, read_text, reason
from robustvae.registry import build
from robustvae.seeding import generator as new_generator

FORMAT = 1
_ARRAYS = ("x", "x_adv", "size", "damage")
_SEED = 0


@final
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
class Rescored:
    """What stored adversarials are worth, recomputed from the images and the model alone.

    Attributes:
        inside: Whether each lies in the ball it was made for, and in its box, (B,) bool.
        size: ||x_adv - x|| in the ball's norm, in pixel units, (B,).
        damage: ||g(mu(x_adv)) - g(mu(x))||_2 of the undefended model, in pixel units, (B,); of an
            audit's victims the distance of their own outputs.
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


@checked(formula=True)
def store(
    folder: str | Path,
    victim: Victim,
    x: Tensor,
    result: AttackResult,
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
        result: What the attack returned.
        ball: The attack's ball.
        attack: What was done, in words.
        with_model: Keep the model beside the images.

    Raises:
        ShapeError: `x` and `result` do not belong together.
        StorageError: The folder cannot be written.

    Examples:
        >>> import robustvae as rv, tempfile, torch
        >>> from robustvae.attacks import rescore, store
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, ball = torch.rand(2, 1, 4, 4), rv.Ball("l2", 0.5)
        >>> attack = rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(steps=3, restarts=1), ball)
        >>> result = attack(rv.Victim(vae), x, generator=rv.generator(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = store(folder, rv.Victim(vae), x, result, ball, attack="damage, 3 steps")
        ...     rescore(folder).agrees
        True
    """
    folder, vae = Path(folder), victim.vae
    if result.x_adv.shape != x.shape:
        raise ShapeError(f"x must be {tuple(result.x_adv.shape)} like x_adv, got {tuple(x.shape)}")
    damage, _ = _measure(vae, x, result.x_adv)
    arrays = {
        "x": x,
        "x_adv": result.x_adv,
        "size": ball.size(x, result.x_adv),
        "damage": damage,
        "radius": ball.radii(x),
        "score": result.score,
        "queries": result.queries,
    }
    buffer = io.BytesIO()
    numbers: dict[str, Any] = {name: a.detach().cpu().numpy() for name, a in arrays.items()}
    np.savez_compressed(buffer, **numbers)
    defense = victim.defense
    manifest = {
        "format": FORMAT,
        "attack": attack,
        "defense": repr(defense) if dataclasses.is_dataclass(defense) else type(defense).__name__,
        "ball": {"norm": ball.norm, "low": ball.low, "high": ball.high},
        "inputs": len(x),
        "status": list(result.status),
        "model_sha256": weights_sha256(vae),
        "environment": environment(vae),
        "arrays": sorted(arrays),
    }
    files: dict[str | Path, bytes] = {
        folder / "adversarials.npz": buffer.getvalue(),
        folder / "manifest.json": (json.dumps(manifest, indent=2) + "\n").encode(),
    }
    _check_place(folder)
    if with_model:
        check_place(folder / "model")
        files |= {folder / "model" / name: file for name, file in contents(vae).items()}
    write_files(files)
    return folder


def _check_place(folder: Path) -> None:
    """Raise where files of somebody else's would be overwritten."""
    for name in ("manifest.json", "adversarials.npz"):
        if not (folder / name).exists():
            continue
        try:
            is_ours = {"format", "ball", "arrays"} <= set(
                read_json(read_text(folder / "manifest.json"))
            )
        except (OSError, ValueError, TypeError, RecursionError):
            is_ours = False
        if not is_ours:
            raise StorageError(
                f"{folder / name} was not written by an attack and would be lost: choose another "
                "folder"
            )


@checked(formula=True)
def rescore(folder: str | Path, vae: VAE | None = None) -> Rescored:
    """Score stored adversarials again, from the images and the model alone.

    Args:
        folder: What `store` wrote, or an audit's own folder; of an audit all attacks on all
            victims whose defense a spec can say are scored, row after row.
        vae: The model; None for the one in the folder. An audit's folder holds none.

    Raises:
        DataError: No such folder, or its files are damaged or of another format.
        CheckpointError: No model is given and none is stored, or it cannot be read.
    """
    folder = Path(folder)
    finish_switch(folder)
    if is_file(folder / "record.json"):
        return _rescore_audit(folder, vae)
    try:
        manifest = read_json(read_text(folder / "manifest.json"))
        # opened here: of a damaged archive numpy would leave its file open
        with (
            (folder / "adversarials.npz").open("rb") as raw,
            np.load(raw, allow_pickle=False) as archive,
        ):
            arrays = {name: torch.from_numpy(archive[name]) for name in (*_ARRAYS, "radius")}
        if manifest["format"] != FORMAT:
            raise DataError(f"{folder} has format {manifest['format']!r}, wanted {FORMAT}")
        if not (isinstance(manifest["attack"], str) and "model_sha256" in manifest):
            raise ValueError("a manifest without its model")
        ball = Ball(radius=arrays["radius"], **manifest["ball"])
    except OSError as error:
        raise DataError(
            f"{folder} holds no stored adversarials: {reason(error)}; name a folder that "
            "`robustvae attack --out` or `robustvae audit` wrote"
        ) from None
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


def _rescore_audit(folder: Path, vae: VAE | None) -> Rescored:
    """The same of an audit's record.json and adversarials.safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load as load_tensors

    if vae is None:
        raise CheckpointError(
            f"{folder} is an audit's and holds no model: give the one that was audited, vae=rv.load"
            "(NAME), or `robustvae rescore FOLDER --model NAME`"
        )
    try:
        record = read_json(read_text(folder / "record.json"))
        tensors = load_tensors((folder / "adversarials.safetensors").read_bytes())
        rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in record["rows"]:
            rows.setdefault((row["victim"], row["attack"]), []).append(row)
        specs = {v["name"]: v["spec"] for v in record["victims"] if v["spec"] is not None}
        order = list(dict.fromkeys(row["input"] for row in record["rows"]))
        manifest = {"attack": record["title"], "model_sha256": record["model"]["sha256"]}
        parts = [
            _rescore_rows(
                Victim(vae, build("defense", specs[victim])),
                tensors["x"][[order.index(row["input"]) for row in members]],
                tensors[f"{victim}/{attack}"][[order.index(row["input"]) for row in members]],
                members,
            )
            for (victim, attack), members in rows.items()
            if victim in specs
        ]
        inside, size, damage, divergence = (
            torch.cat(column) for column in zip(*(part[:4] for part in parts), strict=True)
        )
    except OSError as error:
        raise DataError(f"{folder} holds no attacked inputs: {error}") from None
    except (ValueError, KeyError, TypeError, IndexError, SafetensorError) as error:
        raise DataError(f"{folder} holds a damaged audit: {error!r}") from None
    same = weights_sha256(vae) == manifest["model_sha256"]
    agrees = all(part[4] for part in parts)
    return Rescored(inside, size, damage, divergence, same, agrees, manifest)


def _rescore_rows(
    victim: Victim, x: Tensor, x_adv: Tensor, rows: list[dict[str, Any]]
) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
    """One attack of an audit: inside, size, damage, divergence, and whether they are its rows'."""
    vae = victim.vae
    x, x_adv = (images.to(vae.device, vae.dtype) for images in (x, x_adv))
    radius = torch.tensor([float(row["radius"]) for row in rows]).to(x)
    ball = Ball(rows[0]["norm"], radius)
    size = ball.size(x, x_adv)
    damage, divergence = _measure(vae, x, x_adv, victim)
    columns = [("size", size)]
    if not is_random(victim.defense):  # a random defense draws anew
        columns.append(("damage", damage))
    agrees = all(
        abs(float(row[key]) - float(value)) <= 1e-5 + 1e-3 * abs(float(value))
        for key, values in columns
        for row, value in zip(rows, values, strict=True)
        if row.get(key) is not None
    )
    return ball.contains(x, x_adv), size, damage, divergence, agrees


def _measure(
    vae: VAE, x: Tensor, x_adv: Tensor, victim: Victim | None = None
) -> tuple[Tensor, Tensor]:
    victim = Victim(vae) if victim is None else victim
    with torch.no_grad():
        clean, attacked = (
            victim.reconstruct(images, generator=new_generator(_SEED)) for images in (x, x_adv)
        )
        change = attacked - clean
        p, q = vae.encode(x_adv), vae.encode(x)
        divergence = metrics.symmetric_kl(p.mean, p.stddev, q.mean, q.stddev)
    return torch.linalg.vector_norm(change.flatten(1), dim=1), divergence
