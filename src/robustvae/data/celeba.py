"""CelebA: faces of celebrities [Liu et al., 2015], from a folder that the user has."""

from __future__ import annotations

from pathlib import Path

from robustvae.data.folder import read_folder
from robustvae.data.images import Images
from robustvae.errors import DataError

COUNTS = {"train": 162_770, "test": 19_962}
CROP, SIZE = 148, 64


def load(split: str, root: Path) -> Images:
    """The aligned faces, cut to 148 x 148 and scaled to 64 x 64; labels are the 40 attributes.

    Its terms allow no copies: the folder celeba in `root` must hold img_align_celeba,
    list_eval_partition.txt and list_attr_celeba.txt, as torchvision leaves them. For another
    `crop` and `size` use `read_folder`.

    Args:
        split: "train" or "test"; the published validation part is left out.
        root: The folder above celeba.

    Raises:
        DataError: Missing, damaged, or of other counts.
    """
    folder = root / "celeba"
    if not folder.is_dir():
        raise DataError(
            f"celeba is missing: looked for {folder}, with img_align_celeba, "
            "list_eval_partition.txt and list_attr_celeba.txt; its terms forbid copies, so ask for "
            "it at mmlab.ie.cuhk.edu.hk/projects/CelebA.html, or name the folder above celeba with "
            "root= or ROBUSTVAE_DATA"
        )
    images = read_folder(folder, split, crop=CROP, size=SIZE, channels=3)
    if len(images) != COUNTS[split]:
        raise DataError(
            f"{folder} is not the {split} split of celeba: wanted {COUNTS[split]:,} images, "
            f"got {len(images):,}"
        )
    return images.named("celeba")
