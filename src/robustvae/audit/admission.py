"""Whether a model may be audited at all: a fault of how it is read ends the audit at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from robustvae.data import Images
from robustvae.defenses import Victim
from robustvae.errors import ModelError, UnsupportedError
from robustvae.models import VAE
from robustvae.models.diagnosis import ROWS, check
from robustvae.models.items import Item
from robustvae.records.parts import Omission
from robustvae.seeding import generator

# Where the library reads another model than the one that was meant, every number is about that
# other model. The remaining faults (randomness, neighbors, gradients, values that are not finite)
# are the victim's own: checks judge them, and they open the verdict.
ENDING = ("runs", "output_kind", "pixel_range")


def admit(named: Mapping[str, Victim], images: Images) -> list[str]:
    """Diagnose every model once, and say what was mended.

    Args:
        named: Victims by name; those of one model are diagnosed once.
        images: The data; the first few inputs are read.

    Returns:
        A sentence for each fault that the library takes care of, such as training mode; of a
        foreign model also how it is read, what that assumes, and what was not looked into.

    Raises:
        ModelError: A model cannot be run on these inputs, or is read in another range or
            kind of output than it was made for.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.audit.admission import admit
        >>> admit({"one": rv.Victim(rv.load("digits-vae"))}, rv.data.load("digits", "test"))
        []
    """
    models: dict[int, tuple[str, VAE]] = {}
    for name, victim in named.items():
        models.setdefault(id(victim.vae), (name, victim.vae))
    sentences = []
    for name, vae in models.values():
        diagnosis = check(vae, images[: min(len(images), ROWS)])
        faults = [item for item in diagnosis.failed if item.name in ENDING]
        if faults:
            words = "; ".join(map(_in_words, faults))
            raise ModelError(
                f"audit: {name} is not read as it was made ({words}); mend that first, or leave "
                "the look out by without: [diagnosis_passed] in the plan"
            )
        sentences += [
            f"{name}: {item.message}; {item.remedy}."
            for item in diagnosis.items
            if item.passed is False and item.fixed
        ]
        if words := getattr(vae, "recognized", ""):
            sentences.append(f"{name}: read as {words}.")
        sentences += [
            f"{name}: {item.message}."
            for item in diagnosis.items
            if item.name in ("assumption", "weights_in_sight")
        ]
    return sentences


def readable(
    named: Mapping[str, Victim], images: Images
) -> tuple[dict[str, Victim], list[Omission]]:
    """The victims that can read these inputs at all, and the others with their reason.

    Noise on the input of a model that reads counts is such a case: the audit goes on with the
    remaining victims.

    Args:
        named: Victims by name.
        images: The data; one input is read.

    Raises:
        UnsupportedError: No victim can read them.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.audit.admission import readable
        >>> readable({"one": rv.Victim(rv.load("digits-vae"))}, rv.data.load("digits", "test"))[1]
        []
    """
    victims, left_out = {}, []
    refusal: UnsupportedError | None = None
    for name, victim in named.items():
        x = images.read(torch.arange(1)).to(device=victim.vae.device, dtype=victim.vae.dtype)
        try:
            victim.reconstruct(x, generator=generator(0))
        except UnsupportedError as error:
            refusal = error
            reason = " ".join(str(error).split())[:400]
            left_out.append(Omission(stage="victim", victim=name, reason=reason))
        except Exception:  # a stranger's model may raise anything: the stage that meets it says so
            victims[name] = victim
        else:
            victims[name] = victim
    if refusal is not None and not victims:
        raise refusal
    return victims, left_out


def _in_words(item: Item) -> str:
    return f"{item.name}: {item.message} -> {item.remedy}" if item.remedy else item.message
