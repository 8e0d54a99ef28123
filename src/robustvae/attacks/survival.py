"""What is left of an attack once the image has been stored, or sent in several times."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.attacks.attack import Attack
from robustvae.data.changes import jpeg
from robustvae.defenses import Victim
from robustvae.errors import check_count
from robustvae.seeding import by_row, split


@checked(formula=True)
def survival(
    attack: Attack,
    victim: Victim,
    x: Tensor,
    x_adv: Tensor,
    *,
    generator: torch.Generator,
    quality: int = 90,
    rows: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """The attack's reported score of images as they are, in 8 bits, and after JPEG.

    Args:
        attack: The attack whose score it is.
        victim: What was attacked.
        x: Clean images in [0, 1], (B, C, H, W), of one or three channels.
        x_adv: Attacked images in [0, 1], (B, C, H, W).
        generator: Spent by the victim, with the same noise for all.
        quality: Of the JPEG, 1 to 95.
        rows: The inputs' own numbers; see `robustvae.seeding.row_numbers`.

    Returns:
        Scores (B,) under "as found", "8 bits" and "JPEG".

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.attacks import survival
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> attack = rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(2, 1), rv.Ball("l2", 0.5))
        >>> x = torch.rand(2, 1, 4, 4)
        >>> sorted(survival(attack, rv.Victim(vae), x, x, generator=rv.generator(0)))
        ['8 bits', 'JPEG', 'as found']
    """
    streams = by_row(generator, "survival", x, rows)
    images = {
        "as found": x_adv,
        "8 bits": (255 * x_adv.clamp(0, 1)).round() / 255,
        "JPEG": jpeg(x_adv, quality),
    }
    return {
        name: attack.score(victim, x, image, generator=streams.clone_state())
        for name, image in images.items()
    }


@checked(formula=True)
def resubmissions(
    attack: Attack,
    victim: Victim,
    x: Tensor,
    x_adv: Tensor,
    *,
    generator: torch.Generator,
    times: int = 10,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """The attack's reported score when the same images are sent in again and again.

    A random defense that holds on average may be broken by the worst of a few tries: take the
    maximum over the first axis. The median over it is what a majority of votes would see.

    Args:
        attack: The attack whose score it is; its goal should average one draw, `draws=1`.
        victim: What was attacked.
        x: Clean images, (B, C, H, W).
        x_adv: Attacked images, (B, C, H, W).
        generator: Spent by the victim, anew each time.
        times: How often.
        rows: The inputs' own numbers; see `robustvae.seeding.row_numbers`.

    Returns:
        Scores, (times, B).

    References:
        Kassis et al., 2025 (DiffBreak): worst of N, and majority votes.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.attacks import resubmissions
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> attack = rv.Attack(rv.MaximumDamage(draws=1), rv.ProjectedAscent(2), rv.Ball("l2", 0.5))
        >>> x, victim = torch.rand(2, 1, 4, 4), rv.Victim(vae, rv.PosteriorSample())
        >>> resubmissions(attack, victim, x, x, generator=rv.generator(0), times=3).shape
        torch.Size([3, 2])
    """
    check_count(times, "times")
    streams = by_row(generator, "resubmissions", x, rows)
    return torch.stack(
        [attack.score(victim, x, x_adv, generator=local) for local in split(streams, times)]
    )
