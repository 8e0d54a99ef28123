"""What each number means, in one sentence, for whoever meets it for the first time."""

from __future__ import annotations

from robustvae.records import SummaryEntry

MEANINGS = {
    "damage": "How far the output moves under the worst attack that was tried. Less is better.",
    "damage_noise": "The same for random noise of equal size. Far less than the damage: attackers "
    "gain much over chance.",
    "probability": "How often the attacked output, which is random, stays within r. 0 is broken.",
    "error_clean": "How far the output lies from its input when nobody attacks. Where it exceeds "
    "r, r says little.",
    "margin_upper_box": "A change of this size, all pixels in range, was found that breaks the "
    "model. The true margin is no larger.",
    "margin_upper_unconstrained": "The same where pixels may leave their range.",
    "certified": "No change below this size breaks the model. This is a guarantee.",
    "certified_deterministic": "No change below this size breaks the model: proved from the "
    "weights. 0 means that nothing was proved.",
    "certified_probabilistic": "The same from samples, wrong for an input with a probability of "
    "at most one less the confidence.",
    "tightness_deterministic": "Certified over attacked: 1 would close the gap between the two.",
    "tightness_probabilistic": "Certified over attacked: 1 would close the gap between the two.",
    "ms_ssim_attacked": "How alike attacked and clean outputs look; 1 is the same picture.",
}


def meaning(entry: SummaryEntry) -> str:
    """What a key number means; its column's label where there is no sentence for it."""
    return MEANINGS.get(entry.key, "") or f"{entry.label[:1].upper()}{entry.label[1:]}."
