"""Whether a model may be audited at all: a fault of how it is read ends the audit at once."""

from __future__ import annotations

from collections.abc import Mapping

from robustvae.data import Images
from robustvae.defenses import Victim
from robustvae.errors import ModelError
from robustvae.models import VAE
from robustvae.models.diagnosis import ROWS, check
from robustvae.models.items import Item

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
        A sentence for each fault that the library takes care of, such as training mode.

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
    return sentences


def _in_words(item: Item) -> str:
    return f"{item.name}: {item.message} -> {item.remedy}" if item.remedy else item.message
